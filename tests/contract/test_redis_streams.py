"""Is the lag of a Redis stream's consumer group seen as it is, and unknown after an XDEL?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from tests import servers
from tests.contract.kit import Watched
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

OF_SHOP = {"messaging.destination.name": "orders", "messaging.consumer.group.name": "shop"}


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.STALE_SECONDS", 1.5)
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


@pytest.fixture
def stream(redis_server: servers.Redis) -> Iterator[list[Any]]:
    """The ids of 20 messages, in a stream with the group "shop"."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushdb()
        client.xgroup_create("orders", "shop", id="0", mkstream=True)
        yield [client.xadd("orders", {"n": number}) for number in range(20)]
        client.flushdb()


def test_lag(monitor: ResourceMonitor, redis_server: servers.Redis, stream: list[Any]) -> None:
    with redis.Redis(port=redis_server.port) as client:
        it = Watched(monitor, client)
        taken = client.xreadgroup("shop", "me", {"orders": ">"}, count=5)
        it.until(15, "lag", **OF_SHOP)
        it.until(5, "unacknowledged", **OF_SHOP)
        client.xack("orders", "shop", *[number for number, _ in taken[0][1]])
        it.until(0, "unacknowledged", **OF_SHOP)
        it.until(15, "lag", **OF_SHOP)
        assert monitor.read("it", "connections", {"db.client.connection.state": "used"}) == 0

        client.xdel("orders", stream[10])  # Redis cannot tell the lag any more
        it.until(None, "lag", **OF_SHOP)
        assert it.read("unacknowledged", **OF_SHOP) == 0

        before = it.read("db.client.operation.duration", "count")
        redis_server.freeze()
        it.until(None, "unacknowledged", **OF_SHOP)
        redis_server.thaw()
        it.until(0, "unacknowledged", **OF_SHOP)
        assert it.read("db.client.operation.duration", "count") == before  # our questions are no traffic

        client.delete("orders")
        it.until(None, "unacknowledged", **OF_SHOP)


async def test_lag_async(monitor: ResourceMonitor, redis_server: servers.Redis, stream: list[Any]) -> None:
    async with redis.asyncio.Redis(port=redis_server.port, decode_responses=True) as client:
        it = Watched(monitor, client)
        await client.xreadgroup("shop", "me", {"orders": ">"}, count=5, block=10)
        await it.soon(15, "lag", **OF_SHOP)
        await it.soon(5, "unacknowledged", **OF_SHOP)
        await client.xdel("orders", stream[10])
        await it.soon(None, "lag", **OF_SHOP)
        assert it.read("unacknowledged", **OF_SHOP) == 5
