"""The graph around one site of each distinct change, as plain data that a report can draw: the recorded graph of the
owner, with the new block in it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from se_inject.report import tables
from se_inject.search.ops import name_of
from se_inject.search.sites import Found
from se_inject.types import Decision, GraphNode

AROUND = 14  # nodes kept on each side of the block in a longer graph
NEW = "+"  # not a name that an fx node can have


def drawings(found: Found, decisions: Iterable[Decision]) -> dict[str, tuple[GraphNode, ...]]:
    """Site id -> the owner's graph with the block at that site, for the first site of each distinct change."""
    drawn = {}
    for group in tables.changes(decisions).values():
        first = group[0]
        places = found.places.get(first.site.id, ())
        if places:
            _, node, user = places[0]
            drawn[first.site.id] = _window(_nodes(node, user, first.block))
    return drawn


def _nodes(place: fx.Node, user: fx.Node | None, block: str) -> list[GraphNode]:
    nodes = []
    for node in place.graph.nodes:
        if node.op == "get_attr":
            continue  # weights are no steps of the data
        gets = user is None or node is user
        inputs = [NEW if n is place and gets else n.name for n in node.all_input_nodes if n.op != "get_attr"]
        nodes.append(GraphNode(node.name, _label(node), tuple(inputs)))
        if node is place:
            nodes.append(GraphNode(NEW, block, (node.name,), new=True))
    return nodes


def _window(nodes: list[GraphNode]) -> tuple[GraphNode, ...]:
    at = next((i for i, node in enumerate(nodes) if node.new), 0)
    kept = nodes[max(0, at - AROUND) : at + AROUND + 1]
    names = {node.name for node in kept}
    return tuple(GraphNode(n.name, n.label, tuple(i for i in n.inputs if i in names), n.new) for n in kept)


def _label(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return {"placeholder": "input", "output": "output"}.get(node.op) or name_of(node)
