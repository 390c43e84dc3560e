"""Behind a concatenation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.chains import chain
from se_inject.search.gated import gated, gated_next
from se_inject.search.ops import result
from se_inject.search.units import behind, is_norm_or_activation, unit
from se_inject.trace.calls import Call


def find(flow: Flow, call: Call) -> Iterator[Candidate]:
    """After the channel concatenation of branches with a common fork (SE-Inception), or after the 1x1 convolution that
    fuses them right away (one-shot aggregation)."""
    if call.node is not None and unit(call.node) is not None:
        return  # the whole call is one convolution (MixConv)
    for group in flow.concats[call]:
        if flow.concatenated(call, group.node, but=group) is not None:
            continue  # inside a branch of another: once for each multi-branch block
        where, place = _fused(call, group.node)
        around = flow.around(call, group.node)
        entering = channels(group.fork or place)
        yield Candidate("concat", where, place, entering, around, gated=gated(place) or gated_next(place), group=group)


def _fused(call: Call, node: fx.Node) -> tuple[Call, fx.Node]:
    """Behind the 1x1 convolution that directly follows a concatenation, in the same forward or in its caller's."""
    where, value = call, node
    while result(where) is value and (outside := where.node) is not None and where.parent is not None:
        where, value = where.parent, outside
    user = next(iter(value.users)) if len(value.users) == 1 else None
    layer = unit(user) if user is not None else None
    if user is None or layer is None or not layer.pointwise or chain(user)[0].kind != "conv":
        return call, node
    return where, behind(user, is_norm_or_activation)
