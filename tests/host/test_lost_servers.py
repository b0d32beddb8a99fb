"""Does an application get from a server that is dead, full or refuses it what it gets without uno?

The same program runs twice at the same time, once watched, and tells what its calls come to.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from tests import servers

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

PROGRAM = """
    import asyncio, json, logging, sys, time
    import asyncpg, psycopg_pool, redis, redis.asyncio, sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    how, url, cache = sys.argv[1:]
    logging.disable()
    TEXT = sqlalchemy.text("SELECT 42")

    async def main():
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        aengine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
        pool = psycopg_pool.ConnectionPool(url, min_size=1, max_size=2, timeout=1, open=True)
        apool = await asyncpg.create_pool(url, min_size=1, max_size=2)
        client, aclient = redis.Redis.from_url(cache), redis.asyncio.Redis.from_url(cache)
        things = dict(engine=engine, aengine=aengine, pool=pool, apool=apool, redis=client, aredis=aclient)
        if how == "uno":
            from uno.core.monitoring.resources import ResourceMonitor
            monitor = ResourceMonitor()
            for name, thing in things.items():
                monitor.manager.register(thing, id=name)
            monitor.start()

        def query():
            with engine.connect() as connection:
                return connection.execute(TEXT).scalar()

        async def aquery():
            async with aengine.connect() as connection:
                return (await connection.execute(TEXT)).scalar()

        def query_pool():
            with pool.connection() as connection:
                return connection.execute("SELECT 42").fetchone()[0]

        calls = {
            "engine": lambda: asyncio.to_thread(query), "aengine": aquery,
            "pool": lambda: asyncio.to_thread(query_pool), "apool": lambda: apool.fetchval("SELECT 42"),
            "redis": lambda: asyncio.to_thread(client.echo, "42"), "aredis": lambda: aclient.echo("42"),
        }

        async def outcome(call):
            try:
                found = await call()
            except Exception as error:
                return type(error).__name__
            return int(found)

        async def round(names):
            return dict(zip(names, await asyncio.gather(*(outcome(calls[name]) for name in names))))

        commands = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, lambda: [loop.call_soon_threadsafe(commands.put_nowait, line) for line in sys.stdin])
        while True:
            want, *names = json.loads(await commands.get())
            if want == "end":
                break
            if want == "anew":  # what is open is given up
                engine.dispose()
                await aengine.dispose()
                await apool.expire_connections()
                print("null", flush=True)
                continue
            deadline, rounds = time.monotonic() + 40, 0
            while rounds < 3 and time.monotonic() < deadline:  # the first may meet a connection from before
                got = await round(names or list(calls))
                rounds = rounds + 1 if all((result == 42) is (want == "well") for result in got.values()) else 0
                await asyncio.sleep(0.1)
            print(json.dumps(got), flush=True)
        if how == "uno":
            monitor.stop()

    asyncio.run(asyncio.wait_for(main(), 200))
"""

DATABASES = ("engine", "aengine", "pool", "apool")


class Twins:
    """The program with uno and without."""

    def __init__(self, url: str, cache: str) -> None:
        code = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)]
        self.both = [
            subprocess.Popen(
                [*code, how, url, cache], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for how in ("uno", "plain")
        ]

    def tell(self, *words: str) -> dict[str, Any]:
        """Tell both; what both answer, which is the same."""
        for each in self.both:
            assert each.stdin is not None
            each.stdin.write(json.dumps(words) + "\n")
            each.stdin.flush()
        answers = [json.loads(each.stdout.readline()) for each in self.both if each.stdout is not None]
        assert answers[0] == answers[1], words
        return answers[0]

    def close(self) -> None:
        for each in self.both:
            each.kill()
            each.communicate()


@pytest.fixture
def role(postgresql: servers.PostgreSQL) -> Iterator[str]:
    """A user whose password can be changed, and who is refused when the server is full; gives the URL."""
    with psycopg.connect(postgresql.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE shopper LOGIN PASSWORD 'first-secret'")
    yield postgresql.url.replace(f"{servers.USER}:{servers.PASSWORD}", "shopper:first-secret")
    with psycopg.connect(postgresql.url, autocommit=True) as admin:
        admin.execute("DROP ROLE shopper")


def test_the_application_gets_the_same(
    postgresql: servers.PostgreSQL, redis_server: servers.Redis, role: str
) -> None:
    with ExitStack() as ends:
        twins = Twins(role, redis_server.url)
        ends.callback(twins.close)
        assert set(twins.tell("well").values()) == {42}

        # dead
        postgresql.kill()
        redis_server.kill()
        assert set(twins.tell("ill").values()) == {"OperationalError", "PoolTimeout", "ConnectionRefusedError",
                                                   "ConnectionError"}  # fmt: skip
        postgresql.start()
        redis_server.start()
        assert set(twins.tell("well").values()) == {42}

        # full
        with ExitStack() as taken:
            limit(postgresql.url, 0)
            taken.callback(limit, postgresql.url, -1)
            twins.tell("anew")
            close_all(postgresql.url)
            full = twins.tell("ill", *DATABASES)
        assert full["apool"] == "TooManyConnectionsError"
        assert set(twins.tell("well").values()) == {42}

        # another password
        change(postgresql.url, "second-secret")
        twins.tell("anew")
        close_all(postgresql.url)
        assert twins.tell("ill", *DATABASES)["apool"] == "InvalidPasswordError"
        change(postgresql.url, "first-secret")
        assert set(twins.tell("well").values()) == {42}


def change(url: str, password: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE shopper PASSWORD '{password}'")


def limit(url: str, connections: int) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE shopper CONNECTION LIMIT {connections}")


def close_all(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shopper'")
        time.sleep(0.1)
