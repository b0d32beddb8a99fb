"""What do all pools of connections to a server have in common?

Size and waiting are read from the pool; times, holders, callers and errors come from the Stat that hooks fill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    OWN,
    Hold,
    Stat,
    call_site,
    caller,
    describe_error,
    describe_holds,
    describe_slow,
    failures,
    scope,
    stat_of,
)
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
        """The Stat of ``target``, made when there is none."""
        raise NotImplementedError

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
            said = (holders, stalled, describe_error(stat))
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


class Operation(NamedTuple):
    """A query or command that runs, or a request for a connection that may wait."""

    stat: Stat
    start: float
    caller: str
    waiter: Hold | None = None


def begin(owner: Any) -> Operation | None:
    """An operation starts. None for the monitor's own, which are no traffic of the application."""
    try:
        current = scope.get()
        if current is None:
            name = caller()
        elif is_own(current):
            return None
        else:
            name = current.name
        stat: Stat = owner.__dict__.get(ATTRIBUTE) or stat_of(owner)
        start = perf_counter()
        stat.running[start] = start
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("begin", error)
        return None
    return _operation((stat, start, name, None))


def end(begun: Operation | None, error: BaseException | None, slow: float, *, timed: bool = True) -> None:
    """The operation ended. A cancelled one neither failed nor succeeded; one that is not ``timed`` was meant
    to take its time."""
    if begun is None:
        return
    try:
        stat, start, name, _ = begun
        seconds = perf_counter() - start
        stat.running.pop(start, None)
        failed = error is not None and isinstance(error, Exception)
        if timed and (failed or error is None):
            stat.done(seconds, error, name, slow)
            return
        stat.total.value += 1
        calls, errors = stat.called(name)
        calls.value += 1
        if failed and error is not None:
            stat.failed(error)
            errors.value += 1
        elif timed:
            stat.duration.add(seconds)
    except Exception as failure:  # noqa: BLE001
        failures("end", failure)


def ask(owner: Any, limit: float | None) -> Operation | None:
    """A connection is asked for; the caller waits when all of ``limit`` are held."""
    try:
        current = scope.get()
        if current is None:
            name = caller()
        elif is_own(current):
            return None
        else:
            name = current.name
        stat: Stat = owner.__dict__.get(ATTRIBUTE) or stat_of(owner)
        waiter = None
        if limit is not None and len(stat.holds) >= limit:
            waiter = Hold(call_site(3), name, monotonic())
            stat.waiters[id(waiter)] = waiter
        return _operation((stat, perf_counter(), name, waiter))
    except Exception as error:  # noqa: BLE001
        failures("ask", error)
        return None


def got(asked: Operation | None, key: int, began: float | None = None) -> None:
    """The connection is there. ``key`` is what it is returned under; ``began``, when making it began, if it is new."""
    if asked is None:
        return
    try:
        stat, start, name, waiter = asked
        now = perf_counter()
        if waiter is not None:
            stat.waiters.pop(id(waiter), None)
        if began is not None and began >= start:
            stat.connects.add(now - began)
            now = began
        stat.wait.add(now - start)
        site = None
        if stat.holds or now - stat.sited > SITE_SECONDS:
            stat.sited = now
            site = call_site(3)
        stat.hold(key, site, name)
    except Exception as error:  # noqa: BLE001
        failures("got", error)


def refused(asked: Operation | None, in_vain: Callable[[Operation], bool]) -> None:
    """There was no connection; ``in_vain``: for want of a free one, rather than for any other reason."""
    if asked is None:
        return
    try:
        if asked.waiter is not None:
            asked.stat.waiters.pop(id(asked.waiter), None)
        if in_vain(asked):
            asked.stat.timeouts.value += 1
    except Exception as error:  # noqa: BLE001
        failures("refused", error)


def returned(owner: Any, key: int) -> None:
    """The connection is given back."""
    try:
        stat = owner.__dict__.get(ATTRIBUTE)
        if stat is not None:
            stat.release(key)
    except Exception as error:  # noqa: BLE001
        failures("returned", error)


def is_own(current: Any) -> bool:
    """Whether a call scope is the monitor's own."""
    return current is not None and current._name == OWN


def _operation(values: tuple[Stat, float, str, Hold | None]) -> Operation:
    return tuple.__new__(Operation, values)  # half the cost of Operation(*values)
