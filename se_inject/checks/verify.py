"""The checks after every splice: that the model computes what it did, and that nothing else changed; that each block
learns is in ``reached``. Each returns a ``Check`` with its figures; modes, buffers and random state are restored.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from se_inject.blocks.make import make_block
from se_inject.checks.reference import Reference, Run, digest, digests, run_forward
from se_inject.errors import VerifyError
from se_inject.inputs import Inputs
from se_inject.object_graph import held
from se_inject.types import Check, Cost, Plan, SiteCost

ARITHMETIC = 1e-3  # how far the same network may be on another processor, relative to the output's size
EXACT = ("identity", "absorb")  # starts that must not change the output


def structure(wrong: list[str], modules: int) -> Check:
    """1. The re-traced modules equal the spliced graphs."""
    detail = f"{modules} rewritten modules, traced again, are the planned graphs"
    if wrong:
        detail = f"not the planned graph: {', '.join(wrong[:5])}" + (f" and {len(wrong) - 5} more" if wrong[5:] else "")
    return Check("structure", not wrong, detail, "structure" if wrong else "")


def outputs(reference: Reference, model: nn.Module, plan: Plan) -> tuple[Check, ...]:
    """2. Outputs equal the original's: in eval mode, and in train mode from the same random state."""
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


def keys(before: dict[str, str], model: nn.Module, plan: Plan) -> Check:
    """4. Every original key (``before``: name -> hash) has the identical value; new keys are exactly the planned."""
    after = digests(model)
    planned = _aliases(model, planned_keys(plan))
    doubled = _aliases(model, absorbed(plan))
    state = model.state_dict()
    halves = sorted(k for k in doubled if k in after and digest(state[k] * 0.5) != before.get(k))
    lost = sorted((set(before) | planned) - set(after))
    changed = sorted(k for k in before if k in after and before[k] != after[k] and k not in doubled)
    foreign = sorted(set(after) - set(before) - planned)
    for what, found in (("lost", lost), ("changed", changed), ("not doubled", halves), ("not planned", foreign)):
        if found:
            return Check("keys", False, f"{len(found)} keys {what}, the first is {found[0]}", "keys")
    tail = f", {len(doubled)} of absorbed norms doubled" if doubled else ""
    new = len(after) - len(before)
    return Check("keys", True, f"{len(before) - len(doubled)} tensors identical{tail}, {new} new ones all planned")


def _aliases(model: nn.Module, names: set[str]) -> set[str]:
    """``names``, and those under which a shared module holds the same tensors again."""
    state = model.state_dict(keep_vars=True)
    same = {id(state[name]) for name in names if name in state}
    return names | {name for name, tensor in state.items() if id(tensor) in same}


def absorbed(plan: Plan) -> set[str]:
    """The tensors of the original that the plan doubles."""
    return {f"{d.site.absorb}.{n}" for d in plan.insertions if d.init == "absorb" for n in ("weight", "bias")}


def planned_keys(plan: Plan) -> set[str]:
    """The keys that the plan's blocks add to a state dict."""
    kinds: dict[tuple[str, str], list[str]] = {}
    found: set[str] = set()
    for decision in plan.insertions:
        kind = decision.block, repr(decision.kwargs)
        if kind not in kinds:
            kinds[kind] = list(make_block(decision, plan.seed, None).state_dict())
        found.update(f"{decision.key}.{name}" for name in kinds[kind])
    return found


def overhead(before: Cost, after: Cost, sites: tuple[SiteCost, ...]) -> Check:
    """5. Parameters and MACs grew by exactly what the inserted blocks account for."""
    grown = (after.parameters - before.parameters, after.macs - before.macs)
    planned = (sum(s.parameters for s in sites), sum(s.macs for s in sites))
    if grown != planned:
        detail = f"grew by {grown[0]:,} parameters and {grown[1]:,} MACs, planned {planned[0]:,} and {planned[1]:,}"
        return Check("overhead", False, detail, "overhead")
    return Check("overhead", True, f"grew by exactly {grown[0]:,} parameters and {grown[1]:,} MACs")


class Reads(TorchFunctionMode):
    """Which of some tensors a forward takes."""

    def __init__(self, watched: Collection[int]) -> None:
        super().__init__()
        self.watched, self.found = watched, list[torch.Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        self.found += (t for t in leaves if isinstance(t, torch.Tensor) and id(t) in self.watched)
        return func(*args, **(kwargs or {}))


def independent(original: nn.Module, model: nn.Module, inputs: Inputs | None, seed: int) -> Check:
    """6. The result holds no module and no tensor of the original, not in a closure either, and runs without them."""
    before, after = held(original), held(model)
    memory = {_storage(t): t for t in before.tensors.values()}
    shared: list[Any] = [value for key, value in after.modules.items() if key in before.modules]
    shared += [memory[place] for t in after.tensors.values() if (place := _storage(t)) in memory and place is not None]
    if not shared and inputs is not None:
        with Reads(before.tensors.keys()) as reads:
            run_forward(model, inputs, False, seed)
        shared = reads.found
    if shared:
        detail = (
            f"the result goes on with {len(shared)} parts of the original, the first is {_path(original, shared[0])}"
        )
        return Check("independent", False, detail)
    count = len(after.modules)
    return Check("independent", True, f"{count} modules and {len(after.tensors)} tensors, none of them the original's")


def _storage(tensor: torch.Tensor) -> int | None:
    plain = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel()
    return tensor.untyped_storage().data_ptr() if plain else None


def _path(model: nn.Module, part: Any) -> str:
    named = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    return next((path for path, value in named if value is part), f"a {type(part).__name__}")


def require(checks: tuple[Check, ...]) -> None:
    """Raise ``VerifyError`` with every check that failed."""
    failed = [f"{check.name}: {check.detail}" for check in checks if check.passed is False]
    if failed:
        raise VerifyError("the rewritten model is not what was planned. " + "; ".join(failed))
