"""Leave-SE-out over the zoos: take the attention out of every architecture that has it, and find the places again.

    python benchmarks/leave_se_out.py [GLOB ...] [-o docs/leave-se-out.md] [--json ROWS.json]

Runs on meta tensors, needs no weights. A gate counts as found when a site of `standard`, `inner`, `concat` or `sum`
stands where it stood, norms and activations between them looked through; what these miss is looked for with `early`.
Sites of the four beyond the gates are places of the same kind that the architecture left without.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
import torch
import torchvision
from rich.progress import track
from torch import fx, nn

from se_inject.inputs import resolve
from se_inject.search.carriers import reaches
from se_inject.search.chains import chain
from se_inject.search.gated import made_by
from se_inject.search.sites import find_sites
from se_inject.trace.calls import Trace, record_of
from se_inject.trace.record import trace

PLACEMENTS = ("standard", "inner", "concat", "sum")
# Gates that have no place by the definitions, and why.
EXCEPTIONS = {
    "timm:mobileone_s4": "the block has one 1x1 branch, no scale branch and no shortcut, so that nothing is summed: a "
    "plain convolution",
}
TORCHVISION = ("efficientnet*", "mobilenet_v3*", "regnet_y*")


@dataclass
class Row:
    """One architecture: gates it came with, those found again by placement, places beyond them."""

    name: str
    family: str
    gates: int = 0
    found: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    beyond: dict[str, int] = field(default_factory=dict)  # by placement, as found
    seconds: float = 0.0
    reason: str = ""


def gates(recorded: Trace) -> list[str]:
    """Paths of the modules whose output is a gate of their input, outermost, in order of execution."""
    found: list[str] = []
    for call in recorded.calls:
        if any(call.path.startswith(f"{path}.") for path in found):
            continue
        for node in call.graph.nodes:
            if node.op == "call_module" and record_of(node).path not in found:
                kinds = {o.kind for o in chain(node)}
                if "gate" in kinds and kinds <= {"gate", "pass"}:
                    found.append(record_of(node).path)
    return found


def behind(node: fx.Node, path: str) -> bool:
    """Whether the value is what the Identity at ``path`` gives, norms and activations (RexNet gates before its
    activation), layer scale and drop path later."""
    for o, _ in made_by(node):
        if o.path == path:
            return True
        if o.kind not in ("norm", "act", "pass", "scale", "bias"):
            break
    return False


def leave_out(model: nn.Module, paths: list[str]) -> None:
    for path in paths:
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent).add_module(name, nn.Identity())


def match(bare: Trace, placements: tuple[str, ...], left: set[str]) -> tuple[Counter[str], Counter[str]]:
    """Sites that stand at a gate of ``left``, which is taken from there, and sites that do not, by placement."""
    taken, beyond = Counter[str](), Counter[str]()
    found = find_sites(bare, placements)
    for site in found.sites:
        _, node, user = found.places[site.id][0]
        here = next((path for path in left if user is None and (reaches(node, path) or behind(node, path))), None)
        (beyond if here is None else taken)[site.placement] += 1
        left.discard(here or "")
    return taken, beyond


def examine(name: str, family: str, model: nn.Module, size: tuple[int, ...]) -> Row:
    row, start = Row(name, family), time.perf_counter()
    inputs = resolve(model.eval(), size)
    paths = gates(trace(model, inputs))
    row.gates = len(paths)
    if paths:
        leave_out(model, paths)
        bare, left = trace(model, inputs), set(paths)
        found, beyond = match(bare, PLACEMENTS, left)
        extra, _ = match(bare, ("early",), left) if left else (Counter[str](), None)
        row.found, row.beyond, row.missed = dict(found + extra), dict(beyond), sorted(left)
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def architectures(patterns: list[str]) -> Iterator[tuple[str, str]]:
    """Name and family of every architecture of which one of the two matches."""

    def asked(*names: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)

    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        if asked(name, family):
            yield f"timm:{name}", family
    for name in torchvision.models.list_models(module=torchvision.models):
        family = f"torchvision {name.partition('_')[0]}"
        if asked(name, family) and any(fnmatch.fnmatch(name, t) for t in TORCHVISION):
            yield f"torchvision:{name}", family


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    library, _, model = name.partition(":")
    # torchvision's RegNets read values in their constructor, which the meta device has not.
    with torch.device("cpu" if "regnet_y" in model and library == "torchvision" else "meta"):
        if library == "timm":
            made = timm.create_model(model)
            return made, tuple(made.pretrained_cfg["input_size"])
        return torchvision.models.get_model(model, weights=None), (3, 224, 224)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def table(rows: list[Row]) -> str:
    """Markdown: one line for each family, then every gate that was missed."""
    having = [row for row in rows if row.gates]
    total, missed = sum(r.gates for r in having), sum(len(r.missed) for r in having)
    early = sum(r.found.get("early", 0) for r in having)
    lines = [
        "# Leave-SE-out",
        "",
        "Made by `python benchmarks/leave_se_out.py`. Of every architecture that comes with channel attention, the "
        "attention is taken out (an `Identity` in its place) and the sites of `standard`, `inner`, `concat` and `sum` "
        "are searched. *found*: a site stands where a gate stood, norms, activations, layer scale and drop path "
        "between them looked through. What these four miss is searched with `early`, in front of the spatial "
        "convolution. *beyond*: places of the four that the architecture left without attention; a place of two kinds, "
        "such as a sum that is also the end of a block's depthwise part, counts for both.",
        "",
        f"{len(rows)} architectures looked at, {len(having)} with attention, {total:,} gates: "
        f"**{total - missed - early:,} found by the four ({100 * (total - missed - early) / max(total, 1):.2f} %)**, "
        f"{early:,} by `early`, {missed:,} missed.",
        "",
        "| family | architectures | gates | found | by placement | beyond |",
        "|---|---:|---:|---:|---|---|",
    ]
    for family in sorted({row.family for row in having}):
        group = [row for row in having if row.family == family]
        by, beyond = Counter[str](), Counter[str]()
        for row in group:
            by.update(row.found)
            beyond.update(row.beyond)
        count = sum(row.gates for row in group)
        cells = (len(group), f"{count:,}", f"{by.total():,}", listed(by), listed(beyond))
        lines.append(f"| {family} | " + " | ".join(map(str, cells)) + " |")
    misses = [(row.name, row.missed) for row in having if row.missed]
    if misses:
        lines += ["", "## Missed", "", "| architecture | gates | where | why |", "|---|---:|---|---|"]
        lines += [
            f"| {name} | {len(paths)} | `{paths[0]}`{' …' if paths[1:] else ''} | {EXCEPTIONS.get(name, '')} |"
            for name, paths in misses
        ]
    failed = [row for row in rows if row.reason]
    if failed:
        lines += ["", "## Not examined", "", "| architecture | reason |", "|---|---|"]
        lines += [f"| {row.name} | {row.reason} |" for row in failed]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names or families")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--json", type=Path, help="the rows as JSON; those in it already are not examined again")
    options = parser.parse_args()
    rows = []
    if options.json and options.json.exists():
        rows = [Row(**row) for row in json.loads(options.json.read_text())]
    done = {row.name for row in rows}
    warnings.simplefilter("ignore")
    for name, family in track([a for a in architectures(options.patterns) if a[0] not in done], "leave-SE-out"):
        try:
            rows.append(examine(name, family, *build(name)))
        except Exception as error:  # one architecture must not end the sweep
            rows.append(Row(name, family, reason=(str(error).splitlines() or [type(error).__name__])[0][:160]))
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    text = table(rows)
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
