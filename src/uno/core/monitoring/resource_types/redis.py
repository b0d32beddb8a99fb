"""How are Redis and Valkey clients watched, sync and async?

The numbers hang on the connection pool, which several clients may share. Commands that wait on purpose
(BLPOP, WAIT, XREAD BLOCK ...) are counted, but their duration says nothing about the server. The default pool makes
nobody wait, it refuses: it has no wait time; and while a command of a sync client has one of its connections, that
is known as a running command only, to be cheap. A blocking pool is watched in full.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import get_ident
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    MAX_LOG,
    OWN,
    Stat,
    announce,
    failures,
    hung,
    install,
    scope,
    stat_of,
    unscoped,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import (
    Asked,
    Begun,
    PooledMonitor,
    PoolUse,
    ask,
    begin,
    end,
    got,
    note_slow,
    refused,
    returned,
)
from uno.core.monitoring.resource_types._probe import Probe
from uno.core.monitoring.resource_types._redis_parts import (
    BLOCKING,
    GROUP_READS,
    MAX_STREAMS,
    SLOW_SECONDS,
    THRESHOLDS,
    Groups,
    ask_connections,
    ask_connections_async,
    async_pipeline,
    bind,
    fail_command,
    forget_stream,
    group_of,
    is_timed,
    learn_streams,
    pipeline,
    pool_use_of,
    text_of,
)
from uno.core.monitoring.resource_types._server import METRICS, ServerConnections
from uno.core.resources import Identity, Resource

_CONNECTING = "_uno_connecting"
#: What a pool without a free connection was caught in when it raised ConnectionError.
_EXHAUSTED = frozenset(("Empty", "IndexError", "TimeoutError"))


class _Clients(PooledMonitor):
    """Pool and commands of a client, or of a pool that no client stands for."""

    resource_type = "redis"
    metrics = PooledMonitor.metrics + pick("uno.messaging.consumer.lag", "uno.messaging.consumer.pending")
    asked = METRICS
    client = "Redis"
    modules: tuple[str, str]
    thresholds = THRESHOLDS

    def identify(self, target: Any) -> Identity:
        settings = _pool(target).connection_kwargs
        database = settings.get("db") or 0
        if "path" in settings:
            place = f"unix:{settings['path']}"
        elif "host" in settings:
            place = f"{settings['host']}:{settings.get('port') or 6379}"
        else:
            place = getattr(_pool(target), "service_name", None) or "localhost:6379"
        labels = {"db.system.name": self.library, "db.namespace": str(database)}
        return Identity(self.library, f"{place}/{database}", labels)

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(_pool(target))
        stat.drain()
        return stat

    def stat(self, target: Any) -> Stat | None:
        return super().stat(_pool(target))

    def pool_use(self, target: Any) -> PoolUse:
        return pool_use_of(_pool(target))

    def inherited(self, target: Any) -> None:
        """Nothing: in a forked process the pool itself begins anew."""

    def at_rest(self, target: Any) -> object:
        return None if "streams" in stat_of(_pool(target)).extra else super().at_rest(target)

    def collect_metrics(self, resource: Resource) -> None:
        pool = _pool(resource.target)
        stat = stat_of(pool)
        if stat.holds and not pool_use_of(pool).used:  # the pool was reset, as after a fork
            stat.holds.clear()
        super().collect_metrics(resource)
        if "streams" in stat.extra:
            self._collect_streams(pool, stat)

    def _collect_streams(self, pool: Any, stat: Stat) -> None:
        probe: Probe[Groups] | None = stat.extra.get("probe")
        if probe is None:
            probe = stat.extra.setdefault("probe", Probe(pool, self.question, {}))
        known = stat.extra.setdefault("groups", set())
        found = {}
        if probe.is_fresh():
            found = {
                (text_of(stream), group): (lag, pending)
                for stream, groups in probe.found.items()
                for group, lag, pending in groups
            }
            known.update(list(found)[: MAX_STREAMS - len(known)])
        for key in known:
            labels = {"messaging.destination.name": key[0], "messaging.consumer.group.name": key[1]}
            lag, pending = found.get(key, (None, None))
            self.update_metric("uno.messaging.consumer.lag", lag, labels, at_server=True)
            self.update_metric("uno.messaging.consumer.pending", pending, labels, at_server=True)
        if stat.last_ok and self.has_free_slot(pool) and not self.suspect(pool):
            self.begin_question(probe, pool)

    def begin_question(self, probe: Probe[Groups], pool: Any) -> None:
        """Let the probe ask, where that may block."""
        probe.on_thread()

    def question(self, pool: Any) -> Any:
        """The groups of the streams that the application reads."""
        client, found = _client(self, pool), {}
        for stream in list(stat_of(pool).extra["streams"]):
            try:
                found[stream] = [group_of(info) for info in client.xinfo_groups(stream)]
            except Exception as error:  # noqa: BLE001
                forget_stream(pool, stream, error)
        return found

    def detach(self, target: Any) -> None:
        super().detach(target)
        probe = stat_of(_pool(target)).extra.pop("probe", None)
        if probe is not None:
            probe.close(self.bound_loop(target))

    def endpoints(self, target: Any) -> list[str]:
        """The master that a sentinel named last."""
        pool = _pool(target)
        address = getattr(pool, "master_address", None)
        if not isinstance(address, tuple) or len(address) != 2:
            return []
        return [f"{address[0]}:{address[1]}/{pool.connection_kwargs.get('db') or 0}"]

    def attach(self, target: Any) -> None:
        _owner(target)

    def covers(self, target: Any) -> tuple[object, ...]:
        """One object stands for a pool: the first that was found of it and its clients."""
        pool = _pool(target)
        if _owner(target) is not target:
            return (target,)
        return () if target is pool else (pool,)

    def ready(self) -> bool:
        return all(
            hasattr(sys.modules.get(name), "BlockingConnectionPool") for name in self.modules[1:]
        ) and (hasattr(sys.modules.get(self.modules[0]), "Pipeline"))

    def hooks(self) -> tuple[Any, Any, Any, Any]:
        """The hooks for a command, one while keys are watched, Pipeline.execute, and get_connection."""
        raise NotImplementedError

    def install(self) -> list[Callable[[], None]]:
        clients, connections = (sys.modules[name] for name in self.modules)
        command, immediate, pipeline, get = self.hooks()
        client, pipe = getattr(clients, self.client), clients.Pipeline
        hooks = [
            (client, "__init__", _init),
            (client, "execute_command", command),
            (pipe, "immediate_execute_command", immediate),
            (pipe, "execute", pipeline),
        ]
        default, blocking = connections.ConnectionPool, connections.BlockingConnectionPool
        hooks += [(default, "get_connection", get(waits=False)), (default, "release", _release_unless_brief)]
        hooks += [(blocking, "get_connection", get(waits=True)), (blocking, "release", _release)]
        base = getattr(connections, "AbstractConnection", connections.Connection)  # 4.2 has none
        hooks += [(cls, "_connect", _connect) for cls in _family(base)]
        return [install(cls, name, wrap) for cls, name, wrap in hooks if name in vars(cls)]


class RedisClient(_Clients):
    """A redis-py client; its commands block.

    Of the streams that were read with XREADGROUP, every group's lag is asked for each 2 s, on a free connection of the
    pool. Redis itself does not know the lag after an XDEL, or before version 7: then it is a gap, and not 0.
    """

    targets = ("redis.client.Redis", "redis.connection.ConnectionPool")
    ignored = ("redis.client.Pipeline",)
    library, tested = "redis", ">=4.2,<9"
    modules = ("redis.client", "redis.connection")

    def hooks(self) -> tuple[Any, Any, Any, Any]:
        return _command, _immediate_command, pipeline(_begin_pipeline), _get

    def ping(self, target: Any) -> bool | None:
        """Passive first; then PING on a free connection. None when the pool is used up."""
        if self.seems_up(target):
            return True
        if not self.has_free_slot(target):
            return None
        return bool(_client(self, target).ping())

    def server_connections(self, target: Any) -> Any:
        return ask_connections(_client(self, target))


class AsyncRedisClient(_Clients):
    """A redis-py client for asyncio."""

    targets = ("redis.asyncio.client.Redis", "redis.asyncio.connection.ConnectionPool")
    ignored = ("redis.asyncio.client.Pipeline",)
    library, tested = "redis", ">=4.2,<9"
    modules = ("redis.asyncio.client", "redis.asyncio.connection")

    def hooks(self) -> tuple[Any, Any, Any, Any]:
        return _async_command, _async_command, async_pipeline(_begin_pipeline), _async_get

    def bound_loop(self, target: Any) -> Any:
        pool = _pool(target)
        stat: Stat | None = super().stat(pool)
        known = stat.extra.get("loop") if stat is not None else None
        loop = known() if known is not None else None
        if loop is None:
            for connection in list(getattr(pool, "_available_connections", ())):
                loop = getattr(getattr(connection, "_reader", None), "_loop", loop)
        return None if loop is None or loop.is_closed() else loop

    def begin_question(self, probe: Probe[Groups], pool: Any) -> None:
        probe.on_loop(self.bound_loop(pool))

    async def question(self, pool: Any) -> Groups:
        client, found = _client(self, pool), {}
        for stream in list(stat_of(pool).extra["streams"]):
            try:
                found[stream] = [group_of(info) for info in await client.xinfo_groups(stream)]
            except Exception as error:  # noqa: BLE001
                forget_stream(pool, stream, error)
        return found

    async def ping(self, target: Any) -> bool | None:
        """As above, and only on the loop that the connections belong to; None on any other."""
        import asyncio

        if self.seems_up(target):
            return True
        if self.bound_loop(target) is not asyncio.get_running_loop() or not self.has_free_slot(target):
            return None
        return bool(await _client(self, target).ping())

    async def server_connections(self, target: Any) -> ServerConnections:
        return await ask_connections_async(_client(self, target))


class ValkeyClient(RedisClient):
    """A Valkey client; its commands block."""

    client = "Valkey"
    targets = ("valkey.client.Valkey", "valkey.connection.ConnectionPool")
    ignored = ("valkey.client.Pipeline",)
    library, tested = "valkey", ">=6,<7"
    modules = ("valkey.client", "valkey.connection")


class AsyncValkeyClient(AsyncRedisClient):
    """A Valkey client for asyncio."""

    client = "Valkey"
    targets = ("valkey.asyncio.client.Valkey", "valkey.asyncio.connection.ConnectionPool")
    ignored = ("valkey.asyncio.client.Pipeline",)
    library, tested = "valkey", ">=6,<7"
    modules = ("valkey.asyncio.client", "valkey.asyncio.connection")


def _pool(target: Any) -> Any:
    return getattr(target, "connection_pool", target)


def _client(kind: _Clients, target: Any) -> Any:
    """A client to ping with; one on a given pool closes nothing when it goes."""
    if _pool(target) is not target:
        return target
    return getattr(sys.modules[kind.modules[0]], kind.client)(connection_pool=target)


def _owner(target: Any) -> Any:
    """What stands for the pool of ``target``: whoever came first and still lives."""
    extra = stat_of(_pool(target)).extra
    known = extra.get("owner")
    owner = known() if known is not None else None
    if owner is None:
        extra["owner"] = weakref.ref(target)
        return target
    return owner


def _family(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        yield from _family(sub)


# -- hooks -----------------------------------------------------------------------------------------------


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            pool = self.connection_pool
            owner = stat_of(pool).extra.get("owner")
            if owner is None or owner() is None:  # nothing stands for the pool yet, or any more
                announce(self)
                announce(pool)  # should this client be dropped at once
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Redis.__init__", error)

    return __init__


def _only_forwards(function: Any) -> bool:
    """Whether ``execute_command`` does nothing but call ``_execute_command``, as in redis-py since 5.1."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_names == ("_execute_command",) and not code.co_freevars


