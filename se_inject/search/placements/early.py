"""In front of the spatial convolution of a block."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.candidates import Candidate, Flow, is_map
from se_inject.search.onward import follow
from se_inject.search.units import unit
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """In front of the spatial convolution of a residual block, after the 1x1 convolution before it, its norm and
    activation (SE-DarkNet)."""
    for node in call.graph.nodes:
        layer, join = unit(node), flow.around(call, node)
        if layer is None or not layer.pointwise or join is None:
            continue
        way = follow(flow, call, node, depthwise=False)
        if way.layer is not None and way.layer.spatial and is_map(way.place):
            kernel, depthwise = way.layer.kernel, way.layer.depthwise
            yield Candidate("early", call, way.place, layer.inputs, join, kernel, depthwise, gated=way.gated)
