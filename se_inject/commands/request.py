"""What the options of the command line say: rules, inputs, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from se_inject.commands.screen import Screen
from se_inject.errors import RulesError, TraceError
from se_inject.inputs import Inputs, dtype_of, from_shape
from se_inject.models.loading import Loaded, blocked_globals, load_model, parse_model_args
from se_inject.rules.schema import read

T = TypeVar("T")

LARGEST_INPUT = 1 << 28  # values of one sample: 1 GiB

DEFAULTS: dict[str, Any] = {  # of all options, for commands and callers that do not offer some
    **dict.fromkeys(("model_arg", "allow_missing", "placement", "block_arg", "include", "exclude"), ()),
    **dict.fromkeys(("pretrained", "random_init", "allow_pickle", "again"), False),
    **dict.fromkeys(("checkpoint", "ema", "input_size", "input_kind", "plan_file"), None),
    **dict.fromkeys(("rules", "block", "ratio", "init", "min_channels", "stages", "budget"), None),
    "seed": 0,
}
RULE_OPTIONS = (
    "rules", "placement", "block", "block_arg", "ratio", "init", "include", "exclude", "min_channels", "stages",
    "budget", "again",
)  # fmt: skip


def rules_from(given: Mapping[str, Any]) -> Any:
    """Rules from a file, with the options of the command line over it."""
    rules = read(given["rules"])
    block = dict(rules.block)
    if given["block"]:
        block = {"name": given["block"]}
    block |= parse_model_args(given["block_arg"], "--block-arg", "gate=hardsigmoid")
    changes: dict[str, Any] = {"block": block} if block else {}
    for name in ("placement", "ratio", "init", "include", "exclude", "min_channels", "again"):
        if given[name]:
            changes[name] = given[name]
    if given["budget"]:
        changes["budget"] = dict(part.partition("=")[::2] for part in given["budget"].split(","))
    if given["stages"]:
        changes["stages"] = _numbers(given["stages"], "--stages", "3,4")
    checked = read(dict(changes))  # the same checks as for a file
    return replace(rules, **{name: getattr(checked, name) for name in changes})


def _numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise RulesError(f"{option} {text!r}: expected whole numbers above 0, such as {option} {example}.")
    return numbers


def inputs_from(given: Mapping[str, Any], loaded: Loaded) -> Inputs | tuple[int, ...] | None:
    """The example inputs: of the size and the kind that were asked for, or that are the model's own."""
    text, kind = given["input_size"], given["input_kind"] or loaded.input_kind
    size = size_from(text) if text else loaded.input_size
    if size is None:
        if kind != "batch":
            raise RulesError(f"--input-kind {kind} needs the size of one image: give --input-size, such as 3,224,224.")
        return None  # the model's own configuration may tell
    return size if kind == "batch" else from_shape(size, dtype_of(loaded.model), given["seed"], kind)


def size_from(text: str) -> tuple[int, ...]:
    """The sides in ``--input-size``. Raises ``RulesError``."""
    size = _numbers(text, "--input-size", "3,224,224")
    if math.prod(size) > LARGEST_INPUT:
        raise RulesError(f"--input-size {text}: {math.prod(size):,} values, more than {LARGEST_INPUT:,}.")
    return size


def load(spec: str, given: Mapping[str, Any], screen: Screen, *, weights_needed: bool) -> Loaded:
    screen.step("load")
    if given["allow_pickle"] and given["checkpoint"] is not None:
        names = blocked_globals(given["checkpoint"])
        if names:
            screen.warn(f"--allow-pickle: {given['checkpoint'].name} runs {', '.join(names)}")
    torch.manual_seed(given["seed"])  # random weights come from the global generator
    return load_model(
        spec,
        model_args=parse_model_args(given["model_arg"]),
        pretrained=given["pretrained"],
        checkpoint=given["checkpoint"],
        random_init=given["random_init"],
        allow_missing=given["allow_missing"],
        allow_factory=True,
        allow_pickle=given["allow_pickle"],
        ema=given["ema"],
        weights_needed=weights_needed,
    )


def without_weights(spec: str, given: Mapping[str, Any], screen: Screen, look: Callable[[Loaded], T]) -> T:
    """What ``look`` finds in a model that holds no data; where its forward needs numbers (NMS, data-dependent shapes),
    in one with random weights."""
    loaded = load(spec, given, screen, weights_needed=False)
    try:
        return look(loaded)
    except TraceError:
        if loaded.source["weights"] != "none":
            raise
        return look(load(spec, {**given, "random_init": True}, screen, weights_needed=False))
