"""Behind a sum of equal branches."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import passes
from se_inject.search.gated import gated_next
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After a sum of branches of equal weight, before its activation (RepVGG)."""
    for join in flow.sums[call]:
        if any(branch.weight for branch in join.branches) and not _summed(flow, call, join.node):
            around = flow.around(call, join.node)
            yield Candidate(
                "sum", call, join.node, channels(join.fork or join.node), around, gated=gated_next(join.node)
            )


def _summed(flow: Flow, call: Call, node: fx.Node) -> bool:
    """Whether the sum goes into another one, drop path and the like between them looked through."""
    while len(node.users) == 1 and (user := next(iter(node.users))).op.startswith("call") and passes(user):
        node = user
    return any(node is b.operand for join in (*flow.sums[call], *flow.joins[call]) for b in join.branches)
