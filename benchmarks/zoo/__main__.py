"""Coverage of the zoos: every architecture of timm and torchvision, and numbers on a small one of every family.

    make zoo                                  docs/coverage.md and docs/coverage.json
    python -m benchmarks.zoo 'resnet*'        a few architectures, printed alone

Rows are lines of JSON in a file that is read again: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.zoo.architectures import names
from benchmarks.zoo.examine import KINDS, Row, begin, examine
from benchmarks.zoo.tables import coverage

PER_PROCESS = 60  # generated classes and source stay in a process: a fresh one now and then


def run(tasks: list[tuple[str, str]], rows: dict[tuple[str, str], Row], file: Path, jobs: int) -> None:
    """Examine what ``rows`` does not hold yet, and append it to the file."""
    left = [task for task in tasks if task not in rows]
    context = multiprocessing.get_context("spawn")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        file.open("a") as out,
        Progress(*columns) as progress,
        context.Pool(jobs, begin, maxtasksperchild=PER_PROCESS) as pool,
    ):
        bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(left))
        for row in pool.imap_unordered(examine, left):
            rows[row.kind, row.name] = row
            out.write(json.dumps(asdict(row)) + "\n")
            out.flush()
            progress.update(bar, advance=1, description=f"{row.kind} {row.name}")


def smallest(rows: Iterable[Row]) -> list[str]:
    """The member of every family with the fewest parameters that takes a block, and all of torchvision; small first."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.kind == "structure" and row.blocks:
            key = row.name if row.name.startswith("torchvision:") else row.family
            if key not in best or row.parameters < best[key].parameters:
                best[key] = row
    return [row.name for row in sorted(best.values(), key=lambda row: row.parameters)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="*", default=["*"], help="globs of names, with or without the library's")
    parser.add_argument("--rows", type=Path, default=Path("zoo-rows.jsonl"), help="lines of JSON, read again")
    parser.add_argument("-o", "--output", type=Path, help="Markdown to write; the JSON goes beside it")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    options = parser.parse_args()
    rows: dict[tuple[str, str], Row] = {}
    if options.rows.exists():
        for line in options.rows.read_text().splitlines():
            row = Row(**json.loads(line))
            rows[row.kind, row.name] = row
    wanted = names(*options.pattern)
    random.Random(0).shuffle(wanted)  # large and small mixed, so that the time left is told right
    if options.kind != "numeric":
        run([("structure", name) for name in wanted], rows, options.rows, options.jobs)
    chosen = [row for row in rows.values() if row.name in set(wanted)]
    if options.kind != "structure":
        run([("numeric", name) for name in smallest(chosen)], rows, options.rows, options.jobs)
    chosen = sorted((row for row in rows.values() if row.name in set(wanted)), key=lambda row: row.name)
    text = coverage(chosen)
    if options.output is None:
        print(text)
        return
    options.output.write_text(text)
    lines = [json.dumps({k: v for k, v in asdict(row).items() if v != {}}) for row in chosen]
    options.output.with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
