"""What do all pools of connections to a server have in common?

Size and waiting are read from the pool; times, holders, callers and errors come from the Stat that hooks fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_CALLERS,
    MAX_HOLDS,
    ONE_CLOCK,
    OWN,
    Hold,
    Stat,
    call_site,
    caller,
    describe_error,
    describe_holds,
    describe_running,
    describe_slow,
    failures,
    scope,
    stat_of,
)
from uno.core.monitoring.metrics import MAX_PENDING
from uno.core.monitoring.names import pick
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Resource

#: A success this long ago says that the server is up; less than the time between two pings, which are no evidence
#: for each other.
RECENT = 9.0
#: An operation that runs for longer than this, with no success since, calls for a ping.
STALL = 1.0
#: While no other connection is out, the place that takes one is looked up at most this often: it costs 0.5 us.
SITE_SECONDS = 0.001
_new = tuple.__new__  # _new(Hold, ...) is half the cost of Hold(...)
_STATE = "db.client.connection.state"


class PoolUse(NamedTuple):
    """Connections in use, idle, at most, and how many callers wait; None where the pool has no such notion."""

    used: float | None
    idle: float | None
    limit: float | None
    waiting: int


class PooledMonitor(ResourceTypeMonitor):
    """A pool of connections; what differs is how it is read (:meth:`pool_use`) and which Stat it has."""

    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "db.client.connection.count",
        "db.client.connection.max",
        "db.client.connection.pending_requests",
        "db.client.connection.timeouts",
        "db.client.connection.wait_time",
        "db.client.connection.use_time",
        "db.client.connection.create_time",
        "uno.db.client.connection.oldest_use",
        "db.client.operation.duration",
        "uno.db.client.slow_operations",
        "uno.resource.errors",
    )
    headline = (
        "uno.resource.utilization",
        "db.client.connection.pending_requests",
        "db.client.operation.duration",
        "uno.resource.errors",
    )

    def pool_use(self, target: Any) -> PoolUse:
        """How much of the pool is used, read from memory without a lock."""
        raise NotImplementedError

    def stat_for(self, target: Any) -> Stat:
        """The Stat of ``target``, made when there is none, with all that hooks wrote down counted."""
        raise NotImplementedError

    def stat(self, target: Any) -> Stat | None:
        stat = super().stat(target)
        if stat is not None:
            stat.drain()
        return stat

    def attach(self, target: Any) -> None:
        self.stat_for(target)

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)
        update = self.update_metric
        update("uno.resource.utilization", None if limit is None or used is None else used / limit)
        update("db.client.connection.count", len(stat.holds) if used is None else used, {_STATE: "used"})
        update("db.client.connection.count", idle, {_STATE: "idle"})
        update("db.client.connection.max", limit)
        update("db.client.connection.pending_requests", waiting)
        update("db.client.connection.timeouts", stat.timeouts)
        update("db.client.connection.wait_time", stat.wait)
        update("db.client.connection.use_time", stat.use)
        update("db.client.connection.create_time", stat.connects)
        update("uno.db.client.connection.oldest_use", stat.oldest())
        update("db.client.operation.duration", stat.duration)
        update("uno.db.client.slow_operations", stat.slow)
        update("uno.resource.errors", stat.errors)

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        used, _, limit, _ = self.pool_use(target)
        return (float(len(self.stat_for(target).holds)) if used is None else used, limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)
        return {
            "total_queries": stat.total.value,
            "slow_queries": stat.slow.value,
            "errors": stat.errors.value,
            "connections_in_use": float(len(stat.holds)) if used is None else used,
            "connections_idle": idle,
            "connections_max": limit,
            "connections_waiting": waiting,
            "connection_timeouts": stat.timeouts.value,
        }

    def explain(self, target: Any, metric: str) -> str:
        stat = self.stat_for(target)
        if metric == "uno.resource.errors":
            return describe_error(stat)
        running = stat.longest_running()
        stalled = f"a call has been running for {running:.1f} s" if running > STALL else ""
        if metric == "db.client.operation.duration" or "slow" in metric:
            said = (stalled, describe_slow(stat), describe_error(stat))
        else:
            holders = describe_holds(stat, "connection", self.pool_use(target).limit)
            said = (holders or describe_running(stat), stalled, describe_error(stat))
        return "; ".join(filter(None, said))

    # -- health ----------------------------------------------------------------------------------------

    def suspect(self, target: Any) -> bool:
        """Whether calls hang at present: one runs for over a second, and none has succeeded since it began."""
        stat = self.stat_for(target)
        running = stat.longest_running()
        return running > STALL and monotonic() - stat.last_ok > running

    def seems_up(self, target: Any) -> bool:
        """Whether a call has succeeded lately and none hangs: then a ping would tell nothing new."""
        stat = self.stat_for(target)
        return bool(stat.last_ok) and monotonic() - stat.last_ok < RECENT and not self.suspect(target)

    def has_free_slot(self, target: Any) -> bool:
        """Whether a ping takes no connection from the application."""
        used, _, limit, waiting = self.pool_use(target)
        return not waiting and (used is None or limit is None or used < limit)


# -- what hooks record ---------------------------------------------------------------------------------
# ``owner`` is the object that the Stat hangs on. Each of these is safe to call from a hook: it never raises.
# They run for each command of a fast client, so they are plain tuples and few calls.

#: An operation that runs: its Stat, when it started, on whose behalf.
Begun = tuple[Stat, float, str]
#: The same of a request for a connection, and the mark of who has to wait for it.
Asked = tuple[Stat, float, str, Hold | None]


def begin(owner: Any) -> Begun | None:
    """An operation starts. None for the monitor's own, which are no traffic of the application."""
    try:
        current = scope.get()
        name = caller() if current is None else current._name or current.name
        if name == OWN:
            return None
        stat: Stat = owner.__dict__.get(ATTRIBUTE) or stat_of(owner)
        start = perf_counter()
        stat.running[start] = start, name
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("begin", error)
        return None
    return stat, start, name


