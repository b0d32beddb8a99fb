"""What do all pools of connections to a server have in common?

Size and waiting are read from the pool; times, holders, callers and errors come from the Stat that hooks fill.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any, TypeVar

from uno.core.monitoring.causes import (
    describe_error,
    describe_holds,
    describe_lost,
    describe_running,
    describe_slow,
    lost_of,
)
from uno.core.monitoring.health import OUT_OF_CONNECTIONS
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_HOLDS,
    ONE_CLOCK,
    OWN,
    WHOLE,
    Hold,
    Stat,
    call_site,
    failures,
    hung,
    scope,
    stat_of,
    unscoped,
)
from uno.core.monitoring.metrics import MAX_PENDING
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._probe import Probe
from uno.core.monitoring.resource_types._server import (
    ASK_SECONDS,
    DEADLINE,
    METRICS,
    SHOWN_SECONDS,
    ServerConnections,
)
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Identity, Resource

#: A success this long ago says that the server is up: less than a tick, so that a server is not believed in for two.
RECENT = 0.5
#: An operation that runs for longer than this is said to hang.
STALL = 1.0
#: One that runs for longer than this, with no success since, calls for a ping, and so does one that failed this lately.
DOUBT, FAILED = 0.25, 2.0
#: While no other connection is out, the place that takes one is looked up at most this often: it costs 0.5 us.
SITE_SECONDS = 0.001
T = TypeVar("T")
_CONNECTING = "_uno_connecting"
_SERVER = "server"
_STATE = "db.client.connection.state"

#: Levels of a database's pool.
UTILIZATION = (
    "uno.resource.utilization",
    Threshold(0.8, 0.95, "The connection pool is nearly used up", for_=1),
)
PENDING = (
    "db.client.connection.pending_requests",
    Threshold(0, 10, "Requests wait for a connection", for_=1),
)
TIMEOUTS = (
    "db.client.connection.timeouts",
    Threshold(None, 0, "Requests did not get a connection in time", keep_firing_for=5),
)
OLDEST = (
    "uno.db.client.connection.oldest_use",
    Threshold(10, 60, "A connection is held far longer than usual: a leak?"),
)
LEAKED = (
    "uno.connection.leaked",
    Threshold(0, None, "Connections are dropped without being returned", keep_firing_for=30),
)
SLOW = "db.client.operation.duration", Threshold(1, 5, "Queries are slow", keep_firing_for=3)


#: By what servers tell that they take no more connections, or not this user: codes and words of PostgreSQL, MySQL and
#: Redis. They are looked for, and never shown.
_REFUSALS = {
    OUT_OF_CONNECTIONS: (
        ("53300", 1040, 1203),
        (
            "too many connections",
            "too many clients",
            "connection slots are reserved",
            "max number of clients reached",
        ),
    ),
    "access denied": (
        ("28P01", "28000", 1045),
        (
            "password authentication failed",
            "access denied",
            "wrongpass",
            "noauth",
            "invalid username-password",
        ),
    ),
}


def leaves_one(used: float, limit: float | None) -> bool:
    """Whether a ping may have a slot: while some are in use it leaves one free, for it may hang for long."""
    return limit is None or limit - used >= (2 if used else 1)


def refusal_of(error: BaseException) -> str:
    """Why a server refused a connection; "" where it is not one of the few known reasons."""
    seen: BaseException | None = error
    for _ in range(4):  # an error may wrap the driver's
        if seen is None:
            break
        words = " ".join(part for part in seen.args if isinstance(part, str)).lower()
        codes = {getattr(seen, "sqlstate", None), *(part for part in seen.args if isinstance(part, int))}
        for name, (known, said) in _REFUSALS.items():
            if codes & set(known) or any(phrase in words for phrase in said):
                return name
        seen = getattr(seen, "orig", None) or seen.__cause__ or seen.__context__
    return ""


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

    def at_rest(self, target: Any) -> object:
        stat = self.stat_for(target)
        if stat.holds or stat.waiters or stat.running:
            return None
        return self.pool_use(target), self.at_server(stat)

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)

        def update(name: str, value: Any, labels: Mapping[str, object] | None = None) -> None:
            if name in self.specs:  # not every library tells everything
                self.update_metric(name, value, labels)

        if used is None and not self.read_only:
            used = float(len(stat.holds))
        update("uno.resource.utilization", None if used is None else self.utilization(target, used, limit))
        update("db.client.connection.count", used, {_STATE: "used"})
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
        update("uno.connection.leaked", lost_of(stat).count)
        for spec, value in zip(METRICS, self.at_server(stat) or (), strict=False):
            if value is not None:
                update(spec.name, value)

    def utilization(self, target: Any, used: float, limit: float | None) -> float | None:
        """The share of the limit that is in use; of the fullest, where there are several pools in one."""
        return used / limit if limit else None

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        used, _, limit, _ = self.pool_use(target)
        return (float(len(self.stat_for(target).holds)) if used is None else used, limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = self.stat_for(target)
        used, idle, limit, waiting = self.pool_use(target)
        found: dict[str, tuple[str, float | None]] = {
            "total_queries": ("db.client.operation.duration", stat.total.value),
            "slow_queries": ("uno.db.client.slow_operations", stat.slow.value),
            "errors": ("uno.resource.errors", stat.errors.value),
            "connections_in_use": (
                "db.client.connection.count",
                float(len(stat.holds)) if used is None else used,
            ),
            "connections_idle": ("db.client.connection.count", idle),
            "connections_max": ("db.client.connection.max", limit),
            "connections_waiting": ("db.client.connection.pending_requests", waiting),
            "connection_timeouts": ("db.client.connection.timeouts", stat.timeouts.value),
        }
        return {name: value if metric in self.specs else None for name, (metric, value) in found.items()}

    def explain(self, target: Any, metric: str) -> str:
        stat = self.stat_for(target)
        if metric == "uno.resource.errors":
            return describe_error(stat)
        if metric == "uno.connection.leaked":
            return describe_lost(stat)
        running = stat.longest_running()
        stalled = f"a call has been running for {running:.1f} s" if running > STALL else ""
        if metric == "db.client.operation.duration" or "slow" in metric:
            said = (stalled, describe_slow(stat), describe_error(stat))
        else:
            holders = describe_holds(stat, "connection", self.pool_use(target).limit)
            said = (holders or describe_running(stat), stalled, describe_error(stat))
        return "; ".join(filter(None, said))

    # -- the server's own limit ------------------------------------------------------------------------

    def asks(self, target: Any) -> bool:
        """Whether the server can be asked for its connections."""
        return bool(self.asked)

    @staticmethod
    def at_server(stat: Stat) -> ServerConnections | None:
        """What the server told lately."""
        probe: Probe[ServerConnections] | None = stat.extra.get(_SERVER)
        return probe.found if probe is not None and probe.is_fresh() else None

    def server_connections(self, target: Any) -> ServerConnections | Awaitable[ServerConnections]:
        """Ask the server, on a connection of the pool; a coroutine where the pool belongs to an event loop."""
        raise NotImplementedError

    def answered(self, target: Any) -> None:
        if not self.asks(target) or not self.has_spare(target):
            return
        extra = self.stat_for(target).extra
        probe: Probe[ServerConnections] | None = extra.get(_SERVER)
        if probe is None:
            probe = extra.setdefault(
                _SERVER,
                Probe(
                    target,
                    self.server_connections,
                    ServerConnections(),
                    every=ASK_SECONDS,
                    stale=SHOWN_SECONDS,
                    deadline=DEADLINE,
                    reference=self.reference(target),
                ),
            )
        if inspect.iscoroutinefunction(self.server_connections):
            probe.on_loop(self.bound_loop(target))
        else:
            probe.on_thread()

    def detach(self, target: Any) -> None:
        probe = self.stat_for(target).extra.pop(_SERVER, None)
        if probe is not None:
            probe.close(self.bound_loop(target))

    def has_spare(self, target: Any) -> bool:
        """Whether a connection is idle, and another one is free for the application."""
        used, idle, limit, waiting = self.pool_use(target)
        return not waiting and bool(idle) and (limit is None or limit - (used or 0) >= 2)

    # -- health ----------------------------------------------------------------------------------------

    def suspect(self, target: Any) -> bool:
        """Whether a call hangs or has just failed, and none has succeeded since it began."""
        stat, now = self.stat_for(target), monotonic()
        running = stat.longest_running()
        hangs = running > DOUBT and now - stat.last_ok > running
        return hangs or (stat.last_error > stat.last_ok and now - stat.last_error < FAILED)

    def hangs(self, target: Any) -> bool:
        stat = self.stat_for(target)
        running = stat.longest_running()
        return running > STALL and monotonic() - stat.last_ok > running

    def seems_up(self, target: Any) -> bool:
        """Whether a call has succeeded lately and none hangs: then a ping would tell nothing new."""
        stat = self.stat_for(target)
        return bool(stat.last_ok) and monotonic() - stat.last_ok < RECENT and not self.suspect(target)

    def inherited(self, target: Any) -> object:
        used, idle, _, _ = self.pool_use(target)
        return target if used or idle else None

    def pings_cheaply(self, target: Any) -> bool:
        used, idle, _, _ = self.pool_use(target)
        return bool(used or idle)

    def refusal(self, error: BaseException) -> str:
        return refusal_of(error)

    def has_free_slot(self, target: Any) -> bool:
        """Whether a ping takes no connection from the application, and opens none without need."""
        used, _, limit, waiting = self.pool_use(target)
        return not waiting and leaves_one(used or 0, limit) and self.is_worth_one(target)

    def is_worth_one(self, target: Any) -> bool:
        """Whether a ping may open a connection, where all that there are are out: there is reason to doubt."""
        used, idle, _, _ = self.pool_use(target)
        doubt = monotonic() - self.stat_for(target).last_ok > STALL or self.suspect(target)
        return bool(idle) or not used or doubt


def server_identity(system: str, host: str, port: object, database: str) -> Identity:
    """What a pool of a server's connections is called; ``host`` may be the folder of a socket."""
    labels = {"db.system.name": system} | ({"db.namespace": database} if database else {})
    place = f"unix:{host}" if host.startswith("/") else f"{host}:{port}" if host else ""
    endpoint = f"{place}/{database}" if place and database else place
    return Identity(database or system, endpoint or None, labels)


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
        name = unscoped() if current is None else current._name or current.name
        if name == OWN:
            return None
        stat = stat_of(owner)
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
            stat.called(name).calls.value += 1
            return
        stat.wrote(start, now, name)
        if now - start > slow:
            note_slow(stat)
    except Exception as error:  # noqa: BLE001
        failures("end", error)


