"""``se-inject plan``: a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import model_options, of_output, output_options, rule_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal
from se_inject.commands.request import ModelRequest


@command(short_help="Show where blocks would go, and why.")
@model_options
@rule_options
@of_output("-o", "--output", type=click.Path(path_type=Path), help="Write the plan to this file.")
@of_output("--force", is_flag=True, help="Replace an earlier plan.")
@of_output("--all", "show_all", is_flag=True, help="List every skip, not only their number by reason.")
@of_output("--explain", metavar="PATH", help="Show what was seen in one module, and each decision there.")
@output_options()
def plan(
    output: Path | None,
    force: bool,
    show_all: bool,
    explain: str | None,
    screen: Terminal,
    **given: Any,
) -> None:
    """Show where blocks would go in MODEL, and why; nothing is changed and no weights are needed.

    \b
    Examples:
      se-inject plan timm:resnet50
      se-inject plan torchvision:efficientnet_b0 --placement standard --all
      se-inject plan timm:regnetx_002 -o plan.json
      se-inject plan timm:resnet50 --explain layer1.0
    """
    from se_inject.commands import convert as work
    from se_inject.report.explain import render
    from se_inject.report.text import render_plan
    from se_inject.types import dump, to_dict

    request = ModelRequest.of(**given)
    if explain is not None:
        if output is not None:
            raise click.UsageError("--explain shows one module; leave out -o, or make the plan in a run of its own.")
        seen = work.explain(request, explain, screen=screen)
        screen.show(render, seen)
        screen.json(to_dict(seen))
        return
    made = work.plan(request, output, force=force, screen=screen)
    screen.show(render_plan, made, all=show_all)
    if output is not None:
        screen.line(f"Written to {output}")
    screen.json(dump(made))
