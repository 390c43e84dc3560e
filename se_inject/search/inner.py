"""The placement ``inner``: inside a block, between its spatial convolution and the 1x1 convolution that follows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from se_inject.search.calls import Call
from se_inject.search.candidates import Candidate, Flow, is_map
from se_inject.search.chains import chain, gate, passes
from se_inject.search.flow import Join
from se_inject.search.nodes import data, result, shape
from se_inject.search.units import unit
from se_inject.search.words import PRODUCTS, Op


def inner(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the spatial convolution of a block, its norm and activation, before the 1x1 convolution that follows
    (SE_3x3, MBConv, RegNetY)."""
    for node in call.graph.nodes:
        layer = unit(node)
        if layer is None or not layer.spatial:
            continue
        place, follower, gated_by = _follow(node)
        if follower is None or not is_map(place) or _attended(call, place):
            continue
        join = flow.around(call, node)
        yield Candidate(
            "inner",
            call,
            place,
            _block_input(call, node, layer, join),
            join,
            kernel=layer.kernel,
            depthwise=layer.depthwise,
            projects=follower.outputs <= follower.inputs,
            gated=gated_by,
        )


def _follow(node: fx.Node) -> tuple[fx.Node, Op | None, str]:
    """From a convolution through norm and activation to the next layer: the last value before it, the layer if it is
    a 1x1 convolution, and the gate met on the way."""
    place, gated_by, current = node, "", node
    while len(current.users) == 1 or _gates(current):
        if _gates(current):
            current = _gates(current)[0]
            gated_by = f"already gated by {current.meta.get('path') or current.name}"
            continue
        user = next(iter(current.users))
        layer = unit(user) if user.op != "output" else None
        if layer is not None:
            return place, (layer if layer.pointwise else None), gated_by
        kinds = {o.kind for o in chain(user)} if user.op != "output" else {"output"}
        blurs = user.op != "output" and _blurs(chain(user))
        permutes = {"permute"} if shape(user) == shape(current) else set()  # a norm of the last axis, there and back
        if not blurs and not kinds <= {"norm", "act", "pass", "scale", "bias", "gate", *permutes}:
            break
        if "gate" in kinds:
            gated_by = f"already gated by {user.meta.get('path') or user.name}"
        if not passes(user) and "gate" not in kinds and not gated_by:
            place = user
        current = user
    return place, None, gated_by


def _attended(call: Call, node: fx.Node) -> bool:
    """Whether the next layer makes the keys or values of an attention: that is no block's projection."""
    layers, here = 0, call
    while True:
        while len(node.users) == 1 and (user := next(iter(node.users))).op != "output":
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


def _blurs(ops: list[Op]) -> bool:
    """Anti-aliasing before a stride: a fixed filter, or an average."""
    blurs = [o for o in ops if o.kind == "blur" or o.name in ("AvgPool2d", "avg_pool2d")]
    return bool(blurs) and all(o.kind == "pad" or o in blurs for o in ops)


def _gates(node: fx.Node) -> list[fx.Node]:
    """Gates written out in the owner's own forward: the value is used for the squeeze and for the product."""
    return [user for user in node.users if gate(user) is node] if len(node.users) > 1 else []


def _block_input(call: Call, node: fx.Node, layer: Op, join: Join | None) -> int:
    """Channels that enter the block: those before the 1x1 expansion, if the block begins with one."""
    start = _start(node)
    before = unit(start) if start is not None else None
    if start is not None and before is not None and before.pointwise:
        source = _start(start)
        # An expansion begins the block, whatever stands before it: in the graph of a whole model, the block before.
        if source is None or before.outputs > before.inputs or (join is not None and source is join.fork):
            return before.inputs
    return layer.inputs


def _start(node: fx.Node) -> fx.Node | None:
    """The layer that feeds ``node``, norms and activations skipped; None when that is the graph's argument."""
    while True:
        sources = data(node)
        if len(sources) != 1 or sources[0].op == "placeholder":
            return None
        node = sources[0]
        if not {o.kind for o in chain(node)} <= {
            "norm",
            "act",
            "pass",
            "scale",
            "bias",
            "permute",
            "pool",
            "blur",
            "pad",
        }:
            return node
