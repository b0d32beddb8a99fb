"""How are MongoDB's clients watched, sync and async? Motor's delegate to these, and are seen as such.

A client has a pool for each server. The numbers hang on the client; a pool is told which Stat that is when it first
hands out a connection for it. Pools of the driver's own heartbeats are left out. No listener of the driver is used:
it would see only clients that are made after it, and copies each reply.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from math import isfinite
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    OWN,
    Stat,
    announce,
    caller,
    failures,
    hung,
    install,
    stat_of,
)
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
    bind,
    bound,
    connected,
    gave_back,
    handed,
    leaves_one,
    note_slow,
    refused,
    server_identity,
)
from uno.core.resources import Identity

SLOW_SECONDS = 0.5
#: More than the monitor waits.
_PING_SECONDS = 3.0
_SENT = "_uno_sent"
_COMMAND = "_uno_command"
#: Whether what runs now may wait on purpose; None when no operation runs.
_patient: ContextVar[bool | None] = ContextVar("uno_pymongo_patient", default=None)
#: These may, for what a change stream or a tailable cursor has not seen yet.
_WAITS = frozenset(("getMore", "get_more"))


class PymongoClient(PooledMonitor):
    """Connections and commands of a MongoClient.

    A command is timed from its sending to its answer, a `getMore` excepted, which may wait on purpose. Errors are what
    reached the application: what the driver tried again is none. The share in use is that of the fullest server.

    The tests of PyMongo stand on a real `mongod` where there is one on the PATH; Debian has none, so in general they
    stand on SecantusDB, another's implementation of the server on MongoDB's storage engine.
    """

    resource_type = "database"
    targets = ("pymongo.synchronous.mongo_client.MongoClient",)
    library, tested = "pymongo", ">=4.9,<5"
    thresholds = (UTILIZATION, PENDING, TIMEOUTS, OLDEST, SLOW)
    #: Where the driver has its classes, and the name of its client.
    package, client = "pymongo.synchronous", "MongoClient"

    def identify(self, target: Any) -> Identity:
        known = vars(target)
        names = [v for k, v in known.items() if k.endswith("_default_database_name")]
        name = names[0] if names and isinstance(names[0], str) else ""
        seeds = sorted(known.get("_seeds") or getattr(known.get("_topology_settings"), "seeds", ()))
        host, port = seeds[0] if seeds else ("", 0)
        return server_identity("mongodb", host, port or 27017, name)

    def endpoints(self, target: Any) -> list[str]:
        return [f"{host}:{port}" for host, port in list(_servers(target))]

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(target)
        stat.drain()
        return stat

    def pool_use(self, target: Any) -> PoolUse:
        pools = _pools(target)
        limits = [pool.max_pool_size for pool in pools]
        if not pools:
            with suppress(AttributeError):
                limits = [target.options.pool_options.max_pool_size]
        limit = sum(limits)
        return PoolUse(
            sum(pool.active_sockets for pool in pools),
            sum(len(pool.conns) for pool in pools),
            limit if limit and isfinite(limit) else None,
            sum(_waiting(pool) for pool in pools),
        )

    def utilization(self, target: Any, used: float, limit: float | None) -> float | None:
        shares = [
            pool.active_sockets / pool.max_pool_size
            for pool in _pools(target)
            if pool.max_pool_size and isfinite(pool.max_pool_size)
        ]
        return max(shares) if shares else super().utilization(target, used, limit)

    def has_free_slot(self, target: Any) -> bool:
        free = all(
            not _waiting(pool) and leaves_one(pool.active_sockets, pool.max_pool_size)
            for pool in _pools(target)
        )
        return free and self.is_worth_one(target)

    def ready(self) -> bool:
        return hasattr(sys.modules.get("pymongo"), "MongoClient") and hasattr(
            sys.modules.get(f"{self.package}.pool"), "Pool"
        )

    def install(self) -> list[Callable[[], None]]:
        client = getattr(sys.modules[f"{self.package}.mongo_client"], self.client)
        connections = sys.modules[f"{self.package}.pool"]
        pool, connection = connections.Pool, _connection(connections)
        operation, get, give, connect, command, send, receive = self.hooks()
        # Until 4.14 or so commands of the application's own making are no operations: what fails comes by here.
        handler = getattr(sys.modules[f"{self.package}.mongo_client"], "_MongoClientErrorHandler", None)
        more = [] if handler is None else [install(handler, "handle", self.handle())]
        return [
            *more,
            install(client, "__init__", _init),
            install(client, "_retry_internal", operation),
            install(pool, "_get_conn", get),
            install(pool, "checkin", give),
            install(pool, "connect", connect),
            install(connection, "command", command),
            install(connection, "send_message", send),
            install(connection, "receive_message", receive),
        ]

    def hooks(self) -> tuple[Any, ...]:
        """The hooks for an operation, taking, returning and making a connection, and what goes over it."""
        return _operation, _get_conn, _checkin, _connect, _command, _send, _receive

    def handle(self) -> Any:
        """The hook for what fails outside of operations."""
        return _handle

    def inherited(self, target: Any) -> None:
        """Nothing: in a forked process the client's pools begin anew."""

    def ping(self, target: Any) -> Any:
        """Passive first; then the command ping. None when a pool is used up, or the client was not used yet."""
        if self.seems_up(target):
            return True
        if not vars(target).get("_opened", True) or not self.has_free_slot(target):
            return None
        with sys.modules["pymongo"].timeout(_PING_SECONDS):
            return bool(target.admin.command("ping"))


