"""From a model to a plan: one forward is recorded, sites are found in it, rules decide."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from se_inject.checks.cost import measure
from se_inject.checks.pricing import pricing
from se_inject.errors import PlanMismatchError
from se_inject.inputs import Inputs, dtype_of, resolve
from se_inject.rules import budget
from se_inject.rules.auto import needed
from se_inject.rules.decide import Budget, decide
from se_inject.rules.schema import Rules, given, read
from se_inject.search.gradient import learnable
from se_inject.search.sites import Found, find
from se_inject.search.train_mode import train_only
from se_inject.surgery import splice
from se_inject.surgery.fingerprint import fingerprint
from se_inject.trace.calls import Trace
from se_inject.trace.record import trace, uncollected
from se_inject.types import Plan


@dataclass(frozen=True)
class Planned:
    """A plan with the trace it came from, for what follows in the same process."""

    plan: Plan
    trace: Trace
    found: Found
    inputs: Inputs


def survey(
    model: nn.Module, example_inputs: Any, placements: Collection[str], seed: int
) -> tuple[Trace, Found, Inputs]:
    """Record one forward and find every site of the placements in it."""
    inputs = resolve(model, example_inputs, seed=seed)
    with uncollected():
        recorded = trace(model, inputs)
        found = train_only(recorded, find(recorded, placements), placements)
        return recorded, learnable(recorded, found), inputs


def make_plan(
    model: nn.Module,
    example_inputs: Any,
    rules: Any,
    *,
    seed: int = 0,
    name: str = "",
    model_args: dict[str, Any] | None = None,
) -> Planned:
    """Survey the model and decide by ``rules``."""
    parsed = read(rules)
    surveyed = survey(model, example_inputs, needed(parsed.placement), seed)
    return decided(model, surveyed, parsed, seed=seed, name=name, model_args=model_args)


def decided(
    model: nn.Module,
    surveyed: tuple[Trace, Found, Inputs],
    rules: Any,
    *,
    seed: int = 0,
    name: str = "",
    model_args: dict[str, Any] | None = None,
) -> Planned:
    """Decide by ``rules`` on what a survey found, which may be more than they ask for."""
    (recorded, found, inputs), parsed = surveyed, read(rules)
    sites = tuple(site for site in found.sites if site.placement in needed(parsed.placement))
    half = dtype_of(model) == torch.float16
    made = Plan(
        model=name or f"{type(model).__module__}.{type(model).__qualname__}",
        model_args=model_args or {},
        inputs=inputs.describe(),
        fingerprint=fingerprint(model),
        rules=given(parsed),
        seed=seed,
        decisions=decide(sites, parsed, half=half, budget=_budget(model, found, inputs, parsed)),
        notes=tuple(recorded.notes),
    )
    return Planned(made, recorded, found, inputs)


def _budget(model: nn.Module, found: Found, inputs: Inputs, rules: Rules) -> Budget | None:
    """What chooses under the budget of the rules, with the cost of each block measured at its site."""
    if not rules.budget:
        return None
    return partial(budget.choose, budget=rules.budget, base=measure(model, inputs).cost, price=pricing(found, inputs))


def follow_plan(model: nn.Module, example_inputs: Any, made: Plan) -> Planned:
    """Survey the model for a plan that was made before; no rules. Raises ``PlanMismatchError``."""
    splice.require_fingerprint(model, made)
    recorded, found, inputs = survey(model, example_inputs, {d.site.placement for d in made.decisions}, made.seed)
    if lost := [d.site.id for d in made.insertions if d.site.id not in found.places]:
        raise PlanMismatchError(f"the plan inserts at {lost[0]}, where this model has no site. Make the plan again.")
    return Planned(made, recorded, found, inputs)
