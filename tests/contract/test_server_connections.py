"""Is it known how many connections the server itself takes, and does asking for it hurt nobody?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiomysql
import asyncmy
import asyncpg
import psycopg2.pool
import psycopg_pool
import pytest
import redis
import redis.asyncio
import sqlalchemy as sa
import valkey
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tests.contract.kit import IDLE, USED, Watched, soon
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

MAX, COUNT, RESERVED = (f"uno.db.server.connection.{what}" for what in ("max", "count", "reserved"))


class Server:
    """The three servers, by what an address of theirs begins with."""

    def __init__(self, postgresql: servers.Server, mariadb: servers.Server, cache: servers.Server) -> None:
        self.of = {"postgresql": postgresql, "mysql": mariadb, "redis": cache, "valkey": cache}

    def url(self, driver: str) -> str:
        system = driver.partition("+")[0]
        return self.of[system].url.replace(self.of[system].url.partition(":")[0], driver, 1)

    def settings(self) -> dict[str, Any]:
        where = {"host": servers.HOST, "port": self.of["mysql"].port, "db": "shop"}
        return {**where, "user": servers.USER, "password": servers.PASSWORD, "minsize": 1, "maxsize": 3}


@pytest.fixture
def server(postgresql: servers.PostgreSQL, mariadb: servers.MariaDB, redis_server: servers.Redis) -> Server:
    return Server(postgresql, mariadb, redis_server)


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    before = failures.cell.value
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor
    assert failures.cell.value == before, "a hook failed"


#: What makes a pool that has one connection, and what ends it.
Kind = tuple[Callable[[Server], Awaitable[Any]], Callable[[Any], Any]]


def engine(driver: str) -> Kind:
    async def make(server: Server) -> Any:
        made = sa.create_engine(server.url(driver), pool_size=2, max_overflow=1)
        with made.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        return made

    return make, lambda made: made.dispose()


def async_engine(driver: str) -> Kind:
    async def make(server: Server) -> Any:
        made = create_async_engine(server.url(driver), pool_size=2, max_overflow=1)
        async with made.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
        return made

    return make, lambda made: made.dispose()


async def _asyncpg(server: Server) -> Any:
    return await asyncpg.create_pool(server.url("postgresql"), min_size=1, max_size=3)


async def _psycopg(server: Server) -> Any:
    rows = {"row_factory": dict_row}
    pool = psycopg_pool.ConnectionPool(
        server.url("postgresql"), min_size=1, max_size=3, open=True, kwargs=rows
    )
    pool.wait()
    return pool


async def _psycopg_async(server: Server) -> Any:
    pool = psycopg_pool.AsyncConnectionPool(server.url("postgresql"), min_size=1, max_size=3, open=False)
    await pool.open(wait=True)
    return pool


async def _psycopg2(server: Server) -> Any:
    return psycopg2.pool.ThreadedConnectionPool(1, 3, server.url("postgresql"))


async def _aiomysql(server: Server) -> Any:
    return await aiomysql.create_pool(**server.settings(), cursorclass=aiomysql.DictCursor)


async def _asyncmy(server: Server) -> Any:
    return await asyncmy.create_pool(**server.settings())


async def _ends(pool: Any) -> None:
    pool.terminate()
    await pool.wait_closed()


async def _redis(server: Server) -> Any:
    client = redis.Redis.from_url(server.url("redis"))
    client.ping()
    return client


async def _redis_async(server: Server) -> Any:
    client = redis.asyncio.from_url(server.url("redis"))
    await client.ping()
    return client


async def _valkey(server: Server) -> Any:
    client = valkey.Valkey.from_url(server.url("valkey"))
    client.ping()
    return client


KINDS: dict[str, Kind] = {
    "sqlalchemy-psycopg": engine("postgresql+psycopg"),
    "sqlalchemy-psycopg2": engine("postgresql+psycopg2"),
    "sqlalchemy-pymysql": engine("mysql+pymysql"),
    "sqlalchemy-async-psycopg": async_engine("postgresql+psycopg"),
    "sqlalchemy-async-asyncpg": async_engine("postgresql+asyncpg"),
    "sqlalchemy-async-aiomysql": async_engine("mysql+aiomysql"),
    "asyncpg": (_asyncpg, lambda pool: pool.close()),
    "psycopg": (_psycopg, lambda pool: pool.close()),
    "psycopg-async": (_psycopg_async, lambda pool: pool.close()),
    "psycopg2": (_psycopg2, lambda pool: pool.closeall()),
    "aiomysql": (_aiomysql, _ends),
    "asyncmy": (_asyncmy, _ends),
    "redis": (_redis, lambda client: client.close()),
    "redis-async": (_redis_async, lambda client: client.aclose()),
    "valkey": (_valkey, lambda client: client.close()),
}


@pytest.fixture
async def made(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    make, end = KINDS[request.param]
    made = await make(server)
    yield made
    ended = end(made)
    if ended is not None:
        await ended


@pytest.mark.parametrize(("made", "kind"), [(kind, kind) for kind in KINDS], indirect=["made"], ids=KINDS)
async def test_the_server_tells_its_limit_on_a_connection_that_is_there(
    monitor: ResourceMonitor, made: Any, kind: str
) -> None:
    it = Watched(monitor, made, id="it")
    in_redis = "redis" in kind or kind == "valkey"
    await it.soon(10_000 if in_redis else 50, MAX)
    assert it.read("server_connections_max") == it.read(MAX)
    assert (it.read(COUNT) or 0) >= 1
    if in_redis or kind.endswith(("mysql", "asyncmy")):
        assert monitor.store.select("it", RESERVED) == [], "there is no such thing"
    else:
        assert it.read(RESERVED) == 3
    await it.soon(0, "connections", **USED)
    if not kind.startswith(
        "sqlalchemy"
    ):  # the first ping of an engine may have met the application's first query
        assert it.read("connections", **IDLE) == 1, "no connection was opened for it"
    assert it.read("errors", "total") == 0


async def test_a_pool_without_a_connection_to_spare_is_not_asked(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=1)
    roomy = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=2)
    try:
        it, other = Watched(monitor, pool, id="it"), Watched(monitor, roomy, id="other")
        await other.soon(50, MAX)  # meanwhile it would have been asked too
        assert it.read("connections_max") == 1
        assert monitor.store.select("it", MAX) == []
    finally:
        await pool.close()
        await roomy.close()


def test_who_may_not_ask_has_a_gap_and_nothing_else(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "guest", "on", ">guest-word", "~*", "+@all", "-info", "-config"
        )
        client = redis.Redis(port=redis_server.port, username="guest", password="guest-word")
        try:
            it = Watched(monitor, client, id="it")
            client.set("a", 1)
            asked = {"cmdstat_info": 0}

            def refused() -> bool:
                told = admin.info("commandstats").get("cmdstat_info", {})
                asked["cmdstat_info"] = told.get("rejected_calls", 0)
                return bool(asked["cmdstat_info"])

            servers.wait_until(refused, 10, "a question")
            assert client.get("a") == b"1"
            it.until(1, "connections", **IDLE)
            assert monitor.store.select("it", MAX) == []
            assert it.read("errors", "total") == 0
        finally:
            client.close()
            admin.execute_command("ACL", "DELUSER", "guest")


async def test_a_server_that_freezes_while_it_is_asked_costs_no_more_than_the_answer(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=3)
    it = Watched(monitor, pool, id="it")
    driver = it.driver
    try:
        await it.soon(50, MAX)
        assert await pool.fetchval("SELECT 1") == 1
        driver.detach(pool)  # so that it is asked again at once
        postgresql.freeze()
        driver.answered(pool)
        await soon(lambda: pool.get_idle_size() == 0, "the question is under way")
        postgresql.thaw()
        assert await asyncio.wait_for(pool.fetchval("SELECT 2"), 20) == 2
        await it.soon(0, "connections", **USED)
    finally:
        postgresql.recover()
        await pool.close()
