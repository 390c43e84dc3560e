"""A value at which a site may be, and the residual branches around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from se_inject.search.axes import area, channel_axis, channels
from se_inject.search.joins import Join, concats, dense, joins
from se_inject.search.ops import shape
from se_inject.trace.calls import Call, record_of
from se_inject.types import Reason


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
    gated: Reason | None = None
    gate_on_branch: Reason | None = None  # a gate elsewhere on the residual branch
    user: fx.Node | None = None  # the block stands between the value and this one user, not before all of them
    name: str = "se"  # of the new child
    group: Join | None = None  # the concatenation that it is, or is on a branch of


@dataclass
class Flow:
    """The joins of every call, and which residual branch each node lies in."""

    calls: list[Call]
    joins: dict[Call, list[Join]] = field(default_factory=dict)  # residual ones
    sums: dict[Call, list[Join]] = field(default_factory=dict)  # the others
    concats: dict[Call, list[Join]] = field(default_factory=dict)
    dense: dict[Call, list[Join]] = field(default_factory=dict)  # layers of dense blocks: residual, but concatenated

    def __post_init__(self) -> None:
        # The axis of a value follows from earlier ones: asked for in order, no question goes deep.
        nodes = [node for call in self.calls for node in call.graph.nodes if record_of(node).order is not None]
        for node in sorted(nodes, key=lambda node: record_of(node).order or 0):
            channel_axis(node)
        for call in self.calls:
            found = [join for join in joins(call.graph) if is_map(join.node)]
            self.joins[call] = [join for join in found if join.residual]
            self.sums[call] = [join for join in found if not join.residual and len(shape(join.node)) > 2]
            summed = {part for join in found for part in join.parts}
            self.concats[call] = [group for group in concats(call.graph) if group.node not in summed]
            self.dense[call] = [layer for group in self.concats[call] for layer in dense(group)]

    def around(self, call: Call, node: fx.Node, but: Join | None = None) -> Join | None:
        """The innermost residual join with ``node`` (of ``call``'s graph) on a deep branch."""
        here: Call | None = call
        while here is not None:
            holding = [
                (len(branch.nodes), i, join)
                for i, join in enumerate((*self.joins[here], *self.dense[here]))
                for branch in join.residual
                if node in branch.nodes and join is not but
            ]
            if holding:
                return min(holding, key=lambda found: found[:2])[2]
            if here.node is None:
                return None
            node, here = here.node, here.parent
        return None

    def concatenated(self, call: Call, node: fx.Node, but: Join | None = None) -> Join | None:
        """The outermost concatenation that has ``node`` on one of its branches."""
        found, here = None, call
        while True:
            for group in self.concats[here]:
                if group is not but and any(node in branch.nodes for branch in group.branches):
                    found = group
            if here.node is None or here.parent is None:
                return found
            node, here = here.node, here.parent

    def branched(self, call: Call, node: fx.Node) -> bool:
        """Whether ``node`` lies on any branch: residual, shortcut, summed or concatenated."""
        here = call
        while True:
            for join in (*self.joins[here], *self.sums[here], *self.concats[here]):
                if any(node in branch.nodes for branch in join.branches):
                    return True
            if here.node is None or here.parent is None:
                return False
            node, here = here.node, here.parent


def is_map(node: fx.Node) -> bool:
    """More than one channel and more than one position: else there is nothing to weigh, or nothing to squeeze. Values
    without space are for the blocks to refuse."""
    return len(shape(node)) < 3 or (channels(node) > 1 and area(node) > 1)
