"""Is NATS seen as it is, core and JetStream: sent, taken, buffered, lag, the frozen and the lost server?"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.errors
import pytest

from tests import servers
from tests.contract.kit import Watched, everything_said, hooked, soon
from tests.servers import PASSWORD
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

SENT, CONSUMED, UP = "messages_sent", "messages_consumed", "messaging.client.connection.up"
OF_SHOP = {"messaging.destination.name": "ORDERS", "messaging.consumer.group.name": "shop"}


@pytest.fixture
async def monitor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.STALE_SECONDS", 1.5)
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


async def quiet(error: Exception) -> None:
    """Takes errors of the client instead of the log."""


@pytest.fixture
async def client(nats_server: servers.NATS, monitor: ResourceMonitor) -> AsyncIterator[Any]:
    client = await nats.connect(
        nats_server.url, error_cb=quiet, reconnect_time_wait=0.1, max_reconnect_attempts=-1
    )
    yield client
    nats_server.recover()
    await client.close()


@pytest.fixture
def it(client: Any, monitor: ResourceMonitor) -> Watched:
    return Watched(monitor, client)


async def test_core(client: Any, it: Watched) -> None:
    told: list[str] = []

    async def handle(message: Any) -> None:
        await soon(lambda: it.sites(), "a holder")
        told.append(next(iter(it.sites())))
        if message.data == b"bad":
            raise LookupError("no such order")

    await client.subscribe("orders", cb=handle)
    await client.publish("orders", b"1")
    await client.publish("orders", b"bad")
    await it.soon(2, SENT, "total")
    await it.soon(2, CONSUMED, "total")
    await it.soon(2, "processing_time", "count")
    await it.soon(1, "errors", "total")
    assert "test_nats.py" in told[0]

    pull = await client.subscribe("parcels")
    for _ in range(3):
        await client.publish("parcels", b"x")
    await it.soon(3, "buffered", direction="in")
    await pull.next_msg()
    async for _ in pull.messages:
        break
    await it.soon(1, "buffered", direction="in")
    await it.soon(4, CONSUMED, "total")

    async def answer(message: Any) -> None:
        await message.respond(b"yes")

    await client.subscribe("ask", cb=answer)
    assert (await client.request("ask", b"?")).data == b"yes"
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("nobody", b"?")
    await it.soon(2, "messaging.client.operation.duration", "count")
    await it.soon(2, "errors", "total")


async def test_dropped_by_a_slow_subscriber(client: Any, it: Watched) -> None:
    await client.subscribe("flood", pending_msgs_limit=2)
    for _ in range(5):
        await client.publish("flood", b"x")
    await it.soon(3, "errors", "total")
    assert it.read("buffered", direction="in") == 2
    assert "SlowConsumerError" in it.explain()


async def test_jetstream_lag(client: Any, it: Watched) -> None:
    stream = client.jetstream()
    await stream.add_stream(name="ORDERS", subjects=["orders.*"], storage="memory")
    for number in range(10):
        await stream.publish("orders.new", str(number).encode())
    await it.soon(10, SENT, "total")
    assert it.read("messaging.client.operation.duration", "count") == 10
    shop = await stream.pull_subscribe("orders.*", "shop")
    messages = await shop.fetch(4)
    await it.soon(6, "lag", **OF_SHOP)
    await it.soon(4, "unacknowledged", **OF_SHOP)
    assert "shop of ORDERS is 6 behind" in it.explain("uno.messaging.consumer.lag")
    assert (await it.resource.get_statistics())["lag"] == 6
    for message in messages:
        await message.ack()
    await it.soon(0, "unacknowledged", **OF_SHOP)
    await it.soon(4, CONSUMED, "total")
    assert it.read(SENT, "total") == 10  # neither acknowledgements nor our own questions
    await stream.delete_consumer("ORDERS", "shop")
    await it.soon(None, "lag", **OF_SHOP)
    await stream.delete_stream("ORDERS")


async def test_a_frozen_and_a_killed_server_and_no_password(
    client: Any, it: Watched, monitor: ResourceMonitor, nats_server: servers.NATS
) -> None:
    stream = client.jetstream()
    await stream.add_stream(name="ORDERS", subjects=["orders.*"], storage="memory")
    await stream.pull_subscribe("orders.*", "shop")
    await it.soon(0, "lag", **OF_SHOP)
    assert it.resource.endpoint == f"127.0.0.1:{nats_server.port}"
    assert await it.resource.ping() is True
    nats_server.freeze()
    await it.soon(None, "lag", **OF_SHOP)
    assert "the broker has not answered for" in it.explain()
    await soon(lambda: monitor.health_of("it").status is HealthStatus.DOWN, "down", 15)
    with pytest.raises(nats.errors.TimeoutError):  # as without uno
        await stream.publish("orders.new", b"x", timeout=0.1)
    nats_server.thaw()
    await it.soon(1, "lag", **OF_SHOP)
    assert await it.resource.ping() is True
    await soon(lambda: monitor.health_of("it").status is HealthStatus.UP, "up again", 15)

    nats_server.kill()
    await it.soon(0, UP)
    await it.soon(None, "lag", **OF_SHOP)
    with pytest.raises(ConnectionError):
        await it.resource.ping()
    assert "not connected" in it.explain()
    nats_server.start()
    await it.soon(1, UP)
    assert await it.resource.ping() is True
    assert PASSWORD not in everything_said(monitor)


async def test_found_dies_and_hooks_go(monitor: ResourceMonitor, nats_server: servers.NATS) -> None:
    early = await nats.connect(nats_server.url)
    monitor.discover_resources("message_broker")
    later = await nats.connect(nats_server.url)
    both = weakref.WeakSet((early, later))
    await soon(lambda: all(monitor.manager.of(client) for client in both), "both found")
    assert "Client.publish" in hooked("nats")
    resource, reference = monitor.manager.of(later), weakref.ref(later)
    await soon(lambda: monitor.series(resource.id), "a collection")  # type: ignore[union-attr]
    await later.close()
    del later
    await asyncio.sleep(0)
    await soon(lambda: (gc.collect(), reference())[1] is None, "the client goes")
    await soon(lambda: resource not in monitor.manager, "the resource leaves")
    monitor.stop()
    assert hooked("nats") == []
    await early.close()
