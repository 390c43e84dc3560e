"""``se-inject convert``: rewrite a model, check it, write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import model_options, of_output, of_rules, output_options, replace_options, rule_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal
from se_inject.commands.request import ModelRequest
from se_inject.output.names import FORMATS


@command(short_help="Insert blocks, check, and write the result.")
@model_options
@rule_options
@of_rules("--plan", "plan_file", type=click.Path(path_type=Path), help="Apply this plan.json instead of rules.")
@of_output("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@of_output(
    "--format",
    "formats",
    metavar="NAME,NAME",
    default="safetensors",
    show_default=True,
    help=f"{', '.join(FORMATS)}.",
)
@of_output("--max-shard-size", metavar="SIZE", help="Split model.safetensors above this size: 5GB.")
@replace_options
@of_output("--verify/--no-verify", "check", default=True, show_default=True, help="Run the checks.")
@output_options()
def convert(
    output: Path,
    plan_file: Path | None,
    formats: str,
    max_shard_size: str | None,
    force: bool,
    discard_changes: bool,
    check: bool,
    screen: Terminal,
    **given: Any,
) -> None:
    """Rewrite MODEL with attention blocks in it, check it, and write it with a report.

    MODEL is timm:NAME, torchvision:NAME or pkg.module:factory.

    \b
    Examples:
      se-inject convert timm:resnet50 --pretrained -o out
      se-inject convert torchvision:resnet50 --checkpoint r50.pth --placement standard --init absorb -o out
      se-inject convert my_models:make_net --checkpoint best.safetensors --input-size 3,192,192 -o out
      se-inject convert timm:resnet50 --pretrained --format safetensors,onnx,pt2 -o out
    """
    from se_inject.commands import convert as work
    from se_inject.report.formats import to_json

    report = work.convert(
        ModelRequest.of(**given),
        output,
        plan_file=plan_file,
        formats=formats,
        max_shard_size=max_shard_size,
        force=force,
        discard_changes=discard_changes,
        check=check,
        screen=screen,
    )
    screen.report(report, output)
    screen.json(to_json(report))
