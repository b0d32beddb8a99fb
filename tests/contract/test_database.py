"""Are SQLAlchemy's engines seen as they are, sync and async: pool, waiting, holders, queries, the lost server?"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import pool as pools
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tests.contract import kit
from tests.contract.kit import Watched
from tests.servers import PASSWORD, PostgreSQL, wait_until
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

STATE = "db.client.connection.state"
USED, IDLE = {STATE: "used"}, {STATE: "idle"}
CREATE, PENDING = "db.client.connection.create_time", "connections_waiting"
WAIT, USE = "connection_wait_time", "connection_use_time"
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    assert kit.hooked("sqlalchemy") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: kit.hooked("sqlalchemy"), 5, "the hooks")
        yield monitor
    assert kit.hooked("sqlalchemy") == []


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """Two connections to a file, and not one more."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", pool_size=2, max_overflow=0, pool_timeout=2)
    yield engine
    engine.dispose()


@pytest.fixture
def shop(monitor: ResourceMonitor, engine: sa.Engine) -> Watched:
    return Watched(monitor, engine)


def select(engine: sa.Engine, statement: str = "SELECT 1") -> object:
    with engine.connect() as connection:
        return connection.execute(sa.text(statement)).scalar()


# -- the pool --------------------------------------------------------------------------------------------


def test_pool_and_queries(shop: Watched, engine: sa.Engine) -> None:
    assert shop.resource.type == "database"
    assert shop.resource.endpoint == "file:shop.db"
    with engine.connect() as one, engine.connect():
        one.execute(sa.text("SELECT 1"))
        shop.until(1.0, "connection_pool_usage")
        shop.until(2, "connections", **USED)
        shop.until(0, "connections", **IDLE)
    shop.until(0.0, "connection_pool_usage")
    shop.until(2, "connections", **IDLE)
    for _ in range(3):
        select(engine)
    shop.until(4, "query_duration", "count")
    shop.until(5, USE, "count")
    assert shop.read("connections_max") == 2
    assert shop.read(WAIT, "count") == 5
    assert shop.read(CREATE, "count") == 2
    assert shop.read("errors", "total") == 0
    assert kit.names_without_series(shop) == set()
    assert kit.unknown(shop) == set()
    statistics = asyncio.run(shop.resource.get_statistics())
    assert statistics["total_queries"] == 4
    assert statistics["slow_queries"] == 0
    assert statistics["connections_in_use"] == 0


def test_what_lives_already_is_seen_in_full(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=2, max_overflow=0)
    held = engine.connect()  # before there is a monitor
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        shop = Watched(monitor, engine)
        wait_until(lambda: kit.hooked("sqlalchemy"), 5, "the hooks")
        shop.until(0.5, "connection_pool_usage")
        held.execute(sa.text("SELECT 1"))
        held.close()
        shop.until(0.0, "connection_pool_usage")
        shop.until(1, "query_duration", "count")
        select(engine)
        shop.until(1, USE, "count")  # of what was taken before, nothing is known
    engine.dispose()


def test_the_wait_is_the_true_one(shop: Watched, engine: sa.Engine) -> None:
    for connection in (engine.connect(), engine.connect()):
        connection.close()  # both are there: what follows is waiting alone
    shop.until(2, WAIT, "count")
    before = shop.read(WAIT, "sum") or 0.0
    held = [engine.connect(), engine.connect()]
    true: list[float] = []

    def wait() -> None:
        begun = time.perf_counter()
        connection = engine.connect()
        true.append(time.perf_counter() - begun)
        connection.close()

    thread = threading.Thread(target=wait, name="checkout-1")
    thread.start()
    shop.until(1, PENDING)
    assert shop.monitor.holders("it")[-1].waiting
    assert shop.monitor.holders("it")[-1].caller == "thread checkout"
    place = f"tests/contract/test_database.py:{wait.__code__.co_firstlineno + 2} in wait"
    assert shop.sites(waiting=True) == {place: 1}
    time.sleep(0.25)
    held[0].close()
    thread.join()
    held[1].close()
    shop.until(5, WAIT, "count")
    assert true[0] > 0.25
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true[0], abs=CLOSE)
    shop.until(0, PENDING)


