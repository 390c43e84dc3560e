"""One architecture: where its sites are, whether the rewritten modules are as planned, whether outputs are equal.

``structure`` needs no weights and runs on meta tensors; ``numeric`` runs all checks on random weights.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from benchmarks import leave_se_out
from benchmarks.zoo.architectures import family, load
from se_inject.blocks.make import make_block
from se_inject.checks.keys import planned_keys
from se_inject.errors import NothingSelectedError, TraceError, sentence
from se_inject.injection.inject import realise
from se_inject.injection.plan import Planned, Survey, decided, survey
from se_inject.search.placements import PLACEMENTS
from se_inject.surgery.expected import differences
from se_inject.surgery.splice import apply
from se_inject.trace.record import trace, uncollected
from tests.helpers import randomise

# What is asked for by name where `auto` takes nothing.
OTHERS = ("standard", "inner", "concat", "sum", "conv")


@dataclass
class Row:
    """What was seen of one architecture; plain data, a line of JSON."""

    name: str
    family: str
    kind: str  # structure or numeric
    parameters: int = 0
    modules: int = 0
    sites: dict[str, int] = field(default_factory=dict)  # by placement, those with a way to insert
    obstacles: dict[str, int] = field(default_factory=dict)  # why the others have none, by code
    gates: int = 0  # that it came with
    again: int = 0  # of these, with a site where they stood, when they are left out
    rules: str = ""  # auto, or the placement asked for where auto takes nothing
    blocks: int = 0
    reason: str = ""  # why auto takes nothing
    checks: dict[str, bool | None] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)  # of the checks that did not pass
    fx: str | None = None  # why torch.fx.symbolic_trace alone fails; empty: it does not; None: not tried
    seconds: float = 0.0  # of one processor
    failure: str = ""  # an error: a fault of ours

    @property
    def passed(self) -> bool:
        return not self.failure and all(passed is not False for passed in self.checks.values())


def examine(task: tuple[str, str]) -> Row:
    """One of ``KINDS``, of one architecture; an error is its result too, because it must not end the sweep."""
    kind, name = task
    row, start = Row(name, family(name), kind), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            KINDS[kind](row)
        except Exception as error:
            row.failure = f"{type(error).__name__}: {first_line(error)}"
    row.seconds = round(time.process_time() - start, 2)
    return row


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _structure(row: Row) -> None:
    """Find the sites of every placement, plan with ``auto``, splice, and compare with the planned graphs."""
    weights = False
    loaded, inputs = load(row.name, weights=weights)
    try:
        surveyed = survey(loaded.model, inputs, PLACEMENTS, 0)
    except TraceError:  # its forward reads values, which meta tensors have not
        weights = True
        loaded, inputs = load(row.name, weights=weights)
        surveyed = survey(loaded.model, inputs, PLACEMENTS, 0)
    model, recorded, found = loaded.model, surveyed.trace, surveyed.found
    if leave_se_out.gates(recorded):
        left = leave_se_out.examine(row.name, row.family, load(row.name, weights=weights)[0].model, inputs)
        row.gates, row.again = left.gates, left.gates - len(left.missed)
    planned = _plan(row, surveyed)
    if planned is not None:
        plan, keys = planned.plan, set(model.state_dict())
        new = sum(p.numel() for d in plan.insertions for p in make_block(d, 0, None).parameters())
        result = apply(model, plan, inplace=True)
        with uncollected():
            wrong = differences(recorded, found, plan.insertions, trace(result, inputs))
        row.checks = {
            "structure": not wrong,
            "keys": set(result.state_dict()) == keys | planned_keys(plan),
            "parameters": sum(p.numel() for p in result.parameters()) == row.parameters + new,
        }
        row.failure = "; ".join(f"{name}: {wrong[:3]}" for name, passed in row.checks.items() if not passed)
    row.fx = _symbolic_trace(recorded.root)  # the skeleton, which nobody needs any more


def _numeric(row: Row) -> None:
    """All checks on random weights, batch norms and layer scales randomised."""
    torch.manual_seed(0)
    loaded, inputs = load(row.name, weights=True)
    model = randomise(loaded.model.eval())
    planned = _plan(row, survey(model, inputs, PLACEMENTS, 0))
    if planned is not None:
        checks = realise(model, planned, inplace=True).report.checks
        row.checks = {check.name: check.passed for check in checks}
        row.details = {check.name: check.detail for check in checks if not check.passed}
    gc.collect()  # weights that only cycles hold


def _plan(row: Row, surveyed: Survey) -> Planned | None:
    model, found = surveyed.model, surveyed.found
    row.parameters, row.modules = sum(p.numel() for p in model.parameters()), sum(1 for _ in model.modules())
    row.sites = dict(Counter(site.placement for site in found.sites if not site.obstacle))
    row.obstacles = dict(Counter(site.obstacle.code for site in found.sites if site.obstacle))
    for rules in ("auto", *(p for p in OTHERS if row.sites.get(p))):
        try:
            planned = decided(surveyed, rules, name=row.name)
        except NothingSelectedError as error:
            row.reason = row.reason or sentence(error.reason)
            continue
        row.rules, row.blocks = rules, len(planned.plan.insertions)
        return planned
    return None


def _symbolic_trace(model: nn.Module) -> str:
    try:
        fx.symbolic_trace(model)
    except Exception as error:  # whatever a foreign forward raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def begin() -> None:
    """Of a process for many architectures: what was imported is never looked through for garbage."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


KINDS: dict[str, Callable[[Row], None]] = {"structure": _structure, "numeric": _numeric}
