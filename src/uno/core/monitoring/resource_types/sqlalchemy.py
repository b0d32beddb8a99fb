"""How are SQLAlchemy's engines watched, sync and async?

The numbers hang on the Engine, since dispose() replaces its pool. No public event fires before a checkout, so
the wait is timed by wrapping ``Pool._do_get``; queries are timed in the dialect, which costs a seventh of what
cursor events cost.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.causes import lost_of
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_HOLDS,
    OWN,
    Held,
    Stat,
    announce,
    call_site,
    caller,
    failures,
    hang,
    hung,
    install,
    scope,
    stat_of,
    unscoped,
)
from uno.core.monitoring.metrics import MAX_PENDING
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import (
    LEAKED,
    OLDEST,
    PENDING,
    SITE_SECONDS,
    SLOW,
    TIMEOUTS,
    UTILIZATION,
    PooledMonitor,
    PoolUse,
    is_own,
    whole,
)
from uno.core.monitoring.resource_types._server import METRICS, ServerConnections, asked_by_cursor
from uno.core.resources import Identity

SLOW_SECONDS = 0.5
#: What was held for less than this has cost nobody anything: whether it was given back or dropped is not looked at.
BRIEF = 0.0001
#: A weak reference's callback, and since 2.1 weakref.finalize.
_FINALIZERS = frozenset(("<lambda>", "__call__"))
_WATCH = "_uno_watch"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "oracle": 1521, "mssql": 1433}
_SIMPLE = frozenset(("AssertionPool", "NullPool", "SingletonThreadPool", "StaticPool"))
#: AssertionPool makes nobody wait: it refuses.
_IN_VAIN = frozenset(("AssertionError", "TimeoutError"))
#: The dialects whose servers are asked how many connections they take.
_ASKED = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


class SqlalchemyEngine(PooledMonitor):
    """Pool and queries of an Engine.

    A NullPool, StaticPool or SingletonThreadPool has no limit, so no share of it either. Of several users that share
    the connection of a StaticPool, the first to return it is the one that is seen.

    For sqlite3 and aiosqlite an engine is what can be told of: open connections and the time of statements. A
    `sqlite3.Connection` of your own cannot be watched: its class can neither be changed nor referred to weakly.
    """

    resource_type = "database"
    targets = ("sqlalchemy.engine.base.Engine",)
    ignored = (
        "sqlalchemy.engine.base.OptionEngine",
    )  # shares pool and dialect with the engine it is made from
    library = "sqlalchemy"
    tested = ">=1.4,<2.2"
    metrics = PooledMonitor.metrics + pick("uno.connection.leaked")
    asked = METRICS
    thresholds = (UTILIZATION, PENDING, TIMEOUTS, OLDEST, LEAKED, SLOW)

    def engine(self, target: Any) -> Any:
        """The sync engine, which holds pool and dialect."""
        return target

    def identify(self, target: Any) -> Identity:
        engine = self.engine(target)
        url, dialect = engine.url, engine.dialect.name
        database, host = url.database, url.host
        labels = {"db.system.name": _SYSTEMS.get(dialect, dialect)}
        if dialect == "sqlite":
            name = os.path.basename(database) if database and not database.startswith(("file:", ":")) else ""
            endpoint = f"file:{name}" if name else None
        else:
            name = database or ""
            port = url.port or _PORTS.get(dialect)
            endpoint = None if not host else f"{host}{f':{port}' if port else ''}{f'/{name}' if name else ''}"
        if name:
            labels["db.namespace"] = name
        return Identity(name or dialect, endpoint, labels)

    def stat(self, target: Any) -> Stat | None:
        return super().stat(self.engine(target))

    def stat_for(self, target: Any) -> Stat:
        return _attach(self.engine(target))

    def pool_use(self, target: Any) -> PoolUse:
        return _use(self.engine(target).pool)

    def limit_parts(self, target: Any) -> tuple[float, ...]:
        pool = self.engine(target).pool
        if _use(pool).limit is None or not getattr(pool, "_max_overflow", 0):
            return ()
        return float(pool.size()), float(pool._max_overflow)

    def install(self) -> list[Callable[[], None]]:
        from importlib import import_module

        pools = import_module("sqlalchemy.pool")  # loaded with sqlalchemy
        base = import_module("sqlalchemy.engine.base")
        default = import_module("sqlalchemy.engine.default")
        record = import_module("sqlalchemy.pool.base")._ConnectionRecord
        hooks: list[tuple[type, str, Any]] = [
            (record, "_ConnectionRecord__connect", _connect),
            (base.Engine, "__init__", _init),
            (base.Engine, "dispose", _dispose),
        ]
        for cls in _family(pools.Pool):
            hooks += [(cls, "_do_get", _do_get), (cls, "_do_return_conn", _do_return_conn)]
        for cls in _family(default.DefaultDialect):
            hooks += [
                (cls, name, _execute) for name in ("do_execute", "do_executemany", "do_execute_no_params")
            ]
        return [
            install(cls, name, wrap)
            for cls, name, wrap in hooks
            if cls is not pools.Pool and inspect.isfunction(cls.__dict__.get(name))
        ]

    def has_free_slot(self, target: Any) -> bool:
        engine = self.engine(target)
        # A pool without a size shares one connection, or has one for each thread: not ours to use. SQLite's
        # connections to memory belong to the thread that made them.
        sized = hasattr(engine.pool, "_max_overflow") or type(engine.pool).__name__ == "NullPool"
        in_memory = engine.dialect.name == "sqlite" and (engine.url.database or ":memory:").startswith(":")
        return sized and not in_memory and super().has_free_slot(target)

    def inherited(self, target: Any) -> object:
        return super().inherited(target) and self.engine(target).pool  # which dispose() replaces

    def pings_cheaply(self, target: Any) -> bool:
        return _kind(self.engine(target).pool) != "NullPool" and super().pings_cheaply(target)

    def ping(self, target: Any) -> bool | None:
        """Passive first; then the driver's own ping on a free connection of the pool. None when it is used up."""
        if self.seems_up(target):
            return True
        if not self.has_free_slot(target):
            return None
        engine = self.engine(target)
        if getattr(engine.dialect, "is_async", False):  # the inside of an AsyncEngine: not from this thread
            return None
        connection = engine.raw_connection()
        try:
            dbapi = getattr(connection, "dbapi_connection", None) or connection.connection
            return bool(engine.dialect.do_ping(dbapi))
        finally:
            connection.close()

    def asks(self, target: Any) -> bool:
        return self.engine(target).dialect.name in _ASKED

    def server_connections(self, target: Any) -> Any:
        engine = self.engine(target)
        if getattr(engine.dialect, "is_async", False):
            raise TypeError("the inside of an AsyncEngine: not from this thread")
        connection = engine.raw_connection()
        try:
            return _ask(engine, connection)
        finally:
            connection.close()