def test_a_wait_in_vain_is_one_timeout(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=1, max_overflow=1, pool_timeout=0.1)
    shop = Watched(monitor, engine)
    one, two = engine.connect(), engine.connect()
    with pytest.raises(sa.exc.TimeoutError):
        engine.connect()
    shop.until(1, "connection_timeouts", "total")
    assert shop.read("errors", "total") == 1
    assert "last error TimeoutError" in shop.explain("uno.resource.errors")
    wait_until(lambda: monitor.alerts.active(), 5, "an alert")
    one.close()
    two.close()
    assert shop.sites() == shop.sites(waiting=True) == {}
    engine.dispose()


def test_a_crowd_leaves_nothing_behind(monitor: ResourceMonitor, tmp_path: Path) -> None:
    """Threads that race for the overflow make ``_do_get`` call itself; each checkout counts once all the same."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=1, max_overflow=3, pool_timeout=20)
    shop = Watched(monitor, engine)

    def work() -> None:
        for _ in range(40):
            with engine.connect():
                time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.until(480, WAIT, "count")
    assert shop.read(USE, "count") == 480
    assert shop.sites() == shop.sites(waiting=True) == {}
    shop.until(0.0, "connection_pool_usage")
    assert shop.read("connection_timeouts", "total") == 0
    engine.dispose()


def test_a_leak_is_named_to_the_line(shop: Watched, engine: sa.Engine) -> None:
    leaked: list[sa.Connection] = []

    def leak() -> None:
        leaked.append(engine.connect())

    token = scope.set(CallScope("GET /orders/{id}"))
    leak()
    leak()
    scope.reset(token)
    shop.until(1.0, "connection_pool_usage")
    place = f"tests/contract/test_database.py:{leak.__code__.co_firstlineno + 1} in leak"
    text = shop.explain()
    assert text.startswith(f"2 of 2 connections held: {place} for GET /orders/{{id}} (2, longest ")
    assert shop.sites() == {place: 2}
    time.sleep(0.1)
    assert (shop.read("uno.db.client.connection.oldest_use") or 0) > 0.1
    for connection in leaked:
        connection.close()
    shop.until(0, "uno.db.client.connection.oldest_use")


def test_a_connection_that_is_dropped_is_no_longer_held_and_told(shop: Watched, engine: sa.Engine) -> None:
    def forget() -> None:
        dropped = engine.raw_connection()
        shop.until(1, "connections", **USED)
        del dropped
        gc.collect()

    shop.until(0, "uno.connection.leaked", "total")
    with engine.connect() as connection:
        time.sleep(0.01)
        connection.execute(sa.text("SELECT 1"))
    detached = engine.raw_connection()
    time.sleep(0.01)
    detached.detach()
    detached.close()
    for _ in range(3):
        forget()
    shop.until(0, "connections", **USED)
    assert shop.sites() == {}
    shop.until(3, "uno.connection.leaked", "total")
    place = f"tests/contract/test_database.py:{forget.__code__.co_firstlineno + 1} in forget"
    assert (
        shop.explain("uno.connection.leaked") == f"3 never returned, taken at {place} for thread MainThread"
    )

    def firing() -> list[str]:
        return [
            alert.cause for alert in shop.monitor.alerts.active() if alert.metric == "uno.connection.leaked"
        ]

    kit.wait_until(firing, 10, "an alert")
    assert place in firing()[0]


def test_a_detached_connection_leaves_the_pool(shop: Watched, engine: sa.Engine) -> None:
    connection = engine.connect()
    connection.detach()
    assert shop.sites() == {}
    shop.until(0, "connections", **USED)
    connection.close()
    shop.until(1, USE, "count")


def test_dispose_keeps_the_numbers(shop: Watched, engine: sa.Engine) -> None:
    select(engine)
    old = engine.connect()
    engine.dispose()
    select(engine)
    old.close()  # goes to the pool that is no more
    shop.until(2, "query_duration", "count")
    shop.until(3, USE, "count")
    shop.until(0, "connections", **USED)
    assert shop.read(CREATE, "count") == 2
    assert shop.sites() == {}


def test_pools_without_a_size_have_no_share(monitor: ResourceMonitor, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    share = {"uno.resource.utilization", "db.client.connection.max"}
    kinds: dict[type[pools.Pool], tuple[set[str], int]] = {
        pools.NullPool: (share, 0),
        pools.StaticPool: (share, 1),
        pools.SingletonThreadPool: (share, 1),
        pools.AssertionPool: (set(), 1),
    }
    for kind, (unknown, idle) in kinds.items():
        engine = sa.create_engine(url, poolclass=kind)
        shop = Watched(monitor, engine, kind.__name__)
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            shop.until(1, "connections", **USED)
            shop.until(0, "connections", **IDLE)
        shop.until(0, "connections", **USED)
        shop.until(idle, "connections", **IDLE)
        shop.until(1, "query_duration", "count")
        shop.until(1, CREATE, "count")
        shop.until(1, USE, "count")
        assert kit.unknown(shop) == unknown
        assert shop.driver.ping(engine) is True
        engine.dispose()
    unlimited = sa.create_engine(url, max_overflow=-1)
    shop = Watched(monitor, unlimited, "unlimited")
    select(unlimited)
    shop.until(1, USE, "count")
    assert kit.unknown(shop) == {"uno.resource.utilization", "db.client.connection.max"}
    unlimited.dispose()


def test_each_thread_its_connection(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=pools.SingletonThreadPool)
    shop = Watched(monitor, engine)
    started, done = threading.Barrier(3), threading.Event()

    def work() -> None:
        with engine.connect(), engine.connect() as nested:
            nested.execute(sa.text("SELECT 1"))
            started.wait(5)
            done.wait(5)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait(5)
    shop.until(2, "connections", **USED)
    done.set()
    for thread in threads:
        thread.join()
    shop.until(0, "connections", **USED)
    shop.until(2, CREATE, "count")
    engine.dispose()


def test_a_pool_of_one_refuses_the_second(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=pools.AssertionPool)
    shop = Watched(monitor, engine)
    with engine.connect():
        shop.until(1.0, "connection_pool_usage")
        with pytest.raises(AssertionError):
            engine.connect()
        shop.until(1, "connection_timeouts", "total")
    shop.until(0.0, "connection_pool_usage")
    engine.dispose()


# -- queries ---------------------------------------------------------------------------------------------


def test_errors_are_told_by_type_and_never_by_text(shop: Watched, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for _ in range(3):
            with pytest.raises(sa.exc.OperationalError):
                connection.execute(sa.text("SELECT * FROM secret_hunter2"))
    shop.until(3, "errors", "total")
    assert shop.explain("uno.resource.errors") == "last error OperationalError 0 s ago, 3 in all"
    assert "hunter2" not in kit.everything_said(shop.monitor)


def test_each_statement_counts_once(shop: Watched, engine: sa.Engine) -> None:
    orders = sa.Table("orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        connection.execute(orders.insert(), [{"id": n} for n in range(50)])  # executemany
        assert connection.execute(sa.select(sa.func.count()).select_from(orders)).scalar() == 50
    shop.until(3, "query_duration", "count")


def test_slow_queries_are_named_to_the_line(
    monitor: ResourceMonitor,
    postgresql: PostgreSQL,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = sa.create_engine(postgresql.url.replace("postgresql", "postgresql+psycopg", 1))
    shop = Watched(monitor, engine)

    def report() -> None:
        select(engine, "SELECT pg_sleep(0.6)")

    begun = time.perf_counter()
    report()
    took = time.perf_counter() - begun
    shop.until(1, "slow_queries", "total")
    line = select.__code__.co_firstlineno + 2
    assert f"1 slow from tests/contract/test_database.py:{line} in select" in shop.explain(
        "db.client.operation.duration"
    )
    slowest = max(s.stats["max"] or 0 for s in monitor.series("it", "query_duration"))
    longest = monitor.read("it", "query_duration", stat="sum") or 0
    assert 0.6 <= max(slowest, longest) <= took
    assert asyncio.run(shop.resource.get_statistics())["slow_queries"] == 1
    monkeypatch.setattr("uno.core.monitoring.causes.monotonic", lambda: time.monotonic() + 61)
    assert "slow" not in shop.explain("db.client.operation.duration"), "what is over is no cause"
    engine.dispose()


# -- asyncio ---------------------------------------------------------------------------------------------


@pytest.fixture
async def aengine(postgresql: PostgreSQL) -> AsyncIterator[AsyncEngine]:
    url = postgresql.url.replace("postgresql", "postgresql+asyncpg", 1)
    engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=2)
    yield engine
    postgresql.recover()
    await engine.dispose()


async def test_async_pool_queries_and_the_true_wait(monitor: ResourceMonitor, aengine: AsyncEngine) -> None:
    shop = Watched(monitor, aengine)
    async with aengine.connect() as one, aengine.connect():
        await one.execute(sa.text("SELECT 1"))
        await shop.soon(1.0, "connection_pool_usage")
    await shop.soon(2, USE, "count")
    before = shop.read(WAIT, "sum") or 0.0

    held = [await aengine.connect(), await aengine.connect()]

    async def wait() -> float:
        begun = time.perf_counter()
        connection = await aengine.connect()
        waited = time.perf_counter() - begun
        await connection.close()
        return waited

    waiting = asyncio.create_task(wait())
    await shop.soon(1, PENDING)
    place = f"tests/contract/test_database.py:{wait.__code__.co_firstlineno + 2} in wait"
    assert shop.sites(waiting=True) == {place: 1}
    await asyncio.sleep(0.25)
    for connection in held:
        await connection.close()
    true = await waiting
    await shop.soon(5, WAIT, "count")
    assert (shop.read(WAIT, "sum") or 0.0) - before == pytest.approx(true, abs=CLOSE)
    assert true > 0.25
    assert shop.read(CREATE, "count") == 2
    assert shop.driver.bound_loop(aengine) is asyncio.get_running_loop()
    assert kit.names_without_series(shop) == set()


async def test_async_leaks_are_named_through_greenlets(
    monitor: ResourceMonitor, aengine: AsyncEngine
) -> None:
    shop = Watched(monitor, aengine)
    leaked: list[AsyncConnection] = []

    async def leak() -> None:
        leaked.append(await aengine.connect())

    await asyncio.create_task(leak())
    await asyncio.create_task(leak())
    await shop.soon(1.0, "connection_pool_usage")
    place = f"tests/contract/test_database.py:{leak.__code__.co_firstlineno + 1} in leak"
    assert shop.sites() == {place: 2}
    assert "in leak for task test_async_leaks" in shop.explain()
    for connection in leaked:
        await connection.close()


@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
async def test_an_async_connection_that_is_dropped_is_told(
    monitor: ResourceMonitor, aengine: AsyncEngine
) -> None:
    shop = Watched(monitor, aengine)

    async def forget() -> None:
        await (await aengine.connect()).execute(sa.text("SELECT 1"))
        await asyncio.sleep(0.01)

    async with aengine.connect():
        await asyncio.sleep(0.01)
    await forget()
    gc.collect()
    await shop.soon(1, "uno.connection.leaked", "total")
    place = f"tests/contract/test_database.py:{forget.__code__.co_firstlineno + 1} in forget"
    assert place in shop.explain("uno.connection.leaked")


async def test_a_cancelled_query_is_no_error_and_leaves_nothing(
    monitor: ResourceMonitor, aengine: AsyncEngine
) -> None:
    shop = Watched(monitor, aengine)

    async def query() -> None:
        async with aengine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_sleep(30)"))

    task = asyncio.create_task(query())
    await shop.soon(1, "connections", **USED)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shop.soon(0, "connections", **USED)
    assert shop.sites() == {}
    assert shop.read("errors", "total") == 0
    stat = monitor.stat_of(shop.resource)
    assert stat is not None
    assert stat.running == {}


# -- health ----------------------------------------------------------------------------------------------


def test_ping_takes_no_connection_that_others_need(shop: Watched, engine: sa.Engine) -> None:
    assert asyncio.run(shop.resource.ping()) is True  # by the driver: nothing is known yet
    shop.until(1, CREATE, "count")
    assert shop.read("query_duration", "count") == 0  # a ping is no traffic of the application
    with engine.connect(), engine.connect():
        assert shop.driver.ping(engine) is None  # used up is not down
    select(engine)
    before = shop.read(CREATE, "count")
    with engine.connect(), engine.connect():
        assert shop.driver.ping(engine) is True  # a query went well just now
    assert shop.read(CREATE, "count") == before


def test_a_lost_server_is_down_and_comes_back(monitor: ResourceMonitor, postgresql: PostgreSQL) -> None:
    engine = sa.create_engine(postgresql.url.replace("postgresql", "postgresql+psycopg", 1))
    shop = Watched(monitor, engine)
    assert shop.resource.endpoint == f"127.0.0.1:{postgresql.port}/postgres"
    select(engine)
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 5, "up")
    postgresql.kill()
    with pytest.raises(sa.exc.OperationalError):
        select(engine)
    shop.until(1, "errors", "total")
    with pytest.raises(sa.exc.OperationalError):  # cannot even connect
        select(engine)
    wait_until(lambda: (shop.read("errors", "total") or 0) >= 2, 5, "a failed connect")
    assert PASSWORD not in kit.everything_said(monitor)
    postgresql.restart()
    assert select(engine) == 1
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.UP, 15, "up again")
    engine.dispose()


async def test_an_async_engine_is_pinged_on_its_own_loop_only(
    monitor: ResourceMonitor, aengine: AsyncEngine
) -> None:
    shop = Watched(monitor, aengine)
    assert await shop.resource.ping() is None  # never used: nobody knows which loop will own it
    async with aengine.connect():
        pass
    stat = monitor.stat_of(shop.resource)
    assert stat is not None
    stat.last_ok = 0.0  # as if that had been long ago
    ping = shop.driver.ping
    assert await asyncio.to_thread(lambda: asyncio.run(ping(aengine))) is None  # type: ignore[arg-type]
    total = stat.total.value
    assert await shop.resource.ping() is True
    assert stat.total.value == total  # a ping is no traffic of the application
    async with aengine.connect(), aengine.connect():
        assert await shop.resource.ping() is None  # used up is not down


def test_the_inside_of_an_async_engine_is_not_pinged(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/new.db")
    assert Watched(monitor, engine.sync_engine).driver.ping(engine.sync_engine) is None


# -- discovery -------------------------------------------------------------------------------------------


def test_a_discovered_engine_goes_with_the_application(monitor: ResourceMonitor, tmp_path: Path) -> None:
    def make() -> sa.Engine:
        engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db")
        select(engine)
        return engine

    kit.dies(monitor, make, "database")


def test_new_engines_are_noticed_and_stand_for_what_is_in_them(
    monitor: ResourceMonitor, tmp_path: Path
) -> None:
    monitor.discover_resources("database")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/new.db")
    options = engine.sync_engine.execution_options(isolation_level="AUTOCOMMIT")
    wait_until(lambda: any(r.target is engine for r in monitor.manager), 5, "discovered")
    time.sleep(0.3)
    found = [r for r in monitor.manager if r.target in (engine, engine.sync_engine, options)]
    assert [r.target for r in found] == [engine]


def test_no_output_has_a_password(monitor: ResourceMonitor) -> None:
    url = "postgresql+psycopg://bob:s3cr3t@127.0.0.1:9/shop?password=s3cr3t"
    engine = sa.create_engine(url)
    shop = Watched(monitor, engine)
    with pytest.raises(sa.exc.OperationalError):
        engine.connect()
    shop.until(1, "errors", "total")  # and not one more for the monitor's ping, which fails likewise
    with pytest.raises(psycopg.OperationalError):
        asyncio.run(shop.resource.ping())
    shop.until(1, "errors", "total")
    said = kit.everything_said(monitor)
    assert "127.0.0.1:9/shop" in said
    assert "s3cr3t" not in said
    assert "bob" not in said


def test_sqlite_in_memory_is_left_to_its_thread(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sa.create_engine("sqlite://", poolclass=pools.QueuePool, pool_size=1)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    shop = Watched(monitor, engine)
    stat = monitor.stat_of(shop.resource)
    assert stat is not None
    stat.last_ok = 0.0  # as if nothing had happened for long
    assert asyncio.run(shop.resource.ping()) is None
    assert select(engine, "SELECT count(*) FROM orders") == 0, "the table is still there"
    assert not [record for record in caplog.records if record.name.startswith("sqlalchemy")]
    engine.dispose()
