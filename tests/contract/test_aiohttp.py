"""Are aiohttp's sessions seen as they are: requests, outcomes, connector, waiting, leaks, the lost server?"""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.contract import kit
from tests.contract.kit import Watched, soon
from tests.servers import PASSWORD, free_port, wait_until
from tests.upstream import HttpServer, Upstream
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

FILE = "tests/contract/test_aiohttp.py"
STATE = "http.connection.state"
ACTIVE, IDLE = {STATE: "active"}, {STATE: "idle"}
CREATE, USE, WAIT = "http.client.connection.create_time", "connection_use_time", "connection_wait_time"
PENDING, VAIN, RATIO = "connections_waiting", "connection_timeouts", "uno.http.client.error_ratio"
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    assert kit.hooked("aiohttp") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked("aiohttp"), 5, "the hooks")
        yield monitor
    assert kit.hooked("aiohttp") == []


@pytest.fixture
async def session(upstream: str) -> AsyncIterator[aiohttp.ClientSession]:
    """At most two connections."""
    async with aiohttp.ClientSession(upstream, connector=aiohttp.TCPConnector(limit=2)) as session:
        yield session


@pytest.fixture
async def api(monitor: ResourceMonitor, session: aiohttp.ClientSession) -> Watched:
    return Watched(monitor, session)


