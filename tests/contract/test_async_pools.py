"""Are asyncio drivers' pools seen as they are: psycopg_pool's two on PostgreSQL, aiomysql and asyncmy on MariaDB?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiomysql
import asyncmy
import psycopg
import psycopg_pool
import pymysql
import pytest

from tests import servers
from tests.contract import kit
from tests.contract.kit import CLOSE, CREATE, IDLE, PENDING, TIMEOUTS, USE, USED, WAIT, Watched, soon
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, failures, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

LIBRARIES = ("psycopg", "aiomysql.", "asyncmy.")
HOOKED = {"AsyncConnectionPool.getconn", "AsyncCursor.execute", "Pool._acquire", "Connection.query"}
KINDS = ["psycopg", "psycopg-null", "aiomysql", "asyncmy"]
HERE = "tests/contract/test_async_pools.py"


class Pool:
    """One kind of pool with two connections at most, spoken to in one way."""

    def __init__(self, kind: str, server: servers.Server) -> None:
        self.kind, self.server = kind, server
        self.real: Any = None
        self.mysql = not kind.startswith("psycopg")
        self.errors: Any = (pymysql.Error, asyncmy.errors.Error) if self.mysql else (psycopg.Error,)
        self.sleep = "SELECT SLEEP(30)" if self.mysql else "SELECT pg_sleep(30)"

    async def open(self) -> Pool:
        url = self.server.url
        if self.kind == "psycopg":
            self.real = psycopg_pool.AsyncConnectionPool(
                url, min_size=1, max_size=2, open=False, timeout=1, reconnect_timeout=1
            )
            await self.real.open(wait=True)
        elif self.kind == "psycopg-null":
            self.real = psycopg_pool.AsyncNullConnectionPool(url, max_size=2, open=False)
            await self.real.open()
        else:
            library: Any = {"aiomysql": aiomysql, "asyncmy": asyncmy}[self.kind]
            where = {"host": servers.HOST, "port": self.server.port, "db": "shop"}
            who = {"user": servers.USER, "password": servers.PASSWORD}
            self.real = await library.create_pool(minsize=1, maxsize=2, **where, **who)
        return self

    async def take(self) -> Any:
        return await (self.real.acquire() if self.mysql else self.real.getconn())

    async def give(self, connection: Any) -> None:
        if self.mysql:
            await self.real.release(connection)
        else:
            await self.real.putconn(connection)

    async def query(self, connection: Any, statement: str = "SELECT 1") -> Any:
        async with connection.cursor() as cursor:
            await cursor.execute(statement)
            return await cursor.fetchone()

    async def select(self, statement: str = "SELECT 1") -> Any:
        connection = await self.take()
        try:
            return await self.query(connection, statement)
        finally:
            await self.give(connection)

    async def close(self) -> None:
        if self.mysql:
            self.real.terminate()
            await self.real.wait_closed()
        else:
            await self.real.close()


@pytest.fixture(scope="module")
def monitor() -> Iterator[ResourceMonitor]:
    before = failures.cell.value
    assert kit.hooked(*LIBRARIES) == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: set(kit.hooked(*LIBRARIES)) >= HOOKED, 5, "the hooks")
        assert "query" in vars(asyncmy.Connection)
        assert hasattr(asyncmy.Connection.query, "__uno_hook__")
        yield monitor
    assert failures.cell.value == before, "a hook failed"
    assert kit.hooked(*LIBRARIES) == []


Make = Callable[[str], Awaitable[tuple[Pool, Watched]]]


@pytest.fixture
async def make(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL, mariadb: servers.MariaDB
) -> AsyncIterator[Make]:
    made: list[tuple[Pool, Watched]] = []

    async def make(kind: str) -> tuple[Pool, Watched]:
        server: servers.Server = postgresql if kind.startswith("psycopg") else mariadb
        pool = await Pool(kind, server).open()
        made.append((pool, Watched(monitor, pool.real, f"it-{kind}")))
        return made[-1]

    yield make
    for pool, watched in made:
        pool.server.recover()
        await pool.close()
        monitor.manager.unregister(watched.resource)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_pool_and_its_queries(make: Make, kind: str) -> None:
    pool, shop = await make(kind)
    assert shop.resource.type == "database"
    database = "shop" if pool.mysql else "postgres"
    assert shop.resource.endpoint == f"127.0.0.1:{pool.server.port}/{database}"
    one, two = await pool.take(), await pool.take()
    await shop.soon(1.0, "connection_pool_usage")
    await shop.soon(2, "connections", **USED)
    await shop.soon(0, "connections", **IDLE)
    assert await pool.query(one) == (1,)
    await pool.give(one)
    await pool.give(two)
    await shop.soon(0, "connections", **USED)
    await shop.soon(0 if kind == "psycopg-null" else 2, "connections", **IDLE)
    await shop.soon(2, USE, "count")
    await shop.soon(1, "query_duration", "count")
    # The first one was made when the pool was, which aiomysql's hooks cannot have seen in time for a Stat of ours.
    assert shop.read(CREATE, "count") == 2
    assert shop.read("connections_max") == 2
    assert shop.read(WAIT, "count") == 2
    assert (shop.read(WAIT, "sum") or 0) < CLOSE, "connecting is no waiting"
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    assert shop.driver.bound_loop(pool.real) is asyncio.get_running_loop()
    with pytest.raises(pool.errors):
        await pool.select("SELECT hunter2_canary")
    await shop.soon(1, "errors", "total")
    assert "last error" in shop.explain("uno.resource.errors")
    said = kit.everything_said(shop.monitor)
    assert "canary" not in said
    assert servers.PASSWORD not in said


@pytest.mark.parametrize("kind", KINDS)
async def test_the_wait_is_the_true_one(make: Make, kind: str) -> None:
    pool, shop = await make(kind)
    held = [await pool.take(), await pool.take()]
    await shop.soon(2, WAIT, "count")
    before = shop.read(WAIT, "sum") or 0.0

    async def wait() -> float:
        begun = time.perf_counter()
        connection = await (pool.real.acquire() if pool.mysql else pool.real.getconn())
        waited = time.perf_counter() - begun
        await pool.give(connection)
        return waited

    waiting = asyncio.create_task(wait())
    await shop.soon(1, PENDING)
    place = f"{HERE}:{wait.__code__.co_firstlineno + 2} in wait"
    assert shop.sites(waiting=True) == {place: 1}
    assert shop.explain().startswith(f"2 of 2 connections held: {HERE}:")
    await asyncio.sleep(0.1)
    await pool.give(held.pop())
    true = await waiting
    await shop.soon(3, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true, abs=CLOSE)
    held.append(await pool.take())
    in_vain = pool.real.acquire() if pool.mysql else pool.real.getconn(timeout=0.1)
    with pytest.raises((TimeoutError, psycopg_pool.PoolTimeout)):
        await asyncio.wait_for(in_vain, 0.1 if pool.mysql else 5)
    if not pool.mysql:
        await shop.soon(1, TIMEOUTS, "total")
    for connection in held:
        await pool.give(connection)
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == shop.sites(waiting=True) == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_leak_is_named_to_the_line(make: Make, kind: str) -> None:
    pool, shop = await make(kind)
    leaked: list[Any] = []

    async def leak() -> None:
        leaked.append(await (pool.real.acquire() if pool.mysql else pool.real.getconn()))

    token = scope.set(CallScope("GET /orders/{id}"))
    await leak()
    await leak()
    scope.reset(token)
    await shop.soon(1.0, "connection_pool_usage")
    place = f"{HERE}:{leak.__code__.co_firstlineno + 1} in leak"
    assert shop.sites() == {place: 2}
    assert f"2 of 2 connections held: {place} for GET /orders/{{id}} (2, longest " in shop.explain()
    for connection in leaked:
        await pool.give(connection)
    await shop.soon(0, "uno.db.client.connection.oldest_use")


@pytest.mark.parametrize("kind", KINDS)
async def test_context_managers_and_cancelled_queries(make: Make, kind: str) -> None:
    pool, shop = await make(kind)
    async with pool.real.acquire() if pool.mysql else pool.real.connection() as connection:
        await pool.query(connection)
        await shop.soon(1, "connections", **USED)
        (place,) = shop.sites()
        assert place.endswith("in test_context_managers_and_cancelled_queries")
    await shop.soon(1, USE, "count")
    task = asyncio.create_task(pool.select(pool.sleep))
    await shop.soon(1, "connections", **USED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == {}
    assert shop.read("errors", "total") == 0
    stat = shop.monitor.stat_of(shop.resource)
    assert stat is not None
    assert stat.running == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_pings_stay_on_their_loop_and_take_what_nobody_needs(make: Make, kind: str) -> None:
    pool, shop = await make(kind)
    ping: Any = shop.driver.ping
    stat = shop.monitor.stat_of(shop.resource)
    assert stat is not None
    held = [await pool.take(), await pool.take()]
    stat.last_ok = 0.0  # as if nothing had happened for long
    assert await ping(pool.real) is None, "used up is not down"
    for connection in held:
        await pool.give(connection)
    assert await asyncio.to_thread(lambda: asyncio.run(ping(pool.real))) is None, "not from another loop"
    assert await ping(pool.real) is True
    assert await pool.select() == (1,)


@pytest.mark.parametrize("kind", ["psycopg", "aiomysql"])
async def test_the_monitors_pings_are_no_traffic(monitor: ResourceMonitor, make: Make, kind: str) -> None:
    _, shop = await make(kind)
    await soon(lambda: monitor.health_of(shop.resource.id).status is HealthStatus.UP, "pinged")
    await soon(lambda: shop.read("query_duration", "count") == 0, "none is counted")
    assert shop.read(WAIT, "count") == shop.read(USE, "count") == 0


@pytest.mark.slow
async def test_frozen_servers_and_lost_ones(
    make: Make, monitor: ResourceMonitor, postgresql: servers.PostgreSQL, mariadb: servers.MariaDB
) -> None:
    both = (postgresql, mariadb)
    shops = [await make(kind) for kind in ("psycopg", "aiomysql", "asyncmy")]

    def status(shop: Watched) -> HealthStatus:
        return monitor.health_of(shop.resource.id).status

    async def all_soon(condition: Callable[[Watched], object], what: str) -> None:
        for pool, shop in shops:
            await soon(lambda shop=shop: condition(shop), f"{pool.kind}: {what}", 20)  # type: ignore[misc]

    for pool, _ in shops:
        assert await pool.select() == (1,)
    await all_soon(lambda shop: status(shop) is HealthStatus.UP, "up")
    for server in both:
        server.freeze()
    calls = [asyncio.create_task(pool.select()) for pool, _ in shops]
    await all_soon(lambda shop: status(shop) is not HealthStatus.UP, "not up soon after calls stall")
    await all_soon(
        lambda shop: (
            "a call has been running for" in shop.explain("query_duration") or shop.sites(waiting=True)
        ),
        "said, or it waits for the connection that a ping had just then",
    )
    assert not any(call.done() for call in calls), "they wait as they would without uno"
    for server in both:
        server.thaw()
    assert await asyncio.gather(*calls) == [(1,)] * 3
    for server in both:
        server.kill()
    for pool, _ in shops:
        with pytest.raises((*pool.errors, OSError)):
            await asyncio.gather(pool.select(), pool.select(), pool.select())
    await all_soon(lambda shop: (shop.read("errors", "total") or 0) >= 1, "an error")
    await all_soon(lambda shop: shop.read("connections", **USED) == 0, "nothing is out")
    assert servers.PASSWORD not in kit.everything_said(monitor)
    for server in both:
        server.restart()
    deadline = time.monotonic() + 15
    while any(status(shop) is not HealthStatus.UP for _, shop in shops):
        for pool, _ in shops:
            try:
                assert await pool.select() == (1,)
            except (*pool.errors, OSError):
                assert time.monotonic() < deadline, "it recovers"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_discovered_pool_goes_when_it_is_dropped(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL, mariadb: servers.MariaDB, kind: str
) -> None:
    pool = await Pool(kind, postgresql if kind.startswith("psycopg") else mariadb).open()
    await pool.select()
    found = [r for r in monitor.discover_resources("database") if r.target is pool.real]
    found = found or [r for r in monitor.manager if r.target is pool.real]
    await soon(lambda: monitor.series(found[0].id), "a collection")
    await pool.close()
    pool.real = None
    await kit.gone(monitor, found[0])
