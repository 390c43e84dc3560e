"""``se-inject verify``: check an output folder again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import CONTEXT, base_options, of_model, output_options
from se_inject.cli.parts import Command


@click.command(cls=Command, short_help="Check an output folder again.", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@base_options
@of_model("--run-pt2", is_flag=True, help="Load and run model.pt2, which can run code. Only for files you made.")
@output_options
def verify(
    folder: Path, model: str | None, model_args: dict[str, Any], run_pt2: bool, as_json: bool, quiet: bool
) -> None:
    """Check an output FOLDER again, without the original: hashes, outputs on the probe, blocks, cost, each format.

    \b
    Examples:
      se-inject verify out
      se-inject verify out --model my_models:make_net
    """
    from se_inject.checks.verify import require
    from se_inject.cli.terminal import Terminal
    from se_inject.commands import verify as work

    with Terminal(quiet=quiet, results=not as_json) as screen:
        checks = work.verify(folder, model, model_args, trusted=run_pt2, screen=screen)
        screen.checks(checks)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=1))
    require(checks)
