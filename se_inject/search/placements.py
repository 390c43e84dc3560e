"""Where a block can stand, one function for each placement: by data flow alone, no class or attribute names.

Each takes the flow of the whole forward and the graph of one call, and yields the values at which the placement is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from se_inject.search.candidates import Candidate, Flow, area, channels, is_map
from se_inject.search.flow import Join, end, gated, gated_next
from se_inject.search.ops import PRODUCTS, Op, chain, channel_axis, data, depth, gate, holds_gate, passes, result, shape
from se_inject.search.trace import Call


def standard(flow: Flow, call: Call) -> Iterator[Candidate]:
    """End of the residual branch, before drop path, layer scale and the addition (SE-ResNet)."""
    for join in flow.joins[call]:
        for branch in join.residual:
            node = end(branch)
            if node is None:
                continue
            entering = channels(join.fork) if join.fork is not None else channels(join.shortcuts[0].operand)
            holds = next((f"already gated by {place}" for n in sorted(branch.nodes) if (place := holds_gate(n))), "")
            yield Candidate("standard", call, node, entering, join, gated=gated(branch.operand), holds=holds)


def inner(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the spatial convolution of a block, its norm and activation, before the 1x1 convolution that follows
    (SE_3x3, MBConv, RegNetY)."""
    for node in call.graph.nodes:
        layer = _unit(node)
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


def _unit(node: fx.Node) -> Op | None:
    """The convolution of a node that is one convolution with its norm, activation and padding."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    ops = chain(node)
    layers = [o for o in ops if o.kind == "conv"]
    rest = {o.kind for o in ops} - {"conv", "norm", "act", "pass", "pad", "scale", "bias", "pool", "blur", "permute"}
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


def pre(flow: Flow, call: Call) -> Iterator[Candidate]:
    """Start of the residual branch: what its first operation takes, and not what the shortcut takes (SE-PRE)."""
    for join in flow.joins[call]:
        for branch in join.residual:
            starts = {join.fork} if join.fork is not None else {n for n in branch.nodes if n.op == "placeholder"}
            starts |= {n for b in branch.nodes for n in data(b) if join.fork is None and n.op == "placeholder"}
            firsts = [n for n in sorted(branch.nodes) if starts & set(data(n))]
            if len(starts) == 1 and len(firsts) == 1:
                start = next(iter(starts))
                yield Candidate("pre", call, start, channels(start), join, user=firsts[0])


def post(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the addition of a residual block and its activation (SE-POST)."""
    for join in flow.joins[call]:
        entering = channels(join.fork or join.shortcuts[0].operand)
        place = _behind(join.node, _acts)
        yield Candidate("post", call, place, entering, join, gated=gated(place) or gated_next(place))


def identity(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the shortcut, before the addition (SE-Identity)."""
    for join in flow.joins[call]:
        for branch in join.shortcuts:
            entering = channels(join.fork or branch.operand)
            user = next(iter(n for n in branch.operand.users if n is join.node or n in join.parts), None)
            if user is not None:
                yield Candidate("identity", call, branch.operand, entering, join, user=user)


def conv(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After each convolution of a plain chain, with its norm and activation (SE-VGG)."""
    if call.node is not None and _unit(call.node) is not None:
        return  # the whole call is one such unit: its caller sees it
    for node in call.graph.nodes:
        layer = _unit(node)
        if layer is None or flow.branched(call, node) or area(node) == 1:
            continue  # (a map of one position belongs to a squeeze, or to the classifier)
        place = _behind(node, _tail)
        reason = gated(place) or gated_next(place)
        yield Candidate("conv", call, place, layer.inputs, None, layer.kernel, layer.depthwise, gated=reason)


def concat(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the channel concatenation of branches with a common fork (SE-Inception), or after the 1x1 convolution that
    fuses them right away (one-shot aggregation)."""
    if call.node is not None and _unit(call.node) is not None:
        return  # the whole call is one convolution (MixConv)
    for group in flow.concats[call]:
        if flow.beside(call, group.node, but=group) is not None:
            continue  # inside a branch of another: once for each multi-branch block
        where, place = _fused(call, group.node)
        around = flow.around(call, group.node)
        entering = channels(group.fork or place)
        yield Candidate("concat", where, place, entering, around, gated=gated(place) or gated_next(place), group=group)


def _fused(call: Call, node: fx.Node) -> tuple[Call, fx.Node]:
    """Behind the 1x1 convolution that directly follows a concatenation, in the same forward or in its caller's."""
    where, value = call, node
    while result(where) is value and (outside := where.node) is not None and where.parent is not None:
        where, value = where.parent, outside
    user = next(iter(value.users)) if len(value.users) == 1 else None
    layer = _unit(user) if user is not None else None
    if user is None or layer is None or not layer.pointwise or chain(user)[0].kind != "conv":
        return call, node
    return where, _behind(user, _tail)


def sums(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After a sum of branches of equal weight, before its activation (RepVGG)."""
    for join in flow.sums[call]:
        if any(branch.weight for branch in join.branches) and not _summed(flow, call, join.node):
            around = flow.around(call, join.node)
            yield Candidate(
                "sum", call, join.node, channels(join.fork or join.node), around, gated=gated_next(join.node)
            )


def stage(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the last block before the resolution drops."""
    for node in call.graph.nodes:
        if node.op != "call_module" or len(shape(node)) != 4 or depth(node) < 2 or channel_axis(node) != 1:
            continue
        drops = [u for u in node.users if u.op.startswith("call") and (len(shape(u)) == 2 or area(u) < area(node))]
        if drops and flow.around(call, node) is None:
            yield Candidate("stage", call, node, channels(node), gated=gated(node) or gated_next(node))


def network_input(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the network's input, for a spatial transformer."""
    for node in call.graph.nodes:
        if node.op == "placeholder" and call.parent is None and len(shape(node)) == 4 and len(node.users) == 1:
            user = next(iter(node.users))
            yield Candidate("input", call, node, shape(node)[1], user=user, name="stn")


def _summed(flow: Flow, call: Call, node: fx.Node) -> bool:
    """Whether the sum goes into another one, drop path and the like between them looked through."""
    while len(node.users) == 1 and (user := next(iter(node.users))).op.startswith("call") and passes(user):
        node = user
    return any(node is b.operand for join in (*flow.sums[call], *flow.joins[call]) for b in join.branches)


def _behind(node: fx.Node, passes_on: Callable[[fx.Node], bool]) -> fx.Node:
    """The last value of the chain of single users for which ``passes_on`` holds, before trailing identities."""
    place = node
    while len(node.users) == 1 and passes_on(user := next(iter(node.users))):
        node, place = user, (place if passes(user) else user)
    return place


def _acts(node: fx.Node) -> bool:
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"act", "pass"}


def _tail(node: fx.Node) -> bool:
    """Norm and activation behind a convolution."""
    return node.op.startswith("call") and {o.kind for o in chain(node)} <= {"norm", "act", "pass", "scale", "bias"}


PLACEMENTS: dict[str, Callable[[Flow, Call], Iterator[Candidate]]] = {
    "standard": standard,
    "inner": inner,
    "pre": pre,
    "post": post,
    "identity": identity,
    "conv": conv,
    "concat": concat,
    "sum": sums,
    "stage": stage,
    "input": network_input,
}
