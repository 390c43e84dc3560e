"""``se-inject list``: the names that options take."""

from __future__ import annotations

import json

import click

from se_inject.cli.options import CONTEXT, of_output
from se_inject.cli.parts import Command


@click.command("list", cls=Command, short_help="List blocks, placements or models.", context_settings=CONTEXT)
@click.argument("what", type=click.Choice(["blocks", "placements", "presets", "rules", "models"]))
@click.argument("pattern", default="*")
@of_output("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@of_output("--schema", is_flag=True, help="With rules: their JSON Schema, for editors.")
def list_(what: str, pattern: str, as_json: bool, schema: bool) -> None:
    """List blocks, placements, presets, the keys of rules, or models by a glob PATTERN.

    \b
    Examples:
      se-inject list blocks
      se-inject list models '*resnet50*'
    """
    from se_inject.terminal import Terminal
    from se_inject.workflow import listing as work

    if schema:
        if what != "rules":
            raise click.UsageError("--schema goes with `list rules`.")
        from se_inject.rules.schema import schema as rules_schema

        click.echo(json.dumps(rules_schema(), indent=1))
        return
    rows = work.listing(what, pattern)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        with Terminal() as screen:
            screen.table(rows)
