"""The way from a convolution through norm and activation to the next layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from se_inject.search.candidates import Flow
from se_inject.search.chains import chain, gate, passes
from se_inject.search.gated import by_gate
from se_inject.search.ops import PRODUCTS, SIGMOIDS, Op, data, op, result, shape
from se_inject.search.units import side_by_side, unit
from se_inject.trace.calls import Call, record_of
from se_inject.types import Reason


@dataclass
class Way:
    """Where the way from a convolution ends."""

    call: Call
    place: fx.Node  # the last value before the next layer, in the graph of ``call``
    layer: Op | None = None  # that layer, if it is a convolution
    gated: Reason | None = None  # the gate met on the way


def follow(flow: Flow, call: Call, node: fx.Node, depthwise: bool) -> Way:
    """From a convolution, or a sum or concatenation of some, to the next layer.

    A full convolution may be a block's last layer, and the next 1x1 convolution another block's first: only behind a
    depthwise one the way goes on in the caller, in a child, and past the shortcut around the 1x1 convolution.
    """
    way, here, current, inside = Way(call, node), call, node, False
    while True:
        if gates := _written_out(current):
            current = gates[0]
            way.gated = by_gate(current)
            continue
        user = _only_user(flow, here, current, depthwise)
        layer = unit(user) if user is not None else _pointwise(flow, here, current) if depthwise else None
        if layer is not None or user is None:
            way.layer = layer
            return way
        if user.op == "output":
            outer = _outside(here, current) if depthwise and not inside else None
            if outer is None:
                return way
            here, current = outer
            if not way.gated:
                way.call, way.place = outer
        elif _through(user, current, depthwise):
            if any(o.kind == "gate" for o in chain(user)):
                way.gated = by_gate(user)
            if not passes(user) and not way.gated and not inside:
                way.place = user
            current = user
        else:
            inner = _entered(user, current) if depthwise else None
            if inner is None:
                return way
            (here, current), inside = inner, True


def _written_out(node: fx.Node) -> list[fx.Node]:
    """Gates written out in the owner's own forward: the value is used for the squeeze and for the product."""
    return [user for user in node.users if gate(user) is node] if len(node.users) > 1 else []


def _only_user(flow: Flow, call: Call, node: fx.Node, depthwise: bool) -> fx.Node | None:
    """The one user of a value; that the value is also the shortcut around this user does not count for a depthwise
    convolution (RepViT: a block that mixes positions, then a residual one that mixes channels)."""
    users = list(node.users)
    if len(users) > 1 and depthwise:
        around = [join for join in flow.joins[call] if join.fork is node and any(b.direct for b in join.shortcuts)]
        users = [user for user in users if not any(user is join.node or user in join.parts for join in around)]
    return users[0] if len(users) == 1 else None


def _pointwise(flow: Flow, call: Call, node: fx.Node) -> Op | None:
    """The 1x1 convolutions side by side that take the value (MobileOne)."""
    layers = [side_by_side(join) for join in flow.sums[call] if join.fork is node]
    return next((layer for layer in layers if layer is not None and layer.pointwise), None)


def _outside(call: Call, node: fx.Node) -> tuple[Call, fx.Node] | None:
    """The value in the caller's graph, when the call returns it."""
    if result(call) is node and call.node is not None and call.parent is not None:
        return call.parent, call.node
    return None


def _entered(user: fx.Node, node: fx.Node) -> tuple[Call, fx.Node] | None:
    """The value in the graph of the child that takes it."""
    child = record_of(user).call
    inside = [n for n in child.graph.nodes if record_of(n).outer is node] if child is not None else []
    return (child, inside[0]) if child is not None and len(inside) == 1 else None


def _through(user: fx.Node, value: fx.Node, depthwise: bool) -> bool:
    """Whether what takes the value is no layer: norm, activation, gate, anti-aliasing and the like."""
    ops = chain(user)
    if _blurs(ops) or (depthwise and _modulates(user, value)):
        return True
    # A norm of the last axis, there and back; x[:, :n] of n channels.
    moves = {"permute", "slice"} if shape(user) == shape(value) else set()
    return {o.kind for o in ops} <= {"norm", "act", "pass", "scale", "bias", "gate", *moves}


def _blurs(ops: list[Op]) -> bool:
    """Anti-aliasing before a stride: a fixed filter, or an average."""
    blurs = [o for o in ops if o.kind == "blur" or o.name in ("AvgPool2d", "avg_pool2d")]
    return bool(blurs) and all(o.kind == "pad" or o in blurs for o in ops)


def _modulates(node: fx.Node, value: fx.Node) -> bool:
    """Whether ``node`` is the value times a map of its own size that a sigmoid made of something else (GhostNetV2)."""
    others = [n for n in data(node) if n is not value]
    if op(node).kind != "mul" or len(others) != 1 or shape(node) != shape(value):
        return False
    other = others[0]
    while op(other).kind in ("resample", "expand") and len(data(other)) == 1:
        other = data(other)[0]
    return chain(other)[-1].name in SIGMOIDS


def attended(flow: Flow, call: Call, node: fx.Node) -> bool:
    """Whether the next layer makes the keys or values of an attention: that is no block's projection."""
    layers, here = 0, call
    while True:
        while (user := _only_user(flow, here, node, depthwise=True)) is not None and user.op != "output":
            ops = chain(user)
            if any(o.name in PRODUCTS for o in ops):
                return True
            layers += sum(o.kind == "conv" for o in ops)
            if layers > 1 or any(o.kind in ("add", "mul", "cat", "act", "block", "other", "linear") for o in ops):
                return False
            node = user
        if result(here) is not node or here.node is None or here.parent is None:
            return False
        node, here = here.node, here.parent
