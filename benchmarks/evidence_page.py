"""Rows of the experiment as Markdown and as a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t

from se_inject.report.tables import count, percent

BASELINE = "nothing added"
LEVEL = 0.95  # of the intervals
VERDICTS = ("better", "worse", "no difference shown")
PLOT = "pictures/evidence.svg"
PICTURE = (
    "For each data set two plots: the accuracy of every arm before the first step, and after the training its "
    "difference to nothing added, as dots for the seeds, with mean and interval"
)

HEADER = f"""# What the blocks add

Made by `make evidence FASHION=FILE.npz` from [benchmarks/evidence.py](../benchmarks/evidence.py); without `FASHION=` on
the digits alone. The rows behind every figure are in [evidence.json](evidence.json).

A trained net gets attention blocks and is trained further. How much of what it gains is due to the blocks, and how much
to the further training? For each seed one plain net is trained. Every arm starts from a copy of it and gets the same
budget: epochs, batches and shifts in the same order, optimizer and rates. Nothing is tuned for an arm, and nothing is
chosen by the test pictures. The arm *{BASELINE}* is the plain net, trained on; the others are compared with it seed by
seed, because two arms that share net, data and order differ by less than the seeds do.

*Before* and *after* the further training are accuracies on the test pictures in percent, *loss* is the cross-entropy
after it, *gates* the standard deviation of the channel gates on test pictures. Figures are means over the seeds ± the
half-width of their 95 % interval (Student's t). *Better* and *worse* are said only where zero lies outside of an
interval that is widened for the number of arms compared (Bonferroni); elsewhere these seeds cannot tell the difference
from none. Seeds share pictures: an interval speaks of other draws and starts, not of other data.
"""

FOOTER = """
## What this does not say

Small nets, small pictures, and a further training that is short beside those of the papers: whether blocks help a large
net that is trained for long, or from scratch, is not measured here. Where *gates* is near 0, they hardly moved in this
budget, and their blocks had little chance to help. What it does say is that a net which was trained further with blocks
has to be compared with one that was trained further without, and what the start of a gate does to a trained net.

The file of Fashion-MNIST is any `.npz` with the arrays `x_train`, `y_train`, `x_test` and `y_test`.
"""


@dataclass(frozen=True)
class Row:
    """One arm with one seed."""

    data: str
    seed: int
    arm: str
    start: float  # accuracy on the test pictures before the further training, in percent
    end: float  # after it
    loss: float  # cross-entropy after it
    spread: float | None  # standard deviation of the channel gates on test pictures after it, mean of the blocks
    parameters: int
    macs: int
    elementwise: int
    pool: int  # pictures that those for training were drawn from


@dataclass(frozen=True)
class Interval:
    """A mean over the seeds, and how far its interval goes to either side."""

    mean: float
    half: float
    widened: float  # the same for the level that the number of comparisons asks for

    def show(self, digits: int = 2, sign: str = "") -> str:
        return f"{self.mean:{sign}.{digits}f} ± {self.half:.{digits}f}"

    def verdict(self, good: int) -> str:
        """``good``: the sign of a better value."""
        better, worse, none = VERDICTS
        return none if abs(self.mean) <= self.widened else better if self.mean * good > 0 else worse


def interval(values: Iterable[float], comparisons: int = 1) -> Interval:
    """Student's t; one value has no interval, and shows nothing."""
    values = list(values)
    if len(values) < 2:
        return Interval(mean(values), float("inf"), float("inf"))
    error = stdev(values) / len(values) ** 0.5
    half, widened = (t.ppf(1 - (1 - LEVEL) / n / 2, len(values) - 1) * error for n in (1, comparisons))
    return Interval(mean(values), half, widened)


@dataclass(frozen=True)
class Arm:
    """All seeds of one arm."""

    name: str
    rows: tuple[Row, ...]
    start: Interval
    end: Interval
    gain: Interval  # of accuracy over the arm without blocks, seed by seed
    loss: Interval  # the same of the cross-entropy


def arms(rows: Iterable[Row]) -> list[Arm]:
    """The arms of one data set, in the order in which they were run; of the seeds that every arm has."""
    rows = list(rows)
    names = list(dict.fromkeys(row.arm for row in rows))
    found = {(row.arm, row.seed): row for row in rows}
    seeds = [seed for seed in sorted({row.seed for row in rows}) if all((name, seed) in found for name in names)]
    made = []
    for name in names:
        own = tuple(found[name, seed] for seed in seeds)
        pairs = [(row, found[BASELINE, row.seed]) for row in own]
        gain, loss = ([getattr(a, f) - getattr(b, f) for a, b in pairs] for f in ("end", "loss"))
        others = len(names) - 1
        start, end = (interval(getattr(row, f) for row in own) for f in ("start", "end"))
        made.append(Arm(name, own, start, end, interval(gain, others), interval(loss, others)))
    return made


def page(rows: list[Row], settings: Mapping[str, str]) -> str:
    """``settings``: how each data set was used, in words."""
    sets = {data: arms(row for row in rows if row.data == data) for data in dict.fromkeys(row.data for row in rows)}
    parts = [HEADER, _wrapped(_summary(sets)), "", f"![{PICTURE}]({PLOT})"]
    for data, found in sets.items():
        parts += ["", f"## {data}, {len(found[0].rows)} seeds", "", _wrapped(settings[data]), "", *_table(found), ""]
        parts += [_wrapped(f"- {line}") for line in _words(found)]
    return "\n".join([*parts, FOOTER])


def _summary(sets: Mapping[str, list[Arm]]) -> str:
    better, worse = (
        [f"*{a.name}* on {data}" for data, found in sets.items() for a in found if a.gain.verdict(1) == word]
        for word in VERDICTS[:2]
    )
    return (
        f"**In short**: more accurate than the same training with nothing added: {joined(better)}; "
        f"less accurate: {joined(worse)}."
    )


def _table(found: list[Arm]) -> list[str]:
    columns = "arm | parameters | MACs | element-wise | before | after | difference | | loss, difference | | gates"
    lines = [f"| {columns} |", "|---|" + "---:|" * 6 + "---|---:|---|---:|"]
    base = found[0].rows[0]
    for arm in found:
        row, plain = arm.rows[0], arm.name == BASELINE
        costs = [
            count(getattr(row, f)) if plain else percent(getattr(base, f), getattr(row, f))
            for f in ("parameters", "macs", "elementwise")
        ]
        gates = [r.spread for r in arm.rows if r.spread is not None]
        gain = arm.gain.show(2, "+"), arm.gain.verdict(1), arm.loss.show(4, "+"), arm.loss.verdict(-1)
        cells = *costs, arm.start.show(), arm.end.show(), *(("",) * 4 if plain else gain)
        lines.append(f"| {' | '.join((arm.name, *cells, f'{mean(gates):.3f}' if gates else ''))} |")
    return lines


def _words(found: list[Arm]) -> list[str]:
    """What the table says, in sentences."""
    plain, others = next(arm for arm in found if arm.name == BASELINE), [a for a in found if a.name != BASELINE]
    same = [a.name for a in others if [r.start for r in a.rows] == [r.start for r in plain.rows]]
    apart = [f"*{a.name}* is at {a.start.mean:.1f} %" for a in others if a.name not in same]
    trained = interval(row.end - row.start for row in plain.rows)
    words = [
        f"Before the first step {_listed(same)} have the accuracy of the trained net with every seed, "
        f"{plain.start.mean:.1f} % in the mean; {', '.join(apart) or 'no arm is elsewhere'}.",
        f"The further training alone changes the accuracy by {trained.show(2, '+')}.",
    ]
    for measure, field, good in (("Accuracy", "gain", 1), ("Cross-entropy", "loss", -1)):
        verdicts = "; ".join(f"{word}: {_listed(_arms(others, field, good, word))}" for word in VERDICTS)
        words.append(f"{measure} against *{BASELINE}*. {verdicts[0].upper()}{verdicts[1:]}.")
    return words


def _arms(found: list[Arm], field: str, good: int, verdict: str) -> list[str]:
    return [arm.name for arm in found if getattr(arm, field).verdict(good) == verdict]


def _listed(names: list[str]) -> str:
    """``*a*, *b* and *c*``, because the names have commas of their own."""
    return joined([f"*{name}*" for name in names])


def joined(parts: list[str]) -> str:
    *most, last = parts or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, subsequent_indent="  " if text.startswith("- ") else "")