class SqlalchemyAsyncEngine(SqlalchemyEngine):
    """Pool and queries of an AsyncEngine."""

    targets = ("sqlalchemy.ext.asyncio.engine.AsyncEngine",)

    def engine(self, target: Any) -> Any:
        return target.sync_engine

    def covers(self, target: Any) -> tuple[object, ...]:
        return (target.sync_engine,)

    def ready(self) -> bool:
        return hasattr(sys.modules.get("sqlalchemy.ext.asyncio.engine"), "AsyncEngine")

    def install(self) -> list[Callable[[], None]]:
        # the sync engine's hooks see the rest
        return [install(sys.modules["sqlalchemy.ext.asyncio.engine"].AsyncEngine, "__init__", _async_init)]

    def bound_loop(self, target: Any) -> Any:
        stat = self.stat(target)
        known = stat.extra.get("loop") if stat is not None else None
        loop = known() if known is not None else None
        return None if loop is None or loop.is_closed() else loop

    async def ping(self, target: Any) -> bool | None:  # type: ignore[override]
        """As for an engine, and only on the loop that the connections belong to; None on any other."""
        import asyncio

        if self.seems_up(target):
            return True
        if self.bound_loop(target) is not asyncio.get_running_loop() or not self.has_free_slot(target):
            return None
        dialect = target.sync_engine.dialect

        async def question() -> bool:
            async with target.connect() as connection:
                await connection.run_sync(lambda c: dialect.do_ping(c.connection.dbapi_connection))
            return True

        return await whole(self.stat_for(target), question)

    async def server_connections(self, target: Any) -> ServerConnections:
        async def question() -> ServerConnections:
            async with target.connect() as connection:
                return await connection.run_sync(lambda c: _ask(target.sync_engine, c.connection))  # type: ignore[no-any-return]

        return await whole(self.stat_for(target), question)


def _ask(engine: Any, connection: Any) -> ServerConnections:
    """Ask the server on a connection of the pool, through the driver's own cursor."""
    cursor = connection.cursor()
    try:
        return asked_by_cursor(cursor, _ASKED[engine.dialect.name])
    finally:
        cursor.close()


