"""Whether a value is gated already: by the gate that made it, or by the one it goes into."""

from __future__ import annotations

from torch import fx

from se_inject.search.chains import chain, gate
from se_inject.search.nodes import data


def gated(node: fx.Node) -> str:
    """Why the value counts as gated already: the gate that made it, norms and activations looked through."""
    current: fx.Node | None = node
    while current is not None:
        for o in reversed(chain(current)):
            if o.kind == "gate":
                return f"already gated by {current.meta.get('path') or current.name}"
            if o.kind not in ("act", "norm", "pass", "scale", "bias", "permute"):
                return ""
        sources = data(current)
        current = sources[0] if len(sources) == 1 else None
    return ""


def gated_next(node: fx.Node) -> str:
    """Why the value counts as gated already: the gate that it goes into."""
    for user in node.users:
        if not user.op.startswith("call"):
            continue
        kinds = {o.kind for o in chain(user)}
        if gate(user) is node or ("gate" in kinds and kinds <= {"gate", "pass"}):
            return f"already gated by {user.meta.get('path') or user.name}"
    return ""
