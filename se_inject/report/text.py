"""A plan or a report on a terminal, from 60 columns on. Names reach it as literal text, never as rich markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from se_inject.report import tables
from se_inject.types import Check, Plan, Report, SiteCost

FIRST = 3  # sites named per reason, unless all are asked for
STYLES = {"pass": "green", "FAIL": "bold red", "n.a.": "yellow"}


def to_terminal(report: Report, console: Console, *, all: bool = False) -> None:
    """Print the report; ``all`` lists every skipped site. Raises ``VerifyError`` when it disagrees with itself."""
    tables.check_sums(report)
    _plan(report.plan, console, report.sites, all)
    _print(console, f"{tables.CONVENTION} {tables.inputs(report.plan)}.", "dim")
    console.print()
    grid = _table(("", "before", "after", "added", "change"), numbers=4)
    for row in tables.total_rows(report):
        grid.add_row(*_cells(console, (row.name, row.before, row.after, row.added, row.percent)))
    console.print(grid)
    console.print()
    _print(console, f"Not counted: {tables.uncounted(report)}.", "dim")
    if report.checks:
        console.print()
        render_checks(report.checks, console)
    if report.gates:
        console.print()
        _gates(report, console)
    if report.source:
        console.print()
        _pairs(console, tables.facts(report.source))


def render_plan(plan: Plan, console: Console, *, costs: Sequence[SiteCost] = (), all: bool = False) -> None:
    """Print where blocks go and why, and what is skipped and why; ``all`` lists every skipped site."""
    _plan(plan, console, costs, all)


def render_checks(checks: Iterable[Check], console: Console) -> None:
    """Print one line per check: its mark, its name, what was found."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for mark, name, detail in tables.marks(checks):
        grid.add_row(Text(mark, STYLES[mark]), *_cells(console, (name, detail)))
    console.print(grid)


def _gates(report: Report, console: Console) -> None:
    rows = tables.gate_rows(report)
    grid = _table(tables.GATE_COLUMNS, numbers=len(tables.GATE_COLUMNS) - 1)
    for row in rows:
        if row.figures:
            grid.add_row(*_cells(console, (row.block, *row.figures)))
    if grid.row_count:
        console.print(grid)
        console.print()
    for row in rows:
        if row.note:
            _print(console, f"{row.block}: {row.note}.")
    _print(console, tables.GATES, "dim")


def _plan(plan: Plan, console: Console, costs: Sequence[SiteCost], every: bool) -> None:
    _print(console, f"{plan.model}: {tables.headline(plan)}", "bold")
    console.print()
    columns = ("module", "class", "placement", "channels") + (("parameters", "MACs") if costs else ())
    table = _table(columns, numbers=3 if costs else 1, footer=bool(costs))
    for row in tables.site_rows(plan, costs):
        cells = (row.module, row.cls, row.placement, row.channels, row.parameters, row.macs)
        table.add_row(*_cells(console, cells[: len(columns)]))
    if costs:
        total = tables.sum_row(costs)
        for column, text in zip(table.columns, (total.module, "", "", "", total.parameters, total.macs), strict=True):
            column.footer = Text(text)
    console.print(table)
    console.print()
    _groups(console, "Inserted", tables.groups(plan.insertions), name=False)
    _groups(console, "Skipped", tables.groups(plan.skips), every=every)
    for note in tables.notes(plan):
        _print(console, f"Note: {note}.", "yellow")
    console.print()


def _groups(
    console: Console, title: str, groups: Sequence[tables.Group], *, name: bool = True, every: bool = False
) -> None:
    """One line per reason; ``name``: under it the first sites, ``every``: all of them, each on its own line."""
    if not groups:
        return
    _print(console, f"{title}:", "bold")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for group in groups:
        grid.add_row(Text(f"{len(group.sites):>4} x"), _text(console, group.reason))
        more = len(group.sites) - FIRST
        first = ", ".join(group.sites[:FIRST]) + (f" and {more} more (--all)" if more > 0 else "")
        for line in (group.sites if every else (first,)) if name else ():
            grid.add_row("", _text(console, line, "dim"))
    console.print(grid)


def _table(columns: Sequence[str], *, numbers: int, footer: bool = False) -> Table:
    """The last ``numbers`` columns are aligned to the right and keep their width; long names in the others fold."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_footer=footer, footer_style="bold", padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        number = i >= len(columns) - numbers
        table.add_column(
            column, justify="right" if number else "left", no_wrap=number or column == "placement", overflow="fold"
        )
    return table


def _pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for pair in pairs:
        grid.add_row(*_cells(console, pair))
    console.print(grid)


def _cells(console: Console, values: Iterable[str]) -> list[Text]:
    return [_text(console, value) for value in values]


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(_text(console, text, style), overflow="fold")


def _text(console: Console, text: str, style: str = "") -> Text:
    shown = tables.visible(text)
    if console.options.ascii_only:
        shown = shown.encode("ascii", "backslashreplace").decode()
    return Text(shown, style)
