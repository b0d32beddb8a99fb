"""What do all HTTP clients have in common?

A request is timed where the client sends it, the wait for a connection in the pool beneath; how many connections
are in use is read from the pool. Nothing but host and port of an address is looked at: the rest may hold secrets.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextvars import ContextVar
from operator import sub
from time import monotonic, perf_counter
from typing import Any, ClassVar

from uno.core.monitoring.causes import describe_error, describe_holds, describe_running, describe_slow
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_HOLDS,
    MAX_LOG,
    ONE_CLOCK,
    OWN,
    SLOW_SECONDS,
    Hold,
    Stat,
    announce,
    call_site,
    failures,
    hang,
    hung,
    scope,
    unscoped,
)
from uno.core.monitoring.metrics import MAX_PENDING, CounterCell
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Resource

RECENT = 10.0
MAX_HOSTS = 32
#: So many requests in a row without any answer say that the server is not there.
UNANSWERED = 3
_STATE = "http.connection.state"
_new = tuple.__new__  # _new(Hold, ...) is half the cost of Hold(...)


class HttpUse(NamedTuple):
    """Connections in use, idle, at most, and requests that wait for one; None where there is no such notion."""

    used: float | None
    idle: float | None
    limit: float | None
    waiting: float | None


class HttpStat(Stat):
    """What happened to one client."""

    __slots__ = (
        "announced", "discarded", "down", "failed_at", "hosts", "marks", "placed", "places", "pooled", "status",
        "unanswered",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        #: None before the first request; False after it; True when discovery was told, with the second
        self.announced: bool | None = None
        self.discarded = CounterCell()
        self.failed_at = ""
        #: the servers that were asked, as host:port
        self.hosts: dict[str, None] = {}
        #: the same by what the library calls them, so that most requests make no text
        self.places: dict[tuple[Any, Any], str] = {}
        #: requests that are only in ``log`` had a connection of a pool at once, for as long as they took
        self.pooled = False
        #: when a hook last noted which server was asked, for those that do it now and then
        self.placed = 0.0
        #: the counter of an outcome by status
        self.status: dict[int, CounterCell] = {}
        #: the last ping said that nobody answers
        self.down = False
        #: requests in a row that no server has answered
        self.unanswered = 0
        #: When there were how many requests and errors: from the first request on, then at each collection.
        self.marks: deque[tuple[float, float, float]] = deque()

    def drain(self) -> None:
        """Of each request in ``log``: start and end (perf_counter), for whom, the status."""
        log = self.taken()
        if not log:
            return
        ends = log[1::4]
        times = list(map(sub, ends, log[0::4]))
        filled = [self.duration]
        self.duration.pending.extend(times)
        if self.pooled:
            self.use.pending.extend(times)
            self.wait.pending.extend([0.0] * len(times))
            filled += [self.use, self.wait]
        self.total.value += len(times)
        self.called_by(log[2::4], times)
        for status, answers in Counter(log[3::4]).items():
            self.answered(status).value += answers
        last = ends[-1] if ONE_CLOCK else monotonic()
        self.last_ok = max(self.last_ok, last)
        if last > self.last_error:
            self.unanswered = 0
        for cell in filled:
            if len(cell.pending) > MAX_PENDING:
                cell.fold()

    def wrote(self, start: float, end: float, name: str, status: int = 200) -> None:
        entry = start, end, name, status
        log = self.log
        log += entry
        if len(log) > MAX_LOG:
            self.drain()

    def answered(self, status: int) -> CounterCell:
        """The counter for a status."""
        cell = self.status.get(status)
        if cell is None:
            cell = self.outcome(f"{status // 100}xx")
            if len(self.status) < 600:
                self.status[status] = cell
        return cell

    def place(self, host: Any, port: Any) -> str:
        """``host:port``, and that it was asked; ``host`` may be bytes or hold a colon."""
        place = self.places.get((host, port))
        if place is None:
            text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
            if ":" in text and not text.startswith("["):
                text = f"[{text}]"
            place = f"{text}:{port}" if port else text
            if len(self.hosts) < MAX_HOSTS:
                self.hosts[place] = None
                self.places[host, port] = place
        return place


def http_stat(instance: Any) -> HttpStat:
    """The Stat that hangs on ``instance``, made when there is none."""
    stat = hung(instance)
    if stat is None:
        stat = hang(instance, ATTRIBUTE, HttpStat())
        if not stat.marks:
            stat.marks.append((monotonic(), 0.0, 0.0))
    return stat  # type: ignore[no-any-return]


class HttpMonitor(ResourceTypeMonitor):
    """Requests and connections of a client; what differs is how its pool is read (:meth:`pool_use`)."""

    resource_type = "http_client"
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "http.client.request.duration",
        "http.client.requests",
        "http.client.active_requests",
        "uno.http.client.oldest_request",
        "http.client.pending_requests",
        "http.client.wait_time",
        "http.client.open_connections",
        "http.client.connection.max",
        "http.client.connection.timeouts",
        "http.client.connection.create_time",
        "http.client.connection.use_time",
        "uno.http.client.error_ratio",
        "uno.resource.errors",
    )
    headline = (
        "http.client.request.duration",
        "http.client.requests",
        "uno.http.client.error_ratio",
        "http.client.active_requests",
    )
    thresholds: ClassVar[tuple[tuple[str, Threshold], ...]] = (
        ("uno.http.client.error_ratio", Threshold(0.1, 0.5, "Requests fail")),
        ("http.client.request.duration", Threshold(1, 5, "Requests are slow", keep_firing_for=3)),
        ("uno.http.client.oldest_request", Threshold(2, 30, "A request has no answer yet")),
        ("http.client.pending_requests", Threshold(0, 10, "Requests wait for a connection", for_=1)),
        ("uno.resource.utilization", Threshold(0.8, 0.95, "The connection pool is nearly used up", for_=1)),
    )

    def pool_use(self, target: Any) -> HttpUse:
        """How much of the pools is used, read from memory without a lock; brings the Stat's holders up to date."""
        raise NotImplementedError

    def stat_for(self, target: Any) -> HttpStat:
        """The Stat of ``target``, made when there is none, with all that hooks wrote down counted."""
        stat = http_stat(target)
        stat.drain()
        return stat

    def stat(self, target: Any) -> Stat | None:
        stat = super().stat(target)
        if stat is not None:
            stat.drain()
        return stat

    def attach(self, target: Any) -> None:
        self.stat_for(target)

    def at_rest(self, target: Any) -> object:
        stat = self.stat_for(target)
        if stat.running or not stat.marks or stat.marks[0][1] != stat.total.value:
            return None
        use = self.pool_use(target)
        return None if stat.holds or stat.waiters else (use, len(stat.outcomes))

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)
        update = self.update_metric
        update("uno.resource.utilization", used / limit if limit and used is not None else None)
        update("http.client.request.duration", stat.duration)
        for outcome, cell in list(stat.outcomes.items()):
            update("http.client.requests", cell, {"outcome": outcome})
        update("http.client.active_requests", len(stat.running))
        update("uno.http.client.oldest_request", stat.longest_running())
        update("http.client.pending_requests", waiting)
        update("http.client.wait_time", stat.wait)
        update("http.client.open_connections", used, {_STATE: "active"})
        update("http.client.open_connections", idle, {_STATE: "idle"})
        update("http.client.connection.max", limit)
        update("http.client.connection.timeouts", stat.timeouts)
        update("http.client.connection.create_time", stat.connects)
        update("http.client.connection.use_time", stat.use)
        update("uno.http.client.error_ratio", _error_ratio(stat))
        update("uno.resource.errors", stat.errors)

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        use = self.pool_use(target)
        return None if use.used is None else (use.used, use.limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)
        return {
            "total_requests": stat.total.value,
            "errors": stat.errors.value,
            "active_requests": len(stat.running),
            "connections_in_use": used,
            "connections_idle": idle,
            "connections_waiting": waiting,
            "connections_max": limit,
            "connection_timeouts": stat.timeouts.value,
        }

    def suspect(self, target: Any) -> bool:
        """Whether no server has answered lately, or one may be back."""
        stat = self.stat_for(target)
        return stat.down or stat.unanswered >= UNANSWERED

    def ping(self, target: Any) -> bool | None:
        """True when a request went well lately, False when none of the last few had any answer. No request is made
        for the sake of it: None when there was none."""
        stat = self.stat_for(target)
        now = monotonic()
        if stat.unanswered >= UNANSWERED:
            stat.down = True
            return False
        stat.down = False
        recent = stat.last_ok and now - stat.last_ok < RECENT
        return True if recent and stat.last_ok >= stat.last_error else None

    def endpoints(self, target: Any) -> list[str]:
        return list(self.stat_for(target).hosts)

    def explain(self, target: Any, metric: str) -> str:
        stat = self.stat_for(target)
        if metric in ("uno.http.client.error_ratio", "uno.resource.errors", "http.client.requests"):
            said = describe_error(stat)
            return f"{said}; to {stat.failed_at}" if said and stat.failed_at else said
        if metric == "http.client.request.duration":
            return describe_slow(stat) or describe_error(stat)
        if metric in ("uno.http.client.oldest_request", "http.client.active_requests"):
            return describe_running(stat)
        return describe_holds(stat, "connection", self.pool_use(target).limit)


