"""Rows of a sweep for the terminal and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.console import Console

from se_inject.commands import files
from se_inject.commands.sweep import pareto
from se_inject.commands.sweep.rows import Row
from se_inject.reasons import REASONS
from se_inject.report.tables import Group, count, plural
from se_inject.report.text import render_groups, render_line, render_table

SHOWN = 40  # rows; of more, the medians and the front
RULES = {"rules": "rules", "placement": "placement", "block": "block", "ratio": "ratio", "init": "start"}
WIDE = 100  # columns of a terminal; below, the costs of the bases are left out
COSTS: dict[str, Callable[[Row], str]] = {
    "blocks": lambda row: str(row.blocks),
    "params": lambda row: count(row.base_parameters),
    "params added": lambda row: _share(row.shares[1]),
    "MACs": lambda row: count(row.base_macs),
    "MACs added": lambda row: _share(row.shares[0]),
}
BASES = ("params", "MACs")
MEDIANS = ("models", "blocks, median", "params added", "MACs added")


def render(rows: Sequence[Row], console: Console, *, all: bool = False) -> None:
    """Print the costs, the front marked, then why the others have none. Of a long table, what each set of rules costs
    in the middle, and the front; ``all`` lists every row and every model.
    """
    priced = [row for row in rows if row.blocks]
    front = pareto.front(priced)
    asked = [row for row in rows if not row.failed]
    varied = [field for field in RULES if len({getattr(row, field) for row in asked}) > 1]
    same = [f"{RULES[f]} {_cell(asked[0], f)}" for f in RULES if asked and f not in varied and _cell(asked[0], f)]
    render_line(console, f"{summary(rows)}.", "bold")
    if same:
        render_line(console, f"All with {', '.join(same)}.", "dim")
    console.print()
    heads = tuple(RULES[field] for field in varied)
    shown, note = priced, ""
    if len(priced) > SHOWN and not all:
        shown, note = front, f" The other {len(priced) - len(front):,} rows: --all, --csv."
        medians = [(*rules, *_medians(group)) for rules, group in _by_rules(priced, varied).items()]
        render_table(console, (*heads, *MEDIANS), medians, numbers=len(MEDIANS))
    if shown:
        costs = {name: tell for name, tell in COSTS.items() if console.width >= WIDE or name not in BASES}
        cells = [
            (row.model, *(_cell(row, f) for f in varied), *(tell(row) for tell in costs.values()), "*" * (row in front))
            for row in shown
        ]
        render_table(console, ("model", *heads, *costs, ""), cells, numbers=len(costs) + 1)
        render_line(console, f"* on the front: no other row adds a smaller share of both.{note}", "dim")
    render_groups(console, "Without blocks", _reasons(rows), every=all)


def summary(rows: Sequence[Row]) -> str:
    """What was asked, how much of it has blocks, and how many models failed."""
    failed, points = sum(row.failed for row in rows), [row for row in rows if not row.failed]
    taken = sum(row.blocks > 0 for row in points)
    parts = [f"{taken:,} with blocks"]
    if taken < len(points):
        parts.append(f"{len(points) - taken:,} where the rules take none")
    if failed:
        parts.append(f"{_many(failed, 'architecture')} failed")
    return f"{_asked(rows)}: {', '.join(parts)}"


def speed(rows: Sequence[Row], seconds: float) -> str:
    """``1,000 architectures, 6,000 grid points in 212 s: 4.7 architectures/s``."""
    rate = len({row.model for row in rows}) / max(seconds, 1e-9)
    return f"{_asked(rows)} in {seconds:,.0f} s: {rate:,.1f} architectures/s"


def _asked(rows: Sequence[Row]) -> str:
    models, points = len({row.model for row in rows}), sum(not row.failed for row in rows)
    return f"{_many(models, 'architecture')}, {_many(points, 'grid point')}"


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain data, with whether each is on the front."""
    front = pareto.front([row for row in rows if row.blocks])
    return [{**asdict(row), "front": row in front} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """One line for each row, numbers in full; a model that failed has none."""
    both = zip(rows, records(rows), strict=True)
    lines = ((row, map(_plain, (record | files.flat(row.reason)).values())) for row, record in both)
    cells = ([v if v or not row.failed else None for v in line] for row, line in lines)
    return files.to_csv((*Row.__dataclass_fields__, "front", "code"), cells)


def _plain(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else int(value) if isinstance(value, bool) else value


def _cell(row: Row, field: str) -> str:
    value = getattr(row, field)
    return f"{value:g}" if isinstance(value, float) else value or ""


def _share(value: float) -> str:
    return f"{100 * value:+.3g} %"


def _by_rules(rows: Sequence[Row], varied: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(_cell(row, field) for field in varied), []).append(row)
    return found


def _medians(rows: Sequence[Row]) -> tuple[str, ...]:
    macs, parameters = (median(shares) for shares in zip(*(row.shares for row in rows), strict=True))
    return str(len(rows)), f"{median(row.blocks for row in rows):g}", _share(parameters), _share(macs)


def _reasons(rows: Sequence[Row]) -> list[Group]:
    """Why rows have no blocks, the commonest first, with the models. What the rules say of one is told by what it has
    in common with others (the code); each failure is one of its own."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        if not row.blocks and row.reason:
            found.setdefault(row.reason if row.failed else row.reason.code, []).append(row)
    groups = (Group(_told(group), tuple(dict.fromkeys(row.model for row in group))) for group in found.values())
    return sorted(groups, key=lambda group: -len(group.sites))


def _told(rows: Sequence[Row]) -> str:
    """What the reasons of rows say, if all say the same; else what their code means."""
    reasons = {row.reason for row in rows if row.reason}
    reason = next(iter(reasons))
    return reason.text if len(reasons) == 1 else REASONS.get(reason.code, reason.text)


def _many(number: int, noun: str) -> str:
    return plural(number, noun).replace(str(number), f"{number:,}", 1)
