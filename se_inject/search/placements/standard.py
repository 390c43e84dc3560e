"""The end of a residual branch."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import holds_gate
from se_inject.search.gated import by_gate, gated
from se_inject.search.joins import end
from se_inject.trace.calls import Call


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
            on_branch = next((by_gate(place) for n in sorted(branch.nodes) if (place := holds_gate(n))), None)
            yield Candidate(
                "standard", call, node, entering, join, gated=gated(branch.operand), gate_on_branch=on_branch
            )
