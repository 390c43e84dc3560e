"""Dominators of a data-flow graph: the value through which everything on the way to another has to go."""

from __future__ import annotations

from torch import fx

from se_inject.search.nodes import data
from se_inject.trace.records import record_of


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
