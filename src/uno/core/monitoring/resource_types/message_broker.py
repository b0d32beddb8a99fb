"""How is RabbitMQ watched? Through the application's own aio-pika connections."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.causes import describe_error, describe_holds, describe_slow
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    CallScope,
    Stat,
    announce,
    failures,
    install,
    scope,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

if TYPE_CHECKING:
    import asyncio

MAX_QUEUES = 100
PROBE_SECONDS = 2.0
STALE_SECONDS = 10.0
#: A question that has no answer for so long calls for a ping.
DOUBT = 0.25
_NAME = "messaging.destination.name"


class RabbitMQ(ResourceTypeMonitor):
    """Messages published and consumed, their time, the depth and consumers of the queues that were declared.

    Depths are asked for on the application's connection through a channel of our own, on its loop, every 2 s.
    Nothing waits for the answer: a broker that hangs, or a blocked loop, costs nothing but these numbers.
    """

    resource_type = "message_broker"
    targets = ("aio_pika.connection.Connection",)
    library = "aio_pika"
    tested = ">=9.4,<11"
    blocking = False
    metrics = pick(
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
        "messaging.destination.depth",
        "messaging.consumer.count",
        "messaging.client.connection.up",
        "messaging.channel.count",
        "uno.resource.errors",
    )
    headline = (
        "messaging.destination.depth",
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    )
    thresholds = (
        (
            "messaging.client.connection.up",
            Threshold(None, 0.5, "Not connected to the broker", direction="below", for_=1),
        ),
        ("messaging.destination.depth", Threshold(1_000, 10_000, "Messages pile up in the queue", for_=10)),
        ("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),
    )

    def identify(self, target: Any) -> Identity:
        url = target.url
        vhost = url.path.removeprefix("/")  # "" and "/" both are the virtual host "/"
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        return Identity("rabbitmq", f"{url.host}:{port}/{'' if vhost == '/' else vhost}")

    def attach(self, target: Any) -> None:
        stat_of(target)

    def detach(self, target: Any) -> None:
        probe = stat_of(target).extra.pop("probe", None)
        if probe is not None:
            _soon(target.loop, probe.close)

    def bound_loop(self, target: Any) -> Any:
        return target.loop

    def install(self) -> list[Callable[[], None]]:
        modules = sys.modules
        queue = modules["aio_pika.queue"]
        undo = [
            install(modules["aio_pika.connection"].Connection, "connect", _connect),
            install(modules["aio_pika.exchange"].Exchange, "publish", _publish),
            install(queue.Queue, "declare", _declare),
            install(queue.Queue, "consume", _consume),
            install(queue.Queue, "get", _get),
            install(queue.QueueIterator, "__anext__", _anext),
        ]
        robust = getattr(modules.get("aio_pika.robust_queue"), "RobustQueueIterator", None)
        if robust is not None and "__anext__" in vars(robust):  # since 9.6
            undo.append(install(robust, "__anext__", _anext))
        return undo

    def collect_metrics(self, resource: Resource) -> None:
        connection = resource.target
        stat, probe = stat_of(connection), _probe(connection)
        update = self.update_metric
        up = _is_up(connection)
        update("messaging.client.connection.up", up)
        update("messaging.channel.count", _channels(connection, probe) if up else 0)
        update("messaging.client.sent.messages", stat.outcome("sent"))
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.client.operation.duration", stat.duration)
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)
        fresh = up and probe.is_fresh()
        for name in list(stat.extra.get("queues", ())):
            ready, consumers = probe.found.get(name, (None, None)) if fresh else (None, None)
            update("messaging.destination.depth", ready, {_NAME: name})
            update("messaging.consumer.count", consumers, {_NAME: name})
        if up:
            probe.start()

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat, probe = stat_of(target), _probe(target)
        fresh = _is_up(target) and probe.is_fresh()
        depths = [ready for ready, _ in probe.found.values() if ready is not None]
        return {
            "connected": _is_up(target),
            "messages_sent": stat.outcome("sent").value,
            "messages_consumed": stat.outcome("consumed").value,
            "queue_depth": sum(depths) if fresh and depths else None,
            "errors": stat.errors.value,
        }

    async def ping(self, target: Any) -> bool:
        """One round trip on a channel of ours; ConnectionError while there is no connection."""
        if not _is_up(target):
            raise ConnectionError("not connected")
        return await _probe(target).answers()

    def suspect(self, target: Any) -> bool:
        """Whether the connection is lost, or a question has no answer yet."""
        return not _is_up(target) or _probe(target).waiting() > DOUBT

    def explain(self, target: Any, metric: str) -> str:
        stat, probe = stat_of(target), _probe(target)
        parts = []
        if not _is_up(target):
            parts.append("closed by the application" if target.is_closed else "the connection is lost")
        elif probe.waiting() > 1:
            parts.append(f"the broker has not answered for {probe.waiting():.1f} s")
        deepest = sorted(((n, name) for name, (n, _) in probe.found.items() if n), reverse=True)[:3]
        if probe.is_fresh():
            parts += [f"{n} ready in {name} with {probe.found[name][1]} consumers" for n, name in deepest]
        parts += [describe_holds(stat, "message"), describe_slow(stat), describe_error(stat)]
        return "; ".join(filter(None, parts))


class _Probe:
    """Asks for the depth of queues on a channel of its own; it and its task live on the owner's loop."""

    def __init__(self, connection: Any) -> None:
        import weakref

        self.found: dict[str, tuple[int | None, int | None]] = {}
        self.channel: Any = None
        self._connection = weakref.ref(connection)
        self._task: asyncio.Task[None] | None = None
        self._asked = self._answered = 0.0
        self._went_well = False
        self._closed = False

    def is_fresh(self) -> bool:
        """Whether ``found`` is young enough to be shown."""
        return monotonic() - self._answered < STALE_SECONDS

    def waiting(self) -> float:
        """For how many seconds the present question has been unanswered."""
        return monotonic() - self._asked if self._asked > self._answered else 0.0

    def start(self) -> None:
        """Ask, from any thread, when it is time and no question is open."""
        connection = self._connection()
        if connection is not None and monotonic() - max(self._answered, self._asked) >= PROBE_SECONDS:
            _soon(connection.loop, self._begin)

    def close(self) -> None:
        """End it; runs on the loop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        channel, self.channel = self.channel, None
        if channel is not None and not channel.is_closed:
            self._task = channel.connection.loop.create_task(_farewell(channel))

    def _begin(self) -> None:
        connection = self._connection()
        if connection is None or self._closed or (self._task is not None and not self._task.done()):
            return
        self._asked = monotonic()
        self._task = connection.loop.create_task(self._ask(), name="uno-probe")

    async def _ask(self) -> None:
        connection = self._connection()
        if connection is None:
            return
        names = list(stat_of(connection).extra.get("queues", ()))
        found: dict[str, tuple[int | None, int | None]] = {}
        self._went_well = False
        try:
            for name in names:
                found[name] = await self._depth(connection, name)
            if not names:
                await self._opened(connection)
        except Exception:  # noqa: BLE001 - the connection is lost, or busy with getting lost
            self.channel = None
            return
        self.found, self._answered, self._went_well = found, monotonic(), True

    async def _depth(self, connection: Any, name: str) -> tuple[int | None, int | None]:
        channel = await self._opened(connection)
        # The channel beneath aio-pika: a robust channel answers from a cache.
        try:
            answer = await channel.queue_declare(name, passive=True)
        except Exception as error:
            self.channel = None  # the broker closes the channel after each refusal
            if channel.connection.is_closed:
                raise
            if type(error).__name__ == "ChannelNotFoundEntity":  # deleted; a new declaration brings it back
                stat_of(connection).extra["queues"].pop(name, None)
            return None, None
        return answer.message_count, answer.consumer_count

    async def _opened(self, connection: Any) -> Any:
        beneath = connection.transport.connection
        channel = self.channel
        if channel is None or channel.is_closed or channel.connection is not beneath:
            channel = self.channel = await beneath.channel(publisher_confirms=False)
        return channel

    async def answers(self) -> bool:
        """Wait for the open question, or make one round trip. Whoever gives up waiting leaves the question alone."""
        import asyncio

        if self._task is None or self._task.done():
            connection = self._connection()
            if connection is None or self._closed:
                return False
            self._task = connection.loop.create_task(self._round_trip(connection), name="uno-probe")
        task = self._task
        await asyncio.wait([task])
        return not task.cancelled() and self._went_well

    async def _round_trip(self, connection: Any) -> None:
        self._went_well = False
        try:
            channel = await self._opened(connection)
            await channel.basic_qos(prefetch_count=0)  # of our own channel, on which nothing is consumed
        except Exception:  # noqa: BLE001 - the connection is lost, or busy with getting lost
            self.channel = None
            return
        self._went_well = True


async def _farewell(channel: Any) -> None:
    with suppress(Exception):
        await channel.close()


def _probe(connection: Any) -> _Probe:
    extra = stat_of(connection).extra
    probe: _Probe | None = extra.get("probe")
    return probe if probe is not None else extra.setdefault("probe", _Probe(connection))


def _soon(loop: Any, callback: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(callback)


def _is_up(connection: Any) -> bool:
    transport = connection.transport
    return transport is not None and not transport.connection.is_closed and not connection.is_closed


def _channels(connection: Any, probe: _Probe) -> int | None:
    channels = getattr(getattr(connection.transport, "connection", None), "channels", None)
    if channels is None:
        return None
    ours = probe.channel is not None and not probe.channel.is_closed
    return max(0, len([number for number in list(channels) if number]) - ours)  # 0 is the connection's own


# -- hooks -----------------------------------------------------------------------------------------------


def _stat_behind(channel: Any) -> Stat | None:
    """The Stat of the connection that a channel belongs to."""
    try:
        connection = channel._connection
        known = ATTRIBUTE in connection.__dict__
        stat = stat_of(connection)
        if not known:
            announce(connection)
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("aio_pika", error)
        return None
    return stat


def _connect(original: Any) -> Any:
    """Times each attempt to connect; a robust connection makes them by itself."""

    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = stat_of(self)
        started = perf_counter()
        try:
            result = await original(self, *args, **kwargs)
        except Exception as error:
            stat.failed(error)
            raise
        stat.connects.observe(perf_counter() - started)
        announce(self)
        return result

    return connect


def _publish(original: Any) -> Any:
    async def publish(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = _stat_behind(self.channel)
        if stat is None:
            return await original(self, *args, **kwargs)
        started = perf_counter()
        try:
            result = await original(self, *args, **kwargs)
        except Exception as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        stat.outcome("sent").value += 1
        return result

    return publish


def _declare(original: Any) -> Any:
    """Learns which queues the application uses."""

    async def declare(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        _learn(self)
        return result

    return declare


def _learn(queue: Any) -> None:
    stat = _stat_behind(queue.channel)
    if stat is not None and isinstance(queue.name, str):
        names = stat.extra.setdefault("queues", {})
        if len(names) < MAX_QUEUES:
            names[queue.name] = True


def _get(original: Any) -> Any:
    async def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        message = await original(self, *args, **kwargs)
        _learn(self)
        stat = _stat_behind(self.channel)
        if message is not None and stat is not None:
            stat.outcome("consumed").value += 1
        return message

    return get


def _consume(original: Any) -> Any:
    async def consume(self: Any, callback: Any, *args: Any, **kwargs: Any) -> Any:
        _learn(self)
        stat = _stat_behind(self.channel)
        iterates = hasattr(type(getattr(callback, "__self__", None)), "__anext__")
        if stat is not None and not iterates:
            callback = _timed(callback, stat, f"consumer of {self.name}")
        return await original(self, callback, *args, **kwargs)

    return consume


def _timed(callback: Callable[[Any], Awaitable[Any]], stat: Stat, by: str) -> Callable[[Any], Any]:
    """A consumer's callback that tells how long it works on a message."""
    code = getattr(callback, "__code__", None)

    async def consumer(message: Any) -> Any:
        import inspect

        stat.outcome("consumed").value += 1
        stat.hold(id(message), None if code is None else (code, 0), by)
        scope.set(CallScope(by))  # each message has a task, and so a context, of its own
        try:
            result = callback(message)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            stat.failed(error)
            raise
        finally:
            hold = stat.holds.pop(id(message), None)
            if hold is not None:
                stat.process.observe(monotonic() - hold[2])

    return consumer


def _anext(original: Any) -> Any:
    """``async for``: the time from one message to the asking for the next is the time of work."""

    async def __anext__(self: Any) -> Any:
        stat = _stat_behind(self._amqp_queue.channel)
        if stat is None:
            return await original(self)
        hold = stat.holds.pop(id(self), None)
        if hold is not None:
            stat.process.observe(monotonic() - hold[2])
        message = await original(self)
        stat.outcome("consumed").value += 1
        stat.hold(id(self), None, f"consumer of {self._amqp_queue.name}")
        return message

    return __anext__
