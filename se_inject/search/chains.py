"""A node as a chain of operators (convolution, norm, activation, gate, ...), looking into children that are a plain
chain themselves; and what follows from it: what is a gate, how deep a node is, whether it has an activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import fx

from se_inject.search.axes import channel_axis
from se_inject.search.ops import PRODUCTS, REDUCTIONS, SIGMOIDS, Op, data, name_of, op, per_node, result, shape
from se_inject.trace.calls import Call, record_of

FOLDS = ("reshape", "permute", "pad", "pass")


@per_node
def gate(node: fx.Node) -> fx.Node | None:
    """The value that ``node`` gates, or None.

    A gate multiplies (or, as the global context block does, adds) a value with something that a layer or activation
    made from the same value, and that has lost its space on the way: one number for each channel. A spatial gate (one
    number for each position, as in CBAM) counts when a sigmoid made it. Norms divide by statistics: those are no gates.
    """
    if op(node).kind not in ("mul", "add") or len(data(node)) != 2:
        return None
    first, second = data(node)
    for value, factor in ((first, second), (second, first)):
        while op(factor).kind in ("expand", "reshape") and data(factor):
            factor = data(factor)[0]
        if len(shape(value)) < 3 or not _pooled(factor, value):
            continue
        sources = {value, *_origins(value)}
        between = set(_ancestors(factor, sources))
        inside = between - sources
        if len(inside) == len(between) or not any(depth(n) or nonlinear(n) for n in inside):
            continue
        smaller = math.prod(shape(factor)[1:]) < math.prod(shape(value)[1:])
        if smaller or (op(node).kind == "mul" and any(reduces(n) for n in inside)):
            return value
    return None


def _pooled(factor: fx.Node, value: fx.Node) -> bool:
    """One number for each channel (all but batch and one axis are 1 or gone), or a sigmoid for each position."""
    small, large = shape(factor), shape(value)
    if math.prod(small[1:]) > math.prod(large[1:]):
        return False
    wide = [axis for axis, n in enumerate(small) if axis > 0 and n > 1]
    if len(small) >= 2 and len(wide) <= 1 and (len(small) != len(large) or channel_axis(value) in (None, *wide)):
        channels = max(small[1:])
        paths = {large[1] * large[2]} if len(large) == 5 else set()  # (N, paths, C, H, W): one for each path's channel
        return channels > 1 and channels in {*large[1:], *paths}
    if len(small) == len(large) == 5 and all(a in (b, 1) for a, b in zip(small, large, strict=True)):
        return small[3:] == (1, 1) and small[2] > 1
    spatial = len(small) == len(large) and small[1] == 1 and large[1] > 1 and bool(wide)
    return spatial and any(o.name in SIGMOIDS for o in chain(factor))


def _origins(node: fx.Node) -> Iterator[fx.Node]:
    """The value before activations and pass-throughs: RexNet squeezes before its activation, VoVNet after."""
    while len(data(node)) == 1 and {o.kind for o in chain(node)} <= {"act", "pass", "scale"}:
        node = data(node)[0]
        yield node


def _ancestors(node: fx.Node, stop: set[fx.Node]) -> Iterator[fx.Node]:
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if current not in stop:
            todo.extend(data(current))


@per_node
def steps(node: fx.Node) -> tuple[tuple[Op, fx.Node], ...]:
    """The node as operators in order of execution, each with the node (of this or a child's graph) that makes it.

    A child that is a plain chain from its input to its output is looked into; any other is one ``block``.
    """
    if gate(node) is not None:
        return ((Op("gate", name_of(node)), node),)
    own = op(node)
    call = record_of(node).call
    if call is None or own.kind == "gate":
        return ((own, node),)
    found: tuple[tuple[Op, fx.Node], ...] = ()
    current = result(call)
    while current is not None and current.op != "placeholder":
        found = steps(current) + found
        gated = gate(current)
        if gated is None and len(data(current)) != 1:
            return ((_computed(node, call, own) or _side_by_side(call, own) or _no_layer(node, call, own), node),)
        current = gated if gated is not None else data(current)[0]
    if current is None:
        return ((own, node),)
    return found or ((Op("pass", own.name, own.path), node),)


def _computed(node: fx.Node, call: Call, own: Op) -> Op | None:
    """A convolution whose weight the forward makes (CondConv), the samples folded into its groups and out again."""
    last = result(call)
    while last is not None and op(last).kind in FOLDS and len(data(last)) == 1:
        last = data(last)[0]
    if last is None or op(last).kind != "conv" or len(data(last)) < 2:
        return None
    start, weight = data(last)[:2]
    while op(start).kind in FOLDS and len(data(start)) == 1:
        start = data(start)[0]
    if start.op != "placeholder" or len(shape(weight)) != len(shape(start)):
        return None
    (_, inputs, *_), (_, outputs, *_), (_, each, *kernel) = shape(start), shape(node), shape(weight)
    return Op("conv", own.name, own.path, tuple(kernel), inputs, outputs, max(1, inputs // each))


def _side_by_side(call: Call, own: Op) -> Op | None:
    """Convolutions of which each takes a part of the channels, concatenated (MixConv), are one convolution."""
    last = result(call)
    if last is None or op(last).kind != "cat" or channel_axis(last) != 1:
        return None
    layers, starts = [], set()
    for operand in data(last):
        ops = chain(operand)
        layers += [o for o in ops if o.kind == "conv"]
        if len(data(operand)) != 1 or [o.kind for o in ops if o.kind not in ("pad", "pass")] != ["conv"]:
            return None
        start = part = data(operand)[0]
        while op(start).kind == "slice" and data(start):
            start = data(start)[0]
        if start is part:
            return None  # each takes all of it: a block of several branches
        starts.add(start)
    if len(starts) != 1 or next(iter(starts)).op != "placeholder":
        return None
    kernel = max(o.kernel for o in layers)
    inputs, outputs = sum(o.inputs for o in layers), sum(o.outputs for o in layers)
    groups = inputs if all(o.depthwise for o in layers) else 1
    return Op("conv", own.name, own.path, kernel, inputs, outputs, groups)


def _no_layer(node: fx.Node, call: Call, own: Op) -> Op:
    """A child with branches but no layer, which keeps the shape, is a norm or an activation written out by hand."""
    sources = data(node)
    keeps = own.kind == "block" and len(sources) == 1 and shape(sources[0]) == shape(node)
    return Op("norm", own.name, own.path) if keeps and not longest(call.graph.nodes) else own


def chain(node: fx.Node) -> list[Op]:
    """``steps`` without the nodes."""
    return [o for o, _ in steps(node)]


@per_node
def depth(node: fx.Node) -> int:
    """Convolutions and linear layers one after another in a node: its longest path, gates left out."""
    return sum(1 if o.kind in ("conv", "linear") else longest(_inside(o, inner)) for o, inner in steps(node))


def _inside(o: Op, node: fx.Node, kinds: tuple[str, ...] = ("block",)) -> Iterable[fx.Node]:
    """The nodes of the child's graph, where the operator is a child of one of these kinds that is no plain chain."""
    call = record_of(node).call if o.kind in kinds else None
    return call.graph.nodes if call is not None else ()


def longest(nodes: Iterable[fx.Node]) -> int:
    """``depth`` of a set of nodes in order of execution, along its longest path."""
    below: dict[fx.Node, int] = {}
    for node in nodes:
        before = max((below.get(n, 0) for n in data(node)), default=0)
        below[node] = before + (depth(node) if node.op.startswith("call") else 0)
    return max(below.values(), default=0)


@per_node
def nonlinear(node: fx.Node) -> bool:
    """Whether an activation is applied somewhere in the node, or two values are multiplied (attention)."""
    for o, inner in steps(node):
        if o.kind in ("act", "mul") or o.name in PRODUCTS:
            return True
        if any(map(nonlinear, _inside(o, inner, ("block", "norm")))):
            return True
    return False


@per_node
def mixes(node: fx.Node) -> bool:
    """Whether a layer in the node makes new channels out of several, as all but depthwise convolutions do."""
    for o, inner in steps(node):
        layer = o.kind in ("conv", "linear") and not o.depthwise
        if layer or any(map(mixes, _inside(o, inner, ("block", "norm")))):
            return True
    return False


@per_node
def reduces(node: fx.Node) -> bool:
    """Whether something is pooled in the node: of a map of one position, the shape does not tell."""
    for o, inner in steps(node):
        if o.kind == "pool" or o.name in REDUCTIONS or any(map(reduces, _inside(o, inner))):
            return True
    return False


@per_node
def holds_gate(node: fx.Node) -> str:
    """The path (or name) of a gate in the node, at any depth; empty when there is none."""
    for o, inner in steps(node):
        if o.kind == "gate":
            return record_of(inner).path or record_of(node).path or inner.name
        if found := next(filter(None, map(holds_gate, _inside(o, inner))), ""):
            return found
    return ""


def passes(node: fx.Node) -> bool:
    """Dropout, drop path, layer scale, identity: by what they do, not by their names."""
    return record_of(node).identity or (
        len(data(node)) == 1 and {o.kind for o in chain(node)} <= {"pass", "scale"} and node.op != "placeholder"
    )
