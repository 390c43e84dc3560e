"""The start of a residual branch."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import gate
from se_inject.search.gated import begins_gated
from se_inject.search.ops import data
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """Start of the residual branch: what its first operation takes, and not what the shortcut takes (SE-PRE)."""
    for join in flow.joins[call]:
        for branch in join.residual:
            starts = {join.fork} if join.fork is not None else {n for n in branch.nodes if n.op == "placeholder"}
            starts |= {n for b in branch.nodes for n in data(b) if join.fork is None and n.op == "placeholder"}
            firsts = [n for n in sorted(branch.nodes) if starts & set(data(n))]
            firsts = [n for n in firsts if gate(n) in starts] or firsts  # a gate takes it twice: squeeze and product
            if len(starts) == 1 and len(firsts) == 1:
                start, first = next(iter(starts)), firsts[0]
                yield Candidate("pre", call, start, channels(start), join, gated=begins_gated(first), user=first)
