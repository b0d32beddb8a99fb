"""Are gRPC channels seen as they are, sync and asyncio: state, calls, failures, the lost server?"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.contract import kit
from tests.contract.kit import Watched, soon
from tests.servers import HOST, free_port, wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

STATE = "uno.grpc.channel.state"


class Shop(grpc.GenericRpcHandler):  # type: ignore[misc]
    """``/Shop/Buy`` echoes, ``/Shop/Slow`` after 0.2 s, ``/Shop/Fail`` refuses, ``/Shop/List`` streams three."""

    def service(self, call: Any) -> Any:
        name = call.method.rpartition("/")[2]
        if name == "List":
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request] * 3))
        return grpc.unary_unary_rpc_method_handler(getattr(self, name.lower()))

    def buy(self, request: bytes, context: Any) -> bytes:
        return request

    def slow(self, request: bytes, context: Any) -> bytes:
        time.sleep(0.2)
        return request

    def fail(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "secret-canary")
        return b""


class GrpcServer:
    """In this process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.place = f"{HOST}:{self.port}"
        self.start()

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(4), [Shop()])
        self._server.add_insecure_port(self.place)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait(5)


@pytest.fixture
def server() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.stop()


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    grpc.insecure_channel("127.0.0.1:1").close()  # the first one loads the rest of grpc
    assert kit.hooked("grpc") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked("grpc"), 5, "the hooks")
        yield monitor
    assert kit.hooked("grpc") == []


def connect(place: str) -> Any:
    quick = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.insecure_channel(place, quick)


def test_calls_and_state(monitor: ResourceMonitor, server: GrpcServer) -> None:
    with connect(server.place) as channel:
        api = Watched(monitor, channel)
        assert (api.resource.type, api.resource.endpoint) == ("grpc_channel", server.place)
        api.until(1, STATE, state="IDLE")
        buy = channel.unary_unary("/Shop/Buy")
        assert [buy(b"1"), buy.with_call(b"2")[0], buy.future(b"3").result()] == [b"1", b"2", b"3"]
        assert list(channel.unary_stream("/Shop/List")(b"4")) == [b"4"] * 3
        begun = time.perf_counter()
        channel.unary_unary("/Shop/Slow")(b"")
        took = time.perf_counter() - begun
        api.until(5, "calls", "total", outcome="OK")
        api.until(5, "call_duration", "count")
        assert (api.read("call_duration", "sum") or 0) > 0.2
        assert took > 0.2
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/Shop/Fail")(b"")
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/Shop/Slow")(b"", timeout=0.05)
        api.until(1, "calls", "total", outcome="NOT_FOUND")
        api.until(1, "calls", "total", outcome="DEADLINE_EXCEEDED")
        api.until(2, "errors", "total")
        assert api.explain("uno.resource.errors").startswith("last error DEADLINE_EXCEEDED ")
        assert "canary" not in kit.everything_said(monitor)
        assert api.read(STATE, state="READY") == 1
        assert api.read("active_calls") == 0
        assert kit.names_without_series(api) == set()
        wait_until(lambda: monitor.health_of("it").status is not HealthStatus.DOWN, 5, "not down")


async def test_async_calls(monitor: ResourceMonitor, server: GrpcServer) -> None:
    async with grpc.aio.insecure_channel(server.place) as channel:
        api = Watched(monitor, channel)
        buy = channel.unary_unary("/Shop/Buy")
        assert await buy(b"1") == b"1"
        assert [item async for item in channel.unary_stream("/Shop/List")(b"2")] == [b"2"] * 3
        with pytest.raises(grpc.RpcError):
            await channel.unary_unary("/Shop/Fail")(b"")
        await api.soon(2, "calls", "total", outcome="OK")
        await api.soon(1, "calls", "total", outcome="NOT_FOUND")
        await api.soon(3, "call_duration", "count")
        await api.soon(1, STATE, state="READY")
        await soon(lambda: api.read("active_calls") == 0)


def test_a_server_that_dies_and_returns(monitor: ResourceMonitor, server: GrpcServer) -> None:
    with connect(server.place) as channel:
        api = Watched(monitor, channel)
        buy = channel.unary_unary("/Shop/Buy")
        buy(b"")

        def is_(status: HealthStatus) -> bool:
            return monitor.health_of("it").status is status

        wait_until(lambda: is_(HealthStatus.UP), 10, "up")
        server.stop()

        def fails() -> bool:
            with pytest.raises(grpc.RpcError):
                buy(b"")
            return is_(HealthStatus.DOWN)

        wait_until(fails, 10, "down")
        assert (api.read("calls", "total", outcome="UNAVAILABLE") or 0) > 0
        server.start()
        buy(b"", wait_for_ready=True, timeout=10)
        api.until(1, STATE, state="READY")


def test_a_closed_channel_is_left_alone(monitor: ResourceMonitor, server: GrpcServer) -> None:
    closed = connect(server.place)
    closed.close()
    api = Watched(monitor, closed)
    assert api.resource.endpoint == server.place
    api.until(1, STATE, state="SHUTDOWN")


def test_found_by_its_use_and_gone_when_dropped(monitor: ResourceMonitor, server: GrpcServer) -> None:
    monitor.discover_resources("grpc_channel")
    made = connect(server.place)
    made.unary_unary("/Shop/Buy")(b"")
    gone = weakref.ref(made)
    wait_until(lambda: any(r.target is gone() for r in monitor.manager), 5, "found")
    (id,) = [r.id for r in monitor.manager if r.target is made]
    made.close()
    del made
    wait_until(lambda: (gc.collect(), gone())[1] is None, 10, "the object goes")
    wait_until(lambda: id not in monitor.manager, 10, "the resource leaves")
