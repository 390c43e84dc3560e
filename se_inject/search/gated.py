"""Whether a value is gated already: by the gate that made it, or by the one it goes into."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from se_inject.search.chains import chain, gate, steps
from se_inject.search.ops import Op, data, label, result
from se_inject.trace.calls import record_of
from se_inject.types import Reason

BETWEEN = ("act", "norm", "pass", "scale", "bias", "permute")  # what may stand between a value and its gate


def made_by(node: fx.Node) -> Iterator[tuple[Op, fx.Node]]:
    """The operators that made a value, the last first, for as long as it is one chain, each with its node in the graph
    where that chain goes on; children are looked into."""
    while True:
        for o, inner in reversed(steps(node)):
            call = record_of(inner).call if o.kind == "block" else None
            last = result(call) if call is not None else None
            if last is not None:
                yield from made_by(last)
                return
            yield o, node
        if len(data(node)) != 1:
            return
        node = data(node)[0]


def by_gate(place: fx.Node | str) -> Reason:
    """That the gate at a node, or of a path, stands there already."""
    return Reason("gated", f"already gated by {place if isinstance(place, str) else label(place)}")


def gated(node: fx.Node) -> Reason | None:
    """Why the value counts as gated already: the gate that made it, norms and activations looked through."""
    for o, maker in made_by(node):
        if o.kind == "gate":
            return by_gate(maker)
        if o.kind not in BETWEEN:
            break
    return None


def gated_next(node: fx.Node) -> Reason | None:
    """Why the value counts as gated already: the gate that it goes into, norms and activations looked through."""
    for user in node.users:
        if user.op.startswith("call") and (gate(user) is node or begins_gated(user)):
            return by_gate(user)
    return None


def begins_gated(node: fx.Node) -> Reason | None:
    """Why what ``node`` takes counts as gated already: it begins with a gate, norms and activations looked through."""
    for o in chain(node):
        if o.kind == "gate":
            return by_gate(node)
        if o.kind not in BETWEEN:
            break
    return None
