"""``se-inject verify``: check an output folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_inject.cli.options import base_options, of_model, output_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal


@command(short_help="Check an output folder again.")
@click.argument("folder", type=click.Path(path_type=Path))
@base_options
@of_model("--run-pt2", is_flag=True, help="Load and run model.pt2, which can run code. Only for files you made.")
@of_model("--run-onnx", is_flag=True, help="Run model.onnx, in a process with limits of memory and time.")
@output_options()
def verify(
    folder: Path, model: str | None, model_args: dict[str, Any], run_pt2: bool, run_onnx: bool, screen: Terminal
) -> None:
    """Check an output FOLDER again, without the original: hashes, outputs on the probe, blocks, cost, each format.

    \b
    Examples:
      se-inject verify out
      se-inject verify out --model my_models:make_net
    """
    from se_inject.checks.table import require
    from se_inject.commands import verify as work
    from se_inject.report.text import render_checks

    runs = [name for name, flag in (("pt2", run_pt2), ("onnx", run_onnx)) if flag]
    checks = work.verify(folder, model, model_args, runs=runs, screen=screen)
    screen.show(render_checks, checks)
    screen.json([vars(check) for check in checks])
    require(checks)
