"""A plan or a report on a terminal, from 40 columns on. Names reach it as literal text, never as rich markup."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from se_inject.report import tables
from se_inject.types import Check, Cost, GateStats, Plan, Pruned, Report, SiteCost

FIRST = 3  # sites named per reason, unless all are asked for
NARROW = 66  # columns: below, a table's rows are paragraphs
STYLES = {"pass": "green", "FAIL": "bold red", "n.a.": "yellow"}


def as_text(render: Callable[[Console], None]) -> str:
    """What ``render`` prints, as text without colours, as wide as the terminal."""
    out = io.StringIO()
    render(Console(file=out, highlight=False, force_terminal=False, force_jupyter=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()


def to_terminal(report: Report, console: Console, *, all: bool = False) -> None:
    """Print the report; ``all`` lists every skipped site. Raises ``VerifyError`` when it disagrees with itself."""
    tables.check_sums(report)
    _plan(report.plan, console, report.sites, every=all)
    render_line(console, f"{tables.CONVENTION} {report.plan.inputs}.", "dim")
    console.print()
    render_costs(report.before, report.after, console)
    render_line(console, f"Not counted: {tables.uncounted(report)}.", "dim")
    if report.checks:
        console.print()
        render_checks(report.checks, console)
    if report.gates:
        console.print()
        render_gates(report.gates, console)
    if report.source:
        console.print()
        _pairs(console, tables.facts(report.source))


def render_plan(plan: Plan, console: Console, *, all: bool = False) -> None:
    """Print where blocks go and why, and what is skipped and why; ``all`` lists every skipped site."""
    _plan(plan, console, (), every=all, dry=True)


def render_checks(checks: Iterable[Check], console: Console) -> None:
    """Print one line per check: its mark, its name, what was found."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for mark, name, detail in tables.marks(checks):
        grid.add_row(Text(mark, STYLES[mark]), *_cells(console, (name, detail)))
    console.print(grid)


def render_costs(first: Cost, last: Cost, console: Console) -> None:
    """Print what two models cost, and what changed from the first to the last."""
    rows = [(r.name, r.before, r.after, r.added, r.percent) for r in tables.total_rows(first, last)]
    render_table(console, ("", "before", "after", "added", "change"), rows, numbers=4)


def render_gates(gates: Iterable[GateStats], console: Console) -> None:
    """Print one row of figures for each block, or the reason why it has none."""
    rows = tables.gate_rows(gates)
    if figures := [(row.block, *row.figures) for row in rows if row.figures]:
        render_table(console, tables.GATE_COLUMNS, figures, numbers=len(tables.GATE_COLUMNS) - 1)
    for row in rows:
        if row.note:
            render_line(console, f"{row.block}: {row.note}.")
    render_line(console, tables.GATES, "dim")


def render_pruning(pruning: Pruned, console: Console) -> None:
    """Print which blocks were dropped and which kept, and what that saves."""
    render_line(console, f"{tables.pruned(pruning)}.", "bold")
    console.print()
    render_table(console, tables.PRUNED_COLUMNS, tables.pruned_rows(pruning), numbers=0)
    render_costs(pruning.before, pruning.after, console)


def _plan(plan: Plan, console: Console, costs: Sequence[SiteCost], *, every: bool, dry: bool = False) -> None:
    render_line(console, f"{plan.model}: {tables.headline(plan, dry=dry)}", "bold")
    console.print()
    columns = ("module", "class", "placement", "channels") + (("parameters", "MACs") if costs else ())
    cells = [
        (row.module, row.cls, row.placement, row.channels, row.parameters, row.macs)[: len(columns)]
        for row in tables.site_rows(plan, costs)
    ]
    total = tables.sum_row(costs)
    footer = (total.module, "", "", "", total.parameters, total.macs) if costs else ()
    render_table(console, columns, cells, numbers=3 if costs else 1, footer=footer)
    render_groups(console, "Would be inserted" if dry else "Inserted", tables.groups(plan.insertions), name=False)
    render_groups(console, "Skipped", tables.groups(plan.skips), every=every)
    for note in tables.notes(plan):
        render_line(console, f"Note: {note}.", "yellow")
    console.print()


def render_groups(
    console: Console, title: str, groups: Sequence[tables.Group], *, name: bool = True, every: bool = False
) -> None:
    """One line per reason; ``name``: under it the first sites, ``every``: all of them, each on its own line."""
    if not groups:
        return
    render_line(console, f"{title}:", "bold")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for group in groups:
        grid.add_row(Text(f"{len(group.sites):>4} x"), literal(console, group.reason))
        more = len(group.sites) - FIRST
        first = ", ".join(group.sites[:FIRST]) + (f" and {more} more (--all)" if more > 0 else "")
        for line in (group.sites if every else (first,)) if name else ():
            grid.add_row("", literal(console, line, "dim"))
    console.print(grid)


def render_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: int,
    footer: Sequence[str] = (),
) -> None:
    """The last ``numbers`` columns are aligned to the right and keep their width; long names in the others fold."""
    if console.width < NARROW:
        _paragraphs(console, columns, [*rows, footer] if footer else rows)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_footer=bool(footer), padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        number = i >= len(columns) - numbers
        table.add_column(
            column,
            Text(footer[i], "bold") if footer else "",
            justify="right" if number else "left",
            no_wrap=number or column == "placement",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*_cells(console, row))
    console.print(table)
    console.print()


def _paragraphs(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Each row as its name, and below it the other cells, each with the name of its column."""
    for row in rows:
        render_line(console, row[0], "bold")
        cells = [f"{column} {cell}" for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
        console.print(Padding(literal(console, ", ".join(cells)), (0, 0, 0, 2)))
    console.print()


def _pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for pair in pairs:
        grid.add_row(*_cells(console, pair))
    console.print(grid)


def _cells(console: Console, values: Iterable[str]) -> list[Text]:
    return [literal(console, value) for value in values]


def render_line(console: Console, text: str, style: str = "") -> None:
    """Print one paragraph; names in it are not trusted."""
    console.print(literal(console, text, style), overflow="fold")


def literal(console: Console, text: str, style: str = "") -> Text:
    """``text`` without markup, and in ASCII where the terminal knows no more."""
    shown = tables.visible(text)
    if console.options.ascii_only:
        shown = shown.encode("ascii", "backslashreplace").decode()
    return Text(shown, style)
