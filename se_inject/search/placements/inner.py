"""Behind the spatial convolution of a block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from se_inject.search.candidates import Candidate, Flow, is_map
from se_inject.search.chains import chain
from se_inject.search.joins import Join
from se_inject.search.onward import attended, follow
from se_inject.search.ops import Op, data, shape
from se_inject.search.units import side_by_side, unit
from se_inject.trace.calls import Call

BETWEEN = {"norm", "act", "pass", "scale", "bias", "permute", "pool", "blur", "pad"}  # what stands between two layers


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the spatial convolution of a block, its norm and activation, before the 1x1 convolution that follows
    (SE_3x3, MBConv, RegNetY); depthwise convolutions side by side count as one (GhostNet, RepViT)."""
    if call.node is not None and unit(call.node) is not None:
        return  # the whole call is one convolution: its caller sees it
    parallel = {join.node: join for join in (*flow.sums[call], *flow.concats[call])}
    for node in call.graph.nodes:
        beside = parallel.get(node)
        layer = unit(node) if beside is None else side_by_side(beside)
        if layer is None or not layer.spatial:
            continue
        way = follow(flow, call, node, layer.depthwise)
        if way.layer is None or not way.layer.pointwise or not is_map(way.place) or attended(flow, way.call, way.place):
            continue
        join = flow.around(way.call, way.place)
        yield Candidate(
            "inner",
            way.call,
            way.place,
            _block_input(beside.fork if beside is not None else node, layer, flow.around(call, node)),
            join,
            kernel=layer.kernel,
            depthwise=layer.depthwise,
            projects=way.layer.outputs <= way.layer.inputs,
            gated=way.gated,
        )


def _block_input(node: fx.Node | None, layer: Op, join: Join | None) -> int:
    """Channels that enter the block: those before the 1x1 expansion, if the block begins with one.

    ``node`` is the convolution, or the value that the convolutions side by side take.
    """
    own = unit(node) if node is not None else None
    start = node if node is None or (own is not None and own.pointwise) else _start(node)
    before = unit(start) if start is not None else None
    if start is not None and before is not None and before.pointwise:
        source = _start(start)
        # An expansion begins the block, whatever stands before it: in the graph of a whole model, the block before.
        if source is None or before.outputs > before.inputs or (join is not None and source is join.fork):
            return before.inputs
    return layer.inputs


def _start(node: fx.Node) -> fx.Node | None:
    """The layer that feeds ``node``, norms and activations skipped; None when that is the graph's argument."""
    while True:
        sources = [n for n in data(node) if len(shape(n)) == len(shape(node))]  # not what a weight is computed from
        if len(sources) != 1 or sources[0].op == "placeholder":
            return None
        node = sources[0]
        if not {o.kind for o in chain(node)} <= BETWEEN:
            return node
