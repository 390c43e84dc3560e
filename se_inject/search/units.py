"""Convolution units: a convolution with its norm and activation, and the end of such a chain."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from se_inject.search.axes import channels
from se_inject.search.chains import chain, longest, passes
from se_inject.search.joins import Join
from se_inject.search.ops import Op, op

SIDE = {"conv", "norm", "act", "pass", "pad", "scale", "bias", "slice", "add"}  # what such a branch may hold


def unit(node: fx.Node) -> Op | None:
    """The convolution of a node that is one convolution with its norm, activation and padding."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    ops = chain(node)
    layers = [o for o in ops if o.kind == "conv"]
    rest = {o.kind for o in ops} - {"conv", "norm", "act", "pass", "pad", "scale", "bias", "pool", "blur", "permute"}
    return layers[0] if len(layers) == 1 and not rest else None


def side_by_side(join: Join) -> Op | None:
    """Branches of one convolution at most, all of them depthwise or all 1x1, summed or concatenated, are one such."""
    nodes = {n for branch in join.branches for n in branch.nodes if n.op != "placeholder"}
    ops = [o for n in nodes for o in chain(n)]
    layers = [o for o in ops if o.kind == "conv"]
    if join.fork is None or join.parted or not {o.kind for o in ops} <= SIDE or longest(sorted(nodes)) != 1:
        return None
    inputs, outputs, kernel = channels(join.fork), channels(join.node), max(o.kernel for o in layers)
    if all(o.depthwise for o in layers):
        return Op("conv", "", "", kernel, inputs, inputs, inputs)
    if all(o.pointwise for o in layers) and op(join.node).kind == "add":
        return Op("conv", "", "", kernel, inputs, outputs)
    return None


def behind(node: fx.Node, passes_on: Callable[[fx.Node], bool]) -> fx.Node:
    """The last value of the chain of single users for which ``passes_on`` holds, before trailing identities."""
    place = node
    while len(node.users) == 1 and passes_on(user := next(iter(node.users))):
        node, place = user, (place if passes(user) else user)
    return place


def is_activation(node: fx.Node) -> bool:
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"act", "pass"}


def is_norm_or_activation(node: fx.Node) -> bool:
    """Norm and activation behind a convolution, and a gate."""
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {
        "norm",
        "act",
        "pass",
        "scale",
        "bias",
        "gate",
    }


def is_gate(node: fx.Node) -> bool:
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"gate", "pass"}
