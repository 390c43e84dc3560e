"""The axis of the channels of a value, followed through what keeps, moves or merges axes."""

from __future__ import annotations

import math
import operator

from torch import fx

from se_inject.search.ops import LAST_AXES, data, name_of, op, per_node, result, shape
from se_inject.trace.calls import record_of


@per_node
def channel_axis(node: fx.Node) -> int | None:
    """The axis of the channels, from the operator that made them, followed through what keeps or permutes axes."""
    rank, o = len(shape(node)), op(node)
    call = record_of(node).call
    inner = result(call) if call is not None else _part(node)
    if inner is not None:
        return channel_axis(inner)
    if node.op == "placeholder":
        outer = record_of(node).outer
        return channel_axis(outer) if outer is not None else 1 if rank >= 4 else None
    if o.kind == "conv":
        return rank - 1 - len(o.kernel) if o.kernel else 1  # 0 without a batch
    if o.kind == "linear":
        return rank - 1
    if o.kind == "norm" and o.name not in LAST_AXES:
        return 1
    if o.kind == "norm" and _normalised(node) == 1:
        return rank - 1
    sources = data(node)
    if not sources:
        return None
    if o.kind == "permute":
        return _permuted(node, channel_axis(sources[0]))
    if o.kind in ("reshape", "expand") and shape(node) != shape(sources[0]):
        return _reshaped(node, sources[0])
    if o.kind == "other":  # the axes may have moved, unless the shape is kept
        sources = tuple(n for n in sources if shape(n) == shape(node))
    # The latest first: of a sum that is the branch, whose layer is near, and not the way back through all shortcuts.
    for source in sorted(sources, key=lambda n: record_of(n).order or 0, reverse=True):
        if len(shape(source)) == rank and (axis := channel_axis(source)) is not None:
            return axis
    return None


def area(node: fx.Node) -> int:
    axis, area = channel_axis(node), 1
    for i, n in enumerate(shape(node)):
        area *= n if i not in (0, axis) else 1
    return area


def channels(node: fx.Node) -> int:
    axis = channel_axis(node)
    dims = shape(node)
    return dims[axis if axis is not None else 1] if len(dims) > 1 else 0


def _part(node: fx.Node) -> fx.Node | None:
    """In the graph of a child, the one of its several results that the node takes."""
    if node.op != "call_function" or node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    call = record_of(node.args[0]).call
    results = call.graph.output_node().args[0] if call is not None else None
    try:
        found = results[node.args[1]]  # type: ignore[index]
    except (TypeError, KeyError, IndexError):  # no tuple or dict, or a part of a part
        return None
    return found if isinstance(found, fx.Node) else None


def settle_axis(node: fx.Node, axis: int) -> None:
    """Remember the axis of a value for which ``channel_axis`` finds none."""
    record_of(node).answers[channel_axis] = axis


def _normalised(node: fx.Node) -> int:
    """How many axes a layer norm takes together: more than the last one leave open which is that of the channels."""
    module = record_of(node).module
    dims = module.normalized_shape if module is not None else [*node.args[1:2], node.kwargs.get("normalized_shape")][0]
    return len(dims) if isinstance(dims, list | tuple) else 1


def _reshaped(node: fx.Node, source: fx.Node) -> int | None:
    """The axis of the channels after a view: as long as before, and behind as many elements."""
    axis, old, new = channel_axis(source), shape(source), shape(node)
    if axis is None:
        return None
    before = math.prod(old[:axis])
    return next((i for i, n in enumerate(new) if n == old[axis] and math.prod(new[:i]) == before), None)


def _permuted(node: fx.Node, axis: int | None) -> int | None:
    rank, name = len(shape(node)), name_of(node)
    if axis is None:
        return None
    args = node.args[1:] or tuple(node.kwargs.values())
    if name == "getattr":  # x.T reverses all axes, x.mT swaps the last two
        name, args = ("permute", tuple(reversed(range(rank)))) if args[0] in ("T", "H") else ("transpose", (-2, -1))
    if len(args) == 1 and isinstance(args[0], list | tuple):
        args = tuple(args[0])
    if not all(isinstance(a, int) for a in args):
        return None
    dims = [int(a) % rank for a in args]  # type: ignore[arg-type]
    if name == "permute":
        return dims.index(axis)
    if name == "movedim" and len(dims) == 2:
        order = [i for i in range(rank) if i != dims[0]]
        order.insert(dims[1], dims[0])
        return order.index(axis)
    if name in ("transpose", "swapaxes") and len(dims) == 2:
        return {dims[0]: dims[1], dims[1]: dims[0]}.get(axis, axis)
    return None
