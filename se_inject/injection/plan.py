"""From a model to a plan: one forward is recorded, sites are found in it, rules decide."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from se_inject.checks.cost import Measured, measure
from se_inject.checks.pricing import pricing
from se_inject.errors import PlanMismatchError
from se_inject.inputs import Inputs, dtype_of, resolve
from se_inject.rules import budget
from se_inject.rules.auto import needed
from se_inject.rules.decide import Budget, decide
from se_inject.rules.schema import Rules, read, to_plain
from se_inject.search.carriers import is_free
from se_inject.search.gradient import learnable
from se_inject.search.sites import Found, find_sites
from se_inject.search.train_mode import train_only
from se_inject.surgery import splice
from se_inject.surgery.fingerprint import fingerprint
from se_inject.trace.calls import Trace
from se_inject.trace.record import trace, uncollected
from se_inject.types import Cost, Plan


@dataclass(frozen=True)
class Planned:
    """A plan with the trace it came from, for what follows in the same process."""

    plan: Plan
    trace: Trace
    found: Found
    inputs: Inputs


@dataclass(frozen=True)
class Survey:
    """A model's trace and the sites in it; what its forward costs, and blocks would, is measured when asked, once."""

    model: nn.Module
    trace: Trace
    found: Found
    inputs: Inputs

    @cached_property
    def measured(self) -> Measured:
        return measure(self.model, self.inputs)

    @property
    def base(self) -> Cost:
        return self.measured.cost

    @cached_property
    def price(self) -> budget.Price:
        return pricing(self.found, self.measured.batch)


def survey(model: nn.Module, example_inputs: Any, placements: Collection[str], seed: int) -> Survey:
    """Record one forward and find every site of the placements in it."""
    surveyed = _recorded(model, example_inputs, placements, seed)
    with uncollected():
        return replace(surveyed, found=learnable(surveyed.trace, surveyed.found))


def _recorded(model: nn.Module, example_inputs: Any, placements: Collection[str], seed: int) -> Survey:
    """What was found, before it is asked where a gate could learn: a plan that was made before has the answer."""
    inputs = resolve(model, example_inputs, seed=seed)
    with uncollected():
        recorded = trace(model, inputs)
        return Survey(model, recorded, train_only(recorded, find_sites(recorded, placements), placements), inputs)


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
    return decided(surveyed, parsed, seed=seed, name=name, model_args=model_args)


def decided(
    surveyed: Survey,
    rules: Any,
    *,
    seed: int = 0,
    name: str = "",
    model_args: dict[str, Any] | None = None,
) -> Planned:
    """Decide by ``rules`` on what a survey found, which may be more than they ask for."""
    model, parsed = surveyed.model, read(rules)
    sites = tuple(site for site in surveyed.found.sites if site.placement in needed(parsed.placement))
    half = dtype_of(model) == torch.float16
    made = Plan(
        model=name or f"{type(model).__module__}.{type(model).__qualname__}",
        model_args=model_args or {},
        inputs=surveyed.inputs.describe(),
        fingerprint=fingerprint(model),
        rules=to_plain(parsed),
        seed=seed,
        decisions=decide(
            sites,
            parsed,
            half=half,
            budget=_budget(surveyed, parsed),
            free=partial(is_free, surveyed.trace.root),
        ),
        notes=tuple(surveyed.trace.notes),
    )
    return Planned(made, surveyed.trace, surveyed.found, surveyed.inputs)


def _budget(surveyed: Survey, rules: Rules) -> Budget | None:
    """What chooses under the budget of the rules, with the cost of each block measured at its site."""
    if not rules.budget:
        return None
    return partial(budget.choose, budget=rules.budget, base=surveyed.base, price=surveyed.price)


def follow_plan(model: nn.Module, example_inputs: Any, made: Plan) -> Planned:
    """Survey the model for a plan that was made before; no rules. Raises ``PlanMismatchError``."""
    splice.require_fingerprint(model, made)
    surveyed = _recorded(model, example_inputs, {d.site.placement for d in made.decisions}, made.seed)
    if lost := [d.site.id for d in made.insertions if d.site.id not in surveyed.found.places]:
        raise PlanMismatchError(f"the plan inserts at {lost[0]}, where this model has no site. Make the plan again.")
    return Planned(made, surveyed.trace, surveyed.found, surveyed.inputs)
