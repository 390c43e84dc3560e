"""``se-inject report``: what an output folder says about itself."""

from __future__ import annotations

from pathlib import Path

import click

from se_inject.cli.options import of_output, output_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal


@command(short_help="Show the report of an output folder.")
@click.argument("folder", type=click.Path(path_type=Path))
@of_output(
    "--format",
    "kind",
    type=click.Choice(["terminal", "md", "json", "html"]),
    metavar="FORMAT",
    help="terminal (default), md, json or html.",
)
@of_output("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file; not for the terminal.")
@of_output("--force", is_flag=True, help="Replace an earlier file; in FOLDER, unless you changed it.")
@of_output("--discard-changes", is_flag=True, help="Replace it all the same: what you changed there is lost.")
@of_output("--all", "show_all", is_flag=True, help="List every skip, not only their number by reason.")
@output_options()
def report(
    folder: Path,
    kind: str | None,
    output: Path | None,
    force: bool,
    discard_changes: bool,
    show_all: bool,
    screen: Terminal,
) -> None:
    """Show the report of an output FOLDER.

    \b
    Examples:
      se-inject report out
      se-inject report out --format md
      se-inject report out --format html -o report.html
      se-inject report out --json | jq .after.parameters
    """
    from se_inject.commands import report as work

    if screen.as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json is --format json; --format {kind} cannot be given with it.")
    kind = "json" if screen.as_json else kind or "terminal"
    if output is not None and kind == "terminal":
        raise click.UsageError("-o goes with --format md, json or html.")
    if output is not None:
        for said in work.write_report(folder, kind, output, force=force, discard_changes=discard_changes):
            screen.warn(said)
        screen.line(f"Written to {output}")
    elif kind == "terminal":
        screen.report(work.read_report(folder), None, show_all=show_all)
    else:
        screen.write(work.RENDERERS[kind](work.read_report(folder)))
