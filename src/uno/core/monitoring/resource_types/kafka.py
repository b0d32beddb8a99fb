"""How is Kafka watched through aiokafka? Lag is read from the consumer's own memory: nothing is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    Stat,
    announce,
    describe_error,
    describe_holds,
    failures,
    install,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

MAX_TOPICS = 100
#: The broker answers each fetch of a consumer at once or after half a second, so this long without one is silence.
RECENT_SECONDS = 10.0
_TOPIC, _GROUP = "messaging.destination.name", "messaging.consumer.group.name"


class _AIOKafka(ResourceTypeMonitor):
    """What consumers and producers have in common."""

    resource_type = "message_broker"
    library = "aiokafka"
    tested = ">=0.14,<0.15"
    blocking = False
    connected = ("messaging.client.connection.up", Threshold(None, 0.5, "Not connected to the broker",
                                                             direction="below", for_=1))  # fmt: skip

    def identify(self, target: Any) -> Identity:
        hosts = target._client.hosts
        return Identity("kafka", f"{hosts[0][0]}:{hosts[0][1]}" if hosts else None)

    def attach(self, target: Any) -> None:
        stat_of(target)

    def ready(self) -> bool:
        return "aiokafka.consumer.consumer" in sys.modules and "aiokafka.producer.producer" in sys.modules

    def bound_loop(self, target: Any) -> Any:
        return getattr(target._client, "_loop", None)

    def is_up(self, target: Any) -> bool:
        """Whether it is connected to any broker; read from memory."""
        return any(connection.connected() for connection in list(target._client._conns.values()))

    def ping(self, target: Any) -> bool | None:
        """From what happened. ConnectionError while no broker is connected."""
        if not self.is_up(target):
            raise ConnectionError("not connected")
        stat = stat_of(target)
        return True if stat.last_ok and monotonic() - stat.last_ok < RECENT_SECONDS else None

    def explain(self, target: Any, metric: str) -> str:
        stat = stat_of(target)
        parts = [] if self.is_up(target) else ["not connected"]
        parts += [describe_holds(stat, "message"), describe_error(stat)]
        return "; ".join(filter(None, parts))


class KafkaConsumer(_AIOKafka):
    """An aiokafka consumer: messages taken, and by topic the lag of the partitions that it has.

    Lag is known for a partition once the broker has answered a fetch of it. The tests of Kafka stand on librdkafka's
    mock cluster, which is no real broker.
    """

    targets = ("aiokafka.consumer.consumer.AIOKafkaConsumer",)
    metrics = pick(
        "messaging.client.consumed.messages",
        "messaging.process.duration",
        "uno.messaging.consumer.lag",
        "messaging.client.connection.up",
        "uno.resource.errors",
    )
    headline = (
        "uno.messaging.consumer.lag",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    )
    thresholds = (
        _AIOKafka.connected,
        ("uno.messaging.consumer.lag", Threshold(1_000, 10_000, "Consumers fall behind", for_=10)),
    )

    def install(self) -> list[Callable[[], None]]:
        consumer = sys.modules["aiokafka.consumer.consumer"].AIOKafkaConsumer
        hooks = [("start", _start), ("getone", _getone), ("getmany", _getmany), ("__anext__", _anext)]
        return [install(consumer, name, wrap) for name, wrap in hooks]

    def collect_metrics(self, resource: Resource) -> None:
        target, update = resource.target, self.update_metric
        stat = stat_of(target)
        update("messaging.client.connection.up", self.is_up(target))
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)
        group = target._group_id or ""
        for topic, lag in self.lags(target).items():
            update("uno.messaging.consumer.lag", lag, {_TOPIC: topic, _GROUP: group})

    def lags(self, target: Any) -> dict[str, int | None]:
        """Messages not taken yet, by topic; None while one of its partitions is not known."""
        subscription = target._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        found: dict[str, int | None] = {}
        if assignment is None:
            return found
        for partition in list(assignment.tps):
            state = assignment.state_value(partition)
            if partition.topic not in found and len(found) >= MAX_TOPICS:
                continue
            before = found.get(partition.topic, 0)
            if state is None or before is None or state.highwater is None or not state.has_valid_position:
                found[partition.topic] = None
            else:
                found[partition.topic] = before + max(0, state.highwater - state.position)
        return found

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat, lags = stat_of(target), self.lags(target)
        known = [lag for lag in lags.values() if lag is not None]
        return {
            "connected": self.is_up(target),
            "messages_consumed": stat.outcome("consumed").value,
            "lag": sum(known) if lags and len(known) == len(lags) else None,
            "errors": stat.errors.value,
        }


class KafkaProducer(_AIOKafka):
    """An aiokafka producer: messages that the broker has, those that wait for it, and for how long they do."""

    targets = ("aiokafka.producer.producer.AIOKafkaProducer",)
    metrics = pick(
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "uno.messaging.client.buffered",
        "messaging.client.connection.up",
        "uno.resource.errors",
    )
    headline = (
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "uno.messaging.client.buffered",
    )
    thresholds = (
        _AIOKafka.connected,
        ("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),
    )

    def bound_loop(self, target: Any) -> Any:
        return getattr(target, "_loop", None)

    def install(self) -> list[Callable[[], None]]:
        producer = sys.modules["aiokafka.producer.producer"].AIOKafkaProducer
        return [install(producer, "start", _start), install(producer, "send", _send)]

    def identify(self, target: Any) -> Identity:
        hosts = target.client.hosts
        return Identity("kafka", f"{hosts[0][0]}:{hosts[0][1]}" if hosts else None)

    def is_up(self, target: Any) -> bool:
        return any(connection.connected() for connection in list(target.client._conns.values()))

    def collect_metrics(self, resource: Resource) -> None:
        target, update = resource.target, self.update_metric
        stat = stat_of(target)
        update("messaging.client.connection.up", self.is_up(target))
        update("messaging.client.sent.messages", stat.outcome("sent"))
        update("messaging.client.operation.duration", stat.duration)
        update("uno.messaging.client.buffered", stat.active, {"direction": "out"})
        update("uno.resource.errors", stat.errors)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        return {
            "connected": self.is_up(target),
            "messages_sent": stat.outcome("sent").value,
            "buffered_out": stat.active,
            "errors": stat.errors.value,
        }


# -- hooks -----------------------------------------------------------------------------------------------


def _start(original: Any) -> Any:
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        announce(self)
        started = perf_counter()
        try:
            result = await original(self, *args, **kwargs)
        except Exception as error:
            stat_of(self).failed(error)
            raise
        stat_of(self).connects.observe(perf_counter() - started)
        stat_of(self).last_ok = monotonic()
        return result

    return start


def _taken(stat: Stat, count: int) -> None:
    if count:
        stat.outcome("consumed").value += count
        stat.last_ok = monotonic()


def _getone(original: Any) -> Any:
    async def getone(self: Any, *args: Any, **kwargs: Any) -> Any:
        message = await original(self, *args, **kwargs)
        _taken(stat_of(self), 1)
        return message

    return getone


def _getmany(original: Any) -> Any:
    async def getmany(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = await original(self, *args, **kwargs)
        _taken(stat_of(self), sum(map(len, found.values())))
        return found

    return getmany


def _anext(original: Any) -> Any:
    """``async for``: the time from one message to the asking for the next is the time of work."""

    async def __anext__(self: Any) -> Any:
        stat = stat_of(self)
        hold = stat.holds.pop(id(self), None)
        if hold is not None:
            stat.process.observe(monotonic() - hold.since)
        message = await original(self)
        stat.hold(id(self), None, f"consumer of {message.topic}")
        return message

    return __anext__


def _send(original: Any) -> Any:
    """The time until the broker has the message."""

    async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = stat_of(self)
        started = perf_counter()
        try:
            future = await original(self, *args, **kwargs)
        except Exception as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.active += 1

        def done(future: Any) -> None:
            try:
                stat.active -= 1
                error = None if future.cancelled() else future.exception()
                stat.done(perf_counter() - started, error)
                if error is None and not future.cancelled():
                    stat.outcome("sent").value += 1
            except Exception as failure:  # noqa: BLE001 - a hook never fails the call
                failures("aiokafka.send", failure)

        future.add_done_callback(done)
        return future

    return send
