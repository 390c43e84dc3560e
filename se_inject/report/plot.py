"""Gates as a matplotlib figure; matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from se_inject.errors import SEInjectError
from se_inject.report.tables import visible
from se_inject.types import GateStats

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gates(shown: Iterable[GateStats]) -> Figure:
    """One line for each block with a channel gate, from the top. Raises ``SEInjectError`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SEInjectError("plot needs matplotlib: python -m pip install 'se_inject[plot]'.") from error
    known = [g for g in shown if g.mean is not None]
    at = range(len(known))
    mean, std, low, high, dead, saturated = (
        [getattr(g, name) for g in known] for name in ("mean", "std", "min", "max", "dead", "saturated")
    )
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(known)), layout="constrained")
    values, shares = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    values.hlines(at, low, high, color="0.75", linewidth=1, label="least to greatest")
    values.errorbar(mean, at, xerr=std, fmt="o", markersize=4, elinewidth=3, label="mean and standard deviation")
    values.set(xlabel="gate", xlim=(0, 1.02 * max((g.highest for g in known), default=1.0)))
    values.set_yticks(at, [visible(g.block) for g in known], parse_math=False)
    values.invert_yaxis()
    shares.barh([y - 0.18 for y in at], [100 * s for s in dead], 0.36, color="C3", label="dead")
    shares.barh([y + 0.18 for y in at], [100 * s for s in saturated], 0.36, color="C1", label="saturated")
    shares.set(xlabel="channels, %", xlim=(0, 100))
    for axes in (values, shares):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def write(figure: Figure, path: Path) -> None:
    """The figure as a file; the ending chooses the format. Raises ``SEInjectError`` for one that is not written."""
    known = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise SEInjectError(
            f"plot: cannot write {path}: the ending is one of {', '.join(f'.{kind}' for kind in known)}."
        )
    figure.savefig(path)
