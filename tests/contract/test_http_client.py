"""Are HTTP clients seen as they are, httpx and httpx2, sync and async: requests, outcomes, pool, waiting, leaks?"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from tests.contract import kit
from tests.contract.kit import Watched, soon
from tests.servers import free_port, wait_until
from tests.upstream import HttpServer, Upstream
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

FILE = "tests/contract/test_http_client.py"
STATE = "http.connection.state"
ACTIVE, IDLE = {STATE: "active"}, {STATE: "idle"}
LIMIT, PENDING, WAIT = "http.client.connection.max", "http.client.pending_requests", "http.client.wait_time"
RATIO = "uno.http.client.error_ratio"
CREATE, USE, VAIN = "http.client.connection.create_time", "connection_use_time", "connection_timeouts"
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    library: ModuleType = request.param
    library.Client().close()  # the first one loads the pools
    return library


@pytest.fixture
def monitor(library: ModuleType) -> Iterator[ResourceMonitor]:
    assert kit.hooked("http") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: hasattr(library.AsyncClient.send, "__uno_hook__"), 5, "the hooks")
        yield monitor
    assert kit.hooked("http") == []


@pytest.fixture
def client(library: ModuleType, upstream: str) -> Iterator[Any]:
    """At most two connections."""
    with library.Client(base_url=upstream, limits=library.Limits(max_connections=2), timeout=5) as client:
        yield client


@pytest.fixture
async def aclient(library: ModuleType, upstream: str) -> AsyncIterator[Any]:
    limits = library.Limits(max_connections=2)
    async with library.AsyncClient(base_url=upstream, limits=limits, timeout=5) as client:
        yield client


@pytest.fixture
def api(monitor: ResourceMonitor, client: Any) -> Watched:
    return Watched(monitor, client)


# -- requests --------------------------------------------------------------------------------------------


def test_requests_by_outcome(api: Watched, client: Any, upstream: str) -> None:
    assert api.resource.type == "http_client"
    assert api.resource.endpoint == upstream.removeprefix("http://")
    api.until(None, RATIO)  # no request, no share
    for path in ("/200", "/200", "/404", "/503"):
        client.get(path)
    api.until(2, "requests", "total", outcome="2xx")
    api.until(1, "requests", "total", outcome="4xx")
    api.until(1, "requests", "total", outcome="5xx")
    assert api.read("request_duration", "count") == 4
    assert api.read("errors", "total") == 1  # a server's failure, not a client's
    assert api.read(RATIO) == 0.25
    assert api.read("active_requests") == 0
    assert api.read(LIMIT) == 2
    api.until(1, "connections", **IDLE)
    place = upstream.removeprefix("http://")
    assert api.explain(RATIO) == f"last error HTTP 503 0 s ago, 1 in all; to {place}"
    assert kit.names_without_series(api) == set()
    assert kit.unknown(api) == set()


def test_failures_by_their_kind(
    monitor: ResourceMonitor, library: ModuleType, client: Any, upstream: str
) -> None:
    port = free_port()
    with library.Client(base_url=f"http://bob:s3cr3t@127.0.0.1:{port}") as nowhere:
        api = Watched(monitor, nowhere)
        assert api.resource.endpoint == f"127.0.0.1:{port}"
        for _ in range(2):
            with pytest.raises(library.ConnectError):
                nowhere.get("/orders?token=s3cr3t")
        api.until(2, "requests", "total", outcome="ConnectError")
        api.until(1.0, RATIO)
        assert (
            api.explain("uno.resource.errors")
            == f"last error ConnectError 0 s ago, 2 in all; to 127.0.0.1:{port}"
        )
        wait_until(lambda: monitor.alerts.active(), 5, "an alert")
        said = kit.everything_said(monitor)
        assert "s3cr3t" not in said
        assert "bob" not in said
    slow = Watched(monitor, client, "slow")
    with pytest.raises(library.ReadTimeout):
        client.get("/gate", timeout=0.1)
    slow.until(1, "requests", "total", outcome="ReadTimeout")
    slow.until(0, "connections", **ACTIVE)
    assert slow.sites() == {}


def test_a_redirect_is_part_of_its_request(api: Watched, client: Any) -> None:
    assert client.get("/moved", follow_redirects=True).text == "ok"
    api.until(1, "request_duration", "count")
    assert api.read(WAIT, "count") == 1
    api.until(0, "active_requests")


def test_connections_are_opened_and_used(api: Watched, client: Any) -> None:
    for path in ("/200", "/200", "/close", "/slow"):
        client.get(path)
    api.until(4, "request_duration", "count")
    assert api.read(USE, "count") == 4
    assert api.read(CREATE, "count") == 2
    assert (api.read(USE, "sum") or 0) == pytest.approx(api.read("request_duration", "sum") or 0, abs=CLOSE)
    with pytest.raises(
        (httpx.RemoteProtocolError, httpx2.RemoteProtocolError, httpx.ReadError, httpx2.ReadError)
    ):
        client.get("/reset")
    api.until(1, "errors", "total")


def test_slow_requests_are_named_to_the_line(api: Watched, client: Any) -> None:
    def report() -> None:
        client.get("/gate")

    timer = threading.Timer(0.6, Upstream.gate.set)
    timer.start()
    begun = time.perf_counter()
    report()
    took = time.perf_counter() - begun
    timer.join()
    api.until(1, "request_duration", "count")
    place = f"{FILE}:{report.__code__.co_firstlineno + 1} in report"
    assert api.explain("http.client.request.duration").startswith(f"1 slow from {place}")
    assert api.read("request_duration", "sum") == pytest.approx(took, abs=CLOSE)


def test_who_calls_is_known(api: Watched, client: Any) -> None:
    token = scope.set(CallScope("GET /checkout"))
    client.get("/200")
    scope.reset(token)
    stat = api.monitor.stat_of(api.resource)
    assert stat is not None
    by = stat.callers["GET /checkout"]
    assert (by.calls.value, by.errors.value, by.timed.value) == (1, 0, 1)
    assert asyncio.run(api.resource.get_statistics())["total_requests"] == 1


# -- the pool --------------------------------------------------------------------------------------------


def test_the_wait_is_the_true_one(api: Watched, client: Any) -> None:
    took: list[float] = []

    def get(path: str) -> None:
        begun = time.perf_counter()
        client.get(path)
        took.append(time.perf_counter() - begun)

    def waiter() -> None:
        get("/200")

    holders = [threading.Thread(target=get, args=("/gate",)) for _ in range(2)]
    for thread in holders:
        thread.start()
    api.until(1.0, "connection_pool_usage")
    api.until(2, "active_requests")
    waiting = threading.Thread(target=waiter, name="checkout-1")
    waiting.start()
    api.until(1, PENDING)
    api.until(3, "active_requests")
    place = f"{FILE}:{get.__code__.co_firstlineno + 2} in get"
    assert api.sites() == {place: 2}
    assert api.sites(waiting=True) == {place: 1}
    assert api.explain().startswith(f"2 of 2 connections held: {place} for thread ")
    time.sleep(0.25)
    Upstream.gate.set()
    for thread in (*holders, waiting):
        thread.join()
    api.until(3, WAIT, "count")
    assert api.read(WAIT, "sum") == pytest.approx(
        took[-1] if took[-1] < min(took[:2]) else min(took), abs=CLOSE
    )
    assert (api.read(WAIT, "sum") or 0) > 0.25
    api.until(0, PENDING)
    api.until(0, "active_requests")
    api.until(0.0, "connection_pool_usage")


def test_a_wait_in_vain(api: Watched, client: Any, library: ModuleType) -> None:
    holders = [threading.Thread(target=client.get, args=("/gate",)) for _ in range(2)]
    for thread in holders:
        thread.start()
    api.until(1.0, "connection_pool_usage")
    with pytest.raises(library.PoolTimeout):
        client.get("/200", timeout=library.Timeout(5, pool=0.1))
    api.until(1, "requests", "total", outcome="PoolTimeout")
    assert api.read(VAIN, "total") == 1
    api.until(0, PENDING)
    Upstream.gate.set()
    for thread in holders:
        thread.join()


def test_an_unread_stream_is_a_leak_with_a_name(api: Watched, client: Any) -> None:
    leaked = []

    def leak() -> None:
        leaked.append(client.send(client.build_request("GET", "/200"), stream=True))

    leak()
    leak()
    api.until(1.0, "connection_pool_usage")
    api.until(0, "active_requests")
    place = f"{FILE}:{leak.__code__.co_firstlineno + 1} in leak"
    assert api.sites() == {place: 2}
    assert api.explain().startswith(f"2 of 2 connections held: {place} for ")
    for response in leaked:
        response.close()
    api.until(0.0, "connection_pool_usage")
    assert api.sites() == {}


def test_no_limit_is_unknown(monitor: ResourceMonitor, library: ModuleType, upstream: str) -> None:
    with library.Client(limits=library.Limits()) as client:
        api = Watched(monitor, client)
        client.get(f"{upstream}/200")
        api.until(1, "request_duration", "count")
        assert kit.unknown(api) == {"uno.resource.utilization", LIMIT}
        assert api.resource.endpoint is None
        assert api.driver.endpoints(client) == [upstream.removeprefix("http://")]


def test_a_transport_without_a_pool(monitor: ResourceMonitor, library: ModuleType) -> None:
    transport = library.MockTransport(lambda request: library.Response(200))
    with library.Client(transport=transport, base_url="http://inside") as client:
        api = Watched(monitor, client)
        client.get("/")
        api.until(1, "request_duration", "count")
        assert {"uno.resource.utilization", "http.client.open_connections"} <= kit.unknown(api)
        assert api.driver.capacity(client) is None


NO_POOLS = """
    import sys
    import httpx
    from uno.core.monitoring.resources import ResourceMonitor

    monitor = ResourceMonitor()
    inside = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    monitor.manager.register(inside, id="inside")
    for _ in range(2):
        monitor.tick()
        inside.get("http://inside/")
    monitor.tick()
    assert httpx.__version__ < "0.28" or "httpcore" not in sys.modules  # older ones load it at once
    seen = monitor.read("inside", "http.client.request.duration", stat="count")
    assert seen == 2, seen
    outside = httpx.Client()
    monitor.manager.register(outside, id="outside")
    monitor.tick()
    outside.get(sys.argv[1])
    outside.get(sys.argv[1])
    monitor.tick()
    assert monitor.read("outside", "http.client.connection.create_time", stat="count") == 1
    monitor.stop()
    import httpcore
    assert not hasattr(httpx.Client.send, "__uno_hook__")
    assert not hasattr(httpcore._sync.connection.HTTPConnection._connect, "__uno_hook__")