def _error_ratio(stat: HttpStat) -> float | None:
    """The share of failed requests in the last 10 s; None when there was no request."""
    marks = stat.marks
    now, total, errors = monotonic(), stat.total.value, stat.errors.value
    marks.append((now, total, errors))
    while len(marks) > 1 and now - marks[1][0] >= RECENT:
        marks.popleft()
    asked = total - marks[0][1]
    return (errors - marks[0][2]) / asked if asked > 0 else None


# -- what hooks record -----------------------------------------------------------------------------------
# Each of these is safe to call from a hook: it never raises.

#: A request that is being sent: its client's Stat, who sends it and where, when it began (perf_counter).
Sent = tuple[HttpStat, Hold, float]

#: The request that is being sent here, for the pool's hooks beneath.
sending: ContextVar[Sent | None] = ContextVar("uno_http_sending", default=None)


def begin(client: Any) -> Sent | None:
    """A request starts. None for the monitor's own."""
    try:
        stat = hung(client)
        if stat is None or not stat.announced:
            stat = meet(client)
        current = scope.get()
        name = unscoped() if current is None else current._name or current.name
        if name == OWN:
            return None
        site = call_site(3)
        start = perf_counter()
        stat.running[start] = start, name
        return stat, _new(Hold, (site, name, start if ONE_CLOCK else monotonic())), start
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("HTTP request", error)
        return None


