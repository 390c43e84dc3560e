"""``se-inject batch``: many models in one command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from se_inject.cli.options import of_machine, of_model, of_output, output_options
from se_inject.cli.parts import command
from se_inject.cli.terminal import Terminal


@command(short_help="Convert the models of a manifest.")
@click.argument("manifest", type=click.Path(path_type=Path))
@of_model(
    "--factory",
    "factories",
    multiple=True,
    metavar="pkg.mod:factory",
    help="Code that the manifest may name as a model; repeatable. A module stands for all in it.",
)
@of_model("--block", "blocks", multiple=True, metavar="pkg.mod:Class", help="A class that its rules name; repeatable.")
@of_model("--allow-pickle", is_flag=True, help="Run code that the checkpoints name. Only for files you made.")
@of_machine(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Models at a time; default: one for each core.",
)
@of_machine(
    "--memory",
    metavar="SIZE",
    help="What they may take together, such as 8GB; default: four fifths of what is available.",
)
@of_machine(
    "--ray",
    metavar="ADDRESS",
    help="Run on this Ray cluster, whose nodes see the same files: auto, or host:port.",
)
@of_output("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the output folders.")
@of_output(
    "--force",
    is_flag=True,
    help="Replace outputs of other weights, rules or versions, unless you changed or added something in them.",
)
@of_output("--discard-changes", is_flag=True, help="Replace them all the same: what you changed or added is lost.")
@of_output("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@output_options(steps=4)  # manifest, hashes, memory, convert
def batch(
    manifest: Path,
    output: Path,
    factories: tuple[str, ...],
    blocks: tuple[str, ...],
    allow_pickle: bool,
    jobs: int | None,
    memory: str | None,
    ray: str | None,
    force: bool,
    discard_changes: bool,
    dry_run: bool,
    screen: Terminal,
) -> None:
    """Convert every model that MANIFEST names, each into a folder of OUTPUT, with a summary of all.

    MANIFEST is YAML, JSON lines or CSV, one entry a line: model, checkpoint (globs too), rules, formats and more. A
    failure does not stop the rest; the exit code is then 1. The same command again does what is left: an output is
    recognised by the hashes of its weights and rules and by versions, whatever its name.

    \b
    Examples:
      se-inject batch models.yaml -o out
      se-inject batch models.csv -o out --jobs 4 --memory 16GB
      se-inject batch models.jsonl -o out --factory my_models:make_net --dry-run
    """
    from se_inject.commands.batch import run as work
    from se_inject.commands.batch.jobs import Options
    from se_inject.commands.batch.summary import counts, failures, headline, to_terminal
    from se_inject.output.weights import parse_size

    if ray is not None and (jobs or memory):
        raise click.UsageError("--jobs and --memory are for this machine; with --ray the cluster decides.")
    rows = work.batch(
        manifest,
        output,
        factories=factories,
        options=Options(blocks, allow_pickle, force or discard_changes, discard_changes),
        workers=jobs or 0,
        memory=parse_size(memory, "--memory"),
        ray=ray,
        dry_run=dry_run,
        screen=screen,
    )
    screen.show(to_terminal, rows)
    screen.line(headline(rows))
    if screen.quiet:  # errors are not quiet
        click.echo("".join(f"{line}\n" for line in failures(rows)), err=True, nl=False)
    screen.json({"counts": counts(rows), "entries": [dataclasses.asdict(row) for row in rows]})
    if any(row.status == "failed" for row in rows):
        click.get_current_context().exit(1)
