"""A value at which a site may be, and the residual branches around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from se_inject.flow import Join, joins
from se_inject.ops import channel_axis, shape
from se_inject.trace import Call


@dataclass(eq=False)
class Candidate:
    """A value in one call's graph at which a site may be."""

    placement: str
    call: Call
    node: fx.Node
    block_channels: int
    around: Join | None = None  # the residual join whose branch holds it
    kernel: tuple[int, ...] = ()
    depthwise: bool = False
    projects: bool = False
    gated: str = ""


@dataclass
class Flow:
    """The joins of every call, and which residual branch each node lies in."""

    calls: list[Call]
    joins: dict[Call, list[Join]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.joins = {call: [j for j in joins(call.graph) if j.residual] for call in self.calls}

    def around(self, call: Call, node: fx.Node, but: Join | None = None) -> Join | None:
        """The innermost residual join with ``node`` (of ``call``'s graph) on a deep branch."""
        here: Call | None = call
        while here is not None:
            holding = [
                (len(branch.nodes), i, join)
                for i, join in enumerate(self.joins[here])
                for branch in join.residual
                if node in branch.nodes and join is not but
            ]
            if holding:
                return min(holding, key=lambda found: found[:2])[2]
            if here.node is None:
                return None
            node, here = here.node, here.parent
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