"""


def test_clients_without_pools_are_watched_before_pools_are_loaded(upstream: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_POOLS), upstream],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# -- asyncio ---------------------------------------------------------------------------------------------


async def test_async_requests_and_the_true_wait(monitor: ResourceMonitor, aclient: Any) -> None:
    api = Watched(monitor, aclient)
    held = [asyncio.create_task(aclient.get("/gate")) for _ in range(2)]
    await api.soon(1.0, "connection_pool_usage")

    async def wait() -> float:
        begun = time.perf_counter()
        await aclient.get("/200")
        return time.perf_counter() - begun

    waiting = asyncio.create_task(wait())
    await api.soon(1, PENDING)
    assert api.sites(waiting=True) == {f"{FILE}:{wait.__code__.co_firstlineno + 2} in wait": 1}
    await asyncio.sleep(0.25)
    Upstream.gate.set()
    true = await waiting
    await asyncio.gather(*held)
    await api.soon(3, WAIT, "count")
    assert api.read(WAIT, "sum") == pytest.approx(true, abs=CLOSE)
    assert true > 0.25
    assert api.read("requests", "total", outcome="2xx") == 3
    await api.soon(0, "active_requests")


async def test_a_cancelled_request_is_no_error(monitor: ResourceMonitor, aclient: Any) -> None:
    api = Watched(monitor, aclient)
    task = asyncio.create_task(aclient.get("/gate"))
    await api.soon(1, "connections", **ACTIVE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await api.soon(1, "requests", "total", outcome="cancelled")
    await api.soon(0, "active_requests")
    assert api.read("errors", "total") == 0
    assert api.read(RATIO) == 0.0
    assert api.explain("uno.resource.errors") == ""


# -- health, discovery -----------------------------------------------------------------------------------


def test_ping_sends_nothing(api: Watched, client: Any) -> None:
    assert api.driver.ping(client) is None
    client.get("/200")
    assert api.driver.ping(client) is True
    client.get("/503")
    assert api.driver.ping(client) is None  # it may be the request's fault
    api.until(2, "request_duration", "count")


def test_a_discovered_client_goes_with_the_application(
    monitor: ResourceMonitor, library: ModuleType, upstream: str
) -> None:
    def make() -> object:
        client = library.Client(base_url=upstream)
        client.get("/200")
        client.close()
        return client

    kit.dies(monitor, make, "http_client")


async def test_clients_are_noticed_when_they_are_used_again(
    monitor: ResourceMonitor, library: ModuleType, upstream: str
) -> None:
    """One for a single request, as ``httpx.get`` makes them, comes and goes: it is no resource."""
    monitor.discover_resources("http_client")
    async with library.AsyncClient(base_url=upstream) as once, library.AsyncClient(base_url=upstream) as kept:
        await once.get("/200")
        for _ in range(2):
            await kept.get("/200")
        await soon(lambda: any(r.target is kept for r in monitor.manager), "noticed")
        assert all(r.target is not once for r in monitor.manager)
    gc.collect()


# -- the server is lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [httpx], indirect=True)
def test_a_frozen_and_a_killed_server(
    monitor: ResourceMonitor, library: ModuleType, http_server: HttpServer
) -> None:
    with library.Client(base_url=http_server.url, timeout=10) as client:
        api = Watched(monitor, client)
        client.get("/200")

        def is_(status: HealthStatus) -> bool:
            return monitor.health_of("it").status is status

        wait_until(lambda: is_(HealthStatus.UP), 10, "up")
        http_server.freeze()
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(client.get("/200").status_code), name="shop-1")
        thread.start()
        wait_until(lambda: is_(HealthStatus.DEGRADED), 5, "the request that hangs")
        assert "1 running: thread shop" in api.explain("uno.http.client.oldest_request")
        assert not got
        http_server.thaw()
        thread.join()
        assert got == [200]
        http_server.kill()

        def fails() -> bool:
            with pytest.raises(library.TransportError):
                client.get("/200")
            return is_(HealthStatus.DOWN)

        wait_until(fails, 10, "down")
        http_server.start()
        wait_until(lambda: client.get("/200").status_code == 200 and not is_(HealthStatus.DOWN), 5, "back")