def _family(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        yield from _family(sub)


class _Watch:
    """What hangs on a pool: its engine's Stat, and what the hooks need of it at hand."""

    __slots__ = ("holds", "limit", "made", "stat", "uses", "waits")

    def __init__(self, stat: Stat, limit: float | None) -> None:
        self.stat, self.holds = stat, stat.holds
        self.waits, self.uses = stat.wait.pending, stat.use.pending  # always the same lists
        self.limit = inf if limit is None else limit
        #: when making a connection began, by the id of its record
        self.made: dict[int, float] = {}


def _attach(engine: Any) -> Stat:
    """The engine's Stat, made known to its pool and dialect."""
    engine = getattr(engine, "_proxied", engine)  # an engine with options stands for the one beneath
    stat, pool = stat_of(engine), engine.pool
    if hung(pool, _WATCH) is None:
        hang(pool, _WATCH, _Watch(stat, _use(pool).limit))
    hang(engine.dialect, ATTRIBUTE, stat)
    return stat


def _kind(pool: Any) -> str:
    """Which of the library's pools without a queue it is, or is made from; "" for others."""
    return next((base.__name__ for base in type(pool).__mro__ if base.__name__ in _SIMPLE), "")


def _use_simply(pool: Any) -> PoolUse:
    """Of a pool without a queue. How many of its connections are used is known from who has taken them."""
    kind, watch = _kind(pool), hung(pool, _WATCH)
    if kind == "StaticPool":
        connections = int(pool.__dict__.get("connection") is not None)
    elif kind == "AssertionPool":
        connections = int(pool._conn is not None)
    elif kind == "SingletonThreadPool":
        connections = len(pool._all_conns)
    else:
        return PoolUse(None, 0.0 if kind == "NullPool" else None, None, 0)
    idle = float(max(0, connections - (len(watch.holds) if watch is not None else 0)))
    return PoolUse(None, idle, 1.0 if kind == "AssertionPool" else None, 0)


def _use(pool: Any) -> PoolUse:
    """Read without taking a lock."""
    queue: Any = getattr(pool, "_pool", None)
    size = getattr(queue, "maxsize", None)
    if size is None or not hasattr(pool, "_max_overflow"):
        return _use_simply(pool)
    inner: Any = getattr(queue, "queue", None)  # QueuePool's own queue
    if inner is not None:
        waiting = len(queue.not_empty._waiters)
    else:
        inner = queue._queue._queue  # asyncio's, inside the adapted one
        waiting = sum(not waiter.done() for waiter in list(queue._queue._getters))
    idle, overflow = len(inner), pool._max_overflow
    limit = float(size + overflow) if size > 0 and overflow > -1 else None
    return PoolUse(float(max(0, size - idle + pool._overflow)), float(idle), limit, waiting)


# -- hooks -----------------------------------------------------------------------------------------------


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            _attach(self)
            if not getattr(self.dialect, "is_async", False):  # else an AsyncEngine will stand for it
                announce(self)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Engine.__init__", error)

    return __init__


def _async_init(original: Any) -> Any:
    def __init__(self: Any, sync_engine: Any) -> None:
        original(self, sync_engine)
        if not hasattr(sync_engine, "_proxied"):
            announce(self)

    return __init__


def _dispose(original: Any) -> Any:
    def dispose(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            _attach(self)  # to the pool that has come
        except Exception as error:  # noqa: BLE001
            failures("Engine.dispose", error)
        return result

    return dispose


def _do_get(original: Any) -> Any:
    def _do_get(self: Any) -> Any:
        try:
            watch: _Watch = self._uno_watch
        except AttributeError:  # a pool without an engine
            return original(self)
        holds = watch.holds
        waiter = None if len(holds) < watch.limit else _wait(watch.stat)
        start = monotonic()
        try:
            record = original(self)
        except BaseException as error:
            _refused(watch.stat, waiter, error)
            raise
        try:
            now = monotonic()
            key = id(record)
            waited = now - start
            if waiter is not None:
                watch.stat.waiters.pop(id(waiter), None)
            if watch.made:
                began = watch.made.pop(key, start)
                if began > start:
                    waited = began - start
            current = scope.get()
            if current is None:
                name = unscoped()
            else:
                name = current._name or current.name
                if name == OWN:
                    return record
            stat, site = watch.stat, None
            if holds:
                if key in holds and holds[key][2] >= start:
                    return record  # it called itself, in a race for the last connection: counted within
                if len(holds) >= MAX_HOLDS:
                    _waited(watch, waited)
                    return record
                site = call_site(5)
            elif now - stat.sited > SITE_SECONDS:
                stat.sited = now
                site = call_site(5)
            watch.waits.append(waited)
            holds[key] = site, name, now
        except Exception as error:  # noqa: BLE001
            failures("Pool._do_get", error)
        return record

    return _do_get


def _waited(watch: _Watch, seconds: float) -> None:
    """Nobody will see it returned, so nobody else counts what waits to be counted."""
    watch.waits.append(seconds)
    if len(watch.waits) > MAX_PENDING:
        watch.stat.wait.fold()


def _wait(stat: Stat) -> Held | None:
    try:
        waiter = call_site(6), caller(), monotonic()
        stat.waiters[id(waiter)] = waiter
    except Exception as error:  # noqa: BLE001
        failures("Pool._do_get", error)
        return None
    return waiter


def _refused(stat: Stat, waiter: Held | None, error: BaseException) -> None:
    try:
        if waiter is not None:
            stat.waiters.pop(id(waiter), None)
        if type(error).__name__ in _IN_VAIN and not error.__dict__.get(ATTRIBUTE):
            error.__dict__[ATTRIBUTE] = True  # it passes here once for each time that the pool called itself
            stat.timeouts.value += 1
            stat.failed(error)
    except Exception as failure:  # noqa: BLE001
        failures("Pool._do_get", failure)


def _look_whether_lost(stat: Stat, held: Held) -> None:
    """Whether it is the garbage collector that gives a connection back is told by who calls SQLAlchemy's finalizer."""
    try:
        frame: Any = sys._getframe(2)
        for _ in range(3):
            if frame.f_code.co_name == "_finalize_fairy":
                if frame.f_back.f_code.co_name in _FINALIZERS:
                    lost_of(stat).add(held)
                return
            frame = frame.f_back
    except Exception as error:  # noqa: BLE001
        failures("Pool._do_return_conn", error)


def _do_return_conn(original: Any) -> Any:
    def _do_return_conn(self: Any, record: Any) -> Any:
        try:
            watch: _Watch = self._uno_watch
        except AttributeError:
            return original(self, record)
        held = watch.holds.pop(id(record), None)
        if held is not None:
            uses = watch.uses
            seconds = monotonic() - held[2]
            if seconds > BRIEF:
                _look_whether_lost(watch.stat, held)
            uses.append(seconds)
            if len(uses) > MAX_PENDING:
                watch.stat.use.fold()
                watch.stat.wait.fold()
        return original(self, record)

    return _do_return_conn


def _connect(original: Any) -> Any:
    """Times connecting, also when a connection that was lost is made anew; notes the loop of async drivers."""

    def connect(self: Any) -> Any:
        pool = self._ConnectionRecord__pool
        watch: _Watch | None = hung(pool, _WATCH)
        if watch is None:
            return original(self)
        stat, start = watch.stat, monotonic()
        try:
            result = original(self)
        except Exception as error:
            if not is_own(scope.get()):  # a ping's failure is told by health
                stat.failed(error)
            raise
        try:
            stat.connects.add(monotonic() - start)
            watch.made[id(self)] = start
            if getattr(pool._dialect, "is_async", False):
                _bind(stat)
        except Exception as error:  # noqa: BLE001
            failures("_ConnectionRecord.connect", error)
        return result

    return connect


def _bind(stat: Stat) -> None:
    import asyncio

    loop = asyncio._get_running_loop()
    if loop is not None:
        stat.extra["loop"] = weakref.ref(loop)


def _execute(original: Any) -> Any:
    def execute(self: Any, cursor: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat: Stat = self._uno_stat
        except AttributeError:
            return original(self, cursor, *args, **kwargs)
        if self.is_async and "loop" not in stat.extra:  # it was connected before the hooks came
            _bind(stat)
        running, key = stat.running, id(cursor)
        if key in running:  # a dialect that calls its parent's: count once
            return original(self, cursor, *args, **kwargs)
        start = perf_counter()
        running[key] = start, ""
        try:
            result = original(self, cursor, *args, **kwargs)
        except BaseException as error:
            seconds = perf_counter() - start
            running.pop(key, None)
            if isinstance(error, Exception):
                stat.done(seconds, error, slow=SLOW_SECONDS)
            else:  # cancelled: neither failed nor succeeded
                stat.duration.add(seconds)
            raise
        seconds = perf_counter() - start
        running.pop(key, None)
        stat.done(seconds, slow=SLOW_SECONDS)
        return result

    return execute
