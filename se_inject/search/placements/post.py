"""Behind the addition."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.gated import gated, gated_next
from se_inject.search.units import behind, is_activation
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the addition of a residual block and its activation (SE-POST)."""
    for join in flow.joins[call]:
        entering = channels(join.fork or join.shortcuts[0].operand)
        place = behind(join.node, is_activation)
        yield Candidate("post", call, place, entering, join, gated=gated(place) or gated_next(place))