def _command(original: Any) -> Any:
    #: Then the hook does it in its place: passing on ** is as dear as all the rest of the hook.
    forwards = _only_forwards(original)

    # begin() and end() written out: calls would cost half as much again. What runs is kept by the thread that runs it,
    # so that the pool's hook knows when it is in a command.
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        pool = self.connection_pool
        try:
            current = scope.get()
            name = unscoped() if current is None else current._name or current.name
            try:
                stat = pool._uno_stat
            except AttributeError:
                stat = stat_of(pool)
            own = name == OWN
            if not own:
                running, thread = stat.running, get_ident()
                start = perf_counter()
                running[thread] = start, name
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Redis.execute_command", error)
            own = True
        if own:
            return original(self, *args, **options)
        try:
            result = self._execute_command(*args, **options) if forwards else original(self, *args, **options)
        except BaseException as error:
            running.pop(thread, None)
            fail_command((stat, start, name), args, error)
            raise
        if args[0] in BLOCKING:
            running.pop(thread, None)
            if args[0] in GROUP_READS:
                learn_streams(stat, args)
            end((stat, start, name), SLOW_SECONDS, timed=is_timed(args))
            return result
        try:
            now = perf_counter()
            running.pop(thread, None)
            done = start, now, name
            log = stat.log
            log += done
            if len(log) > MAX_LOG:
                stat.drain()
            if now - start > SLOW_SECONDS:
                note_slow(stat)
        except Exception as error:  # noqa: BLE001
            failures("Redis.execute_command", error)
        return result

    return execute_command


