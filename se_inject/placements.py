"""Where a block can stand, one function for each placement: by data flow alone, no class or attribute names.

Each takes the flow of the whole forward and the graph of one call, and yields the values at which the placement is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from se_inject.candidates import Candidate, Flow, channels
from se_inject.flow import Join, end, gated
from se_inject.ops import Op, chain, data, gate, passes
from se_inject.trace import Call


def standard(flow: Flow, call: Call) -> Iterator[Candidate]:
    for join in flow.joins[call]:
        for branch in join.residual:
            node = end(branch)
            if node is None:
                continue
            entering = channels(join.fork) if join.fork is not None else channels(join.shortcuts[0].operand)
            yield Candidate("standard", call, node, entering, join, gated=gated(branch.operand))


def inner(flow: Flow, call: Call) -> Iterator[Candidate]:
    for node in call.graph.nodes:
        layer = _unit(node)
        if layer is None or not layer.spatial:
            continue
        place, follower, gated_by = _follow(node)
        if follower is None:
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


def _unit(node: fx.Node) -> Op | None:
    """The convolution of a node that is one convolution with its norm, activation and padding."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    ops = chain(node)
    layers = [o for o in ops if o.kind == "conv"]
    rest = {o.kind for o in ops} - {"conv", "norm", "act", "pass", "pad", "scale", "bias", "pool", "blur"}
    return layers[0] if len(layers) == 1 and not rest else None


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
        layer = _unit(user) if user.op != "output" else None
        if layer is not None:
            return place, (layer if layer.pointwise else None), gated_by
        kinds = {o.kind for o in chain(user)} if user.op != "output" else {"output"}
        blurs = "blur" in kinds and kinds <= {"blur", "pad"}
        if not blurs and not kinds <= {"norm", "act", "pass", "scale", "bias", "gate"}:
            break
        if "gate" in kinds:
            gated_by = f"already gated by {user.meta.get('path') or user.name}"
        if not passes(user) and "gate" not in kinds and not blurs and not gated_by:
            place = user
        current = user
    return place, None, gated_by


def _gates(node: fx.Node) -> list[fx.Node]:
    """Gates written out in the owner's own forward: the value is used for the squeeze and for the product."""
    return [user for user in node.users if gate(user) is node] if len(node.users) > 1 else []


def _block_input(call: Call, node: fx.Node, layer: Op, join: Join | None) -> int:
    """Channels that enter the block: those before the 1x1 expansion, if the block begins with one."""
    start = _start(node)
    before = _unit(start) if start is not None else None
    if start is not None and before is not None and before.pointwise:
        source = _start(start)
        if source is None or (join is not None and source is join.fork):
            return before.inputs
    return layer.inputs


def _start(node: fx.Node) -> fx.Node | None:
    """The layer that feeds ``node``, norms and activations skipped; None when that is the graph's argument."""
    while True:
        sources = data(node)
        if len(sources) != 1 or sources[0].op == "placeholder":
            return None
        node = sources[0]
        if not {o.kind for o in chain(node)} <= {"norm", "act", "pass", "scale", "bias"}:
            return node


PLACEMENTS: dict[str, Callable[[Flow, Call], Iterator[Candidate]]] = {
    "standard": standard,
    "inner": inner,
}
