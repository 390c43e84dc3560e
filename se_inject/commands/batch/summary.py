"""What became of every entry of a manifest: on the terminal, as CSV, and as a page that links the reports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from se_inject.commands import files
from se_inject.output.names import HTML
from se_inject.report.html.page import render
from se_inject.report.tables import count, percent, visible
from se_inject.report.text import render_table
from se_inject.types import Reason, Report

Status = Literal["converted", "done before", "to do", "failed"]
KICKER = "se_inject batch"  # stands above the page
SHOWN = 200  # characters of a reason on the terminal; the files have all of it


@dataclass(frozen=True)
class Row:
    """One entry, and what became of it."""

    line: int  # in the manifest
    name: str
    model: str
    weights: str  # its checkpoint as the manifest has it, or where they come from
    status: Status
    folder: str = ""  # that holds the result, beside the summary
    blocks: int | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    reason: Reason | None = None  # of a failure
    key: str = ""  # of input, rules and versions


def figures(report: Report) -> dict[str, Any]:
    """What a row tells of a report."""
    return {
        "blocks": len(report.plan.insertions),
        "parameters_before": report.before.parameters,
        "parameters_after": report.after.parameters,
        "macs_before": report.before.macs,
        "macs_after": report.after.macs,
    }


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Status -> how many; those that there are."""
    found = [row.status for row in rows]
    return {status: found.count(status) for status in get_args(Status) if status in found}


def headline(rows: Sequence[Row]) -> str:
    parts = [f"{number} {status}" for status, number in counts(rows).items()]
    return f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}: {', '.join(parts)}"


def to_terminal(rows: Sequence[Row], console: Console) -> None:
    """One line for each entry, then one for each failure."""
    columns = ("name", "model", "result", "blocks", "parameters", "MACs")
    render_table(console, columns, [(row.name, row.model, row.status, *_growth(row)) for row in rows], numbers=3)
    for line in failures(rows):
        console.print(Text(line), soft_wrap=True)


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each entry that failed, with its reason."""
    return [
        f"{row.name} (line {row.line}): {textwrap.shorten(visible(str(row.reason)), SHOWN, placeholder=' ...')}"
        for row in rows
        if row.status == "failed"
    ]


def _growth(row: Row) -> tuple[str, str, str]:
    """Blocks, and what they add; nothing for an entry without a result."""
    if row.blocks is None:
        return ("", "", "")
    before, after = row.parameters_before or 0, row.parameters_after or 0
    macs = percent(row.macs_before or 0, row.macs_after or 0)
    return (str(row.blocks), f"+{count(after - before)}, {percent(before, after)}", macs)


def to_csv(rows: Sequence[Row]) -> str:
    """Every field of every row, and the code of its reason."""
    head = (*(field.name for field in fields(Row)), "code")
    return files.to_csv(head, ((asdict(row) | files.flat(row.reason)).values() for row in rows))


def to_html(rows: Sequence[Row]) -> str:
    """A page that fetches nothing, with a link to the report of each output in its folder."""
    shown = [(row, quote(f"{row.folder}/{HTML}") if row.folder else "", _growth(row)) for row in rows]
    failed = [row for row in rows if row.status == "failed"]
    return render("summary.html.j2", {"kicker": KICKER, "headline": headline(rows), "rows": shown, "failed": failed})


SUMMARIES = {"summary.csv": to_csv, "summary.html": to_html}  # stand beside the outputs
