"""Joins, forks and branches: the shape of the data flow in one graph.

join: an addition (``additions``) of two or more tensors of the same shape; chained ones are one join. fork: the
immediate dominator of the join, None when its operands come from different arguments. branch: what lies between the
fork and one operand. A join is residual when one branch is deep (two layers in a row, or one and an activation) and
another is a shortcut (no layer, one linear layer, or a projection) from the same value; branches of equal weight are a
sum.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

from torch import fx

from se_inject.search.additions import added, gathered, plain, returned
from se_inject.search.axes import area, channel_axis, settle_axis
from se_inject.search.chains import chain, longest, mixes, nonlinear, passes
from se_inject.search.ops import data, op, shape
from se_inject.trace.calls import record_of


@dataclass(frozen=True, eq=False)
class Branch:
    """One operand of a join, and the nodes between the fork and it (the operand included, the fork not)."""

    operand: fx.Node
    nodes: frozenset[fx.Node]
    weight: int  # 0 no layer, 1 layers side by side and no activation, or a projection, 2 deeper
    inner: tuple[fx.Node, ...] = ()  # of the fork's own graph, when the fork is a call that returns several values

    @property
    def direct(self) -> bool:
        """The operand is the fork itself, or an argument: nothing happens on this branch."""
        return not self.nodes or self.operand.op == "placeholder"

    @property
    def resamples(self) -> bool:
        return any(o.kind == "resample" for n in self.nodes for o in chain(n))


@dataclass(frozen=True, eq=False)
class Join:
    node: fx.Node
    fork: fx.Node | None
    branches: tuple[Branch, ...]
    parts: frozenset[fx.Node] = frozenset()  # the additions that it is made of, itself included

    @property
    def parted(self) -> bool:
        """Every branch takes its own part of the fork: slices, chunks of a split, items of a list."""
        inside = any(b.inner for b in self.branches)
        whole = any(not (b.inner if inside else b.nodes) for b in self.branches)
        firsts = [
            n for b in self.branches for n in (b.inner[:1] if inside else b.nodes) if inside or self.fork in data(n)
        ]
        return self.fork is not None and not whole and all(op(n).kind == "slice" for n in firsts)

    @property
    def shortcuts(self) -> tuple[Branch, ...]:
        return tuple(b for b in self.branches if b not in self.residual)

    @functools.cached_property
    def residual(self) -> tuple[Branch, ...]:
        """The deep branches, when there is a shortcut beside them; empty when the join is a mere sum."""
        deepest = max(b.weight for b in self.branches)
        deep = tuple(b for b in self.branches if b.weight == deepest)
        rest = [b for b in self.branches if b.weight < deepest]
        if not rest or any(b.resamples for b in rest):
            return ()
        if any(b.resamples for b in deep) and not all(b.direct for b in rest):
            return ()  # two maps brought to one size (FPN)
        if self.parted:
            return ()  # other values, not a shortcut (Res2Net)
        if deepest == 1 and not (len(deep) == 1 and all(b.direct for b in rest)):
            return ()  # RepVGG's parallel branches: layers side by side, or beside a norm
        if deepest == 1 and not any(mixes(node) for node in deep[0].nodes):
            return ()  # one depthwise convolution beside the value: a positional encoding, or a branch to be fused
        if self.fork is None and not any(record_of(b.operand).alone for b in rest):
            return ()  # two maps from two places (FPN, HRNet), not a shortcut that is passed in (DLA)
        return deep


def joins(graph: fx.Graph) -> list[Join]:
    """All joins of a graph, outermost operands of a chained sum taken together, in order of execution."""
    nodes = [n for n in graph.nodes if added(n)]
    if not nodes:
        return []
    above = dominators(graph)
    inner = {n for n in nodes if len(n.users) == 1 and plain(n) and any(n in added(user) for user in n.users)}
    found = []
    for node in nodes:
        if node in inner:
            continue
        operands, parts = _flatten(node, inner)
        fork = above[(node, *gathered(node))[-1]]
        found.append(Join(node, fork, _branches(operands, fork), frozenset(parts)))
        _settle(found[-1])
    return found


def _settle(join: Join) -> None:
    """What is added has one layout: where a reshape hides the axis of one operand (attention), the others tell."""
    axis = next((a for a in (channel_axis(b.operand) for b in join.branches) if a is not None), None)
    if axis is None:
        return
    for branch in join.branches:
        node = branch.operand
        while channel_axis(node) is None and shape(node) == shape(join.node):
            settle_axis(node, axis)
            if not passes(node) or node not in branch.nodes:
                break
            node = data(node)[0]


def concats(graph: fx.Graph) -> list[Join]:
    """Concatenations along the channels of branches with a common fork, one of which has a layer.

    The fork may lie in the caller's graph (VoVNet hands the outputs of earlier layers in as a list).
    """
    nodes = [n for n in graph.nodes if n.op.startswith("call") and op(n).kind == "cat" and len(data(n)) > 1]
    if not nodes:
        return []
    above, found = dominators(graph), []
    for node in nodes:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        axes = {channel_axis(operand) for operand in data(node)} - {None}
        if not isinstance(dim, int) or axes != {dim % max(len(shape(node)), 1)}:
            continue
        fork = above[node]
        group = Join(node, fork, tuple(_branch(operand, fork) for operand in data(node)), frozenset([node]))
        if fork is None:
            fork = outer_fork({n for b in group.branches for m in b.nodes for n in (m, *data(m))})
        layered = any(branch.weight for branch in group.branches)
        if fork is not None and layered and not any(branch.resamples for branch in group.branches):
            found.append(group)
    return found


def dense(group: Join) -> list[Join]:
    """The layers of a dense block (DenseNet), each as a join of its own: a deep branch that takes all operands before
    it, which are its shortcuts, and is concatenated with them instead of added to them. Empty for any other group."""
    first, *others = sorted(group.branches, key=lambda b: b.operand)
    if first.operand is not group.fork:
        return []
    shortcuts, seen, found = [first], set[fx.Node](), list[Join]()
    for branch in others:
        own = branch.nodes - seen
        takes = {source for n in own for source in data(n)}
        maps = all(area(n) in (1, area(first.operand)) for n in own if channel_axis(n) is not None)  # 1: a squeeze
        layer = branch.weight == 2 and any(map(mixes, own)) and any(map(nonlinear, own))
        if not layer or not maps or not {s.operand for s in shortcuts} <= takes:
            return []
        found.append(Join(group.node, group.fork, (*shortcuts, Branch(branch.operand, own, branch.weight))))
        shortcuts.append(Branch(branch.operand, frozenset(), 0))
        seen |= own
    return found


def _flatten(node: fx.Node, inner: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The operands of a chained addition, and the additions."""
    operands: list[fx.Node] = []
    parts = [node, *gathered(node)]
    for operand in added(node):
        deeper = _flatten(operand, inner) if operand in inner else ([operand], [])
        operands, parts = operands + deeper[0], parts + deeper[1]
    return list(dict.fromkeys(operands)), parts


