"""Bars as inline SVG, without text of their own: the figures stand in the page beside them, at the page's size."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from se_inject.report.tables import visible

Bar = tuple[str, int]  # what a pointer that rests on it reads, and its length

HEIGHT = 100


def horizontal(value: int, largest: int) -> Markup:
    """One bar as long as its share of the largest; a sliver when it is not nothing."""
    width = 0.0 if largest <= 0 or value <= 0 else max(0.6, 100 * value / largest)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/><rect class="fill" width="{}" height="10"/></svg>'
    ).format(_number(width))


def columns(bars: Sequence[Bar], label: str) -> Markup:
    """One column for each bar, in order; stretched to the width of the page."""
    largest = max((value for _, value in bars), default=0)
    step = 10
    parts = []
    for i, (title, value) in enumerate(bars):
        height = 0.0 if largest <= 0 or value <= 0 else max(1.0, (HEIGHT - 2) * value / largest)
        parts.append(
            Markup('<g><title>{}</title><rect class="hit" x="{}" width="{}" height="{}"/>').format(
                visible(title), i * step, step, HEIGHT
            )
            + Markup('<rect class="fill" x="{}" y="{}" width="{}" height="{}"/></g>').format(
                _number(i * step + 1), _number(HEIGHT - height), step - 2, _number(height)
            )
        )
    return Markup(
        '<svg class="columns" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(max(1, len(bars)) * step, HEIGHT, visible(label), Markup("").join(parts))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
