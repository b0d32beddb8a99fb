"""How are SQLAlchemy's engines watched, sync and async?

The numbers hang on the Engine, since dispose() replaces its pool. No public event fires before a checkout, so
the wait is timed by wrapping ``Pool._do_get``; queries are timed in the dialect, which costs a seventh of what
cursor events cost.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    Hold,
    Stat,
    announce,
    call_site,
    caller,
    describe_error,
    describe_holds,
    describe_slow,
    failures,
    install,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

RECENT = 10.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "oracle": 1521, "mssql": 1433}
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


class SqlalchemyEngine(ResourceTypeMonitor):
    """Pool and queries of an Engine."""

    resource_type = "database"
    targets = ("sqlalchemy.engine.base.Engine",)
    ignored = ("sqlalchemy.engine.base.OptionEngine",)  # shares pool and dialect with the engine it is made from
    library = "sqlalchemy"
    tested = ">=1.4,<2.2"
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
    thresholds = (
        ("uno.resource.utilization", Threshold(0.8, 0.95, "The connection pool is nearly used up", for_=1)),
        ("db.client.connection.pending_requests", Threshold(0, 10, "Requests wait for a connection", for_=1)),
        ("db.client.connection.timeouts", Threshold(None, 0, "Requests did not get a connection in time",
                                                    keep_firing_for=5)),
        ("uno.db.client.connection.oldest_use",
         Threshold(10, 60, "A connection is held far longer than usual: a leak?")),
        ("db.client.operation.duration", Threshold(1, 5, "Queries are slow", keep_firing_for=3)),
    )  # fmt: skip

    # -- what it is ------------------------------------------------------------------------------------

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

    def attach(self, target: Any) -> None:
        _attach(self.engine(target))

    # -- hooks -----------------------------------------------------------------------------------------

    def install(self) -> list[Callable[[], None]]:
        from importlib import import_module

        undos: list[Callable[[], None]] = []
        pools = import_module("sqlalchemy.pool")  # loaded with sqlalchemy
        base = import_module("sqlalchemy.engine.base")
        default = import_module("sqlalchemy.engine.default")
        for cls in _family(pools.Pool):
            for name, wrap in (("_do_get", _do_get), ("_do_return_conn", _do_return_conn)):
                if inspect.isfunction(cls.__dict__.get(name)) and cls is not pools.Pool:
                    undos.append(install(cls, name, wrap))
        undos.append(install(pools.Pool, "_create_connection", _create))
        undos.append(install(base.Engine, "__init__", _init))
        undos.append(install(base.Engine, "dispose", _dispose))
        for cls in _family(default.DefaultDialect):
            for name in ("do_execute", "do_executemany", "do_execute_no_params"):
                if inspect.isfunction(cls.__dict__.get(name)):
                    undos.append(install(cls, name, _execute))
        return undos

    # -- numbers ---------------------------------------------------------------------------------------

    def collect_metrics(self, resource: Resource) -> None:
        engine = self.engine(resource.target)
        stat = _attach(engine)
        used, idle, limit = _use(engine.pool)
        if used is None:
            used = float(len(stat.holds))
        update = self.update_metric
        update("uno.resource.utilization", None if limit is None else used / limit)
        update("db.client.connection.count", used, {"db.client.connection.state": "used"})
        update("db.client.connection.count", idle, {"db.client.connection.state": "idle"})
        update("db.client.connection.max", limit)
        update("db.client.connection.pending_requests", len(stat.waiters))
        update("db.client.connection.timeouts", stat.timeouts)
        update("db.client.connection.wait_time", stat.wait)
        update("db.client.connection.use_time", stat.use)
        update("db.client.connection.create_time", stat.connects)
        update("uno.db.client.connection.oldest_use", stat.oldest())
        update("db.client.operation.duration", stat.duration)
        update("uno.db.client.slow_operations", stat.slow)
        update("uno.resource.errors", stat.errors)

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        engine = self.engine(target)
        used, _, limit = _use(engine.pool)
        return (float(len(_attach(engine).holds)) if used is None else used, limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = _attach(self.engine(target))
        in_use, limit = self.capacity(target) or (None, None)
        return {
            "total_queries": stat.total.value,
            "slow_queries": stat.slow.value,
            "errors": stat.errors.value,
            "connections_in_use": in_use,
            "connections_max": limit,
            "connections_waiting": len(stat.waiters),
            "connection_timeouts": stat.timeouts.value,
        }

    def explain(self, target: Any, metric: str) -> str:
        stat = _attach(self.engine(target))
        _, limit = self.capacity(target) or (0, None)
        holders = describe_holds(stat, "connection", limit)
        if metric == "db.client.operation.duration" or "slow" in metric:
            return describe_slow(stat) or describe_error(stat)
        if metric == "uno.resource.errors":
            return describe_error(stat)
        return holders

    def ping(self, target: Any) -> bool | None:
        """Passive first; then the driver's own ping on a free connection of the pool. None when it is used up."""
        engine = self.engine(target)
        stat = _attach(engine)
        if stat.last_ok and monotonic() - stat.last_ok < RECENT:
            return True
        if not _may_ping(engine, stat):
            return None
        connection = engine.raw_connection()
        try:
            dbapi = getattr(connection, "dbapi_connection", None) or connection.connection
            return bool(engine.dialect.do_ping(dbapi))
        finally:
            connection.close()


