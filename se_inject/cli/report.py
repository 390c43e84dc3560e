"""``se-inject report``: what an output folder says about itself."""

from __future__ import annotations

from pathlib import Path

import click

from se_inject.cli.options import CONTEXT, of_output
from se_inject.cli.parts import Command


@click.command(cls=Command, short_help="Show the report of an output folder.", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@of_output(
    "--format",
    "kind",
    type=click.Choice(["terminal", "md", "json", "html"]),
    metavar="FORMAT",
    default="terminal",
    show_default=True,
    help="terminal, md, json or html.",
)
@of_output("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file; not for the terminal.")
@of_output("--force", is_flag=True, help="Replace an earlier file.")
@of_output("--all", "show_all", is_flag=True, help="List every skip, not only their number by reason.")
def report(folder: Path, kind: str, output: Path | None, force: bool, show_all: bool) -> None:
    """Show the report of an output FOLDER.

    \b
    Examples:
      se-inject report out
      se-inject report out --format md
      se-inject report out --format html -o report.html
    """
    from se_inject.terminal import Terminal
    from se_inject.workflow import report as work
    from se_inject.workflow.folder import read_report

    if output is not None:
        if kind == "terminal":
            raise click.UsageError("-o goes with --format md, json or html.")
        work.write_report(folder, kind, output, force=force)
    elif kind == "terminal":
        with Terminal() as screen:
            screen.report(read_report(folder), None, show_all=show_all)
    else:
        click.echo(work.render(folder, kind), nl=False)
