"""How are the pools of MySQL and MariaDB drivers for asyncio watched: aiomysql and asyncmy?

asyncmy's Pool and Connection are compiled, but ordinary classes: hooks go where aiomysql's go. Both make a connection
while they fill the pool for whoever asks, so that is where connecting is timed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import Stat, install, scope, stat_of
from uno.core.monitoring.resource_types._pooled import (
    OLDEST,
    PENDING,
    SLOW,
    UTILIZATION,
    PooledMonitor,
    PoolUse,
    ask,
    connected,
    gave_back,
    handed,
    is_own,
    refused,
    server_identity,
    timed_query,
)
from uno.core.monitoring.resource_types._server import METRICS, MYSQL, ServerConnections, told_by_mysql
from uno.core.resources import Identity, Resource

SLOW_SECONDS = 0.5
#: More than the monitor waits.
_PING_SECONDS = 3.0
#: The pool that is being filled. Weak, since timers of the event loop keep the context beyond its time.
_filling: ContextVar[weakref.ref[Any] | None] = ContextVar("uno_mysql_filling", default=None)


class AiomysqlPool(PooledMonitor):
    """An aiomysql.Pool and its queries.

    These pools have no timeout of their own for a connection; who gives up waiting cancels, and is not counted.
    """

    resource_type = "database"
    targets = ("aiomysql.pool.Pool",)
    library, tested = "aiomysql", ">=0.2,<0.4"
    metrics = tuple(spec for spec in PooledMonitor.metrics if spec.name != "db.client.connection.timeouts")
    asked = METRICS
    thresholds = (UTILIZATION, PENDING, OLDEST, SLOW)
    connect, fill = "_connect", "_fill_free_pool"

    def identify(self, target: Any) -> Identity:
        told = target._conn_kwargs
        host = told.get("unix_socket") or told.get("host") or "localhost"
        database = told.get("db") or told.get("database") or ""
        return server_identity("mysql", str(host), told.get("port") or 3306, str(database))

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(target)
        stat.drain()
        return stat

    def pool_use(self, target: Any) -> PoolUse:
        waiting = sum(not waiter.done() for waiter in list(target._cond._waiters))
        return PoolUse(len(target._used), len(target._free), target._free.maxlen, waiting)

    def collect_metrics(self, resource: Resource) -> None:
        pool = resource.target
        if not pool._used:  # it was terminated, or what it held is gone
            stat_of(pool).holds.clear()
        super().collect_metrics(resource)

    def bound_loop(self, target: Any) -> Any:
        loop = target._loop
        return None if loop is None or loop.is_closed() else loop

    def ready(self) -> bool:
        return hasattr(sys.modules.get(self.library), "create_pool")

    def install(self) -> list[Callable[[], None]]:
        pool = sys.modules[f"{self.library}.pool"].Pool
        connection = sys.modules[f"{self.library}.connection"].Connection
        undo = [
            install(pool, "_acquire", _acquire),
            install(pool, self.fill, _fill),
            install(pool, "release", _release),
            install(connection, self.connect, _connect),
            install(connection, "query", lambda original: timed_query(original, SLOW_SECONDS)),
        ]
        return undo

    async def ping(self, target: Any) -> bool | None:
        """Passive first; then COM_PING on a free connection, on the loop that owns the pool and on no other."""
        import asyncio

        if self.seems_up(target):
            return True
        if target._closing or target._loop is not asyncio.get_running_loop():
            return None
        if not self.has_free_slot(target):
            return None
        async with asyncio.timeout(_PING_SECONDS):
            connection = await target.acquire()
            try:
                await connection.ping(reconnect=False)
            except BaseException:
                connection.close()  # its answer may still come
                raise
            finally:
                await target.release(connection)
        return True

    async def server_connections(self, target: Any) -> ServerConnections:
        connection = await target.acquire()
        plain = sys.modules[f"{self.library}.cursors"].Cursor  # the application may have chosen another
        try:
            async with connection.cursor(plain) as cursor:
                found = []
                for question in MYSQL:
                    await cursor.execute(question)
                    found.append(await cursor.fetchone())
        except BaseException as error:
            if not isinstance(error, Exception):  # given up: its answer may still come
                connection.close()
            raise
        finally:
            await target.release(connection)
        return told_by_mysql(*found)


class AsyncmyPool(AiomysqlPool):
    """An asyncmy.Pool and its queries, prepared statements left out.

    These pools have no timeout of their own for a connection; who gives up waiting cancels, and is not counted.
    """

    targets = ("asyncmy.pool.Pool",)
    library, tested = "asyncmy", ">=0.2.9,<0.3"
    connect, fill = "connect", "fill_free_pool"


# -- hooks -----------------------------------------------------------------------------------------------


def _acquire(original: Any) -> Any:
    async def _acquire(self: Any) -> Any:
        asked = ask(self, self._free.maxlen)
        try:
            connection = await original(self)
        except BaseException:
            refused(asked, timed_out=False)
            raise
        handed(asked, connection)
        return connection

    return _acquire


def _fill(original: Any) -> Any:
    async def fill(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _filling.set(weakref.ref(self))
        try:
            return await original(self, *args, **kwargs)
        finally:
            _filling.reset(token)

    return fill


def _connect(original: Any) -> Any:
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        filling, began = _filling.get(), perf_counter()
        pool = None if filling is None else filling()
        if pool is None:
            return await original(self, *args, **kwargs)
        try:
            result = await original(self, *args, **kwargs)
        except Exception as error:
            if not is_own(scope.get()):  # a ping's failure is told by health
                stat_of(pool).failed(error)
            raise
        connected(pool, self, began)
        return result

    return connect


def _release(original: Any) -> Any:
    def release(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        gave_back(self, conn)
        return original(self, conn, *args, **kwargs)

    return release
