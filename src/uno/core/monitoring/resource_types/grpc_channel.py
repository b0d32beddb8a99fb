"""How are gRPC channels watched, sync and asyncio?

A channel has no pool: what can be told is its state, and how long calls take until they end. The hooks are on the
channel's ways to make a method, so that no interceptor of the application is touched; stubs that were made before the
monitor are not timed, only their channel's state is known.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from uno.core.monitoring.causes import describe_error, describe_running, describe_slow
from uno.core.monitoring.instrumentation import Stat, announce, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._pooled import Begun, begin, end, fail
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

SLOW_SECONDS = 0.5
_STATES = ("IDLE", "CONNECTING", "READY", "TRANSIENT_FAILURE", "SHUTDOWN")
_TARGET = "_uno_target"
_METHODS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class GrpcChannel(ResourceTypeMonitor):
    """State and calls of a channel. Calls are timed from stubs that were made while the monitor runs; a stream is
    counted when it ends."""

    resource_type = "grpc_channel"
    targets: ClassVar[tuple[str, ...]] = ("grpc._channel.Channel",)
    library = "grpc"
    module = "grpc._channel"
    tested = ">=1.60,<2"
    blocking = False
    metrics = pick(
        "rpc.client.call.duration",
        "rpc.client.calls",
        "rpc.client.active_calls",
        "uno.grpc.channel.state",
        "uno.resource.errors",
    )
    headline = (
        "rpc.client.call.duration",
        "rpc.client.calls",
        "rpc.client.active_calls",
        "uno.resource.errors",
    )
    thresholds = (
        ("rpc.client.call.duration", Threshold(1, 5, "Calls are slow", keep_firing_for=3)),
        ("uno.resource.errors", Threshold(0, None, "Calls fail", for_=3, keep_firing_for=5)),
    )

    def identify(self, target: Any) -> Identity:
        place = _place(target)
        return Identity(place or "grpc", place, {"rpc.system": "grpc"})

    def attach(self, target: Any) -> None:
        stat_of(target)

    def ready(self) -> bool:
        # grpc loads this with the first channel
        return hasattr(sys.modules.get(self.module), "Channel")

    def wrap(self, original: Any) -> Any:
        """The hook for a way to make a method."""
        return _method(original)

    def install(self) -> list[Callable[[], None]]:
        channel = sys.modules[self.module].Channel
        return [install(channel, way, self.wrap) for way in _METHODS if way in vars(channel)]

    def stat(self, target: Any) -> Stat | None:
        stat = stat_of(target)
        stat.drain()
        return stat

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat = stat_of(target)
        stat.drain()
        update = self.update_metric
        update("rpc.client.call.duration", stat.duration)
        for outcome, cell in list(stat.outcomes.items()):
            update("rpc.client.calls", cell, {"outcome": outcome})
        update("rpc.client.active_calls", len(stat.running))
        now = _state(target)
        for state in _STATES:
            update("uno.grpc.channel.state", None if now is None else float(state == now), {"state": state})
        update("uno.resource.errors", stat.errors)

    def suspect(self, target: Any) -> bool:
        return _state(target) == "TRANSIENT_FAILURE"

    def ping(self, target: Any) -> bool | None:
        """The channel's own word: connected, or unable to connect. None while it is idle; nothing is sent."""
        state = _state(target)
        return True if state == "READY" else False if state == "TRANSIENT_FAILURE" else None

    def explain(self, target: Any, metric: str) -> str:
        stat = stat_of(target)
        said = [describe_error(stat)]
        if metric != "uno.resource.errors":
            said = [describe_running(stat), describe_slow(stat), *said]
        return "; ".join(filter(None, said))

    def statistics(self, target: Any) -> dict[str, float | None]:
        stat = stat_of(target)
        stat.drain()
        return {
            "total_calls": stat.total.value,
            "errors": stat.errors.value,
            "active_calls": float(len(stat.running)),
        }


class GrpcAioChannel(GrpcChannel):
    """The same for asyncio. Where a channel leads to is known if it was made while the monitor runs."""

    targets = ("grpc.aio._channel.Channel",)
    module = "grpc.aio._channel"

    def install(self) -> list[Callable[[], None]]:
        return [*super().install(), install(sys.modules[self.module].Channel, "__init__", _aio_init)]

    def bound_loop(self, target: Any) -> Any:
        loop = target.__dict__.get("_loop")
        return None if loop is None or loop.is_closed() else loop

    def wrap(self, original: Any) -> Any:
        """The hook for a way to make a method."""
        return _aio_method(original)


