"""Do the servers of the tests do as they are told: start, freeze, thaw, be killed, come back?"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import aio_pika
import asyncpg
import psutil
import pytest
import redis
from playwright.sync_api import Browser

from tests.servers import (
    PASSWORD,
    Missing,
    PostgreSQL,
    Prometheus,
    RabbitMQ,
    Redis,
    Server,
    find_program,
    required,
)

pytestmark = pytest.mark.server


async def ask_postgresql(server: PostgreSQL, seconds: float) -> object:
    connection = await asyncpg.connect(server.url, timeout=seconds, ssl=False)
    try:
        return await connection.fetchval("select 6 * 7", timeout=seconds)
    finally:
        connection.terminate()


async def test_postgresql(postgresql: PostgreSQL) -> None:
    assert await ask_postgresql(postgresql, 10) == 42

    postgresql.freeze()
    with pytest.raises(TimeoutError):
        await ask_postgresql(postgresql, 0.3)
    postgresql.thaw()
    assert await ask_postgresql(postgresql, 10) == 42

    postgresql.kill()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await ask_postgresql(postgresql, 1)
    postgresql.restart()
    assert await ask_postgresql(postgresql, 10) == 42


def ask_redis(url: str, timeout: float) -> object:
    with redis.Redis.from_url(url, socket_timeout=timeout, retry=None) as client:
        return client.ping()


def test_redis(redis_server: Redis) -> None:
    assert ask_redis(redis_server.url, 5) is True

    redis_server.freeze()
    with pytest.raises(redis.TimeoutError):
        ask_redis(redis_server.url, 0.3)
    redis_server.thaw()
    assert ask_redis(redis_server.url, 5) is True

    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        ask_redis(redis_server.url, 1)
    redis_server.restart()
    assert ask_redis(redis_server.url, 5) is True


def test_redis_with_password(redis_with_password: Redis) -> None:
    assert ask_redis(redis_with_password.url, 5) is True
    with pytest.raises(redis.AuthenticationError):
        ask_redis(redis_with_password.url.replace(PASSWORD, "wrong"), 5)


async def ask_rabbitmq(server: RabbitMQ, seconds: float) -> str:
    async with asyncio.timeout(seconds):
        connection = await aio_pika.connect(server.url)
        async with connection, connection.channel() as channel:
            queue = await channel.declare_queue(exclusive=True)
            await channel.default_exchange.publish(aio_pika.Message(b"hello"), queue.name)
            message = await queue.get()
            await message.ack()
            return message.body.decode()


async def test_rabbitmq(rabbitmq: RabbitMQ) -> None:
    assert await ask_rabbitmq(rabbitmq, 10) == "hello"

    rabbitmq.freeze()
    with pytest.raises(TimeoutError):
        await ask_rabbitmq(rabbitmq, 0.3)
    rabbitmq.thaw()
    assert await ask_rabbitmq(rabbitmq, 10) == "hello"

    rabbitmq.kill()
    with pytest.raises(ConnectionError):
        await ask_rabbitmq(rabbitmq, 5)
    rabbitmq.restart()
    assert await ask_rabbitmq(rabbitmq, 10) == "hello"


def test_prometheus(prometheus: Callable[[str], Prometheus], promtool: str) -> None:
    server = prometheus("global: {scrape_interval: 1s}\n")
    query = [promtool, "query", "instant", server.url, "vector(42)"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    assert "42" in answer
    server.kill()
    assert subprocess.run(query, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("kind", [PostgreSQL, Redis, RabbitMQ])
def test_nothing_is_left_behind(kind: type[Server]) -> None:
    server = required(kind)
    processes = [process for process in psutil.Process().children(recursive=True) if belongs(process, server)]
    assert processes
    server.kill()
    server.close()
    assert not server.folder.exists()
    assert not [process for process in processes if process.is_running()]


def belongs(process: psutil.Process, server: Server) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cwd().startswith(str(server.folder))
    return False


def test_a_killed_postgresql_leaves_no_shared_memory() -> None:
    server = required(PostgreSQL)
    lock_file = (server.folder / "data" / "postmaster.pid").read_text().splitlines()
    segment = lock_file[6].split()[1]
    assert segment in shared_memory_segments()
    server.kill()
    server.close()
    assert segment not in shared_memory_segments()


def shared_memory_segments() -> set[str]:
    table = Path("/proc/sysvipc/shm").read_text().splitlines()
    return {line.split()[1] for line in table[1:]}


@pytest.mark.browser
def test_browser(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<p>hello</p>")
    assert page.inner_text("p") == "hello"
    page.close()


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(Missing, match=r"no-such-server not found \(apt-get install some-package\)"):
        find_program("some-package", "/usr/lib/none/*/no-such-server", "no-such-server")
