"""Does the application get the same with uno and without when its pools are emptied, resized or closed while they are
used, when their event loop is gone, and when the process forks? Are connections that are never returned named?
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import asyncpg
import httpx
import psycopg_pool
import pytest
import redis
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tests.upstream import HttpServer
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import ResourceManager
from uno.testing import hooked, soon

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]

#: Callers of each pool, which has fewer connections; how many calls there are between one step and the next.
CALLERS, SIZE, CALLS = 4, 2, 40
QUERY = sa.text("SELECT 40 + 2")


class Pool(NamedTuple):
    """``call`` uses it; what ``steps`` do to it, one after the other, is not noticed; after ``close`` it gives nothing
    more."""

    target: Any
    call: Callable[[], object]
    steps: list[Callable[[], object]]
    close: Callable[[], object]


def called(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except Exception as error:  # noqa: BLE001 - it is the result
        return type(error).__qualname__


async def acalled(call: Callable[[], Awaitable[object]]) -> str:
    try:
        return repr(await call())
    except Exception as error:  # noqa: BLE001 - it is the result
        return type(error).__qualname__


class Load:
    """Callers that use a pool until they are told to end: ``got`` is what each of their calls gave."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.over = False

    def more(self, calls: int = CALLS) -> Callable[[], bool]:
        """Whether there were so many calls more."""
        seen = len(self.got)
        return lambda: len(self.got) >= seen + calls

    def kinds(self, since: int = 0) -> set[str]:
        return set(self.got[since:])


def threads_of(postgresql: str, cache: servers.Redis) -> dict[str, Pool]:
    """Pools that block, and a pool of threads."""
    engine = sa.create_engine(
        postgresql.replace("postgresql:", "postgresql+psycopg:"), pool_size=SIZE, max_overflow=0
    )
    pool = psycopg_pool.ConnectionPool(postgresql, min_size=1, max_size=SIZE, open=True)
    client = redis.Redis(
        connection_pool=redis.BlockingConnectionPool(port=cache.port, max_connections=SIZE, timeout=20)
    )
    executor = ThreadPoolExecutor(SIZE)

    def query() -> object:
        with engine.connect() as connection:
            return connection.execute(QUERY).scalar()

    def query_psycopg() -> object:
        with pool.connection() as connection:
            return connection.execute("SELECT 40 + 2").fetchone()[0]  # type: ignore[index]

    return {
        "engine": Pool(engine, query, [engine.dispose] * 3, engine.dispose),
        "psycopg": Pool(
            pool,
            query_psycopg,
            [lambda: pool.resize(2, 4), lambda: pool.resize(1, 1), lambda: pool.resize(1, SIZE)],
            pool.close,
        ),
        "redis": Pool(
            client,
            lambda: len(client.echo("x" * 42)),
            [lambda: client.connection_pool.disconnect(inuse_connections=False)] * 3,
            client.close,
        ),
        "executor": Pool(
            executor,
            lambda: executor.submit(lambda: 42).result(20),
            [],
            lambda: executor.shutdown(wait=False),
        ),
    }


async def coroutines_of(postgresql: str, cache: servers.Redis) -> dict[str, Pool]:
    """Pools of an event loop."""
    engine = create_async_engine(
        postgresql.replace("postgresql:", "postgresql+asyncpg:"), pool_size=SIZE, max_overflow=0
    )
    pool = await asyncpg.create_pool(postgresql, min_size=1, max_size=SIZE)
    psycopg = psycopg_pool.AsyncConnectionPool(postgresql, min_size=1, max_size=SIZE, open=False)
    await psycopg.open(wait=True)
    connections: Any = redis.asyncio.BlockingConnectionPool(port=cache.port, max_connections=SIZE, timeout=20)
    client: Any = redis.asyncio.Redis(connection_pool=connections)

    async def query() -> object:
        async with engine.connect() as connection:
            return (await connection.execute(QUERY)).scalar()

    async def query_psycopg() -> object:
        async with psycopg.connection() as connection:
            return (await (await connection.execute("SELECT 40 + 2")).fetchone())[0]  # type: ignore[index]

    async def echo() -> object:
        return len(await client.echo("x" * 42))

    return {
        "async-engine": Pool(engine, query, [engine.dispose] * 3, engine.dispose),
        "asyncpg": Pool(
            pool, lambda: pool.fetchval("SELECT 40 + 2"), [pool.expire_connections] * 3, pool.close
        ),
        "async-psycopg": Pool(
            psycopg,
            query_psycopg,
            [lambda: psycopg.resize(2, 4), lambda: psycopg.resize(1, 1), lambda: psycopg.resize(1, SIZE)],
            psycopg.close,
        ),
        "async-redis": Pool(
            client, echo, [lambda: connections.disconnect(inuse_connections=False)] * 3, client.aclose
        ),
    }


