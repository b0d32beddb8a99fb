"""Is the process itself seen as it is: CPU, memory, threads, garbage collection?"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types.process import ProcessTarget
from uno.core.resources import ResourceManager


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: monitor.read("process", "process.uptime") is not None, 20, "the first reading")
        yield monitor


def test_figures_agree_with_psutil(monitor: ResourceMonitor) -> None:
    process = psutil.Process()
    wait_until(
        lambda: monitor.read("process", "memory") == pytest.approx(process.memory_info().rss, rel=0.1),
        5,
        "the memory as psutil sees it",  # the first tick imports what it needs
    )
    assert monitor.read("process", "process.uptime") == pytest.approx(
        time.time() - process.create_time(), abs=1
    )
    used = monitor.read("process", "process.cpu.time", stat="total")
    assert used == pytest.approx(sum(process.cpu_times()[:2]), abs=0.2)


def test_threads(monitor: ResourceMonitor) -> None:
    before = monitor.read("process", "threads")
    assert before is not None
    release = threading.Event()
    threads = [threading.Thread(target=release.wait, name=f"shop-{n}") for n in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: (monitor.read("process", "threads") or 0) >= before + 5, 5, "5 more threads")
    resource = monitor.manager.get("process")
    text = resource.driver.explain(resource.target, "process.thread.count")  # type: ignore[union-attr]
    release.set()
    for thread in threads:
        thread.join()
    assert "shop (5)" in text


def test_a_busy_core(monitor: ResourceMonitor) -> None:
    deadline = time.monotonic() + 5
    while (monitor.read("process", "cpu") or 0) < 0.5:
        assert time.monotonic() < deadline
        sum(range(10_000))


def test_pauses_of_the_garbage_collector(monitor: ResourceMonitor) -> None:
    for _ in range(3):
        gc.collect()
    wait_until(
        lambda: (monitor.read("process", "cpython.gc.pauses", stat="count") or 0) >= 3, 5, "three collections"
    )


def test_runs_of_the_garbage_collector_and_what_it_cannot_free(monitor: ResourceMonitor) -> None:
    def runs() -> float:
        return (
            monitor.read("process", "cpython.gc.collections", {"cpython.gc.generation": "2"}, stat="total")
            or 0
        )

    before = runs()
    gc.collect()
    wait_until(lambda: runs() > before, 5, "a full run")
    labels = {"cpython.gc.generation": "2"}
    assert monitor.read("process", "cpython.gc.uncollectable_objects", labels, stat="total") is not None


def test_context_switches_and_page_faults(monitor: ResourceMonitor) -> None:
    def total(metric: str, **labels: str) -> float:
        [series] = [
            s for s in monitor.series("process") if s.metric == metric and labels.items() <= s.labels.items()
        ]
        return series.stats["total"] or 0

    gave_way = {"process.context_switch.type": "voluntary"}
    before = total("process.context_switches", **gave_way)
    for _ in range(50):
        time.sleep(0.0005)
    wait_until(lambda: total("process.context_switches", **gave_way) >= before + 50, 5, "50 switches")
    major = {"system.paging.fault.type": "major"}
    assert total("process.paging.faults", **major) <= resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def test_nothing_is_left_behind() -> None:
    callbacks, files = len(gc.callbacks), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        manager = ResourceManager()
        manager.register(ProcessTarget(), id="process")
        asyncio.run(manager.get("process").get_statistics())
        manager.unregister("process")
    assert len(gc.callbacks) == callbacks
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_forked_child_sees_itself() -> None:
    manager = ResourceManager()
    resource = manager.register(ProcessTarget())
    parent = asyncio.run(resource.get_statistics())
    ballast = threading.Event()
    threads = [threading.Thread(target=ballast.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = resource.target.memory_threads_uptime()[1]
        os.write(writer, f"{told} of {len(os.listdir('/proc/self/task'))}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    ballast.set()
    for thread in threads:
        thread.join()
    seen, _, there = told.decode().partition(" of ")
    assert seen == there
    assert (parent["threads"] or 0) >= 1
