"""What have the requests of a web application come to? Filled by the middleware, read at the tick.

Names and labels: OpenTelemetry semantic conventions, "HTTP metrics", stable since 1.23.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from time import monotonic

from uno.core.monitoring.metrics import GaugeCell, Histogram
from uno.core.monitoring.names import STANDARD, pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"
#: The conventions' own advice, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "QUERY", "CONNECT", "TRACE"))
OTHER = "_OTHER"
#: What is no fault of the application: the client left, or the server ended the request.
NO_FAULT = frozenset(("client_disconnect", "incomplete_response", "cancelled"))
RECENT = 10.0


class ServerTarget:
    """The requests of one application."""

    def __init__(self) -> None:
        spec = STANDARD[DURATION]
        method, route, status = spec.labels

        def durations(*labels: str) -> Histogram:
            return Histogram(
                spec.name, spec.description, labels, unit=spec.unit, title=spec.title, buckets=BUCKETS
            )

        #: requests that were answered; those that failed; those that ended without an answer
        self.answered = durations(method, route, status)
        self.failed = durations(method, route, status, "error.type")
        self.unanswered = durations(method, route, "error.type")
        #: requests in progress by method, for the methods that were used
        self.active: dict[str, GaugeCell] = {}
        #: at each tick of the last seconds: the time, requests, failures by method, route and kind
        self._marks: deque[tuple[float, float, dict[tuple[str, str, str], float]]] = deque()

    def method(self, name: str) -> tuple[str, GaugeCell]:
        """The method as it is recorded, and the gauge of its requests in progress."""
        if name not in METHODS:
            name = OTHER
        return name, self.active.get(name) or self.active.setdefault(name, GaugeCell(0.0))

    @property
    def families(self) -> tuple[Histogram, Histogram, Histogram]:
        """Every histogram of durations: one name, three sets of labels."""
        return self.answered, self.failed, self.unanswered

    def totals(self) -> tuple[float, float]:
        """(requests, failures of the application) since the beginning, up to the last tick."""
        return self._requests(), sum(self._failures().values())

    def _requests(self) -> float:
        return sum(cell.totals.count for family in self.families for _, cell in family.cells())

    def _failures(self) -> dict[tuple[str, str, str], float]:
        found: dict[tuple[str, str, str], float] = {}
        for family in (self.failed, self.unanswered):
            for labels, cell in family.cells():
                if labels[-1] not in NO_FAULT:
                    key = labels[0], labels[1], labels[-1]
                    found[key] = found.get(key, 0.0) + cell.totals.count
        return found

    def error_ratio(self) -> float | None:
        """The share of requests that failed in the last 10 s; None when there was no request."""
        now = monotonic()
        marks = self._marks
        marks.append((now, self._requests(), self._failures()))
        while len(marks) > 1 and now - marks[1][0] >= RECENT:
            marks.popleft()
        requests = marks[-1][1] - marks[0][1]
        return sum(self.recent_failures().values()) / requests if requests > 0 else None

    def recent_failures(self) -> dict[tuple[str, str, str], float]:
        """How many requests failed in the last 10 s, by method, route and kind of failure."""
        if not self._marks:
            return {}
        before, after = self._marks[0][2], self._marks[-1][2]
        return {key: n for key, count in after.items() if (n := count - before.get(key, 0.0)) > 0}


class HTTPServerMonitor(ResourceTypeMonitor):
    """Requests by route, those in progress, and the share that fails."""

    resource_type = "http_server"
    targets = (f"{__name__}.ServerTarget",)
    blocking = False
    metrics = pick(DURATION, ACTIVE, "uno.http.server.error_ratio", "uno.resource.errors")
    headline = (DURATION, ACTIVE, "uno.http.server.error_ratio")
    # None on durations: a stream is slow by nature. An application knows which of its routes must be quick.
    thresholds = (
        ("uno.http.server.error_ratio", Threshold(0.05, 0.25, "Requests fail", for_=5, keep_firing_for=3)),
    )

    def identify(self, target: ServerTarget) -> Identity:
        return Identity("http-server")

    def detach(self, target: ServerTarget) -> None:
        for family in target.families:
            family.watch(None)

    def collect_metrics(self, resource: Resource) -> None:
        target: ServerTarget = resource.target
        update = self.update_metric
        for method, cell in list(target.active.items()):
            update(ACTIVE, cell.value, {"http.request.method": method})
        update("uno.http.server.error_ratio", target.error_ratio())
        update("uno.resource.errors", target.totals()[1])

    def statistics(self, target: ServerTarget) -> Mapping[str, float | None]:
        requests, failures = target.totals()
        active = sum(cell.value for cell in target.active.values())
        return {"requests": requests, "failures": failures, "active": active}

    def ping(self, target: ServerTarget) -> bool:
        return True

    def explain(self, target: ServerTarget, metric: str) -> str:
        """Which routes fail most at present, and by what."""
        failed = sorted(target.recent_failures().items(), key=lambda item: (-item[1], item[0]))
        return "; ".join(f"{n:,.0f} x {kind} in {method} {route}" for (method, route, kind), n in failed[:3])