class SqlalchemyAsyncEngine(SqlalchemyEngine):
    """Pool and queries of an AsyncEngine."""

    targets = ("sqlalchemy.ext.asyncio.engine.AsyncEngine",)

    def engine(self, target: Any) -> Any:
        return target.sync_engine

    def covers(self, target: Any) -> tuple[object, ...]:
        return (target.sync_engine,)

    def install(self) -> list[Callable[[], None]]:
        return []  # the sync engine's hooks see everything

    async def ping(self, target: Any) -> bool | None:  # type: ignore[override]
        """As for an engine; on the loop that owns it, and by a query, which async drivers need."""
        engine = target.sync_engine
        stat = _attach(engine)
        if stat.last_ok and monotonic() - stat.last_ok < RECENT:
            return True
        if not _may_ping(engine, stat):
            return None
        async with target.connect() as connection:
            await connection.run_sync(lambda c: engine.dialect.do_ping(c.connection.dbapi_connection))
        return True


def _family(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _family(sub)


def _attach(engine: Any) -> Stat:
    """The engine's Stat, made known to its pool and dialect."""
    stat = stat_of(engine)
    pool, dialect = engine.pool, engine.dialect
    if pool.__dict__.get(ATTRIBUTE) is not stat:
        pool.__dict__[ATTRIBUTE] = stat
        stat.extra["limit"] = _use(pool)[2]
    dialect.__dict__.setdefault(ATTRIBUTE, stat)
    return stat


def _use(pool: Any) -> tuple[float | None, float | None, float | None]:
    """(in use, idle, limit) without taking a lock; None where the pool has no such notion."""
    queue = getattr(pool, "_pool", None)
    size = getattr(queue, "maxsize", None)
    if size is None or not hasattr(pool, "_max_overflow"):
        return None, None, None
    inner = getattr(queue, "queue", None)  # QueuePool's own queue
    if inner is None:
        inner = getattr(getattr(queue, "_queue", None), "_queue", ())  # asyncio's, inside the adapted one
    idle, overflow = len(inner), pool._max_overflow
    limit = float(size + overflow) if size > 0 and overflow > -1 else None
    return float(max(0, size - idle + pool._overflow)) if size > 0 else None, float(idle), limit


def _may_ping(engine: Any, stat: Stat) -> bool:
    used, _, limit = _use(engine.pool)
    if limit is None and type(engine.pool).__name__ != "NullPool":
        return used is not None  # one connection shared by all: not ours to use
    return used is None or limit is None or used < limit


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            _attach(self)
            announce(self)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Engine.__init__", error)

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
        stat: Stat | None = self.__dict__.get(ATTRIBUTE)
        if stat is None:
            return original(self)
        limit = stat.extra.get("limit")
        start = monotonic()
        waiter = None
        if limit is not None and len(stat.holds) >= limit:
            waiter = object()
            stat.waiters[id(waiter)] = Hold(call_site(), caller(), start)
        try:
            record = original(self)
        except Exception as error:
            if type(error).__name__ == "TimeoutError":
                if waiter is not None or limit is None:  # it calls itself in a race: count once
                    stat.timeouts.value += 1
            stat.failed(error)
            raise
        finally:
            if waiter is not None:
                stat.waiters.pop(id(waiter), None)
        key = id(record)
        hold = stat.holds.get(key)
        if hold is None or hold.since < start:
            stat.wait.observe(monotonic() - start)
            stat.hold(key, call_site())
        return record

    return _do_get


def _do_return_conn(original: Any) -> Any:
    def _do_return_conn(self: Any, record: Any) -> Any:
        stat: Stat | None = self.__dict__.get(ATTRIBUTE)
        if stat is not None:
            stat.release(id(record))
        return original(self, record)

    return _do_return_conn


def _create(original: Any) -> Any:
    def _create_connection(self: Any) -> Any:
        stat: Stat | None = self.__dict__.get(ATTRIBUTE)
        if stat is None:
            return original(self)
        start = perf_counter()
        record = original(self)
        stat.connects.observe(perf_counter() - start)
        return record

    return _create_connection


def _execute(original: Any) -> Any:
    def execute(self: Any, cursor: Any, *args: Any, **kwargs: Any) -> Any:
        stat: Stat | None = self.__dict__.get(ATTRIBUTE)
        if stat is None:
            return original(self, cursor, *args, **kwargs)
        running: set[int] = stat.extra.setdefault("running", set())
        key = id(cursor)
        if key in running:  # a dialect that calls its parent's: count once
            return original(self, cursor, *args, **kwargs)
        running.add(key)
        start = perf_counter()
        error: BaseException | None = None
        try:
            return original(self, cursor, *args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            running.discard(key)
            stat.done(perf_counter() - start, error)
            error = None

    return execute


