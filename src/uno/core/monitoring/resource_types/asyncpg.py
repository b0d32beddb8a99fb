"""How are asyncpg's pools watched?

A Pool takes neither attributes nor weak references: its queue takes both, and carries an _Anchor. Queries are
timed on connections that belong to a pool; the reset that the pool does between two users is not counted.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    OWN,
    CallScope,
    Stat,
    failures,
    install,
    scope,
    stat_of,
)
from uno.core.monitoring.resource_types._pooled import (
    OLDEST,
    PENDING,
    SLOW,
    TIMEOUTS,
    UTILIZATION,
    Begun,
    PooledMonitor,
    PoolUse,
    ask,
    begin,
    end,
    fail,
    got,
    is_own,
    refused,
    returned,
)
from uno.core.monitoring.resource_types._server import (
    DEADLINE,
    METRICS,
    POSTGRESQL,
    ServerConnections,
    told_by_postgresql,
)
from uno.core.resources import Identity, Resource

SLOW_SECONDS = 0.5
#: More than the monitor waits.
_PING_SECONDS = 3.0
_ANCHOR = "_uno_pool"
_OWN_SCOPE = CallScope(OWN)
#: References to a pool that only uno holds: the _Reference's, its local name's and getrefcount's own.
_OURS = 3
_NOTHING = PoolUse(None, None, None, 0)


class AsyncpgPool(PooledMonitor):
    """An asyncpg.Pool and its queries."""

    resource_type = "database"
    targets = ("asyncpg.pool.Pool",)
    library, tested = "asyncpg", ">=0.27,<0.33"
    asked = METRICS
    thresholds = (UTILIZATION, PENDING, TIMEOUTS, OLDEST, SLOW)

    def identify(self, target: Any) -> Identity:
        host, port, database = _address(target)
        labels = {"db.system.name": "postgresql"}
        if database:
            labels["db.namespace"] = database
        endpoint = None
        if host:
            place = f"unix:{host}" if host.startswith("/") else f"{host}:{port}"
            endpoint = f"{place}/{database}" if database else place
        return Identity(database or "postgresql", endpoint, labels)

    def reference(self, target: Any) -> Callable[[], Any]:
        return _Reference(target)

    def stat(self, target: Any) -> Stat | None:
        anchor = _anchor(target)
        return None if anchor is None else super().stat(anchor)

    def stat_for(self, target: Any) -> Stat:
        anchor = _anchor(target)
        if anchor is None:
            return Stat()
        stat = stat_of(anchor)
        stat.drain()
        return stat

    def pool_use(self, target: Any) -> PoolUse:
        queue = target._queue
        if queue is None:
            return _NOTHING
        limit = target._maxsize
        waiting = sum(not waiter.done() for waiter in list(queue._getters))
        return PoolUse(max(0, limit - queue.qsize()), target.get_idle_size(), limit, waiting)

    def at_rest(self, target: Any) -> object:
        return None if target._queue is None else super().at_rest(target)

    def collect_metrics(self, resource: Resource) -> None:
        if resource.target._queue is not None:  # else it was not awaited yet
            super().collect_metrics(resource)

    def bound_loop(self, target: Any) -> Any:
        loop = target._loop
        return None if loop is None or loop.is_closed() else loop

    def ready(self) -> bool:
        return hasattr(sys.modules.get("asyncpg"), "create_pool")  # the last thing that it defines

    def install(self) -> list[Callable[[], None]]:
        pool, connection = sys.modules["asyncpg.pool"], sys.modules["asyncpg.connection"].Connection
        undo = [
            install(pool.Pool, "_acquire", _acquire),
            install(pool.PoolConnectionHolder, "connect", _connect),
            install(pool.PoolConnectionHolder, "_release", _release),
            install(connection, "reset", _reset),
            install(connection, "execute", _execute),
        ]
        undo += [
            install(connection, name, _query)
            for name in ("_execute", "_executemany", "_copy_in", "_copy_out")
            if name in vars(connection)
        ]
        statement, cursor = sys.modules["asyncpg.prepared_stmt"], sys.modules["asyncpg.cursor"]
        undo += [
            install(cls, name, _inner_query)
            for cls, name in (
                (statement.PreparedStatement, "_PreparedStatement__do_execute"),
                (cursor.BaseCursor, "_bind_exec"),
                (cursor.BaseCursor, "_exec"),
            )
            if name in vars(cls)
        ]
        return undo

    async def ping(self, target: Any) -> bool | None:
        """Passive first; then a query on a free connection, on the loop that owns the pool and on no other."""
        import asyncio

        if target._queue is None or target._closing:
            return None
        if self.seems_up(target):
            return True
        if asyncio.get_running_loop() is not target._loop or not self.has_free_slot(target):
            return None
        async with target.acquire(timeout=_PING_SECONDS) as connection:
            return bool(await connection.fetchval("SELECT 1", timeout=_PING_SECONDS) == 1)

    async def server_connections(self, target: Any) -> ServerConnections:
        async with target.acquire(timeout=DEADLINE) as connection:
            return told_by_postgresql(await connection.fetchrow(POSTGRESQL, timeout=DEADLINE))


class _Anchor:
    """What hangs on a pool's queue: the Stat (a queue may have one of its own), and the way back to the pool."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool  # one more of the cycles that a pool consists of
        self.connecting: dict[int, float] = {}