#: What a pool that was closed says; the others open connections again.
CLOSED = {
    "psycopg": "PoolClosed",
    "executor": "RuntimeError",
    "asyncpg": "InterfaceError",
    "async-psycopg": "PoolClosed",
}

#: What the libraries themselves raise now and then, with uno or without, in a call that meets a step half-way.
RACES = {"async-redis": "ConnectionError", "asyncpg": "InternalClientError"}


async def use(name: str, pool: Pool, is_async: bool) -> dict[str, set[str]]:
    """Use one pool from all sides while it goes through its steps, and while it is closed: what was got."""
    load = Load()

    def again() -> None:
        while not load.over:
            load.got.append(called(pool.call))

    async def again_async() -> None:
        while not load.over:
            load.got.append(await acalled(pool.call))  # type: ignore[arg-type]
            await asyncio.sleep(0)  # what fails at once would let nobody else run

    callers = [
        asyncio.create_task(again_async()) if is_async else asyncio.create_task(asyncio.to_thread(again))
        for _ in range(CALLERS)
    ]

    async def do(step: Callable[[], object]) -> None:
        if is_async:
            made = step()
            if made is not None:
                await made  # type: ignore[misc]
        else:
            await asyncio.to_thread(step)

    try:
        await soon(load.more(), f"{name} is used")
        for step in pool.steps:
            await do(step)
            await soon(load.more(), f"{name} goes on after a step")
        told = {"open": load.kinds()}
        await do(pool.close)
        await soon(load.more(CALLERS), f"{name}: calls that had begun end")
        since = len(load.got)
        await soon(load.more(CALLERS), f"{name} goes on after it was closed")
        told["closed"] = load.kinds(since)
    finally:
        load.over = True
        async with asyncio.timeout(30):
            await asyncio.gather(*callers)
        await do(pool.close)
    told["all"] = load.kinds()
    for kinds in told.values():
        kinds.discard(RACES.get(name, ""))
    return told


async def use_all(
    postgresql: servers.PostgreSQL, cache: servers.Redis, monitor: ResourceMonitor | None
) -> dict[str, dict[str, set[str]]]:
    blocking = threads_of(postgresql.url, cache)
    pools = blocking | await coroutines_of(postgresql.url, cache)
    if monitor is not None:
        for name, pool in pools.items():
            monitor.manager.register(pool.target, id=name)
    told = await asyncio.gather(*(use(name, pool, name not in blocking) for name, pool in pools.items()))
    if monitor is not None:
        await soon(lambda: all(not monitor.holders(name) for name in pools), "no connection is held")
    return dict(zip(pools, told, strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_pools_that_are_emptied_resized_and_closed(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis
) -> None:
    """What is in use when SQLAlchemy lets go of its pool is closed by the garbage collector, which drivers warn of."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    plain = await use_all(postgresql, redis_server, None)
    for name, told in plain.items():
        closed = CLOSED.get(name, "42")
        assert told == {"open": {"42"}, "closed": {closed}, "all": {"42", closed}}, name
    failed = failures.cell.value
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        assert await use_all(postgresql, redis_server, monitor) == plain
        frame = monitor.store.frame
        await soon(lambda: monitor.store.frame is not frame, "the monitor goes on")
    assert failures.cell.value == failed, "a hook failed"
    assert hooked("sqlalchemy", "asyncpg", "psycopg", "redis", "concurrent") == []
    gc.collect()


# -- an event loop that is gone, and forks: each in a process of its own -----------------------------------------------


def program(code: str, *arguments: str) -> Any:
    """What a program prints, as JSON. It says nothing else, with uno or without."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning", "-c",
         textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "uno" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout)


def with_and_without(code: str, postgresql: servers.PostgreSQL, cache: servers.Redis) -> tuple[Any, Any]:
    """The same program with uno and without, at the same time."""
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(program, code, how, postgresql.url, str(cache.port)) for how in ("uno", "plain")]
        return runs[0].result(), runs[1].result()


