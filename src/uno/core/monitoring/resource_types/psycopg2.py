"""How are psycopg2's pools watched?

They make nobody wait: a pool without a free connection refuses. The classes of psycopg2's connections and cursors
cannot be changed, so queries are not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any, TypeVar

from uno.core.monitoring.instrumentation import Stat, announce, failures, install, scope, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import (
    OLDEST,
    TIMEOUTS,
    UTILIZATION,
    PooledMonitor,
    PoolUse,
    ask,
    got,
    is_own,
    refused,
    returned,
    server_identity,
)
from uno.core.monitoring.resource_types._server import METRICS, ServerConnections, asked_by_cursor
from uno.core.resources import Identity

T = TypeVar("T")


class Psycopg2Pool(PooledMonitor):
    """A SimpleConnectionPool or ThreadedConnectionPool. Its queries cannot be timed: the classes are C.

    Nobody waits for a connection: a pool without a free one refuses, which counts as a timeout.
    """

    resource_type = "database"
    targets = ("psycopg2.pool.AbstractConnectionPool",)
    library, tested = "psycopg2", ">=2.9,<2.10"
    metrics = pick(
        "uno.resource.utilization",
        "db.client.connection.count",
        "db.client.connection.max",
        "db.client.connection.timeouts",
        "db.client.connection.use_time",
        "db.client.connection.create_time",
        "uno.db.client.connection.oldest_use",
        "uno.resource.errors",
    )
    asked = METRICS
    headline = (
        "uno.resource.utilization",
        "db.client.connection.use_time",
        "db.client.connection.timeouts",
        "uno.resource.errors",
    )
    thresholds = (UTILIZATION, TIMEOUTS, OLDEST)

    def identify(self, target: Any) -> Identity:
        told: dict[str, Any] = {}
        dsn = target._args[0] if target._args else target._kwargs.get("dsn")
        if isinstance(dsn, str):
            with suppress(Exception):  # it cannot be read: connecting will say so
                told.update(sys.modules["psycopg2.extensions"].parse_dsn(dsn))
        told.update(target._kwargs)
        host, database = told.get("host") or told.get("hostaddr"), told.get("dbname") or told.get("database")
        return server_identity(
            "postgresql", str(host or ""), str(told.get("port") or 5432), str(database or "")
        )

    def stat_for(self, target: Any) -> Stat:
        return stat_of(target)

    def pool_use(self, target: Any) -> PoolUse:
        return PoolUse(len(target._used), len(target._pool), target.maxconn, 0)

    def ready(self) -> bool:
        return hasattr(sys.modules.get("psycopg2.pool"), "ThreadedConnectionPool")

    def install(self) -> list[Callable[[], None]]:
        pools = sys.modules["psycopg2.pool"]
        base = pools.AbstractConnectionPool
        undo = [install(base, "__init__", _init), install(base, "_connect", _connect)]
        for cls in (pools.SimpleConnectionPool, pools.ThreadedConnectionPool):
            undo += [install(cls, "getconn", _getconn), install(cls, "putconn", _putconn)]
        return undo

    def ping(self, target: Any) -> bool | None:
        """Passive first; then a query on an idle connection. None where there is none, or where the pool belongs to
        one thread."""
        if self.seems_up(target):
            return True
        return _on_idle(target, lambda cursor: cursor.execute("SELECT 1") or True)

    def asks(self, target: Any) -> bool:
        return hasattr(target, "_lock")

    def server_connections(self, target: Any) -> Any:
        told = _on_idle(target, lambda cursor: asked_by_cursor(cursor, "postgresql"))
        return ServerConnections() if told is None else told


def _on_idle(target: Any, use: Callable[[Any], T]) -> T | None:
    """``use(cursor)`` of an idle connection, which is taken aside, so that the application is never refused one for
    it. None where there is none, or where the pool belongs to one thread."""
    lock = getattr(target, "_lock", None)
    if lock is None or not lock.acquire(timeout=0.5):
        return None
    try:
        connection = target._pool.pop() if target._pool and not target.closed else None
    finally:
        lock.release()
    if connection is None:
        return None
    try:
        plain = sys.modules["psycopg2.extensions"].cursor  # the application may have chosen another
        with connection.cursor(cursor_factory=plain) as cursor:
            return use(cursor)
    finally:
        with suppress(Exception):  # it is lost, and closed below
            connection.rollback()
        with lock:
            if connection.closed or target.closed or len(target._pool) >= target.minconn:
                connection.close()
            else:
                target._pool.append(connection)


# -- hooks -----------------------------------------------------------------------------------------------


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        announce(self)

    return __init__


def _connect(original: Any) -> Any:
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            connection = original(self, *args, **kwargs)
        except Exception as error:
            if not is_own(scope.get()):
                stat_of(self).failed(error)
            raise
        try:
            stat = stat_of(self)
            stat.connects.add(perf_counter() - began)
            stat.last_ok = monotonic()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("AbstractConnectionPool._connect", error)
        return connection

    return _connect


def _getconn(original: Any) -> Any:
    def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = ask(self, None)
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            exhausted = type(error).__name__ == "PoolError" and len(self._used) >= self.maxconn
            refused(asked, timed_out=exhausted)
            raise
        key = id(connection)
        if asked is not None and key not in asked[0].holds:  # else its key has it already
            got(asked, key, waits=False)
        return connection

    return getconn


def _putconn(original: Any) -> Any:
    def putconn(self: Any, conn: Any = None, *args: Any, **kwargs: Any) -> Any:
        returned(self, id(conn))
        return original(self, conn, *args, **kwargs)

    return putconn
