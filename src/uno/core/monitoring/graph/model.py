"""What is a dependency graph made of, and how is it said in words?"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal

from uno.core.records import NamedTuple

NodeKind = Literal["route", "task", "resource", "server"]
EdgeKind = Literal["declared", "observed"]
Level = Literal["ok", "warning", "critical", "unknown"]

KINDS: dict[str, int] = {"route": 0, "task": 0, "resource": 1, "server": 2}  # from left to right
COLOURS = {"ok": "#2da44e", "warning": "#bf8700", "critical": "#e5484d", "unknown": "currentColor"}

# Not allowed in XML, not shown by Graphviz, or able to turn the text around them: shown as U+FFFD.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class Node(NamedTuple):
    """One box: a route or task that calls, a resource that is used, or a server that a resource talks to."""

    id: str
    name: str = ""
    type: str = ""
    kind: NodeKind = "resource"
    level: Level = "unknown"
    endpoint: str = ""


class Edge(NamedTuple):
    """`source` depends on `target`; `calls` and `errors` are all there were, `rate` and `error_rate` those of a second
    at present, `latency` the mean seconds that a call takes at present; None when they are not known."""

    source: str
    target: str
    kind: EdgeKind = "declared"
    calls: int = 0
    rate: float | None = None
    errors: int = 0
    error_rate: float | None = None
    latency: float | None = None

    @property
    def failing(self) -> bool:
        """Whether calls fail at present; as far as that is not known, whether some ever did."""
        return self.errors > 0 if self.error_rate is None else self.error_rate > 0


class Calls(NamedTuple):
    """How often one thing called another, and how often in vain; what follows are those of a second at present: calls,
    calls in vain, calls that were timed, and the seconds that these took together."""

    calls: float = 0.0
    errors: float = 0.0
    rate: float | None = None
    error_rate: float | None = None
    timed_rate: float | None = None
    busy: float | None = None

    @property
    def latency(self) -> float | None:
        """The mean seconds that a call takes; None while none is timed."""
        return self.busy / self.timed_rate if self.busy is not None and self.timed_rate else None

    def plus(self, other: Calls) -> Calls:
        """Both together; what one of them does not know is the other's."""
        calls, errors = self.calls + other.calls, self.errors + other.errors
        return Calls(calls, errors, *map(together, self[2:], other[2:]))

    def edge(self, source: str, target: str) -> Edge:
        """The same as an edge that was observed."""
        numbers = int(self.calls), self.rate, int(self.errors), self.error_rate, self.latency
        return Edge(source, target, "observed", *numbers)


def together(a: float | None, b: float | None) -> float | None:
    """The sum of what is known."""
    return a if b is None else b if a is None else a + b


def drawn(edges: Iterable[Edge]) -> list[Edge]:
    """One edge for each pair of nodes: what was seen says more than what was declared."""
    best: dict[tuple[str, str], Edge] = {}
    for edge in edges:
        pair = edge.source, edge.target
        if pair not in best or edge.kind == "observed":
            best[pair] = edge
    return list(best.values())


def utf8(text: str) -> str:
    """The text with lone surrogates spelt out, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    return UNPRINTABLE.sub("\ufffd", text)


def _advance(char: str) -> float:
    """About how wide a character is in a sans-serif face, in units of a lower-case letter."""
    if unicodedata.combining(char):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF":
        return 1.85
    if char in "ijlt.,:;'|!()[]{}/ -r":
        return 0.65
    return 1.5 if char in "MWmw@%\u2014" else 1.2 if char.isupper() else 1.0


def ellipsis(text: str, width: float) -> str:
    """The text on one line; its middle goes when it is wider than `width`: both ends tell routes apart."""
    text = visible(" ".join(text[:4000].split()) + ("…" if len(text) > 4000 else ""))
    if len(text) <= width * 3 and sum(map(_advance, text)) <= width:
        return text
    head = _fitting(text, width * 0.6)
    tail = _fitting(text[::-1], width * 0.4 - 1)[::-1]
    return f"{head}…{tail}"


def _fitting(text: str, width: float) -> str:
    used = 0.0
    for count, char in enumerate(text):
        used += _advance(char)
        if used > width or count > width * 3:
            return text[:count]
    return text


def _per(rate: float) -> str:
    """Calls per second in the unit that gives a number people can read."""
    units = ((1e-3, "k/s"), (1.0, "/s"), (60.0, "/min"), (3600.0, "/h"))
    number, unit = next(((rate * f, u) for f, u in units if rate * f >= 0.95), (rate * 3600, "/h"))
    return f"{number:.0f}{unit}" if number >= 9.95 else f"{number:.2g}{unit}"


def _span(seconds: float) -> str:
    """Three digits of a time, in the unit that fits."""
    unit, name = next((u for u in ((1.0, "s"), (1e-3, "ms")) if seconds >= u[0]), (1e-6, "\u00b5s"))
    return f"{seconds / unit:.3g} {name}"


def known_rate(edge: Edge) -> str:
    return _per(edge.rate) if edge.rate is not None and 0 < edge.rate < math.inf else ""


def about_node(node: Node) -> str:
    parts = [node.name or node.id, node.type or node.kind, node.endpoint]
    if node.kind not in ("route", "task") or node.level != "unknown":
        parts.append(node.level)
    return ", ".join(visible(part[:300]) for part in parts if part)


def about_edge(edge: Edge, names: Mapping[str, str]) -> str:
    said = f"{names[edge.source]} \u2192 {names[edge.target]}: {edge.kind}"
    if rate := known_rate(edge):
        said += f", {rate}"
    if edge.calls:
        said += f", {edge.calls} calls"
    if edge.latency is not None and edge.latency >= 0:  # no NaN
        said += f", {_span(edge.latency)} each"
    return said + (f", {edge.errors} errors" if edge.errors else "")
