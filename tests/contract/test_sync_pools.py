"""Are pools of blocking PostgreSQL drivers seen as they are: psycopg_pool's two and psycopg2's two?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool
import pytest

from tests import servers
from tests.contract import kit
from tests.contract.kit import CLOSE, CREATE, IDLE, PENDING, TIMEOUTS, USE, USED, WAIT, Watched
from tests.servers import wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, failures, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = pytest.mark.server

LIBRARIES = ("psycopg",)
KINDS = {
    "psycopg": psycopg_pool.ConnectionPool,
    "psycopg-null": psycopg_pool.NullConnectionPool,
    "psycopg2": psycopg2.pool.ThreadedConnectionPool,
    "psycopg2-simple": psycopg2.pool.SimpleConnectionPool,
}


class Pool:
    """One kind of pool with two connections at most, spoken to in one way."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, cls = kind, KINDS[kind]
        self.waits = not kind.startswith("psycopg2")
        self.real: Any
        if self.waits:
            least = {} if kind.endswith("null") else {"min_size": 1}
            self.real = cls(url, max_size=2, open=True, timeout=1, reconnect_timeout=1, **least)
            if least:
                self.real.wait()
        else:
            self.real = cls(1, 2, url)
        self.error = psycopg.Error if self.waits else psycopg2.Error

    def take(self) -> Any:
        return self.real.getconn()

    def give(self, connection: Any) -> None:
        self.real.putconn(connection)

    def query(self, connection: Any, statement: str = "SELECT 1") -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()

    def select(self, statement: str = "SELECT 1") -> Any:
        connection = self.take()
        try:
            return self.query(connection, statement)
        finally:
            self.give(connection)

    def use_up(self) -> None:
        """Query until there is nothing: what it still has is lost with the server."""
        for _ in range(3):
            self.select()

    def close(self) -> None:
        if self.waits:
            self.real.close()
        elif not self.real.closed:
            self.real.closeall()


@pytest.mark.parametrize("kind", ["psycopg", "psycopg2"])
def test_what_is_out_already_when_the_monitor_comes(kind: str, postgresql: servers.PostgreSQL) -> None:
    # Stands first: the monitor that the others share is not there yet.
    assert kit.hooked(*LIBRARIES) == []
    pool = Pool(kind, postgresql.url)
    held = pool.take()
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked(*LIBRARIES), 5, "the hooks")
        shop = Watched(monitor, pool.real)
        shop.until(1, "connections", **USED)
        pool.give(held)
        shop.until(0, "connections", **USED)
        pool.select()
        shop.until(1, USE, "count")
    assert kit.hooked(*LIBRARIES) == []
    pool.close()


@pytest.fixture(scope="module")
def monitor() -> Iterator[ResourceMonitor]:
    """One for all: that hooks come and go is a test of its own."""
    before = failures.cell.value
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: {"ThreadedConnectionPool.getconn"} <= set(kit.hooked(*LIBRARIES)), 5, "hooks")
        wait_until(lambda: {"ConnectionPool.getconn"} <= set(kit.hooked(*LIBRARIES)), 5, "the hooks")
        yield monitor
    assert failures.cell.value == before, "a hook failed"
    assert kit.hooked(*LIBRARIES) == []


Make = Callable[[str], tuple[Pool, Watched]]


