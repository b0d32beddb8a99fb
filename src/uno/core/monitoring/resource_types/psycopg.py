"""How are psycopg_pool's pools of psycopg 3 watched, sync, async and without idle connections?

The pool's own sums lose the part of a millisecond of each event, so ``getconn`` is timed. Its own count of what is
out includes connections that are being made, for as long as a server is away: those handed out are counted here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, announce, failures, install, scope, stat_of
from uno.core.monitoring.resource_types._pooled import (
    OLDEST,
    PENDING,
    SLOW,
    TIMEOUTS,
    UTILIZATION,
    Asked,
    Begun,
    PooledMonitor,
    PoolUse,
    ask,
    begin,
    connected,
    end,
    fail,
    gave_back,
    handed,
    is_own,
    refused,
    server_identity,
    whole,
)
from uno.core.monitoring.resource_types._server import (
    DEADLINE,
    METRICS,
    POSTGRESQL,
    ServerConnections,
    asked_by_cursor,
    told_by_postgresql,
)
from uno.core.resources import Identity

SLOW_SECONDS = 0.5
#: More than the monitor waits.
_PING_SECONDS = 3.0
#: How many connections were out, at most, when the hooks came.
_BEFORE = "before"
_IN_VAIN = frozenset(("PoolTimeout", "TooManyRequests"))


class PsycopgPool(PooledMonitor):
    """A ConnectionPool or NullConnectionPool, and the queries on its connections.

    ``execute`` and ``executemany`` of its connections and cursors are timed, not COPY, ``stream`` and fetching.
    """

    resource_type = "database"
    targets = ("psycopg_pool.pool.ConnectionPool",)
    library, tested = "psycopg_pool", ">=3.1,<3.4"
    asked = METRICS
    thresholds = (UTILIZATION, PENDING, TIMEOUTS, OLDEST, SLOW)
    #: The class of the pools, and the classes of the cursors.
    pool, cursors = "ConnectionPool", ("Cursor", "ServerCursor")

    def identify(self, target: Any) -> Identity:
        settings = _settings(target)
        host = settings.get("host") or settings.get("hostaddr") or ""
        found = server_identity(
            "postgresql", host, settings.get("port") or 5432, settings.get("dbname") or ""
        )
        named = not target.name.startswith("pool-")  # else a number that counts the pools of the process
        return found._replace(name=target.name) if named else found

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(target)
        stat.drain()
        if _BEFORE not in stat.extra:
            stat.extra[_BEFORE] = max(0, min(_out(target), _requests(target)) - len(stat.holds))
        return stat

    def pool_use(self, target: Any) -> PoolUse:
        stat, idle = self.stat_for(target), len(target._pool)
        waiting = sum(w.conn is None and w.error is None for w in list(target._waiting))
        before = stat.extra[_BEFORE] = max(0, min(stat.extra[_BEFORE], _out(target) - len(stat.holds)))
        return PoolUse(float(len(stat.holds) + before), float(idle), target._max_size or None, waiting)

    def ready(self) -> bool:
        # the last things that they define
        return hasattr(sys.modules.get("psycopg_pool"), "AsyncNullConnectionPool") and hasattr(
            sys.modules.get("psycopg"), "AsyncServerCursor"
        )

    def install(self) -> list[Callable[[], None]]:
        pool, psycopg = getattr(sys.modules["psycopg_pool"], self.pool), sys.modules["psycopg"]
        connect, get, put, query = self.hooks()
        undo = [
            install(pool, "__init__", _init),
            install(pool, "_connect", connect),
            install(pool, "getconn", get),
            install(pool, "putconn", put),
        ]
        undo += [
            install(cls, name, query)
            for cls in (getattr(psycopg, cursor) for cursor in self.cursors)
            for name in ("execute", "executemany")
            if name in vars(cls)
        ]
        return undo

    def hooks(self) -> tuple[Any, Any, Any, Any]:
        """The hooks for connecting, taking and returning a connection, and for a query."""
        return _connect, _getconn, _putconn, _query

    def pings_cheaply(self, target: Any) -> bool:
        return "Null" not in type(target).__name__ and super().pings_cheaply(target)

    def ping(self, target: Any) -> Any:
        """Passive first; then a query on a connection of the pool. None when it is used up, or not open."""
        if self.seems_up(target):
            return True
        if target._closed or not self._is_askable(target):
            return None
        with target.connection(timeout=_PING_SECONDS) as connection:
            return connection.execute("SELECT 1") is not None

    def _is_askable(self, target: Any) -> bool:
        """Whether a connection is free. ConnectionError when there is none, and none can be made."""
        used, idle, _, waiting = self.pool_use(target)
        if waiting and not used and not idle and self.suspect(target):
            raise ConnectionError("the pool cannot connect")
        return self.has_free_slot(target)

    def server_connections(self, target: Any) -> Any:
        with (
            target.connection(timeout=DEADLINE) as connection,
            connection.cursor(row_factory=_tuples()) as cursor,
        ):
            return asked_by_cursor(cursor, "postgresql")


class PsycopgAsyncPool(PsycopgPool):
    """An AsyncConnectionPool or AsyncNullConnectionPool, and the queries on its connections."""

    targets = ("psycopg_pool.pool_async.AsyncConnectionPool",)
    pool, cursors = "AsyncConnectionPool", ("AsyncCursor", "AsyncServerCursor")

    def hooks(self) -> tuple[Any, Any, Any, Any]:
        return _async_connect, _async_getconn, _async_putconn, _async_query

    def bound_loop(self, target: Any) -> Any:
        for task in list(target._workers):
            loop = task.get_loop()
            return None if loop.is_closed() else loop
        return None

    async def ping(self, target: Any) -> bool | None:
        """As above, and only on the loop that the pool belongs to; None on any other."""
        import asyncio

        if self.seems_up(target):
            return True
        if target._closed or self.bound_loop(target) is not asyncio.get_running_loop():
            return None
        if not self._is_askable(target):
            return None

        async def question() -> bool:
            async with target.connection(timeout=_PING_SECONDS) as connection:
                return await connection.execute("SELECT 1") is not None

        return await whole(self.stat_for(target), question)

    async def server_connections(self, target: Any) -> ServerConnections:
        async def question() -> ServerConnections:
            async with (
                target.connection(timeout=DEADLINE) as connection,
                connection.cursor(row_factory=_tuples()) as cursor,
            ):
                await cursor.execute(POSTGRESQL)
                return told_by_postgresql(await cursor.fetchone())

        return await whole(self.stat_for(target), question)


def _tuples() -> Any:
    """The factory of plain rows: the application may have chosen another for its connections."""
    return sys.modules["psycopg.rows"].tuple_row


def _settings(pool: Any) -> dict[str, Any]:
    """Where the pool connects to. Nothing else is taken from its settings."""
    told: dict[str, Any] = {}
    try:
        if isinstance(pool.conninfo, str):
            told.update(sys.modules["psycopg.conninfo"].conninfo_to_dict(pool.conninfo))
        if isinstance(pool.kwargs, dict):
            told.update(pool.kwargs)
    except Exception as error:  # noqa: BLE001 - it cannot be read: the pool will say so itself
        failures("psycopg_pool conninfo", error)
    return {k: str(v) for k, v in told.items() if k in ("host", "hostaddr", "port", "dbname") and v}


def _out(pool: Any) -> int:
    """The connections that are not in the pool: out, or being made."""
    return 0 if pool._closed else max(0, pool._nconns - len(pool._pool))


def _requests(pool: Any) -> int:
    return int(pool._stats.get("requests_num", 0))


# -- hooks -----------------------------------------------------------------------------------------------


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            stat_of(self).extra[_BEFORE] = 0
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ConnectionPool.__init__", error)
        original(self, *args, **kwargs)
        announce(self)

    return __init__


def _failed(pool: Any, error: BaseException) -> None:
    """A connection could not be made, mostly by the pool's own worker; a ping's failure is told by health."""
    if isinstance(error, Exception) and not is_own(scope.get()):
        stat_of(pool).failed(error)


def _connect(original: Any) -> Any:
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            _failed(self, error)
            raise
        connected(self, connection, began)
        return connection

    return _connect


def _async_connect(original: Any) -> Any:
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            connection = await original(self, *args, **kwargs)
        except BaseException as error:
            _failed(self, error)
            raise
        connected(self, connection, began)
        return connection

    return _connect


def _refused(asked: Asked | None, error: BaseException) -> None:
    refused(asked, timed_out=type(error).__name__ in _IN_VAIN)


def _getconn(original: Any) -> Any:
    def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = ask(self, self._max_size or None)
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            _refused(asked, error)
            raise
        handed(asked, connection)
        return connection

    return getconn


def _async_getconn(original: Any) -> Any:
    async def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = ask(self, self._max_size or None)
        try:
            connection = await original(self, *args, **kwargs)
        except BaseException as error:
            _refused(asked, error)
            raise
        handed(asked, connection)
        return connection

    return getconn


def _putconn(original: Any) -> Any:
    def putconn(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        gave_back(self, conn)
        return original(self, conn, *args, **kwargs)

    return putconn


def _async_putconn(original: Any) -> Any:
    async def putconn(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        gave_back(self, conn)
        return await original(self, conn, *args, **kwargs)

    return putconn


def _begun(cursor: Any) -> Begun | None:
    """A query starts; None on a connection outside of pools, as SQLAlchemy's are."""
    connection = cursor._conn
    return begin(connection) if ATTRIBUTE in connection.__dict__ else None


def _query(original: Any) -> Any:
    def query(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begun(self)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            fail(begun, error, SLOW_SECONDS)
            raise
        end(begun, SLOW_SECONDS)
        return result

    return query


def _async_query(original: Any) -> Any:
    async def query(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begun(self)
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            fail(begun, error, SLOW_SECONDS)
            raise
        end(begun, SLOW_SECONDS)
        return result

    return query