def end(begun: Begun | None, slow: float, *, timed: bool = True) -> None:
    """The operation succeeded; one that is not ``timed`` was meant to take its time."""
    if begun is None:
        return
    try:
        stat, start, name = begun
        now = perf_counter()
        stat.running.pop(start, None)
        if not timed:
            stat.last_ok = now if ONE_CLOCK else monotonic()
            stat.total.value += 1
            stat.called(name)[0].value += 1
            return
        log = stat.log
        log.append((start, now, name))
        if len(log) > MAX_PENDING:
            stat.drain()
        if now - start > slow:
            note_slow(stat)
    except Exception as error:  # noqa: BLE001
        failures("end", error)


def note_slow(stat: Stat) -> None:
    """An operation was slow: note from where it was called."""
    stat.slow.value += 1
    site = call_site(4)
    if site in stat.slow_sites or len(stat.slow_sites) < MAX_CALLERS:
        stat.slow_sites[site] = stat.slow_sites.get(site, 0) + 1


def fail(begun: Begun | None, error: BaseException, slow: float, *, timed: bool = True) -> None:
    """The operation raised. A cancelled one neither failed nor succeeded."""
    if begun is None:
        return
    try:
        stat, start, name = begun
        seconds = perf_counter() - start
        stat.running.pop(start, None)
        failed = isinstance(error, Exception)
        if timed and failed:
            stat.done(seconds, error, name, slow)
            return
        stat.total.value += 1
        calls, errors = stat.called(name)
        calls.value += 1
        if failed:
            stat.failed(error)
            errors.value += 1
        elif timed:
            stat.duration.add(seconds)
    except Exception as failure:  # noqa: BLE001
        failures("fail", failure)


def ask(owner: Any, limit: float | None) -> Asked | None:
    """A connection is asked for; the caller waits, or is refused, when all of ``limit`` are held."""
    try:
        current = scope.get()
        name = caller() if current is None else current._name or current.name
        if name == OWN:
            return None
        stat: Stat = owner.__dict__.get(ATTRIBUTE) or stat_of(owner)
        waiter = None
        if limit is not None and len(stat.holds) >= limit:
            waiter = Hold(call_site(3), name, monotonic())
            stat.waiters[id(waiter)] = waiter
    except Exception as error:  # noqa: BLE001
        failures("ask", error)
        return None
    return stat, perf_counter(), name, waiter


def got(asked: Asked | None, key: int, began: float | None = None, *, waits: bool = True) -> None:
    """The connection is there. ``key`` is what it is returned under; ``began``, when making it began, if it is new;
    ``waits``, whether this pool makes anybody wait at all."""
    if asked is None:
        return
    try:
        stat, start, name, waiter = asked
        now = perf_counter()
        if waiter is not None:
            stat.waiters.pop(id(waiter), None)
        waited = now - start
        if began is not None and began >= start:
            stat.connects.add(now - began)
            waited = began - start
        if waits:
            pending = stat.wait.pending
            pending.append(waited)
            if len(pending) > MAX_PENDING:
                stat.wait.fold()
        holds = stat.holds
        site = None
        if holds or now - stat.sited > SITE_SECONDS:
            stat.sited = now
            site = call_site(3)
        if len(holds) < MAX_HOLDS:
            holds[key] = _new(Hold, (site, name, now if ONE_CLOCK else monotonic()))
    except Exception as error:  # noqa: BLE001
        failures("got", error)


def refused(asked: Asked | None, *, timed_out: bool) -> None:
    """There was no connection; ``timed_out``: for want of a free one, rather than for any other reason."""
    if asked is None:
        return
    try:
        stat, _, _, waiter = asked
        if waiter is not None:
            stat.waiters.pop(id(waiter), None)
        if timed_out:
            stat.timeouts.value += 1
    except Exception as error:  # noqa: BLE001
        failures("refused", error)


def returned(owner: Any, key: int) -> None:
    """The connection is given back."""
    try:
        stat: Stat | None = owner.__dict__.get(ATTRIBUTE)
        hold = None if stat is None else stat.holds.pop(key, None)
        if hold is not None and stat is not None:
            pending = stat.use.pending
            pending.append((perf_counter() if ONE_CLOCK else monotonic()) - hold[2])
            if len(pending) > MAX_PENDING:
                stat.use.fold()
    except Exception as error:  # noqa: BLE001
        failures("returned", error)


def is_own(current: Any) -> bool:
    """Whether a call scope is the monitor's own."""
    return current is not None and current._name == OWN