async def get(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as response:
        await response.read()
        return response.status


async def test_requests_and_connections(api: Watched, session: aiohttp.ClientSession, upstream: str) -> None:
    assert api.resource.type == "http_client"
    assert api.resource.endpoint == upstream.removeprefix("http://")
    for path in ("/200", "/200", "/404", "/503", "/moved"):
        await get(session, path)
    await api.soon(3, "requests", "total", outcome="2xx")
    assert api.read("requests", "total", outcome="4xx") == 1
    assert api.read("requests", "total", outcome="5xx") == 1
    await api.soon(5, "request_duration", "count")
    await api.soon(6, WAIT, "count")  # a redirect asks for a connection once more
    assert api.read(USE, "count") == 6
    assert api.read(CREATE, "count") == 1
    assert api.read("errors", "total") == 1
    assert api.read(RATIO) == 0.2
    assert api.read("connections_max") == 2
    await api.soon(1, "connections", **IDLE)
    assert api.read("connections", **ACTIVE) == 0
    place = upstream.removeprefix("http://")
    assert api.explain(RATIO).startswith("last error HTTP 503 ")
    assert api.explain(RATIO).endswith(f" s ago, 1 in all; to {place}")
    assert api.driver.endpoints(session) == [place]
    assert kit.names_without_series(api) == set()
    assert kit.unknown(api) == set()
    assert api.driver.ping(session) is True  # a request after the failed one went well


async def test_a_session_that_lives_already(upstream: str) -> None:
    async with aiohttp.ClientSession(upstream) as session:
        held = await session.get("/large")
        with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
            api = Watched(monitor, session)
            await soon(lambda: kit.hooked("aiohttp"), "the hooks")
            await api.soon(1, "connections", **ACTIVE)
            await held.read()
            await api.soon(0, "connections", **ACTIVE)
            await get(session, "/200")
            await api.soon(1, "request_duration", "count")
            assert api.read(USE, "count") == 1  # of what was taken before, nothing is known


async def test_the_wait_is_the_true_one(api: Watched, session: aiohttp.ClientSession) -> None:
    for _ in range(2):
        await asyncio.gather(get(session, "/slow"), get(session, "/slow"))
    held = [asyncio.create_task(get(session, "/gate")) for _ in range(2)]
    await api.soon(1.0, "connection_pool_usage")
    before = api.read(WAIT, "sum") or 0.0

    async def wait() -> float:
        begun = time.perf_counter()
        await session.get("/200")
        return time.perf_counter() - begun

    waiting = asyncio.create_task(wait())
    await api.soon(1, PENDING)
    assert api.sites() == {f"{FILE}:{get.__code__.co_firstlineno + 1} in get": 2}
    assert api.sites(waiting=True) == {f"{FILE}:{wait.__code__.co_firstlineno + 2} in wait": 1}
    await asyncio.sleep(0.25)
    Upstream.gate.set()
    true = await waiting
    await asyncio.gather(*held)
    await api.soon(7, "request_duration", "count")
    assert (api.read(WAIT, "sum") or 0) - before == pytest.approx(true, abs=CLOSE)
    assert true > 0.25
    await api.soon(0, PENDING)


@pytest.mark.parametrize(
    "patience",
    [aiohttp.ClientTimeout(connect=0.1), aiohttp.ClientTimeout(total=0.1)],
    ids=["connect", "total"],
)
async def test_a_wait_in_vain(
    api: Watched, session: aiohttp.ClientSession, patience: aiohttp.ClientTimeout
) -> None:
    held = [asyncio.create_task(get(session, "/gate")) for _ in range(2)]
    await api.soon(1.0, "connection_pool_usage")
    with pytest.raises(asyncio.TimeoutError):
        await session.get("/200", timeout=patience)
    await api.soon(1, VAIN, "total")
    await api.soon(1, "errors", "total")
    await api.soon(0, PENDING)
    Upstream.gate.set()
    await asyncio.gather(*held)


async def test_an_unread_answer_is_a_leak_with_a_name(api: Watched, session: aiohttp.ClientSession) -> None:
    leaked = []

    async def leak() -> None:
        leaked.append(await session.get("/large"))

    token = scope.set(CallScope("GET /checkout"))
    await leak()
    await leak()
    scope.reset(token)
    await api.soon(1.0, "connection_pool_usage")
    await api.soon(0, "active_requests")
    place = f"{FILE}:{leak.__code__.co_firstlineno + 1} in leak"
    assert api.sites() == {place: 2}
    assert api.explain().startswith(f"2 of 2 connections held: {place} for GET /checkout (2, longest ")
    for response in leaked:
        response.close()
    await api.soon(0.0, "connection_pool_usage")
    assert api.sites() == {}


async def test_failures_and_secrets(monitor: ResourceMonitor, session: aiohttp.ClientSession) -> None:
    api = Watched(monitor, session)
    port = free_port()
    for _ in range(3):
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://bob:{PASSWORD}@127.0.0.1:{port}/?token={PASSWORD}")
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await session.get("/reset")
    await api.soon(3, "requests", "total", outcome="ClientConnectorError")
    await api.soon(1.0, RATIO)
    await soon(lambda: monitor.health_of("it").status is HealthStatus.DOWN, "down")
    assert "in all" in api.explain(RATIO)
    said = kit.everything_said(monitor)
    assert PASSWORD not in said
    assert "bob" not in said
    task = asyncio.create_task(get(session, "/gate"))
    await api.soon(1, "connections", **ACTIVE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await api.soon(1, "requests", "total", outcome="cancelled")
    assert api.read("errors", "total") == 4
    await api.soon(0, "active_requests")


async def test_sessions_of_one_connector_are_one_resource(monitor: ResourceMonitor, upstream: str) -> None:
    monitor.discover_resources("http_client")
    async with aiohttp.TCPConnector() as connector, aiohttp.ClientSession(upstream) as once:
        await get(once, "/200")
        for _ in range(3):
            async with aiohttp.ClientSession(upstream, connector=connector, connector_owner=False) as brief:
                await get(brief, "/200")
                await asyncio.sleep(0.1)
            del brief
            gc.collect()
        await soon(
            lambda: any(r.target is connector for r in monitor.manager), "the connector stands for them"
        )
        assert all(r.target is not once for r in monitor.manager)
        (found,) = [r for r in monitor.manager if r.target is connector]
        await soon(lambda: monitor.read(found.id, "request_duration", stat="count") == 3, "of all three")


async def test_a_dropped_session_leaves(monitor: ResourceMonitor, upstream: str) -> None:
    monitor.discover_resources("http_client")
    session = aiohttp.ClientSession(upstream)
    for _ in range(2):
        await get(session, "/200")
    gone = weakref.ref(session)
    await soon(lambda: any(r.target is gone() for r in monitor.manager), "found with its second request")
    (id,) = [r.id for r in monitor.manager if r.target is session]
    await session.close()
    await soon(lambda: monitor.read(id, "connections_max") is None, "closed")
    del session
    await soon(lambda: (gc.collect(), gone())[1] is None, "the object goes")
    await soon(lambda: id not in monitor.manager, "the resource leaves")


async def test_a_frozen_and_a_killed_server(monitor: ResourceMonitor, http_server: HttpServer) -> None:
    async with aiohttp.ClientSession(http_server.url) as session:
        api = Watched(monitor, session)
        await get(session, "/200")

        def is_(status: HealthStatus) -> bool:
            return monitor.health_of("it").status is status

        await soon(lambda: is_(HealthStatus.UP), "up")
        http_server.freeze()
        hanging = asyncio.create_task(get(session, "/200"))
        await soon(lambda: is_(HealthStatus.DEGRADED), "the request that hangs", 15)
        assert "1 running: task" in api.explain("uno.http.client.oldest_request")
        http_server.thaw()
        assert await hanging == 200
        http_server.kill()
        for _ in range(3):
            with pytest.raises(aiohttp.ClientConnectionError):
                await get(session, "/200")
        await soon(lambda: is_(HealthStatus.DOWN), "down", 15)
        http_server.start()
        assert await get(session, "/200") == 200
        await soon(lambda: not is_(HealthStatus.DOWN), "back", 15)
