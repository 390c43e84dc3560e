"""The convolutions of a plain chain."""

from __future__ import annotations

from collections.abc import Iterator

from se_inject.search.axes import area
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.gated import gated, gated_next
from se_inject.search.units import behind, is_norm_or_activation, unit
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After each convolution of a plain chain, with its norm and activation (SE-VGG)."""
    if call.node is not None and unit(call.node) is not None:
        return  # the whole call is one such unit: its caller sees it
    for node in call.graph.nodes:
        layer = unit(node)
        if layer is None or flow.branched(call, node) or area(node) == 1:
            continue  # (a map of one position belongs to a squeeze, or to the classifier)
        place = behind(node, is_norm_or_activation)
        reason = gated(place) or gated_next(place)
        yield Candidate("conv", call, place, layer.inputs, None, layer.kernel, layer.depthwise, gated=reason)
