"""The shortcut."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import chain
from se_inject.search.gated import gated
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the shortcut, before the addition (SE-Identity)."""
    for join in flow.joins[call]:
        for branch in join.shortcuts:
            entering = channels(join.fork or branch.operand)
            user = next(iter(n for n in branch.operand.users if n is join.node or n in join.parts), None)
            own = any(o.kind == "gate" for n in branch.nodes for o in chain(n))  # and not one before the fork
            reason = gated(branch.operand) if own else None
            if user is not None:
                yield Candidate("identity", call, branch.operand, entering, join, gated=reason, user=user)
