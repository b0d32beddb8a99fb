"""Are pools of processes seen as they are: workers, queue, wait, run and total time, failures, callers?"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.pool import Pool, ThreadPool
from pathlib import Path
from typing import Any

import pytest

from tests.contract.kit import Watched, dies, hooked
from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


def until_there(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def nap(seconds: float, _: object = None) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


@pytest.fixture(params=["executor", "multiprocessing", "threads"])
def pool(request: pytest.FixtureRequest, monitor: ResourceMonitor) -> Iterator[Any]:
    """A pool of two that has worked."""
    made: Any
    if request.param == "executor":
        made = ProcessPoolExecutor(2, mp_context=FORK)
    else:
        made = FORK.Pool(2) if request.param == "multiprocessing" else ThreadPool(2)
        made.submit = lambda fn, *args: made.apply_async(fn, args)
    for task in [made.submit(nap, 0.01) for _ in range(2)]:
        result(task)
    yield made
    if request.param == "executor":
        made.shutdown()
    else:
        made.terminate()
        made.join()
    made.__dict__.pop("submit", None)


def result(task: Any) -> Any:
    return task.result(10) if hasattr(task, "result") else task.get(10)


def test_busy_workers_and_the_queue(monitor: ResourceMonitor, pool: Any, tmp_path: Path) -> None:
    it = Watched(monitor, pool)
    tasks = [pool.submit(until_there, tmp_path / "go") for _ in range(6)]
    it.until(1.0, "uno.resource.utilization")
    it.until(4, "queue_depth")
    it.until(2, "processes", state="active")
    it.until(0, "processes", state="idle")
    it.until(2, "process_pool.process.max")
    assert it.explain().startswith("2 of 2 workers held: ")
    assert sum(it.sites().values()) == 2
    assert sum(it.sites(waiting=True).values()) == 4
    (tmp_path / "go").touch()
    for task in tasks:
        result(task)
    it.until(0, "uno.resource.utilization")
    it.until(0, "queue_depth")
    it.until(2, "processes", state="idle")
    it.until(8, "tasks", stat="total", outcome="completed")
    assert it.sites() == it.sites(waiting=True) == {}


def test_times_against_what_the_tasks_themselves_saw(monitor: ResourceMonitor, pool: Any) -> None:
    it = Watched(monitor, pool)
    wait_until(lambda: it.read("task_wait_time", "count") is not None, 10, "a first reading")
    before = {name: it.read(name, "sum") or 0 for name in ("task_wait_time", "task_duration")}
    total_before = it.read("process_pool.task.total_time", "sum") or 0
    asked = time.monotonic()
    seen = [result(task) for task in [pool.submit(nap, 0.1) for _ in range(6)]]
    it.until(8, "task_duration", "count")
    waited = (it.read("task_wait_time", "sum") or 0) - before["task_wait_time"]
    ran = (it.read("task_duration", "sum") or 0) - before["task_duration"]
    total = (it.read("process_pool.task.total_time", "sum") or 0) - total_before
    true_wait = sum(start - asked for start, _ in seen)
    # 5 ms for each task, and as much again since the machine is shared
    assert waited == pytest.approx(true_wait, abs=6 * 0.010)
    assert ran == pytest.approx(sum(end - start for start, end in seen), abs=6 * 0.010)
    assert total == pytest.approx(waited + ran, abs=6 * 0.005)


def test_a_failure_is_counted_and_reaches_the_caller(monitor: ResourceMonitor, pool: Any) -> None:
    it = Watched(monitor, pool)
    with pytest.raises(ValueError, match="seven"):
        result(pool.submit(int, "seven"))
    it.until(1, "tasks", "total", outcome="failed")
    it.until(1, "errors", "total")
    assert "last error ValueError" in it.explain()
    assert any("thread" in name for name in monitor.stat_of(it.resource).callers)  # type: ignore[union-attr]


def test_tasks_that_were_there_before(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        tasks = [pool.submit(until_there, tmp_path / "go") for _ in range(3)]
        with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
            [found] = [r for r in monitor.discover_resources("process_pool") if r.target is pool]
            tasks.append(pool.submit(until_there, tmp_path / "go"))
            wait_until(lambda: monitor.read(found.id, "queue_depth") == 3, 10, "three wait")
            began = time.monotonic()
            (tmp_path / "go").touch()
            for task in tasks:
                result(task)
            wait_until(
                lambda: monitor.read(found.id, "task_wait_time", stat="count") == 1, 10, "the one seen"
            )
            waited = monitor.read(found.id, "task_wait_time", stat="sum")
            assert waited is not None
            assert waited <= time.monotonic() - began + 10
            wait_until(
                lambda: monitor.read(found.id, "tasks", {"outcome": "completed"}, stat="total") == 4,
                10,
                "all",
            )


def test_a_cancelled_task_leaves_the_line(monitor: ResourceMonitor, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        it = Watched(monitor, pool)
        tasks = [pool.submit(until_there, tmp_path / "go") for _ in range(5)]
        wait_until(lambda: tasks[1].running(), 10, "the one that is on its way")
        assert tasks[4].cancel()
        (tmp_path / "go").touch()
        for task in tasks[:4]:
            task.result()
        it.until(1, "tasks", "total", outcome="cancelled")
        it.until(4, "tasks", "total", outcome="completed")
        wait_until(lambda: it.sites() == it.sites(waiting=True) == {}, 10, "nobody in line")


def test_a_killed_process_breaks_the_pool_as_without_us(monitor: ResourceMonitor) -> None:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        it = Watched(monitor, pool)
        assert asyncio.run(it.resource.ping()) is True
        pid = pool.submit(os.getpid).result()
        task = pool.submit(time.sleep, 60)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            task.result(10)
        with pytest.raises(BrokenProcessPool):
            pool.submit(int)
        it.until(1, "errors", "total")
        assert asyncio.run(it.resource.ping()) is False
        assert it.explain() == "one of its processes died: no task runs any more"


def test_map_and_imap(monitor: ResourceMonitor) -> None:
    with FORK.Pool(2) as pool:
        it = Watched(monitor, pool)
        assert pool.map(abs, [-1, -2, -3, -4], chunksize=2) == [1, 2, 3, 4]
        it.until(2, "tasks", "total", outcome="completed")
        it.until(2, "task_wait_time", "count")
        assert sorted(pool.imap_unordered(abs, [-1, -2, -3])) == [1, 2, 3]
        assert list(pool.imap(abs, [-1])) == [1]
        it.until(6, "tasks", "total", outcome="completed")
        pool.apply(abs, (-1,))  # what came after is seen in full again
        it.until(3, "task_wait_time", "count")
        it.until(0, "queue_depth")
        assert pool.map(abs, []) == []
        with pytest.raises(ValueError, match="invalid literal"):
            pool.map(int, ["x", "1"])
        it.until(1, "tasks", "total", outcome="failed")


def test_what_waits_is_unknown_while_imap_reads(monitor: ResourceMonitor, tmp_path: Path) -> None:
    def numbers() -> Iterator[float]:
        yield 0.0
        until_there(tmp_path / "go")
        yield 0.0

    with FORK.Pool(2) as pool:
        it = Watched(monitor, pool)
        it.until(0, "queue_depth")
        results = pool.imap(partial(nap), numbers())
        next(results)
        it.until(None, "queue_depth")
        (tmp_path / "go").touch()
        assert len(list(results)) == 1
        it.until(0, "queue_depth")


def test_pools_die_when_they_are_dropped(monitor: ResourceMonitor) -> None:
    def executor() -> ProcessPoolExecutor:
        made = ProcessPoolExecutor(1, mp_context=FORK)
        made.submit(int).result()
        made.shutdown()
        return made

    def pool() -> Pool:
        made = FORK.Pool(1)
        made.apply(int)
        made.terminate()
        made.join()
        return made

    dies(monitor, executor, "process_pool")
    dies(monitor, pool, "process_pool")


def test_classes_are_as_before_and_hooked_again() -> None:
    modules = ("concurrent.futures.process", "multiprocessing.pool")
    for _ in range(2):
        with ResourceMonitor(ResourceManager(), interval=0.05):
            assert "ProcessPoolExecutor.submit" in hooked(*modules)
            assert "MapResult._set" in hooked(*modules)
        assert hooked(*modules) == []
