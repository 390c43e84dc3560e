"""Blocks that training left idle are taken out again.

A block is as far from the identity as any of its values on a batch: ``max |f(x) - x| / |x|``, which for every kind of
gate is ``max |gate - 1|``. Under `absorb` the norm before the block is doubled and ``2 f(x)`` takes the place of
``f(x)``; with its block the norm is halved again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from se_inject.checks import reference
from se_inject.checks.cost import measure
from se_inject.checks.gates import statistics
from se_inject.checks.keys import keys
from se_inject.checks.outputs import relative
from se_inject.checks.overhead import overhead
from se_inject.checks.structure import traced_again
from se_inject.checks.table import require
from se_inject.copying import independent_copy
from se_inject.errors import SEInjectError, TraceError
from se_inject.guard import unwrap
from se_inject.injection.inject import Injection, realise
from se_inject.injection.plan import follow_plan
from se_inject.inputs import Inputs, resolve
from se_inject.surgery import splice
from se_inject.surgery.fingerprint import fingerprint
from se_inject.types import Decision, Plan, Pruned, Reason


@dataclass(frozen=True)
class Pruning(Pruned):
    """A model without its idle blocks, and what that saves. Printed it is a table."""

    injection: Injection  # the model, its plan and a report: what `save` takes

    @property
    def model(self) -> nn.Module:
        return self.injection.model

    @property
    def plan(self) -> Plan:
        return self.injection.plan

    def __str__(self) -> str:
        from se_inject.report.text import as_text, render_pruning

        return as_text(lambda console: render_pruning(self, console))


def prune(model: nn.Module, batch: Any, threshold: float = 1e-3) -> Pruning:
    """A copy of ``model`` without the blocks that are idle: within ``threshold`` of the identity on all of a batch.

    The other blocks keep their trained weights, all else its keys and values; the plan holds what was dropped as skips.
    ``batch``: data, as for ``gates``; more samples make a safer judgement. ``threshold``: the largest ``|gate - 1|``
    that counts as idle; blocks that add to the features are measured by what they change. Raises ``SpliceError`` when
    the model does not hold the blocks of one plan, ``TraceError`` when the batch does not run or misses a block.

    >>> print(pruned := prune(model, images))
    >>> save(pruned.injection, "out")
    """
    if not threshold >= 0:
        raise SEInjectError(f"threshold {threshold}: expected 0 or more, the largest |gate - 1| that counts as idle.")
    model = unwrap(model)
    plan, inputs = splice.plan_of(model), resolve(model, batch)
    deviations, outputs = _deviations(model, plan, inputs)
    reason = Reason("pruned", f"pruned: within {threshold:g} of the identity on a batch")
    decisions = tuple(
        Decision(d.site, "skip", reason) if d.status == "insert" and deviations[d.key] <= threshold else d
        for d in plan.decisions
    )
    # what `trained` remembers of an earlier folder is of all blocks
    result = _rebuild(model, replace(plan, decisions=decisions, trained=None), inputs)
    after = reference.run_forward(result.model, inputs, False, plan.seed).outputs
    before, change = measure(model, inputs).cost, relative(outputs, after)
    return Pruning(deviations, threshold, before, result.report.after, change, result)


def _deviations(model: nn.Module, plan: Plan, inputs: Inputs) -> tuple[dict[str, float], list[torch.Tensor]]:
    """How far each block is from the identity, and the outputs of the forward that shows it."""
    found: dict[str, list[torch.Tensor]] = {decision.key: [] for decision in plan.insertions}
    hooks = [
        (model.get_submodule(d.key), _measure(found[d.key], 2.0 if d.init == "absorb" else 1.0))
        for d in plan.insertions
    ]
    ran = reference.watch(model, inputs, plan.seed, hooks)
    if still := next((key for key, calls in found.items() if not calls), None):
        raise TraceError(
            f"{still} did not run on the batch: give one that reaches every block, or set the model's flags."
        )
    return {key: torch.stack(calls).max().item() for key, calls in found.items()}, ran.outputs


def _measure(calls: list[torch.Tensor], scale: float) -> Any:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x, y = args[0], output * scale
        calls.append(((y - x).abs() / x.abs()).masked_fill(y == x, 0.0).max())  # 0 / 0 is no difference

    return hook


def _rebuild(model: nn.Module, plan: Plan, inputs: Inputs) -> Injection:
    """A copy of ``model`` with the blocks of ``plan`` alone, which are its own."""
    base = splice.remove(model)
    kept = {d.key: independent_copy(model.get_submodule(d.key), {}) for d in plan.insertions}
    # The inputs are those that the costs are counted for; a head replaced since then is part of the base.
    plan = replace(plan, inputs=inputs.describe(), fingerprint=fingerprint(base))
    planned, tensors = follow_plan(base, inputs, plan), reference.digests(base)
    result = realise(base, planned, inplace=True, check=False)
    for key, block in kept.items():
        result.model.set_submodule(key, block)
    made = result.report
    checks = (
        traced_again(result.model, plan, planned.trace, planned.found, planned.inputs),
        keys(tensors, result.model, plan),
        overhead(made.before, made.after, made.sites),
    )
    require(checks)
    gates = statistics(result.model, inputs).sites if made.gates else ()
    return replace(result, report=replace(made, checks=checks, gates=gates))