class PymongoAsyncClient(PymongoClient):
    """Connections and commands of an AsyncMongoClient."""

    targets = ("pymongo.asynchronous.mongo_client.AsyncMongoClient",)
    tested = ">=4.13,<5"
    package, client = "pymongo.asynchronous", "AsyncMongoClient"

    def hooks(self) -> tuple[Any, ...]:
        return (
            _async_operation,
            _async_get_conn,
            _async_checkin,
            _async_connect,
            _async_command,
            _async_send,
            _async_receive,
        )

    def handle(self) -> Any:
        return _async_handle

    def bound_loop(self, target: Any) -> Any:
        return bound(stat_of(target))

    async def ping(self, target: Any) -> bool | None:
        """As above, and only on the loop that the connections belong to; None on any other."""
        import asyncio

        if self.seems_up(target):
            return True
        if self.bound_loop(target) is not asyncio.get_running_loop() or not self.has_free_slot(target):
            return None
        with sys.modules["pymongo"].timeout(_PING_SECONDS):
            return bool(await target.admin.command("ping"))


def _connection(module: Any) -> type:
    """The class of a connection: Connection or AsyncConnection, as the driver calls it."""
    found: type = getattr(module, "AsyncConnection", None) or module.Connection
    return found


def _servers(client: Any) -> dict[Any, Any]:
    return getattr(hung(client, "_topology"), "_servers", None) or {}


def _pools(client: Any) -> list[Any]:
    return [server._pool for server in list(_servers(client).values())]


def _waiting(pool: Any) -> int:
    conditions = (pool.size_cond, getattr(pool, "_max_connecting_cond", None))
    waiters = [list(getattr(condition, "_waiters", ())) for condition in conditions]
    return sum(not (hasattr(w, "done") and w.done()) for each in waiters for w in each)


# -- hooks -----------------------------------------------------------------------------------------------


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        announce(self)

    return __init__


def _begun(client: Any) -> Begun | None:
    """An operation begins, which finds a server, takes a connection and may be tried twice."""
    try:
        name = caller()
        if name == OWN:
            return None
        stat, start = stat_of(client), perf_counter()
        if not _patient.get():
            stat.running[start] = start, name
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("MongoClient._retry_internal", error)
        return None
    return stat, start, name


def _ended(begun: Begun | None, error: BaseException | None = None) -> None:
    if begun is None:
        return
    try:
        stat, start, name = begun
        stat.running.pop(start, None)
        if isinstance(error, Exception) and not getattr(error, ATTRIBUTE, False):
            error.__dict__[ATTRIBUTE] = True  # of several operations in one, the innermost counts
            stat.failed(error)
            stat.called(name).errors.value += 1
    except Exception as failure:  # noqa: BLE001
        failures("MongoClient._retry_internal", failure)


