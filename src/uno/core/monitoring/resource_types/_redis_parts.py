"""What do the types of Redis share? What a client shows of its nodes, of its streams and of failed commands."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uno.core.monitoring.instrumentation import Stat, failures, hung, stat_of
from uno.core.monitoring.resource_types._pooled import Begun, PoolUse, end, fail, leaves_one
from uno.core.monitoring.resource_types._server import ServerConnections
from uno.core.monitoring.thresholds import Threshold

#: By stream: name of a group, messages it was not given yet, messages not acknowledged; None where Redis cannot tell.
Groups = dict[Any, list[tuple[str, int | None, int | None]]]
SLOW_SECONDS = 0.1
#: What locks and scripts raise and catch in normal operation.
EXPECTED = frozenset(("WatchError", "NoScriptError"))
THRESHOLDS = (
    ("uno.resource.utilization", Threshold(0.8, 0.95, "The connection pool is nearly used up", for_=1)),
    ("db.client.connection.pending_requests", Threshold(0, 10, "Commands wait for a connection", for_=1)),
    ("db.client.connection.timeouts", Threshold(None, 0, "Commands did not get a connection",
                                                keep_firing_for=5)),
    ("db.client.operation.duration", Threshold(0.1, 1, "Commands are slow", keep_firing_for=3)),
    ("uno.resource.errors", Threshold(0, None, "Commands fail", for_=3, keep_firing_for=5)),
)  # fmt: skip
_UNLIMITED = 2**31 - 1  # the default of older versions
MAX_STREAMS = 100
_WAITS = (
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BLMOVE",
    "BLMPOP",
    "BZPOPMIN",
    "BZPOPMAX",
    "BZMPOP",
    "WAIT",
    "WAITAOF",
)
_READS = ("XREAD", "XREADGROUP")
GROUP_READS = frozenset(("XREADGROUP", "xreadgroup"))
BLOCKING = frozenset(spelt for name in _WAITS + _READS for spelt in (name, name.lower()))
_BLOCK = frozenset(("BLOCK", "block", b"BLOCK", b"block"))
_STREAMS = frozenset(("STREAMS", "streams", b"STREAMS", b"streams"))


def carrier_of(cluster: Any) -> Any:
    """What the Stat of a cluster's client, or of a pipeline of it, hangs on."""
    client = getattr(cluster, "cluster_client", cluster)
    manager = getattr(client, "nodes_manager", None)
    return manager if type(manager).__dictoffset__ else client


def nodes_of(cluster: Any) -> dict[str, Any]:
    return dict(getattr(cluster.nodes_manager, "nodes_cache", ()))


def node_client(node: Any) -> Any:
    return getattr(node, "redis_connection", None)


def node_use(node: Any) -> PoolUse:
    if hasattr(node, "_free"):  # for asyncio a node is its own pool
        idle = len(node._free)
        limit = node.max_connections
        return PoolUse(
            len(node._connections) - idle, idle, limit if limit and limit < _UNLIMITED else None, 0
        )
    client = node_client(node)
    return PoolUse(0, 0, None, 0) if client is None else pool_use_of(client.connection_pool)


def is_free(node: Any) -> bool:
    use = node_use(node)
    return leaves_one(use.used or 0, use.limit)


