"""The end of a stage."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import area, channel_axis, channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import depth
from se_inject.search.gated import gated, gated_next
from se_inject.search.ops import shape
from se_inject.search.units import behind, is_gate
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the last block before the resolution drops."""
    for node in call.graph.nodes:
        if node.op != "call_module" or len(shape(node)) != 4 or depth(node) < 2 or channel_axis(node) != 1:
            continue
        place = behind(node, is_gate)
        drops = [u for u in place.users if u.op.startswith("call") and (len(shape(u)) == 2 or area(u) < area(node))]
        if drops and flow.around(call, node) is None:
            yield Candidate("stage", call, place, channels(place), gated=gated(place) or gated_next(place))
