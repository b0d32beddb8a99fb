"""Is the application's own result the same with uno and without, whatever breaks, and does uno say so and recover?

Real clients talk to real servers through a network that is slow, silent, cut or refusing (``tests.chaos``). All of them
go through the same faults at the same time, first without a monitor and then with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psycopg
import psycopg_pool
import pytest
import redis
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tests.chaos import Chaos
from tests.servers import HOST, PASSWORD
from tests.upstream import HttpServer
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.resources import Health, HealthStatus, ResourceMonitor
from uno.core.resources import ResourceManager
from uno.testing import everything_said, hooked, soon

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]

#: What is promised is 3 s; a busy machine gets more.
SAID = 30.0
#: Those that wait for an answer no longer than this.
PATIENCE = 3
IMPATIENT = ("asyncpg", "redis", "redis-asyncio", "httpx", "httpx-asyncio")
#: Nobody waits for long, and nothing is tried again.
QUICK: dict[str, Any] = {"retry": None, "socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}


Call = Callable[[], Awaitable[object]]


def threaded(function: Callable[[], object]) -> Call:
    """What blocks, called as an application on asyncio does."""

    def call() -> Awaitable[object]:
        return asyncio.get_running_loop().run_in_executor(None, function)

    return call


class Client:
    """One client of one library, that does one thing: ``call`` gives its answer."""

    def __init__(self, target: Any, call: Call, close: Call) -> None:
        self.target, self.call, self.close = target, call, close


def database(driver: str, port: int) -> str:
    return f"postgresql{driver}://guest:{PASSWORD}@{HOST}:{port}/postgres"


async def sqlalchemy_sync(port: int) -> Client:
    engine = sa.create_engine(database("+psycopg", port), pool_size=2, max_overflow=0, pool_timeout=2)

    def call() -> object:
        with engine.connect() as connection:
            return connection.execute(sa.text("SELECT 40 + 2")).scalar()

    return Client(engine, threaded(call), threaded(engine.dispose))


async def sqlalchemy_async(port: int) -> Client:
    engine = create_async_engine(database("+asyncpg", port), pool_size=2, max_overflow=0, pool_timeout=2)

    async def call() -> object:
        async with engine.connect() as connection:
            return (await connection.execute(sa.text("SELECT 40 + 2"))).scalar()

    return Client(engine, call, engine.dispose)


async def asyncpg_pool(port: int) -> Client:
    pool = await asyncpg.create_pool(
        database("", port), min_size=1, max_size=2, command_timeout=PATIENCE, timeout=PATIENCE
    )

    async def call() -> object:
        return await pool.fetchval("SELECT 40 + 2")

    async def close() -> None:
        pool.terminate()

    return Client(pool, call, close)


async def psycopg_sync(port: int) -> Client:
    pool = psycopg_pool.ConnectionPool(database("", port), min_size=1, max_size=2, open=False, timeout=1)
    await threaded(lambda: pool.open(wait=True))()

    def call() -> object:
        with pool.connection() as connection:
            return connection.execute("SELECT 40 + 2").fetchone()[0]  # type: ignore[index]

    return Client(pool, threaded(call), threaded(pool.close))


async def psycopg_async(port: int) -> Client:
    pool = psycopg_pool.AsyncConnectionPool(database("", port), min_size=1, max_size=2, open=False, timeout=1)
    await pool.open(wait=True)

    async def call() -> object:
        async with pool.connection() as connection:
            return (await (await connection.execute("SELECT 40 + 2")).fetchone())[0]  # type: ignore[index]

    return Client(pool, call, pool.close)


async def redis_sync(port: int) -> Client:
    client = redis.Redis(port=port, max_connections=2, **QUICK)
    return Client(client, threaded(lambda: len(client.echo("x" * 42))), threaded(client.close))


async def redis_async(port: int) -> Client:
    client: Any = redis.asyncio.Redis(port=port, max_connections=2, **QUICK)

    async def call() -> object:
        return len(await client.echo("x" * 42))

    return Client(client, call, client.aclose)


async def httpx_sync(port: int) -> Client:
    client = httpx.Client(base_url=f"http://{HOST}:{port}", timeout=PATIENCE)
    return Client(client, threaded(lambda: client.get("/200").text), threaded(client.close))


async def httpx_async(port: int) -> Client:
    client = httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=PATIENCE)

    async def call() -> object:
        return (await client.get("/200")).text

    return Client(client, call, client.aclose)


MAKERS: dict[str, tuple[str, Callable[[int], Awaitable[Client]]]] = {
    "sqlalchemy": ("postgresql", sqlalchemy_sync),
    "sqlalchemy-asyncio": ("postgresql", sqlalchemy_async),
    "asyncpg": ("postgresql", asyncpg_pool),
    "psycopg": ("postgresql", psycopg_sync),
    "psycopg-asyncio": ("postgresql", psycopg_async),
    "redis": ("redis", redis_sync),
    "redis-asyncio": ("redis", redis_async),
    "httpx": ("http", httpx_sync),
    "httpx-asyncio": ("http", httpx_async),
}


Servers = dict[str, servers.Server]


class Application:
    """All clients, each with a network of its own before its server."""

    def __init__(self, these: Servers) -> None:
        self.servers = these
        self.networks = {name: Chaos(these[kind].port) for name, (kind, _) in MAKERS.items()}
        self.clients: dict[str, Client] = {}
        self.admin = redis.Redis(port=these["redis"].port)

    async def open(self, *, direct: bool = False) -> None:
        """Make every client; ``direct``, with nothing between it and its server."""
        for name, (kind, make) in MAKERS.items():
            self.clients[name] = await make(self.servers[kind].port if direct else self.networks[name].port)

    async def close(self) -> None:
        """Close every client, and the networks."""
        for client in self.clients.values():
            await client.close()
        self.admin.close()
        for network in self.networks.values():
            await asyncio.to_thread(network.close)

    def network(self, fault: str, *arguments: float) -> None:
        """Do something to all networks."""
        for network in self.networks.values():
            getattr(network, fault)(*arguments)

    def begin(self) -> dict[str, asyncio.Task[str]]:
        """One call of each client, begun."""
        return {name: asyncio.create_task(outcome(client.call)) for name, client in self.clients.items()}

    async def call(self) -> dict[str, str]:
        """One call of each client: what each gave."""
        return await ended(self.begin())


async def outcome(call: Call) -> str:
    """What a call gives, so that it can be compared: a value or the type of an exception."""
    try:
        return repr(await call())
    except Exception as error:  # noqa: BLE001 - it is the result
        return type(error).__qualname__


async def ended(calls: dict[str, asyncio.Task[str]]) -> dict[str, str]:
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


def is_broken(health: Health) -> bool:
    return health.status in (HealthStatus.DOWN, HealthStatus.DEGRADED)


def is_well(health: Health) -> bool:
    """On a busy machine a call may be slow for other reasons than the fault."""
    return health.status is HealthStatus.UP or health.reason.endswith((".duration", ".oldest_request"))


class Watch:
    """What the monitor says of the clients; nothing, where there is none."""

    def __init__(self, monitor: ResourceMonitor | None, app: Application) -> None:
        self.monitor, self.app = monitor, app
        for name, client in app.clients.items():
            if monitor is not None:
                monitor.manager.register(client.target, id=name)

    async def says(self, fault: str, right: Callable[[Health], bool], *, calling: bool) -> None:
        """Wait until what is said of each client is right, while the application goes on, or while its calls hang."""
        if self.monitor is None:
            return
        begun = time.monotonic()
        missing = set(self.app.clients)
        calls = self.app.begin() if calling else {}
        while missing:
            for name in list(missing):
                if right(self.monitor.health_of(name)):
                    missing.remove(name)
                elif name in calls and calls[name].done():
                    calls[name] = asyncio.create_task(outcome(self.app.clients[name].call))
            late = {name: self.monitor.health_of(name) for name in missing}
            assert not missing or time.monotonic() - begun < SAID, f"{fault}: {late}"
            await asyncio.sleep(0.02)
        await ended(calls)

    async def recovers(self, well: dict[str, str]) -> None:
        """Wait until every client works again and is said to."""
        begun = time.monotonic()
        while (now := await self.app.call()) != well:
            assert time.monotonic() - begun < 20, now
        await self.says("well", is_well, calling=True)


async def with_none_left(app: Application) -> dict[str, str]:
    """What a call gives after those that may still find one of the two connections, which is not known to be lost."""
    for _ in range(2):
        await app.call()
    return await app.call()


async def go_through_networks(app: Application, watch: Watch) -> dict[str, dict[str, str]]:
    """What the application got in each fault."""
    got: dict[str, dict[str, str]] = {}
    well = got["well"] = await app.call()
    await watch.recovers(well)

    app.network("delay", 0.05)
    got["slow"] = await app.call()
    app.network("heal")

    app.network("drop")
    calls = app.begin()
    await watch.says("silent", is_broken, calling=False)
    await asyncio.wait([calls[name] for name in IMPATIENT])
    assert not any(call.done() for name, call in calls.items() if name not in IMPATIENT)
    app.network("heal")
    got["silent"] = await ended(calls)
    await watch.recovers(well)

    app.network("drop")
    calls = app.begin()
    await soon(lambda: all(network.holding for network in app.networks.values()), "all wait for an answer")
    app.network("reset")
    app.network("heal")
    got["reset"] = await ended(calls)
    await watch.recovers(well)

    assert await app.call() == well  # so lately that no ping is due, whose answer might be what breaks
    app.network("cut")
    got["cut"] = await app.call()
    app.network("heal")
    await watch.recovers(well)

    app.network("refuse")
    app.network("reset")
    got["refused"] = await with_none_left(app)
    await watch.says("refused", is_broken, calling=True)
    app.network("heal")
    await watch.recovers(well)
    got["after"] = await app.call()
    return got


async def run(
    these: Servers, monitor: ResourceMonitor | None
) -> tuple[dict[str, dict[str, str]], Callable[[], set[str]]]:
    """All faults; what was got, and what tells which clients are still kept alive by something."""
    app = Application(these)
    await app.open()
    watch = Watch(monitor, app)
    living: dict[str, weakref.ref[Any]] = {}
    try:
        got = await go_through_networks(app, watch)
    finally:
        app.network("heal")
        await app.close()
    for name, client in app.clients.items():
        with contextlib.suppress(TypeError):  # asyncpg's cannot be referred to weakly
            living[name] = weakref.ref(client.target)
        if monitor is not None:
            monitor.manager.unregister(name)

    def kept() -> set[str]:
        gc.collect()
        return {name for name, reference in living.items() if reference() is not None}

    return got, kept


def sockets() -> int:
    """How many are open; the monitor's own files under /proc are no fault's remains."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            found += os.readlink(descriptor).startswith("socket:")
    return found


