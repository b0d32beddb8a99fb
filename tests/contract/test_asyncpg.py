"""Are asyncpg's pools seen as they are: queries, waiting, holders, the frozen server?"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from tests import servers
from tests.contract.kit import Watched, names_without_series, soon
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

WAIT, USE, DURATION = "connection_wait_time", "connection_use_time", "query_duration"
CREATE, PENDING, TIMEOUTS = "db.client.connection.create_time", "connections_waiting", "connection_timeouts"
STATE = "db.client.connection.state"
USED, IDLE = {STATE: "used"}, {STATE: "idle"}


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    before = failures.cell.value
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        servers.wait_until(lambda: hasattr(asyncpg.Pool._acquire, "__uno_hook__"), 5, "the hooks")
        yield monitor
    assert failures.cell.value == before, "a hook failed"
    assert not hasattr(asyncpg.Pool._acquire, "__uno_hook__")


@pytest.fixture
async def pool(postgresql: servers.PostgreSQL) -> AsyncIterator[Any]:
    """Two connections, of which one is there from the beginning."""
    pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=2)
    yield pool
    postgresql.recover()
    await pool.close()


@pytest.fixture
def shop(monitor: ResourceMonitor, pool: Any) -> Watched:
    return Watched(monitor, pool)


async def test_queries_and_the_pool(shop: Watched, pool: Any, postgresql: servers.PostgreSQL) -> None:
    assert shop.resource.type == "database"
    assert shop.resource.endpoint == f"127.0.0.1:{postgresql.port}/postgres"
    assert await pool.fetchval("SELECT $1::int", 1) == 1
    async with pool.acquire() as connection:
        await connection.execute("SELECT 1")
        await connection.execute("SELECT $1::int", 1)
        statement = await connection.prepare("SELECT 1")
        await statement.fetch()
        await connection.executemany("SELECT $1::int", [(1,), (2,)])
        await shop.soon(1, "connections", **USED)
    await shop.soon(2, USE, "count")
    await shop.soon(5, DURATION, "count")  # the pool's own resets are not among them
    assert shop.read(WAIT, "count") == 2
    await shop.soon(1, "connections", **IDLE)
    await shop.soon(0.0, "connection_pool_usage")
    assert shop.read("connections_max") == 2
    assert names_without_series(shop) == set()
    assert (await shop.resource.get_statistics())["total_queries"] == 5
    assert shop.driver.bound_loop(pool) is asyncio.get_running_loop()


async def test_errors_by_type(shop: Watched, pool: Any) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await pool.execute("SELECT hunter2_canary")
    with pytest.raises(asyncpg.PostgresError):
        await pool.fetch("SELECT $1::int / 0", 1)
    await shop.soon(2, "errors", "total")
    said = shop.explain("uno.resource.errors")
    assert said.startswith("last error DivisionByZeroError")
    assert "canary" not in said


async def test_the_wait_is_the_true_one_and_a_wait_in_vain_a_timeout(shop: Watched, pool: Any) -> None:
    held = [await pool.acquire(), await pool.acquire()]
    await shop.soon(2, WAIT, "count")
    await shop.soon(1, CREATE, "count")
    before = shop.read(WAIT, "sum") or 0.0

    async def wait() -> float:
        begun = time.perf_counter()
        connection = await pool.acquire()
        waited = time.perf_counter() - begun
        await pool.release(connection)
        return waited

    waiting = asyncio.create_task(wait())
    await shop.soon(1, PENDING)
    await shop.soon(1.0, "connection_pool_usage")
    place = f"tests/contract/test_asyncpg.py:{wait.__code__.co_firstlineno + 2} in wait"
    assert shop.sites(waiting=True) == {place: 1}
    assert shop.explain().startswith("2 of 2 connections held: tests/contract/test_asyncpg.py:")
    await asyncio.sleep(0.2)
    await pool.release(held.pop())
    true = await waiting
    await shop.soon(3, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true, abs=max(0.005, 0.02 * true))
    held.append(await pool.acquire())
    with pytest.raises(TimeoutError):
        await pool.acquire(timeout=0.1)
    await shop.soon(1, TIMEOUTS, "total")
    for connection in held:
        await pool.release(connection)
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == shop.sites(waiting=True) == {}


async def test_a_terminated_or_cancelled_connection_is_no_longer_held(shop: Watched, pool: Any) -> None:
    connection = await pool.acquire()
    connection.terminate()
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == {}

    async def query() -> None:
        await pool.execute("SELECT pg_sleep(30)")

    task = asyncio.create_task(query())
    await shop.soon(1, "connections", **USED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == {}
    assert shop.read("errors", "total") == 0


async def test_a_discovered_pool_goes_when_it_is_dropped(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=3)
    await pool.fetchval("SELECT 1")
    (found,) = [r for r in monitor.discover_resources("database") if r.target is pool]
    await soon(lambda: monitor.read(found.id, "connections_max") == 3)
    await pool.close()
    del pool
    await soon(lambda: (gc.collect(), found.id not in monitor.manager)[1], "unregistered")


async def test_a_pool_that_is_not_awaited_yet(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    pool = asyncpg.create_pool(postgresql.url, min_size=0, max_size=3)
    shop = Watched(monitor, pool)
    assert shop.resource.endpoint == f"127.0.0.1:{postgresql.port}/postgres"
    assert servers.PASSWORD not in repr(shop.resource)
    async with pool:
        assert await pool.fetchval("SELECT 1") == 1
        await shop.soon(1, DURATION, "count")
        await shop.soon(1, CREATE, "count")


async def test_pings_stay_on_the_loop_that_owns_the_connections(shop: Watched, pool: Any) -> None:
    ping: Any = shop.driver.ping
    held = [await pool.acquire() for _ in range(2)]
    assert await ping(pool) is None, "no free slot: nothing can be told"
    for connection in held:
        await pool.release(connection)
    assert await asyncio.to_thread(lambda: asyncio.run(ping(pool))) is None, "not from another loop"
    assert await ping(pool) is True


async def test_the_monitors_pings_are_no_traffic(shop: Watched, monitor: ResourceMonitor) -> None:
    await soon(lambda: monitor.health_of("it").status is HealthStatus.UP, "pinged")
    await shop.soon(0, DURATION, "count")
    assert shop.read(WAIT, "count") == shop.read(USE, "count") == 0


@pytest.mark.slow
async def test_a_frozen_server(
    shop: Watched, monitor: ResourceMonitor, pool: Any, postgresql: servers.PostgreSQL
) -> None:
    def status() -> HealthStatus:
        return monitor.health_of("it").status

    both = (
        pool.fetchval("SELECT pg_sleep(0.1)") for _ in range(2)
    )  # a ping may have the one, the call has the other
    await asyncio.gather(*both)
    await soon(lambda: status() is HealthStatus.UP, "up")
    postgresql.freeze()
    call = asyncio.create_task(pool.fetchval("SELECT 1"))
    await soon(lambda: status() is not HealthStatus.UP, "not up soon after calls stall", 15)
    await soon(
        lambda: "a call has been running for" in shop.explain("query_duration") or shop.sites(waiting=True),
        "said, or it waits for the connection that a ping had just then",
    )
    assert not call.done(), "it waits as it would without uno"
    postgresql.thaw()
    assert await call == 1
    deadline = time.monotonic() + 15
    while status() is not HealthStatus.UP:
        assert await pool.fetchval("SELECT 1") == 1
        assert time.monotonic() < deadline, "it recovers"
        await asyncio.sleep(0.02)
