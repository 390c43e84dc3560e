"""Drawings of the network and of a block, as inline SVG: sites stage by stage, and where a placement stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from se_inject.report.tables import visible
from se_inject.search.placements import PLACEMENTS
from se_inject.types import Decision

CELL, GAP = 14, 4
FEW, MANY = 12, 18  # squares beside each other: 18 fit on a phone

BOX, HIGH, WIRE = 62, 28, 20


def squares(decisions: Iterable[Decision], label: str) -> Markup:
    """One square for each site in order of execution: filled where a block was inserted."""
    marks = list(decisions)
    across = min(len(marks), FEW if len(marks) <= 4 * FEW else MANY)
    rows = -(-len(marks) // across)
    parts = []
    for i, decision in enumerate(marks):
        x, y = (i % across) * (CELL + GAP), (i // across) * (CELL + GAP)
        parts.append(
            Markup('<g class="{}"><title>{}: {}</title><rect x="{}" y="{}" width="{}" height="{}" rx="3"/></g>').format(
                decision.status,
                visible(decision.site.id),
                visible(str(decision.reason)),
                x + 0.5,
                y + 0.5,
                CELL - 1,
                CELL - 1,
            )
        )
    wide, high = across * (CELL + GAP) - GAP, rows * (CELL + GAP) - GAP
    return Markup(
        '<svg class="squares" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(wide, high, wide, high, visible(label), Markup("").join(parts))


def placement(name: str, block: str, *, after: bool = True) -> Markup:
    """The block with or without the new node, drawn for its placement; empty for a placement without a picture."""
    if name not in PLACEMENTS:
        return Markup("")
    upper: Sequence[str]
    lower: Sequence[str] | None
    behind: Sequence[str]
    upper, lower, behind, joint = PLACEMENTS[name]
    if not after:
        upper, behind = [n for n in upper if n != "*"], [n for n in behind if n != "*"]
        lower = None if lower is None else [n for n in lower if n != "*"]
    parts: list[Markup] = []
    y, x = 24, 10
    fork = x
    x = _row(parts, upper, x, y, block)
    if lower is not None:
        low = y + 42
        other = _row(parts, lower, fork, low, block, last=x)
        parts.append(_wire(f"M{fork} {y}V{low}"))
        joint_x = max(x, other)
        parts.append(_wire(f"M{joint_x} {low}V{y + 11}"))
        parts.append(
            Markup('<circle class="joint" cx="{}" cy="{}" r="11"/><text x="{}" y="{}">{}</text>').format(
                joint_x, y, joint_x, y + 4, joint
            )
        )
        x = _row(parts, behind, joint_x + 11, y, block) if behind else joint_x + 11
        if not behind:
            parts.append(_wire(f"M{x} {y}h{WIRE}"))
            x += WIRE
    high = 84 if lower is not None else 48
    return Markup(
        '<svg class="placement" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(x + 8, high, x + 8, high, "after" if after else "before", Markup("").join(parts))


def _row(parts: list[Markup], names: Sequence[str], x: int, y: int, block: str, last: int = 0) -> int:
    """Boxes on a wire from ``x``; returns where the wire ends, at least ``last``."""
    length = len(names) * (BOX + WIRE) + WIRE
    start = x
    if last > x + length:
        start += (last - x - length) // 2
    end = max(x + length, last)
    parts.append(_wire(f"M{x} {y}H{end}"))
    for i, name in enumerate(names):
        left = start + WIRE + i * (BOX + WIRE)
        text = visible(block if name == "*" else name)
        text = text if len(text) <= 9 else f"{text[:8]}…"
        parts.append(
            Markup(
                '<g class="{}"><rect x="{}" y="{}" width="{}" height="{}" rx="6"/><text x="{}" y="{}">{}</text></g>'
            ).format("new" if name == "*" else "box", left, y - HIGH // 2, BOX, HIGH, left + BOX // 2, y + 4, text)
        )
    return end


def _wire(path: str) -> Markup:
    return Markup('<path class="wire" d="{}"/>').format(path)
