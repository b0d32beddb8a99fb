"""How are clients of a Redis Cluster watched, sync and async?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, failures, hung, install, stat_of
from uno.core.monitoring.metrics import CounterCell, HistogramCell
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import (
    STALL,
    Begun,
    PooledMonitor,
    PoolUse,
    begin,
    end,
)
from uno.core.monitoring.resource_types._redis_parts import (
    BLOCKING,
    EXPECTED,
    SLOW_SECONDS,
    THRESHOLDS,
    async_pipeline,
    bind,
    carrier_of,
    fail_command,
    is_free,
    is_timed,
    node_client,
    node_use,
    nodes_of,
    pipeline,
)
from uno.core.resources import Identity, Resource


class _Cluster(PooledMonitor):
    """The numbers hang on what pipelines share with the client, and so do those of the nodes' pools."""

    resource_type = "redis"
    library, tested = "redis", ">=4.3,<9"
    metrics = PooledMonitor.metrics + pick(
        "uno.redis.node.connections", "uno.redis.node.duration", "uno.redis.node.errors"
    )
    thresholds = THRESHOLDS
    module: str

    def identify(self, target: Any) -> Identity:
        places = sorted(self.endpoints(target))
        return Identity("redis-cluster", places[0] if places else None, {"db.system.name": "redis"})

    def endpoints(self, target: Any) -> list[str]:
        return [f"{name}/0" for name in nodes_of(target)]

    def stat_for(self, target: Any) -> Stat:
        stat = stat_of(carrier_of(target))
        stat.drain()
        return stat

    def stat(self, target: Any) -> Stat | None:
        return super().stat(carrier_of(target))

    def covers(self, target: Any) -> tuple[object, ...]:
        nodes = [*nodes_of(target).values(), *getattr(target.nodes_manager, "startup_nodes", {}).values()]
        nodes += [
            node for kept in vars(target).values() if type(kept) is list for node in kept
        ]  # as it began
        clients = [client for node in nodes if (client := node_client(node)) is not None]
        return (*clients, *(client.connection_pool for client in clients))

    def pool_use(self, target: Any) -> PoolUse:
        used = idle = waiting = 0.0
        limit: float | None = 0.0
        for node in nodes_of(target).values():
            use = node_use(node)
            used += use.used or 0
            idle += use.idle or 0
            waiting += use.waiting
            limit = None if limit is None or use.limit is None else limit + use.limit
        return PoolUse(used, idle, limit or None, int(waiting))

    def collect_metrics(self, resource: Resource) -> None:
        super().collect_metrics(resource)
        update = self.update_metric
        known = self.stat_for(resource.target).extra.get("nodes", {})
        for name, node in nodes_of(resource.target).items():
            use = node_use(node)
            update("uno.redis.node.connections", use.used, {"node": name, "state": "used"})
            update("uno.redis.node.connections", use.idle, {"node": name, "state": "idle"})
            if name in known:
                duration, errors = known[name]
                update("uno.redis.node.duration", duration, {"node": name})
                update("uno.redis.node.errors", errors, {"node": name})

    def inherited(self, target: Any) -> None:
        """Nothing: in a forked process the nodes' pools begin anew, and an event loop is the parent's."""

    def suspect(self, target: Any) -> bool:
        """Whether a call hangs, though other nodes may answer."""
        return super().suspect(target) or self.stat_for(target).longest_running() > STALL

    def ready(self) -> bool:
        return hasattr(sys.modules.get(self.module), "ClusterPipeline")

    def hooks(self) -> tuple[Any, Any]:
        """The hooks for a command to a node and for a pipeline."""
        raise NotImplementedError

    def install(self) -> list[Callable[[], None]]:
        module = sys.modules[self.module]
        command, pipeline = self.hooks()
        hooks = [
            (module.RedisCluster, "_execute_command", command),
            (module.ClusterPipeline, "execute", pipeline),
        ]
        return [install(cls, name, wrap) for cls, name, wrap in hooks if name in vars(cls)]


