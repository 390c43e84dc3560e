"""Where a block can stand, one file for each placement: by data flow alone, no class or attribute names.

``find`` in a file takes the flow of the whole forward and the graph of one call, and yields the values at which the
placement is; its docstring is the placement's sentence. The table is read without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from se_inject.search.candidates import Candidate, Flow
    from se_inject.trace.calls import Call


class Picture(NamedTuple):
    """What is drawn of a placement, left to right; ``*`` is the new block."""

    branch: tuple[str, ...]
    shortcut: tuple[str, ...] | None  # empty: a plain wire, None: the block has no join
    behind: tuple[str, ...] = ()  # the join
    join: str = "+"


PLACEMENTS = {  # name, which is that of the file, -> its picture
    "standard": Picture(("layers", "*"), ()),
    "inner": Picture(("spatial", "*", "1x1"), None),
    "early": Picture(("1x1", "*", "spatial"), ()),
    "pre": Picture(("*", "layers"), ()),
    "post": Picture(("layers",), (), ("*",)),
    "identity": Picture(("layers",), ("*",)),
    "conv": Picture(("conv", "*"), None),
    "concat": Picture(("branch",), ("branch",), ("*",), "cat"),
    "sum": Picture(("branch",), ("branch",), ("*",)),
    "stage": Picture(("stage", "*", "next"), None),
    "input": Picture(("*", "network"), None),
}


def finder(name: str) -> Callable[[Flow, Call], Iterator[Candidate]]:
    """What finds the sites of a placement."""
    found: Callable[[Flow, Call], Iterator[Candidate]] = import_module(f"{__name__}.{name}").find
    return found


def sentence(name: str) -> str:
    """Where a placement is, in one line."""
    return " ".join((finder(name).__doc__ or "").split())