def _immediate_command(original: Any) -> Any:
    """While keys are watched; its connection stays with the pipeline."""

    def immediate_execute_command(self: Any, *args: Any, **options: Any) -> Any:
        begun = begin(self.connection_pool)
        try:
            result = original(self, *args, **options)
        except BaseException as error:
            fail_command(begun, args, error)
            raise
        end(begun, SLOW_SECONDS, timed=args[0] not in BLOCKING or is_timed(args))
        return result

    return immediate_execute_command


def _async_command(original: Any) -> Any:
    async def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        begun = begin(self.connection_pool)
        try:
            result = await original(self, *args, **options)
        except BaseException as error:
            fail_command(begun, args, error)
            raise
        if args[0] in GROUP_READS and begun is not None:
            learn_streams(begun[0], args)
        end(begun, SLOW_SECONDS, timed=args[0] not in BLOCKING or is_timed(args))
        return result

    return execute_command


def _begin_pipeline(self: Any) -> Begun | None:
    """A pipeline without commands sends nothing."""
    return begin(self.connection_pool) if self.command_stack else None


def _connect(original: Any) -> Any:
    """Notes when a connection begins to be made; who asked the pool for it takes the time."""

    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):
            if not hung(self, _CONNECTING):  # else it is tried again
                self._uno_connecting = perf_counter()
        return original(self, *args, **kwargs)

    return _connect