def text_of(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def group_of(info: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """One line of XINFO GROUPS."""
    return text_of(info["name"]), info.get("lag"), info.get("pending")


def forget_stream(pool: Any, stream: Any, error: Exception) -> None:
    """Redis refused: the stream is gone, or its name may not be asked for. Any other failure ends the question."""
    if type(error).__name__ not in ("ResponseError", "NoPermissionError"):
        raise error
    extra = stat_of(pool).extra
    extra["streams"].pop(stream, None)
    if type(error).__name__ == "NoPermissionError":
        extra.setdefault("refused", set()).add(stream)


def learn_streams(stat: Stat, args: tuple[Any, ...]) -> None:
    """Which streams a command reads for a group."""
    try:
        at = next(
            (i for i, word in enumerate(args) if isinstance(word, str | bytes) and word in _STREAMS), None
        )
        if at is None:
            return
        streams, refused = stat.extra.setdefault("streams", {}), stat.extra.get("refused", ())
        for name in args[at + 1 : at + 1 + (len(args) - at - 1) // 2]:
            if isinstance(name, str | bytes) and len(streams) < MAX_STREAMS and name not in refused:
                streams[name] = True
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("XREADGROUP", error)


def is_timed(args: tuple[Any, ...]) -> bool:
    """Whether the duration of a command tells how fast the server is."""
    name = args[0]
    if name.upper() in _READS:
        return not any(word in _BLOCK for word in args if isinstance(word, str | bytes))
    return False


def _connections(info: Any, config: Any = None) -> ServerConnections:
    limit = info.get("maxclients", (config or {}).get("maxclients"))
    return ServerConnections(None if limit is None else float(limit), None, info.get("connected_clients"))


def ask_connections(client: Any) -> ServerConnections:
    """INFO tells the limit since version 7; CONFIG may be forbidden."""
    info, config = client.info("clients"), None
    if "maxclients" not in info:
        with suppress(Exception):
            config = client.config_get("maxclients")
    return _connections(info, config)


async def ask_connections_async(client: Any) -> ServerConnections:
    """The same of a client for asyncio."""
    info, config = await client.info("clients"), None
    if "maxclients" not in info:
        with suppress(Exception):
            config = await client.config_get("maxclients")
    return _connections(info, config)


def pool_use_of(pool: Any) -> PoolUse:
    """Read from the pool's own collections, as no public count exists in all versions."""
    limit: int | None = pool.max_connections
    queue = hung(pool, "pool")
    if queue is not None:  # blocking: a queue of connections, with None for those that do not exist yet
        inner = getattr(queue, "queue", None)
        waiters = queue.not_empty._waiters if inner is not None else queue._getters
        used = max(0, (limit or 0) - len(queue._queue if inner is None else inner))
        return PoolUse(used, max(0, len(pool._connections) - used), limit, len(waiters))
    condition = hung(pool, "_condition")
    waiting = 0 if condition is None else len(condition._waiters)
    used = len(pool._in_use_connections)
    known = limit if limit and limit < _UNLIMITED else None
    return PoolUse(used, len(pool._available_connections), known, waiting)


def fail_command(begun: Begun | None, args: tuple[Any, ...], error: BaseException) -> None:
    timed = not args or args[0] not in BLOCKING or is_timed(args)
    if type(error).__name__ in EXPECTED:
        end(begun, SLOW_SECONDS, timed=timed)
    else:
        fail(begun, error, SLOW_SECONDS, timed=timed)


def bind(stat: Stat) -> None:
    import asyncio

    with suppress(TypeError):  # a loop without weak references
        stat.extra["loop"] = weakref.ref(asyncio.get_running_loop())


def pipeline(begun_by: Callable[[Any], Begun | None]) -> Callable[[Any], Any]:
    """The hook of a pipeline's ``execute``; ``begun_by`` tells its Stat that it starts."""

    def wrap(original: Any) -> Any:
        def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            begun = begun_by(self)
            try:
                result = original(self, *args, **kwargs)
            except BaseException as error:
                fail_command(begun, (), error)
                raise
            end(begun, SLOW_SECONDS)
            return result

        return execute

    return wrap


def async_pipeline(begun_by: Callable[[Any], Begun | None]) -> Callable[[Any], Any]:
    """The same for asyncio."""

    def wrap(original: Any) -> Any:
        async def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            begun = begun_by(self)
            try:
                result = await original(self, *args, **kwargs)
            except BaseException as error:
                fail_command(begun, (), error)
                raise
            end(begun, SLOW_SECONDS)
            return result

        return execute

    return wrap