@pytest.fixture
def make(monitor: ResourceMonitor, postgresql: servers.PostgreSQL) -> Iterator[Make]:
    made: list[tuple[Pool, Watched]] = []

    def make(kind: str) -> tuple[Pool, Watched]:
        pool = Pool(kind, postgresql.url)
        made.append((pool, Watched(monitor, pool.real, f"it-{kind}")))
        return made[-1]

    yield make
    postgresql.recover()
    for pool, watched in made:
        pool.close()
        monitor.manager.unregister(watched.resource)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_and_its_queries(make: Make, kind: str, postgresql: servers.PostgreSQL) -> None:
    pool, shop = make(kind)
    assert shop.resource.type == "database"
    assert shop.resource.endpoint == f"127.0.0.1:{postgresql.port}/postgres"
    one, two = pool.take(), pool.take()
    shop.until(1.0, "connection_pool_usage")
    shop.until(2, "connections", **USED)
    shop.until(0, "connections", **IDLE)
    assert pool.query(one) == (1,)
    pool.give(one)
    pool.give(two)
    shop.until(0, "connections", **USED)
    shop.until({"psycopg": 2, "psycopg-null": 0}.get(kind, 1), "connections", **IDLE)
    shop.until(2, USE, "count")
    shop.until(2, CREATE, "count")
    assert shop.read("connections_max") == 2
    if pool.waits:
        shop.until(1, "query_duration", "count")
        assert shop.read(WAIT, "count") == 2
        assert (shop.read(WAIT, "sum") or 0) < CLOSE, "connecting is no waiting"
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    statistics = shop.driver.statistics(pool.real)
    assert isinstance(statistics, dict)
    assert statistics["total_queries"] == (1 if pool.waits else None)
    with pytest.raises(pool.error):
        pool.select("SELECT hunter2_canary")
    if pool.waits:
        shop.until(1, "errors", "total")
        assert shop.explain("uno.resource.errors").startswith("last error UndefinedColumn")
    said = kit.everything_said(shop.monitor)
    assert "canary" not in said
    assert servers.PASSWORD not in said


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-null"])
def test_the_wait_is_the_true_one_and_a_wait_in_vain_a_timeout(make: Make, kind: str) -> None:
    pool, shop = make(kind)
    held = [pool.take(), pool.take()]
    shop.until(2, WAIT, "count")
    before = shop.read(WAIT, "sum") or 0.0
    true: list[float] = []

    def wait() -> None:
        begun = time.perf_counter()
        connection = pool.real.getconn()
        true.append(time.perf_counter() - begun)
        pool.give(connection)

    thread = threading.Thread(target=wait, name="checkout-1")
    thread.start()
    shop.until(1, PENDING)
    place = f"tests/contract/test_sync_pools.py:{wait.__code__.co_firstlineno + 2} in wait"
    assert shop.sites(waiting=True) == {place: 1}
    assert shop.explain().startswith("2 of 2 connections held: tests/contract/test_sync_pools.py:")
    time.sleep(0.1)
    pool.give(held.pop())
    thread.join()
    shop.until(3, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true[0], abs=CLOSE)
    held.append(pool.take())
    with pytest.raises(psycopg_pool.PoolTimeout):
        pool.real.getconn(timeout=0.1)
    shop.until(1, TIMEOUTS, "total")
    assert shop.read("errors", "total") == 0
    for connection in held:
        pool.give(connection)
    shop.until(0, "connections", **USED)
    assert shop.sites() == shop.sites(waiting=True) == {}


@pytest.mark.parametrize("kind", ["psycopg2", "psycopg2-simple"])
def test_a_pool_that_refuses(make: Make, kind: str) -> None:
    pool, shop = make(kind)
    held = [pool.take(), pool.take()]
    with pytest.raises(psycopg2.pool.PoolError):
        pool.take()
    shop.until(1, TIMEOUTS, "total")
    pool.give(held.pop())
    with pytest.raises(psycopg2.pool.PoolError):
        pool.give(object())
    pool.give(held.pop())
    keyed = pool.real.getconn("cart")
    assert pool.real.getconn("cart") is keyed
    shop.until(1, "connections", **USED)
    pool.real.putconn(keyed, "cart")
    shop.until(3, USE, "count")
    assert shop.read(TIMEOUTS, "total") == 1
    assert shop.sites() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_leak_is_named_to_the_line(make: Make, kind: str) -> None:
    pool, shop = make(kind)
    leaked: list[Any] = []

    def leak() -> None:
        leaked.append(pool.real.getconn())

    token = scope.set(CallScope("GET /orders/{id}"))
    leak()
    leak()
    scope.reset(token)
    shop.until(1.0, "connection_pool_usage")
    place = f"tests/contract/test_sync_pools.py:{leak.__code__.co_firstlineno + 1} in leak"
    assert shop.sites() == {place: 2}
    assert f"2 of 2 connections held: {place} for GET /orders/{{id}} (2, longest " in shop.explain()
    for connection in leaked:
        pool.give(connection)
    shop.until(0, "uno.db.client.connection.oldest_use")


