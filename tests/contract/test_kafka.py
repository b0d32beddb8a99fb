"""Is Kafka seen as it is through aiokafka and kafka-python? On librdkafka's mock cluster, which is no real broker."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import aiokafka
import confluent_kafka
import pytest

from tests.contract.kit import Watched, dies, hooked, soon, watching
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

with warnings.catch_warnings(
    action="ignore", category=DeprecationWarning
):  # it reads its files in an old way
    import kafka as kafka_python

LAG = {"messaging.destination.name": "orders", "messaging.consumer.group.name": ""}


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        yield monitor


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """The address of a mock cluster that lives as long as this client of it."""
    cluster = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    del cluster


async def test_sent_taken_and_lag(monitor: ResourceMonitor, kafka: str) -> None:
    monitor.discover_resources("message_broker")
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    there = weakref.ref(producer)
    await soon(lambda: monitor.manager.of(there()), "found as it starts")
    sent = Watched(monitor, producer)
    for number in range(40):
        await producer.send_and_wait("orders", str(number).encode(), partition=0)
    await sent.soon(40, "messages_sent", "total")
    assert sent.read("messaging.client.operation.duration", "count") == 40
    await sent.soon(0, "buffered", direction="out")
    assert sent.read("messaging.client.connection.up") == 1
    assert sent.resource.endpoint == kafka

    consumer: Any = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    consumer.assign([aiokafka.TopicPartition("orders", 0)])
    await consumer.start()
    it = Watched(monitor, consumer, "consumer")
    for _ in range(4):
        await consumer.getone()
    found = await consumer.getmany(timeout_ms=2000, max_records=4)
    taken = 4 + sum(map(len, found.values()))
    assert taken > 4
    last = taken + 3
    async for _ in consumer:
        taken += 1
        if taken == last:
            break
    await it.soon(taken, "messages_consumed", "total")
    await it.soon(2, "processing_time", "count")  # the last one is still worked on
    assert consumer.highwater(aiokafka.TopicPartition("orders", 0)) == 40
    await it.soon(40 - taken, "lag", **LAG)
    assert (await it.resource.get_statistics())["lag"] == 40 - taken
    assert await it.resource.ping() is True

    consumer.seek(aiokafka.TopicPartition("orders", 0), 10)
    await it.soon(30, "lag", **LAG)
    await consumer.stop()
    await it.soon(0, "messaging.client.connection.up")
    await producer.stop()
    assert "AIOKafkaProducer.send" in hooked("aiokafka")
    resource = monitor.manager.of(consumer)
    monitor.stop()
    assert hooked("aiokafka") == []
    assert resource is not None


async def test_dies_when_dropped(monitor: ResourceMonitor, kafka: str) -> None:
    monitor.discover_resources("message_broker")
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    reference = weakref.ref(producer)
    await soon(lambda: monitor.manager.of(reference()), "found")
    resource = monitor.manager.of(producer)
    await producer.stop()
    del producer
    await soon(lambda: (gc.collect(), reference())[1] is None, "the producer goes")
    await soon(lambda: resource not in monitor.manager, "the resource leaves")


@pytest.fixture(scope="module")
def plain(kafka: str) -> dict[str, Any]:
    """A kafka-python producer's and consumer's settings: what the mock cluster speaks is told, not asked for."""
    return {"bootstrap_servers": kafka, "api_version": (2, 0)}


def test_kafka_python(plain: dict[str, Any], kafka: str) -> None:
    with watching() as monitor:
        monitor.discover_resources("message_broker")
        producer = kafka_python.KafkaProducer(**plain)
        sent = Watched(monitor, producer, "sent")
        for number in range(40):
            producer.send("plain", str(number).encode(), partition=0).get(timeout=10)
        sent.until(40, "messages_sent", "total")
        assert sent.read("messaging.client.operation.duration", "count") == 40
        sent.until(0, "buffered", direction="out")
        sent.until(1, "messaging.client.connection.up")
        assert sent.resource.endpoint == kafka

        partition = kafka_python.TopicPartition("plain", 0)
        consumer = kafka_python.KafkaConsumer(
            auto_offset_reset="earliest", consumer_timeout_ms=10_000, **plain
        )
        it = Watched(monitor, consumer, "consumer")
        consumer.assign([partition])
        labels = {"messaging.destination.name": "plain", "messaging.consumer.group.name": ""}
        taken = 0
        while taken < 5:
            taken += sum(map(len, consumer.poll(1000, max_records=5).values()))
        it.until(taken, "messages_consumed", "total")
        it.until(40 - taken, "lag", **labels)
        for _ in zip(range(5), consumer, strict=False):
            taken += 1
        it.until(taken, "messages_consumed", "total")
        it.until(40 - taken, "lag", **labels)
        assert (it.read("processing_time", "count") or 0) >= 5
        assert asyncio.run(it.resource.ping()) is True
        assert "KafkaConsumer.poll" in hooked("kafka.consumer", "kafka.producer")
        consumer.close()
        producer.close()
    assert hooked("kafka.consumer", "kafka.producer") == []


def test_kafka_python_dies_when_dropped(plain: dict[str, Any]) -> None:
    def make() -> Any:
        producer = kafka_python.KafkaProducer(**plain)
        producer.close()
        return producer

    with watching() as monitor:
        dies(monitor, make, "message_broker")
