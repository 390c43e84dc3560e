"""``se-inject list``: the names that options take, and the keys of the files that are read and written."""

from __future__ import annotations

import click

from se_inject.cli.options import of_output, output_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal

WHAT = ("blocks", "placements", "presets", "rules", "plan", "report", "reasons", "models")
SCHEMAS = ("rules", "plan", "report")  # files


@command("list", short_help="List blocks, placements, rules, models ...")
@click.argument("what", type=click.Choice(WHAT), metavar="WHAT")
@click.argument("pattern", required=False)
@of_output("--schema", is_flag=True, help="The JSON Schema of rules, plan or report, for editors and scripts.")
@output_options()
def list_(what: str, pattern: str | None, schema: bool, screen: Terminal) -> None:
    """List WHAT there is: blocks, placements, presets, models; the keys of rules, plan (plan.json), report
    (report.json); or the codes of reasons. A glob PATTERN chooses among the names.

    \b
    Examples:
      se-inject list blocks
      se-inject list models '*resnet50*'
      se-inject list report --schema > report.schema.json
    """
    from se_inject.commands import listing as work

    if schema:
        if what not in SCHEMAS:
            raise click.UsageError(f"--schema goes with {', '.join(SCHEMAS)}: {what} are no file.")
        if pattern is not None:
            raise click.UsageError("--schema is of the whole file; leave out the PATTERN.")
        screen.as_json = True
        screen.json(work.schema(what))
        return
    rows = work.listing(what, pattern or "*")
    screen.table(rows)
    screen.json(rows)