class RedisClusterClient(_Cluster):
    """A redis-py client of a cluster: one pool for each node, told apart by the label ``node``."""

    targets = ("redis.cluster.RedisCluster",)
    ignored = ("redis.cluster.ClusterPipeline",)
    module = "redis.cluster"

    def hooks(self) -> tuple[Any, Any]:
        return _node_command, pipeline(_begin_pipeline)

    def ping(self, target: Any) -> bool | None:
        """PING on a free connection to each node that was used. None when there is none."""
        asked = [c for n in nodes_of(target).values() if is_free(n) and (c := node_client(n)) is not None]
        return all(client.ping() for client in asked) if asked else None


class AsyncRedisClusterClient(_Cluster):
    """The same for asyncio. How long connections are held is not known: commands take one for themselves."""

    targets = ("redis.asyncio.cluster.RedisCluster",)
    ignored = ("redis.asyncio.cluster.ClusterPipeline",)
    module = "redis.asyncio.cluster"

    def hooks(self) -> tuple[Any, Any]:
        return _async_node_command, async_pipeline(_begin_pipeline)

    def bound_loop(self, target: Any) -> Any:
        known = self.stat_for(target).extra.get("loop")
        loop = known() if known is not None else None
        return None if loop is None or loop.is_closed() else loop

    async def ping(self, target: Any) -> bool | None:
        """As above, and only on the loop that the connections belong to; None on any other."""
        import asyncio

        if self.bound_loop(target) is not asyncio.get_running_loop():
            return None
        asked = [node for node in nodes_of(target).values() if node._connections and is_free(node)]
        return all([await node.execute_command("PING") for node in asked]) if asked else None


def _node_cells(stat: Stat, node: Any) -> tuple[HistogramCell, CounterCell]:
    nodes = stat.extra.setdefault("nodes", {})
    cells = nodes.get(node.name)
    if cells is None:
        cells = nodes.setdefault(node.name, (HistogramCell(), CounterCell()))
    return cells  # type: ignore[no-any-return]


def _node_done(begun: Begun | None, node: Any, args: tuple[Any, ...], error: BaseException | None) -> None:
    """A command to one node of a cluster ended."""
    if begun is None:
        return
    try:
        duration, errors = _node_cells(begun[0], node)
        timed = args[0] not in BLOCKING or is_timed(args)
        if error is not None:
            fail_command(begun, args, error)
            if isinstance(error, Exception) and type(error).__name__ not in EXPECTED:
                errors.value += 1
            return
        end(begun, SLOW_SECONDS, timed=timed)
        if timed:
            duration.add(perf_counter() - begun[1])
    except Exception as failure:  # noqa: BLE001 - a hook never fails the call
        failures("RedisCluster._execute_command", failure)


def _node_begin(cluster: Any, node: Any) -> Begun | None:
    begun = begin(carrier_of(cluster))
    if begun is not None:
        with suppress(Exception):  # the pool of a node counts for the cluster
            client = node_client(node)
            if client is not None and hung(client.connection_pool) is not begun[0]:
                setattr(client.connection_pool, ATTRIBUTE, begun[0])
    return begun


def _node_command(original: Any) -> Any:
    def _execute_command(self: Any, target_node: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _node_begin(self, target_node)
        try:
            result = original(self, target_node, *args, **kwargs)
        except BaseException as error:
            _node_done(begun, target_node, args, error)
            raise
        _node_done(begun, target_node, args, None)
        return result

    return _execute_command


def _async_node_command(original: Any) -> Any:
    async def _execute_command(self: Any, target_node: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _node_begin(self, target_node)
        if begun is not None and "loop" not in begun[0].extra:
            bind(begun[0])
        try:
            result = await original(self, target_node, *args, **kwargs)
        except BaseException as error:
            _node_done(begun, target_node, args, error)
            raise
        _node_done(begun, target_node, args, None)
        return result

    return _execute_command


def _begin_pipeline(self: Any) -> Begun | None:
    return begin(carrier_of(self))