def _place(channel: Any) -> str | None:
    """Host and port of ``dns:///shop:50051`` and the like."""
    # from what is kept in Python: asking a channel that was closed ends the process
    text = channel.__dict__.get("_target") or channel.__dict__.get(_TARGET)
    if not isinstance(text, str):
        return None
    place = text.rpartition("/")[2].rpartition("@")[2]
    return place if place and not text.startswith("unix") else None


def _state(channel: Any) -> str | None:
    """Its name; asking does not connect it. None when it is closed."""
    inner = getattr(channel, "_channel", None)
    if inner is None:
        return None
    try:
        number = inner.check_connectivity_state(False)
    except Exception:  # noqa: BLE001 - it is being closed
        return "SHUTDOWN"
    return _STATES[number] if isinstance(number, int) and 0 <= number < len(_STATES) else "SHUTDOWN"


# -- hooks -----------------------------------------------------------------------------------------------


def _ended(begun: Begun | None, error: BaseException | None, code: Any) -> None:
    """A call ended with a status code."""
    if begun is None:
        return
    try:
        name = getattr(code, "name", None) or ("OK" if error is None else type(error).__name__)
        begun[0].outcome(str(name)).value += 1
        if error is None:
            end(begun, SLOW_SECONDS)
        else:
            fail(begun, error, SLOW_SECONDS)
            if isinstance(error, Exception):
                begun[0].last_error_kind = str(name)
    except Exception as failure:  # noqa: BLE001 - a hook never fails the call
        failures("grpc", failure)


class _Failed(Exception):
    """A call that ended with another status than OK."""


def _code(call: Any) -> Any:
    """The status of a call that ended; for asyncio it is told by a coroutine that has nothing to wait for."""
    code = call.code()
    if not hasattr(code, "send"):
        return code
    try:
        code.send(None)
    except StopIteration as told:
        return told.value
    finally:
        code.close()
    return None


def _watch(begun: Begun | None, call: Any) -> Any:
    """Take note when ``call``, a future or a stream, ends."""
    if begun is None:
        return call

    def done(call: Any) -> None:
        code = None
        with suppress(BaseException):
            code = _code(call)
        if getattr(code, "name", "OK") == "CANCELLED":
            _ended(begun, KeyboardInterrupt(), code)  # neither failed nor succeeded
        else:
            _ended(begun, None if getattr(code, "name", "OK") == "OK" else _Failed(), code)

    try:
        call.add_done_callback(done)
    except Exception:  # noqa: BLE001 - it has no way to tell
        begun[0].running.pop(begun[1], None)
    return call


class _Timed:
    """A method of a stub whose calls are noted."""

    def __init__(self, inner: Any, channel: Any) -> None:
        self._inner, self._channel = inner, weakref.ref(channel)

    def _begin(self) -> Begun | None:
        channel = self._channel()
        if channel is None:
            return None
        stat = stat_of(channel)
        if "announced" not in stat.extra:
            stat.extra["announced"] = True
            announce(channel)
        return begin(channel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's."""
        begun = self._begin()
        return _watch(begun, self._inner.future(*args, **kwargs))

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's."""
        return self._call(self._inner.with_call, args, kwargs)

    def _call(self, call: Any, args: Any, kwargs: Any) -> Any:
        begun = self._begin()
        try:
            result = call(*args, **kwargs)
        except BaseException as error:
            code = None
            with suppress(BaseException):
                code = error.code()  # type: ignore[attr-defined]
            _ended(begun, error, code)
            raise
        _ended(begun, None, None)
        return result


class _TimedUnary(_Timed):
    """One whose call waits for the answer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner, args, kwargs)


class _TimedCall(_Timed):
    """One whose call returns at once: a stream, or any of asyncio."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = self._begin()
        try:
            call = self._inner(*args, **kwargs)
        except BaseException as error:
            _ended(begun, error, None)
            raise
        return _watch(begun, call)


def _method(original: Any) -> Any:
    unary = original.__name__.endswith("_unary")

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = original(self, *args, **kwargs)
        return _TimedUnary(inner, self) if unary else _TimedCall(inner, self)

    return method


def _aio_init(original: Any) -> Any:
    def __init__(self: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        original(self, target, *args, **kwargs)
        self.__dict__[_TARGET] = target

    return __init__


def _aio_method(original: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _TimedCall(original(self, *args, **kwargs), self)

    return method
