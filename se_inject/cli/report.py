"""``se-inject report``: what an output folder says about itself."""

from __future__ import annotations

from pathlib import Path

import click

from se_inject.cli.options import CONTEXT, of_output, output_options
from se_inject.cli.parts import Command


@click.command(cls=Command, short_help="Show the report of an output folder.", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@of_output(
    "--format",
    "kind",
    type=click.Choice(["terminal", "md", "json", "html"]),
    metavar="FORMAT",
    help="terminal (default), md, json or html.",
)
@of_output("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file; not for the terminal.")
@of_output("--force", is_flag=True, help="Replace an earlier file.")
@of_output("--all", "show_all", is_flag=True, help="List every skip, not only their number by reason.")
@output_options
def report(
    folder: Path, kind: str | None, output: Path | None, force: bool, show_all: bool, as_json: bool, quiet: bool
) -> None:
    """Show the report of an output FOLDER.

    \b
    Examples:
      se-inject report out
      se-inject report out --format md
      se-inject report out --format html -o report.html
      se-inject report out --json | jq .after.parameters
    """
    from se_inject.cli.terminal import Terminal
    from se_inject.commands import report as work

    if as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json is --format json; --format {kind} cannot be given with it.")
    kind = "json" if as_json else kind or "terminal"
    if output is not None and kind == "terminal":
        raise click.UsageError("-o goes with --format md, json or html.")
    with Terminal(quiet=quiet) as screen:
        if output is not None:
            work.write_report(folder, kind, output, force=force)
            screen.line(f"Written to {output}")
            return
        found = work.read_report(folder)
        if kind == "terminal":
            screen.report(found, None, show_all=show_all)
            return
    click.echo(work.RENDERERS[kind](found), nl=False)
