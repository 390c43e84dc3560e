"""The options that commands share, by the heading under which ``--help`` shows them; those about a model are made from
the fields of its request."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

from se_inject.cli.parts import Option
from se_inject.cli.terminal import Terminal
from se_inject.commands import request
from se_inject.commands.request import InputRequest, ModelRequest, RulesRequest
from se_inject.hashing import parse_sha256
from se_inject.models.request import WeightsRequest, flag, parse_model_args
from se_inject.types import InputKind


def ratio(value: float) -> float:
    if not (math.isfinite(value) and value >= 1 / 8):
        raise ValueError(f"{value:g} is not a number from 0.125 on; 16 makes 256 channels 16")
    return value


def parsed(read: Callable[[Any], Any]) -> Callable[..., Any]:
    """A callback that reads the value of an option; ``read`` raises a refusal, or ``ValueError``."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return None if value is None else read(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from error

    return callback


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
    from se_inject.rules.schema import PLACEMENTS
    from se_inject.types import INITS

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
# The type of a field -> its option, a text where it is not here; what is particular to a field, by its name.
TYPES: dict[Any, dict[str, Any]] = {
    bool: {"is_flag": True},
    int: {"type": int, "show_default": True},
    int | None: {"type": click.IntRange(min=0)},
    float | None: {"type": float},
    Path | None: {"type": click.Path(path_type=Path)},
    InputKind | None: {"type": click.Choice(get_args(InputKind))},
    tuple[str, ...]: {"multiple": True},
    Mapping[str, Any]: {"multiple": True, "callback": parsed(parse_model_args)},
}
PARTICULAR: dict[str, dict[str, Any]] = {
    "input_size": {"callback": parsed(request.sides)},
    "block_args": {"callback": parsed(lambda pairs: parse_model_args(pairs, "--block-arg", "gate=hardsigmoid"))},
    "ratio": {"callback": parsed(ratio)},
    "sha256": {"callback": parsed(parse_sha256)},
    "stages": {"callback": parsed(lambda text: request.numbers(text, "--stages", "3,4"))},
    "budget": {"callback": parsed(request.shares)},
    **{name: {"shell_complete": complete} for name in ("rules", "placement", "block", "init")},
}


def of_fields(part: type, section: str, *names: str) -> Callable[..., Any]:
    """An option for each of these fields of a part of a request; where none is named, for all that have a sentence."""
    hints = get_type_hints(part)
    fields = [f for f in dataclasses.fields(part) if f.metadata and f.name in (names or hints)]
    return options(*(_of_field(field, hints[field.name], section) for field in fields))


def _of_field(field: dataclasses.Field[Any], kind: Any, section: str) -> Callable[..., Any]:
    names = f"{flag(field)}/--no-{field.name}" if kind == bool | None else flag(field)
    default = () if field.default is dataclasses.MISSING else field.default
    asked = {"default": default, **TYPES.get(kind, {}), **PARTICULAR.get(field.name, {})}
    about = {"help": field.metadata["doc"], "metavar": field.metadata["metavar"]}
    return click.option(names, field.name, cls=Option, section=section, **asked, **about)


input_options = of_fields(InputRequest, "Model")
model_options = options(
    click.argument("model", shell_complete=complete), of_fields(WeightsRequest, "Model"), input_options
)
model_args = of_fields(WeightsRequest, "Model", "model_args")
rule_options = options(of_fields(RulesRequest, "Rules"), of_fields(ModelRequest, "Rules"))
base_options = options(
    of_model(
        "--model", metavar="MODEL", help="pkg.module:factory of the base model, if it is not from timm or torchvision."
    ),
    model_args,
    of_model(
        "--block", multiple=True, metavar="pkg.mod:Class", expose_value=False, callback=register,
        help="A class that the plan names as a block; repeatable.",
    ),
)  # fmt: skip


replace_options = options(
    of_output("--force", is_flag=True, help="Replace an earlier output, unless you changed or added something in it."),
    of_output(
        "--discard-changes", is_flag=True, help="Replace it all the same: what you changed or added there is lost."
    ),
)


def output_options(steps: int = 8) -> Callable[..., Any]:
    """``--json`` and ``--quiet``. They make the ``screen`` that a command is called with; ``steps``: how many it shows,
    at most: load, plan, reference, cost before, splice, cost after, checks, write."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @of_output("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
        @of_output("-q", "--quiet", is_flag=True, help="Print nothing but errors, and what --json asks for.")
        @functools.wraps(command)
        def run(as_json: bool, quiet: bool, **given: Any) -> None:
            with Terminal(quiet=quiet, as_json=as_json, steps=steps) as screen:
                command(screen=screen, **given)

        return run

    return decorate
