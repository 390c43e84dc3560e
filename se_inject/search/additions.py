"""Additions of values, in the forms in which people write them: the values that one node adds.

An operator, method or function; ``lerp`` and ``addcmul`` with a factor that is no data; the sum over a stack, or over a
concatenation whose parts have an axis of their own; a child that adds its arguments, with or without an activation.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx

from se_inject.search.chains import chain, gate
from se_inject.search.ops import data, name_of, op, per_node, result, shape
from se_inject.trace.calls import record_of


@per_node
def added(node: fx.Node) -> tuple[fx.Node, ...]:
    """The values of one shape that a node adds, each once; nothing when it is no such addition."""
    values = tuple(dict.fromkeys(_values(node)))
    same = len(values) > 1 and all(shape(value) == shape(node) for value in values)
    return values if same and len(shape(node)) > 1 else ()


def plain(node: fx.Node) -> bool:
    """Whether nothing follows the addition in the same node: a child may have an activation behind it."""
    call = record_of(node).call
    inner = result(call) if call is not None else None
    return inner is None or (bool(added(inner)) and plain(inner))


def gathered(node: fx.Node) -> tuple[fx.Node, ...]:
    """What stands between the values and a sum over them: the stack, or the concatenation and its view."""
    between: list[fx.Node] = []
    if node.op != "call_module" and name_of(node) == "sum" and added(node):
        while op(node).kind != "cat" and name_of(node) != "stack":
            node = data(node)[0]
            between.append(node)
    return tuple(between)


def returned(operand: fx.Node, fork: fx.Node | None) -> fx.Node | None:
    """In the graph of a call that returns several values and is the fork, the one that the operand comes from."""
    call = record_of(fork).call if fork is not None else None
    while operand is not fork and data(operand):
        if operand.target is operator.getitem and operand.args[0] is fork and call is not None:
            results = call.graph.output_node().args[0]
            try:
                value = results[operand.args[1]]  # type: ignore[index]
            except (TypeError, KeyError, IndexError):  # a part of a part
                return None
            return value if isinstance(value, fx.Node) else None
        operand = data(operand)[0]
    return None


def _values(node: fx.Node) -> Iterator[fx.Node]:
    if node.op == "call_module":
        yield from _by_child(node)
    elif node.op in ("call_function", "call_method") and name_of(node) == "sum":
        yield from _summed(node)
    elif node.op in ("call_function", "call_method") and op(node).kind == "add" and gate(node) is None:
        out = node.kwargs.get("out")
        values = [n for n in data(node) if n is not out or n in node.args]
        yield from values if len(values) == 2 else ()


def _by_child(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that a child adds, if that and an activation is all it does."""
    call = record_of(node).call
    inner = result(call) if call is not None else None
    while inner is not None and not added(inner) and {o.kind for o in chain(inner)} <= {"act", "pass"}:
        inner = data(inner)[0] if len(data(inner)) == 1 else None
    todo = list(added(inner)) if inner is not None else []
    while todo:
        value = todo.pop(0)
        outer = record_of(value).outer
        if value.op == "placeholder" and outer is not None:
            yield outer
        elif added(value):
            todo = [*added(value), *todo]
        elif op(value).kind == "pass" and len(data(value)) == 1:  # sum([x, y]) begins with 0 + x
            todo.insert(0, data(value)[0])
        else:
            return


def _summed(node: fx.Node) -> Iterator[fx.Node]:
    """The values under a sum over the axis that a stack, or a concatenation and a view, has given them."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axis = axes[0] if isinstance(axes, list | tuple) and len(axes) == 1 else axes
    source = data(node)[0] if len(data(node)) == 1 else None
    if source is None or not isinstance(axis, int):
        return
    many, rank = shape(source), len(shape(source))
    axis %= rank
    while op(source).kind == "reshape" and len(data(source)) == 1:
        source = data(source)[0]
    dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
    values = data(source)
    own = (*shape(node)[:axis], len(values), *shape(node)[axis:])
    if not isinstance(dim, int) or many != own or len(source.users) != 1:
        return
    if name_of(source) == "stack" and dim % rank == axis and shape(source) == many:
        yield from values
    elif op(source).kind == "cat" and dim % len(shape(source)) == axis:
        if shape(source) == many:  # each has got an axis of one for it
            yield from (
                data(v)[0] for v in values if len(data(v)) == 1 and op(v).kind in ("expand", "slice", "reshape")
            )
        else:
            yield from values
