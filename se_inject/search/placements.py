"""Where a block can stand, one function for each placement: by data flow alone, no class or attribute names.

Each takes the flow of the whole forward and the graph of one call, and yields the values at which the placement is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from se_inject.search.axes import area, channel_axis, channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import chain, depth, gate, holds_gate, passes
from se_inject.search.gated import begins_gated, by_gate, gated, gated_next
from se_inject.search.inner import early, inner
from se_inject.search.joins import end
from se_inject.search.ops import data, result, shape
from se_inject.search.units import behind, is_activation, is_gate, is_norm_or_activation, unit
from se_inject.trace.calls import Call


def standard(flow: Flow, call: Call) -> Iterator[Candidate]:
    """End of the residual branch, before drop path, layer scale and the addition (SE-ResNet); of a dense block's layer,
    before the concatenation."""
    for join in (*flow.joins[call], *flow.dense[call]):
        for branch in join.residual:
            node = end(branch)
            if node is None:
                continue
            if join in flow.dense[call]:
                entering = sum(channels(shortcut.operand) for shortcut in join.shortcuts)
            else:
                entering = channels(join.fork) if join.fork is not None else channels(join.shortcuts[0].operand)
            on_branch = next((by_gate(place) for n in sorted(branch.nodes) if (place := holds_gate(n))), None)
            yield Candidate(
                "standard", call, node, entering, join, gated=gated(branch.operand), gate_on_branch=on_branch
            )


def pre(flow: Flow, call: Call) -> Iterator[Candidate]:
    """Start of the residual branch: what its first operation takes, and not what the shortcut takes (SE-PRE)."""
    for join in flow.joins[call]:
        for branch in join.residual:
            starts = {join.fork} if join.fork is not None else {n for n in branch.nodes if n.op == "placeholder"}
            starts |= {n for b in branch.nodes for n in data(b) if join.fork is None and n.op == "placeholder"}
            firsts = [n for n in sorted(branch.nodes) if starts & set(data(n))]
            firsts = [n for n in firsts if gate(n) in starts] or firsts  # a gate takes it twice: squeeze and product
            if len(starts) == 1 and len(firsts) == 1:
                start, first = next(iter(starts)), firsts[0]
                yield Candidate("pre", call, start, channels(start), join, gated=begins_gated(first), user=first)


def post(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the addition of a residual block and its activation (SE-POST)."""
    for join in flow.joins[call]:
        entering = channels(join.fork or join.shortcuts[0].operand)
        place = behind(join.node, is_activation)
        yield Candidate("post", call, place, entering, join, gated=gated(place) or gated_next(place))


def identity(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the shortcut, before the addition (SE-Identity)."""
    for join in flow.joins[call]:
        for branch in join.shortcuts:
            entering = channels(join.fork or branch.operand)
            user = next(iter(n for n in branch.operand.users if n is join.node or n in join.parts), None)
            own = any(o.kind == "gate" for n in branch.nodes for o in chain(n))  # and not one before the fork
            reason = gated(branch.operand) if own else None
            if user is not None:
                yield Candidate("identity", call, branch.operand, entering, join, gated=reason, user=user)


def conv(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After each convolution of a plain chain, with its norm and activation (SE-VGG)."""
    if call.node is not None and unit(call.node) is not None:
        return  # the whole call is one such unit: its caller sees it
    for node in call.graph.nodes:
        layer = unit(node)
        if layer is None or flow.branched(call, node) or area(node) == 1:
            continue  # (a map of one position belongs to a squeeze, or to the classifier)
        place = behind(node, is_norm_or_activation)
        reason = gated(place) or gated_next(place)
        yield Candidate("conv", call, place, layer.inputs, None, layer.kernel, layer.depthwise, gated=reason)


def concat(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the channel concatenation of branches with a common fork (SE-Inception), or after the 1x1 convolution that
    fuses them right away (one-shot aggregation)."""
    if call.node is not None and unit(call.node) is not None:
        return  # the whole call is one convolution (MixConv)
    for group in flow.concats[call]:
        if flow.concatenated(call, group.node, but=group) is not None:
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
    layer = unit(user) if user is not None else None
    if user is None or layer is None or not layer.pointwise or chain(user)[0].kind != "conv":
        return call, node
    return where, behind(user, is_norm_or_activation)


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
        place = behind(node, is_gate)
        drops = [u for u in place.users if u.op.startswith("call") and (len(shape(u)) == 2 or area(u) < area(node))]
        if drops and flow.around(call, node) is None:
            yield Candidate("stage", call, place, channels(place), gated=gated(place) or gated_next(place))


def network_input(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the network's input, for a spatial transformer."""
    for node in call.graph.nodes:
        if node.op == "placeholder" and not call.path and len(shape(node)) == 4 and len(node.users) == 1:
            user = next(iter(node.users))
            yield Candidate("input", call, node, shape(node)[1], gated=begins_gated(user), user=user, name="stn")


def _summed(flow: Flow, call: Call, node: fx.Node) -> bool:
    """Whether the sum goes into another one, drop path and the like between them looked through."""
    while len(node.users) == 1 and (user := next(iter(node.users))).op.startswith("call") and passes(user):
        node = user
    return any(node is b.operand for join in (*flow.sums[call], *flow.joins[call]) for b in join.branches)


PLACEMENTS: dict[str, Callable[[Flow, Call], Iterator[Candidate]]] = {
    "standard": standard,
    "inner": inner,
    "early": early,
    "pre": pre,
    "post": post,
    "identity": identity,
    "conv": conv,
    "concat": concat,
    "sum": sums,
    "stage": stage,
    "input": network_input,
}
