"""A report as Markdown (GitHub's: CommonMark with tables). Names come from models and files, so all are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from se_inject.report import tables
from se_inject.types import Report

PLAIN_NAME = re.compile(r"[\w.:/\[\](),=+-]+( [\w.:/\[\](),=+-]+)*")  # needs no escaping inside a code span
SPECIAL = re.compile(r"[\\*\[\]#~${}!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
ENTITIES = {ord(c): f"&#{ord(c)};" for c in "&<>|`"}
STARTS = re.compile(r"[-+=]|\d+[.)](\s|$)")  # of a list, or an underline, at the start of a line
FIRST = 12  # sites named per reason for a skip


def to_markdown(report: Report) -> str:
    """The report for people; every number exact where it is added, in short units elsewhere.

    Raises ``VerifyError`` when the report disagrees with itself.
    """
    tables.check_sums(report)
    plan = report.plan
    parts = [
        f"# {name(plan.model)}: {escape(tables.headline(plan))}",
        f"{escape(tables.CONVENTION)} {name(str(plan.inputs))}.",
        "## Cost",
        _table(
            ("", "before", "after", "added", "change"),
            (
                (row.name, row.before, row.after, row.added, row.percent)
                for row in tables.total_rows(report.before, report.after)
            ),
            numbers=4,
        ),
        f"Added exactly: {report.after.parameters - report.before.parameters:,} parameters, "
        f"{report.after.macs - report.before.macs:,} MACs.",
        f"Not counted: {escape(tables.uncounted(report))}.",
        "## Inserted",
        _table(
            ("module", "class", "placement", "channels", "parameters", "MACs"),
            (
                *(
                    (name(r.module), name(r.cls), escape(r.placement), r.channels, r.parameters, r.macs)
                    for r in tables.site_rows(plan, report.sites)
                ),
                (f"**{tables.sum_row(report.sites).module}**", "", "", "", *_bold_sum(report)),
            ),
            numbers=3,
        ),
        _list(f"{len(g.sites)} x {escape(g.reason)}" for g in tables.groups(plan.insertions)),
    ]
    if plan.skips:
        parts += ["## Skipped", _list(_group(g) for g in tables.groups(plan.skips))]
    if report.checks:
        rows = ((mark, escape(check), escape(detail)) for mark, check, detail in tables.marks(report.checks))
        parts += ["## Checks", _table(("", "check", "found"), rows)]
    if report.gates:
        parts += ["## Gates", escape(tables.GATES), *_gates(report)]
    if notes := tables.notes(plan):
        parts += ["## Notes", _list(escape(note) for note in notes)]
    if report.source:
        parts += ["## Weights", _list(f"{escape(key)}: {name(value)}" for key, value in tables.facts(report.source))]
    if report.artifacts:
        sizes = ((name(a.path), tables.size(a.bytes)) for a in report.artifacts)
        parts += ["## Files", _table(("file", "size"), sizes)]
    if report.rewritten:
        parts.append("## Rewritten methods")
        for cls, source in sorted(report.rewritten.items()):
            parts += [f"### {name(cls)}", _code(source.after)]
    if report.versions:
        parts.append(", ".join(f"{escape(key)} {escape(value)}" for key, value in sorted(report.versions.items())))
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that renders as itself: no markup, no HTML, no link, no table cell of its own."""
    text = SPECIAL.sub(r"\\\g<0>", tables.visible(text).strip()).translate(ENTITIES)
    text = text.replace("://", "&#58;//").replace("www.", "www&#46;")
    return f"&#{ord(text[0])};{text[1:]}" if STARTS.match(text) else text


def name(text: str) -> str:
    """In a code span if it can be, else escaped."""
    return f"`{text}`" if PLAIN_NAME.fullmatch(text) else escape(text)


def _bold_sum(report: Report) -> tuple[str, str]:
    row = tables.sum_row(report.sites)
    return f"**{row.parameters}**", f"**{row.macs}**"


def _gates(report: Report) -> tuple[str, str]:
    rows = tables.gate_rows(report.gates)
    known = [(name(row.block), *row.figures) for row in rows if row.figures]
    table = _table(tables.GATE_COLUMNS, known, numbers=len(tables.GATE_COLUMNS) - 1) if known else ""
    return table, _list(f"{name(row.block)}: {escape(row.note)}" for row in rows if row.note)


def _group(group: tables.Group) -> str:
    more = len(group.sites) - FIRST
    sites = ", ".join(map(name, group.sites[:FIRST])) + (f" and {more} more" if more > 0 else "")
    return f"{len(group.sites)} x {escape(group.reason)}, at {sites}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A pipe table whose last ``numbers`` columns are aligned to the right."""
    marks = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def _code(source: str) -> str:
    """A fence longer than any run of backticks in it; line breaks and tabs kept, other control characters shown."""
    lines = ["\t".join(map(tables.visible, line.split("\t"))) for line in source.rstrip("\n").split("\n")]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return "\n".join((f"{fence}python", *lines, fence))