def _branches(operands: list[fx.Node], fork: fx.Node | None) -> tuple[Branch, ...]:
    """The branches from the fork; of one that returns several values (PreResNet's bodies), in the fork's graph too."""
    made = [returned(operand, fork) for operand in operands]
    if fork is None or all(value is None for value in made):
        return tuple(_branch(operand, fork) for operand in operands)
    inside = [value for value in made if value is not None]
    above = dominators(inside[0].graph)
    first: fx.Node | None = inside[0]
    while first is not None and not all(_dominates(first, value, above) for value in inside):
        first = above[first]
    found = []
    for operand, value in zip(operands, made, strict=True):
        inner = sorted(_between(value, first)) if value is not None else []
        found.append(_branch(operand, fork, tuple(inner)))
    return tuple(found)


def _between(operand: fx.Node, fork: fx.Node | None) -> set[fx.Node]:
    """The nodes between a fork and a value, the value included."""
    nodes: set[fx.Node] = set()
    todo = [operand]
    while todo:
        node = todo.pop()
        if node is fork or node in nodes or (node.op == "placeholder" and node is not operand):
            continue
        nodes.add(node)
        todo.extend(data(node))
    return nodes


def _branch(operand: fx.Node, fork: fx.Node | None, inner: tuple[fx.Node, ...] = ()) -> Branch:
    nodes = _between(operand, fork)
    layers = longest(inner) + longest(sorted(nodes))  # nodes compare by their place in the graph
    weight = min(layers, 2)
    active = any(nonlinear(node) for node in (*inner, *nodes))
    if layers == 1 and active:
        weight = 2
    if weight == 2 and (layers == 1 or not active) and _projects(operand, nodes):
        weight = 1
    return Branch(operand, frozenset(nodes), weight, inner)


def _projects(operand: fx.Node, nodes: set[fx.Node]) -> bool:
    """Whether the branch ends with a 1x1 convolution: a depthwise one (GhostNet) or an activation (DPN) before it make
    it no less a projection."""
    node = operand
    while node in nodes:
        for o in reversed(chain(node)):
            if o.kind not in ("norm", "pass", "scale", "bias", "slice", "pad"):
                return o.pointwise
        if len(data(node)) != 1:
            return False
        node = data(node)[0]
    return False


def end(branch: Branch) -> fx.Node | None:
    """The last value of a branch before drop path, layer scale and the like; None when nothing else is on it.

    One of several values that a child returns has no expression of its own: what passes it on is the end then.
    """
    node = branch.operand
    while node in branch.nodes and passes(node) and data(node) and data(node)[0].target is not operator.getitem:
        node = data(node)[0]
    return node if node in branch.nodes and node.op != "placeholder" else None


# -- dominators: the value through which everything on the way to another has to go ------------------------------------
def dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node | None]:
    """Immediate dominator of every data node; None stands for a virtual root above all placeholders.

    One pass in topological order is enough, because the graph has no cycle (Cooper, Harvey and Kennedy 2001).
    """
    above: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node | None, int] = {None: 0}
    for node in graph.nodes:
        common: fx.Node | None = None
        sources = [n for n in data(node) if n in above]
        if sources:
            common = sources[0]
            for other in sources[1:]:
                common = _meet(common, other, above, depth)
        above[node] = common
        depth[node] = depth[common] + 1
    return above


def _dominates(node: fx.Node, other: fx.Node, above: dict[fx.Node, fx.Node | None]) -> bool:
    current: fx.Node | None = other
    while current is not None and current is not node:
        current = above[current]
    return current is node


def _meet(
    a: fx.Node | None, b: fx.Node | None, above: dict[fx.Node, fx.Node | None], depth: dict[fx.Node | None, int]
) -> fx.Node | None:
    while a is not b:
        if depth[a] >= depth[b]:
            assert a is not None
            a = above[a]
        else:
            assert b is not None
            b = above[b]
    return a


def outer_fork(nodes: set[fx.Node]) -> fx.Node | None:
    """The common dominator, in the caller's graph, of the arguments among ``nodes``."""
    outer = [o for n in nodes if n.op == "placeholder" and (o := record_of(n).outer) is not None]
    if not outer or len({n.graph for n in outer}) > 1:
        return None
    above = dominators(outer[0].graph)
    chains = []
    for node in outer:
        path, higher = [node], above.get(node)
        while higher is not None:
            path.append(higher)
            higher = above.get(higher)
        chains.append(path)
    return next((n for n in chains[0] if all(n in other for other in chains[1:])), None)
