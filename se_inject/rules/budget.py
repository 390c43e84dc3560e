"""Which sites, at which ratios, under a share of the model's parameters and MACs: an integer programme.

    maximise    sum over sites s and ratios r of  C_s · stage(s) · ratio(r) · x_sr
    subject to  sum over r of x_sr <= 1 for each s,   sum of cost_sr · x_sr <= budget,   x_sr in {0, 1}

C_s: gated channels. The weights are gains in top-1 error of the ablations on SE-ResNet-50 (Hu et al., arXiv
1709.01507v4: plain 23.30; SE in one stage alone; SE at each ratio): later stages count for more, and r = 32 for less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from se_inject.errors import RulesError
from se_inject.types import Cost, Decision, Reason

PLAIN = 23.30
STAGE_GAIN = {1: PLAIN - 23.03, 2: PLAIN - 23.04, 3: PLAIN - 22.68}  # conv2_x, 3_x, 4_x; later ones as the last
RATIO_GAIN = {2: PLAIN - 22.29, 4: PLAIN - 22.25, 8: PLAIN - 22.26, 16: PLAIN - 22.28, 32: PLAIN - 22.72}
RATIOS = (32, 16, 8, 4)

Price = Callable[[Decision], tuple[int, int]]  # an insertion -> parameters, MACs


@dataclass(frozen=True)
class Choice:
    """One ratio at one site."""

    decision: Decision
    ratio: float  # 0 where the block has none
    parameters: int
    macs: int

    @property
    def worth(self) -> float:
        site = self.decision.site
        stage = STAGE_GAIN[min(site.stage, max(STAGE_GAIN))]
        nearest = min(RATIO_GAIN, key=lambda r: abs(math.log(r / self.ratio))) if self.ratio else 16
        return site.channels * stage * RATIO_GAIN[nearest]


def choose(
    decisions: tuple[Decision, ...],
    alternatives: Callable[[Decision], list[tuple[float, Decision]]],
    budget: dict[str, Any],
    base: Cost,
    price: Price,
) -> tuple[Decision, ...]:
    """``decisions`` with the best insertions under the budget, each choice and each refusal explained.

    ``alternatives``: the same insertion at other ratios. ``budget``: ``params`` and/or ``macs`` as shares of ``base``.
    """
    choices = [
        Choice(decision, ratio, *price(decision))
        for planned in decisions
        if planned.status == "insert"
        for ratio, decision in alternatives(planned)
    ]
    totals = {"params": base.parameters, "macs": base.macs}
    bounds = {key: math.floor(budget[key] * total) for key, total in totals.items() if budget.get(key)}
    taken = {choice.decision.site.id: choice for choice in _solve(choices, bounds.get("params"), bounds.get("macs"))}
    text = " and ".join(f"{100 * budget[key]:g} % of {key} ({bound:,})" for key, bound in bounds.items())
    cheapest = {c.decision.site.id: c for c in sorted(choices, key=lambda c: -c.parameters)}
    chosen = []
    for decision in decisions:
        best = taken.get(decision.site.id)
        if decision.status != "insert":
            chosen.append(decision)
        elif best is None:
            least = cheapest[decision.site.id]
            cost = f"{least.parameters:,} parameters, {least.macs:,} MACs"
            why = f"budget {text}: other sites gain more for the {cost} that it takes at least"
            chosen.append(Decision(decision.site, "skip", Reason("over-budget", why)))
        else:
            at = f" at ratio {best.ratio:g}" if best.ratio else ""
            why = f"{decision.reason}; budget {text}: taken{at} for {best.parameters:,} parameters, {best.macs:,} MACs"
            chosen.append(replace(best.decision, reason=Reason(decision.reason.code, why)))
    return tuple(chosen)


def _solve(choices: list[Choice], parameters: int | None, macs: int | None) -> list[Choice]:
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise RulesError("budget needs scipy: pip install 'se_inject[budget]'.") from error
    if not choices:
        return []
    names = sorted({c.decision.site.id for c in choices})
    once = np.array([[float(c.decision.site.id == name) for c in choices] for name in names])
    rows = [LinearConstraint(once, -np.inf, 1)]
    for bound, costs in ((parameters, [c.parameters for c in choices]), (macs, [c.macs for c in choices])):
        if bound is not None:
            rows.append(LinearConstraint(np.array([costs], dtype=float), -np.inf, bound))
    worth = np.array([c.worth for c in choices])
    answer = milp(-worth, constraints=rows, integrality=np.ones(len(choices)), bounds=Bounds(0, 1))
    if answer.x is None:
        raise RulesError(f"budget: the solver found no answer ({answer.message}).")
    return [choice for choice, x in zip(choices, answer.x, strict=True) if x > 0.5]
