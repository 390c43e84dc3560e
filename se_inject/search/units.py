"""Convolution units: a convolution with its norm and activation, and the end of such a chain."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from se_inject.search.chains import chain, passes
from se_inject.search.words import Op


def unit(node: fx.Node) -> Op | None:
    """The convolution of a node that is one convolution with its norm, activation and padding."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    ops = chain(node)
    layers = [o for o in ops if o.kind == "conv"]
    rest = {o.kind for o in ops} - {"conv", "norm", "act", "pass", "pad", "scale", "bias", "pool", "blur", "permute"}
    return layers[0] if len(layers) == 1 and not rest else None


def behind(node: fx.Node, passes_on: Callable[[fx.Node], bool]) -> fx.Node:
    """The last value of the chain of single users for which ``passes_on`` holds, before trailing identities."""
    place = node
    while len(node.users) == 1 and passes_on(user := next(iter(node.users))):
        node, place = user, (place if passes(user) else user)
    return place


def acts(node: fx.Node) -> bool:
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"act", "pass"}


def tail(node: fx.Node) -> bool:
    """Norm and activation behind a convolution."""
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"norm", "act", "pass", "scale", "bias"}
