"""From a plan to a rewritten model: spliced, checked, measured, reported on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from se_inject._version import __version__
from se_inject.checks import gates
from se_inject.checks.cost import measure
from se_inject.checks.reference import take
from se_inject.checks.spliced import Spliced
from se_inject.checks.table import require, run_checks
from se_inject.errors import TraceError
from se_inject.injection.plan import Planned
from se_inject.inputs import Inputs
from se_inject.report.drawing import drawings
from se_inject.report.tables import percent
from se_inject.surgery import splice
from se_inject.trace.calls import record_of
from se_inject.trace.record import trace
from se_inject.trace.skeleton import share, skeleton
from se_inject.types import Check, GateStats, Plan, Report, Rewrite


@dataclass
class Injection:
    """A rewritten model, the plan that made it, and the report on it."""

    model: nn.Module
    plan: Plan
    report: Report
    inputs: Inputs = field(repr=False)
    base: nn.Module = field(repr=False)  # a weightless copy of the original, for its source

    def __repr__(self) -> str:
        failed = [c.name for c in self.report.checks if c.passed is False]
        passed = sum(c.passed is True for c in self.report.checks)
        checks = f"FAILED {', '.join(failed)}" if failed else f"{passed} checks passed"
        before, after = self.report.before, self.report.after
        return (
            f"Injection({self.plan.model}: {len(self.plan.insertions)} blocks, {len(self.plan.skips)} skips, "
            f"parameters {percent(before.parameters, after.parameters)}, "
            f"MACs {percent(before.macs, after.macs)}, {checks})"
        )

    def _repr_html_(self) -> str | None:
        return self.report._repr_html_()


def realise(
    model: nn.Module,
    planned: Planned,
    *,
    inplace: bool = False,
    check: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Injection:
    """Apply a plan that was just made for ``model``, and report; ``progress``: callback with the name of each step."""
    inputs, made = planned.inputs, planned.plan
    progress("reference outputs")
    has_weights = not any(p.is_meta for p in model.parameters())
    fits = partial(_meets, model, planned)
    reference = None
    if check and has_weights:
        reference = take(_to_run(model), inputs, made.seed, fits)
        made = replace(made, baseline=reference.baseline(), trained=None)
    progress("cost before")
    before = measure(model, inputs).cost
    base = planned.trace.root
    progress("splice")
    result = splice.apply(model, made, inplace=inplace)
    try:
        progress("cost after")
        measured = measure(result, inputs, [d.key for d in made.insertions])
        after, sites = measured.cost, measured.sites(made)
        checks: tuple[Check, ...] = ()
        if check:
            progress("checks")
            original, run = (None, _to_run(result)) if inplace else (model, result)
            checks = run_checks(
                Spliced(original, run, made, planned.trace, planned.found, inputs, reference, before, after, sites)
            )
            require(checks)
    except BaseException:
        if inplace:
            splice.remove_last(result)
        raise
    report = Report(
        made, before, after, sites, checks, versions=versions(base), rewritten=rewritten(result),
        graphs=drawings(planned.found, made.insertions), gates=_gates(result, inputs) if has_weights else (),
    )  # fmt: skip
    return Injection(result, made, report, inputs, base)


def _to_run(model: nn.Module) -> nn.Module:
    """A copy that shares the weights: the model may be in use by another thread, and its forward may keep count.

    A copy of an exported module would lose its `train`, which refuses to change the mode.
    """
    return model if "train" in vars(model) else skeleton(model, keep=share, hooks=True)


def _meets(model: nn.Module, planned: Planned, probe: Inputs) -> bool:
    """Whether a forward of ``probe`` comes to every place of the plan."""
    met = {(c.path, record_of(n).span, n.target) for c in trace(model, probe).calls for n in c.graph.nodes}
    places = [p for decision in planned.plan.insertions for p in planned.found.places[decision.site.id]]
    return all((call.path, record_of(node).span, node.target) in met for call, node, _ in places)


def _gates(result: nn.Module, inputs: Inputs) -> tuple[GateStats, ...]:
    """Gate statistics of a batch that the user gave; noise made from a shape says nothing about the gates."""
    if inputs.shape is not None:
        return ()
    try:
        return gates.statistics(_to_run(result), inputs).sites
    except TraceError:  # such a model runs in train mode only
        return ()


def rewritten(model: nn.Module) -> dict[str, Rewrite]:
    """Generated class -> its source, for every class in the model; from the second variant of a class on, numbered."""
    variants: dict[str, list[Rewrite]] = {}
    for module in model.modules():
        source = vars(type(module)).get("se_rewrite")
        if source is not None:
            name = f"{type(module).__name__} ({vars(type(module))['se_base'].__module__})"
            if source not in variants.setdefault(name, []):
                variants[name].append(source)
    return {
        name if number == 1 else f"{name} {number}": source
        for name, sources in variants.items()
        for number, source in enumerate(sources, 1)
    }


def versions(model: nn.Module) -> dict[str, str]:
    """Versions of what the result depends on: torch, and the libraries that the model's classes come from."""
    found = {"se_inject": __version__, "python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__}
    for library in sorted({type(module).__module__.partition(".")[0] for module in model.modules()} - set(found)):
        version = getattr(sys.modules.get(library), "__version__", None)
        if isinstance(version, str):
            found[library] = version
    return found