LOOP = """
    import asyncio, json, sys, time
    import asyncpg, psycopg_pool, redis.asyncio, sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    how, url, port = sys.argv[1:]
    monitor = None
    if how == "uno":
        from uno.core.monitoring.instrumentation import failures
        from uno.core.monitoring.resources import ResourceMonitor
        monitor = ResourceMonitor(interval=0.05)
        monitor.start()

    def ticks(more):
        if monitor is not None:
            seen, deadline = monitor.store.frame.seq if monitor.store.frame else 0, time.monotonic() + 30
            while monitor.store.frame is None or monitor.store.frame.seq < seen + more:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    async def make(which):
        engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
        pool = await asyncpg.create_pool(url, min_size=1, max_size=3)
        psycopg = psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=3, open=False, timeout=5)
        await psycopg.open(wait=True)
        client = redis.asyncio.Redis(port=int(port))
        if monitor is not None:
            for name, target in zip(("engine", "asyncpg", "psycopg", "redis"), (engine, pool, psycopg, client)):
                monitor.manager.register(target, id=f"{name}-{which}")

        async def query():
            async with engine.connect() as connection:
                return (await connection.execute(sqlalchemy.text("SELECT 42"))).scalar()

        async def query_psycopg():
            async with psycopg.connection() as connection:
                return (await (await connection.execute("SELECT 42")).fetchone())[0]

        async def echo():
            return len(await client.echo("x" * 42))

        return {"engine": query, "asyncpg": lambda: pool.fetchval("SELECT 42"), "psycopg": query_psycopg, "redis": echo}

    async def outcomes(calls):
        got = {}
        for name, call in calls.items():
            try:
                got[name] = repr(await call())
            except Exception as error:
                got[name] = type(error).__name__
        return got

    first = asyncio.new_event_loop()
    calls = first.run_until_complete(make(1))
    got = {"first": first.run_until_complete(outcomes(calls))}
    first.run_until_complete(asyncio.to_thread(ticks, 3))
    first.close()
    ticks(3)
    second = asyncio.new_event_loop()
    calls = second.run_until_complete(make(2))
    got["second"] = second.run_until_complete(outcomes(calls))
    second.run_until_complete(asyncio.to_thread(ticks, 3))
    got["again"] = second.run_until_complete(outcomes(calls))
    if monitor is not None:
        def up():
            deadline = time.monotonic() + 30
            for resource in monitor.manager:
                while resource.id.endswith("-2") and monitor.health_of(resource.id).status.value != "up":
                    assert time.monotonic() < deadline, (resource.id, monitor.health_of(resource.id))
                    time.sleep(0.01)
        second.run_until_complete(asyncio.to_thread(up))
        assert failures.cell.value == 0
        monitor.stop()
    second.close()
    print(json.dumps(got), flush=True)
    import os
    os._exit(0)  # what the libraries say of pools that nobody closed is no concern of ours
"""


def test_an_event_loop_that_is_closed_before_its_pools(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis
) -> None:
    watched, plain = with_and_without(LOOP, postgresql, redis_server)
    assert watched == plain
    assert {value for got in watched.values() for value in got.values()} == {"42"}


FORK = """
    import json, multiprocessing, os, sys, threading, time
    import redis, sqlalchemy

    how, url, port = sys.argv[1:]
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=3)
    client = redis.Redis(port=int(port))
    monitor = None
    if how == "uno":
        from uno.core.monitoring.instrumentation import failures
        from uno.core.monitoring.resources import ResourceMonitor
        monitor = ResourceMonitor(interval=0.05)
        monitor.manager.register(engine, id="engine")
        monitor.manager.register(client, id="redis")
        monitor.manager.register(None, id="pid", read=lambda: float(os.getpid()))
        monitor.start()

    def query():
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text("SELECT 42")).scalar()

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    got, over = [], threading.Event()

    def again(call):
        while not over.is_set():
            try:
                got.append(call())
            except Exception as error:
                got.append(type(error).__name__)

    def child():
        engine.dispose(close=False)
        seen = {query() for _ in range(5)} | {len(client.echo("x" * 42)) for _ in range(5)}
        if monitor is not None:
            until(lambda: monitor.running and monitor.read("pid", "value") == os.getpid())
            until(lambda: monitor.health_of("engine").status.value == "up")
            assert failures.cell.value == 0
        return seen == {42}

    def in_pool(_):
        return child()

    calls = [query, query, lambda: len(client.echo("x" * 42)), lambda: len(client.echo("x" * 42))]
    threads = [threading.Thread(target=again, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    good = 0
    for _ in range(4):
        seen = len(got)
        until(lambda: len(got) > seen + 20)
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if child() else 1)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(2)
        good += os.waitpid(pid, 0)[1] == 0
    with multiprocessing.get_context("fork").Pool(2) as pool:
        many = pool.map_async(in_pool, range(2), 1).get(60)
    seen = len(got)
    until(lambda: len(got) > seen + 20)
    over.set()
    for thread in threads:
        thread.join(30)
    if monitor is not None:
        assert monitor.running
        until(lambda: monitor.read("pid", "value") == os.getpid())
        until(lambda: monitor.health_of("engine").status.value == "up")
        until(lambda: monitor.holders("engine") == [] == monitor.holders("redis"))
        assert failures.cell.value == 0
        monitor.stop()
    engine.dispose()
    client.close()
    print(json.dumps({"good": good, "many": many, "got": sorted(set(map(str, got)))}))
"""


