"""How does the picture look? One SVG element with nothing in it that runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from urllib.parse import quote

from uno.core.monitoring.graph.layout import COLUMN_GAP, NODE_H, NODE_W, ROW_GAP, Layout, Point
from uno.core.monitoring.graph.model import (
    COLOURS,
    KINDS,
    Edge,
    Node,
    about_edge,
    about_node,
    drawn,
    ellipsis,
    known_rate,
    utf8,
    visible,
)

_MARGIN = 12.0
_GLYPHS = {  # told apart by shape, not only by colour; around (0, 0)
    "ok": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "warning": "M0-6L6 5H-6z",
    "critical": "M-5-5H5V5H-5z",
    "unknown": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
}
_CORNERS = {"route": 23, "task": 23, "resource": 9, "server": 3}


def draw_svg(nodes: Sequence[Node], edges: Sequence[Edge], *, links: bool) -> str:
    return _Picture(nodes, edges, links).svg()


class _Picture:
    def __init__(self, nodes: Sequence[Node], edges: Sequence[Edge], links: bool) -> None:
        self.links = links
        self.nodes = sorted(nodes, key=_rank)
        self.edges = sorted(drawn(edges), key=lambda edge: (edge.source, edge.target))
        self.names = {node.id: visible((node.name or node.id)[:120]) for node in self.nodes}
        connected = {end for edge in self.edges for end in (edge.source, edge.target)}
        self.layout = Layout([node for node in self.nodes if node.id in connected], self.edges)
        self.centre: dict[str, tuple[float, float]] = {}
        for layer in self.layout.layers:
            for point in layer:
                if point.real:
                    self.centre[point.node] = self._x(point), self.layout.y[point]
        self.bottom = max((y + NODE_H / 2 for _, y in self.centre.values()), default=0.0)
        self._grid([node for node in self.nodes if node.id not in connected])
        self.taken: set[tuple[int, int]] = set()  # cells with a label in them

    def _x(self, point: Point) -> float:
        return point.layer * (NODE_W + COLUMN_GAP) + NODE_W / 2

    def _grid(self, nodes: Sequence[Node]) -> None:
        """Nodes without edges: rows under the rest, as wide as it; about 3 : 2 when there is nothing else."""
        if not nodes:
            return
        width = len(self.layout.layers) * (NODE_W + COLUMN_GAP)
        fair = math.ceil(math.sqrt(len(nodes) * 1.5 * NODE_H / NODE_W))
        columns = min(len(nodes), max(int(width // (NODE_W + ROW_GAP)), fair, 3))
        top = self.bottom + 2 * ROW_GAP if self.bottom else 0.0
        for k, node in enumerate(nodes):
            row, column = divmod(k, columns)
            self.centre[node.id] = (
                column * (NODE_W + ROW_GAP) + NODE_W / 2,
                top + row * (NODE_H + ROW_GAP) + NODE_H / 2,
            )

    def svg(self) -> str:
        if not self.nodes:
            text = '<text x="140" y="34" text-anchor="middle" fill="currentColor">Nothing to draw yet</text>'
            return self._frame(280.0, 60.0, [text])
        edges = [self._edge(edge) for edge in self.edges]
        nodes = [self._node(node) for node in self.nodes]
        right = max(x for x, _ in self.centre.values()) + NODE_W / 2
        bottom = max(y for _, y in self.centre.values()) + NODE_H / 2
        bulge = COLUMN_GAP / 2 if any(self._within(edge) for edge in self.edges) else 0.0
        return self._frame(right + 2 * bulge, bottom, [*edges, *nodes], -bulge)

    def _frame(self, width: float, height: float, parts: Sequence[str], left: float = 0.0) -> str:
        w, h = math.ceil(width + 2 * _MARGIN), math.ceil(height + 2 * _MARGIN)
        role = "group" if self.links else "img"
        # A grey that reads on white and on black alike, for a file that is opened alone; a page sets its own.
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" class="graph"'
            f' viewBox="{left - _MARGIN:g} {-_MARGIN:g} {w} {h}"'
            f' width="{w}" height="{h}" role="{role}" aria-label="Dependency graph" color="#757575"'
            ' font-family="system-ui, sans-serif" font-size="13">'
            f"<title>Dependency graph</title><desc>{_xml(self._summary())}</desc>{''.join(parts)}</svg>"
        )

    def _summary(self) -> str:
        said = f"{len(self.nodes)} nodes, {len(self.edges)} edges."
        for level in ("critical", "warning"):
            names = [self.names[node.id] for node in self.nodes if node.level == level]
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                said += f" {level.capitalize()}: {', '.join(names[:5])}{more}."
        return said

    def _node(self, node: Node) -> str:
        x, y = self.centre[node.id]
        caller = node.kind in ("route", "task")
        marked = not (caller and node.level == "unknown")
        left = -NODE_W / 2 + (30 if marked else 18)
        width = NODE_W / 2 - left - (18 if caller else 10)
        below = " · ".join(
            part
            for part in (node.type or node.kind, node.endpoint if node.endpoint != node.name else "")
            if part
        )
        colour = COLOURS[node.level]
        edge = colour if node.level in ("warning", "critical") else "currentColor"
        parts = [
            f"<title>{_xml(about_node(node))}</title>",
            f'<rect class="node__box" x="{-NODE_W / 2:g}" y="{-NODE_H / 2:g}" width="{NODE_W:g}"'
            f' height="{NODE_H:g}" rx="{_CORNERS[node.kind]}" fill="currentColor" fill-opacity="0.08"'
            f' stroke="{edge}" stroke-width="{2 if edge == colour != "currentColor" else 1}"/>',
        ]
        if marked:
            fill = f'fill="{colour}"' if node.level != "unknown" else 'fill="none" stroke="currentColor"'
            place = f'transform="translate({left - 15:g} 0)"'
            parts.append(f'<path class="node__glyph" {place} d="{_GLYPHS[node.level]}" {fill}/>')
        name = _xml(ellipsis(node.name or node.id, width / 7.8))
        kind = _xml(ellipsis(below, width / 6.5))
        parts += [
            f'<text class="node__name" x="{left:g}" y="-3" fill="currentColor" font-weight="600">{name}'
            "</text>",
            f'<text class="node__type" x="{left:g}" y="13" fill="currentColor" font-size="11">{kind}</text>',
        ]
        group = (
            f'<g class="node node--{node.kind} level--{node.level}" transform="translate({x:.5g} {y:.6g})">'
            + "".join(parts)
            + "</g>"
        )
        if self.links and node.kind == "resource":
            href = _xml(quote(utf8(node.id), safe=""))
            return f'<a href="#/resource/{href}">{group}</a>'
        return group

    def _within(self, edge: Edge) -> bool:
        return self.layout.layer[edge.source] == self.layout.layer[edge.target]

    def _edge(self, edge: Edge) -> str:
        (x1, y1), (x2, y2) = self.centre[edge.source], self.centre[edge.target]
        half = NODE_W / 2
        if edge.source == edge.target:
            line, at = f"M{x1 + half:.6g} {y1 - 8:.6g}c26-14 26 30 0 16", [(x1 + half + 24, y1)]
            head = f"M{x1 + half + 8:.6g} {y1 + 7:.6g}l-8 1l4 6"
        elif self._within(edge):  # part of a cycle: down on the right side, up on the left one
            side = 1 if y2 > y1 else -1
            bend = min(COLUMN_GAP * 0.42, 14 + abs(y2 - y1) / 8)
            a, b, c = x1 + side * half, x2 + side * half, x1 + side * (half + bend * 4 / 3)
            line = f"M{a:.6g} {y1:.6g}C{c:.6g} {y1:.6g} {c:.6g} {y2:.6g} {b:.6g} {y2:.6g}"
            head = f"M{b + side * 7:.6g} {y2 - 4:.6g}l{-side * 7} 4l{side * 7} 4"
            at = [(x1 + side * (half + bend), (y1 + y2) / 2)]
        else:
            line, at = self._smooth(self.layout.route[edge.source, edge.target])
            head = f"M{x2 - half - 7:.6g} {y2 - 4:.6g}l7 4l-7 4"
        colour = COLOURS["critical"] if edge.failing else "currentColor"
        css = f"edge edge--{edge.kind}" + (" edge--errors" if edge.failing else "")
        dashed = ' stroke-dasharray="5 4"' if edge.kind == "declared" else ""
        return (
            f'<g class="{css}" fill="none" stroke="{colour}" stroke-opacity="0.7">'
            f"<title>{_xml(about_edge(edge, self.names))}</title>"
            f'<path class="edge__line" d="{line}"{dashed}/><path class="edge__head" d="{head}"/>'
            f"{self._label(known_rate(edge), at)}</g>"
        )

    def _smooth(self, path: Sequence[Point]) -> tuple[str, list[tuple[float, float]]]:
        """A line from box to box, level where it passes a layer; and places for its label, best first."""
        y = self.layout.y
        x, line, at = self._x(path[0]) + NODE_W / 2, "", list[tuple[float, float]]()
        for here, there in pairwise(path):
            end = self._x(there) - NODE_W / 2
            middle = (x + end) / 2
            line += (f"L{x:.6g} {y[here]:.6g}" if line else f"M{x:.6g} {y[here]:.6g}") + (
                f"C{middle:.6g} {y[here]:.6g} {middle:.6g} {y[there]:.6g} {end:.6g} {y[there]:.6g}"
            )
            for t in () if at else (0.5, 0.35, 0.65, 0.25, 0.75):  # of the first curve: nearest to the source
                blend = t * t * (3 - 2 * t)
                across = 1.5 * t * (1 - t) + t**3
                at.append((x + (end - x) * across, y[here] + (y[there] - y[here]) * blend))
            x = end + NODE_W
        return line, at

    def _label(self, text: str, places: Sequence[tuple[float, float]]) -> str:
        """The rate where no other label is; left out (the title has it) where all places are taken."""
        width = 6.5 * len(text) if text else 0.0
        for x, y in places if text else ():
            cells = {
                (int((x - width / 2 + dx) // 8), int((y + dy) // 6))
                for dx in range(0, int(width) + 8, 8)
                for dy in (-12, -6, 0)
            }
            if not cells & self.taken:
                self.taken |= cells
                return (
                    f'<text class="edge__rate" x="{x:.6g}" y="{y - 4:.6g}" text-anchor="middle"'
                    f' font-size="11" fill="currentColor" stroke="none">{_xml(text)}</text>'
                )
        return ""


def _rank(node: Node) -> tuple[int, str, str, str]:
    """From left to right and from top to bottom, `worker 2` before `worker 10`."""
    return KINDS[node.kind], node.kind, re.sub(r"\d{1,12}", lambda m: m[0].zfill(12), node.id), node.id


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
