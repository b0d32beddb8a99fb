"""Is RabbitMQ seen as it is through pika: published, consumed, depth, the frozen and the lost broker?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError

from tests import servers
from tests.contract.kit import Watched, dies, everything_said, hooked
from tests.servers import PASSWORD, wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import stat_of
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

DEPTH, CONSUMERS, UP = "queue_depth", "consumers", "messaging.client.connection.up"


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("uno.core.monitoring.resource_types._probe.STALE_SECONDS", 1.5)
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


def connect(server: servers.RabbitMQ) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(server.url))


@pytest.fixture
def connection(rabbitmq: servers.RabbitMQ) -> Iterator[pika.BlockingConnection]:
    connection = connect(rabbitmq)
    yield connection
    rabbitmq.recover()
    if connection.is_open:
        connection.close()


@pytest.fixture
def it(connection: pika.BlockingConnection, monitor: ResourceMonitor) -> Watched:
    return Watched(monitor, connection)


def no_probe() -> bool:
    return not any(thread.name == "uno-probe" for thread in threading.enumerate())


def test_published_consumed_depth(connection: pika.BlockingConnection, it: Watched) -> None:
    channel = connection.channel()
    queue = channel.queue_declare("", auto_delete=True).method.queue
    for number in range(6):
        channel.basic_publish("", queue, str(number).encode())
    it.until(6, "messages_sent", "total")
    it.until(6, DEPTH)
    assert it.read(CONSUMERS) == 0
    assert it.read("messaging.channel.count") == 1
    assert f"6 ready in {queue} with 0 consumers" in it.explain(DEPTH)

    assert channel.basic_get(queue, auto_ack=True)[2] == b"0"
    it.until(1, "messages_consumed", "total")
    it.until(5, DEPTH)

    seen: list[bytes] = []

    def work(channel: Any, method: Any, properties: object, body: bytes) -> None:
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 0.05 and len(it.sites()) == 1, 5, "a holder")
        seen.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(seen) == 2:
            channel.stop_consuming()

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, work, auto_ack=False)
    channel.start_consuming()
    it.until(2, "processing_time", "count")
    assert (it.read("processing_time", "sum") or 0) >= 0.1
    assert next(iter(it.sites()), "") == ""  # nothing is held any more
    assert seen == [b"1", b"2"]
    assert channel.is_open


def test_a_loop_over_messages_and_a_failing_consumer(
    connection: pika.BlockingConnection, it: Watched
) -> None:
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", auto_delete=True).method.queue
    for _ in range(3):
        channel.basic_publish("", queue, b"x")
    taken = 0
    for method, _, _ in channel.consume(queue, inactivity_timeout=0.2):
        if method is None:
            break
        taken += 1
        channel.basic_ack(method.delivery_tag)
    assert taken == 3
    it.until(3, "messages_consumed", "total")
    it.until(3, "processing_time", "count")
    with pytest.raises(AMQPError):
        channel.basic_publish("", "nowhere", b"x", mandatory=True)
    it.until(1, "errors", "total")
    assert "last error UnroutableError" in it.explain(DEPTH)


def test_a_deleted_queue_is_unknown(connection: pika.BlockingConnection, it: Watched) -> None:
    channel = connection.channel()
    queue = channel.queue_declare("").method.queue
    it.until(0, DEPTH)
    channel.queue_delete(queue)
    it.until(None, DEPTH)
    assert channel.is_open


def test_a_frozen_and_a_killed_broker_and_no_password(
    connection: pika.BlockingConnection, it: Watched, monitor: ResourceMonitor, rabbitmq: servers.RabbitMQ
) -> None:
    channel = connection.channel()
    channel.queue_declare("orders-of-pika", durable=True)
    it.until(0, DEPTH)
    assert it.resource.endpoint == f"127.0.0.1:{rabbitmq.port}/"
    rabbitmq.freeze()
    it.until(None, DEPTH)
    wait_until(lambda: "the broker has not answered for" in it.explain(), 5, "said")
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.DOWN, 15, "down")
    rabbitmq.thaw()
    it.until(0, DEPTH)
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 15, "up again")

    rabbitmq.kill()
    with pytest.raises(AMQPError):  # as without uno
        channel.queue_declare("orders-of-pika", durable=True)
    it.until(0, UP)
    it.until(None, DEPTH)
    assert "not connected" in it.explain()
    assert PASSWORD not in everything_said(monitor)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a dropped connection is not closed
def test_found_as_it_is_made_shared_line_dies_hooks_gone(
    monitor: ResourceMonitor, rabbitmq: servers.RabbitMQ
) -> None:
    def make() -> pika.BlockingConnection:
        return connect(rabbitmq)

    dies(monitor, make, "message_broker")

    first, second = connect(rabbitmq), connect(rabbitmq)
    for connection in (first, second):
        channel = connection.channel()
        channel.queue_declare("", exclusive=True)
    wait_until(lambda: all(monitor.manager.of(c) is not None for c in (first, second)), 5, "found")
    wait_until(lambda: all(stat_of(c).extra.get("line") for c in (first, second)), 5, "lines")
    assert stat_of(first).extra["line"] is stat_of(second).extra["line"]
    living = [type(r.target) for r in monitor.discover_resources("message_broker")]
    living += [type(r.target) for r in monitor.manager]
    assert not [cls for cls in living if cls.__module__.startswith("uno.core.monitoring.resource_types.pika")]
    assert "BlockingChannel.basic_publish" in hooked("pika")
    monitor.stop()
    assert hooked("pika") == []
    first.close()
    second.close()
    wait_until(no_probe, 5, "no thread of ours is left")
