"""Are a Redis cluster's nodes, the master behind a sentinel, and Valkey's clients seen as they are?"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
import redis.exceptions
import redis.sentinel
import valkey

from tests import servers
from tests.contract import kit
from tests.contract.kit import Watched, soon
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

DURATION = "command_duration"
NODE_CONNECTIONS, NODE_DURATION = "uno.redis.node.connections", "uno.redis.node.duration"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(
            lambda: {"RedisCluster._execute_command", "Valkey.execute_command"} <= set(hooked()), 5, "hooks"
        )
        yield monitor
    assert hooked() == []


def hooked() -> list[str]:
    return kit.hooked("redis", "valkey")


@pytest.fixture
def client(redis_cluster: servers.RedisCluster) -> Iterator[Any]:
    client = redis.cluster.RedisCluster(host=servers.HOST, port=redis_cluster.nodes[0].port, socket_timeout=8)
    yield client
    client.close()


def names(cluster: servers.RedisCluster) -> list[str]:
    return [f"{servers.HOST}:{node.port}" for node in cluster.nodes]


def test_commands_by_node(monitor: ResourceMonitor, client: Any, redis_cluster: servers.RedisCluster) -> None:
    api = Watched(monitor, client)
    asked = api.driver.stat(client).total.value  # type: ignore[union-attr]  # for the list of commands, by itself
    for number in range(60):
        client.set(f"key-{number}", number)
    with client.pipeline() as pipe:
        for number in range(5):
            pipe.get(f"key-{number}")
        assert pipe.execute() == [b"0", b"1", b"2", b"3", b"4"]
    api.until(asked + 61, DURATION, "count")
    seen = [api.read(NODE_DURATION, "count", node=name) or 0 for name in names(redis_cluster)]
    assert sum(seen) == asked + 60
    assert min(seen) > 5
    assert api.read("connections", **{"db.client.connection.state": "used"}) == 0
    for name in names(redis_cluster):
        assert (
            api.read(NODE_CONNECTIONS, node=name, state="idle") or 0
        ) >= 1  # a ping may have opened another
    with pytest.raises(redis.exceptions.ResponseError):
        client.lpush("key-1", 1)
    api.until(1, "errors", "total")
    assert sum(api.read("uno.redis.node.errors", "total", node=n) or 0 for n in names(redis_cluster)) == 1
    assert sorted(api.driver.endpoints(client)) == sorted(f"{name}/0" for name in names(redis_cluster))
    # its nodes' clients and pools are no resources of their own
    monitor.discover_resources("redis")
    ports = {node.port for node in redis_cluster.nodes}
    assert not [
        r
        for r in monitor.manager
        if r.target is not client and r.endpoint and any(str(p) in r.endpoint for p in ports)
    ]


async def test_async_commands_by_node(monitor: ResourceMonitor, redis_cluster: servers.RedisCluster) -> None:
    client = redis.asyncio.cluster.RedisCluster(host=servers.HOST, port=redis_cluster.nodes[0].port)
    api = Watched(monitor, client)
    for number in range(60):
        await client.set(f"key-{number}", number)
    await api.soon(60, DURATION, "count")
    seen = [api.read(NODE_DURATION, "count", node=name) or 0 for name in names(redis_cluster)]
    assert sum(seen) == 60
    assert api.read(NODE_CONNECTIONS, node=names(redis_cluster)[0], state="used") == 0
    await soon(lambda: monitor.health_of("it").status is HealthStatus.UP, "up")
    await client.aclose()


def test_a_frozen_and_a_killed_node(
    monitor: ResourceMonitor, client: Any, redis_cluster: servers.RedisCluster
) -> None:
    api = Watched(monitor, client)
    for number in range(20):
        client.set(f"key-{number}", number)

    def is_(status: HealthStatus) -> bool:
        return monitor.health_of("it").status is status

    wait_until(lambda: is_(HealthStatus.UP), 10, "up")
    node = redis_cluster.nodes[2]
    key = next(f"key-{n}" for n in range(20) if client.get_node_from_key(f"key-{n}").port == node.port)
    node.freeze()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(client.get(key)), name="shop-1", daemon=True)
    thread.start()
    wait_until(lambda: not is_(HealthStatus.UP), 6, "a command that hangs")
    wait_until(lambda: "a call has been running" in api.explain(), 5, "said")
    node.thaw()
    thread.join(10)
    assert got == [key.removeprefix("key-").encode()]
    wait_until(lambda: client.set(key, 1) and is_(HealthStatus.UP), 15, "up again with calls that are quick")


def test_a_cluster_client_dies_when_dropped(
    monitor: ResourceMonitor, redis_cluster: servers.RedisCluster
) -> None:
    client: Any = redis.cluster.RedisCluster(host=servers.HOST, port=redis_cluster.nodes[0].port)
    client.set("a", 1)
    monitor.discover_resources("redis")
    (id,) = [r.id for r in monitor.manager if r.target is client]
    gone = weakref.ref(client)
    client.close()
    del client
    wait_until(lambda: (gc.collect(), gone())[1] is None, 10, "the object goes")
    wait_until(lambda: id not in monitor.manager, 10, "the resource leaves")


def test_the_master_behind_a_sentinel(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    sentinel = servers.required(lambda: servers.Sentinel(redis_server))
    try:
        asked = redis.sentinel.Sentinel([(servers.HOST, sentinel.port)], socket_timeout=2)
        master = asked.master_for("shop", socket_timeout=2)
        api = Watched(monitor, master)
        assert api.resource.endpoint == "shop/0"
        master.set("a", 1)
        api.until(1, DURATION, "count")
        assert api.driver.endpoints(master) == [f"{servers.HOST}:{redis_server.port}/0"]
        wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 10, "up")
        redis_server.kill()
        with pytest.raises(redis.exceptions.ConnectionError):
            master.get("a")
        api.until(1, "errors", "total")
        redis_server.start()

        def back() -> bool:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                return bool(master.set("a", 2))
            return False

        wait_until(back, 10, "the application is back")
        master.connection_pool.disconnect()
        for one in asked.sentinels:
            one.close()
    finally:
        sentinel.close()


@pytest.mark.parametrize("blocking", [False, True])
def test_valkey(monitor: ResourceMonitor, redis_server: servers.Redis, blocking: bool) -> None:
    pools = valkey.BlockingConnectionPool if blocking else valkey.ConnectionPool
    pool: Any = pools(host=servers.HOST, port=redis_server.port, max_connections=2)
    client = valkey.Valkey(connection_pool=pool)
    api = Watched(monitor, client)
    for _ in range(3):
        client.set("a", 1)
    api.until(3, DURATION, "count")
    assert api.resource.endpoint == f"{servers.HOST}:{redis_server.port}/0"
    assert api.read("connections_max") == 2
    assert api.read("connection_wait_time", "count") == (3 if blocking else 0)
    held = pool.get_connection("PING")
    api.until(0.5, "connection_pool_usage")
    assert next(iter(api.sites())).startswith("tests/contract/test_redis_cluster.py")
    pool.release(held)
    api.until(0.0, "connection_pool_usage")
    pool.disconnect()
