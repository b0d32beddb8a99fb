"""Who uses what, by declaration and by the calls that were seen?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from uno.core.monitoring.graph import DependencyGraph, Edge, Node
from uno.core.monitoring.graph.model import Level, NodeKind
from uno.core.monitoring.instrumentation import OWN, Stat
from uno.core.monitoring.resource_types.http_server import NO_FAULT
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.monitoring.type_monitor import ResourceTypeMonitor, ask
from uno.core.resources import Resource

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import SeriesStore

RATE_SECONDS = 10.0
LEVELS: dict[AlertLevel, Level] = {
    AlertLevel.OK: "ok",
    AlertLevel.WARNING: "warning",
    AlertLevel.CRITICAL: "critical",
}

#: The types of resources that tell of requests by route.
SERVERS = ("http_server", "opentelemetry")
MAX_ROUTES = 64

Totals = dict[tuple[str, str], tuple[float, float]]


class Callers:
    """Calls by resource and caller over the last seconds, for rates."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Totals]] = deque()

    def step(
        self,
        now: float,
        resources: Iterable[Resource],
        stat_of: Callable[[Resource], Stat | None],
        store: SeriesStore | None = None,
    ) -> None:
        """Note the totals, once a second at most."""
        if self._kept and now - self._kept[-1][0] < 1.0:
            return
        totals: Totals = {}
        for resource in resources:
            if store is not None and resource.type in SERVERS:
                for name, served in requests(store, resource.id).items():
                    totals[resource.id, name] = served
            stat = stat_of(resource)
            if stat is not None:
                for name, (calls, errors) in list(stat.callers.items()):
                    totals[resource.id, name] = (calls.value, errors.value)
        self._kept.append((now, totals))
        while now - self._kept[0][0] > RATE_SECONDS:
            self._kept.popleft()

    def rate(self, resource_id: str, caller: str) -> float | None:
        """Calls per second over the last 10 s; None while there is no such time."""
        if len(self._kept) < 2:
            return None
        (start, before), (end, after) = self._kept[0], self._kept[-1]
        key = (resource_id, caller)
        return max(0.0, after.get(key, (0.0, 0.0))[0] - before.get(key, (0.0, 0.0))[0]) / (end - start)


def requests(store: SeriesStore, resource_id: str) -> dict[str, tuple[float, float]]:
    """(requests, failures) of each route ("GET /orders/{id}") that a resource serves, up to the last tick."""
    found: dict[str, tuple[float, float]] = {}
    for series in store.select(resource_id, "http.server.request.duration"):
        labels = series.label_map
        route = labels.get("http.route")
        count = store.value(series, "count")
        if route is None or count is None:
            continue
        name = f"{labels.get('http.request.method', '')} {route}"
        calls, errors = found.get(name, (0.0, 0.0))
        failed = labels.get("error.type", "") not in ("", *NO_FAULT)
        found[name] = (calls + count, errors + (count if failed else 0.0))
    return found


def build_graph(monitor: ResourceMonitor) -> DependencyGraph:
    """Nodes and edges at this moment: from a web application to its routes, from routes and tasks to resources, from
    those to servers. A declared dependency on an id that does not exist yet is shown as unknown."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    for resource in monitor.manager:
        level = LEVELS[monitor.level_of(resource.id)]
        nodes[resource.id] = Node(
            resource.id, resource.name, resource.type, "resource", level, resource.endpoint or ""
        )
        for place in _endpoints(resource):
            server = f"server {place}"
            nodes.setdefault(server, Node(server, place, "server", "server", "unknown", place))
            edges.append(Edge(resource.id, server, "observed", 0, None, 0))
    for resource in monitor.manager:
        for needed in resource.depends_on:
            if needed not in nodes:
                nodes[needed] = Node(needed, needed, "unknown", "resource", "unknown")
            edges.append(Edge(resource.id, needed, "declared", 0, None, 0))
        stat = monitor.stat_of(resource)
        if stat is None:
            continue
        for name, (calls, errors) in list(stat.callers.items()):
            if name == OWN:
                continue
            kind: NodeKind = "task" if name.startswith(("task ", "thread ")) else "route"
            caller = f"caller {name}"
            nodes.setdefault(caller, Node(caller, name, kind, kind, "unknown"))
            rate = monitor.callers.rate(resource.id, name)
            edges.append(Edge(caller, resource.id, "observed", int(calls.value), rate, int(errors.value)))
    for resource in monitor.manager:
        if resource.type in SERVERS:
            served = requests(monitor.store, resource.id)
            busiest = sorted(served, key=lambda name: -served[name][0])[:MAX_ROUTES]
            for name in busiest:
                caller = f"caller {name}"
                nodes.setdefault(caller, Node(caller, name, "route", "route", "unknown"))
                rate = monitor.callers.rate(resource.id, name)
                edges.append(
                    Edge(resource.id, caller, "observed", int(served[name][0]), rate, int(served[name][1]))
                )
    return DependencyGraph(nodes.values(), edges)


def _endpoints(resource: Resource) -> list[str]:
    found = [resource.endpoint] if resource.endpoint else []
    target = resource.target
    if target is not None and isinstance(resource.driver, ResourceTypeMonitor):
        found += ask(resource.driver.endpoints, target, otherwise=[])
    return list(dict.fromkeys(found))
