"""How is an MQTT client watched? paho-mqtt by hooks and its own memory; aiomqtt through the paho client inside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import CallScope, Stat, announce, failures, install, scope, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

MAX_OPEN = 4_096
#: A broker that leaves a message unacknowledged for longer hangs; one that sent something so lately is up.
SILENT_SECONDS, RECENT_SECONDS = 2.0, 10.0
_SCOPE = CallScope("consumer of MQTT")


class MQTTClient(ResourceTypeMonitor):
    """A paho-mqtt client: messages published and received, the time until the broker has them, what is buffered.

    A message with QoS 0 counts as published once it is written, and the broker never says that it has it; one with
    QoS 1 or 2, once the broker acknowledged it. uno sends an MQTT broker nothing: whether it answers is known from
    acknowledgements and from the client's own keep-alive, and what it holds (its ``$SYS`` topics) is not asked for.
    """

    resource_type = "message_broker"
    targets = ("paho.mqtt.client.Client",)
    library = "paho.mqtt"
    tested = ">=2.2,<3"
    blocking = False
    metrics = pick(
        "messaging.client.sent.messages",
        "messaging.client.consumed.messages",
        "messaging.client.operation.duration",
        "messaging.process.duration",
        "uno.messaging.client.buffered",
        "messaging.client.connection.up",
        "uno.resource.errors",
    )
    headline = (
        "messaging.client.consumed.messages",
        "messaging.client.sent.messages",
        "uno.messaging.client.buffered",
        "messaging.process.duration",
    )
    thresholds = (
        (
            "messaging.client.connection.up",
            Threshold(None, 0.5, "Not connected to the broker", direction="below", for_=1),
        ),
        ("messaging.client.operation.duration", Threshold(0.5, 5.0, "Publishing is slow", for_=5)),
    )

    def paho(self, target: Any) -> Any:
        """The paho client, which has the Stat."""
        return target

    def identify(self, target: Any) -> Identity:
        host, port = target._host, target._port
        return Identity("mqtt", f"{host}:{port}" if host else None)

    def stat(self, target: Any) -> Stat | None:
        return super().stat(self.paho(target))

    def attach(self, target: Any) -> None:
        stat_of(self.paho(target))

    def ready(self) -> bool:
        return hasattr(sys.modules.get("paho.mqtt.client"), "Client")

    def install(self) -> list[Callable[[], None]]:
        client = sys.modules["paho.mqtt.client"].Client
        hooks = [
            ("connect", _connect),
            ("publish", _publish),
            ("_do_on_publish", _acknowledged),
            ("_handle_on_message", _on_message),
        ]
        return [install(client, name, wrap) for name, wrap in hooks]

    def inside(self, target: Any) -> int | None:
        """Messages that came and were not taken; paho hands them on at once."""
        return None

    def collect_metrics(self, resource: Resource) -> None:
        target, update = resource.target, self.update_metric
        client = self.paho(target)
        stat = stat_of(client)
        update("messaging.client.connection.up", client.is_connected())
        update("messaging.client.sent.messages", stat.outcome("sent"))
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.client.operation.duration", stat.duration)
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)
        update("uno.messaging.client.buffered", self.inside(target), {"direction": "in"})
        update("uno.messaging.client.buffered", len(client._out_messages), {"direction": "out"})

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        client = self.paho(target)
        stat = stat_of(client)
        return {
            "connected": client.is_connected(),
            "messages_sent": stat.outcome("sent").value,
            "messages_consumed": stat.outcome("consumed").value,
            "buffered_out": len(client._out_messages),
            "errors": stat.errors.value,
        }

    def ping(self, target: Any) -> bool | None:
        """From what happened. ConnectionError while there is no connection, TimeoutError while the broker hangs."""
        client = self.paho(target)
        if not client.is_connected():
            raise ConnectionError("not connected")
        if _silent(client) > SILENT_SECONDS:
            raise TimeoutError("the broker does not answer")
        return True if not client._ping_t and monotonic() - _heard(client) < RECENT_SECONDS else None

    def suspect(self, target: Any) -> bool:
        return _silent(self.paho(target)) > SILENT_SECONDS

    def explain(self, target: Any, metric: str) -> str:
        client = self.paho(target)
        stat, up, silent = stat_of(client), client.is_connected(), _silent(client)
        parts = [] if up else ["not connected"]
        if up and silent > 1:
            parts.append(f"the broker has not answered for {silent:.1f} s")
        if client._out_messages:
            parts.append(f"{len(client._out_messages)} messages are not acknowledged")
        parts += [describe_holds(stat, "message"), describe_error(stat)]
        return "; ".join(filter(None, parts))


class AsyncMQTTClient(MQTTClient):
    """The same through aiomqtt; what came waits in its queue until it is iterated."""

    targets = ("aiomqtt.client.Client",)
    library = "aiomqtt"
    tested = ">=2.5,<3"

    def paho(self, target: Any) -> Any:
        return target._client

    def identify(self, target: Any) -> Identity:
        return Identity("mqtt", f"{target._hostname}:{target._port}")

    def covers(self, target: Any) -> tuple[object, ...]:
        return (target._client,)

    def bound_loop(self, target: Any) -> Any:
        return target._loop

    def ready(self) -> bool:
        return hasattr(sys.modules.get("aiomqtt.client"), "Client")

    def install(self) -> list[Callable[[], None]]:
        module = sys.modules["aiomqtt.client"]
        undo = [install(module.Client, "__init__", _init)]
        if "__anext__" in vars(getattr(module, "MessagesIterator", object)):
            undo.append(install(module.MessagesIterator, "__anext__", _anext))
        return undo

    def inside(self, target: Any) -> int | None:
        count: int = target._queue.qsize()
        return count


def _silent(client: Any) -> float:
    """For how many seconds something that the broker has to answer is unanswered, with nothing else from it."""
    now = monotonic()
    opened = stat_of(client).extra.get("open", {})
    since = min((at for at, _ in list(opened.values())), default=now) if client._out_messages else now
    if client._ping_t:
        since = min(since, client._ping_t)
    return now - max(since, _heard(client))


def _heard(client: Any) -> float:
    """When the broker last sent something, or was sent a keep-alive."""
    known = client.__dict__
    at: float = known["_last_bytes_received"] if "_last_bytes_received" in known else known["_last_msg_in"]
    return at


# -- hooks -----------------------------------------------------------------------------------------------


def _connect(original: Any) -> Any:
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat = stat_of(self)
        started = perf_counter()
        try:
            result = original(self, *args, **kwargs)
        except Exception as error:
            stat.failed(error)
            raise
        stat.connects.observe(perf_counter() - started)
        announce(self)
        return result

    return connect


def _publish(original: Any) -> Any:
    def publish(self: Any, topic: Any, payload: Any = None, qos: Any = 0, *args: Any, **kwargs: Any) -> Any:
        started, now = perf_counter(), monotonic()
        try:
            info = original(self, topic, payload, qos, *args, **kwargs)
        except Exception as error:
            stat_of(self).failed(error)
            raise
        try:
            stat = stat_of(self)
            if info.rc:
                stat.errors.value += 1
                stat.last_error, stat.last_error_kind = now, getattr(info.rc, "name", "error")
            elif not qos:
                stat.outcome("sent").value += 1
            if qos and info.mid in self._out_messages:
                opened = stat.extra.setdefault("open", {})
                if len(opened) < MAX_OPEN:
                    opened[info.mid] = now, started
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("paho.publish", error)
        return info

    return publish


def _acknowledged(original: Any) -> Any:
    """Only for QoS 1 and 2."""

    def _do_on_publish(self: Any, mid: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = stat_of(self)
            if mid in self._out_messages:
                stat.outcome("sent").value += 1
                opened = stat.extra.get("open", {}).pop(mid, None)
                if opened is not None:
                    stat.done(perf_counter() - opened[1])
        except Exception as error:  # noqa: BLE001
            failures("paho.on_publish", error)
        return original(self, mid, *args, **kwargs)

    return _do_on_publish


def _on_message(original: Any) -> Any:
    def _handle_on_message(self: Any, message: Any) -> Any:
        callback = self.__dict__.get("_on_message")
        if type(getattr(callback, "__self__", None)).__module__.startswith("aiomqtt."):
            return original(self, message)  # is counted when it is taken from the queue
        stat = stat_of(self)
        stat.outcome("consumed").value += 1
        code = getattr(callback, "__code__", None)
        key = id(message)
        stat.hold(key, None if code is None else (code, 0), _SCOPE.name)
        token = scope.set(_SCOPE)
        try:
            return original(self, message)
        except Exception as error:
            stat.failed(error)
            raise
        finally:
            scope.reset(token)
            _worked(stat, key)

    return _handle_on_message


def _worked(stat: Stat, key: int) -> None:
    hold = stat.holds.pop(key, None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        announce(self)

    return __init__


def _anext(original: Any) -> Any:
    """``async for``: the time from one message to the asking for the next is the time of work."""

    async def __anext__(self: Any) -> Any:
        stat = stat_of(self._client._client)
        key = id(self._client)
        _worked(stat, key)
        message = await original(self)
        stat.outcome("consumed").value += 1
        stat.hold(key, None, _SCOPE.name)
        return message

    return __anext__
