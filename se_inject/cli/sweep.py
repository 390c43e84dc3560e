"""``se-inject sweep``: costs of many models under many rules."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import (
    complete,
    input_options,
    model_args,
    of_fields,
    of_output,
    of_rules,
    options,
    output_options,
)
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal
from se_inject.commands.request import AXES, ModelRequest, RulesRequest

grid_options = options(
    of_rules("--rules", multiple=True, metavar="FILE|PRESET,...", shell_complete=complete, help="Rules to start from."),
    of_rules(
        "--placement", multiple=True, metavar="NAME,...", shell_complete=complete, help="auto (default), standard, ..."
    ),
    of_rules("--block", multiple=True, metavar="NAME,...", shell_complete=complete, help="se (default), eca, ..."),
    of_rules("--ratio", multiple=True, metavar="R,...", help="Channels / reduced channels: 8,16,32."),
    of_rules(
        "--init", multiple=True, metavar="NAME,...", shell_complete=complete, help="identity (default), absorb, paper."
    ),
    of_fields(RulesRequest, "Rules", *(f.name for f in dataclasses.fields(RulesRequest) if f.name not in AXES)),
    of_fields(ModelRequest, "Rules"),
)


@command(short_help="Compare costs over models and rules.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete)
@options(model_args, input_options, grid_options)
@of_output("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write all rows to this file.")
@of_output(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw added parameters against added MACs: .svg, .png or .pdf.",
)
@of_output("--force", is_flag=True, help="Replace earlier files.")
@of_output("--all", "show_all", is_flag=True, help="List every row, not only the front of a long table.")
@of_output("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes at a time; default: one for each core.")
@output_options(steps=2)
def sweep(
    models: tuple[str, ...],
    csv: Path | None,
    plot: Path | None,
    force: bool,
    show_all: bool,
    jobs: int | None,
    screen: Terminal,
    **given: Any,
) -> None:
    """Compare what blocks would cost in many models, for every combination of the options that take several values.

    MODEL is a glob over timm:NAME and torchvision:NAME, or pkg.module:factory; no weights are needed. A model that
    fails is a row with its reason; when all do, the exit code is 1.

    \b
    Examples:
      se-inject sweep 'timm:resnet1?' --placement standard,inner --ratio 8,16,32
      se-inject sweep torchvision:resnet18 timm:resnet18 --rules se-resnet,ecanet
      se-inject sweep 'timm:regnetx_00[24]' --ratio 8,16 --csv costs.csv --plot costs.svg
    """
    from se_inject.commands.sweep import run as work
    from se_inject.commands.sweep.table import records, render, speed

    axes = {axis: given.pop(axis) for axis in AXES}
    request = ModelRequest.of(model="", **given)  # each of the models takes its place
    rows = work.sweep(models, axes, request, csv=csv, plot=plot, force=force, jobs=jobs or 0, screen=screen)
    screen.show(render, rows, all=show_all)
    screen.note(speed(rows, screen.seconds()))
    for output in filter(None, (csv, plot)):
        screen.line(f"Written to {output}")
    screen.json(records(rows))
    if all(row.failed for row in rows):
        click.get_current_context().exit(1)
