"""``se-inject sweep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from se_inject.commands.outputs import check_file, read_by, write_file
from se_inject.commands.request import DEFAULTS, inputs_from, rules_from, size_from, without_weights
from se_inject.commands.screen import Listener, Screen
from se_inject.commands.sweep import grid, pareto
from se_inject.commands.sweep import table as sweep_table
from se_inject.commands.sweep.rows import Row, rows_of
from se_inject.errors import WriteError
from se_inject.guard import unwrap
from se_inject.inputs import resolve
from se_inject.models.loading import Loaded, parse_model_args
from se_inject.parallel.pool import Failure, run
from se_inject.rules.decide import require_options
from se_inject.trace.record import uncollected

PRELOAD = ("torch", "timm", "torchvision", "se_inject.commands.sweep.run")


@dataclass(frozen=True)
class Task:
    """One model with the options and the grid that all models of a sweep share."""

    spec: str
    given: Mapping[str, Any]
    points: Sequence[grid.Point]


def sweep(
    patterns: Sequence[str],
    given: Mapping[str, Any],
    *,
    csv: Path | None,
    plot: Path | None,
    force: bool,
    jobs: int,
    screen: Screen,
) -> list[Row]:
    """The rows of every model at every point of the grid, in the order of the arguments; files are written on request.

    All that can be refused is, before the first model is built. A model that fails is a row with its reason.
    """
    screen.step("grid")
    combined = list(grid.combinations(given))
    for output in (csv, plot):
        if output is not None:
            check_file(output, force, [file for one in combined for file in read_by(one, "rules")])
    if csv is not None and plot is not None and csv.resolve() == plot.resolve():
        raise WriteError(f"--csv and --plot both write {plot}; give each a file of its own.")
    if plot is not None:
        pareto.require(plot)
    if given["input_size"]:
        size_from(given["input_size"])
    parse_model_args(given["model_arg"])
    names = grid.labels(one["rules"] or "" for one in combined)
    points = grid.distinct(grid.Point(names[one["rules"] or ""], rules_from(one)) for one in combined)
    for point in points:
        require_options(point.rules)
    models = grid.models(patterns)
    screen.step("sweep")
    found: dict[str, list[Row]] = {}
    tasks = [Task(spec, {**DEFAULTS, **given}, points) for spec in models]
    for task, outcome in run(tasks, examine, workers=jobs, preload=PRELOAD):
        found[task.spec] = [Row(task.spec, reason=outcome.reason)] if isinstance(outcome, Failure) else outcome
        screen.advance(len(found), len(models), "architectures")
    rows = [row for spec in models for row in found[spec]]
    if csv is not None:
        write_file(csv, sweep_table.to_csv(rows))
    if plot is not None:
        write_file(plot, pareto.draw(rows, plot.suffix[1:]))
    return rows


def examine(task: Task) -> list[Row]:
    """The rows of one model; a function of a module, for a process of its own."""

    def look(loaded: Loaded) -> list[Row]:
        model = unwrap(loaded.model)
        inputs = resolve(model, inputs_from(task.given, loaded), seed=task.given["seed"])
        return rows_of(task.spec, model, inputs, task.points)

    with uncollected():  # its memory goes with the process
        return without_weights(task.spec, task.given, Listener(), look)
