"""How is Kafka watched through confluent-kafka? By hooks on its C classes, which take neither attributes nor weak
references: a Client of ours stands for each of their instances.

Everything is read inside the application's own calls of poll(), consume(), produce() and flush(), on the thread that
makes them. From another thread it would not be safe: close() frees the client beneath while it lets others run.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from itertools import compress
from time import monotonic
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import Stat, announce, caller, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

MAX_TOPICS, MAX_PARTITIONS = 100, 2_000
MAX_CLIENTS = 1_000
#: How often a consumer is read in the application's calls, and how long what was read is shown.
READ_SECONDS, STALE_SECONDS = 0.5, 10.0
#: Whether an idle client still lives is looked up in the garbage collector's objects: 0.1 % of one thread at most.
LOOK_SECONDS, LOOK_SHARE = 10.0, 1_000
PARTITION_EOF = -191
_TOPIC, _GROUP = "messaging.destination.name", "messaging.consumer.group.name"
_WRAPPED = {"AIOConsumer": "_consumer", "AIOProducer": "_producer"}


class Client:
    """Stands for one consumer or producer. It is known by its address alone, so that nothing of ours keeps it alive."""

    def __init__(self, of: Any) -> None:
        self.number = id(of)
        #: when the application last called it, and whether it is inside such a call
        self.seen = self.read_at = monotonic()
        self.inside = 0
        #: a consumer's lag by topic, None while a partition's is unknown
        self.lags: dict[str, int | None] | None = None
        #: a producer's len(), once some of its messages are not reported to us; it counts events as well
        self.queued: int | None = None
        self.reports_all = True
        #: whether a producer has a callback of its own for messages that are given none
        self.has_callbacks = False
        self.read_due = 0.0

    def is_fresh(self) -> bool:
        """Whether what was read may still be shown."""
        return bool(self.inside) or monotonic() - self.read_at < STALE_SECONDS


class ConsumerClient(Client):
    """Stands for a Consumer."""


class ProducerClient(Client):
    """Stands for a Producer."""


#: By id() of the C object. A new one at the address of one that just went continues its numbers.
_CLIENTS: dict[int, Client] = {}
_looked_at = _look_after = 0.0


def _client(of: Any) -> Client:
    client = _CLIENTS.get(id(of))
    if client is None:
        native = {base.__name__ for base in type(of).__mro__ if base.__module__ == "cimpl"}
        client = ConsumerClient(of) if "Consumer" in native else ProducerClient(of)
        if len(_CLIENTS) < MAX_CLIENTS:
            client = _CLIENTS.setdefault(id(of), client)
            own = {type(of), getattr(of, "__dict__", None).__class__}
            client.has_callbacks = any(type(r) not in own and callable(r) for r in gc.get_referents(of)
                                       if not isinstance(r, type))  # fmt: skip
            announce(client)
    return client


def _forget_the_dead() -> None:
    """Drop the Clients whose C object is no more."""
    global _look_after
    now = monotonic()
    if now < _look_after or gc.get_freeze_count():  # frozen objects are in no list
        return
    idle = [
        client for client in list(_CLIENTS.values()) if now - client.seen > LOOK_SECONDS and not client.inside
    ]
    if idle:
        objects = gc.get_objects()
        native = {cls for cls in set(map(type, objects)) if any(b.__module__ == "cimpl" for b in cls.__mro__)}
        living = set(map(id, compress(objects, map(native.__contains__, map(type, objects)))))
        del objects
        for client in idle:
            if client.number not in living:
                _CLIENTS.pop(client.number, None)
    _look_after = now + max(LOOK_SECONDS, LOOK_SHARE * (monotonic() - now))


class _Confluent(ResourceTypeMonitor):
    """What consumers and producers have in common."""

    resource_type = "message_broker"
    library = "confluent_kafka"
    tested = ">=2.3,<3"
    blocking = False

    def stand_in(self, target: Any) -> Any:
        if isinstance(target, Client):
            return target
        inner = getattr(target, "__dict__", {}).get(_WRAPPED.get(type(target).__name__, ""))
        return _client(target if inner is None else inner)

    def covers(self, target: Any) -> tuple[object, ...]:
        return () if isinstance(target, Client) else (self.stand_in(target),)

    def identify(self, target: Any) -> Identity:
        return Identity("kafka")  # the servers are known to the C object alone

    def stat(self, target: Any) -> Stat | None:
        return super().stat(self.stand_in(target))

    def attach(self, target: Any) -> None:
        stat_of(self.stand_in(target))

    def ready(self) -> bool:
        return hasattr(sys.modules.get("confluent_kafka.cimpl"), "Producer")

    def collect_metrics(self, resource: Resource) -> None:
        client = self.stand_in(resource.target)
        self.collect(client, stat_of(client))
        _forget_the_dead()

    def collect(self, client: Client, stat: Stat) -> None:
        """Give the numbers of one client."""
        raise NotImplementedError

    def ping(self, target: Any) -> bool | None:
        """From what happened: the broker answered lately, or nothing can be told."""
        stat = stat_of(self.stand_in(target))
        return True if stat.last_ok and monotonic() - stat.last_ok < STALE_SECONDS else None

    def explain(self, target: Any, metric: str) -> str:
        stat = stat_of(self.stand_in(target))
        return "; ".join(filter(None, [describe_holds(stat, "message"), describe_error(stat)]))


class ConfluentConsumer(_Confluent):
    """A confluent-kafka Consumer, also inside a DeserializingConsumer or AIOConsumer: messages taken, lag by topic.

    A confluent-kafka client is read in the application's own calls, a consumer twice a second at most, from its memory;
    10 s after the last call it is unknown. Its classes are C: where it leads to, its group and whether it is
    connected cannot be told. That it was dropped while it was idle is noticed after ten seconds, in a
    large process after minutes.
    """

    targets = (
        "cimpl.Consumer",
        f"{__name__}.ConsumerClient",
        "confluent_kafka.aio._AIOConsumer.AIOConsumer",
    )
    metrics = pick(
        "messaging.client.consumed.messages",
        "messaging.process.duration",
        "uno.messaging.consumer.lag",
        "uno.resource.errors",
    )
    headline = (
        "uno.messaging.consumer.lag",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    )
    thresholds = (("uno.messaging.consumer.lag", Threshold(1_000, 10_000, "Consumers fall behind", for_=10)),)

    def install(self) -> list[Callable[[], None]]:
        consumer = sys.modules["confluent_kafka.cimpl"].Consumer
        hooks = [("poll", _read), ("consume", _read), ("close", _close)]
        return [install(consumer, name, wrap) for name, wrap in hooks]

    def collect(self, client: Client, stat: Stat) -> None:
        update = self.update_metric
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)
        fresh = client.is_fresh()
        for topic, lag in (client.lags or {}).items():
            update("uno.messaging.consumer.lag", lag if fresh else None, {_TOPIC: topic, _GROUP: ""})

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        client = self.stand_in(target)
        stat = stat_of(client)
        lags = list((client.lags or {}).values()) if client.is_fresh() else []
        return {
            "messages_consumed": stat.outcome("consumed").value,
            "lag": None if not lags or None in lags else sum(filter(None, lags)),
            "errors": stat.errors.value,
        }


class ConfluentProducer(_Confluent):
    """A confluent-kafka Producer, also inside a SerializingProducer or AIOProducer.

    Its messages count as published once the broker has them, and the time until then is known. Where the producer was
    given a callback for all messages (``on_delivery`` in its configuration), they count once they are queued.
    """

    targets = (
        "cimpl.Producer",
        f"{__name__}.ProducerClient",
        "confluent_kafka.aio.producer._AIOProducer.AIOProducer",
    )
    metrics = pick(
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "uno.messaging.client.buffered",
        "uno.resource.errors",
    )
    headline = (
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "uno.messaging.client.buffered",
    )
    thresholds = (("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),)

    def install(self) -> list[Callable[[], None]]:
        producer = sys.modules["confluent_kafka.cimpl"].Producer
        hooks = [
            ("produce", _produce),
            ("produce_batch", _produce_batch),
            ("poll", _served),
            ("flush", _served),
            ("close", _close),
        ]
        return [install(producer, name, wrap) for name, wrap in hooks if name in vars(producer)]

    def collect(self, client: Client, stat: Stat) -> None:
        update = self.update_metric
        update("messaging.client.sent.messages", stat.outcome("sent"))
        update("messaging.client.operation.duration", stat.duration)
        update("uno.messaging.client.buffered", _queued(client), {"direction": "out"})
        update("uno.resource.errors", stat.errors)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        client = self.stand_in(target)
        stat = stat_of(client)
        return {
            "messages_sent": stat.outcome("sent").value,
            "buffered_out": _queued(client),
            "errors": stat.errors.value,
        }


def _queued(client: Client) -> int | None:
    """Messages that the broker has not got yet. Counted where all are reported; else read, and an empty queue stays
    empty until the next call, while another one drains by itself."""
    if client.reports_all:
        return stat_of(client).active
    return client.queued if client.queued == 0 or client.is_fresh() else None


# -- hooks -----------------------------------------------------------------------------------------------


def _read_lags(client: Client, consumer: Any) -> None:
    """Messages not taken yet, by topic; None while one of its partitions is not known. Asks nobody."""
    client.read_due = client.seen + READ_SECONDS
    try:
        found: dict[str, int | None] = {}
        partitions = consumer.assignment()[:MAX_PARTITIONS]
        for at in consumer.position(partitions) if partitions else ():
            if at.topic not in found and len(found) >= MAX_TOPICS:
                continue
            before = found.get(at.topic, 0)
            high = consumer.get_watermark_offsets(at, cached=True)[1]
            known = before is not None and at.offset >= 0 and high >= 0
            found[at.topic] = before + max(0, high - at.offset) if known else None
        client.lags, client.read_at = found, client.seen
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        if type(error).__name__ not in ("KafkaException", "RuntimeError"):  # closed, or not assigned yet
            failures("confluent_kafka.lag", error)


def _read(original: Any) -> Any:
    """``poll`` returns a message or None, ``consume`` a list of messages."""

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = _client(self)
        stat = stat_of(client)
        _worked(stat, client)
        client.inside += 1
        try:
            found = original(self, *args, **kwargs)
        except Exception as error:
            stat.failed(error)
            raise
        finally:
            client.inside -= 1
            client.seen = monotonic()
        if found is not None:
            _taken(stat, client, found if isinstance(found, list) else [found])
        if client.seen >= client.read_due:
            _read_lags(client, self)
        return found

    return read


def _worked(stat: Stat, client: Client) -> None:
    """The time from one message to the asking for the next is the time of work."""
    hold = stat.holds.pop(client.number, None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def _taken(stat: Stat, client: Client, messages: list[Any]) -> None:
    try:
        good = None
        for message in messages:
            error = message.error()
            if error is None:
                good = message
                stat.outcome("consumed").value += 1
            elif error.code() != PARTITION_EOF:
                _refused(stat, error)
        if good is not None:
            stat.last_ok = client.seen
            stat.hold(client.number, None, f"consumer of {good.topic()}")
    except Exception as error:  # noqa: BLE001
        failures("confluent_kafka.poll", error)


def _refused(stat: Stat, error: Any) -> None:
    stat.errors.value += 1
    stat.last_error, stat.last_error_kind = monotonic(), error.name()


def _reports(stat: Stat, callback: Any = None) -> Callable[[Any, Any], Any]:
    """A delivery callback that counts, and calls the application's. It knows the Stat alone: messages that are lost
    with their producer never let go of it."""

    def delivered(error: Any, message: Any) -> Any:
        try:
            stat.active -= 1
            if error is not None:
                _refused(stat, error)
            else:
                stat.outcome("sent").value += 1
                stat.last_ok = monotonic()
                took = message.latency()
                if took is not None and took >= 0:
                    stat.duration.observe(took)
        except Exception as failure:  # noqa: BLE001
            failures("confluent_kafka.on_delivery", failure)
        return None if callback is None else callback(error, message)

    return delivered


def _produce(original: Any) -> Any:
    def produce(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = _client(self)
        stat = stat_of(client)
        told = False
        # produce(topic, value, key, partition, callback, on_delivery, ...): the two are the same
        if len(args) < 5:
            name = "callback" if kwargs.get("callback") is not None else "on_delivery"
            own = kwargs.get(name)
            if own is not None:
                kwargs[name] = _reports(stat, own)
                told = True
            elif not client.has_callbacks:
                kwargs["on_delivery"] = stat.extra.get("reports") or stat.extra.setdefault(
                    "reports", _reports(stat)
                )
                told = True
        client.reports_all = client.reports_all and told
        stat.active += told
        try:
            result = original(self, *args, **kwargs)
        except Exception as error:
            stat.active -= told
            stat.failed(error)
            raise
        if not told:
            stat.outcome("sent").value += 1
        stat.called(caller()).calls.value += 1
        _measured(client, self)
        return result

    return produce


def _produce_batch(original: Any) -> Any:
    def produce_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = _client(self)
        stat = stat_of(client)
        try:
            count = original(self, *args, **kwargs)
        except Exception as error:
            stat.failed(error)
            raise
        client.reports_all = False
        stat.outcome("sent").value += count
        stat.called(caller()).calls.value += count
        _measured(client, self)
        return count

    return produce_batch


def _served(original: Any) -> Any:
    def served(self: Any, *args: Any, **kwargs: Any) -> Any:
        client = _client(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _measured(client, self)

    return served


def _measured(client: Client, producer: Any) -> None:
    client.seen = client.read_at = monotonic()
    if not client.reports_all:
        client.queued = len(producer)


def _close(original: Any) -> Any:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        _CLIENTS.pop(id(self), None)
        return original(self, *args, **kwargs)

    return close