def meet(client: Any) -> HttpStat:
    """A client's first or second request: it is announced with the second, for many are made for a single one."""
    stat = http_stat(client)
    if stat.announced is None:
        stat.announced = False
    else:
        stat.announced = True
        announce(client)
    return stat


def answered(sent: Sent | None, status: int, host: Any, port: Any) -> None:
    """A server answered with ``status``."""
    if sent is None:
        return
    try:
        stat, hold, start = sent
        now = perf_counter()
        stat.running.pop(start, None)
        if host and (host, port) not in stat.places:
            stat.place(host, port)
        if status < 500 and now - start <= SLOW_SECONDS and not stat.pooled:
            stat.wrote(start, now, hold[1], status)
            return
        stat.unanswered = 0
        stat.answered(status).value += 1
        error = _ServerError() if status >= 500 else None
        stat.done(now - start, error, hold[1])
        if error is not None:
            stat.last_error_kind = f"HTTP {status}"
            stat.failed_at = stat.place(host, port)
    except Exception as error:  # noqa: BLE001
        failures("HTTP answer", error)


def failed(sent: Sent | None, error: BaseException, host: Any, port: Any) -> None:
    """The request raised. A cancelled one neither failed nor succeeded."""
    if sent is None:
        return
    try:
        stat, hold, start = sent
        seconds = perf_counter() - start
        stat.running.pop(start, None)
        if not isinstance(error, Exception):
            stat.outcome("cancelled").value += 1
            stat.total.value += 1
            stat.called(hold[1]).calls.value += 1
            return
        stat.outcome(type(error).__name__).value += 1
        stat.done(seconds, error, hold[1])
        stat.unanswered = 1 if stat.log else stat.unanswered + 1  # those in the log went well
        stat.failed_at = stat.place(host, port) if host else ""
    except Exception as failure:  # noqa: BLE001
        failures("HTTP failure", failure)


def waited(stat: Stat, seconds: float) -> None:
    """A connection was there after ``seconds``."""
    pending = stat.wait.pending
    pending.append(seconds)
    if len(pending) > MAX_PENDING:
        stat.wait.fold()


def used(stat: Stat, hold: Hold | None) -> None:
    """A connection is given back."""
    if hold is None:
        return
    pending = stat.use.pending
    pending.append((perf_counter() if ONE_CLOCK else monotonic()) - hold[2])
    if len(pending) > MAX_PENDING:
        stat.use.fold()


def held_since_now(hold: Hold) -> Hold:
    """The same holder from this moment on."""
    return _new(Hold, (hold[0], hold[1], perf_counter() if ONE_CLOCK else monotonic()))


def keep(stat: Stat, key: int, hold: Hold) -> None:
    """A connection is out; ``key`` is what it is given back under."""
    if len(stat.holds) < MAX_HOLDS:
        stat.holds[key] = hold


class _ServerError(Exception):
    """The server said that it failed."""