def _waits(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    operation = kwargs.get("operation") or (args[3] if len(args) > 3 else "")
    return getattr(operation, "value", operation) in _WAITS


def _operation(original: Any) -> Any:
    def _retry_internal(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _patient.set(_waits(args, kwargs))
        begun = _begun(self)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _ended(begun, error)
            raise
        finally:
            _patient.reset(token)
        _ended(begun)
        return result

    return _retry_internal


def _async_operation(original: Any) -> Any:
    async def _retry_internal(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _patient.set(_waits(args, kwargs))
        begun = _begun(self)
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            _ended(begun, error)
            raise
        finally:
            _patient.reset(token)
        _ended(begun)
        return result

    return _retry_internal


def _failed(handler: Any, args: tuple[Any, ...]) -> None:
    error = args[-1] if args else None
    if isinstance(error, Exception) and _patient.get() is None:
        _ended(_begun(handler.client), error)


def _handle(original: Any) -> Any:
    def handle(self: Any, *args: Any) -> Any:
        _failed(self, args)
        return original(self, *args)

    return handle


def _async_handle(original: Any) -> Any:
    async def handle(self: Any, *args: Any) -> Any:
        _failed(self, args)
        return await original(self, *args)

    return handle


def _asked(pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
    """A connection is asked for on behalf of a client; None for the driver's own purposes."""
    try:
        handler = kwargs.get("handler") or (args[1] if len(args) > 1 else None)
        client = getattr(handler, "client", None)
        if client is None:
            return None
        pool.__dict__.setdefault(ATTRIBUTE, stat_of(client))
        full = pool.requests >= pool.max_pool_size
    except Exception as error:  # noqa: BLE001
        failures("Pool._get_conn", error)
        return None
    return ask(client, 0 if full else None)


def _refused(asked: Asked | None, error: BaseException) -> None:
    refused(asked, timed_out=type(error).__name__ == "WaitQueueTimeoutError")


def _get_conn(original: Any) -> Any:
    def _get_conn(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(self, args, kwargs)
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            _refused(asked, error)
            raise
        handed(asked, connection)
        return connection

    return _get_conn


def _async_get_conn(original: Any) -> Any:
    async def _get_conn(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(self, args, kwargs)
        if asked is not None and "loop" not in asked[0].extra:
            bind(asked[0])
        try:
            connection = await original(self, *args, **kwargs)
        except BaseException as error:
            _refused(asked, error)
            raise
        handed(asked, connection)
        return connection

    return _get_conn


def _checkin(original: Any) -> Any:
    def checkin(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        gave_back(self, conn)
        return original(self, conn, *args, **kwargs)

    return checkin


def _async_checkin(original: Any) -> Any:
    async def checkin(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        gave_back(self, conn)
        return await original(self, conn, *args, **kwargs)

    return checkin


def _connect(original: Any) -> Any:
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        connection = original(self, *args, **kwargs)
        if ATTRIBUTE in self.__dict__:
            connected(self, connection, began)
        return connection

    return connect


def _async_connect(original: Any) -> Any:
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        connection = await original(self, *args, **kwargs)
        if ATTRIBUTE in self.__dict__:
            connected(self, connection, began)
        return connection

    return connect


def _answered(connection: Any, start: float, *, failed: bool = False) -> None:
    """An answer came to what was sent at ``start``, on a connection that a client has taken."""
    try:
        stat: Stat = connection.__dict__[ATTRIBUTE]
        hold, now = stat.holds.get(id(connection)), perf_counter()
        if failed or _patient.get():
            stat.total.value += 1
            if failed:
                stat.duration.add(now - start)
            return
        stat.wrote(start, now, hold[1] if hold is not None else caller())
        if now - start > SLOW_SECONDS:
            note_slow(stat)
    except Exception as error:  # noqa: BLE001
        failures("Connection.receive_message", error)


def _watched(connection: Any) -> bool:
    return ATTRIBUTE in connection.__dict__ and _COMMAND not in connection.__dict__


def _command(original: Any) -> Any:
    def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _watched(self):
            return original(self, *args, **kwargs)
        self.__dict__[_COMMAND], start, failed = True, perf_counter(), True
        try:
            result = original(self, *args, **kwargs)
            failed = False
        finally:
            self.__dict__.pop(_COMMAND, None)
            if ATTRIBUTE in self.__dict__:
                _answered(self, start, failed=failed)
        return result

    return command


def _async_command(original: Any) -> Any:
    async def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _watched(self):
            return await original(self, *args, **kwargs)
        self.__dict__[_COMMAND], start, failed = True, perf_counter(), True
        try:
            result = await original(self, *args, **kwargs)
            failed = False
        finally:
            self.__dict__.pop(_COMMAND, None)
            if ATTRIBUTE in self.__dict__:
                _answered(self, start, failed=failed)
        return result

    return command


def _send(original: Any) -> Any:
    def send_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _watched(self):
            self.__dict__[_SENT] = perf_counter()
        return original(self, *args, **kwargs)

    return send_message


def _async_send(original: Any) -> Any:
    async def send_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _watched(self):
            self.__dict__[_SENT] = perf_counter()
        return await original(self, *args, **kwargs)

    return send_message


def _receive(original: Any) -> Any:
    def receive_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = self.__dict__.pop(_SENT, None)
        result = original(self, *args, **kwargs)
        if start is not None:
            _answered(self, start)
        return result

    return receive_message


def _async_receive(original: Any) -> Any:
    async def receive_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = self.__dict__.pop(_SENT, None)
        result = await original(self, *args, **kwargs)
        if start is not None:
            _answered(self, start)
        return result

    return receive_message
