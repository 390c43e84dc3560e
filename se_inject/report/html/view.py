"""What the page shows, worked out from the report: the template lays out and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from se_inject.report import tables
from se_inject.report.html import charts, diagram
from se_inject.report.html.graph import graph
from se_inject.report.html.methods import Line, diff
from se_inject.types import Decision, Plan, Report, Rewrite, Site, SiteCost

WEIGHTS = "model.safetensors"
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CARRIED = {
    "slot": "An attribute that the forward already calls, and that was empty, is filled: the source stays as it is.",
    "source": "One call is inserted in the class's own method, in a generated subclass.",
    "append": "The block becomes the last child of the Sequential: the source stays as it is.",
    "sequential_after": "The block becomes a child of the Sequential, behind the one that makes the value.",
    "wrap_output": "What the forward of the module returns goes through the block, in a generated subclass.",
    "wrap_input": "The module that takes the value gates it first, in a generated subclass.",
    "graph": "A node is spliced into the GraphModule, which has no source of its own.",
}
MEASURES = [measure for measure in tables.MEASURES if measure[0] != "FLOPs"]  # which are twice the MACs


@dataclass(frozen=True)
class Stage:
    number: int
    size: str
    channels: str
    inserted: int
    total: int
    picture: Markup


@dataclass(frozen=True)
class Chart:
    name: str
    total: str
    stages: tuple[tuple[str, Markup, str], ...]  # name, bar, figure
    sites: Markup
    largest: str


@dataclass(frozen=True)
class Change:
    """Sites of one class that are changed in the same way."""

    cls: str
    placement: str
    count: int
    first: str
    how: str
    before: Markup
    after: Markup
    graph_before: Markup
    graph_after: Markup
    source: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class SiteRow:
    """One site; figures are None at a skipped one."""

    decision: Decision
    channels: str
    cost: SiteCost | None


def context(report: Report) -> dict[str, Any]:
    plan = report.plan
    costs = {cost.id: cost for cost in report.sites}
    passed = [check.passed for check in report.checks]
    changes, more = _changes(report)
    return {
        "plan": plan,
        "headline": tables.headline(plan),
        "convention": f"{tables.CONVENTION} {plan.inputs}.",
        "exactly": f"{_added(report, 'parameters'):,} parameters, {_added(report, 'macs'):,} MACs",
        "uncounted": tables.uncounted(report),
        "totals": [row for row in tables.total_rows(report.before, report.after) if row.name != "FLOPs"],
        "checkpoint": _checkpoint(report),
        "failed": passed.count(False),
        "passed": passed.count(True),
        "checks": tables.marks(report.checks),
        "stages": _stages(plan),
        "charts": [_chart(plan, report.sites, *measure) for measure in MEASURES],
        "changes": changes,
        "more_sources": more,
        "rows": [SiteRow(d, _channels(d), costs.get(d.site.id)) for d in plan.decisions],
        "sums": {field: sum(getattr(c, field) for c in report.sites) for _, field, _ in MEASURES},
        "count": tables.count,
        "size": tables.size,
        "notes": tables.notes(plan),
        "gates": tables.gate_rows(report.gates),
        "gate_columns": tables.GATE_COLUMNS,
        "gate_note": tables.GATES,
        "source": tables.facts(report.source),
        "rules": tables.facts(plan.rules),
        "model_args": tables.facts(plan.model_args),
        "versions": sorted(report.versions.items()),
        "artifacts": report.artifacts,
        "schema": report.schema,
        "own_model": not plan.model.startswith(("timm:", "torchvision:")),
    }


def _added(report: Report, field: str) -> int:
    return getattr(report.after, field) - getattr(report.before, field)


def _checkpoint(report: Report) -> tables.TotalRow | None:
    """Bytes of the weights. Those before are the checkpoint's, or where there was no file, the new parameters' bytes
    are taken off."""
    after = next((a.bytes for a in report.artifacts if a.path == WEIGHTS), None)
    given = report.source.get("bytes")
    if after is not None and isinstance(given, int) and given > 0:
        return tables.total_row("checkpoint", given, after, tables.size)
    dtype = next((argument.dtype for argument in report.plan.inputs.arguments if argument.dtype), "")
    width = WIDTHS.get(dtype, 0)
    if after is None or not width:
        return None
    added = _added(report, "parameters") * width
    return tables.total_row("checkpoint", after - added, after, tables.size, "≈ ")


def _stages(plan: Plan) -> list[Stage]:
    """The sites by stage, in order of execution; a network that widens again (U-Net) comes back to a stage."""
    stages = []
    for number, group in groupby(plan.decisions, key=lambda d: d.site.stage):
        here = list(group)
        sizes = list(dict.fromkeys(_space(d.site) for d in here))
        widths = sorted({d.site.channels for d in here})
        stages.append(
            Stage(
                number,
                sizes[0] if len(sizes) == 1 else f"{sizes[0]} …",
                f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}",
                sum(d.status == "insert" for d in here),
                len(here),
                diagram.squares(here, f"Sites of stage {number}"),
            )
        )
    return stages


def _space(site: Site) -> str:
    sizes = [n for axis, n in enumerate(site.shape) if axis not in (0, site.axis)]
    return " x ".join(map(str, sizes)) or "no space"


def _channels(decision: Decision) -> str:
    reduced = decision.kwargs.get("rd_channels")
    return f"{decision.site.channels}" if reduced is None else f"{decision.site.channels} → {reduced}"


def _chart(plan: Plan, costs: Sequence[SiteCost], name: str, field: str, unit: Callable[[int], str]) -> Chart:
    by_stage: dict[int, int] = {}
    bars = []
    for decision, cost in zip(plan.insertions, costs, strict=True):
        value = getattr(cost, field)
        by_stage[decision.site.stage] = by_stage.get(decision.site.stage, 0) + value
        bars.append((f"{decision.site.id}: {unit(value)}", value))
    largest = max(by_stage.values(), default=0)
    stages = tuple(
        (f"Stage {stage}", charts.horizontal(value, largest), unit(value)) for stage, value in sorted(by_stage.items())
    )
    total = sum(value for _, value in bars)
    top = max((value for _, value in bars), default=0)
    return Chart(name, unit(total), stages, charts.columns(bars, f"{name} added by each site, in order"), unit(top))


def _source_of(cls: str, names: set[str], sources: dict[str, Rewrite]) -> str:
    """Key of the class's generated source; where there are variants of it, of one that calls all of the children."""
    keys = [key for key in sources if key.partition(" (")[0] == f"SE{cls}"]
    fitting = (key for key in keys if all(f"self.{name}(" in sources[key].after for name in names))
    return next(fitting, keys[0] if keys else "")


def _changes(report: Report) -> tuple[list[Change], list[tuple[str, tuple[Line, ...]]]]:
    """Every distinct change, and the generated sources that belong to none of them."""
    left = dict(sorted(report.rewritten.items()))
    changes = []
    for (cls, kind, placement, block), group in tables.changes(report.plan.insertions).items():
        names = {d.site.carrier.name for d in group if d.site.carrier}
        key = _source_of(cls, names, left) if kind == "source" else ""
        nodes = next((report.graphs[d.site.id] for d in group if report.graphs.get(d.site.id)), ())
        changes.append(
            Change(
                cls, placement, len(group), group[0].site.id, CARRIED.get(kind, ""),
                diagram.placement(placement, block, after=False), diagram.placement(placement, block),
                graph(nodes, after=False) if nodes else Markup(""), graph(nodes) if nodes else Markup(""),
                key, diff(left.pop(key)) if key else (),
            )
        )  # fmt: skip
    return changes, [(key, diff(source)) for key, source in left.items()]
