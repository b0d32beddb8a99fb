"""How true are the times of waiting, and is every leak named?

Of each kind of pool, with one connection that somebody holds: how long another one waits is taken by the application
right around its call, in the same thread, and compared with what uno has counted for it. A leak is a connection that is
taken and not returned, by a thread of the application, one of an executor, or a task; some are dropped as well.
The real servers are those of the tests.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple

from tests import servers
from tests.upstream import Upstream

from benchmarks._measure import line
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import ResourceManager

ROUNDS, LEAKS = 20, 6


class Pool(NamedTuple):
    """One pool. ``take()`` makes the call of the library's method, so that none of our lines is between it and whoever
    makes it."""

    name: str
    target: Any
    take: Callable[[], methodcaller]
    give: Callable[[Any], Any]
    close: Callable[[], Any]


class Found(NamedTuple):
    """What was measured of one kind of pool: seconds, and leaks that were named out of those there were."""

    name: str
    errors: list[float]
    waits: list[float]
    named: int
    leaked: int


class Places(NamedTuple):
    """Where the servers are."""

    postgresql: str
    redis: int
    http: str


def sync_pools(at: Places, size: int) -> Iterator[Callable[[], Pool]]:
    """The pools whose callers block."""
    import httpx
    import psycopg_pool
    import redis
    import sqlalchemy

    def engine() -> Pool:
        url = at.postgresql.replace("postgresql", "postgresql+psycopg", 1)
        made = sqlalchemy.create_engine(url, pool_size=size, max_overflow=0)
        return Pool(
            "SQLAlchemy", made, partial(methodcaller, "connect"), sqlalchemy.Connection.close, made.dispose
        )

    def psycopg() -> Pool:
        made = psycopg_pool.ConnectionPool(at.postgresql, min_size=size, max_size=size, open=True)
        made.wait()
        return Pool(
            "psycopg_pool",
            made,
            partial(methodcaller, "getconn"),
            lambda c: made.putconn(c),
            made.close,
        )

    def blocking() -> Pool:
        made = redis.BlockingConnectionPool(max_connections=size, port=at.redis)
        return Pool(
            "redis, blocking pool",
            made,
            partial(methodcaller, "get_connection"),
            lambda c: made.release(c),
            made.disconnect,
        )

    def http() -> Pool:
        made = httpx.Client(limits=httpx.Limits(max_connections=size), base_url=at.http)

        def take() -> methodcaller:
            return methodcaller("send", made.build_request("GET", "/200"), stream=True)

        return Pool("httpx, with the request itself", made, take, lambda r: r.close(), made.close)

    yield from (engine, psycopg, blocking, http)


def async_pools(at: Places, size: int) -> Iterator[Callable[[], Awaitable[Pool]]]:
    """The pools of asyncio."""
    import asyncpg
    import httpx
    import psycopg_pool
    import redis.asyncio
    from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

    async def engine() -> Pool:
        url = at.postgresql.replace("postgresql", "postgresql+asyncpg", 1)
        made = create_async_engine(url, pool_size=size, max_overflow=0)

        async def close() -> None:
            await made.dispose()

        return Pool(
            "SQLAlchemy asyncio", made, partial(methodcaller, "connect"), AsyncConnection.close, close
        )

    async def asyncpg_() -> Pool:
        made = await asyncpg.create_pool(at.postgresql, min_size=size, max_size=size)

        async def close() -> None:
            made.terminate()

        return Pool("asyncpg", made, partial(methodcaller, "acquire"), made.release, close)

    async def psycopg() -> Pool:
        made = psycopg_pool.AsyncConnectionPool(at.postgresql, min_size=size, max_size=size, open=False)
        await made.open(wait=True)
        return Pool(
            "psycopg_pool asyncio",
            made,
            partial(methodcaller, "getconn"),
            lambda c: made.putconn(c),
            made.close,
        )

    async def blocking() -> Pool:
        made: Any = redis.asyncio.BlockingConnectionPool(max_connections=size, port=at.redis)
        return Pool(
            "redis asyncio, blocking pool",
            made,
            partial(methodcaller, "get_connection"),
            lambda c: made.release(c),
            made.disconnect,
        )

    async def http() -> Pool:
        made = httpx.AsyncClient(limits=httpx.Limits(max_connections=size), base_url=at.http)

        def take() -> methodcaller:
            return methodcaller("send", made.build_request("GET", "/200"), stream=True)

        return Pool("httpx asyncio, with the request itself", made, take, httpx.Response.aclose, made.aclose)

    yield from (engine, asyncpg_, psycopg, blocking, http)


class Watched:
    """One pool that a monitor watches, which ticks by hand."""

    def __init__(self, pool: Pool) -> None:
        self.monitor = ResourceMonitor(ResourceManager(), interval=3_600)
        self.resource = self.monitor.manager.register(pool.target, id="it")
        self.metric = (
            "http.client.wait_time" if self.resource.type == "http_client" else "connection_wait_time"
        )
        self.monitor.tick()

    def waited(self) -> float:
        """Seconds of waiting, as counted so far."""
        self.monitor.tick()
        return self.monitor.read("it", self.metric, stat="sum") or 0.0

    def named(self, place: str) -> int:
        """How many slots are said to be held there."""
        self.monitor.tick()
        return sum(holder.slots for holder in self.monitor.holders("it") if holder.site == place)


def _place(function: Any) -> str:
    return f"benchmarks/waits.py:{function.__code__.co_firstlineno + 1} in {function.__name__}"


def sync_pool(make: Callable[[], Pool], make_large: Callable[[], Pool]) -> Found:
    """Waits and leaks of one kind of pool."""
    pool = make()
    watched = Watched(pool)
    pool.give(pool.take()(pool.target))
    errors, waits = [], []
    for number in range(ROUNDS):
        held, before, true = pool.take()(pool.target), watched.waited(), list[float]()

        def wait(true: list[float] = true) -> None:
            begun = time.perf_counter()
            connection = pool.take()(pool.target)
            true.append(time.perf_counter() - begun)
            pool.give(connection)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.02 + 0.005 * number)
        pool.give(held)
        thread.join()
        errors.append(watched.waited() - before - true[0])
        waits.append(true[0])
    watched.monitor.stop()
    pool.close()

    pool, kept = make_large(), list[Any]()
    watched = Watched(pool)

    def leak() -> None:
        kept.append(pool.take()(pool.target))

    with ThreadPoolExecutor(2) as executor:
        for number in range(LEAKS):
            time.sleep(0.002)  # leaks come one by one
            if number % 3 == 0:
                leak()
            elif number % 3 == 1:
                executor.submit(leak).result()
            else:
                thread = threading.Thread(target=leak)
                thread.start()
                thread.join()
    if pool.name.startswith(("psycopg", "redis")):  # the others take back what is dropped
        kept.clear()
        gc.collect()
    named = watched.named(_place(leak))
    for connection in kept:
        pool.give(connection)
    watched.monitor.stop()
    pool.close()
    return Found(pool.name, errors, waits, named, LEAKS)


async def async_pool(make: Callable[[], Awaitable[Pool]], make_large: Callable[[], Awaitable[Pool]]) -> Found:
    """The same for asyncio."""
    pool = await make()
    watched = Watched(pool)
    await pool.give(await pool.take()(pool.target))
    errors, waits = [], []

    async def wait() -> float:
        begun = time.perf_counter()
        connection = await pool.take()(pool.target)
        true = time.perf_counter() - begun
        await pool.give(connection)
        return true

    for number in range(ROUNDS):
        held, before = await pool.take()(pool.target), watched.waited()
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.02 + 0.005 * number)
        await pool.give(held)
        true = await waiting
        errors.append(watched.waited() - before - true)
        waits.append(true)
    watched.monitor.stop()
    await pool.close()

    pool, kept = await make_large(), list[Any]()
    watched = Watched(pool)

    async def leak() -> None:
        kept.append(await pool.take()(pool.target))

    for number in range(LEAKS):
        await asyncio.sleep(0.002)
        await (leak() if number % 2 else asyncio.create_task(leak()))
    named = watched.named(_place(leak))
    for connection in kept:
        await pool.give(connection)
    watched.monitor.stop()
    await pool.close()
    return Found(pool.name, errors, waits, named, LEAKS)


@contextmanager
def places() -> Iterator[Places]:
    """Servers, for as long as the block lasts."""
    with ExitStack() as stack:
        postgresql, redis, http = (stack.enter_context(closing(make())) for make in SERVERS)
        yield Places(postgresql.url, redis.port, http.url)


SERVERS: tuple[Callable[[], Any], ...] = (servers.PostgreSQL, servers.Redis, Upstream)


def measure(at: Places) -> Iterator[Found]:
    """All kinds in turn."""
    for make, large in zip(sync_pools(at, 1), sync_pools(at, LEAKS), strict=True):
        yield sync_pool(make, large)
    for amake, alarge in zip(async_pools(at, 1), async_pools(at, LEAKS), strict=True):
        yield asyncio.run(async_pool(amake, alarge))


def off(found: Found) -> list[float]:
    """By how much each wait was wrong, in shares of what is allowed: 5 ms or 2 %."""
    return [
        abs(error) / max(0.005, 0.02 * wait) for error, wait in zip(found.errors, found.waits, strict=True)
    ]


def run() -> None:
    """The error of each wait, and the leaks that were named."""
    with places() as at:
        for found in measure(at):
            errors = [abs(error) for error in found.errors]
            right = sum(share <= 1 for share in off(found))
            line(
                f"wait time: {found.name}"[:58],
                f"{statistics.median(errors) * 1e3:.3f} ms",
                "<= 5 ms, 2 %",
                f"worst {max(errors) * 1e3:.3f} ms, {right} of {len(errors)} within; {found.named} of"
                f" {found.leaked} leaks named",
            )
