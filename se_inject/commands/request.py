"""What is asked of a command about a model, as data: by the command line, by a line of a manifest, or in Python.

Every default, and every sentence of ``--help`` on these options, stands here or in ``WeightsRequest``, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from se_inject.errors import RulesError
from se_inject.models.request import WeightsRequest, flag, option
from se_inject.types import InputKind

LARGEST_INPUT = 1 << 28  # values of one sample: 1 GiB

AXES = ("rules", "placement", "block", "ratio", "init")  # of which a sweep takes several values


@dataclass(frozen=True)
class InputRequest:
    """What the model is run on."""

    input_size: tuple[int, ...] | None = option(
        None, "Size of one input; default: the model's own configuration.", "C,H,W"
    )
    input_kind: InputKind | None = option(
        None, "One batch, a list of images (detection), two batches (optical flow); default: what the model takes."
    )


@dataclass(frozen=True)
class RulesRequest:
    """Rules, and what is changed in them."""

    rules: Any = option(  # in Python and manifests also a mapping, or rules that are read already
        None, "YAML file of rules, or a preset: `se-inject list presets`.", "FILE|PRESET"
    )
    placement: tuple[str, ...] = option((), "auto (default), standard, ...: `se-inject list placements`.", "NAME")
    block: str | None = option(None, "Which block: `se-inject list blocks`, or pkg.mod:Class.  [default: se]", "NAME")
    block_args: Mapping[str, Any] = option(dict, "Option of the block: gate=hardsigmoid.", "KEY=VALUE", "--block-arg")
    ratio: float | None = option(None, "Channels / reduced channels: 16.", "R")
    init: str | None = option(None, "identity (default, bit-equal start), absorb, paper.", "NAME")
    include: tuple[str, ...] = option((), "Paths to take: glob, or re:... ; repeatable.", "PATTERN")
    exclude: tuple[str, ...] = option((), "Paths to leave out; repeatable.", "PATTERN")
    min_channels: int | None = option(None, "Leave out narrower sites.", "N")
    stages: tuple[int, ...] | None = option(None, "Only these stages (1 is the largest resolution).", "N,N")
    budget: Mapping[str, Any] | None = option(None, "Choose sites and ratios under params=2%,macs=1%.", "KEY=SHARE")
    again: bool = option(False, "Insert at places that are gated already.")

    def asked(self) -> list[str]:
        """The options that say something."""
        return [flag(field) for field in fields(self) if getattr(self, field.name)]


@dataclass(frozen=True)
class ModelRequest:
    """A model with its weights, what it is run on, and which blocks it is to get."""

    weights: WeightsRequest
    inputs: InputRequest = field(default_factory=InputRequest)
    rules: RulesRequest = field(default_factory=RulesRequest)
    seed: int = option(0, "Of new weights and of the probe.", "N")

    @classmethod
    def of(cls, **values: Any) -> ModelRequest:
        """From values by the names of the fields of all parts; a name that no part has is a ``TypeError``.

        >>> ModelRequest.of(model="timm:resnet18", random_init=True, placement=("standard",)).weights.random_init
        True
        """
        parts = {"weights": WeightsRequest, "inputs": InputRequest, "rules": RulesRequest}
        made = {
            name: part(**{f.name: values.pop(f.name) for f in fields(part) if f.name in values})
            for name, part in parts.items()
        }
        return cls(**made, **values)


def numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """``3,4`` or ``3x4`` as whole numbers above 0. Raises ``RulesError`` that shows the ``option`` with an example."""
    try:
        found = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise RulesError(f"{option} {text!r}: expected whole numbers above 0, such as {option} {example}.")
    return found


def sides(text: str) -> tuple[int, ...]:
    """The sides in ``--input-size``. Raises ``RulesError``."""
    size = numbers(text, "--input-size", "3,224,224")
    if math.prod(size) > LARGEST_INPUT:
        raise RulesError(f"--input-size {text}: {math.prod(size):,} values, more than {LARGEST_INPUT:,}.")
    return size


def shares(text: str) -> dict[str, str]:
    """``params=2%,macs=1%`` as a mapping, which rules check."""
    return dict(part.partition("=")[::2] for part in text.split(","))
