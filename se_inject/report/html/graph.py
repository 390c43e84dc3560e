"""A graph as inline SVG: its nodes below each other in order, neighbours joined by a line, all other edges beside."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from se_inject.report.tables import visible
from se_inject.types import GraphNode

WIDE, HIGH, STEP, LANE, EDGE = 132, 24, 36, 14, 6
LONGEST = 18  # characters of a label


def graph(nodes: Sequence[GraphNode], *, after: bool = True) -> Markup:
    """The graph with its new nodes, or what it was without them; both have the same rows."""
    rows = {node.name: row for row, node in enumerate(nodes)}
    if not after:
        nodes = without(nodes)
    order = {node.name: i for i, node in enumerate(nodes)}
    edges = [(a, node.name) for node in nodes for a in dict.fromkeys(node.inputs) if a in order]
    far = [(rows[a], rows[b]) for a, b in edges if order[b] != order[a] + 1]
    lanes = _lanes(far)
    parts = [_near(rows[a], rows[b]) for a, b in edges if order[b] == order[a] + 1]
    parts += [_far(a, b, lane) for (a, b), lane in zip(far, lanes, strict=True)]
    parts += [_box(node, rows[node.name]) for node in nodes]
    wide = EDGE + WIDE + (max(lanes, default=-1) + 2) * LANE
    high = 2 * EDGE + HIGH + (len(rows) - 1) * STEP
    return Markup(
        '<svg class="graph" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(wide, high, wide, high, "graph after" if after else "graph before", Markup("").join(parts))


def without(nodes: Sequence[GraphNode]) -> list[GraphNode]:
    """The nodes that are not new; what took a new node's value takes what that node took."""
    source = {node.name: node.inputs[0] for node in nodes if node.new and node.inputs}
    return [
        GraphNode(node.name, node.label, tuple(source.get(name, name) for name in node.inputs))
        for node in nodes
        if not node.new
    ]


def _lanes(edges: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each edge, so that no two in one lane overlap; short edges are nearest to the nodes."""
    lanes = [0] * len(edges)
    taken: list[list[tuple[int, int]]] = []
    for i in sorted(range(len(edges)), key=lambda i: (abs(edges[i][1] - edges[i][0]), edges[i])):
        low, high = sorted(edges[i])
        lane = next((n for n, used in enumerate(taken) if all(high <= a or low >= b for a, b in used)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes[i] = lane
    return lanes


def _near(a: int, b: int) -> Markup:
    x = EDGE + WIDE // 2
    return Markup('<path class="wire" d="M{0} {1}V{2}"/>').format(x, EDGE + a * STEP + HIGH, EDGE + b * STEP)


def _far(a: int, b: int, lane: int) -> Markup:
    x, side = EDGE + WIDE, EDGE + WIDE + (lane + 1) * LANE
    start, end = EDGE + a * STEP + HIGH * 2 // 3, EDGE + b * STEP + HIGH // 3
    return Markup(
        '<path class="wire" d="M{0} {1}H{2}V{3}H{0}"/><circle class="tip" cx="{0}" cy="{3}" r="2.5"/>'
    ).format(x, start, side, end)


def _box(node: GraphNode, row: int) -> Markup:
    y, label = EDGE + row * STEP, visible(node.label)
    short = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
    return Markup(
        '<g class="{}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="6"/>'
        '<text x="{}" y="{}">{}</text></g>'
    ).format("new" if node.new else "box", label, EDGE, y, WIDE, HIGH, EDGE + WIDE // 2, y + 16, short)
