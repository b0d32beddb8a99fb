"""How is Kafka watched through aiokafka and kafka-python? Lag is read from the consumer's own memory: nothing is
asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import Stat, announce, caller, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

MAX_TOPICS = 100
#: The broker answers each fetch of a consumer at once or after half a second, so this long without one is silence.
RECENT_SECONDS = 10.0
_TOPIC, _GROUP = "messaging.destination.name", "messaging.consumer.group.name"


class _Kafka(ResourceTypeMonitor):
    """What consumers and producers of both libraries have in common."""

    resource_type = "message_broker"
    blocking = False
    connected = ("messaging.client.connection.up", Threshold(None, 0.5, "Not connected to the broker",
                                                             direction="below", for_=1))  # fmt: skip

    def attach(self, target: Any) -> None:
        stat_of(target)

    def is_up(self, target: Any) -> bool:
        """Whether it is connected to any broker; read from memory."""
        raise NotImplementedError

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


class _Consumer(_Kafka):
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
        _Kafka.connected,
        ("uno.messaging.consumer.lag", Threshold(1_000, 10_000, "Consumers fall behind", for_=10)),
    )

    def group(self, target: Any) -> str:
        """The consumer's group, "" where it has none."""
        raise NotImplementedError

    def states(self, target: Any) -> list[tuple[Any, Any]]:
        """The partitions that it has, each with what is known of it."""
        raise NotImplementedError

    def collect_metrics(self, resource: Resource) -> None:
        target, update = resource.target, self.update_metric
        stat = stat_of(target)
        update("messaging.client.connection.up", self.is_up(target))
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)
        group = self.group(target)
        for topic, lag in self.lags(target).items():
            update("uno.messaging.consumer.lag", lag, {_TOPIC: topic, _GROUP: group})

    def lags(self, target: Any) -> dict[str, int | None]:
        """Messages not taken yet, by topic; None while one of its partitions is not known."""
        found: dict[str, int | None] = {}
        for partition, state in self.states(target):
            if partition.topic not in found and len(found) >= MAX_TOPICS:
                continue
            before = found.get(partition.topic, 0)
            if state is None or before is None or state.highwater is None or not state.has_valid_position:
                found[partition.topic] = None
            else:
                position = getattr(state.position, "offset", state.position)
                found[partition.topic] = before + max(0, state.highwater - position)
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


class _Producer(_Kafka):
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
        _Kafka.connected,
        ("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),
    )

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


class _AIOKafka(_Kafka):
    library = "aiokafka"
    tested = ">=0.14,<0.15"

    def client(self, target: Any) -> Any:
        """What holds the connections."""
        return target._client

    def identify(self, target: Any) -> Identity:
        hosts = self.client(target).hosts
        return Identity("kafka", f"{hosts[0][0]}:{hosts[0][1]}" if hosts else None)

    def ready(self) -> bool:
        return "aiokafka.consumer.consumer" in sys.modules and "aiokafka.producer.producer" in sys.modules

    def is_up(self, target: Any) -> bool:
        return any(connection.connected() for connection in list(self.client(target)._conns.values()))


class KafkaConsumer(_AIOKafka, _Consumer):
    """An aiokafka consumer: messages taken, and by topic the lag of the partitions that it has.

    Lag is known for a partition once the broker has answered a fetch of it. The tests of Kafka stand on librdkafka's
    mock cluster, which is no real broker.
    """

    targets = ("aiokafka.consumer.consumer.AIOKafkaConsumer",)

    def bound_loop(self, target: Any) -> Any:
        return getattr(target._client, "_loop", None)

    def install(self) -> list[Callable[[], None]]:
        consumer = sys.modules["aiokafka.consumer.consumer"].AIOKafkaConsumer
        hooks = [("start", _start), ("getone", _getone), ("getmany", _getmany), ("__anext__", _anext)]
        return [install(consumer, name, wrap) for name, wrap in hooks]

    def group(self, target: Any) -> str:
        return target._group_id or ""

    def states(self, target: Any) -> list[tuple[Any, Any]]:
        subscription = target._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None:
            return []
        return [(partition, assignment.state_value(partition)) for partition in list(assignment.tps)]


