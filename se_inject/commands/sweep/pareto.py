"""The front of a sweep, which rows no other row beats in both costs, and its picture."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from se_inject.commands.sweep.rows import Row
from se_inject.errors import WriteError

KINDS = ("svg", "png", "pdf")
DATES = {"svg": "Date", "pdf": "CreationDate"}  # left out: the same rows make the same file
MARKERS = "os^DvPX*hp"  # one for each ratio
LABELS = 12  # rows of the front that are named
MANY = 2000  # rows above which they are drawn as pixels in a vector file too
SETTINGS: Any = {"svg.hashsalt": "sweep", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that add the smallest shares of MACs and parameters: no other has less of one and as little of the
    other. By MACs; rows without blocks are the caller's to leave out.
    """
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: row.shares):
        if not kept or row.shares[1] < kept[-1].shares[1] or row.shares == kept[-1].shares:
            kept.append(row)
    return kept


def require(plot: Path) -> None:
    """Raise ``WriteError`` when no picture can be drawn into this file."""
    if plot.suffix[1:] not in KINDS:
        raise WriteError(f"--plot {plot}: a picture is one of {', '.join(f'.{kind}' for kind in KINDS)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise WriteError("--plot needs matplotlib: pip install 'se_inject[plot]'.") from error


def draw(rows: Sequence[Row], kind: str) -> bytes:
    """The picture as a file of ``KINDS``: added MACs and parameters of every row as shares of the base's, a colour for
    each set of rules, a mark for each ratio, the front as a stair with numbers, which the legend names.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    priced = [row for row in rows if row.blocks]
    with rc_context(SETTINGS):
        axes = (figure := Figure(figsize=(9, 5.5), layout="constrained")).subplots()
        axes.set(xlabel="added MACs, share of the base's", ylabel="added parameters, share of the base's")
        axes.grid(alpha=0.25)
        handles = [*_scatter(axes, priced), *_stair(axes, front(priced))]
        for i, name in enumerate("xy"):
            _scale(axes, name, [row.shares[i] for row in priced])
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=150, metadata={DATES[kind]: None} if kind in DATES else {})
    return out.getvalue()


def _scatter(axes: Any, rows: Sequence[Row]) -> list[Any]:
    """Every row; what the colours and the marks are, for the legend."""
    fields = [f for f in ("rules", "placement", "block", "init") if len({getattr(row, f) for row in rows}) > 1]
    names = {row: ", ".join(filter(None, (getattr(row, f) for f in fields))) or row.placement for row in rows}
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(names.values()))}
    marks = {ratio: MARKERS[i % len(MARKERS)] for i, ratio in enumerate(dict.fromkeys(row.ratio for row in rows))}
    for (name, colour), (ratio, mark) in itertools.product(colours.items(), marks.items()):
        if points := [row.shares for row in rows if (names[row], row.ratio) == (name, ratio)]:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, 18, color=colour, marker=mark, alpha=0.5, linewidths=0, rasterized=len(rows) > MANY)
    return [
        *(_key("o", colour, name) for name, colour in colours.items()),
        *(_key(mark, "gray", f"ratio {ratio:g}" if ratio else "ratio left open") for ratio, mark in marks.items()),
    ]


def _stair(axes: Any, kept: Sequence[Row]) -> list[Any]:
    """The front, and the names of some of its rows, its ends among them, for the legend."""
    if not kept:
        return []
    x, y = zip(*(row.shares for row in kept), strict=True)
    axes.plot(x, y, color="black", linewidth=0.8, drawstyle="steps-post", marker=".", markersize=4)
    rows = list({row.shares: row for row in reversed(kept)}.values())[::-1]  # one name for each place
    named = sorted({round(i * (len(rows) - 1) / max(LABELS - 1, 1)) for i in range(LABELS)})
    for number, i in enumerate(named, 1):
        axes.annotate(str(number), rows[i].shares, (-3, -3), textcoords="offset points", ha="right", va="top")
    return [_key(".", "black", f"{number}  {_name(rows[i])}") for number, i in enumerate(named, 1)]


def _key(mark: str, colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=mark, color=colour, label=label)


def _scale(axes: Any, name: str, shares: Sequence[float]) -> None:
    """Logarithmic, with a place for zeros where there are some; in percent, over two decades also at 2 and 5."""
    positive = [share for share in shares if share] or [1.0]
    zeros = {"linthresh": min(positive)} if 0 in shares else {}
    getattr(axes, f"set_{name}scale")("symlog" if zeros else "log", **zeros)
    shown = ("2", "5") if max(positive) <= 100 * min(positive) else ()
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axis.set_minor_formatter(lambda share, _: f"{100 * share:.3g} %" if f"{share:e}"[0] in shown else "")


def _name(row: Row) -> str:
    ratio = f" / {row.ratio:g}" if row.ratio else ""
    return f"{row.model.partition(':')[2]}, {row.rules or row.placement}{ratio}"