@pytest.fixture
def all_servers(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis, http_server: HttpServer
) -> Iterator[Servers]:
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    yield {"postgresql": postgresql, "redis": redis_server, "http": http_server}
    postgresql.recover()
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute("DROP ROLE guest")


async def test_the_application_gets_the_same(all_servers: Servers) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    plain, kept = await run(all_servers, None)
    kept_anyway = kept()
    assert set(plain["well"].values()) == {"42", "'ok'"}
    for fault, got in plain.items():
        if fault in ("slow", "after"):
            assert got == plain["well"]
        elif fault not in ("well", "silent"):
            assert not set(got.values()) & {"42", "'ok'"}, f"{fault}: nobody noticed"
    opened, failed = sockets(), failures.cell.value
    with ResourceMonitor(ResourceManager()) as monitor:
        watched, kept = await run(all_servers, monitor)
        assert PASSWORD not in everything_said(monitor)
    assert watched == plain, "the application's own results"
    await soon(lambda: kept() <= kept_anyway, "nothing is kept that would not be kept without")
    assert failures.cell.value == failed, "a hook failed"
    assert hooked("sqlalchemy", "asyncpg", "psycopg", "redis", "http") == []
    await soon(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("uno")], "a hung ping ends too"
    )
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uno"]
    await soon(lambda: (gc.collect(), sockets() <= opened)[1], "no connection more than before")
