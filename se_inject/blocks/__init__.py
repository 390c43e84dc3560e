"""The attention blocks, one file each, and the table of them.

A block is an ``nn.Module`` class whose first argument is ``channels``, whose other arguments are keyword-only, and
whose output has the shape of its input. Its file needs torch alone, because ``modeling.py`` carries a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from se_inject.blocks import squeeze_excite
from se_inject.types import Site

INITS = ("identity", "absorb", "paper")


@dataclass(frozen=True)
class Block:
    """What the planner needs to know of a block."""

    module: type[nn.Module]
    resolve: Callable[[Site, str, dict[str, Any]], dict[str, Any]]  # site, init, options -> constructor arguments
    options: tuple[str, ...]  # names that rules may set
    layouts: tuple[str, ...]
    inits: tuple[str, ...]
    paper: str


BLOCKS: dict[str, Block] = {
    "se": Block(
        squeeze_excite.SqueezeExcite,
        squeeze_excite.resolve,
        squeeze_excite.OPTIONS,
        ("NCHW",),
        INITS,
        "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507",
    ),
}
