"""Is Kafka seen as it is through confluent-kafka? Against librdkafka's mock cluster, which is no real broker."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.contract.kit import Watched, hooked, soon, wait_until, watching
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import confluent_kafka as watched_kafka
from uno.core.resources import Resource

LAG = {"messaging.destination.name": "orders", "messaging.consumer.group.name": ""}
#: What the application holds by a name.
app: dict[str, Any] = {}


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with watching() as monitor:
        yield monitor


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """The address of a mock cluster that lives as long as this client of it."""
    cluster = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del cluster


def consumer_of(kafka: str, cls: Any = Consumer, **conf: Any) -> Any:
    made = {"bootstrap.servers": kafka, "group.id": "shop", "auto.offset.reset": "earliest", **conf}
    return cls(made)


def send(kafka: str, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for number in range(count):
        producer.produce(topic, str(number), partition=0)
    assert producer.flush(10) == 0


def take(consumer: Any, count: int) -> None:
    for _ in range(count):
        message = consumer.poll(10)
        assert message is not None
        assert message.error() is None


def resource_of(monitor: ResourceMonitor, obj: Any) -> Resource:
    """What stands for an object that the monitor found."""
    (found,) = [r for r in monitor.manager if getattr(r.target, "number", None) == id(obj)]
    return found


def living(cls: type) -> set[int]:
    return {id(obj) for obj in gc.get_objects() if type(obj) is cls}


def test_lag_and_messages_taken(monitor: ResourceMonitor, kafka: str) -> None:
    send(kafka, "orders", 40)
    consumer = consumer_of(kafka)
    it = Watched(monitor, consumer)
    consumer.assign([TopicPartition("orders", 0, 0)])
    take(consumer, 5)
    assert len(consumer.consume(5, 10)) == 5
    it.until(10, "messages_consumed", "total")
    consumer.pause([TopicPartition("orders", 0)])
    wait_until(lambda: (consumer.poll(0), it.read("lag", **LAG) == 30)[1], 10, "30 are to come")
    consumer.resume([TopicPartition("orders", 0)])
    take(consumer, 30)
    wait_until(lambda: (consumer.poll(0), it.read("lag", **LAG) == 0)[1], 10, "all were taken")
    assert (it.read("processing_time", "count") or 0) >= 30
    consumer.close()


def test_a_lag_that_is_old_is_not_shown(
    monitor: ResourceMonitor, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_kafka, "STALE_SECONDS", 0.5)
    send(kafka, "stale", 3)
    consumer = consumer_of(kafka)
    it = Watched(monitor, consumer)
    consumer.assign([TopicPartition("stale", 0, 0)])
    labels = {**LAG, "messaging.destination.name": "stale"}
    take(consumer, 3)
    wait_until(lambda: (consumer.poll(0), it.read("lag", **labels) == 0)[1], 10, "all were taken")
    it.until(None, "lag", **labels)  # nobody asked the consumer for anything
    consumer.close()


def test_messages_sent_and_the_time_until_the_broker_has_them(monitor: ResourceMonitor, kafka: str) -> None:
    told: list[bytes | None] = []
    producer = Producer({"bootstrap.servers": kafka})
    it = Watched(monitor, producer)
    for number in range(20):
        producer.produce("sent", str(number))
    producer.produce("sent", "a", callback=lambda error, message: told.append(message.value()))
    producer.produce("sent", "b", on_delivery=lambda error, message: told.append(message.value()))
    assert producer.flush(10) == 0
    assert set(told) == {b"a", b"b"}
    it.until(22, "messages_sent", "total")
    it.until(22, "messaging.client.operation.duration", "count")
    it.until(0, "buffered", direction="out")
    assert it.read("errors", "total") == 0
    asked = [r for r in monitor.manager if r is it.resource]
    assert asyncio.run(asked[0].ping()) is True


def test_what_waits_for_the_broker_and_what_never_got_there(monitor: ResourceMonitor) -> None:
    conf = {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 300, "log_level": 0}
    producer = Producer(conf)
    it = Watched(monitor, producer)
    for _ in range(3):
        producer.produce("nowhere", "x")
    it.until(3, "buffered", direction="out")
    producer.flush(10)
    it.until(3, "errors", "total")
    it.until(0, "buffered", direction="out")
    assert it.read("messages_sent", "total") == 0
    assert "MSG_TIMED_OUT" in it.explain("uno.resource.errors")


def test_the_callback_for_all_messages_is_left_alone(monitor: ResourceMonitor, kafka: str) -> None:
    told: list[bytes | None] = []
    producer = Producer(
        {"bootstrap.servers": kafka, "on_delivery": lambda error, message: told.append(message.value())}
    )
    it = Watched(monitor, producer)
    for _ in range(3):
        producer.produce("own", "x")
    assert producer.flush(10) == 0
    assert told == [b"x"] * 3
    it.until(3, "messages_sent", "total")


def test_found_by_name_and_by_use_and_not_kept_alive(
    monitor: ResourceMonitor, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_kafka, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(watched_kafka, "LOOK_SHARE", 1)
    monkeypatch.setattr(watched_kafka, "_look_after", 0.0)
    app["early"] = Producer({"bootstrap.servers": kafka})
    app["late"] = None
    (found,) = [r for r in monitor.discover_resources("message_broker") if r.id.endswith("app.early")]
    app["early"].produce("found", "x")
    app["early"].flush(10)
    wait_until(lambda: monitor.read(found.id, "messages_sent", stat="total") == 1, 10, "counted")

    local = consumer_of(kafka)
    local.poll(0)
    wait_until(
        lambda: [r for r in monitor.manager if getattr(r.target, "number", 0) == id(local)], 10, "found"
    )
    closed = resource_of(monitor, local)
    local.close()
    wait_until(lambda: closed not in monitor.manager, 10, "what is closed leaves")

    app["late"] = consumer_of(kafka)
    wait_until(lambda: [r for r in monitor.manager if r.id.endswith("app.late")], 10, "found by its name")
    late = resource_of(monitor, app["late"])
    producer, consumer = id(app["early"]), id(app["late"])
    app.clear()
    wait_until(lambda: (gc.collect(), producer not in living(Producer))[1], 10, "nothing keeps it alive")
    wait_until(lambda: (gc.collect(), consumer not in living(Consumer))[1], 10, "nothing keeps it alive")
    wait_until(lambda: found not in monitor.manager and late not in monitor.manager, 10, "they leave")


def test_subclasses_are_seen_too(monitor: ResourceMonitor, kafka: str) -> None:
    producer = confluent_kafka.SerializingProducer({"bootstrap.servers": kafka})
    sent = Watched(monitor, producer, "sent")
    producer.produce("typed", value=b"x", partition=0)
    assert producer.flush(10) == 0
    sent.until(1, "messages_sent", "total")
    consumer = consumer_of(kafka, confluent_kafka.DeserializingConsumer)
    taken = Watched(monitor, consumer, "taken")
    consumer.assign([TopicPartition("typed", 0, 0)])
    wait_until(lambda: consumer.poll(1) is not None, 10, "a message")
    taken.until(1, "messages_consumed", "total")
    consumer.close()


async def test_the_asynchronous_clients(monitor: ResourceMonitor, kafka: str) -> None:
    aio = pytest.importorskip("confluent_kafka.aio")
    monitor.discover_resources("message_broker")
    producer = aio.AIOProducer({"bootstrap.servers": kafka})
    consumer = consumer_of(kafka, aio.AIOConsumer)
    try:
        sent, taken = Watched(monitor, producer, "sent"), Watched(monitor, consumer, "taken")
        delivered = await producer.produce("async", value=b"x", partition=0)
        await producer.flush()
        await delivered
        await sent.soon(1, "messages_sent", "total")
        await consumer.assign([TopicPartition("async", 0, 0)])
        assert await consumer.poll(10) is not None
        await taken.soon(1, "messages_consumed", "total")
        await soon(lambda: len([r for r in monitor.manager if r.type == "message_broker"]) >= 2, "both")
        assert not [
            r for r in monitor.manager if r.discovered and r.target is taken.driver.stand_in(consumer)
        ]
    finally:
        await consumer.close()
        await producer.close()


def test_hooks_come_off_whole(kafka: str) -> None:
    before = dict(vars(Consumer)), dict(vars(Producer))
    with watching() as monitor:
        Watched(monitor, Producer({"bootstrap.servers": kafka}))
        wait_until(lambda: "Producer.produce" in hooked("cimpl", "confluent_kafka"), 10, "hooked")
        assert "Consumer.poll" in hooked("cimpl", "confluent_kafka")
    assert hooked("cimpl", "confluent_kafka") == []
    assert (dict(vars(Consumer)), dict(vars(Producer))) == before
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce("off", "x")
    assert producer.flush(10) == 0
