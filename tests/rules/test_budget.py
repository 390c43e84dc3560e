"""Budgets: under the limit, optimal, and explained."""

from __future__ import annotations

import itertools

import pytest
from torch import nn

import se_inject
from se_inject.rules import budget
from se_inject.types import Cost, Decision, Reason, Site
from tests.helpers import refused, says
from tests.nets import Basic


def site(name: str, channels: int, stage: int) -> Site:
    return Site(name, "standard", name, "Block", channels, 1, (2, channels, 8, 8), stage, 0, channels, name, 1)


def choices(*sites: tuple[str, int, int]) -> tuple[Decision, ...]:
    return tuple(
        Decision(site(*s), "insert", Reason("residual-block", "residual block"), kwargs={"channels": s[1]})
        for s in sites
    )


def alternatives(decision: Decision) -> list[tuple[float, Decision]]:
    channels = decision.site.channels
    return [
        (ratio, Decision(decision.site, "insert", decision.reason, kwargs={"rd_channels": channels // ratio}))
        for ratio in (32, 16, 8)
    ]


def price(decision: Decision) -> tuple[int, int]:
    cost = 2 * decision.site.channels * decision.kwargs["rd_channels"]
    return cost, cost


PLANNED = choices(("a", 64, 1), ("b", 128, 2), ("c", 256, 3), ("d", 512, 4))
BASE = Cost(1_000_000, 10_000_000, 0, 0)


def worth(taken: tuple[Decision, ...]) -> float:
    total = 0.0
    for decision in taken:
        if decision.status == "insert":
            ratio = decision.site.channels / decision.kwargs["rd_channels"]
            total += budget.Choice(decision, ratio, 0, 0).worth
    return total


@pytest.mark.parametrize("share", [0.001, 0.004, 0.01, 0.03, 0.1])
def test_optimal_against_every_combination(share: float) -> None:
    taken = budget.choose(PLANNED, alternatives, {"params": share}, BASE, price)
    spent = sum(price(d)[0] for d in taken if d.status == "insert")
    assert spent <= share * BASE.parameters
    best = 0.0
    for combination in itertools.product(*[[None, *alternatives(d)] for d in PLANNED]):
        picked = tuple(c[1] for c in combination if c is not None)
        if sum(price(d)[0] for d in picked) <= share * BASE.parameters:
            best = max(best, worth(picked))
    assert worth(taken) == pytest.approx(best)


def test_every_decision_is_explained() -> None:
    taken = budget.choose(PLANNED, alternatives, {"params": 0.01, "macs": 0.001}, BASE, price)
    assert {d.status for d in taken} == {"insert", "skip"}
    for decision in taken:
        code = "residual-block" if decision.status == "insert" else "over-budget"
        text = "1 % of params (10,000) and 0.1 % of macs (10,000)"
        assert says(decision.reason, code, text)


def test_skips_stay_skips() -> None:
    skip = Decision(PLANNED[0].site, "skip", Reason("excluded", "excluded by a"))
    assert budget.choose((skip, *PLANNED[1:]), alternatives, {"params": 0.1}, BASE, price)[0] == skip


def test_later_stages_count_for_more() -> None:
    early, late = choices(("early", 128, 1), ("late", 128, 3))
    taken = budget.choose((early, late), alternatives, {"params": 0.001024 * 2}, BASE, price)
    assert taken[1].status == "insert"
    assert budget.Choice(late, 16, 0, 0).worth > budget.Choice(early, 16, 0, 0).worth


def test_a_real_plan_stays_under_its_budget() -> None:
    model = nn.Sequential(*[Basic(c, c) for c in (8, 8)], Basic(8, 64, 2), *[Basic(64, 64) for _ in range(3)])
    rules = {"placement": "standard", "block": {"rd_divisor": 1}, "budget": {"params": "0.5%", "macs": "0.1%"}}
    result = se_inject.inject(model, (8, 16, 16), rules)
    before, after = result.report.before, result.report.after
    assert 0 < after.parameters - before.parameters <= 0.005 * before.parameters
    assert after.macs - before.macs <= 0.001 * before.macs
    assert any(d.reason.code == "over-budget" for d in result.plan.skips)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"param": "2%"}, "takes params and/or macs"),
        ({"params": "lots"}, "takes a share"),
        ({"params": 0}, "takes a share"),
        ({"params": True}, "takes a share"),
        ({"params": "2%", "mac": 1}, "unknown key 'mac'"),
        ("2%", "takes params and/or macs"),
    ],
)
def test_refused(given: object, message: str) -> None:
    with pytest.raises(se_inject.RulesError, match=message):
        se_inject.plan(Basic(), (8, 8, 8), {"budget": given})


def test_a_budget_for_nothing_says_so() -> None:
    with refused("over-budget", "budget"):
        se_inject.plan(Basic(), (8, 8, 8), {"placement": "standard", "budget": {"params": 1e-6}})


def test_blocks_without_a_ratio_are_chosen_by_site() -> None:
    model = nn.Sequential(*[Basic(8, 8) for _ in range(3)])
    rules = {
        "placement": "standard",
        "block": "eca",
        "budget": {"params": 6 / sum(p.numel() for p in model.parameters())},
    }
    plan = se_inject.plan(model, (8, 8, 8), rules)
    assert 0 < len(plan.insertions) < 3
