"""The command line: options are parsed here, one function of the library is called, its result is printed.

Exit codes: 0 done, 1 a refusal with one clear line, 2 wrong usage. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from se_inject import __version__
from se_inject.errors import SEInjectError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Option(click.Option):
    """An option with the heading under which ``--help`` shows it."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """Shows its options by section; arguments are in the usage line, and the text says what they are."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: not isinstance(param, Option)):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Commands(click.Group):
    """Turns a refusal of the library into one line on standard error and exit code 1."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with undisturbed():
                return super().invoke(ctx)
        except SEInjectError as error:
            message = " ".join(printable(str(error)).split())
            label = "Error" if "NO_COLOR" in os.environ else click.style("Error", fg="red")
            click.echo(f"{label}: {message}", err=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are used


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Libraries warn and log for their own developers: not among our lines, unless python -W asks for it."""
    logging.getLogger().addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def printable(text: str) -> str:
    """Control characters as escapes: names in models and files are not trusted with the terminal."""
    return "".join(c if c.isprintable() or c in "\n " else c.encode("unicode_escape").decode() for c in text)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="se-inject")
def main() -> None:
    """Splice channel attention into a pretrained PyTorch model, and prove that nothing else changed.

    \b
    Examples:
      se-inject convert timm:resnet50 --pretrained -o out
      se-inject plan torchvision:mobilenet_v2
      se-inject verify out
    """


def ratio(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 1 / 8):
        raise click.BadParameter(f"{value:g} is not a number from 0.125 on; 16 makes 256 channels 16.")
    return value


def register(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    """What the command line names is imported; what a file names is not."""
    from se_inject.blocks.custom import import_block

    for name in value:
        import_block(name)


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names that an option knows, for a shell; where it takes a file too, the files as well."""
    from se_inject.rules.presets import PRESETS
    from se_inject.rules.schema import INITS, PLACEMENTS

    known: dict[str | None, Iterable[str]] = {"placement": PLACEMENTS, "init": INITS, "rules": PRESETS}
    names = [CompletionItem(name) for name in known[param.name] if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")] * (param.name == "rules")


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    return lambda command: functools.reduce(lambda done, wrap: wrap(done), reversed(decorators), command)


of_model = functools.partial(click.option, cls=Option, section="Model")
of_rules = functools.partial(click.option, cls=Option, section="Rules")
of_output = functools.partial(click.option, cls=Option, section="Output")
model_options = options(
    click.argument("model"),
    of_model("--model-arg", "model_arg", multiple=True, metavar="KEY=VALUE", help="Constructor option; repeatable."),
    of_model("--pretrained", is_flag=True, help="Weights that the library downloads."),
    of_model("--checkpoint", type=click.Path(path_type=Path), help="Weights from a torch or safetensors file."),
    of_model("--random-init", is_flag=True, help="Random weights, on purpose."),
    of_model("--allow-missing", multiple=True, metavar="GLOB", help="Keys the checkpoint may lack; repeatable."),
    of_model("--ema/--no-ema", default=None, help="Averaged or raw weights, where a checkpoint has both."),
    of_model("--allow-pickle", is_flag=True, help="Run code that the checkpoint names. Only for files you made."),
    of_model("--input-size", metavar="C,H,W", help="Size of one input; default: the model's own configuration."),
)
rule_options = options(
    of_rules(
        "--rules",
        metavar="FILE|PRESET",
        shell_complete=complete,
        help="YAML file of rules, or a preset: `se-inject list presets`.",
    ),
    of_rules(
        "--placement",
        multiple=True,
        metavar="NAME",
        shell_complete=complete,
        help="auto (default), standard, ...: `se-inject list placements`.",
    ),
    of_rules("--block", metavar="NAME", help="Which block: `se-inject list blocks`, or pkg.mod:Class.  [default: se]"),
    of_rules("--block-arg", multiple=True, metavar="KEY=VALUE", help="Option of the block: gate=hardsigmoid."),
    of_rules("--ratio", type=float, callback=ratio, help="Channels / reduced channels: 16."),
    of_rules(
        "--init", metavar="NAME", shell_complete=complete, help="identity (default, bit-equal start), absorb, paper."
    ),
    of_rules("--include", multiple=True, metavar="PATTERN", help="Paths to take: glob, or re:... ; repeatable."),
    of_rules("--exclude", multiple=True, metavar="PATTERN", help="Paths to leave out; repeatable."),
    of_rules("--min-channels", type=click.IntRange(min=0), help="Leave out narrower sites."),
    of_rules("--stages", metavar="N,N", help="Only these stages (1 is the largest resolution)."),
    of_rules("--budget", metavar="KEY=SHARE", help="Choose sites and ratios under params=2%,macs=1%."),
    of_rules("--again", is_flag=True, help="Insert at places that are gated already."),
    of_rules("--seed", type=int, default=0, show_default=True, help="Of new weights and of the probe."),
)
base_options = options(
    of_model(
        "--model", metavar="MODEL", help="pkg.module:factory of the base model, if it is not from timm or torchvision."
    ),
    of_model("--model-arg", multiple=True, metavar="KEY=VALUE", help="Its constructor options; repeatable."),
    of_model(
        "--block", multiple=True, metavar="pkg.mod:Class", expose_value=False, callback=register,
        help="A class that the plan names as a block; repeatable.",
    ),
)  # fmt: skip
output_options = options(
    of_output("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
    of_output("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)


@main.command(short_help="Insert blocks, check, and write the result.", context_settings=CONTEXT)
@model_options
@rule_options
@of_rules("--plan", "plan_file", type=click.Path(path_type=Path), help="Apply this plan.json instead of rules.")
@of_output("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@of_output("--force", is_flag=True, help="Replace an earlier output.")
@of_output("--verify/--no-verify", "check", default=True, show_default=True, help="Run the checks.")
@output_options
def convert(model: str, output: Path, force: bool, check: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Rewrite MODEL with attention blocks in it, check it, and write it with a report.

    MODEL is timm:NAME, torchvision:NAME or pkg.module:factory.

    \b
    Examples:
      se-inject convert timm:resnet50 --pretrained -o out
      se-inject convert torchvision:resnet50 --checkpoint r50.pth --placement standard --init absorb -o out
      se-inject convert my_models:make_net --checkpoint best.safetensors --input-size 3,192,192 -o out
    """
    from se_inject import workflow
    from se_inject.terminal import Terminal

    with Terminal(quiet=quiet, results=not as_json) as screen:
        report = workflow.convert(model, given, output, force=force, check=check, screen=screen)
        screen.report(report, output)
    if as_json:
        from se_inject.report.formats import to_json

        click.echo(to_json(report), nl=False)


@main.command(short_help="Show where blocks would go, and why.", context_settings=CONTEXT)
@model_options
@rule_options
@of_output("-o", "--output", type=click.Path(path_type=Path), help="Write the plan to this file.")
@of_output("--force", is_flag=True, help="Replace an earlier plan.")
@of_output("--all", "show_all", is_flag=True, help="List every skip, not only their number by reason.")
@of_output("--explain", metavar="PATH", help="Show what was seen in one module, and each decision there.")
@output_options
def plan(
    model: str,
    output: Path | None,
    force: bool,
    show_all: bool,
    explain: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Show where blocks would go in MODEL, and why; nothing is changed and no weights are needed.

    \b
    Examples:
      se-inject plan timm:resnet50
      se-inject plan torchvision:efficientnet_b0 --placement standard --all
      se-inject plan timm:regnety_002 -o plan.json
      se-inject plan timm:resnet50 --explain layer1.0
    """
    from se_inject import workflow
    from se_inject.terminal import Terminal

    if explain is not None:
        if output is not None:
            raise click.UsageError("--explain shows one module; leave out -o, or make the plan in a run of its own.")
        with Terminal(quiet=quiet, results=not as_json) as screen:
            seen = workflow.explain(model, given, explain, screen=screen)
            screen.explanation(seen)
        if as_json:
            from se_inject.types import to_dict

            click.echo(json.dumps(to_dict(seen), indent=1))
        return
    with Terminal(quiet=quiet, results=not as_json) as screen:
        made = workflow.plan(model, given, output, force=force, screen=screen)
        screen.plan(made, show_all=show_all)
        if output is not None:
            screen.line(f"Written to {output}")
    if as_json:
        from se_inject.api import dump

        click.echo(dump(made), nl=False)


@main.command(short_help="Check an output folder again.", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@base_options
@output_options
def verify(folder: Path, model: str | None, model_arg: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Check an output FOLDER again, without the original: hashes, outputs on the probe, blocks, cost.

    \b
    Examples:
      se-inject verify out
      se-inject verify out --model my_models:make_net
    """
    from se_inject import workflow
    from se_inject.terminal import Terminal

    with Terminal(quiet=quiet, results=not as_json) as screen:
        checks = workflow.verify(folder, model, model_arg, screen=screen)
        screen.checks(checks)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=1))
    workflow.require(checks)


