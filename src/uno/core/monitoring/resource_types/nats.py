"""How is NATS watched, core and JetStream? Through the application's own nats-py clients.

What subscriptions hold is read from memory; the lag of JetStream consumers is asked for on the client's own loop and
connection.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    OWN,
    CallScope,
    Stat,
    announce,
    failures,
    install,
    scope,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._probe import Asking
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource

MAX_CONSUMERS = 100
ASK_SECONDS = 5.0
_STREAM, _GROUP = "messaging.destination.name", "messaging.consumer.group.name"
_PULLED = "_uno_pulled"

Lags = dict[tuple[str, str], tuple[int | None, int | None]]


class NATSClient(Asking):
    """A nats-py client: messages sent and taken, what it buffers, and the lag of the JetStream consumers it uses.

    With NATS, lag is the consumer's ``num_pending`` and unacknowledged its ``num_ack_pending``, asked for every 2 s on
    the client's own connection and loop. Publish time is known for requests and for JetStream, whose broker answers.
    Messages that a slow subscriber made the client drop are errors.
    """

    resource_type = "message_broker"
    targets = ("nats.aio.client.Client",)
    library = "nats"
    tested = ">=2.16,<3"
    blocking = False
    metrics = pick(
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
        "uno.messaging.consumer.lag",
        "uno.messaging.consumer.pending",
        "uno.messaging.client.buffered",
        "messaging.client.connection.up",
        "uno.resource.errors",
    )
    headline = (
        "uno.messaging.consumer.lag",
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    )
    thresholds = (
        (
            "messaging.client.connection.up",
            Threshold(None, 0.5, "Not connected to the broker", direction="below", for_=1),
        ),
        ("uno.messaging.consumer.lag", Threshold(1_000, 10_000, "Consumers fall behind", for_=10)),
        ("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),
    )

    def identify(self, target: Any) -> Identity:
        server = target._current_server or next(iter(target._server_pool), None)
        return Identity(
            "nats", None if server is None else f"{server.uri.hostname}:{server.uri.port or 4222}"
        )

    def attach(self, target: Any) -> None:
        stat_of(target)

    def ready(self) -> bool:
        return all(
            name in sys.modules for name in ("nats.aio.client", "nats.aio.subscription", "nats.js.client")
        )

    def bound_loop(self, target: Any) -> Any:
        task = target._reading_task
        loop = None if task is None else task.get_loop()
        return None if loop is None or loop.is_closed() else loop

    def install(self) -> list[Callable[[], None]]:
        modules = sys.modules
        client, subscription = modules["nats.aio.client"].Client, modules["nats.aio.subscription"]
        context = modules["nats.js.client"].JetStreamContext
        hooks = [
            (client, "connect", _connect),
            (client, "publish", _publish),
            (client, "request", _request),
            (client, "subscribe", _subscribe),
            (subscription.Subscription, "next_msg", _next_msg),
            (subscription._SubscriptionMessageIterator, "__anext__", _anext),
            (context.PullSubscription, "__init__", _learn),
            (context.PullSubscription, "fetch", _fetch),
            (context.PushSubscription, "__init__", _learn),
            (modules["nats.errors"].SlowConsumerError, "__init__", _dropped),
        ]
        return [install(cls, name, wrap) for cls, name, wrap in hooks if name in vars(cls)]

    def is_up(self, target: Any) -> bool:
        return bool(target.is_connected)

    def collect_metrics(self, resource: Resource) -> None:
        super().collect_metrics(resource)
        target, update = resource.target, self.update_metric
        inside = [sub._pending_queue.qsize() for sub in list(target._subs.values())]
        update("uno.messaging.client.buffered", sum(inside), {"direction": "in"})
        update("uno.messaging.client.buffered", len(target._pending), {"direction": "out"})
        consumers = stat_of(target).extra.get("consumers", {})
        up = self.is_up(target)
        found: Lags = (self.answer(target) if up else None) or {}
        for key in list(consumers):
            labels = {_STREAM: key[0], _GROUP: key[1]}
            lag, pending = found.get(key, (None, None))
            update("uno.messaging.consumer.lag", lag, labels, at_server=True)
            update("uno.messaging.consumer.pending", pending, labels, at_server=True)
        if up and consumers:
            self.probe(target).on_loop(self.bound_loop(target))

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        lags = [lag for lag, _ in (self.answer(target) or {}).values() if lag is not None]
        return {
            "connected": self.is_up(target),
            "messages_sent": stat.outcome("sent").value,
            "messages_consumed": stat.outcome("consumed").value,
            "lag": sum(lags) if lags else None,
            "errors": stat.errors.value,
        }

    async def ping(self, target: Any) -> bool | None:
        """PING and PONG on the client's own loop; one at a time, for nats-py gives up a server that owes some."""
        if not self.is_up(target):
            raise ConnectionError("not connected")
        if self.bound_loop(target) is not asyncio.get_running_loop():
            return None
        extra = stat_of(target).extra
        asked: asyncio.Future[bool] | None = extra.get("ping")
        if asked is None or asked.done() or asked not in target._pongs:  # lost with an earlier connection
            asked = extra["ping"] = asyncio.get_running_loop().create_future()
            await target._send_ping(asked)
        await asyncio.wait([asked])
        return asked.done() and not asked.cancelled()

    def suspect(self, target: Any) -> bool:
        return self.probe(target).waiting() > 1

    def explain_more(self, target: Any) -> list[str]:
        found: Lags = self.answer(target) or {}
        worst = sorted(((lag, key) for key, (lag, _) in found.items() if lag), reverse=True)[:3]
        return [f"{name} of {stream} is {lag} behind" for lag, (stream, name) in worst]

    async def question(self, target: Any) -> Lags:
        consumers: dict[tuple[str, str], Any] = stat_of(target).extra.get("consumers", {})
        found: Lags = {}
        for key, context in list(consumers.items()):
            try:
                info = await context._jsm.consumer_info(*key, timeout=ASK_SECONDS)
                found[key] = info.num_pending, info.num_ack_pending
            except Exception as error:
                if type(error).__name__ != "NotFoundError":
                    if "permission" in str(target.last_error).lower():  # do not ask for what is not allowed
                        consumers.pop(key, None)
                    raise
                consumers.pop(key, None)  # deleted
        return found