def note_slow(stat: Stat) -> None:
    """An operation was slow: note from where it was called."""
    stat.note_slow(call_site(4))


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
        by = stat.called(name)
        by.calls.value += 1
        if failed:
            stat.failed(error)
            by.errors.value += 1
        elif timed:
            stat.duration.add(seconds)
    except Exception as failure:  # noqa: BLE001
        failures("fail", failure)


def ask(owner: Any, limit: float | None) -> Asked | None:
    """A connection is asked for; the caller waits, or is refused, when all of ``limit`` are held."""
    try:
        current = scope.get()
        name = unscoped() if current is None else current._name or current.name
        if name == OWN:
            return None
        stat = stat_of(owner)
        waiter = None
        if limit is not None and len(stat.holds) >= limit:
            waiter = Hold(call_site(3), name, monotonic())
            stat.waiters[id(waiter)] = waiter
    except Exception as error:  # noqa: BLE001
        failures("ask", error)
        return None
    return stat, perf_counter(), name, waiter


def got(
    asked: Asked | None, key: int, began: float | None = None, *, waits: bool = True, place: int = 3
) -> None:
    """The connection is there. ``key`` is what it is returned under; ``began``, when making it began, if it is new;
    ``waits``, whether this pool makes anybody wait at all; ``place``, how far up the application may be."""
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
            site = call_site(place)
        if len(holds) < MAX_HOLDS:
            holds[key] = site, name, now if ONE_CLOCK else monotonic()
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
        stat: Stat | None = hung(owner)
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