@main.command(short_help="Take the blocks out of an output folder.", context_settings=CONTEXT)
@click.argument("folder", type=click.Path(path_type=Path))
@base_options
@of_output("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@of_output("--force", is_flag=True, help="Replace an earlier output.")
@output_options
def remove(
    folder: Path, output: Path, model: str | None, model_arg: tuple[str, ...], force: bool, as_json: bool, quiet: bool
) -> None:
    """Take the blocks out of an output FOLDER again, and write the base model's weights.

    \b
    Example:
      se-inject remove out -o base
    """
    from se_inject import workflow
    from se_inject.terminal import Terminal

    with Terminal(quiet=quiet, results=not as_json) as screen:
        summary = workflow.remove(folder, output, model, model_arg, force=force, screen=screen)
        screen.line(summary["summary"])
    if as_json:
        click.echo(json.dumps(summary, indent=1))


@main.command(short_help="Show the report of an output folder.", context_settings=CONTEXT)
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
    from se_inject import workflow
    from se_inject.terminal import Terminal

    if output is not None:
        if kind == "terminal":
            raise click.UsageError("-o goes with --format md, json or html.")
        workflow.write_report(folder, kind, output, force=force)
    elif kind == "terminal":
        with Terminal() as screen:
            screen.report(workflow.read_report(folder), None, show_all=show_all)
    else:
        click.echo(workflow.render(folder, kind), nl=False)


@main.command("list", short_help="List blocks, placements or models.", context_settings=CONTEXT)
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
    from se_inject import workflow
    from se_inject.terminal import Terminal

    if schema:
        if what != "rules":
            raise click.UsageError("--schema goes with `list rules`.")
        from se_inject.rules.schema import schema as rules_schema

        click.echo(json.dumps(rules_schema(), indent=1))
        return
    rows = workflow.listing(what, pattern)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        with Terminal() as screen:
            screen.table(rows)


if __name__ == "__main__":
    sys.exit(main())
