"""Rows of the sweep as Markdown: totals, families, architectures, what took longest, and what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from benchmarks.zoo.examine import OTHERS, Row
from se_inject.reasons import REASONS
from se_inject.search.placements import PLACEMENTS

HEADER = """# Coverage of the zoos

Made by `make zoo`. *Structure*, of every architecture, without weights: the sites of every placement are counted;
`auto` decides, or, where it takes nothing, the first of {others} that does; the blocks are
spliced in, and the rewritten modules, traced again, must be the planned graphs, with all keys and exactly the planned
ones more. *Numeric*, of the smallest member of every family and of all torchvision, with random weights, norms and
layer scales randomised: outputs bit-equal in eval mode and in train mode from the same random state, every block
reached by a forward and a gradient, every key kept. *fx alone*: `torch.fx.symbolic_trace` takes the whole model.
*Own gates* are those that architectures of the family come with; *found again* is how many of their places have a site
when they are left out ([leave-SE-out](leave-se-out.md)). Seconds are of one processor.
"""

# Families that take more time for each module than others.
WHY = {
    "torchvision detection": "its forward reads values: run for real on random weights, and not on meta tensors",
    "torchvision regnet": "its constructor reads values: all its weights are drawn, and again to leave its gates out",
    "sequencer": "LSTMs over every row and column, which the meta device computes step by step",
    "nfnet": "every convolution standardises its weight in the forward; traced once more without its gates",
}


def coverage(rows: list[Row]) -> str:
    structure = [row for row in rows if row.kind == "structure"]
    numeric = {row.name: row for row in rows if row.kind == "numeric"}
    parts = [
        HEADER.format(others=", ".join(f"`{name}`" for name in OTHERS)),
        *_totals(structure, numeric),
        *_families(structure, numeric),
        *_numeric(numeric.values()),
        *_slowest(structure),
        *_obstacles(structure),
        *_architectures(structure),
    ]
    return "\n".join(parts) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f} %)"


def _totals(structure: list[Row], numeric: dict[str, Row]) -> list[str]:
    total = len(structure)
    spliced = [row for row in structure if row.blocks]
    auto = [row for row in spliced if row.rules == "auto"]
    failed = [row for row in structure if not row.passed]
    sites, stuck = (sum(sum(getattr(row, what).values()) for row in structure) for what in ("sites", "obstacles"))
    lines = [
        "| | |",
        "|---|---:|",
        f"| architectures with blocks, all checks passed | {_share(sum(row.passed for row in spliced), total)} |",
        f"| by `auto` | {_share(len(auto), total)} |",
        f"| by a placement asked for, `auto` leaves them alone | {_share(len(spliced) - len(auto), total)} |",
        f"| no place for any of them, with a reason | {_share(total - len(spliced) - len(failed), total)} |",
        f"| failed | {_share(len(failed), total)} |",
        f"| blocks spliced in and checked | {sum(row.blocks for row in spliced):,} |",
        f"| sites of all placements that have a way to insert | {_share(sites, sites + stuck)} |",
        f"| numeric checks passed | {_share(sum(row.passed for row in numeric.values()), len(numeric))} |",
        f"| whole models that `torch.fx.symbolic_trace` takes | {_share(sum(r.fx == '' for r in structure), total)} |",
        "",
    ]
    for row in (*failed, *(row for row in numeric.values() if not row.passed)):
        lines.append(f"- failed, {row.kind}: `{row.name}`: {row.failure}")
    return lines


def _families(structure: list[Row], numeric: dict[str, Row]) -> list[str]:
    columns = "family | architectures | with blocks | rules | blocks | own gates | found again | numeric | fx alone"
    lines = ["", "## Families", "", f"| {columns} |", "|---|---:|---:|---|---:|---:|---:|---|---:|"]
    for family in sorted({row.family for row in structure}):
        group = [row for row in structure if row.family == family]
        rules = ", ".join(f"{name} {n}" for name, n in Counter(row.rules for row in group if row.rules).most_common())
        checked = [numeric[row.name] for row in group if row.name in numeric]
        passed = f"{sum(row.passed for row in checked)} of {len(checked)}" if checked else ""
        done, traced = (100 * sum(f(row) for row in group) / len(group) for f in (_done, lambda row: row.fx == ""))
        blocks, gates, again = (sum(getattr(row, what) for row in group) for what in ("blocks", "gates", "again"))
        found = f"{gates:,} | {100 * again / gates:.0f} %" if gates else " | "
        lines.append(
            f"| {family} | {len(group)} | {done:.0f} % | {rules} | {blocks:,} | {found} | {passed} | {traced:.0f} % |"
        )
    return lines


def _done(row: Row) -> bool:
    return bool(row.blocks) and row.passed


def _numeric(rows: Iterable[Row]) -> list[str]:
    lines = ["", "## Numeric", "", "| architecture | rules | blocks | passed | did not apply | seconds |"]
    lines.append("|---|---|---:|---|---|---:|")
    for row in sorted(rows, key=lambda row: row.name):
        passed = ", ".join(name for name, state in row.checks.items() if state) or f"**{row.failure}**"
        skipped = "; ".join(f"{name}: {_cell(row.details[name])}" for name, s in row.checks.items() if s is None)
        lines.append(f"| {row.name} | {row.rules} | {row.blocks} | {passed} | {skipped} | {row.seconds:.1f} |")
    return lines


def _slowest(structure: list[Row]) -> list[str]:
    columns = "architecture | seconds | modules | ms per module | why"
    lines = ["", "## The slowest ten", "", f"| {columns} |", "|---|---:|---:|---:|---|"]
    for row in sorted(structure, key=lambda row: -row.seconds)[:10]:
        each = 1000 * row.seconds / max(row.modules, 1)
        why = next((text for family, text in WHY.items() if row.family.startswith(family)), "its number of modules")
        lines.append(f"| {row.name} | {row.seconds:.1f} | {row.modules:,} | {each:.1f} | {why} |")
    return lines


def _obstacles(structure: list[Row]) -> list[str]:
    reasons = sum((Counter(row.obstacles) for row in structure), Counter[str]())
    lines = ["", "## Sites without a way to insert", "", "| sites | code | reason |", "|---:|---|---|"]
    return lines + [f"| {count:,} | `{code}` | {REASONS[code]} |" for code, count in reasons.most_common()]


def _architectures(structure: list[Row]) -> list[str]:
    lines = ["", "## Architectures", "", f"| architecture | rules | blocks | {' | '.join(PLACEMENTS)} | fx | s | |"]
    lines.append("|---|---|---:|" + "---:|" * len(PLACEMENTS) + "---|---:|---|")
    for row in structure:
        counts = " | ".join(str(row.sites.get(name, "")) for name in PLACEMENTS)
        note = _cell(row.failure or row.reason)
        traced = "yes" if row.fx == "" else "no"
        lines.append(f"| {row.name} | {row.rules} | {row.blocks} | {counts} | {traced} | {row.seconds:.1f} | {note} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
