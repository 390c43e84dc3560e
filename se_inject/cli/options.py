"""The options that commands share, by the heading under which ``--help`` shows them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from se_inject.cli.parts import Option

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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
    names = [CompletionItem(name) for name in _known(param.name) if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")] * (param.name == "rules")


def _known(name: str | None) -> Iterable[str]:
    from se_inject.rules.presets import PRESETS
    from se_inject.rules.schema import INITS, PLACEMENTS

    if name == "model":
        from se_inject.models.zoos import known_models

        return known_models()
    if name == "block":
        from se_inject.blocks import BLOCKS

        return BLOCKS
    return {"placement": PLACEMENTS, "init": INITS, "rules": PRESETS}[name or ""]


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    return lambda command: functools.reduce(lambda done, wrap: wrap(done), reversed(decorators), command)


of_model = functools.partial(click.option, cls=Option, section="Model")
of_rules = functools.partial(click.option, cls=Option, section="Rules")
of_machine = functools.partial(click.option, cls=Option, section="Machine")
of_output = functools.partial(click.option, cls=Option, section="Output")
model_arg = of_model(
    "--model-arg", "model_arg", multiple=True, metavar="KEY=VALUE", help="Constructor option; repeatable."
)
input_options = options(
    of_model("--input-size", metavar="C,H,W", help="Size of one input; default: the model's own configuration."),
    of_model(
        "--input-kind",
        type=click.Choice(["batch", "list", "pair"]),
        help="One batch, a list of images (detection), two batches (optical flow); default: what the model takes.",
    ),
)
model_options = options(
    click.argument("model", shell_complete=complete),
    model_arg,
    of_model("--pretrained", is_flag=True, help="Weights that the library downloads."),
    of_model(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="Weights: a torch or safetensors file, an index of shards, or a folder.",
    ),
    of_model("--random-init", is_flag=True, help="Random weights, on purpose."),
    of_model("--allow-missing", multiple=True, metavar="GLOB", help="Keys the checkpoint may lack; repeatable."),
    of_model("--ema/--no-ema", default=None, help="Averaged or raw weights, where a checkpoint has both."),
    of_model("--allow-pickle", is_flag=True, help="Run code that the checkpoint names. Only for files you made."),
    input_options,
)
block_arg = of_rules("--block-arg", multiple=True, metavar="KEY=VALUE", help="Option of the block: gate=hardsigmoid.")
site_options = options(
    of_rules("--include", multiple=True, metavar="PATTERN", help="Paths to take: glob, or re:... ; repeatable."),
    of_rules("--exclude", multiple=True, metavar="PATTERN", help="Paths to leave out; repeatable."),
    of_rules("--min-channels", type=click.IntRange(min=0), metavar="N", help="Leave out narrower sites."),
    of_rules("--stages", metavar="N,N", help="Only these stages (1 is the largest resolution)."),
    of_rules("--budget", metavar="KEY=SHARE", help="Choose sites and ratios under params=2%,macs=1%."),
    of_rules("--again", is_flag=True, help="Insert at places that are gated already."),
    of_rules("--seed", type=int, metavar="N", default=0, show_default=True, help="Of new weights and of the probe."),
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
    of_rules(
        "--block",
        metavar="NAME",
        shell_complete=complete,
        help="Which block: `se-inject list blocks`, or pkg.mod:Class.  [default: se]",
    ),
    block_arg,
    of_rules("--ratio", type=float, metavar="R", callback=ratio, help="Channels / reduced channels: 16."),
    of_rules(
        "--init", metavar="NAME", shell_complete=complete, help="identity (default, bit-equal start), absorb, paper."
    ),
    site_options,
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
    of_output("-q", "--quiet", is_flag=True, help="Print nothing but errors, and what --json asks for."),
)
