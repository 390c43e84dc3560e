"""``Trace`` -> sites: every place a block can stand, with all that rules may ask about it. Knows graphs, no policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from se_inject.blocks import is_block
from se_inject.inputs import dtype_of
from se_inject.search.axes import area, channel_axis
from se_inject.search.axes import channels as channels_of
from se_inject.search.candidates import Candidate, Flow
from se_inject.search.carriers import Index, batch_norm, carrier, edge
from se_inject.search.joins import Join
from se_inject.search.ops import result, shape
from se_inject.search.placements import PLACEMENTS, finder
from se_inject.trace.calls import CONTAINERS, Call, Trace, record_of
from se_inject.trace.source import bypassing_condition
from se_inject.types import Carrier, Reason, Site

BLOCKS = ("standard", "inner", "concat")  # placements that say where the model's blocks are


@dataclass(frozen=True)
class Found:
    """The sites of a trace, and where each stands: call, value, and the one user it is for (None: all), once for each
    call of its owner."""

    sites: tuple[Site, ...]
    places: dict[str, tuple[tuple[Call, fx.Node, fx.Node | None], ...]]


def find_sites(trace: Trace, placements: Collection[str]) -> Found:
    """All sites of the given placements, in order of execution."""
    flow, index = Flow(trace.calls), Index(trace)
    # What stands inside an inserted block is its own: a spatial transformer ends in a join.
    inside: set[Call | None] = set()
    for call in trace.calls:  # in the order in which they began: a parent before its children
        if call.parent in inside or is_block(call.module):
            inside.add(call)
    calls = [call for call in trace.calls if call not in inside]
    wanted = {p: [c for call in calls for c in finder(p)(flow, call)] for p in {*placements, *BLOCKS}}
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
    drafts = [_draft(index, group) for group in sorted(groups.values(), key=lambda group: _order(group[0]))]
    names = _ids(drafts)
    # The block of each site and the concatenation that it is a branch of go by the ids of other sites.
    named = [(draft.group[0], name) for draft, name in zip(drafts, names, strict=True)]
    block_ids = {c.around: name for c, name in reversed(named) if c.placement == "standard"}
    concat_ids = {c.group: name for c, name in named if c.placement == "concat"}
    sites = []
    for draft, name in zip(drafts, names, strict=True):
        first = draft.group[0]
        stage = max(1, sum(other >= area(first.node) for other in areas))
        block = block_ids.get(first.around, first.call.path) if first.around is not None else first.call.path
        concat = concat_ids.get(first.group, "") if first.group is not None and first.placement != "concat" else ""
        sites.append(_site(index, draft, name, stage, block, concat, nested))
    places = {name: tuple((c.call, c.node, c.user) for c in d.group) for d, name in zip(drafts, names, strict=True)}
    return Found(tuple(sites), places)


@dataclass(frozen=True)
class Draft:
    """A site without what follows from the others: its calls, and its carrier or the reason why it has none."""

    group: list[Candidate]
    carrier: Carrier | None
    reason: Reason | None


def _draft(index: Index, group: list[Candidate]) -> Draft:
    first = group[0]
    if first.user is not None:
        return Draft(group, *edge(index, first.call, first.node, first.user, first.name))
    return Draft(group, *carrier(index, first.call, first.node))


def _order(candidate: Candidate) -> int:
    """Where the block is in the order of execution."""
    return record_of(candidate.user or candidate.node).order or 0


def _ids(drafts: list[Draft]) -> list[str]:
    """Stable and readable, numbered where one module has several."""
    count: Counter[str] = Counter()
    ids = []
    for draft in drafts:
        first, found = draft.group[0], draft.carrier
        place = first.call.path
        if found is not None and found.kind in ("wrap_output", "append", "sequential_after", "wrap_input"):
            place = record_of(first.node).path
        elif found is not None and found.kind == "graph":
            place = f"{found.path}.{found.name}".strip(".").rpartition(".")[0]
        name = f"{place}:{first.placement}"
        count[name] += 1
        ids.append(name if count[name] == 1 else f"{name}_{count[name]}")
    return ids


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


def _site(index: Index, draft: Draft, name: str, stage: int, block: str, concat: str, nested: dict[Join, int]) -> Site:
    group, found, first = draft.group, draft.carrier, draft.group[0]
    axis = channel_axis(first.node)
    channels = {channels_of(c.node) for c in group}
    obstacle: Reason | None = None
    if len(channels) > 1:
        obstacle = Reason("channels-vary", f"it has different channels in different calls: {sorted(channels)}")
    if axis is None:
        obstacle = Reason("axis-unknown", f"the channel axis of shape {list(shape(first.node))} is not known")
    absorb_obstacle: Reason | None
    if first.user is not None:
        text = "other values than the gated one go through the batch norm before it"
        norm, absorb_obstacle = "", Reason("other-values", text)
    else:
        norm, absorb_obstacle = batch_norm(index, first.node)
    maker = first.user or first.node
    runs = index.ran[first.call.path, record_of(maker).span, maker.target]
    if found is not None and found.kind not in ("graph", "slot") and runs != len(group):
        text = f"{first.call.path or 'the model'} runs it {runs} times, and it is such a place in {len(group)} of them"
        obstacle = Reason("other-calls", text)
    if axis == 0:
        obstacle = Reason("no-batch-axis", f"the value of shape {list(shape(first.node))} has no batch axis")
    return Site(
        id=name,
        placement=first.placement,
        owner=first.call.path,
        cls=type(first.call.module).__name__,
        channels=channels_of(first.node),
        axis=axis if axis is not None else 1,
        shape=shape(first.node),
        stage=stage,
        order=_order(first),
        block_channels=first.block_channels,
        block=block,
        concat_id=concat,
        calls=len(group),
        kernel=first.kernel,
        depthwise=first.depthwise,
        projects=first.projects,
        nested=nested.get(first.around, 0) if first.around is not None and first.placement == "standard" else 0,
        gated=next((c.gated for c in group if c.gated), None),
        gate_on_branch=next((c.gate_on_branch for c in group if c.gate_on_branch), None),
        carrier=found,
        obstacle=obstacle or (None if found else draft.reason),
        note=_other_path(maker, found),
        absorb=norm,
        absorb_obstacle=absorb_obstacle,
        dtype=_other_dtype(index, first.node, found),
    )


def _other_dtype(index: Index, node: fx.Node, found: Carrier | None) -> str:
    """The dtype of a value, if it is floating-point and not that of the layers that a block would stand beside."""
    dtype = record_of(node).dtype
    if found is None or dtype is None or not dtype.is_floating_point:
        return ""
    parent, _, _ = f"{found.path}.{found.name}".strip(".").rpartition(".")
    beside = index.trace.root.get_submodule(parent)
    own = dtype_of(beside if next(beside.parameters(), None) is not None else index.trace.root)
    return "" if dtype == own else str(dtype).removeprefix("torch.")


def _other_path(maker: fx.Node, found: Carrier | None) -> Reason | None:
    span = record_of(maker).span
    if span is None or found is None or found.kind != "source":
        return None
    line = bypassing_condition(span)
    text = f"on one path of {span.method}: the condition in its line {line} can take another"
    return Reason("one-path", text) if line else None
