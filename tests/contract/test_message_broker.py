"""Is RabbitMQ seen as it is through aio-pika: published, consumed, depth, the lost connection?"""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest

from tests import servers
from tests.servers import PASSWORD
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import Resource, ResourceManager

pytestmark = pytest.mark.server

DEPTH, CONSUMERS, UP = "queue_depth", "consumers", "messaging.client.connection.up"


async def soon(condition: Callable[[], object], what: str = "", seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture(params=["connect", "connect_robust"])
async def connection(
    request: pytest.FixtureRequest, rabbitmq: servers.RabbitMQ
) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    if request.param == "connect":
        connection: aio_pika.abc.AbstractConnection = await aio_pika.connect(rabbitmq.url)
    else:
        connection = await aio_pika.connect_robust(rabbitmq.url, reconnect_interval=0.2)
    yield connection
    rabbitmq.recover()
    await connection.close()


@pytest.fixture
async def monitor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types.message_broker.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("uno.core.monitoring.resource_types.message_broker.STALE_SECONDS", 2.0)
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


@pytest.fixture
def resource(monitor: ResourceMonitor, connection: aio_pika.abc.AbstractConnection) -> Resource:
    return monitor.manager.register(connection, id="broker")


def explain(resource: Resource) -> str:
    return resource.driver.explain(resource.target, DEPTH)  # type: ignore[union-attr]


@pytest.fixture
def read(monitor: ResourceMonitor, resource: Resource) -> Callable[..., float | None]:
    def read(metric: str, stat: str | None = None) -> float | None:
        return monitor.read("broker", metric, stat=stat)

    return read


Read = Callable[..., float | None]


async def test_published_consumed_depth(
    connection: aio_pika.abc.AbstractConnection, read: Read, resource: Resource
) -> None:
    channel = await connection.channel()
    queue = await channel.declare_queue("orders", auto_delete=False, exclusive=True)
    for number in range(6):
        message = aio_pika.Message(str(number).encode())
        await channel.default_exchange.publish(message, "orders")
    await soon(lambda: read("messages_sent", "total") == 6, "6 sent")
    await soon(lambda: read(DEPTH) == 6, "6 ready")
    assert read(CONSUMERS) == 0
    await channel.default_exchange.publish(aio_pika.Message(b"7"), "orders")
    await soon(lambda: read(DEPTH) == 7, "not the cached 6")
    assert (await resource.get_statistics())["queue_depth"] == 7
    assert "7 ready in orders with 0 consumers" in explain(resource)
    assert read("messaging.channel.count") == 1
    assert (read("messaging.client.operation.duration", "max") or 0) < 1

    got = await queue.get()
    assert got is not None
    await got.ack()
    await soon(lambda: read("messages_consumed", "total") == 1, "1 taken")

    handled = []

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            await asyncio.sleep(0.05)
            handled.append(message.body)

    tag = await queue.consume(handle)
    await soon(lambda: len(handled) == 6)
    await soon(lambda: read("messages_consumed", "total") == 7, "all taken")
    await soon(lambda: read("processing_time", "count") == 6, "6 processed")
    assert read("processing_time", "sum") == pytest.approx(0.3, abs=0.2)
    await soon(lambda: read(CONSUMERS) == 1, "1 consumer")
    await soon(lambda: read(DEPTH) == 0, "nothing left")
    await queue.cancel(tag)


async def test_async_for(connection: aio_pika.abc.AbstractConnection, read: Read, resource: Resource) -> None:
    channel = await connection.channel()
    queue = await channel.declare_queue("orders", exclusive=True)
    for _ in range(3):
        await channel.default_exchange.publish(aio_pika.Message(b"x"), "orders")
    async with queue.iterator() as messages:
        seen = 0
        async for message in messages:
            await asyncio.sleep(0.1)
            if seen == 1:
                assert "1 message held: consumer of orders" in explain(resource)
            await message.ack()
            seen += 1
            if seen == 3:
                break
    await soon(lambda: read("messages_consumed", "total") == 3, "3 taken")
    await soon(lambda: read("processing_time", "count") == 2, "2 processed")
    assert read("processing_time", "sum") == pytest.approx(0.2, abs=0.1)


async def test_a_failing_consumer_is_an_error(
    connection: aio_pika.abc.AbstractConnection, read: Read, resource: Resource
) -> None:
    channel = await connection.channel()
    queue = await channel.declare_queue("orders", exclusive=True)

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await message.ack()
        raise LookupError("no such order")

    await queue.consume(handle)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await channel.default_exchange.publish(aio_pika.Message(b"x"), "orders")
    await soon(lambda: read("errors", "total") == 1, "1 error")
    assert "last error LookupError" in explain(resource)


async def test_a_deleted_queue_is_unknown_and_the_channel_of_the_application_lives(
    connection: aio_pika.abc.AbstractConnection, read: Read
) -> None:
    channel = await connection.channel()
    queue = await channel.declare_queue("short-lived")
    await soon(lambda: read(DEPTH) == 0)
    await queue.delete()
    await soon(lambda: read(DEPTH) is None, "unknown")
    assert not channel.is_closed
    await channel.declare_queue("orders", exclusive=True)


async def test_a_frozen_broker(
    connection: aio_pika.abc.AbstractConnection,
    monitor: ResourceMonitor,
    read: Read,
    resource: Resource,
    rabbitmq: servers.RabbitMQ,
) -> None:
    channel = await connection.channel()
    await channel.declare_queue("orders", exclusive=True)
    await soon(lambda: read(DEPTH) == 0, "a depth")
    assert await resource.ping() is True
    rabbitmq.freeze()
    await soon(lambda: read(DEPTH) is None, "no depth")
    assert read("messages_sent", "total") == 0
    assert "the broker has not answered for" in explain(resource)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(resource.ping(), 0.3)
    rabbitmq.thaw()
    await soon(lambda: read(DEPTH) == 0, "a depth again")
    assert await resource.ping() is True
    assert not channel.is_closed


async def test_a_killed_broker_and_no_password_anywhere(
    connection: aio_pika.abc.AbstractConnection,
    monitor: ResourceMonitor,
    read: Read,
    resource: Resource,
    rabbitmq: servers.RabbitMQ,
) -> None:
    channel = await connection.channel()
    await channel.declare_queue("durable-orders", durable=True)
    await soon(lambda: read(UP) == 1, "up")
    await soon(lambda: read(DEPTH) == 0, "a depth")
    assert resource.endpoint == f"127.0.0.1:{rabbitmq.port}/"
    rabbitmq.kill()
    await soon(lambda: read(UP) == 0, "lost")
    await soon(lambda: read(DEPTH) is None, "no depth")
    with pytest.raises(ConnectionError):
        await resource.ping()
    text = f"{explain(resource)} {resource!r} {monitor.series('broker')}"
    assert "connection is lost" in text
    assert PASSWORD not in text
    rabbitmq.start()
    if isinstance(connection, aio_pika.RobustConnection):
        await soon(lambda: read(UP) == 1, "up again", 20)
        await soon(lambda: read(DEPTH) == 0, "a depth again")
        assert await resource.ping() is True


async def test_a_discovered_connection_is_not_kept_alive(
    monitor: ResourceMonitor, rabbitmq: servers.RabbitMQ
) -> None:
    monitor.discover_resources("message_broker")
    connection = await aio_pika.connect(rabbitmq.url)
    found: list[Resource | None] = [None]

    def is_found(connection: aio_pika.abc.AbstractConnection) -> bool:
        found[0] = monitor.manager.of(connection)
        return found[0] is not None

    wanted = weakref.ref(connection)
    await soon(lambda: is_found(wanted()), "discovered as it was made")  # type: ignore[arg-type]
    channel = await connection.channel()
    await channel.declare_queue("orders", exclusive=True)
    await soon(
        lambda: any(s.stats["value"] == 0 for s in monitor.series(metric="messaging.destination.depth"))
    )
    await connection.close()
    gone = weakref.ref(connection)
    del connection, channel
    await asyncio.sleep(0.3)
    gc.collect()
    assert gone() is None
    await soon(lambda: found[0] not in monitor.manager, "the resource leaves")
