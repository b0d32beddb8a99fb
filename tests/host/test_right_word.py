"""Does the monitor say the right word soon when a server freezes, dies, restarts, is full or refuses the password?

All kinds of clients are watched by one monitor at its usual interval. ``pytest --log-cli-level=INFO`` shows how long it
took: 3 s are promised, what is asserted leaves room for a busy machine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aio_pika
import asyncpg
import psycopg_pool
import pytest
import redis
import redis.asyncio
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tests.servers import wait_until
from uno.core.monitoring.resources import HealthStatus, ResourceMonitor

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]

log = logging.getLogger("tests.right_word")

SECONDS = 30.0
PAUSE = 0.2
TEXT = sqlalchemy.text("SELECT 1")


class Shop:
    """An application that uses a client of each kind, in threads and on an event loop of its own."""

    def __init__(
        self, postgresql: servers.PostgreSQL, cache: servers.Redis, rabbitmq: servers.RabbitMQ
    ) -> None:
        self.servers: tuple[servers.Server, ...] = (postgresql, cache, rabbitmq)
        self.database, self.cache, self.broker = postgresql.url, cache.url, rabbitmq.url
        self.calls: dict[str, Callable[[], Any]] = {}
        self.async_calls: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.loop = asyncio.new_event_loop()
        self.busy, self.over = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self.loop.run_forever)]
        self.threads[0].start()
        self.ends: list[Callable[[], Any]] = []
        self.resources: dict[str, Any] = {}
        self.run(self.open())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def open(self) -> None:
        url = self.database.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, pool_size=5)
        aengine = create_async_engine(url, pool_size=5)
        pool = await asyncpg.create_pool(self.database, min_size=1, max_size=5)
        psycopg = psycopg_pool.ConnectionPool(self.database, min_size=1, max_size=5, open=True, timeout=2)
        await asyncio.to_thread(psycopg.wait)
        client, aclient = redis.Redis.from_url(self.cache), redis.asyncio.Redis.from_url(self.cache)
        broker = await aio_pika.connect_robust(self.broker, reconnect_interval=0.5)
        channel = await broker.channel()
        await channel.declare_queue("orders", durable=True)

        def query() -> None:
            with engine.connect() as connection:
                connection.execute(TEXT)

        def query_psycopg() -> None:
            with psycopg.connection() as connection:
                connection.execute("SELECT 1")

        async def query_async() -> None:
            async with aengine.connect() as connection:
                await connection.execute(TEXT)

        async def publish() -> None:
            await channel.default_exchange.publish(aio_pika.Message(b"1"), "orders")

        self.calls = {"engine": query, "psycopg": query_psycopg, "redis": lambda: client.get("a")}
        self.async_calls = {
            "async-engine": query_async,
            "asyncpg": lambda: pool.fetchval("SELECT 1"),
            "async-redis": lambda: aclient.get("a"),
            "rabbitmq": publish,
        }
        self.resources = {
            "engine": engine, "psycopg": psycopg, "redis": client, "async-engine": aengine, "asyncpg": pool,
            "async-redis": aclient, "rabbitmq": broker,
        }  # fmt: skip
        self.ends = [engine.dispose, psycopg.close, client.close]
        self.async_ends = [aengine.dispose, pool.close, aclient.aclose, broker.close]

    def start(self) -> None:
        """Each call again and again, as long as the shop is busy."""

        def again(call: Callable[[], Any]) -> None:
            while not self.over.wait(PAUSE):
                if self.busy.is_set():
                    with suppress(Exception):
                        call()

        async def again_async(call: Callable[[], Awaitable[Any]]) -> None:
            while not self.over.is_set():
                await asyncio.sleep(PAUSE)
                if self.busy.is_set():
                    with suppress(Exception):
                        await call()

        self.tasks = [
            asyncio.run_coroutine_threadsafe(again_async(c), self.loop) for c in self.async_calls.values()
        ]
        for call in self.calls.values():
            self.threads.append(threading.Thread(target=again, args=(call,)))
            self.threads[-1].start()

    def once(self) -> None:
        for call in self.calls.values():
            call()
        for acall in self.async_calls.values():
            self.run(self.awaited(acall))

    @staticmethod
    async def awaited(call: Callable[[], Awaitable[Any]]) -> None:
        await call()

    def close(self) -> None:
        self.over.set()
        for server in self.servers:
            server.recover()
        for task in self.tasks:
            task.result(60)
        for thread in self.threads[1:]:
            thread.join(60)
        for end in self.ends:
            end()
        for aend in self.async_ends:
            with suppress(Exception):
                self.run(aend())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.threads[0].join(10)
        self.loop.close()


@pytest.fixture
def shop(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis, rabbitmq: servers.RabbitMQ
) -> Iterator[Shop]:
    shop = Shop(postgresql, redis_server, rabbitmq)
    yield shop
    shop.close()


@pytest.fixture
def monitor(shop: Shop) -> Iterator[ResourceMonitor]:
    with ResourceMonitor() as monitor:
        for name, resource in shop.resources.items():
            monitor.manager.register(resource, id=name)
        shop.start()
        shop.once()
        yield monitor


def when(monitor: ResourceMonitor, words: set[HealthStatus], begun: float) -> dict[str, float]:
    """After how many seconds each resource had one of these words."""
    seen: dict[str, float] = {}
    ids = [r.id for r in monitor.manager if r.type in ("database", "redis", "message_broker")]

    def all_seen() -> bool:
        for id in ids:
            if monitor.health_of(id).status in words:
                seen.setdefault(id, round(time.monotonic() - begun, 2))
        return len(seen) == len(ids)

    try:
        wait_until(all_seen, SECONDS, f"{words}")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {({id: monitor.health_of(id) for id in ids}, seen)}") from None
    return seen


UP, WELL = (
    {HealthStatus.UP},
    {HealthStatus.UP, HealthStatus.DEGRADED},
)  # slow calls are told for some seconds more


@contextmanager
def all_at_once(steps: Iterable[Callable[[], None]]) -> Iterator[None]:
    """Begin the steps together, for some take their time to return."""
    threads = [threading.Thread(target=step) for step in steps]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("load", ["busy", "idle"])
@pytest.mark.parametrize("fault", ["frozen", "killed"])
def test_a_lost_server_is_down_and_comes_back(
    shop: Shop,
    monitor: ResourceMonitor,
    fault: str,
    load: str,
) -> None:
    if load == "busy":
        shop.busy.set()
    when(monitor, UP, time.monotonic())
    with all_at_once(server.freeze if fault == "frozen" else server.kill for server in shop.servers):
        down = when(monitor, {HealthStatus.DOWN}, time.monotonic())
    for server in shop.servers:  # a server ends with the thread that starts it
        server.thaw() if fault == "frozen" else server.start()
    back = when(monitor, WELL, time.monotonic())
    log.info("seconds until down: %s", down)
    log.info("seconds until it is back: %s", back)


def test_a_restarted_server_is_soon_up_again(shop: Shop, monitor: ResourceMonitor) -> None:
    shop.busy.set()
    when(monitor, UP, time.monotonic())
    for server in shop.servers:
        server.restart()
    log.info("seconds until it is back: %s", when(monitor, WELL, time.monotonic()))


async def test_a_server_without_connections_left_is_full_and_not_down(postgresql: servers.PostgreSQL) -> None:
    """Of an application that has none; whoever has some goes on with them."""
    url = postgresql.url.replace("postgresql://", "postgresql+asyncpg://")
    engine, taken = create_async_engine(url), list[Any]()

    async def query() -> None:
        with suppress(sqlalchemy.exc.DBAPIError, asyncpg.PostgresError, OSError):
            async with engine.connect() as connection:
                await connection.execute(TEXT)

    async def fill() -> None:
        await engine.dispose()  # a ping may have been quick to take one
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(postgresql.url))

    try:
        with ResourceMonitor() as monitor:
            monitor.manager.register(engine, id="db")
            await until(monitor, HealthStatus.UP, query)
            await fill()

            async def full() -> None:
                await fill()
                await query()

            log.info("seconds until it is full: %.2f", await until(monitor, HealthStatus.SATURATED, full))
            assert monitor.health_of("db").reason == "the server is out of connections"
            for connection in taken:
                await connection.close()
            log.info("seconds until it is back: %.2f", await until(monitor, HealthStatus.UP, query))
    finally:
        for connection in taken:
            await connection.close()
        await engine.dispose()


async def until(monitor: ResourceMonitor, word: HealthStatus, use: Callable[[], Awaitable[object]]) -> float:
    """Use the database until its health has this word; after how many seconds."""
    begun = time.monotonic()
    while monitor.health_of("db").status is not word:
        assert time.monotonic() - begun < SECONDS, monitor.health_of("db")
        await use()
        await asyncio.sleep(PAUSE)
    return time.monotonic() - begun


async def test_a_password_that_was_changed_is_said(postgresql: servers.PostgreSQL) -> None:
    admin = await asyncpg.connect(postgresql.url)
    try:
        await admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'first-secret'")
        url = postgresql.url.replace(f"{servers.USER}:{servers.PASSWORD}", "clerk:first-secret")
        pool = await asyncpg.create_pool(url, min_size=1, max_size=2)

        async def query() -> None:
            with suppress(asyncpg.PostgresError, OSError):
                await pool.fetchval("SELECT 1")

        with ResourceMonitor() as monitor:
            monitor.manager.register(pool, id="db")
            await until(monitor, HealthStatus.UP, query)
            await admin.execute("ALTER ROLE clerk PASSWORD 'second-secret'")
            await pool.expire_connections()
            log.info("seconds until down: %.2f", await until(monitor, HealthStatus.DOWN, query))
            assert monitor.health_of("db").reason == "access denied"
            await admin.execute("ALTER ROLE clerk PASSWORD 'first-secret'")
            log.info("seconds until it is back: %.2f", await until(monitor, HealthStatus.UP, query))
        await pool.close()
    finally:
        await admin.execute("DROP ROLE IF EXISTS clerk")
        await admin.close()
