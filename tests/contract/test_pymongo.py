"""Are MongoDB's clients seen as they are, sync and async: commands, waiting, holders, the lost server?"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure, PyMongoError, WaitQueueTimeoutError

from tests import servers
from tests.contract import kit
from tests.contract.kit import CLOSE, CREATE, IDLE, PENDING, TIMEOUTS, USE, USED, WAIT, Watched
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, failures, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

HERE = "tests/contract/test_pymongo.py"
OPTIONS: dict[str, Any] = {"maxPoolSize": 2, "serverSelectionTimeoutMS": 1000, "directConnection": True}


@pytest.fixture(scope="module")
def monitor() -> Iterator[ResourceMonitor]:
    before = failures.cell.value
    assert kit.hooked("pymongo.") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: "AsyncMongoClient._retry_internal" in kit.hooked("pymongo."), 5, "the hooks")
        yield monitor
    assert failures.cell.value == before, "a hook failed"
    assert kit.hooked("pymongo.") == []


@pytest.fixture
def client(mongodb: servers.MongoDB) -> Iterator[Any]:
    with MongoClient(mongodb.url, **OPTIONS) as client:
        yield client
        mongodb.recover()


@pytest.fixture
def shop(monitor: ResourceMonitor, client: Any) -> Iterator[Watched]:
    watched = Watched(monitor, client)
    yield watched
    monitor.manager.unregister(watched.resource)


def slow_finds(client: Any, seconds: float, times: int = 1) -> dict[str, Any]:
    """The command that lets the server take its time for the next finds."""
    data = {"failCommands": ["find"], "blockConnection": True, "blockTimeMS": int(seconds * 1000)}
    return {"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data}


def test_commands_and_the_pool(shop: Watched, client: Any, mongodb: servers.MongoDB) -> None:
    assert shop.resource.type == "database"
    assert shop.resource.endpoint == f"127.0.0.1:{mongodb.port}/shop"
    orders = client.shop.orders
    orders.delete_many({})
    orders.insert_many([{"_id": n} for n in range(5)])
    assert orders.find_one({"_id": 3}) == {"_id": 3}
    orders.bulk_write([pymongo.UpdateOne({"_id": 1}, {"$set": {"paid": True}})])
    assert orders.count_documents({}) == 5
    shop.until(5, "query_duration", "count")
    shop.until(5, USE, "count")
    assert shop.read(WAIT, "count") == 5
    assert shop.read(CREATE, "count") == 1, "the driver's heartbeats have connections of their own"
    assert (shop.read(WAIT, "sum") or 0) < CLOSE, "connecting is no waiting"
    assert len(list(orders.find({}, batch_size=2))) == 5  # one find, and two more batches
    shop.until(6, "query_duration", "count")
    statistics = shop.driver.statistics(client)
    assert isinstance(statistics, dict)
    assert statistics["total_queries"] == 8
    shop.until(1, "connections", **IDLE)
    shop.until(0, "connections", **USED)
    assert shop.read("connections_max") == 2
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    with pytest.raises(OperationFailure):
        orders.insert_one({"_id": 3, "secret": "canary"})
    with pytest.raises(OperationFailure):
        client.shop.command("canary")
    shop.until(2, "errors", "total")
    assert "last error OperationFailure" in shop.explain("uno.resource.errors")
    said = kit.everything_said(shop.monitor)
    assert "canary" not in said
    assert servers.PASSWORD not in said


def test_the_wait_is_the_true_one_and_a_wait_in_vain_a_timeout(
    shop: Watched, client: Any, monitor: ResourceMonitor, mongodb: servers.MongoDB
) -> None:
    client.shop.orders.find_one()
    shop.until(1, WAIT, "count")

    def held() -> Any:
        return client.shop.orders.find_one()

    client.admin.command(slow_finds(client, 0.3, times=2))
    shop.until(2, WAIT, "count")
    holders = [threading.Thread(target=held, name=f"holder-{n}") for n in range(2)]
    for thread in holders:
        thread.start()
    shop.until(1.0, "connection_pool_usage")
    assert set(shop.sites()) == {f"{HERE}:{held.__code__.co_firstlineno + 1} in held"}
    before = shop.read(WAIT, "sum") or 0.0
    begun = time.perf_counter()
    waiter = threading.Thread(target=held, name="waiter-1")
    waiter.start()
    shop.until(1, PENDING)
    assert shop.monitor.holders("it")[-1].caller == "thread waiter"
    for thread in holders:
        thread.join()
    until_free = time.perf_counter() - begun
    waiter.join()
    shop.until(5, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(until_free, abs=CLOSE)
    shop.until(0, "connections", **USED)
    assert shop.sites() == shop.sites(waiting=True) == {}
    with MongoClient(
        mongodb.url, **OPTIONS | {"maxPoolSize": 1, "waitQueueTimeoutMS": 50, "retryReads": False}
    ) as small:
        refusing = Watched(monitor, small, "small")
        small.admin.command(slow_finds(small, 0.3))
        thread = threading.Thread(target=small.shop.orders.find_one)
        thread.start()
        refusing.until(1, "connections", **USED)
        with pytest.raises(WaitQueueTimeoutError):
            small.shop.orders.find_one()
        thread.join()
        refusing.until(1, TIMEOUTS, "total")
        refusing.until(1, "errors", "total")
        monitor.manager.unregister(refusing.resource)


def test_what_holds_for_long_is_named_to_the_line(shop: Watched, client: Any) -> None:
    """A transaction keeps its connection only behind a balancer; a command that takes its time, on every server."""
    client.admin.command(slow_finds(client, 0.7))

    def report() -> None:
        client.shop.orders.find_one()

    time.sleep(0.01)  # of commands in quick succession, not each one's place is looked up
    token = scope.set(CallScope("GET /orders/{id}"))
    thread = threading.Thread(target=contextvars.copy_context().run, args=(report,))
    scope.reset(token)
    thread.start()
    place = f"{HERE}:{report.__code__.co_firstlineno + 1} in report"
    wait_until(lambda: shop.sites() == {place: 1}, 5, "held")
    assert f"{place} for GET /orders/{{id}} (1, longest " in shop.explain()
    thread.join()
    shop.until(1, "slow_queries", "total")
    assert f"1 slow from {place}" in shop.explain("db.client.operation.duration")


def test_a_cursor_that_waits_on_purpose_is_not_slow(shop: Watched, client: Any) -> None:
    client.shop.drop_collection("events")
    events = client.shop.create_collection("events", capped=True, size=100_000)
    events.insert_one({"n": 1})
    shop.until(4, "query_duration", "count")  # the driver asks for what is there before it creates
    cursor = events.find(cursor_type=pymongo.CursorType.TAILABLE_AWAIT).max_await_time_ms(600)
    assert next(cursor)["n"] == 1
    begun = time.perf_counter()
    assert next(cursor, None) is None
    assert time.perf_counter() - begun > 0.5, "it waited on purpose"
    cursor.close()
    wait_until(lambda: (shop.read("query_duration", "count") or 0) >= 5, 5, "the find")
    assert shop.read("slow_queries", "total") == 0


def test_a_discovered_client_goes_when_it_is_dropped(
    monitor: ResourceMonitor, mongodb: servers.MongoDB
) -> None:
    def make() -> Any:
        client = MongoClient(mongodb.url, **OPTIONS)
        client.shop.orders.find_one()
        client.close()
        return client

    kit.dies(monitor, make, "database")
    with MongoClient(mongodb.url, **OPTIONS) as later:
        wait_until(lambda: any(r.target is later for r in monitor.manager), 5, "discovered")


def test_pings(shop: Watched, client: Any, monitor: ResourceMonitor) -> None:
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 10, "pinged")
    assert shop.read("query_duration", "count") == shop.read(WAIT, "count") == 0, "no traffic"
    client.admin.command(slow_finds(client, 0.3, times=2))
    threads = [threading.Thread(target=client.shop.orders.find_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    shop.until(1.0, "connection_pool_usage")
    stat = monitor.stat_of(shop.resource)
    assert stat is not None
    stat.last_ok = 0.0
    assert shop.driver.ping(client) is None, "used up is not down"
    for thread in threads:
        thread.join()


async def test_an_async_client(monitor: ResourceMonitor, mongodb: servers.MongoDB) -> None:
    async with AsyncMongoClient(mongodb.url, **OPTIONS) as client:
        shop = Watched(monitor, client)
        ping: Any = shop.driver.ping
        assert await ping(client) is None, "nobody knows yet which loop it belongs to"
        orders = client.shop.orders
        await orders.delete_many({})
        await orders.insert_many([{"_id": n} for n in range(5)])
        assert [order["_id"] async for order in orders.find({}, batch_size=2)] == [0, 1, 2, 3, 4]
        await shop.soon(3, "query_duration", "count")
        assert shop.read(CREATE, "count") in (1, 2)
        assert shop.driver.bound_loop(client) is asyncio.get_running_loop()
        assert kit.names_without_series(shop) == set()

        async def held() -> Any:
            return await orders.find_one()

        await client.admin.command(slow_finds(client, 0.5, times=2))
        before = shop.read(WAIT, "sum") or 0.0
        holders = [asyncio.create_task(held()) for _ in range(2)]
        await shop.soon(1.0, "connection_pool_usage")
        assert set(shop.sites()) == {f"{HERE}:{held.__code__.co_firstlineno + 1} in held"}
        begun = time.perf_counter()
        waiter = asyncio.create_task(held())
        await shop.soon(1, PENDING)
        stat = monitor.stat_of(shop.resource)
        assert stat is not None
        stat.last_ok = 0.0
        assert await ping(client) is None, "used up is not down"
        await asyncio.wait(holders, return_when=asyncio.FIRST_COMPLETED)
        until_free = time.perf_counter() - begun
        await asyncio.gather(waiter, *holders)
        await shop.soon(0, "connections", **USED)
        waited = (shop.read(WAIT, "sum") or 0.0) - before
        assert waited == pytest.approx(until_free, abs=2 * CLOSE)
        await client.admin.command(slow_finds(client, 30))
        task = asyncio.create_task(held())
        await shop.soon(1, "connections", **USED)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await shop.soon(0, "connections", **USED)
        assert shop.sites() == shop.sites(waiting=True) == {}
        assert shop.read("errors", "total") == 0
        stat.last_ok = 0.0
        assert await asyncio.to_thread(lambda: asyncio.run(ping(client))) is None, "not from another loop"
        assert await ping(client) is True
    monitor.manager.unregister(shop.resource)


@pytest.mark.slow
def test_a_frozen_server_and_a_lost_one(
    shop: Watched, monitor: ResourceMonitor, client: Any, mongodb: servers.MongoDB
) -> None:
    def status() -> HealthStatus:
        return monitor.health_of("it").status

    client.shop.orders.find_one()
    wait_until(lambda: status() is HealthStatus.UP, 5, "up")
    mongodb.freeze()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.shop.orders.count_documents({})))
    thread.start()
    wait_until(lambda: status() is not HealthStatus.UP, 6, "not up soon after calls stall")
    wait_until(
        lambda: "a call has been running for" in shop.explain("db.client.operation.duration"), 5, "said"
    )
    assert answers == []
    mongodb.thaw()
    thread.join()
    assert len(answers) == 1, "as without uno"
    mongodb.kill()
    with pytest.raises(PyMongoError):
        client.shop.orders.find_one()
    wait_until(lambda: (shop.read("errors", "total") or 0) >= 1, 5, "an error")
    wait_until(lambda: status() is not HealthStatus.UP, 15, "not up")
    assert servers.PASSWORD not in kit.everything_said(monitor)
    mongodb.restart()
    deadline = time.monotonic() + 15
    while status() is not HealthStatus.UP:
        try:
            client.shop.orders.find_one()
        except PyMongoError:
            assert time.monotonic() < deadline, "it recovers"
        time.sleep(0.05)
