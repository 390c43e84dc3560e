"""``se-inject remove``: the base model's weights out of an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import base_options, of_output, output_options, replace_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal


@command(short_help="Take the blocks out of an output folder.")
@click.argument("folder", type=click.Path(path_type=Path))
@base_options
@of_output("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@replace_options
@output_options()
def remove(
    folder: Path,
    output: Path,
    model: str | None,
    model_args: dict[str, Any],
    force: bool,
    discard_changes: bool,
    screen: Terminal,
) -> None:
    """Take the blocks out of an output FOLDER again, and write the base model's weights.

    \b
    Example:
      se-inject remove out -o base
    """
    from se_inject.commands import remove as work

    summary = work.remove(
        folder, output, model, model_args, force=force, discard_changes=discard_changes, screen=screen
    )
    screen.line(summary["summary"])
    screen.json(summary)
