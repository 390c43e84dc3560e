"""The network's input."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.candidates import Candidate, Flow
from se_inject.search.gated import begins_gated
from se_inject.search.ops import shape
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """On the network's input, for a spatial transformer."""
    for node in call.graph.nodes:
        if node.op == "placeholder" and not call.path and len(shape(node)) == 4 and len(node.users) == 1:
            user = next(iter(node.users))
            yield Candidate("input", call, node, shape(node)[1], gated=begins_gated(user), user=user, name="stn")
