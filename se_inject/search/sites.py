"""``Trace`` -> sites: every place a block can stand, with all that rules may ask about it. Knows graphs, no policy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from se_inject.search.axes import area, channel_axis
from se_inject.search.axes import channels as channels_of
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.carriers import Index, batch_norm, carrier, edge
from se_inject.search.flow import Join
from se_inject.search.nodes import result, shape
from se_inject.search.placements import PLACEMENTS
from se_inject.trace.calls import CONTAINERS, Call, Trace
from se_inject.trace.records import record_of
from se_inject.trace.source import bypassing_condition
from se_inject.types import Carrier, Reason, Site

BLOCKS = ("standard", "inner", "concat")  # placements that say where the model's blocks are


@dataclass(frozen=True)
class Found:
    """The sites of a trace, and where each stands: call, value, and the one user it is for (None: all), once for each
    call of its owner."""

    sites: tuple[Site, ...]
    places: dict[str, tuple[tuple[Call, fx.Node, fx.Node | None], ...]]


def find(trace: Trace, placements: Collection[str]) -> Found:
    """All sites of the given placements, in order of execution."""
    flow, index = Flow(trace.calls), Index(trace)
    wanted = {p: [c for call in trace.calls for c in PLACEMENTS[p](flow, call)] for p in {*placements, *BLOCKS}}
    for candidate in (c for found in wanted.values() for c in found):
        _leave_container(candidate)
    # Stages are the resolutions of the blocks, whatever placement is asked for; of a model without blocks, all.
    blocks = [c for p in BLOCKS for c in wanted[p]] or [c for found in wanted.values() for c in found]
    areas = {area(c.node) for c in blocks}
    groups: dict[Any, list[Candidate]] = {}
    for candidate in (c for p in PLACEMENTS if p in placements for c in wanted[p]):
        groups.setdefault(_key(candidate, groups), []).append(candidate)
    nested = _nested(flow)
    for candidate in (c for found in wanted.values() for c in found if c.placement != "concat"):
        candidate.group = flow.concatenated(candidate.call, candidate.node)
    pairs = []
    for group in groups.values():
        here = area(group[0].node)
        pairs.append((_site(index, group, nested, max(1, sum(other >= here for other in areas))), group))
    pairs.sort(key=lambda pair: pair[0].order)
    sites = tuple(_named([(site, group[0]) for site, group in pairs]))
    places = {s.id: tuple((c.call, c.node, c.user) for c in g) for s, (_, g) in zip(sites, pairs, strict=True)}
    return Found(sites, places)


def _leave_container(candidate: Candidate) -> None:
    """What a container of layers returns (DenseNet's blocks) is a value of its caller: a new child of its own it would
    run as one of its layers."""
    while candidate.user is None and result(call := candidate.call) is candidate.node:
        module, node, parent = call.module, call.node, call.parent
        sequential = type(module).forward is nn.Sequential.forward
        if node is None or parent is None or not isinstance(module, CONTAINERS) or sequential:
            return
        candidate.call, candidate.node = parent, node


def _key(candidate: Candidate, groups: dict[Any, list[Candidate]]) -> Any:
    """One site for all calls of the same module that make the value by the same expression, one after another in a loop
    apart."""
    call, node = candidate.call, candidate.node
    span = record_of(node).span
    place = record_of(node).path or (span.code, span.extent) if span is not None else node.name
    user = candidate.user.name if candidate.user is not None else ""
    key, n = (call.path, candidate.placement, (place, user), 0), 0
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
                owner = next(c for c in call.ancestors() if outer in (*flow.joins[c], *flow.dense[c]))
                outer = flow.around(owner, outer.node, but=outer)
    return count


def _site(index: Index, group: list[Candidate], nested: dict[Join, int], stage: int) -> Site:
    first = group[0]
    axis = channel_axis(first.node)
    channels = {channels_of(c.node) for c in group}
    obstacle: Reason | None = None
    if len(channels) > 1:
        obstacle = Reason("channels-vary", f"it has different channels in different calls: {sorted(channels)}")
    if axis is None:
        obstacle = Reason("axis-unknown", f"the channel axis of shape {list(shape(first.node))} is not known")
    reason: Reason | None
    absorb_obstacle: Reason | None
    if first.user is not None:
        found, reason = edge(index, first.call, first.node, first.user, first.name)
        text = "other values than the gated one go through the batch norm before it"
        norm, absorb_obstacle = "", Reason("other-values", text)
    else:
        found, reason = carrier(index, first.call, first.node)
        norm, absorb_obstacle = batch_norm(index, first.node)
    maker = first.user or first.node
    runs = index.ran[first.call.path, record_of(maker).span, maker.target]
    if found is not None and found.kind not in ("graph", "slot") and runs != len(group):
        text = f"{first.call.path or 'the model'} runs it {runs} times, and it is such a place in {len(group)} of them"
        obstacle = Reason("other-calls", text)
    if axis == 0:
        obstacle = Reason("no-batch-axis", f"the value of shape {list(shape(first.node))} has no batch axis")
    return Site(
        id="",
        placement=first.placement,
        owner=first.call.path,
        cls=type(first.call.module).__name__,
        channels=channels_of(first.node),
        axis=axis if axis is not None else 1,
        shape=shape(first.node),
        stage=stage,
        order=record_of(maker).order or 0,
        block_channels=first.block_channels,
        block="",
        calls=len(group),
        kernel=first.kernel,
        depthwise=first.depthwise,
        projects=first.projects,
        nested=nested.get(first.around, 0) if first.around is not None and first.placement == "standard" else 0,
        gated=next((c.gated for c in group if c.gated), None),
        gate_on_branch=next((c.gate_on_branch for c in group if c.gate_on_branch), None),
        carrier=found,
        obstacle=obstacle or (None if found else reason),
        note=_other_path(maker, found),
        absorb=norm,
        absorb_obstacle=absorb_obstacle,
    )


def _other_path(maker: fx.Node, found: Carrier | None) -> Reason | None:
    span = record_of(maker).span
    if span is None or found is None or found.kind != "source":
        return None
    line = bypassing_condition(span)
    text = f"on one path of {span.method}: the condition in its line {line} can take another"
    return Reason("one-path", text) if line else None


def _named(pairs: list[tuple[Site, Candidate]]) -> Iterator[Site]:
    """Ids, numbered where one owner has several, and the block that each site belongs to."""
    taken: dict[str, int] = {}
    blocks: dict[Join, str] = {}
    groups: dict[Join, str] = {}
    named: list[tuple[Site, Candidate]] = []
    for site, candidate in pairs:
        place = site.owner
        if site.carrier is not None and site.carrier.kind in (
            "wrap_output",
            "append",
            "sequential_after",
            "wrap_input",
        ):
            place = record_of(candidate.node).path
        elif site.carrier is not None and site.carrier.kind == "graph":
            place = f"{site.carrier.path}.{site.carrier.name}".strip(".").rpartition(".")[0]
        name = f"{place}:{site.placement}"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}_{taken[name]}"
        named.append((replace(site, id=name), candidate))
        if site.placement == "standard" and candidate.around is not None:
            blocks.setdefault(candidate.around, name)
        if site.placement == "concat" and candidate.group is not None:
            groups[candidate.group] = name
    for site, candidate in named:
        join, group = candidate.around, candidate.group
        block = blocks.get(join, site.owner) if join is not None else site.owner
        concat = groups.get(group, "") if group is not None and site.placement != "concat" else ""
        yield replace(site, block=block, concat_id=concat)
