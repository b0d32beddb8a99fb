"""What depends on what: routes and tasks, the resources they use, the servers behind them.

Everything here is a value made from other values: no clock, no registry, no third-party library. The picture
is laid out here, on the server, so that page, report and notebook show the same one.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uno.core.monitoring.files import write
from uno.core.monitoring.graph.model import (
    COLOURS,
    KINDS,
    Edge,
    EdgeKind,
    Level,
    Node,
    NodeKind,
    together,
    utf8,
)

__all__ = ["DependencyGraph", "Edge", "EdgeKind", "Level", "Node", "NodeKind"]


class DependencyGraph:
    """A frozen dependency graph.

    Edges of one kind between the same two nodes are added up; a node that only edges name is added as a
    resource of unknown level, because what is declared may not exist (yet). Raises ValueError for two nodes
    of the same id and for unknown kinds and levels.
    """

    __slots__ = ("_next", "_previous", "edges", "nodes")

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def __init__(self, nodes: Iterable[Node] = (), edges: Iterable[Edge] = ()) -> None:
        by_id: dict[str, Node] = {}
        for node in nodes:
            if node.id in by_id:
                raise ValueError(f"two nodes have the id {node.id[:80]!r}; ids in a graph are unique")
            if node.kind not in KINDS:
                raise ValueError(f"a node's kind is one of {', '.join(KINDS)}, not {node.kind!r}")
            if node.level not in COLOURS:
                raise ValueError(f"a node's level is one of {', '.join(COLOURS)}, not {node.level!r}")
            by_id[node.id] = node
        merged: dict[tuple[str, str, str], Edge] = {}
        for edge in edges:
            if edge.kind not in ("declared", "observed"):
                raise ValueError(f"an edge's kind is declared or observed, not {edge.kind!r}")
            key = edge.source, edge.target, edge.kind
            merged[key] = _sum(merged[key], edge) if key in merged else edge
            for end in (edge.source, edge.target):
                by_id.setdefault(end, Node(end, end))
        self.nodes = tuple(by_id.values())
        self.edges = tuple(merged.values())
        self._next: dict[str, list[str]] = defaultdict(list)
        self._previous: dict[str, list[str]] = defaultdict(list)
        for source, target, _ in merged:
            self._next[source].append(target)
            self._previous[target].append(source)

    def __repr__(self) -> str:
        return f"<DependencyGraph: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def downstream(self, id: str) -> set[str]:
        """Ids of everything that the node needs, directly or not. Raises KeyError for an unknown id."""
        return self._reach(id, self._next)

    def upstream(self, id: str) -> set[str]:
        """Ids of all that is hit when the node fails, its blast radius. Raises KeyError for an unknown id."""
        return self._reach(id, self._previous)

    def _reach(self, id: str, step: Mapping[str, list[str]]) -> set[str]:
        if all(node.id != id for node in self.nodes):
            raise KeyError(f"no node {id[:80]!r} in this graph")
        seen: set[str] = set()
        todo = [id]
        while todo:
            for other in step.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen - {id}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts that every JSON parser accepts: no NaN, no lone surrogates."""
        return {
            "nodes": [_json_safe(node) for node in self.nodes],
            "edges": [_json_safe(edge) for edge in self.edges],
        }

    def to_dot(self) -> str:
        """The graph in Graphviz' language, valid whatever the names contain."""
        from uno.core.monitoring.graph.dot import draw_dot  # drawing is loaded when something is drawn

        return draw_dot(self.nodes, self.edges)

    def to_svg(self, *, links: bool = True) -> str:
        """One self-contained SVG element, deterministic, with nothing in it that runs.

        Looks come from presentation attributes in `currentColor`, which a page overrides by class
        (`node node--resource level--ok`, `edge edge--observed`). With `links` each resource is a link to
        `#/resource/<id>` and the picture is a group; without, it is one image (assistive technology does not
        look inside an image).
        """
        from uno.core.monitoring.graph.svg import draw_svg

        return draw_svg(self.nodes, self.edges, links=links)

    def _repr_svg_(self) -> str:
        return self.to_svg(links=False)

    def export_dot(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dot()` to a file, in one piece or not at all, with its directory. Raises OSError."""
        return write(path, lambda file: file.write(self.to_dot()))

    def export_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict()` to a file, in one piece or not at all, with its directory. Raises OSError."""
        import json

        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return write(path, lambda file: file.write(text))


def _sum(a: Edge, b: Edge) -> Edge:
    return a._replace(
        calls=a.calls + b.calls,
        rate=together(a.rate, b.rate),
        errors=a.errors + b.errors,
        error_rate=together(a.error_rate, b.error_rate),
        latency=_mean(a, b),
    )


def _mean(a: Edge, b: Edge) -> float | None:
    known = [(edge.latency, edge.rate or 0.0) for edge in (a, b) if edge.latency is not None]
    weight = sum(rate for _, rate in known)
    if not weight:
        return max((latency for latency, _ in known), default=None)
    return sum(latency * rate for latency, rate in known) / weight


def _json_safe(row: Node | Edge) -> dict[str, Any]:
    def safe(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return utf8(value) if isinstance(value, str) else value

    return {key: safe(value) for key, value in row._asdict().items()}