def _began(connection: Any) -> float | None:
    """When it began to be made, if nobody has taken that since."""
    began: float | None = hung(connection, _CONNECTING)
    if began:
        connection._uno_connecting = 0.0
    return began or None


def _exhausted(asked: Asked | None, error: BaseException) -> bool:
    name, cause = type(error).__name__, type(error.__context__).__name__
    full = asked is None or asked[3] is not None
    return name == "MaxConnectionsError" or (full and name == "ConnectionError" and cause in _EXHAUSTED)


def _get(*, waits: bool) -> Any:
    def wrap(original: Any) -> Any:
        def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ask(self, self.max_connections)
            try:
                connection = original(self, *args, **kwargs)
            except BaseException as error:
                refused(asked, timed_out=_exhausted(asked, error))
                raise
            got(asked, id(connection), _began(connection), waits=waits)
            return connection

        return get_connection

    return wrap if waits else lambda original: _get_for_command(original, wrap(original))


def _get_for_command(original: Any, watched: Any) -> Any:
    """Of the default pool: in a command, ``original`` and next to nothing; else ``watched``."""

    def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            command = self._uno_stat.running.get(get_ident())
        except AttributeError:
            command = None
        if command is None:
            return watched(self, *args, **kwargs)
        try:
            connection = original(self, *args, **kwargs) if args or kwargs else original(self)
        except BaseException as error:
            if _exhausted(None, error):
                stat_of(self).timeouts.value += 1
            raise
        try:
            new = connection._uno_connecting
        except AttributeError:  # made before the hooks
            new = connection._uno_connecting = 0.0
        if new:
            connection._uno_connecting = 0.0
            if new >= command[0]:  # else it was made anew in an earlier command
                stat_of(self).connects.add(perf_counter() - new)
        return connection

    return get_connection


def _async_get(*, waits: bool) -> Any:
    def wrap(original: Any) -> Any:
        async def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked = ask(self, self.max_connections)
            try:
                connection = await original(self, *args, **kwargs)
            except BaseException as error:
                refused(asked, timed_out=_exhausted(asked, error))
                raise
            if asked is not None and "loop" not in asked[0].extra:
                bind(asked[0])
            got(asked, id(connection), _began(connection), waits=waits)
            return connection

        return get_connection

    return wrap


def _release(original: Any) -> Any:
    """Sync and async alike: the connection is given back when the call begins."""

    def release(self: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
        returned(self, id(connection))
        return original(self, connection, *args, **kwargs)

    return release


def _release_unless_brief(original: Any) -> Any:
    def release(self: Any, connection: Any) -> Any:
        try:
            if self._uno_stat.holds:
                returned(self, id(connection))
        except AttributeError:  # nobody has taken one
            pass
        return original(self, connection)

    return release
