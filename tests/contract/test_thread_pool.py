"""Is a thread pool seen as it is: threads, queue, wait, run time, failures, callers?"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import _WorkItem
from pathlib import Path

import pytest
import sqlalchemy

from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


def eventually(
    monitor: ResourceMonitor, expected: float, metric: str, stat: str | None = None, **labels: str
) -> None:
    wait_until(lambda: monitor.read("pool", metric, labels, stat=stat) == expected, 5, f"{metric} {expected}")


def test_busy_threads_and_queue(monitor: ResourceMonitor) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        monitor.manager.register(pool, id="pool")
        tasks = [pool.submit(release.wait) for _ in range(6)]
        eventually(monitor, 1.0, "uno.resource.utilization")
        eventually(monitor, 4, "queue_depth")
        eventually(monitor, 2, "threads", state="active")
        eventually(monitor, 2, "thread_pool.thread.max")
        release.set()
        for task in tasks:
            task.result()
        eventually(monitor, 0, "uno.resource.utilization")
        eventually(monitor, 0, "queue_depth")
        eventually(monitor, 2, "threads", state="idle")
        eventually(monitor, 6, "tasks", stat="total", outcome="completed")


def test_wait_and_run_time(monitor: ResourceMonitor) -> None:
    with ThreadPoolExecutor(2) as pool:
        resource = monitor.manager.register(pool, id="pool")
        for task in [pool.submit(time.sleep, 0.1) for _ in range(6)]:
            task.result()
        eventually(monitor, 6, "task_duration", stat="count")
        waited = monitor.read("pool", "task_wait_time", stat="sum")
        ran = monitor.read("pool", "task_duration", stat="sum")
        assert resource.target is pool
    assert waited == pytest.approx(0.6, abs=0.15)  # 0 + 0 + 0.1 + 0.1 + 0.2 + 0.2
    assert ran == pytest.approx(0.6, abs=0.1)


def test_a_failure_is_counted_and_reaches_the_caller(monitor: ResourceMonitor) -> None:
    with ThreadPoolExecutor(1) as pool:
        monitor.manager.register(pool, id="pool")
        task = pool.submit(int, "seven")
        with pytest.raises(ValueError, match="seven"):
            task.result()
        eventually(monitor, 1, "tasks", stat="total", outcome="failed")
        eventually(monitor, 1, "errors", stat="total")


def test_where_threads_are_stuck_is_named(monitor: ResourceMonitor) -> None:
    release = threading.Event()

    def stuck() -> None:
        release.wait()

    with ThreadPoolExecutor(1) as pool:
        resource = monitor.manager.register(pool, id="pool")
        pool.submit(stuck)
        eventually(monitor, 1.0, "uno.resource.utilization")
        line = stuck.__code__.co_firstlineno + 1
        text = resource.driver.explain(pool, "uno.resource.utilization")  # type: ignore[union-attr]
        release.set()
    assert text.startswith(f"1 of 1 threads held: tests/contract/test_thread_pool.py:{line} in stuck for ")


def test_a_pool_that_was_shut_down_is_empty_and_down(monitor: ResourceMonitor) -> None:
    pool = ThreadPoolExecutor(2)
    resource = monitor.manager.register(pool, id="pool")
    assert asyncio.run(resource.ping()) is True
    pool.submit(int).result()
    pool.shutdown()
    pool.shutdown()  # each call queues another mark
    wait_until(lambda: asyncio.run(resource.get_statistics())["queue_depth"] == 0, 5, "an empty queue")
    assert asyncio.run(resource.ping()) is False


def test_to_thread_keeps_the_name_of_its_caller(monitor: ResourceMonitor) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        monitor.manager.register(pool, id="pool")
        await asyncio.to_thread(time.sleep, 0)

    asyncio.run(work())
    stat = monitor.stat_of(monitor.manager.get("pool"))
    assert stat is not None
    assert any("test_to_thread_keeps_the_name_of_its_caller" in name for name in stat.callers), list(
        stat.callers
    )


def test_what_a_task_does_in_a_thread_is_done_for_it(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/shop.db")
    monitor.manager.register(engine, id="db")
    monitor.tick()

    def query() -> None:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    async def nightly_job() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(query)
        await loop.run_in_executor(None, query)
        await loop.run_in_executor(None, contextvars.copy_context().run, query)

    asyncio.run(nightly_job())
    stat = monitor.stat_of(monitor.manager.get("db"))
    assert stat is not None
    assert [(by.rpartition(".")[2], called.calls.value) for by, called in stat.callers.items()] == [
        ("nightly_job", 3)
    ]


def test_threads_are_called_by_their_names_without_numbers(monitor: ResourceMonitor) -> None:
    pool = ThreadPoolExecutor(1)
    monitor.manager.register(pool, id="pool")
    monitor.tick()

    def send_mail() -> None:
        pool.submit(int).result()

    names = [None, None, "mailer-1", "mailer-2", "shop_3-4"]
    for thread in [threading.Thread(target=send_mail, name=name) for name in names]:
        thread.start()
        thread.join()
    stat = monitor.stat_of(monitor.manager.get("pool"))
    assert stat is not None
    callers = {by: called.calls.value for by, called in stat.callers.items()}
    assert callers == {"thread send_mail": 2, "thread mailer": 2, "thread shop": 1}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_default_executor_of_a_loop_is_found_by_its_use(monitor: ResourceMonitor, loop: str) -> None:
    make = pytest.importorskip(loop).new_event_loop

    async def work() -> None:
        await asyncio.to_thread(time.sleep, 0)
        stats = [monitor.stat_of(r) for r in monitor.discover_resources("thread_pool")]
        stats += [monitor.stat_of(r) for r in monitor.manager.by_type("thread_pool")]
        assert any("test_the_default_executor" in who for stat in stats if stat for who in stat.callers)

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(work())
        names = {r.id for r in monitor.manager.by_type("thread_pool")}
    assert any(name.startswith("thread_pool-") for name in names)


def test_a_discovered_pool_goes_when_the_application_drops_it() -> None:
    pool = ThreadPoolExecutor(1, thread_name_prefix="resizer")
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        found = [r for r in monitor.discover_resources("thread_pool") if r.target is pool]
        assert [r.id for r in found] == ["thread_pool-resizer"]
        pool.submit(int).result()
        pool.shutdown()
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None
        wait_until(lambda: found[0] not in monitor.manager, 5, "the resource leaves")


def test_nothing_of_a_task_is_kept_while_its_thread_is_idle(monitor: ResourceMonitor) -> None:
    """Also not of the first one, in which the thread is seen for the first time."""

    class Order:
        pass

    with ThreadPoolExecutor(1) as pool:
        monitor.manager.register(pool, id="pool")
        wait_until(lambda: hasattr(_WorkItem.run, "__uno_hook__"), 5, "the hook")
        for _ in range(3):
            order, result = Order(), Order()
            left = [weakref.ref(order), weakref.ref(result)]
            assert pool.submit(lambda given, gives: gives, order, result).result() is result
            del order, result
            wait_until(lambda: not any(gone() for gone in left), 5, "the task and its result go")  # noqa: B023
        eventually(monitor, 3, "tasks", stat="total", outcome="completed")


def test_the_class_is_as_before_afterwards() -> None:
    before = _WorkItem.run
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor, ThreadPoolExecutor(1) as pool:
        monitor.manager.register(pool)
        wait_until(lambda: _WorkItem.run is not before, 5, "the hook")
    assert _WorkItem.run is before
