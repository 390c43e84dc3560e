"""Where a block can stand: ``Trace`` -> sites, by data flow alone. Knows graphs, no policy.

``standard``: the end of a residual branch, before drop path and the addition (Hu et al. 2017, fig. 6).
``inner``: after the spatial convolution of a block with its norm and activation, before the 1x1 convolution that
follows (SE_3x3 of the paper; the place of MBConv and RegNetY).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from se_inject.carriers import Index, batch_norm, carrier
from se_inject.flow import Join, end, gated, joins
from se_inject.ops import Op, chain, channel_axis, data, gate, passes, shape
from se_inject.trace import Call, Trace
from se_inject.types import Site


@dataclass(eq=False)
class Candidate:
    """A value in one call's graph at which a site may be."""

    placement: str
    call: Call
    node: fx.Node
    block_channels: int
    around: Join | None = None  # the residual join whose branch holds it
    kernel: tuple[int, ...] = ()
    depthwise: bool = False
    projects: bool = False
    gated: str = ""


@dataclass
class Flow:
    """The joins of every call, and which residual branch each node lies in."""

    calls: list[Call]
    joins: dict[Call, list[Join]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.joins = {call: [j for j in joins(call.graph) if j.residual] for call in self.calls}

    def around(self, call: Call, node: fx.Node, but: Join | None = None) -> Join | None:
        """The innermost residual join with ``node`` (of ``call``'s graph) on a deep branch."""
        here: Call | None = call
        while here is not None:
            holding = [
                (len(branch.nodes), i, join)
                for i, join in enumerate(self.joins[here])
                for branch in join.residual
                if node in branch.nodes and join is not but
            ]
            if holding:
                return min(holding, key=lambda found: found[:2])[2]
            if here.node is None:
                return None
            node, here = here.node, here.parent
        return None


@dataclass(frozen=True)
class Found:
    """The sites of a trace, and the nodes at which each stands: one for each call of its owner."""

    sites: tuple[Site, ...]
    places: dict[str, tuple[tuple[Call, fx.Node], ...]]


def find(trace: Trace, placements: tuple[str, ...] = ("standard", "inner")) -> Found:
    """All sites of the given placements, in order of execution."""
    flow, index = Flow(trace.calls), Index(trace)
    candidates = [c for call in trace.calls for p in placements for c in PLACEMENTS[p](flow, call)]
    groups: dict[Any, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(_key(candidate, groups), []).append(candidate)
    firsts = [group[0] for group in groups.values()]
    nested = _nested(flow)
    areas = sorted({_area(c.node) for c in firsts}, reverse=True)
    pairs = [(_site(index, group, nested, 1 + areas.index(_area(group[0].node))), group) for group in groups.values()]
    pairs.sort(key=lambda pair: pair[0].order)
    sites = tuple(_named([(site, group[0]) for site, group in pairs]))
    places = {site.id: tuple((c.call, c.node) for c in group) for site, (_, group) in zip(sites, pairs, strict=True)}
    return Found(sites, places)


def standard(flow: Flow, call: Call) -> Iterator[Candidate]:
    for join in flow.joins[call]:
        for branch in join.residual:
            node = end(branch)
            if node is None:
                continue
            channels = _channels(join.fork) if join.fork is not None else _channels(join.shortcuts[0].operand)
            yield Candidate("standard", call, node, channels, join, gated=gated(branch.operand))


def inner(flow: Flow, call: Call) -> Iterator[Candidate]:
    for node in call.graph.nodes:
        layer = _unit(node)
        if layer is None or not layer.spatial:
            continue
        place, follower, gated_by = _follow(node)
        if follower is None:
            continue
        join = flow.around(call, node)
        yield Candidate(
            "inner",
            call,
            place,
            _block_input(call, node, layer, join),
            join,
            kernel=layer.kernel,
            depthwise=layer.depthwise,
            projects=follower.outputs <= follower.inputs,
            gated=gated_by,
        )


PLACEMENTS: dict[str, Callable[[Flow, Call], Iterator[Candidate]]] = {
    "standard": standard,
    "inner": inner,
}


def _unit(node: fx.Node) -> Op | None:
    """The convolution of a node that is one convolution with its norm, activation and padding."""
    if node.op in ("placeholder", "output", "get_attr"):
        return None
    ops = chain(node)
    layers = [o for o in ops if o.kind == "conv"]
    rest = {o.kind for o in ops} - {"conv", "norm", "act", "pass", "pad", "scale", "bias", "pool"}
    return layers[0] if len(layers) == 1 and not rest else None


def _follow(node: fx.Node) -> tuple[fx.Node, Op | None, str]:
    """From a convolution through norm and activation to the next layer: the last value before it, the layer if it is
    a 1x1 convolution, and the gate met on the way."""
    place, gated_by, current = node, "", node
    while len(current.users) == 1 or _gates(current):
        if _gates(current):
            current = _gates(current)[0]
            gated_by = f"already gated by {current.meta.get('path') or current.name}"
            continue
        user = next(iter(current.users))
        layer = _unit(user) if user.op != "output" else None
        if layer is not None:
            return place, (layer if layer.pointwise else None), gated_by
        kinds = {o.kind for o in chain(user)} if user.op != "output" else {"output"}
        if not kinds <= {"norm", "act", "pass", "scale", "bias", "gate", "blur"}:
            break
        if "gate" in kinds:
            gated_by = f"already gated by {user.meta.get('path') or user.name}"
        if not passes(user) and "gate" not in kinds and "blur" not in kinds and not gated_by:
            place = user
        current = user
    return place, None, gated_by


def _gates(node: fx.Node) -> list[fx.Node]:
    """Gates written out in the owner's own forward: the value is used for the squeeze and for the product."""
    return [user for user in node.users if gate(user) is node] if len(node.users) > 1 else []


def _block_input(call: Call, node: fx.Node, layer: Op, join: Join | None) -> int:
    """Channels that enter the block: those before the 1x1 expansion, if the block begins with one."""
    start = _start(node)
    before = _unit(start) if start is not None else None
    if start is not None and before is not None and before.pointwise:
        source = _start(start)
        if source is None or (join is not None and source is join.fork):
            return before.inputs
    return layer.inputs


def _start(node: fx.Node) -> fx.Node | None:
    """The layer that feeds ``node``, norms and activations skipped; None when that is the graph's argument."""
    while True:
        sources = data(node)
        if len(sources) != 1 or sources[0].op == "placeholder":
            return None
        node = sources[0]
        if not {o.kind for o in chain(node)} <= {"norm", "act", "pass", "scale", "bias"}:
            return node


def _key(candidate: Candidate, groups: dict[Any, list[Candidate]]) -> Any:
    """One site for all calls of the same module that make the value by the same expression, one after another in a loop
    apart."""
    call, node = candidate.call, candidate.node
    spot = node.meta.get("spot")
    place = node.meta.get("path") or (spot.code, spot.span) if spot is not None else node.name
    key, n = (call.path, candidate.placement, place, 0), 0
    while key in groups and any(c.call is call for c in groups[key]):
        n += 1
        key = (*key[:3], n)
    return key


def _nested(flow: Flow) -> dict[Join, int]:
    """How many residual joins lie on the deep branches of each."""
    count: dict[Join, int] = {}
    for call in flow.calls:
        for join in flow.joins[call]:
            outer = flow.around(call, join.node, but=join)
            while outer is not None:
                count[outer] = count.get(outer, 0) + 1
                owner = next(c for c in call.ancestors() if outer in flow.joins[c])
                outer = flow.around(owner, outer.node, but=outer)
    return count


def _area(node: fx.Node) -> int:
    axis, area = channel_axis(node), 1
    for i, n in enumerate(shape(node)):
        area *= n if i not in (0, axis) else 1
    return area


def _channels(node: fx.Node) -> int:
    axis = channel_axis(node)
    dims = shape(node)
    return dims[axis if axis is not None else 1] if len(dims) > 1 else 0


def _site(index: Index, group: list[Candidate], nested: dict[Join, int], stage: int) -> Site:
    first = group[0]
    axis = channel_axis(first.node)
    channels = {_channels(c.node) for c in group}
    obstacle = ""
    if len(channels) > 1:
        obstacle = f"it has different channels in different calls: {sorted(channels)}"
    if axis is None:
        obstacle = f"the channel axis of shape {list(shape(first.node))} is not known"
    found, reason = carrier(index, first.call, first.node)
    norm, absorb_obstacle = batch_norm(index, first.node)
    return Site(
        id="",
        placement=first.placement,
        owner=first.call.path,
        cls=type(first.call.module).__name__,
        channels=_channels(first.node),
        axis=axis if axis is not None else 1,
        shape=shape(first.node),
        stage=stage,
        order=first.node.meta["order"],
        block_channels=first.block_channels,
        block="",
        calls=len(group),
        kernel=first.kernel,
        depthwise=first.depthwise,
        projects=first.projects,
        nested=nested.get(first.around, 0) if first.around is not None and first.placement == "standard" else 0,
        gated=next((c.gated for c in group if c.gated), ""),
        carrier=found,
        obstacle=obstacle or ("" if found else reason),
        absorb=norm,
        absorb_obstacle=absorb_obstacle,
    )


def _named(pairs: list[tuple[Site, Candidate]]) -> Iterator[Site]:
    """Ids, numbered where one owner has several, and the block that each site belongs to."""
    taken: dict[str, int] = {}
    blocks: dict[Join, str] = {}
    named: list[tuple[Site, Candidate]] = []
    for site, candidate in pairs:
        place = site.owner
        if site.carrier is not None and site.carrier.kind in ("callee", "append"):
            place = site.carrier.path
        elif site.carrier is not None and site.carrier.kind == "graph":
            place = f"{site.carrier.path}.{site.carrier.name}".strip(".").rpartition(".")[0]
        name = f"{place}:{site.placement}"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}_{taken[name]}"
        named.append((replace(site, id=name), candidate))
        if site.placement == "standard" and candidate.around is not None:
            blocks.setdefault(candidate.around, name)
    for site, candidate in named:
        join = candidate.around
        yield replace(site, block=blocks.get(join, site.owner) if join is not None else site.owner)
