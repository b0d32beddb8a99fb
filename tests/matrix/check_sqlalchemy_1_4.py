"""Are engines of SQLAlchemy 1.4 seen as they are? What is asked of 2.0 and 2.1, in the words of 1.4."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import pool as pools

from tests import servers
from tests.contract import kit
from tests.contract.kit import CLOSE, CREATE, IDLE, PENDING, USE, USED, WAIT, Watched
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

HERE = "tests/matrix/check_sqlalchemy_1_4.py"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    assert sa.__version__.startswith("1.4.")
    assert kit.hooked("sqlalchemy") == []
    before = failures.cell.value
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked("sqlalchemy"), 5, "the hooks")
        yield monitor
    assert failures.cell.value == before, "a hook failed"
    assert kit.hooked("sqlalchemy") == []


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    url = f"sqlite:///{tmp_path}/shop.db"
    engine = sa.create_engine(url, poolclass=pools.QueuePool, pool_size=2, max_overflow=0, pool_timeout=0.5)
    yield engine
    engine.dispose()


def select(engine: Any) -> Any:
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT 1")).scalar()


def test_pool_and_queries(monitor: ResourceMonitor, engine: Any) -> None:
    shop = Watched(monitor, engine)
    assert shop.resource.endpoint == "file:shop.db"
    with engine.connect() as one, engine.connect():
        one.execute(sa.text("SELECT 1"))
        shop.until(1.0, "connection_pool_usage")
    shop.until(2, "connections", **IDLE)
    shop.until(1, "query_duration", "count")
    shop.until(2, USE, "count")
    assert shop.read(WAIT, "count") == shop.read(CREATE, "count") == 2
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    engine.dispose()
    assert select(engine) == 1
    shop.until(2, "query_duration", "count")


def test_the_wait_a_timeout_and_a_leak(monitor: ResourceMonitor, engine: Any) -> None:
    shop = Watched(monitor, engine)
    for connection in (engine.connect(), engine.connect()):
        connection.close()
    shop.until(2, WAIT, "count")
    before = shop.read(WAIT, "sum") or 0.0
    held: list[Any] = []

    def leak() -> None:
        held.append(engine.connect())

    leak()
    leak()
    place = f"{HERE}:{leak.__code__.co_firstlineno + 1} in leak"
    wait_until(lambda: shop.sites() == {place: 2}, 5, "held")
    true: list[float] = []

    def wait() -> None:
        begun = time.perf_counter()
        connection = engine.connect()
        true.append(time.perf_counter() - begun)
        connection.close()

    thread = threading.Thread(target=wait)
    thread.start()
    shop.until(1, PENDING)
    time.sleep(0.1)
    held.pop().close()
    thread.join()
    shop.until(5, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true[0], abs=CLOSE)
    leak()
    with pytest.raises(sa.exc.TimeoutError):
        engine.connect()
    shop.until(1, "connection_timeouts", "total")
    for connection in held:
        connection.close()
    shop.until(0, "connections", **USED)


@pytest.mark.parametrize("name", ["NullPool", "StaticPool", "SingletonThreadPool", "AssertionPool"])
def test_other_pools(monitor: ResourceMonitor, tmp_path: Path, name: str) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=getattr(pools, name))
    shop = Watched(monitor, engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        shop.until(1, "connections", **USED)
    shop.until(0, "connections", **USED)
    shop.until(0 if name == "NullPool" else 1, "connections", **IDLE)
    shop.until(1, USE, "count")
    shop.until(1, CREATE, "count")
    engine.dispose()


@pytest.mark.server
def test_a_lost_server_is_down_and_comes_back(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    engine = sa.create_engine(postgresql.url.replace("postgresql", "postgresql+psycopg2", 1))
    shop = Watched(monitor, engine)
    assert select(engine) == 1
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 5, "up")
    postgresql.kill()
    for _ in range(2):
        with pytest.raises(sa.exc.OperationalError):
            select(engine)
    wait_until(lambda: (shop.read("errors", "total") or 0) >= 2, 5, "errors")
    assert servers.PASSWORD not in kit.everything_said(monitor)
    postgresql.restart()
    assert select(engine) == 1
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 15, "up again")
    engine.dispose()


def test_an_async_engine(monitor: ResourceMonitor, tmp_path: Path) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    async def use() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/a.db",
            poolclass=pools.AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
        )
        shop = Watched(monitor, engine)
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            await shop.soon(1.0, "connection_pool_usage")
            (place,) = shop.sites()
            assert place.endswith("in use")
        await shop.soon(1, "query_duration", "count")
        await shop.soon(1, USE, "count")
        await engine.dispose()

    asyncio.run(use())
