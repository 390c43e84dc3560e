"""What others need to know of a block: it says so itself, in the ``BLOCK`` at the end of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from se_inject.blocks.parts import GATES, LAYOUTS
from se_inject.types import INITS, Reason, Site

HIGHEST = {"Sigmoid": 1.0, "Hardsigmoid": 1.0, "TanhPlusOne": 2.0}  # of a gate's range, which starts at 0
KNOWN = tuple(GATES.values())


@dataclass(frozen=True)
class Gate:
    """Where one value for each channel is seen: in the output of ``module``, by ``follow``, from 0 to ``highest``."""

    module: nn.Module
    follow: Callable[[torch.Tensor], torch.Tensor]
    highest: float


@dataclass(frozen=True)
class Timm:
    """A block that timm builds under the same name: our ``arguments`` for what it builds by the name alone, and the
    layer that is linear in the squeezed values (empty: none)."""

    arguments: dict[str, Any]
    linear: str = ""


def own_gate(block: nn.Module) -> Gate | None:
    """The gate of a block with ``gate`` and ``gain``; None when it has no such module."""
    gate, gain = getattr(block, "gate", None), getattr(block, "gain", 1.0)
    if not isinstance(gate, KNOWN) or not isinstance(gain, int | float):
        return None
    return Gate(gate, lambda t: t * gain, HIGHEST[type(gate).__name__] * gain)


def no_refusal(site: Site, init: str, kwargs: dict[str, Any]) -> Reason | None:
    return None


@dataclass(frozen=True)
class Block:
    module: type[nn.Module]
    resolve: Callable[[Site, str, dict[str, Any]], dict[str, Any]]  # site, init, options -> constructor arguments
    options: Mapping[str, str]  # names that rules may set -> what they mean
    paper: str
    layouts: tuple[str, ...] = LAYOUTS  # empty: any, as `refusal` finds out
    inits: tuple[str, ...] = INITS
    gate: Callable[[Any], Gate | None] = own_gate
    timm: Timm | None = None
    refusal: Callable[[Site, str, dict[str, Any]], Reason | None] = field(default=no_refusal)  # site, init, arguments