def test_the_context_manager_is_seen_through(make: Make) -> None:
    pool, shop = make("psycopg")
    with pool.real.connection(), pool.real.connection() as connection:
        connection.execute("SELECT 1")
        with connection.cursor(name="server-side") as cursor:
            cursor.execute("SELECT generate_series(1, 9)")
            assert len(cursor.fetchall()) == 9
        shop.until(2, "query_duration", "count")
        (place,) = shop.sites()
        assert place.endswith("in test_the_context_manager_is_seen_through")
    shop.until(2, USE, "count")


@pytest.mark.parametrize("kind", KINDS)
def test_a_discovered_pool_goes_when_it_is_dropped(
    monitor: ResourceMonitor, postgresql: servers.PostgreSQL, kind: str
) -> None:
    def make() -> Any:
        pool = Pool(kind, postgresql.url)
        pool.select()
        pool.close()
        return pool.real

    kit.dies(monitor, make, "database")
    later = Pool(kind, postgresql.url)  # and what comes later is noticed by its hooks
    wait_until(lambda: any(r.target is later.real for r in monitor.manager), 5, "discovered")
    later.close()


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-null", "psycopg2"])
def test_pings_take_what_nobody_needs(make: Make, kind: str) -> None:
    pool, shop = make(kind)
    assert pool.select() == (1,)
    stat = shop.monitor.stat_of(shop.resource)
    assert stat is not None
    shop.until(1, USE, "count")
    held = [pool.take(), pool.take()]
    stat.last_ok = 0.0  # as if that had been long ago
    assert shop.driver.ping(pool.real) is None, "used up is not down"
    for connection in held:
        pool.give(connection)
    stat.last_ok = 0.0
    assert shop.driver.ping(pool.real) is True
    if kind == "psycopg2":
        assert len(pool.real._pool) == 1, "it is where it was"
        assert pool.real._used == {}


def test_the_monitors_pings_are_no_traffic(monitor: ResourceMonitor, make: Make) -> None:
    _, shop = make("psycopg")
    wait_until(lambda: monitor.health_of(shop.resource.id).status is HealthStatus.UP, 10, "pinged")
    for name in ("query_duration", WAIT, USE):
        shop.until(0, name, "count")


@pytest.mark.slow
def test_a_frozen_server_and_a_lost_one(
    make: Make, monitor: ResourceMonitor, postgresql: servers.PostgreSQL
) -> None:
    shops = [make("psycopg"), make("psycopg2")]
    pool, shop = shops[0]

    def status(shop: Watched) -> HealthStatus:
        return monitor.health_of(shop.resource.id).status

    for each, its in shops:
        each.select()
        wait_until(lambda its=its: status(its) is HealthStatus.UP, 5, "up")  # type: ignore[misc]
    postgresql.freeze()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(pool.select()))
    thread.start()
    wait_until(lambda: status(shop) is not HealthStatus.UP, 6, "not up soon after calls stall")
    wait_until(lambda: "a call has been running for" in shop.explain("query_duration"), 5, "said")
    assert answers == []
    postgresql.thaw()
    thread.join()
    assert answers == [(1,)], "as without uno"
    held = [each.take() for each, _ in shops]
    postgresql.kill()
    for (each, its), connection in zip(shops, held, strict=True):
        with pytest.raises(each.error):
            each.query(connection)
        each.give(connection)
        with pytest.raises(each.error):
            each.use_up()
        its.until(0, "connections", **USED)
        wait_until(lambda its=its: (its.read("errors", "total") or 0) >= 1, 5, "an error")  # type: ignore[misc]
    assert servers.PASSWORD not in kit.everything_said(monitor)
    postgresql.restart()
    deadline = time.monotonic() + 15
    while any(status(its) is not HealthStatus.UP for _, its in shops):
        for each, _ in shops:
            try:
                each.select()
            except each.error:
                assert time.monotonic() < deadline, "it recovers"
        time.sleep(0.05)
