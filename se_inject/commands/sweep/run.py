"""``se-inject sweep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from se_inject.commands.files import check_file, existing, write_file
from se_inject.commands.model import Listener, Screen, example_inputs, read_rules, without_weights
from se_inject.commands.request import ModelRequest
from se_inject.commands.sweep import grid, pareto, table
from se_inject.commands.sweep.rows import Row, rows_of
from se_inject.errors import WriteError
from se_inject.guard import unwrap
from se_inject.inputs import resolve
from se_inject.models.loading import Loaded
from se_inject.parallel.pool import Failure, run
from se_inject.rules.decide import require_options
from se_inject.trace.record import uncollected

PRELOAD = ("torch", "timm", "torchvision", "se_inject.commands.sweep.run")


@dataclass(frozen=True)
class Task:
    """One model, and the grid that all models of a sweep share."""

    request: ModelRequest
    points: Sequence[grid.Point]


def sweep(
    patterns: Sequence[str],
    axes: Mapping[str, Sequence[str]],
    request: ModelRequest,
    *,
    csv: Path | None,
    plot: Path | None,
    force: bool,
    jobs: int,
    screen: Screen,
) -> list[Row]:
    """The rows of every model at every point of the grid, in the order of the arguments; files are written on request.

    ``axes``: texts with commas for the options in ``grid.AXES``. ``request``: what else is asked for, of every model.
    All that can be refused is, before the first model is built. A model that fails is a row with its reason.
    """
    screen.step("grid")
    combined = list(grid.combinations(request.rules, axes))
    for output in (csv, plot):
        if output is not None:
            check_file(output, force, existing(*(one.rules for one in combined)))
    if csv is not None and plot is not None and csv.resolve() == plot.resolve():
        raise WriteError(f"--csv and --plot both write {plot}; give each a file of its own.")
    if plot is not None:
        pareto.require(plot)
    names = grid.labels(one.rules or "" for one in combined)
    points = grid.distinct(grid.Point(names[one.rules or ""], read_rules(one)) for one in combined)
    for point in points:
        require_options(point.rules)
    models = grid.models(patterns)
    screen.step("sweep")
    found: dict[str, list[Row]] = {}
    tasks = [Task(replace(request, weights=replace(request.weights, model=spec)), points) for spec in models]
    for task, outcome in run(tasks, examine, workers=jobs, preload=PRELOAD):
        spec = task.request.weights.model
        found[spec] = [Row(spec, reason=outcome.reason)] if isinstance(outcome, Failure) else outcome
        screen.advance(len(found), len(models), "architectures")
    rows = [row for spec in models for row in found[spec]]
    if csv is not None:
        write_file(csv, table.to_csv(rows))
    if plot is not None:
        write_file(plot, pareto.draw(rows, plot.suffix[1:]))
    return rows


def examine(task: Task) -> list[Row]:
    """The rows of one model; a function of a module, for a process of its own."""

    def look(loaded: Loaded) -> list[Row]:
        model = unwrap(loaded.model)
        inputs = resolve(model, example_inputs(task.request, loaded), seed=task.request.seed)
        return rows_of(loaded.spec, model, inputs, task.points)

    with uncollected():  # its memory goes with the process
        return without_weights(task.request, Listener(), look)
