"""What a notebook shows for a plan, a report, a cost, gates: a heading and a table, in the notebook's own style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from markupsafe import Markup

from se_inject.report import tables
from se_inject.types import Cost, GateStats, Plan, Pruned, Report

FIRST = 50  # insertions shown


def show(shown: Any) -> str:
    """The fragment for a result, by its kind."""
    return next(render(shown) for kind, render in VIEWS.items() if isinstance(shown, kind))


def report(shown: Report) -> str:
    marks = [f"{mark} {name}" for mark, name, _ in tables.marks(shown.checks)]
    parts = [
        _heading(shown.plan),
        _costs(shown.before, shown.after),
        _paragraph(", ".join(marks) or "not checked"),
    ]
    return str(Markup("").join(parts))


def plan(shown: Plan) -> str:
    rows = [(r.module, r.cls, r.placement, r.channels) for r in tables.site_rows(shown)]
    parts = [_heading(shown, dry=True), _table(("module", "class", "placement", "channels"), rows[:FIRST])]
    if len(rows) > FIRST:
        parts.append(_paragraph(f"and {len(rows) - FIRST} more"))
    parts += [_paragraph(f"{len(group.sites)} skipped: {group.reason}") for group in tables.groups(shown.skips)]
    return str(Markup("").join(parts))


def cost(shown: Cost) -> str:
    rows = [(name, unit(getattr(shown, field))) for name, field, unit in tables.MEASURES]
    return str(_table(("", "one forward"), rows))


def gates(shown: Iterable[GateStats]) -> str:
    rows = tables.gate_rows(shown)
    if not rows:
        return str(_paragraph(tables.NO_BLOCKS))
    figures = [(row.block, *row.figures) for row in rows if row.figures]
    parts = [_table(tables.GATE_COLUMNS, figures)] if figures else []
    parts += [_paragraph(f"{row.block}: {row.note}") for row in rows if row.note]
    return str(Markup("").join([*parts, _paragraph(tables.GATES)]))


def pruning(shown: Pruned) -> str:
    parts = [
        _paragraph(f"{tables.pruned(shown)}."),
        _table(tables.PRUNED_COLUMNS, tables.pruned_rows(shown)),
        _costs(shown.before, shown.after),
    ]
    return str(Markup("").join(parts))


VIEWS: dict[type, Callable[[Any], str]] = {Plan: plan, Cost: cost, Report: report, Pruned: pruning}


def _costs(first: Cost, last: Cost) -> Markup:
    rows = [(r.name, r.before, r.after, r.added, r.percent) for r in tables.total_rows(first, last)]
    return _table(("", "before", "after", "added", "change"), rows)


def _heading(shown: Plan, *, dry: bool = False) -> Markup:
    return Markup("<p><b>{}</b>: {}</p>").format(
        tables.visible(shown.model), tables.visible(tables.headline(shown, dry=dry))
    )


def _paragraph(text: str) -> Markup:
    return Markup("<p>{}</p>").format(tables.visible(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return Markup("<table>{}</table>").format(Markup("").join(lines))


def _row(cell: str, values: Sequence[str]) -> Markup:
    cells = [Markup("<{0}>{1}</{0}>").format(Markup(cell), tables.visible(value)) for value in values]
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))
