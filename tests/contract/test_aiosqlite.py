"""Are connections of aiosqlite seen as they are, and is sqlite3 told through SQLAlchemy alone?"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiosqlite
import pytest

from tests.contract import kit
from tests.contract.kit import CLOSE, IDLE, PENDING, USED, WAIT, Watched, soon
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    assert kit.hooked("aiosqlite.") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked("aiosqlite."), 5, "the hooks")
        yield monitor
    assert kit.hooked("aiosqlite.") == []


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Any]:
    async with aiosqlite.connect(tmp_path / "shop.db") as connection:
        await connection.create_function("nap", 1, time.sleep)
        yield connection


async def test_statements_waiting_and_errors(monitor: ResourceMonitor, connection: Any) -> None:
    shop = Watched(monitor, connection)
    assert shop.resource.endpoint == "file:shop.db"
    await connection.execute("CREATE TABLE orders (id INTEGER)")
    await connection.execute("INSERT INTO orders VALUES (1)")
    await connection.commit()
    await shop.soon(3, "query_duration", "count")
    await shop.soon(1, "connections", **IDLE)
    assert shop.read(WAIT, "count") == 3
    before = shop.read(WAIT, "sum") or 0.0
    first = asyncio.create_task(connection.execute("SELECT nap(0.3)"))
    await shop.soon(1, "connections", **USED)
    begun = time.perf_counter()
    second = asyncio.create_task(connection.execute("SELECT 1"))
    await shop.soon(1, PENDING)
    await first
    waited = time.perf_counter() - begun
    await second
    await shop.soon(5, "query_duration", "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(waited, abs=CLOSE)
    assert (shop.read("query_duration", "sum") or 9) < 0.4, "waiting is no part of a query"
    with pytest.raises(sqlite3.OperationalError):
        await connection.execute("SELECT hunter2_canary")
    await shop.soon(1, "errors", "total")
    assert "last error OperationalError" in shop.explain("uno.resource.errors")
    assert "canary" not in kit.everything_said(monitor)
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    await soon(lambda: monitor.health_of("it").status is HealthStatus.UP, "up")
    assert shop.driver.bound_loop(connection) is asyncio.get_running_loop()


async def test_a_slow_statement_is_named_to_the_line(monitor: ResourceMonitor, connection: Any) -> None:
    shop = Watched(monitor, connection)

    async def report() -> None:
        await connection.execute("SELECT nap(0.6)")

    await report()
    await shop.soon(1, "slow_queries", "total")
    place = f"tests/contract/test_aiosqlite.py:{report.__code__.co_firstlineno + 1} in report"
    assert f"1 slow from {place}" in shop.explain("db.client.operation.duration")


async def test_only_those_with_a_name_are_found_and_they_go(monitor: ResourceMonitor, tmp_path: Path) -> None:
    shop: Any = ModuleType("shop_of_aiosqlite")
    shop.__file__ = str(tmp_path / "shop.py")
    sys.modules[shop.__name__] = shop
    try:
        unnamed: Any = await aiosqlite.connect(":memory:")
        shop.db = await aiosqlite.connect(":memory:")
        monitor.discover_resources("database")
        found = [r for r in monitor.manager if r.target in (unnamed, shop.db)]
        assert [r.id for r in found] == ["shop_of_aiosqlite.db"]
        await unnamed.close()
        await shop.db.close()
        await soon(lambda: monitor.series(found[0].id), "a collection")
        del shop.db
        del unnamed
        gc.collect()
        await kit.gone(monitor, found[0])
    finally:
        del sys.modules[shop.__name__]
