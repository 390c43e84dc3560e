"""The rewritten modules, traced again, have the graphs that were planned."""

from __future__ import annotations

from torch import nn

from se_inject.checks.spliced import Spliced
from se_inject.inputs import Inputs
from se_inject.search.sites import Found
from se_inject.surgery.expected import differences
from se_inject.trace.calls import Trace
from se_inject.trace.record import trace, uncollected
from se_inject.types import Check, Plan


def check(spliced: Spliced) -> tuple[Check, ...]:
    return (traced_again(spliced.model, spliced.plan, spliced.trace, spliced.found, spliced.inputs),)


def traced_again(model: nn.Module, plan: Plan, before: Trace, found: Found, inputs: Inputs) -> Check:
    """The check on a trace of ``model``; ``before``: the original's, on which the plan was made."""
    with uncollected():
        wrong = differences(before, found, plan.insertions, trace(model, inputs))
    return structure(wrong, len({d.site.carrier.path for d in plan.insertions if d.site.carrier}))


def structure(wrong: list[str], modules: int) -> Check:
    """The re-traced modules equal the spliced graphs."""
    detail = f"{modules} rewritten modules, traced again, are the planned graphs"
    if wrong:
        detail = f"not the planned graph: {', '.join(wrong[:5])}" + (f" and {len(wrong) - 5} more" if wrong[5:] else "")
    return Check("structure", not wrong, detail, "structure" if wrong else "")