def plot(rows: list[Row], path: Path) -> None:
    """For each data set the accuracy before the first step, and the difference after the training with its interval."""
    sets = list(dict.fromkeys(row.data for row in rows))
    figure = Figure(figsize=(9, 0.4 + 2.4 * len(sets)), layout="constrained")
    for line, data in zip(figure.subplots(len(sets), 2, squeeze=False), sets, strict=True):
        found = arms(row for row in rows if row.data == data)
        at = range(len(found))
        start, gain = line
        start.barh(at, [arm.start.mean for arm in found], 0.6, color="C0")
        start.set_yticks(at, [arm.name for arm in found])
        start.set(title=data, xlabel="accuracy before the first step, %", xlim=(0, 100))
        for y, arm in enumerate(found[1:], 1):
            differences = [a.end - b.end for a, b in zip(arm.rows, found[0].rows, strict=True)]
            gain.plot(differences, [y] * len(differences), "o", color="0.8", markersize=4, zorder=1)
            gain.errorbar(arm.gain.mean, y, xerr=arm.gain.half, fmt="o", color="C0", capsize=4, zorder=2)
        gain.axvline(0, color="0.5", linewidth=1, zorder=0)
        gain.set(xlabel=f"accuracy afterwards, against {BASELINE}, points", yticks=[])
        for axes in line:
            axes.set_ylim(len(found) - 0.5, -0.5)
    path.parent.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "evidence", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