def connected(owner: Any, connection: Any, began: float) -> None:
    """A pool made a connection, which whoever gets it may have waited for; see :func:`handed`."""
    try:
        seconds = perf_counter() - began
        stat = stat_of(owner)
        stat.connects.add(seconds)
        stat.last_ok = monotonic()
        connection.__dict__[_CONNECTING] = began, seconds
    except Exception as error:  # noqa: BLE001
        failures("connected", error)


def handed(asked: Asked | None, connection: Any) -> None:
    """As :func:`got`, of a connection that carries what it belongs to: its queries are counted. The time that it was
    being made, for this request, is none of waiting."""
    try:
        made = connection.__dict__.pop(_CONNECTING, None)
        if asked is None:
            return
        stat, start, name, waiter = asked
        connection.__dict__[ATTRIBUTE] = stat
        if made is not None and made[0] >= start:
            asked = stat, start + made[1], name, waiter
    except Exception as error:  # noqa: BLE001
        failures("handed", error)
    got(asked, id(connection), place=4)


def gave_back(owner: Any, connection: Any) -> None:
    """As :func:`returned`, of a connection that was :func:`handed` out."""
    try:
        connection.__dict__.pop(ATTRIBUTE, None)
    except Exception as error:  # noqa: BLE001
        failures("gave_back", error)
    returned(owner, id(connection))


async def whole(stat: Stat, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Ask a server something that is not cut short when nobody waits for it any more; TimeoutError while the question
    before has no answer.

    psycopg cancels a query by asking the server for it, up to version 3.1 with a call that blocks the event loop for as
    long as a frozen server says nothing.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    before: asyncio.Task[T] | None = stat.extra.get(WHOLE)
    if before is not None and not before.done() and before.get_loop() is loop:
        raise TimeoutError
    task = stat.extra[WHOLE] = loop.create_task(ask(), name="uno")
    task.add_done_callback(
        lambda done: done.cancelled() or done.exception()
    )  # nobody may be there to hear it
    return await asyncio.shield(task)


def bind(stat: Stat) -> None:
    """Remember, weakly, on which event loop this runs."""
    import asyncio

    with suppress(TypeError, RuntimeError):  # a loop without weak references
        stat.extra["loop"] = weakref.ref(asyncio.get_running_loop())


def bound(stat: Stat | None) -> Any:
    """The event loop that was remembered, unless it is gone or closed."""
    known = stat.extra.get("loop") if stat is not None else None
    loop = known() if known is not None else None
    return None if loop is None or loop.is_closed() else loop


def timed_query(original: Any, slow: float) -> Any:
    """A hook on a coroutine of a connection, or of a cursor, that asks the server; for those handed out only."""

    async def query(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = begin(self) if ATTRIBUTE in self.__dict__ else None
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            fail(begun, error, slow)
            raise
        end(begun, slow)
        return result

    return query
