"""Where does each node go? Columns by depth, few crossings, straight lines.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures",
1981: layers by longest path, virtual points where an edge passes a layer, order by barycentres, then places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from uno.core.monitoring.graph.model import KINDS, Edge, Node
from uno.core.records import NamedTuple

NODE_W, NODE_H, ROW_GAP, COLUMN_GAP = 196.0, 46.0, 14.0, 96.0  # pixels


class Point(NamedTuple):
    """A place in a layer: of a node, or where the edges to `node` pass by."""

    layer: int
    node: str
    real: bool


class Layout:
    """Where the connected nodes go: `layers` in order, and the vertical centre `y` of each point."""

    def __init__(self, nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
        self.layer = _layers(nodes, edges)
        points = {node.id: Point(self.layer[node.id], node.id, True) for node in nodes}
        self.route: dict[tuple[str, str], list[Point]] = {}
        links: set[tuple[Point, Point]] = set()
        for edge in edges:
            source, target = points[edge.source], points[edge.target]
            # Edges to one target share the points they pass: a line never leads anywhere else.
            passing = [Point(k, edge.target, False) for k in range(source.layer + 1, target.layer)]
            path = self.route[edge.source, edge.target] = [source, *passing, target]
            if source.layer < target.layer:
                links.update(pairwise(path))
        self.left: dict[Point, list[Point]] = defaultdict(list)
        self.right: dict[Point, list[Point]] = defaultdict(list)
        for a, b in sorted(links):
            self.right[a].append(b)
            self.left[b].append(a)
        self.layers = self._start([points[node.id] for node in nodes])
        self._order()
        self.y = self._place()

    def _start(self, points: Sequence[Point]) -> list[list[Point]]:
        """Each point in the order in which a walk along the edges meets it: what belongs together is near."""
        layers: list[list[Point]] = [[] for _ in range(max((p.layer for p in points), default=-1) + 1)]
        seen: set[Point] = set()
        for first in sorted(points):
            todo = [first]
            while todo:
                point = todo.pop()
                if point not in seen:
                    seen.add(point)
                    layers[point.layer].append(point)
                    todo += [*reversed(self.right[point]), *self.left[point]]
        return layers

    def _order(self) -> None:
        best, fewest = [list(layer) for layer in self.layers], self._crossings()
        for sweep in range(8):
            if not fewest:
                break
            forward = sweep % 2 == 0
            for layer in self.layers if forward else reversed(self.layers):
                neighbours = self.left if forward else self.right
                place = {p: float(i) for side in self._beside(layer, forward) for i, p in enumerate(side)}
                key = {p: _mean([place[q] for q in neighbours[p]], float(i)) for i, p in enumerate(layer)}
                layer.sort(key=key.__getitem__)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(layer) for layer in self.layers], crossings
        self.layers = best

    def _beside(self, layer: list[Point], forward: bool) -> list[list[Point]]:
        other = layer[0].layer + (-1 if forward else 1)
        return [self.layers[other]] if 0 <= other < len(self.layers) else []

    def _crossings(self) -> int:
        """Pairs of edges that cross between neighbouring layers (inversions, counted by a Fenwick tree)."""
        total = 0
        for here, there in pairwise(self.layers):
            place = {p: i for i, p in enumerate(there)}
            tree, seen = [0] * (len(there) + 1), 0
            for point in here:
                ends = sorted(place[q] for q in self.right[point])
                for end in ends:
                    k, at_or_before = end + 1, 0
                    while k:
                        at_or_before += tree[k]
                        k &= k - 1
                    total += seen - at_or_before
                for end in ends:
                    k = end + 1
                    while k <= len(there):
                        tree[k] += 1
                        k += k & -k
                seen += len(ends)
        return total

    def _place(self) -> dict[Point, float]:
        """Every point as near to its neighbours as order and room in its layer allow."""
        y: dict[Point, float] = {}
        room: dict[Point, float] = {}  # distance from the top of the layer when packed
        for layer in self.layers:
            at = 0.0
            for point in layer:
                half = (NODE_H if point.real else 4.0) / 2
                room[point] = y[point] = at + half
                at += 2 * half + ROW_GAP
        for sweep in range(6):
            sides = (self.left, self.right) if sweep == 5 else ((self.left,), (self.right,))[sweep % 2]
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                wish = [
                    _mean([y[q] for side in sides for q in side[p]], otherwise=y[p]) - room[p] for p in layer
                ]
                for point, offset in zip(layer, _ascending(wish), strict=True):
                    y[point] = room[point] + offset
        top = min((y[p] - NODE_H / 2 for p in y), default=0.0)
        return {point: at - top for point, at in y.items()}


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _ascending(values: Sequence[float]) -> list[float]:
    """The nearest values that never fall (least squares, pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while blocks and blocks[-1][0] * count >= total * blocks[-1][1]:
            more, size = blocks.pop()
            total, count = total + more, count + size
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def _components(ids: Sequence[str], step: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Strongly connected components, each after all that it leads to (Tarjan 1972, without recursion)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    waiting: set[str] = set()
    out: list[list[str]] = []
    for start in ids:
        if start in number:
            continue
        number[start] = low[start] = len(number)
        stack.append(start)
        waiting.add(start)
        work = [(start, iter(step[start]))]
        while work:
            here, rest = work[-1]
            for other in rest:
                if other not in number:
                    number[other] = low[other] = len(number)
                    stack.append(other)
                    waiting.add(other)
                    work.append((other, iter(step[other])))
                    break
                if other in waiting:
                    low[here] = min(low[here], number[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[here])
                if low[here] == number[here]:
                    cut = stack.index(here)
                    out.append(stack[cut:])
                    waiting.difference_update(stack[cut:])
                    del stack[cut:]
    return out


def _layers(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, int]:
    """Longest path from the left, a cycle in one layer; routes left, servers right."""
    step: dict[str, list[str]] = {node.id: [] for node in nodes}
    for edge in edges:
        step[edge.source].append(edge.target)
    first = min((KINDS[node.kind] for node in nodes), default=0)
    layer = {node.id: min(KINDS[node.kind], 1) - min(first, 1) for node in nodes}
    for component in reversed(_components([node.id for node in nodes], step)):
        members = set(component)
        here = max(layer[id] for id in component)
        for id in component:
            layer[id] = here
        for id in component:
            for target in step[id]:
                if target not in members:
                    layer[target] = max(layer[target], here + 1)
    last = max(layer.values(), default=0)
    ends = [node.id for node in nodes if node.kind == "server" and not step[node.id]]
    return layer | dict.fromkeys(ends, last)
