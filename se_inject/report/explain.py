"""What was seen in one module, on a terminal. Names come from the model, and are shown literally."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from se_inject.report.text import literal, render_line
from se_inject.search.explain import Explanation
from se_inject.types import Decision

STYLES = {"insert": "green", "skip": "yellow"}


def render(explanation: Explanation, console: Console) -> None:
    """Print it. Names come from the model, and are shown literally."""
    calls = f", called {explanation.calls} times (the first is shown)" if explanation.calls > 1 else ""
    render_line(console, f"{explanation.path or 'the model'}: {explanation.cls}{calls}", "bold")
    console.print()
    _columns(
        console,
        ("node", "runs", "takes", "shape", "is"),
        [
            (s.name, s.runs, ", ".join(s.inputs), " x ".join(map(str, s.shape)), s.means)
            for s in explanation.steps
        ],
    )  # fmt: skip
    console.print()
    if not explanation.meetings:
        render_line(console, "No join, sum or concatenation of feature maps here.", "dim")
    for meeting in explanation.meetings:
        render_line(
            console, f"{meeting.kind} {meeting.node}, fork {meeting.fork or 'in the caller, above the arguments'}"
        )
        for side in meeting.sides:
            render_line(console, f"  {side.part}, {side.weight}: {', '.join(side.nodes) or 'the fork itself'}", "dim")
    console.print()
    if not explanation.decisions:
        render_line(console, "No site of the placements that the rules ask for.", "dim")
    for decision in explanation.decisions:
        _decision(console, decision)


def _decision(console: Console, decision: Decision) -> None:
    site, inserted = decision.site, decision.status == "insert"
    render_line(console, f"{decision.status}  {site.id}: {decision.reason}", STYLES[decision.status])
    render_line(
        console, f"  {site.layout} {' x '.join(map(str, site.shape))}, {site.channels} channels, stage {site.stage}"
    )
    if inserted:
        options = ", ".join(f"{name}={value}" for name, value in sorted(decision.kwargs.items()))
        render_line(console, f"  {decision.key} = {decision.block}({options}), start {decision.init}")
    if site.carrier is not None:
        place = site.carrier.position
        where = f", {place.cls}.{place.method}, its line {place.line + 1}" if place else ""
        render_line(console, f"  carried by {site.carrier.path or 'the model'} ({site.carrier.kind}{where})", "dim")
    for name, value in (("gated", site.gated), ("obstacle", site.obstacle), ("note", site.note)):
        if value:
            render_line(console, f"  {name}: {value}", "dim")
    render_line(console, f"  absorb: {site.absorb or f'not possible: {site.absorb_obstacle}'}", "dim")


def _columns(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(literal(console, value) for value in row))
    console.print(table)
