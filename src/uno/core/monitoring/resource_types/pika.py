"""How is RabbitMQ watched through pika? By the hooks of its blocking connections, and a connection of our own.

A pika connection belongs to one thread, so the depth of queues is asked for on a connection that uno opens with the
same parameters: one for each broker, virtual host and user, and only once the application has named a queue.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any

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
from uno.core.monitoring.resource_types._probe import Asking
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity, Resource

MAX_QUEUES = 100
SOCKET_SECONDS = 2.0
_NAME = "messaging.destination.name"

Depths = dict[str, tuple[int | None, int | None]]


class PikaConnection(Asking):
    """The same through pika's ``BlockingConnection``; its asynchronous connections are not watched.

    Since a pika connection belongs to one thread, depths are asked for on one more connection for each broker and
    user, which uno opens when the application has named a queue.
    """

    resource_type = "message_broker"
    targets = ("pika.adapters.blocking_connection.BlockingConnection",)
    library = "pika"
    tested = ">=1.4,<2"
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
        parameters = target._impl.params
        vhost = parameters.virtual_host
        return Identity(
            "rabbitmq", f"{parameters.host}:{parameters.port}/{'' if vhost == '/' else vhost.lstrip('/')}"
        )

    def attach(self, target: Any) -> None:
        stat_of(target)

    def ready(self) -> bool:
        return hasattr(sys.modules.get("pika.adapters.blocking_connection"), "BlockingChannel")

    def install(self) -> list[Callable[[], None]]:
        module = sys.modules["pika.adapters.blocking_connection"]
        hooks = [
            (module.BlockingConnection, "__init__", _init),
            (module.BlockingChannel, "basic_publish", _publish),
            (module.BlockingChannel, "basic_get", _get),
            (module.BlockingChannel, "basic_consume", _basic_consume),
            (module.BlockingChannel, "consume", _consume),
            (module.BlockingChannel, "queue_declare", _declare),
        ]
        return [install(cls, name, wrap) for cls, name, wrap in hooks]

    def is_up(self, target: Any) -> bool:
        return bool(target.is_open)

    def collect_metrics(self, resource: Resource) -> None:
        super().collect_metrics(resource)
        target = resource.target
        names = list(stat_of(target).extra.get("queues", ()))
        up = self.is_up(target)
        self.update_metric("messaging.channel.count", len(target._impl._channels) if up else 0)
        found: Depths = (self.answer(target) if up else None) or {}
        for name in names:
            ready, consumers = found.get(name, (None, None))
            self.update_metric("messaging.destination.depth", ready, {_NAME: name})
            self.update_metric("messaging.consumer.count", consumers, {_NAME: name})
        if not up:
            stat_of(target).extra.pop("line", None)
        elif names:
            self.probe(target).on_thread()

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        depths = [n for n, _ in (self.answer(target) or {}).values() if n is not None]
        return {
            "connected": self.is_up(target),
            "messages_sent": stat.outcome("sent").value,
            "messages_consumed": stat.outcome("consumed").value,
            "queue_depth": sum(depths) if depths else None,
            "errors": stat.errors.value,
        }

    def ping(self, target: Any) -> bool | None:
        """From what happened: our own connection is answered, or not. ConnectionError while there is none."""
        if not self.is_up(target):
            raise ConnectionError("not connected")
        probe = self.probe(target)
        if probe.waiting() > SOCKET_SECONDS:
            raise TimeoutError("the broker does not answer")
        return True if probe.is_fresh() else None

    def suspect(self, target: Any) -> bool:
        return self.probe(target).waiting() > SOCKET_SECONDS

    def explain_more(self, target: Any) -> list[str]:
        found: Depths = self.answer(target) or {}
        deepest = sorted(((n, name) for name, (n, _) in found.items() if n), reverse=True)[:3]
        return [f"{n} ready in {name} with {found[name][1]} consumers" for n, name in deepest]

    def question(self, target: Any) -> Depths:
        extra = stat_of(target).extra
        names = extra.get("queues", {})
        line = extra.get("line") or extra.setdefault("line", _line(target._impl.params))
        found, gone = line.depths(target._impl.params, list(names))
        for name in gone:
            names.pop(name, None)
        return found  # type: ignore[no-any-return]

    def detach(self, target: Any) -> None:
        super().detach(target)
        stat_of(target).extra.pop("line", None)


class _Line:
    """A connection of our own to one broker, for all connections of the application to it that use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._channel: Any = None
        self._pid = os.getpid()

    def depths(self, parameters: Any, names: list[str]) -> tuple[Depths, list[str]]:
        """Messages ready and consumers by queue, and the queues that are no more."""
        found: Depths = {}
        gone = []
        with self._lock:
            for name in names:
                try:
                    method = self._opened(parameters).queue_declare(name, passive=True).method
                    found[name] = method.message_count, method.consumer_count
                except Exception as error:
                    self._channel = None  # the broker closes the channel after each refusal
                    if type(error).__name__ != "ChannelClosedByBroker":
                        raise
                    found[name] = None, None
                    if error.args and error.args[0] == 404:  # a new declaration brings it back
                        gone.append(name)
        return found, gone

    def _opened(self, parameters: Any) -> Any:
        if self._pid != os.getpid():  # forked: the connection is the parent's
            self._pid, self._connection, self._channel = os.getpid(), None, None
        if self._connection is None or not self._connection.is_open:
            own = copy.copy(parameters)
            own.heartbeat = 0  # nobody serves it between two questions
            own.socket_timeout = own.stack_timeout = SOCKET_SECONDS
            own.connection_attempts = 1
            base = sys.modules["pika.adapters.blocking_connection"].BlockingConnection
            self._channel = None
            # A class of this module is no resource of the application.
            self._connection = type("OwnConnection", (base,), {"__module__": __name__})(own)
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        return self._channel

    def __del__(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            with suppress(RuntimeError):  # the interpreter ends
                threading.Thread(target=_hang_up, args=(self._connection,), daemon=True).start()


def _hang_up(connection: Any) -> None:
    with suppress(Exception):
        connection.close()


_LINES: weakref.WeakValueDictionary[tuple[str, int, str, str], _Line] = weakref.WeakValueDictionary()


def _line(parameters: Any) -> _Line:
    user = getattr(parameters.credentials, "username", "")
    key = (parameters.host, parameters.port, parameters.virtual_host, user)
    line = _LINES.get(key)
    return line if line is not None else _LINES.setdefault(key, _Line())


# -- hooks -----------------------------------------------------------------------------------------------


def _stat_behind(channel: Any) -> Stat | None:
    """The Stat of the connection that a channel belongs to; None for our own."""
    try:
        connection = channel.connection
        if type(connection).__module__ == __name__:
            return None
        known = ATTRIBUTE in connection.__dict__
        stat = stat_of(connection)
        if not known:
            announce(connection)
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("pika", error)
        return None
    return stat


def _learn(stat: Stat | None, name: object) -> None:
    if stat is not None and isinstance(name, str) and name:
        names = stat.extra.setdefault("queues", {})
        if len(names) < MAX_QUEUES:
            names[name] = True


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        started = perf_counter()
        original(self, *args, **kwargs)
        if type(self).__module__ != __name__:
            stat_of(self).connects.observe(perf_counter() - started)
            announce(self)

    return __init__


def _publish(original: Any) -> Any:
    def basic_publish(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = _stat_behind(self)
        if stat is None:
            return original(self, *args, **kwargs)
        started = perf_counter()
        try:
            result = original(self, *args, **kwargs)
        except Exception as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        stat.outcome("sent").value += 1
        return result

    return basic_publish


def _get(original: Any) -> Any:
    def basic_get(self: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, queue, *args, **kwargs)
        stat = _stat_behind(self)
        _learn(stat, queue)
        if stat is not None and found[0] is not None:
            stat.outcome("consumed").value += 1
        return found

    return basic_get


def _declare(original: Any) -> Any:
    def queue_declare(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _learn(_stat_behind(self), getattr(getattr(result, "method", None), "queue", None))
        return result

    return queue_declare


def _basic_consume(original: Any) -> Any:
    def basic_consume(self: Any, queue: Any, on_message_callback: Any, *args: Any, **kwargs: Any) -> Any:
        stat = _stat_behind(self)
        _learn(stat, queue)
        if stat is not None and callable(on_message_callback):
            on_message_callback = _timed(on_message_callback, stat, f"consumer of {queue}")
        return original(self, queue, on_message_callback, *args, **kwargs)

    return basic_consume


def _timed(callback: Callable[..., Any], stat: Stat, by: str) -> Callable[..., Any]:
    """A consumer's callback that tells how long it works on a message."""
    code = getattr(callback, "__code__", None)
    site = None if code is None else (code, 0)

    def on_message(channel: Any, method: Any, *rest: Any) -> Any:
        stat.outcome("consumed").value += 1
        key = id(method)
        stat.hold(key, site, by)
        token = scope.set(CallScope(by))
        try:
            return callback(channel, method, *rest)
        except Exception as error:
            stat.failed(error)
            raise
        finally:
            scope.reset(token)
            _worked(stat, key)

    return on_message


def _worked(stat: Stat, key: int) -> None:
    hold = stat.holds.pop(key, None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def _consume(original: Any) -> Any:
    """``for ... in channel.consume``: the time from one message to the asking for the next is the time of work."""

    def consume(self: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
        stat = _stat_behind(self)
        _learn(stat, queue)
        messages = original(self, queue, *args, **kwargs)
        return messages if stat is None else _told(messages, stat, f"consumer of {queue}")

    return consume


def _told(messages: Any, stat: Stat, by: str) -> Generator[Any, Any, Any]:
    key = id(messages)
    try:
        for message in messages:
            if message[0] is not None:  # else nothing came in time
                stat.outcome("consumed").value += 1
                stat.hold(key, None, by)
            yield message
            _worked(stat, key)
    finally:
        stat.holds.pop(key, None)
        messages.close()
