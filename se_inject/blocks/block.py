"""What the planner needs to know of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from se_inject.types import Site

INITS = ("identity", "absorb", "paper")


def no_refusal(site: Site, init: str, kwargs: dict[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Block:
    module: type[nn.Module]
    resolve: Callable[[Site, str, dict[str, Any]], dict[str, Any]]  # site, init, options -> constructor arguments
    options: tuple[str, ...]  # names that rules may set
    layouts: tuple[str, ...]  # empty: any, as `refusal` finds out
    inits: tuple[str, ...]
    paper: str
    refusal: Callable[[Site, str, dict[str, Any]], str] = no_refusal  # site, init, arguments -> why not, or ""