# -- hooks -----------------------------------------------------------------------------------------------


def _stat_behind(client: Any) -> Stat | None:
    """The Stat of a client; None for the monitor's own calls."""
    try:
        current = scope.get()
        return None if current is not None and current._name == OWN else stat_of(client)
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("nats", error)
        return None


def _connect(original: Any) -> Any:
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        result = await original(self, *args, **kwargs)
        stat_of(self).connects.observe(perf_counter() - started)
        announce(self)
        return result

    return connect


def _publish(original: Any) -> Any:
    """Writes to a buffer, so its time says nothing."""

    async def publish(self: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
        stat = _stat_behind(self)
        try:
            result = await original(self, subject, *args, **kwargs)
        except Exception as error:
            if stat is not None:
                stat.failed(error)
            raise
        if stat is not None and not _internal(subject):
            stat.outcome("sent").value += 1
        return result

    return publish


def _internal(subject: object) -> bool:
    """Whether a message is JetStream's own: an acknowledgement, or a call of its API."""
    return isinstance(subject, str) and subject.startswith("$JS.")


def _request(original: Any) -> Any:
    async def request(self: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
        stat = None if _internal(subject) else _stat_behind(self)
        if stat is None:
            return await original(self, subject, *args, **kwargs)
        started = perf_counter()
        try:
            result = await original(self, subject, *args, **kwargs)
        except Exception as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        return result

    return request


def _subscribe(original: Any) -> Any:
    signature = inspect.signature(original)

    async def subscribe(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(self, *args, **kwargs)
            callback, subject = given.arguments.get("cb"), given.arguments.get("subject")
            owner = type(getattr(callback, "__self__", None)).__module__
            stat = _stat_behind(self)
            if stat is not None and inspect.iscoroutinefunction(callback) and not owner.startswith("nats."):
                given.arguments["cb"] = _timed(callback, stat, f"subscriber of {subject}")
                args, kwargs = given.args[1:], given.kwargs
        except Exception as error:  # noqa: BLE001
            failures("nats.subscribe", error)
        return await original(self, *args, **kwargs)

    return subscribe


def _timed(callback: Any, stat: Stat, by: str) -> Any:
    """A subscriber's callback that tells how long it works on a message."""
    code = getattr(callback, "__code__", None)
    site = None if code is None or code.co_filename.find("/nats/") > 0 else (code, 0)
    named = CallScope(by)

    async def on_message(message: Any) -> None:
        stat.outcome("consumed").value += 1
        key = id(message)
        stat.hold(key, site, by)
        scope.set(named)  # the subscription has a task, and so a context, of its own
        try:
            await callback(message)
        except Exception as error:
            stat.failed(error)
            raise
        finally:
            _worked(stat, key)

    return on_message


def _worked(stat: Stat, key: int) -> None:
    hold = stat.holds.pop(key, None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def _next_msg(original: Any) -> Any:
    async def next_msg(self: Any, *args: Any, **kwargs: Any) -> Any:
        message = await original(self, *args, **kwargs)
        stat = _stat_behind(self._conn)
        if stat is not None and _PULLED not in self.__dict__:
            stat.outcome("consumed").value += 1
        return message

    return next_msg


def _anext(original: Any) -> Any:
    """``async for``: the time from one message to the asking for the next is the time of work."""

    async def __anext__(self: Any) -> Any:
        stat = _stat_behind(self._sub._conn)
        if stat is None:
            return await original(self)
        _worked(stat, id(self))
        message = await original(self)
        stat.outcome("consumed").value += 1
        stat.hold(id(self), None, f"subscriber of {self._sub.subject}")
        return message

    return __anext__


def _fetch(original: Any) -> Any:
    async def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        messages = await original(self, *args, **kwargs)
        stat = _stat_behind(self._nc)
        if stat is not None:
            stat.outcome("consumed").value += len(messages)
        return messages

    return fetch


def _learn(original: Any) -> Any:
    """Which consumers the application uses."""

    def __init__(self: Any, js: Any, sub: Any, stream: Any, consumer: Any, *args: Any, **kwargs: Any) -> None:
        original(self, js, sub, stream, consumer, *args, **kwargs)
        try:
            if hasattr(self, "fetch"):
                sub.__dict__[_PULLED] = True
            consumers = stat_of(js._nc).extra.setdefault("consumers", {})
            if isinstance(stream, str) and isinstance(consumer, str) and len(consumers) < MAX_CONSUMERS:
                consumers[stream, consumer] = js
        except Exception as error:  # noqa: BLE001
            failures("nats.js", error)

    return __init__


def _dropped(original: Any) -> Any:
    """nats-py makes this error for each message that a slow subscriber left no room for."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            stat = _stat_behind(self.sub._conn)
            if stat is not None:
                stat.failed(self)
        except Exception as error:  # noqa: BLE001
            failures("nats.SlowConsumerError", error)

    return __init__
