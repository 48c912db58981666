"""Where the boxes of a graph go: layers by a library, lanes by phase.

``layered`` is all that is asked of the library. Without it (or on a Python it does not support)
networkx's generations take its place: the same layers, with more crossings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Edge = tuple[int, int]
# column and layer of each box, both from 0
Places = dict[int, tuple[float, int]]

MANY = 12


def layered(nodes: Sequence[int], edges: Sequence[Edge]) -> Places:
    """Place the nodes of an acyclic graph in layers, so that every edge leads further down.

    What so many lead to that it would decide the whole layout stands alone in the first layer.
    """
    into = Counter(b for _, b in edges)
    edges = [edge for edge in edges if into[edge[1]] <= MANY]
    inside = {node for edge in edges for node in edge}
    places = _by_library(edges) if edges else {}
    if not places and edges:
        places = _by_generations(edges)
    first = max((column + 1 for column, layer in places.values() if not layer), default=0.0)
    alone = [node for node in nodes if node not in inside]
    return {**places, **{node: (first + i, 0) for i, node in enumerate(alone)}}


def _by_library(edges: Sequence[Edge]) -> Places:
    try:
        from fast_sugiyama import from_edges
    except ImportError:
        return {}
    # numbers from len(names) on are the library's own, on the way of long edges
    names = sorted({node for edge in edges for node in edge})
    number = {node: i for i, node in enumerate(names)}
    dense = [(number[a], number[b]) for a, b in edges]
    places: Places = {}
    start = 0.0
    for positions, width, _, _ in from_edges(dense, minimum_length=1, vertex_spacing=1):
        own = [(i, x, y) for i, (x, y) in positions if isinstance(i, int) and i < len(names)]
        known = [(names[i], x, y) for i, x, y in own]
        heights = sorted({y for _, _, y in known}, reverse=True)
        left = min(x for _, x, _ in known)
        for node, x, y in known:
            places[node] = (start + x - left, heights.index(y))
        start += width + 1
    return places


def _by_generations(edges: Sequence[Edge]) -> Places:
    import networkx

    graph = networkx.DiGraph(edges)
    places: Places = {}
    for layer, nodes in enumerate(networkx.topological_generations(graph)):
        above = {
            node: [places[source][0] for source in graph.predecessors(node)] for node in nodes
        }
        for column, node in enumerate(sorted(nodes, key=lambda n: (_mean(above[n]), n))):
            places[node] = (float(column), layer)
    return places


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def in_lanes(
    nodes: Sequence[int], edges: Iterable[Edge], lanes: Mapping[int, int], upward: int = 1
) -> Places:
    """Place nodes with a lane of columns for each phase; lane ``upward`` runs from below to above.

    So the backward pass lies beside the forward pass that it undoes, and what it reads of that
    crosses over at one height. Nodes are numbered in the order in which they run.
    """
    edges = sorted({(a, b) for a, b in edges if a < b})
    if len(set(lanes.values())) < 2:
        return layered(nodes, edges)
    depth = _depth(nodes, edges)
    places: Places = {}
    start = 0.0
    for lane in sorted(set(lanes.values())):
        members = [node for node in nodes if lanes[node] == lane]
        if lane == upward:
            rows = _alongside(members, edges, {node: row for node, (_, row) in places.items()})
            found = _side_by_side(rows, depth)
        else:
            inside = [(a, b) for a, b in edges if lanes[a] == lanes[b] == lane]
            found = layered(members, inside)
        places |= {node: (start + column, row) for node, (column, row) in found.items()}
        start += max(column for column, _ in found.values()) + 1
    top = min(row for _, row in places.values())
    return {node: (column, row - top) for node, (column, row) in places.items()}


def _alongside(nodes: Sequence[int], edges: Sequence[Edge], rows: Mapping[int, int]) -> dict:
    """Return rows for nodes: beside what they read in ``rows``, and above what comes before."""
    bottom = max(rows.values(), default=0)
    sources: dict[int, list[int]] = {}
    for a, b in edges:
        sources.setdefault(b, []).append(a)
    found: dict[int, int] = {}
    for node in sorted(nodes):
        before = sources.get(node, ())
        row = min((found[s] - 1 for s in before if s in found), default=bottom)
        beside = [rows[s] for s in before if s in rows]
        found[node] = min(row, max(beside)) if beside else row
    return found


def _side_by_side(rows: Mapping[int, int], depth: Mapping[int, int]) -> Places:
    """Return columns for nodes of the same row, the one with the longest chain after it first."""
    places: Places = {}
    taken: Counter[int] = Counter()
    for node in sorted(rows, key=lambda n: (-depth[n], n)):
        places[node] = (float(taken[rows[node]]), rows[node])
        taken[rows[node]] += 1
    return places


def _depth(nodes: Sequence[int], edges: Sequence[Edge]) -> dict[int, int]:
    """Return how many nodes the longest chain through each node has after it."""
    import networkx

    graph = networkx.DiGraph(edges)
    depth = dict.fromkeys(nodes, 0)
    for node in reversed(list(networkx.topological_sort(graph))):
        depth[node] = max((depth[b] + 1 for b in graph.successors(node)), default=0)
    return depth
