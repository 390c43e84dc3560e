"""What a report says, as rows of text that each renderer lays out in its own way; and the sums that must hold."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from se_inject.errors import VerifyError
from se_inject.types import Check, Cost, Decision, GateStats, Plan, Pruned, Reason, Report, SiteCost

CONVENTION = (
    "MACs are the multiply-accumulates of convolutions, linear layers and matrix products; FLOPs = 2 x MACs. "
    "Element-wise ops (additions, multiplications, activations, norms, poolings) have a row of their own. "
    "Counted for one sample of"
)
MARKS = {True: "pass", False: "FAIL", None: "n.a."}
# Control, format, surrogate and separator characters: they move the cursor, hide text or turn its direction.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class SiteRow:
    """One insertion; the last two are empty in a plan."""

    module: str
    cls: str
    placement: str
    channels: str
    parameters: str
    macs: str


@dataclass(frozen=True)
class Group:
    """Sites that share one reason."""

    reason: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class TotalRow:
    name: str
    before: str
    after: str
    added: str
    percent: str


def check_sums(report: Report) -> None:
    """Raise ``VerifyError`` when the rows do not add up to the totals.

    Activation memory is left out: it counts the outputs of modules without children, and a module that carries a
    block, or an ``Identity`` whose slot is filled, is no longer one of them.
    """
    listed, planned = [s.id for s in report.sites], [d.site.id for d in report.plan.insertions]
    if listed != planned:
        raise VerifyError(
            f"the report disagrees with itself: costs for {len(listed)} sites, the plan has {len(planned)}."
        )
    for column in ("parameters", "macs", "elementwise"):
        before, after = getattr(report.before, column), getattr(report.after, column)
        added = sum(getattr(site, column) for site in report.sites)
        if before + added != after:
            raise VerifyError(
                f"the report disagrees with itself: {column} {before:,} before and {added:,} by {len(listed)} sites "
                f"make {before + added:,}, but the total after is {after:,}."
            )


def count(number: int) -> str:
    """``1.23 M``, ``4.09 G``; exact below 1,000."""
    return _scaled(number, 1000, ("", "K", "M", "G", "T", "P"))


def size(number: int) -> str:
    """``9.80 MiB``; exact below 1,024."""
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    value, rank = float(abs(number)), 0
    while round(value, 2) >= base and rank < len(units) - 1:
        value, rank = value / base, rank + 1
    text = f"{value:.2f}" if rank else f"{abs(number)}"
    return f"{'-' if number < 0 else ''}{text} {units[rank]}".rstrip()


def percent(before: int, after: int) -> str:
    """``+0.77 %``; never a rounded zero for a change."""
    if before == 0:
        return "n.a."
    change = 100 * (after - before) / before
    return f"{change:+.1g} %" if 0 < abs(change) < 0.005 else f"{change:+.2f} %"


def headline(plan: Plan, *, dry: bool = False) -> str:
    """What was done, or after a ``dry`` run what would be."""
    starts = sorted({f"{d.block}, start {d.init}" for d in plan.insertions})
    kinds = f" ({'; '.join(starts)})" if starts else ""
    done = "would be inserted" if dry else "inserted"
    return f"{plural(len(plan.insertions), 'block')} {done}{kinds}, {plural(len(plan.skips), 'site')} skipped"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def site_rows(plan: Plan, costs: Sequence[SiteCost] = ()) -> list[SiteRow]:
    found = {cost.id: cost for cost in costs}
    return [_row(decision, found.get(decision.site.id)) for decision in plan.insertions]


def _row(decision: Decision, cost: SiteCost | None) -> SiteRow:
    site, reduced = decision.site, decision.kwargs.get("rd_channels")
    channels = str(site.channels) if reduced is None else f"{site.channels} -> {reduced}"
    costs = (count(cost.parameters), count(cost.macs)) if cost else ("", "")
    return SiteRow(decision.key, site.cls, site.placement, channels, *costs)


def sum_row(costs: Sequence[SiteCost]) -> SiteRow:
    parameters, macs = sum(c.parameters for c in costs), sum(c.macs for c in costs)
    return SiteRow(plural(len(costs), "block"), "", "", "", count(parameters), count(macs))


def groups(decisions: Iterable[Decision]) -> list[Group]:
    """By reason, the commonest first, each with its sites in order."""
    found: dict[Reason, list[str]] = {}
    for decision in decisions:
        found.setdefault(decision.reason, []).append(decision.site.id)
    return [Group(str(reason), tuple(ids)) for reason, ids in sorted(found.items(), key=lambda item: -len(item[1]))]


def changes(decisions: Iterable[Decision]) -> dict[tuple[str, str, str, str], list[Decision]]:
    """(class, carrier, placement, block) -> the sites that are changed in this way."""
    found: dict[tuple[str, str, str, str], list[Decision]] = {}
    for d in decisions:
        kind: str = d.site.carrier.kind if d.site.carrier else ""
        found.setdefault((d.site.cls, kind, d.site.placement, d.block), []).append(d)
    return found


MEASURES: tuple[tuple[str, str, Callable[[int], str]], ...] = (  # name, field of a cost, unit
    ("parameters", "parameters", count),
    ("MACs", "macs", count),
    ("FLOPs", "flops", count),
    ("element-wise ops", "elementwise", count),
    ("activation memory", "activation_bytes", size),
)


def total_rows(first: Cost, last: Cost) -> list[TotalRow]:
    """What changed from one to the other, which may be less."""
    return [total_row(name, getattr(first, field), getattr(last, field), unit) for name, field, unit in MEASURES]


def total_row(name: str, before: int, after: int, unit: Callable[[int], str], about: str = "") -> TotalRow:
    """``about`` stands before a figure that is not exact."""
    added = unit(after - before)
    signed = added if after < before else f"+{added}"
    return TotalRow(name, f"{about}{unit(before)}", unit(after), signed, percent(before, after))


NO_BLOCKS = "no inserted blocks"
GATE_COLUMNS = ("gate of", "range", "mean", "std", "min", "max", "dead", "saturated")
GATES = (
    "Of the batch that was given. A channel is dead when the mean of its gate is below 0.1 of the range, and saturated "
    "above 0.9."
)


@dataclass(frozen=True)
class GateRow:
    """One block; ``figures`` are those of ``GATE_COLUMNS`` after the first, or empty where the note says why."""

    block: str
    figures: tuple[str, ...]
    note: str


def gate_rows(gates: Iterable[GateStats]) -> list[GateRow]:
    rows = []
    for g in gates:
        values = [v for v in (g.mean, g.std, g.min, g.max) if v is not None]
        shares = [v for v in (g.dead, g.saturated) if v is not None]
        figures = (f"0 to {g.highest:g}", *(f"{v:.3f}" for v in values), *(f"{100 * v:.1f} %" for v in shares))
        complete = len(figures) == len(GATE_COLUMNS) - 1
        rows.append(GateRow(g.block, figures if complete else (), str(g.note or ("" if complete else "no figures"))))
    return rows


PRUNED_COLUMNS = ("block", "from the identity", "")


def pruned_rows(pruning: Pruned) -> list[tuple[str, str, str]]:
    """Each block, the most that it changed a value by on the batch, and what became of it."""
    return [
        (block, f"{value:.3g}", "dropped" if block in pruning.dropped else "kept")
        for block, value in pruning.deviations.items()
    ]


def pruned(pruning: Pruned) -> str:
    """The headline."""
    first, last = pruning.before, pruning.after
    parameters, macs, elementwise = (
        count(getattr(first, f) - getattr(last, f)) for f in ("parameters", "macs", "elementwise")
    )
    moved = f"move by at most {pruning.change:.1g} of the largest" if pruning.change else "are bit-equal"
    return (
        f"{len(pruning.dropped)} of {plural(len(pruning.deviations), 'block')} dropped, within {pruning.threshold:g} "
        f"of the identity: {parameters} parameters, {macs} MACs and {elementwise} element-wise ops saved; the outputs "
        f"on the batch {moved}"
    )


def uncounted(report: Report) -> str:
    calls = report.after.uncounted
    return ", ".join(f"{name} x {n}" for name, n in sorted(calls.items())) or "nothing that this model runs"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _short(value)) for name, value in sorted(values.items()) if value not in ("", None, [], {}, ())]


def notes(plan: Plan) -> list[str]:
    return [*map(str, plan.notes), *(f"{d.key}: {d.site.note}" for d in plan.insertions if d.site.note)]


def marks(checks: Iterable[Check]) -> list[tuple[str, str, str]]:
    return [(MARKS[check.passed], check.name, check.detail) for check in checks]


def visible(text: str) -> str:
    r"""Names in models and files are not trusted: what would not show is escaped (``\x1b``, ``\u202e``, ``\n``)."""
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode() if unicodedata.category(c) in INVISIBLE else c
        for c in text
    )
