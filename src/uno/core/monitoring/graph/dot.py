"""How does Graphviz want it? Valid whatever the names contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uno.core.monitoring.graph.model import (
    COLOURS,
    Edge,
    Node,
    about_node,
    drawn,
    ellipsis,
    known_rate,
    visible,
)


def draw_dot(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    handles = _handles(nodes)
    lines = [
        "digraph dependencies {",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="sans-serif", fontsize=11];',
        '  edge [fontname="sans-serif", fontsize=9, color="#757575"];',
    ]
    lines += [f"  {handles[node.id]} [{_node(node)}];" for node in nodes]
    lines += [f"  {handles[edge.source]} -> {handles[edge.target]} [{_edge(edge)}];" for edge in drawn(edges)]
    return "\n".join([*lines, "}", ""])


def _handles(nodes: Sequence[Node]) -> dict[str, str]:
    """For each node its name in the file: its id where that can be, else what is readable of it, numbered."""
    handles: dict[str, str] = {}
    used = {node.id for node in nodes}
    for number, node in enumerate(nodes):
        handle = visible(node.id)
        if handle != node.id or len(handle) > 200:
            handle = f"{handle[:80]}#{number}"
            while handle in used:
                handle += "'"
            used.add(handle)
        handles[node.id] = _quoted(handle)
    return handles


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _label(*lines: str) -> str:
    """A label: Graphviz reads backslash escapes and HTML entities in it."""
    return "\\n".join(_quoted(line.replace("&", "&amp;"))[1:-1] for line in lines if line)


def _attributes(attributes: Mapping[str, str]) -> str:
    return ", ".join(f'{key}="{value}"' for key, value in attributes.items())


def _node(node: Node) -> str:
    name, kind = ellipsis(node.name or node.id, 60), ellipsis(node.type, 60)
    attributes = {
        "label": _label(name, kind, "" if node.endpoint == node.name else ellipsis(node.endpoint, 60))
    }
    if node.level in ("warning", "critical"):  # in words too: colour alone tells nothing to some readers
        attributes["label"] += f"\\n[{node.level}]"
    attributes["tooltip"] = _label(about_node(node))
    attributes["class"] = f"node--{node.kind} level--{node.level}"
    if node.kind == "server":
        attributes["style"] = "bold"
    if node.level != "unknown":
        attributes["color"] = COLOURS[node.level]
    return _attributes(attributes)


def _edge(edge: Edge) -> str:
    attributes = {"class": f"edge--{edge.kind}"}
    if edge.kind == "declared":
        attributes["style"] = "dashed"
    if rate := known_rate(edge):
        attributes["label"] = rate
    if edge.failing:
        attributes["color"] = COLOURS["critical"]
    return _attributes(attributes)
