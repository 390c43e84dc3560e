"""The end of a residual branch."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import holds_gate
from se_inject.search.gated import by_gate, gated
from se_inject.search.joins import Join, end
from se_inject.trace.calls import Call, record_of


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
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
            own = (*branch.inner, *sorted(branch.nodes))
            on_branch = next((by_gate(place) for n in own if (place := holds_gate(n))), None)
            user = _added_by(join, node) if node.target is operator.getitem and record_of(node).span is None else None
            reason = gated(branch.operand)
            yield Candidate("standard", call, node, entering, join, gated=reason, gate_on_branch=on_branch, user=user)


def _added_by(join: Join, node: fx.Node) -> fx.Node | None:
    """The addition that takes one of several values that a child returns: it has no expression but there."""
    return next((user for user in node.users if user is join.node or user in join.parts), None)
