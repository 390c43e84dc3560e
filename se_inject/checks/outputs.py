"""The model computes what it did, in eval and in train mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from se_inject.checks.reference import Reference, Run, digest, run_forward
from se_inject.checks.spliced import Spliced
from se_inject.inputs import Inputs
from se_inject.types import Check, Plan

ARITHMETIC = 1e-3  # how far the same network may be on another processor, relative to the output's size
EXACT = ("identity", "absorb")  # starts that must not change the output


def check(spliced: Spliced) -> tuple[Check, ...]:
    if spliced.reference is None:
        return (Check("outputs", None, "the model has no weights (meta tensors)", "nothing-to-compare"),)
    return outputs(spliced.reference, spliced.model, spliced.plan)


def outputs(reference: Reference, model: nn.Module, plan: Plan) -> tuple[Check, ...]:
    """Outputs equal the original's: in eval mode, and in train mode from the same random state."""
    exact = all(d.init in EXACT for d in plan.insertions)
    checks = []
    for mode, before in (("eval", reference.eval), ("train", reference.train)):
        name = f"outputs ({mode})"
        if before.failure:
            detail = f"the original does not run so in {mode} mode: {before.failure}"
            checks.append(Check(name, None, detail, "fails"))
            continue
        after = run_forward(model, reference.probe, mode == "train", plan.seed)
        if after.failure:
            detail = f"the original runs, the rewritten model does not: {after.failure}"
            checks.append(Check(name, False, detail, "fails"))
        elif not exact:
            moved = relative(before.outputs, after.outputs)
            detail = f"start `paper` changes them by design: by {moved:.3g} of their size"
            checks.append(Check(name, None, detail, "by-design"))
        else:
            checks.append(_compare(name, before, after))
    return tuple(checks)


def _compare(name: str, before: Run, after: Run) -> Check:
    if not before.outputs and not after.outputs:
        return Check(name, None, "the output holds no tensor that could be compared", "nothing-to-compare")
    if len(before.outputs) != len(after.outputs):
        return Check(name, False, f"{len(before.outputs)} tensors before, {len(after.outputs)} after", "differs")
    different = [i for i, (a, b) in enumerate(zip(before.outputs, after.outputs, strict=True)) if not same(a, b)]
    buffers = [key for key, value in before.buffers.items() if not same(value, after.buffers.get(key))]
    if different:
        moved = relative(before.outputs, after.outputs)
        detail = f"{len(different)} of {len(before.outputs)} tensors differ, by {moved:.3g} of their size"
        return Check(name, False, detail, "differs")
    if buffers:
        return Check(name, False, f"after one step {len(buffers)} buffers differ, the first is {buffers[0]}", "differs")
    if not all(torch.isfinite(t).all() for t in before.outputs if t.is_floating_point()):
        return Check(name, True, f"{_count(before.outputs)} bit-equal (the original's hold NaN or infinity)")
    tail = f", {len(before.buffers)} buffers equal after one step" if before.buffers else ""
    return Check(name, True, f"{_count(before.outputs)} bit-equal{tail}")


def _count(tensors: Sequence[torch.Tensor]) -> str:
    return "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"


def same(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Equal in shape, dtype and every bit, NaN equal to NaN."""
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def relative(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """The largest difference of two lists of outputs, as a share of the largest value; infinite for other shapes."""
    worst = 0.0
    for a, b in zip(before, after, strict=False):
        if a.shape != b.shape:
            return float("inf")
        kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        size = a.to(kind).abs().max().item() if a.numel() else 0.0
        moved = (a.to(kind) - b.to(kind)).abs().max().item() if a.numel() else 0.0
        worst = max(worst, float("inf") if math.isnan(moved) else moved / size if size else moved)
    return worst


def against_baseline(model: nn.Module, inputs: Inputs | None, plan: Plan) -> Check:
    """Outputs on the seeded probe against those that the plan remembers."""
    name = "outputs (eval)"
    if not plan.trained and not all(d.init in EXACT for d in plan.insertions):
        return Check(name, None, "start `paper`: the outputs are not the original's, by design", "by-design")
    if inputs is None or not plan.saved.outputs:
        detail = "the probe was not made from a shape, so it cannot be made again"
        return Check(name, None, detail, "nothing-to-compare")
    after = run_forward(model, inputs, False, plan.seed)
    if after.failure:
        return Check(name, False, after.failure, "fails")
    return against_outputs(name, after.outputs, plan)


def against_outputs(name: str, outputs: Sequence[torch.Tensor], plan: Plan) -> Check:
    """Outputs on the seeded probe against those that the plan remembers."""
    if tuple(digest(t) for t in outputs) == plan.saved.outputs:
        return Check(name, True, f"{_count(outputs)} bit-equal to {plan.whose}")
    if len(outputs) != len(plan.saved.outputs):
        return Check(name, False, f"{len(plan.saved.outputs)} tensors before, {len(outputs)} after", "differs")
    if not plan.saved.samples:
        detail = "not bit-equal, and the plan holds no values to compare (complex, NaN or infinite)"
        return Check(name, None, detail, "nothing-to-compare")
    first = outputs[0].flatten()[: len(plan.saved.samples)].double().tolist()
    size = max((abs(v) for v in plan.saved.samples), default=0.0) or 1.0
    if len(first) < len(plan.saved.samples):
        return Check(name, False, f"the output is smaller than {plan.whose}", "differs")
    apart = [abs(a - b) / size for a, b in zip(first, plan.saved.samples, strict=True)]
    moved = float("inf") if any(map(math.isnan, apart)) else max(apart)
    close = moved <= ARITHMETIC
    detail = f"within {moved:.2g} of {plan.whose}, not bit-equal (another machine's arithmetic?)"
    return Check(name, close, detail, "" if close else "differs")