def _anchor(pool: Any) -> _Anchor | None:
    """The anchor of a pool, made when there is none; None until the pool has a queue."""
    queue = pool._queue
    if queue is None:
        return None
    found: _Anchor | None = queue.__dict__.get(_ANCHOR)
    return found if found is not None else queue.__dict__.setdefault(_ANCHOR, _Anchor(pool))


class _Reference:
    """Weak, through the queue, as soon as the pool has one; until then it lets go when nobody else holds the pool."""

    __slots__ = ("_pool", "_queue")

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._queue: Callable[[], Any] | None = None
        self()

    def __call__(self) -> Any:
        if self._queue is None:
            pool = self._pool
            if pool is None:
                return None
            if _anchor(pool) is not None:
                self._queue, self._pool = weakref.ref(pool._queue), None
            elif sys.getrefcount(pool) <= _OURS:
                self._pool = pool = None
            return pool
        queue = self._queue()
        return None if queue is None else queue.__dict__[_ANCHOR].pool


def _address(pool: Any) -> tuple[str, Any, str]:
    """(host, port, database): of a living connection, else from the settings. Nothing else is taken from them."""
    for holder in list(pool._holders):
        connection = holder._con
        if connection is not None:
            address, database = connection._addr, connection._params.database or ""
            return (address, "", database) if isinstance(address, str) else (*address[:2], database)
    settings = pool._connect_kwargs
    host, port, database = settings.get("host"), settings.get("port"), settings.get("database")
    dsn = pool._connect_args[0] if pool._connect_args else settings.get("dsn")
    if isinstance(dsn, str):
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(dsn)
            host = host or parts.hostname
            port = port or parts.port
            database = database or parts.path.strip("/")
        except ValueError:  # several hosts
            pass
    known = host if isinstance(host, str) else ""
    return known, port if isinstance(port, int) else 5432, database if isinstance(database, str) else ""


# -- hooks -----------------------------------------------------------------------------------------------


def _acquire(original: Any) -> Any:
    async def _acquire(self: Any, *args: Any, **kwargs: Any) -> Any:
        anchor = _anchor(self)
        asked = None if anchor is None else ask(anchor, self._maxsize)
        try:
            proxy = await original(self, *args, **kwargs)
        except BaseException as error:
            waited = asked is not None and asked[3] is not None
            refused(asked, timed_out=waited and isinstance(error, TimeoutError))
            raise
        if anchor is not None:
            key = id(proxy._holder)
            got(asked, key, anchor.connecting.pop(key, None))
        return proxy

    return _acquire


def _connect(original: Any) -> Any:
    """Notes when a connection begins to be made; who asked for it takes the time."""

    async def connect(self: Any) -> Any:
        anchor = _anchor(self._pool)
        if anchor is None:
            return await original(self)
        anchor.connecting[id(self)] = perf_counter()
        try:
            return await original(self)
        except BaseException as error:
            anchor.connecting.pop(id(self), None)
            if isinstance(error, Exception) and not is_own(scope.get()):  # a ping's failure is told by health
                stat_of(anchor).failed(error)
            raise

    return connect


def _release(original: Any) -> Any:
    def _release(self: Any) -> Any:
        returned(_anchor(self._pool), id(self))
        return original(self)

    return _release


def _reset(original: Any) -> Any:
    async def reset(self: Any, **kwargs: Any) -> Any:
        if self._proxy is None:
            return await original(self, **kwargs)
        token = scope.set(_OWN_SCOPE)
        try:
            return await original(self, **kwargs)
        finally:
            scope.reset(token)

    return reset


def _begun(connection: Any) -> Begun | None:
    """A query starts; None on a connection outside of pools, as SQLAlchemy's are."""
    try:
        proxy = connection._proxy
        if proxy is None:
            return None
        anchor = proxy._holder._pool._queue.__dict__.get(_ANCHOR)
    except Exception as error:  # noqa: BLE001
        failures("asyncpg.Connection", error)
        return None
    return None if anchor is None else begin(anchor)


def _query(original: Any) -> Any:
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


def _execute(original: Any) -> Any:
    """Without arguments it talks to the server itself; with them it calls ``_execute``, which is counted."""
    timed = _query(original)

    async def execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        return await (original if args else timed)(self, query, *args, **kwargs)

    return execute


def _inner_query(original: Any) -> Any:
    """On a prepared statement or cursor, whose connection may be the pool's proxy of it."""

    async def query(self: Any, *args: Any, **kwargs: Any) -> Any:
        connection = self._connection
        begun = _begun(getattr(connection, "_con", connection))
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            fail(begun, error, SLOW_SECONDS)
            raise
        end(begun, SLOW_SECONDS)
        return result

    return query
