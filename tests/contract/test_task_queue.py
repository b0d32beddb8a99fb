"""Is a queue inside the process seen as it is: depth, limit, waiting, wait in queue, work on its items?"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import timeit
from collections.abc import Callable, Iterator

import pytest

from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

watched_by_name: asyncio.Queue[int] | None = None


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


def eventually(
    monitor: ResourceMonitor, expected: float | None, metric: str, stat: str | None = None, **labels: str
) -> None:
    wait_until(lambda: monitor.read("jobs", metric, labels, stat=stat) == expected, 5, f"{metric} {expected}")


async def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "make", [queue.Queue, queue.LifoQueue, queue.PriorityQueue], ids=lambda c: c.__name__
)
def test_depth_limit_and_counts(monitor: ResourceMonitor, make: type[queue.Queue[int]]) -> None:
    jobs = make(maxsize=4)
    monitor.manager.register(jobs, id="jobs")
    for number in range(4):
        jobs.put(number)
    eventually(monitor, 4, "queue_depth", state="waiting")
    eventually(monitor, 1.0, "uno.resource.utilization")
    eventually(monitor, 4, "task_queue.max")
    with pytest.raises(queue.Full):
        jobs.put(5, timeout=0.01)
    eventually(monitor, 1, "errors", stat="total")
    jobs.get()
    eventually(monitor, 4, "task_queue.enqueued", stat="total")
    eventually(monitor, 1, "tasks", stat="total", outcome="taken")
    eventually(monitor, 0.75, "uno.resource.utilization")


def test_what_one_monitor_leaves_another_goes_on_to_watch(monitor: ResourceMonitor) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    monitor.manager.register(jobs, id="jobs")
    with ResourceMonitor(ResourceManager(), interval=0.05) as other:
        other.manager.register(jobs, id="jobs")
        for number in range(5):
            jobs.put(number)
        eventually(other, 5, "task_queue.enqueued", stat="total")
        other.manager.unregister("jobs")
    for number in range(3):
        jobs.put(number)
    eventually(monitor, 8, "task_queue.enqueued", stat="total")
    monitor.manager.unregister("jobs")
    assert not [name for name in vars(jobs) if "uno" in name]


def test_producers_and_consumers_that_wait(monitor: ResourceMonitor) -> None:
    jobs: queue.Queue[int] = queue.Queue(1)
    monitor.manager.register(jobs, id="jobs")
    consumer = threading.Thread(target=jobs.get)
    consumer.start()
    eventually(monitor, 1, "task_queue.waiting", side="consumer")
    jobs.put(1)
    consumer.join()
    jobs.put(2)
    producer = threading.Thread(target=jobs.put, args=(3,))
    producer.start()
    eventually(monitor, 1, "task_queue.waiting", side="producer")
    jobs.get()
    producer.join()
    eventually(monitor, 0, "task_queue.waiting", side="producer")


def test_a_queue_whose_mutex_is_held_is_read_all_the_same(monitor: ResourceMonitor) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    monitor.manager.register(jobs, id="jobs")
    jobs.put(1)
    with jobs.mutex:
        eventually(monitor, 1, "queue_depth", state="waiting")


def test_wait_in_queue_and_oldest(monitor: ResourceMonitor) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    jobs.put(0)  # before it was watched: its age is unknown
    monitor.manager.register(jobs, id="jobs")
    wait_until(lambda: monitor.read("jobs", "queue_depth", {"state": "waiting"}) == 1, 5, "the first reading")
    jobs.put(1)
    time.sleep(0.2)
    wait_until(lambda: (monitor.read("jobs", "oldest_age") or 0) >= 0.2, 5, "an old item")
    jobs.get()
    jobs.get()
    eventually(monitor, 2, "tasks", stat="total", outcome="taken")
    eventually(monitor, 1, "task_queue.task.wait_time", stat="count")
    waited = monitor.read("jobs", "task_queue.task.wait_time", stat="sum")
    assert waited is not None
    assert 0.2 <= waited < 0.6
    eventually(monitor, 0, "oldest_age")


async def test_asyncio_queue_with_workers(monitor: ResourceMonitor) -> None:
    jobs: asyncio.Queue[float] = asyncio.Queue(10)
    resource = monitor.manager.register(jobs, id="jobs")

    async def worker() -> None:
        while True:
            await asyncio.sleep(await jobs.get())
            jobs.task_done()

    workers = [asyncio.create_task(worker()) for _ in range(2)]
    await soon(lambda: monitor.read("jobs", "task_queue.waiting", {"side": "consumer"}) == 2)
    await jobs.put(0)
    await jobs.join()  # now it is known that consumers say when they are done
    for _ in range(5):
        await jobs.put(0.3)
    await soon(lambda: monitor.read("jobs", "queue_depth", {"state": "running"}) == 2)
    await soon(lambda: monitor.read("jobs", "queue_depth", {"state": "waiting"}) == 3)
    text = resource.driver.explain(jobs, "task_queue.size")  # type: ignore[union-attr]
    assert "nobody is waiting to take" in text
    assert "test_asyncio_queue_with_workers.<locals>.worker (2, longest" in text
    await jobs.join()
    await soon(lambda: monitor.read("jobs", "tasks", {"outcome": "done"}, stat="total") == 6)
    await soon(lambda: monitor.read("jobs", "task_duration", stat="count") == 5)
    ran = monitor.read("jobs", "task_duration", stat="sum")
    assert ran == pytest.approx(1.5, abs=0.3)
    while not jobs.full():
        jobs.put_nowait(1)
    with pytest.raises(asyncio.QueueFull):
        jobs.put_nowait(1)
    await soon(lambda: monitor.read("jobs", "errors", stat="total") == 1)
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


def test_simple_queue_tells_its_depth_and_nothing_else(monitor: ResourceMonitor) -> None:
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    monitor.manager.register(jobs, id="jobs")
    jobs.put(1)
    eventually(monitor, 1, "queue_depth", state="waiting")
    assert {r.metric for r in monitor.series("jobs")} == {"task_queue.size"}


def test_only_queues_with_a_first_party_name_are_discovered(monitor: ResourceMonitor) -> None:
    global watched_by_name
    watched_by_name = asyncio.Queue()
    nameless: asyncio.Queue[int] = asyncio.Queue()
    found = monitor.discover_resources("task_queue")
    assert any(r.target is watched_by_name for r in found)
    assert not any(r.target is nameless for r in found)
    watched_by_name = None


def test_an_unwatched_queue_costs_next_to_nothing(monitor: ResourceMonitor) -> None:
    def cycle(jobs: asyncio.Queue[int]) -> float:
        def once() -> None:
            jobs.put_nowait(1)
            jobs.get_nowait()

        return min(timeit.repeat(once, number=5_000, repeat=7)) / 5_000

    hooked_before = asyncio.Queue.put_nowait
    watched: asyncio.Queue[int] = asyncio.Queue()
    monitor.manager.register(watched, id="jobs")
    wait_until(
        lambda: asyncio.Queue.put_nowait is not hooked_before or hasattr(hooked_before, "__wrapped__"),
        5,
        "hook",
    )
    with_hooks = cycle(asyncio.Queue())
    monitor.stop()
    assert with_hooks - cycle(asyncio.Queue()) < 2e-6