class KafkaProducer(_AIOKafka, _Producer):
    """An aiokafka producer: messages that the broker has, those that wait for it, and for how long they do."""

    targets = ("aiokafka.producer.producer.AIOKafkaProducer",)

    def client(self, target: Any) -> Any:
        return target.client

    def bound_loop(self, target: Any) -> Any:
        return getattr(target, "_loop", None)

    def install(self) -> list[Callable[[], None]]:
        producer = sys.modules["aiokafka.producer.producer"].AIOKafkaProducer
        return [install(producer, "start", _start), install(producer, "send", _send)]


class _KafkaPython(_Kafka):
    library = "kafka"
    tested = ">=2.0,<3.1"

    def identify(self, target: Any) -> Identity:
        servers = target.config["bootstrap_servers"]
        first = servers if isinstance(servers, str) else next(iter(servers), "")
        return Identity("kafka", first.partition(",")[0].rpartition("/")[2] or None)

    def ready(self) -> bool:
        return "kafka.consumer.group" in sys.modules and "kafka.producer.kafka" in sys.modules

    def client(self, target: Any) -> Any:
        """What holds the connections."""
        return target._client

    def is_up(self, target: Any) -> bool:
        client = self.client(target)
        connections = getattr(client, "_manager", client)._conns  # _manager: since 3.0
        found = [connection.connected for connection in list(connections.values())]
        return any(connected() if callable(connected) else connected for connected in found)


class KafkaPythonConsumer(_KafkaPython, _Consumer):
    """A kafka-python consumer, which is read the same way."""

    targets = ("kafka.consumer.group.KafkaConsumer",)

    def install(self) -> list[Callable[[], None]]:
        consumer = sys.modules["kafka.consumer.group"].KafkaConsumer
        hooks = [("__init__", _made), ("poll", _poll), ("__next__", _next)]
        return [install(consumer, name, wrap) for name, wrap in hooks]

    def group(self, target: Any) -> str:
        return target.config["group_id"] or ""

    def states(self, target: Any) -> list[tuple[Any, Any]]:
        return list(target._subscription.assignment.items())


class KafkaPythonProducer(_KafkaPython, _Producer):
    """A kafka-python producer, which is read the same way."""

    targets = ("kafka.producer.kafka.KafkaProducer",)

    def client(self, target: Any) -> Any:
        return target._sender._client

    def install(self) -> list[Callable[[], None]]:
        producer = sys.modules["kafka.producer.kafka"].KafkaProducer
        return [install(producer, "__init__", _made), install(producer, "send", _send_in_thread)]


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


def _made(original: Any) -> Any:
    """kafka-python connects when it is made."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        started = perf_counter()
        original(self, *args, **kwargs)
        stat_of(self).connects.observe(perf_counter() - started)
        announce(self)

    return __init__


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


def _poll(original: Any) -> Any:
    """The time from one batch to the asking for the next is the time of work."""

    def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("update_offsets") is False:  # for the iteration below
            return original(self, *args, **kwargs)
        stat = stat_of(self)
        _worked(stat, id(self))
        try:
            found = original(self, *args, **kwargs)
        except Exception as error:
            stat.failed(error)
            raise
        if found:
            _taken(stat, sum(map(len, found.values())))
            stat.hold(id(self), None, f"consumer of {next(iter(found)).topic}")
        return found

    return poll


def _next(original: Any) -> Any:
    def __next__(self: Any) -> Any:
        stat = stat_of(self)
        _worked(stat, id(self))
        message = original(self)
        _taken(stat, 1)
        stat.hold(id(self), None, f"consumer of {message.topic}")
        return message

    return __next__


def _worked(stat: Stat, key: int) -> None:
    hold = stat.holds.pop(key, None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def _anext(original: Any) -> Any:
    """``async for``: the time from one message to the asking for the next is the time of work."""

    async def __anext__(self: Any) -> Any:
        stat = stat_of(self)
        _worked(stat, id(self))
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


def _send_in_thread(original: Any) -> Any:
    """The time until the broker has the message; its answer comes on the producer's own thread."""

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = stat_of(self)
        started = perf_counter()
        try:
            future = original(self, *args, **kwargs)
        except Exception as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.active += 1
        by = caller()

        def done(answer: Any) -> None:
            try:
                stat.active -= 1
                error = answer if isinstance(answer, Exception) else None
                stat.done(perf_counter() - started, error, by)
                if error is None:
                    stat.outcome("sent").value += 1
            except Exception as failure:  # noqa: BLE001 - a hook never fails the call
                failures("kafka.send", failure)

        try:
            future.add_both(done)
        except Exception as failure:  # noqa: BLE001
            failures("kafka.send", failure)
        return future

    return send
