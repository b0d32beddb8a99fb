"""Who uses what, by declaration and by the calls that were seen?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import reduce
from typing import TYPE_CHECKING

from uno.core.monitoring.health import Health, HealthStatus
from uno.core.monitoring.instrumentation import OWN, Stat
from uno.core.monitoring.resource_types.http_server import NO_FAULT
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.monitoring.type_monitor import ResourceTypeMonitor, ask
from uno.core.resources import Resource

if TYPE_CHECKING:
    from uno.core.monitoring.graph import DependencyGraph, Node
    from uno.core.monitoring.graph.model import Calls, Level, NodeKind
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import SeriesStore

RATE_SECONDS = 10.0
#: From well to bad.
RANK: dict[Level, int] = {"ok": 0, "unknown": 1, "warning": 2, "critical": 3}
_OF_ALERT: dict[AlertLevel, Level] = {
    AlertLevel.OK: "ok",
    AlertLevel.WARNING: "warning",
    AlertLevel.CRITICAL: "critical",
}
_OF_STATUS: dict[HealthStatus, Level] = {
    HealthStatus.UP: "ok",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.SATURATED: "warning",
    HealthStatus.UNKNOWN: "unknown",
    HealthStatus.DOWN: "critical",
}

#: The types of resources that tell of requests by route.
SERVERS = ("http_server", "opentelemetry")
MAX_ROUTES = 64

#: Calls, calls in vain, calls that were timed, and the seconds that these took.
Totals = tuple[float, float, float, float]
NONE: Totals = (0.0, 0.0, 0.0, 0.0)


class Callers:
    """Calls by resource and caller over the last seconds, for rates."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, dict[tuple[str, str], Totals]]] = deque()

    def step(
        self,
        now: float,
        resources: Iterable[Resource],
        stat_of: Callable[[Resource], Stat | None],
        store: SeriesStore,
    ) -> None:
        """Note the totals, once a second at most."""
        if self._kept and now - self._kept[-1][0] < 1.0:
            return
        totals: dict[tuple[str, str], Totals] = {}
        for resource in resources:
            for name, served in _totals(resource, stat_of(resource), store).items():
                totals[resource.id, name] = served
        self._kept.append((now, totals))
        while now - self._kept[0][0] > RATE_SECONDS:
            self._kept.popleft()

    def calls(self, resource: Resource, stat: Stat | None, store: SeriesStore) -> dict[str, Calls]:
        """Who calls a resource, or by which routes it is called."""
        from uno.core.monitoring.graph.model import Calls

        return {
            name: Calls(*served[:2], *self._present(resource.id, name))
            for name, served in _totals(resource, stat, store).items()
        }

    def _present(self, resource_id: str, caller: str) -> list[float]:
        """The totals of a second over the last 10 s; empty while there is no such time."""
        if len(self._kept) < 2:
            return []
        (start, before), (end, after) = self._kept[0], self._kept[-1]
        key = (resource_id, caller)
        pairs = zip(before.get(key, NONE), after.get(key, NONE), strict=True)
        return [max(0.0, new - old) / (end - start) for old, new in pairs]


def _totals(resource: Resource, stat: Stat | None, store: SeriesStore) -> dict[str, Totals]:
    if resource.type in SERVERS:
        return requests(store, resource.id)
    callers = [] if stat is None else list(stat.callers.items())
    return {
        name: (by.calls.value, by.errors.value, by.timed.value, by.seconds.value)
        for name, by in callers
        if name != OWN
    }


def requests(store: SeriesStore, resource_id: str) -> dict[str, Totals]:
    """What was asked of each route ("GET /orders/{id}") that a resource serves, up to the last tick."""
    found: dict[str, Totals] = {}
    for series in store.select(resource_id, "http.server.request.duration"):
        labels = series.label_map
        route = labels.get("http.route")
        count = store.value(series, "count")
        if route is None or count is None:
            continue
        name = f"{labels.get('http.request.method', '')} {route}"
        calls, errors, timed, seconds = found.get(name, NONE)
        failed = labels.get("error.type", "") not in ("", *NO_FAULT)
        took = store.value(series, "sum") or 0.0
        found[name] = (calls + count, errors + (count if failed else 0.0), timed + count, seconds + took)
    return found


def shown_level(health: Health, firing: AlertLevel) -> Level:
    """The worse of what the alerts and what the health say."""
    return max(_OF_ALERT[firing], _OF_STATUS[health.status], key=RANK.__getitem__)


def build_graph(monitor: ResourceMonitor) -> DependencyGraph:
    """Nodes and edges at this moment: from a web application to its routes, from routes and tasks to resources, from
    those to servers. A declared dependency on an id that does not exist yet is shown as unknown."""
    from uno.core.monitoring.graph import DependencyGraph, Edge, Node
    from uno.core.monitoring.graph.model import Calls

    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    now, firing = monitor.clock.now(), monitor.alerts.firing()
    for resource in monitor.manager:
        worst = max(firing.get(resource.id, {}).values(), default=AlertLevel.OK)
        level = shown_level(monitor.health.health(resource.id, now), worst)
        nodes[resource.id] = Node(
            resource.id, resource.name, resource.type, "resource", level, resource.endpoint or ""
        )
    for resource in monitor.manager:
        for needed in resource.depends_on:
            if needed not in nodes:
                nodes[needed] = Node(needed, needed, "unknown", "resource", "unknown")
            edges.append(Edge(resource.id, needed))
        called = monitor.team.calls(resource)
        places = _endpoints(resource)
        for place in places:
            server = f"server {place}"
            nodes.setdefault(server, Node(server, place, "server", "server", "unknown", place))
            # Of several servers it is not known which one a call went to.
            whole = reduce(Calls.plus, called.values(), Calls()) if len(places) == 1 else Calls()
            edges.append(whole.edge(resource.id, server))
        if resource.type in SERVERS:
            busiest = sorted(called, key=lambda name: -called[name].calls)[:MAX_ROUTES]
            called = {name: called[name] for name in busiest}
        for name, calls in called.items():
            is_task = resource.type not in SERVERS and name.startswith(("task ", "thread "))
            kind: NodeKind = "task" if is_task else "route"
            caller = f"caller {name}"
            nodes.setdefault(caller, Node(caller, name, kind, kind, "unknown"))
            ends = (resource.id, caller) if resource.type in SERVERS else (caller, resource.id)
            edges.append(calls.edge(*ends))
    return DependencyGraph(nodes.values(), edges)


def _endpoints(resource: Resource) -> list[str]:
    found = [resource.endpoint] if resource.endpoint else []
    target = resource.target
    if target is not None and isinstance(resource.driver, ResourceTypeMonitor):
        found += ask(resource.driver.endpoints, target, otherwise=[])
    return list(dict.fromkeys(found))
