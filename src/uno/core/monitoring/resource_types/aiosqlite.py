"""How are connections of aiosqlite watched that the application holds by a name?

Each has a thread of its own, which does one thing after another: who asks for something while it works waits. The
many that SQLAlchemy's pools hold belong to their engine.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import (
    PENDING,
    SLOW,
    PooledMonitor,
    PoolUse,
    begin,
    bind,
    bound,
    end,
    fail,
)
from uno.core.resources import Identity

SLOW_SECONDS = 0.5


class AiosqliteConnection(PooledMonitor):
    """An aiosqlite.Connection and what is done on it; the wait is for what was asked for before.

    Hooks act on watched connections only.
    """

    resource_type = "database"
    targets = ("aiosqlite.core.Connection",)
    library, tested = "aiosqlite", ">=0.17,<0.23"
    only_named = True
    metrics = pick(
        "uno.resource.utilization",
        "db.client.connection.count",
        "db.client.connection.max",
        "db.client.connection.pending_requests",
        "db.client.connection.wait_time",
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
    thresholds = (PENDING, SLOW)

    def identify(self, target: Any) -> Identity:
        name = os.path.basename(_path(target))
        labels = {"db.system.name": "sqlite"} | ({"db.namespace": name} if name else {})
        return Identity(name or "sqlite", f"file:{name}" if name else None, labels)

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(target)
        stat.drain()
        return stat

    def pool_use(self, target: Any) -> PoolUse:
        stat = stat_of(target)
        alive = target._connection is not None
        busy = float(alive and bool(stat.extra.get("busy")))
        return PoolUse(busy, float(alive) - busy, 1.0, target._tx.qsize())

    def ready(self) -> bool:
        return hasattr(sys.modules.get("aiosqlite"), "connect")

    def install(self) -> list[Callable[[], None]]:
        return [install(sys.modules["aiosqlite.core"].Connection, "_execute", _execute)]

    def bound_loop(self, target: Any) -> Any:
        return bound(stat_of(target))

    def ping(self, target: Any) -> bool | None:
        """Whether it is open; None while something that it does takes long. Nothing is asked of the file."""
        if self.suspect(target):
            return None
        return target._connection is not None


def _path(connection: Any) -> str:
    """The file, from what was given to connect(); "" for a database in memory."""
    connector = connection._connector
    found = getattr(connector, "__closure__", None) or ()
    for cell in found:
        value = cell.cell_contents
        if isinstance(value, str | os.PathLike):
            path = os.fspath(value)
            path = path if isinstance(path, str) else ""
            return "" if path.startswith((":", "file:")) else path
    return ""


# -- hooks -----------------------------------------------------------------------------------------------


def _execute(original: Any) -> Any:
    async def _execute(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        stat: Stat | None = self.__dict__.get(ATTRIBUTE)
        begun = None if stat is None else begin(self)
        if stat is None or begun is None:
            return await original(self, fn, *args, **kwargs)
        if "loop" not in stat.extra:
            bind(stat)
        work = _Work(stat, fn)
        try:
            result = await original(self, work, *args, **kwargs)
        except BaseException as error:
            fail(work.begun(begun), error, SLOW_SECONDS)
            raise
        end(work.begun(begun), SLOW_SECONDS)
        return result

    return _execute


class _Work:
    """What the connection's thread is to do; tells when it starts."""

    __slots__ = ("_asked", "_fn", "_stat", "started")

    def __init__(self, stat: Stat, fn: Any) -> None:
        self._stat, self._fn = weakref.ref(stat), fn
        self._asked = perf_counter()
        self.started = 0.0

    def begun(self, begun: tuple[Stat, float, str]) -> tuple[Stat, float, str]:
        """The operation as of when its work started, for waiting is no part of it."""
        stat, start, name = begun
        stat.running.pop(start, None)
        return stat, self.started or start, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stat = self._stat()
        if stat is None:
            return self._fn(*args, **kwargs)
        try:
            self.started = perf_counter()
            stat.wait.observe(self.started - self._asked)
            stat.extra["busy"] = True
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("aiosqlite.Connection._execute", error)
        try:
            return self._fn(*args, **kwargs)
        finally:
            stat.extra["busy"] = False