def test_forks_while_threads_use_their_clients(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis
) -> None:
    watched, plain = with_and_without(FORK, postgresql, redis_server)
    assert watched == plain == {"good": 4, "many": [True, True], "got": ["42"]}


INHERITED = """
    import json, os, sys, time
    import psycopg, psycopg2.pool, psycopg_pool, sqlalchemy
    from uno.core.monitoring.resources import ResourceMonitor

    url = sys.argv[1]
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    pool = psycopg_pool.ConnectionPool(url, min_size=1, max_size=3, open=True)
    pool2 = psycopg2.pool.ThreadedConnectionPool(1, 3, url)
    monitor = ResourceMonitor(interval=0.05)
    for name, target in zip(("engine", "psycopg", "psycopg2"), (engine, pool, pool2)):
        monitor.manager.register(target, id=name)
    monitor.start()

    def until(condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def query():
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        connection = pool2.getconn()
        connection.cursor().execute("SELECT 1")
        pool2.putconn(connection)

    def up():
        return all(monitor.health_of(each.id).status.value == "up" for each in monitor.manager)

    query()
    until(up)
    watch = psycopg.connect(url, autocommit=True)
    listen, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        frames = monitor.store
        until(lambda: monitor.running and frames.frame is not None and frames.frame.seq > 60)
        os.write(tell, b".")
        engine.dispose(close=False)  # what the child then has is its own, and is watched like any other
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
        until(lambda: monitor.health_of("engine").status.value == "up")
        os._exit(0)
    monitor.stop()
    time.sleep(0.5)

    def asked():
        rows = watch.execute("SELECT pid, query_start FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                             " AND backend_type = 'client backend' AND query_start < %s", [begun])
        return sorted((pid, str(at)) for pid, at in rows)

    (begun,) = watch.execute("SELECT clock_timestamp()").fetchone()
    before = asked()
    os.read(listen, 1)
    after = asked()
    good = os.waitpid(pid, 0)[1] == 0
    query()
    print(json.dumps({"connections": len(before), "untouched": before == after, "good": good}), flush=True)
    os._exit(0)
"""


def test_a_forked_childs_monitor_does_not_speak_on_connections_of_its_parent(
    postgresql: servers.PostgreSQL,
) -> None:
    told = program(INHERITED, postgresql.url)
    assert told == {"connections": told["connections"], "untouched": True, "good": True}
    assert told["connections"] >= 3


# -- connections that are never returned -------------------------------------------------------------------------------


def line() -> str:
    """Where the next line is, as holders tell it."""
    return f"test_pools_under_load.py:{sys._getframe(1).f_lineno + 1}"


async def test_what_is_never_returned_is_named(
    postgresql: servers.PostgreSQL, http_server: HttpServer
) -> None:
    engine = sa.create_engine(postgresql.url.replace("postgresql:", "postgresql+psycopg:"))
    aengine = create_async_engine(postgresql.url.replace("postgresql:", "postgresql+asyncpg:"))
    pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=3)
    client, aclient = httpx.Client(base_url=http_server.url), httpx.AsyncClient(base_url=http_server.url)
    kept: list[Any] = []
    places: dict[str, str] = {}
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        targets = {
            "engine": engine, "async-engine": aengine, "asyncpg": pool, "httpx": client, "async-httpx": aclient,
        }  # fmt: skip
        for name, target in targets.items():
            monitor.manager.register(target, id=name)

        # SQLAlchemy takes back what is dropped: a leak is what something still refers to.
        places["engine"] = line()
        kept.append(engine.connect())
        places["async-engine"] = line()
        kept.append(await aengine.connect())
        # The others do not: these are dropped.
        places["asyncpg"] = line()
        await pool.acquire()
        places["httpx"] = line()
        kept.append(client.send(client.build_request("GET", "/large"), stream=True))  # noqa: ASYNC212
        places["async-httpx"] = line()
        kept.append(await aclient.send(aclient.build_request("GET", "/large"), stream=True))
        gc.collect()

        def named() -> dict[str, list[str]]:
            return {name: [holder.site for holder in monitor.holders(name)] for name in targets}

        await soon(lambda: all(named().values()), "each leak is seen")
        for name, sites in named().items():
            assert len(sites) == 1, (name, sites)
            assert places[name] in sites[0], (name, sites, places[name])

        dropped = engine.connect()
        del dropped
        gc.collect()
        await soon(lambda: len(monitor.holders("engine")) == 1, "what was dropped is taken back")
    for response in kept[2:]:
        with contextlib.suppress(TypeError):
            response.close() if isinstance(response.stream, httpx.SyncByteStream) else await response.aclose()
    kept[0].close()
    await kept[1].close()
    client.close()  # noqa: ASYNC212
    await aclient.aclose()
    pool.terminate()
    await aengine.dispose()
    engine.dispose()
