"""Are locks and semaphores that the application names seen as they are: holders, waiters, times?"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.kit import Watched, hooked, soon
from tests.servers import wait_until
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

named_semaphore: asyncio.Semaphore | None = None
named_lock: Any = None


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


@pytest.fixture
def named() -> Iterator[None]:
    """The names above hold something, for the time of a test."""
    global named_semaphore, named_lock
    named_semaphore, named_lock = asyncio.Semaphore(2), threading.Lock()
    yield
    named_semaphore = named_lock = None


@pytest.mark.parametrize(
    "make",
    [asyncio.Lock, lambda: asyncio.Semaphore(2), lambda: asyncio.BoundedSemaphore(2)],
    ids=["lock", "semaphore", "bounded"],
)
async def test_asyncio(monitor: ResourceMonitor, make: Any) -> None:
    lock = make()
    limit = 1 if isinstance(lock, asyncio.Lock) else 2
    it = Watched(monitor, lock)
    release, waited, held = asyncio.Event(), [], []

    async def work() -> None:
        asked = time.monotonic()
        async with lock:
            got = time.monotonic()
            waited.append(got - asked)
            await release.wait()
            await asyncio.sleep(0.05)
            held.append(time.monotonic() - got)

    tasks = [asyncio.create_task(work()) for _ in range(5)]
    await it.soon(limit, "holders")
    await it.soon(limit, "lock.max")
    await it.soon(1.0, "uno.resource.utilization")
    await it.soon(5 - limit, "waiting")
    place = f"tests/contract/test_lock.py:{work.__code__.co_firstlineno + 2} in work"
    assert it.sites() == {place: limit}
    assert it.sites(waiting=True) == {place: 5 - limit}
    assert it.explain().startswith(f"{limit} of {limit} slots held: {place} for task ")
    release.set()
    await asyncio.gather(*tasks)
    await it.soon(5, "lock.wait_time", "count")
    await it.soon(5, "lock.acquired", "total")
    await it.soon(5, "lock.hold_time", "count")
    assert it.read("lock.wait_time", "sum") == pytest.approx(sum(waited), abs=0.03)
    assert it.read("lock.hold_time", "sum") == pytest.approx(sum(held), abs=0.03)
    await it.soon(0, "holders")
    await it.soon(0, "lock.oldest_hold")
    assert it.sites() == it.sites(waiting=True) == {}


async def test_a_cancelled_waiter_leaves_nothing(monitor: ResourceMonitor) -> None:
    lock = asyncio.Lock()
    it = Watched(monitor, lock)
    async with lock:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lock.acquire(), 0.1)
        await it.soon(0, "waiting")
        assert it.sites(waiting=True) == {}
        assert sum(it.sites().values()) == 1
    with pytest.raises(RuntimeError, match="not acquired"):
        lock.release()
    await it.soon(0, "holders")


@pytest.mark.parametrize("make", [threading.Semaphore, threading.BoundedSemaphore])
def test_threads(monitor: ResourceMonitor, make: Any) -> None:
    lock = make(2)
    it = Watched(monitor, lock)
    release, waited = threading.Event(), []

    def work() -> None:
        asked = time.monotonic()
        with lock:
            waited.append(time.monotonic() - asked)
            release.wait(10)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    it.until(2, "holders")
    it.until(3, "waiting")
    it.until(2, "lock.max")
    place = f"tests/contract/test_lock.py:{work.__code__.co_firstlineno + 2} in work"
    assert it.sites() == {place: 2}
    assert it.sites(waiting=True) == {place: 3}
    assert lock.acquire(timeout=0.01) is False
    assert lock.acquire(blocking=False) is False
    it.until(2, "lock.timeouts", "total")
    release.set()
    for thread in threads:
        thread.join()
    it.until(5, "lock.wait_time", "count")
    assert it.read("lock.wait_time", "sum") == pytest.approx(sum(waited), abs=0.03)
    it.until(0, "holders")
    assert lock.acquire()
    lock.release(1)
    it.until(6, "lock.acquired", "total")
    assert it.sites() == {}


def test_given_back_by_another_and_taken_before(monitor: ResourceMonitor) -> None:
    lock = threading.Semaphore(2)
    lock.acquire()
    it = Watched(monitor, lock)
    lock.acquire()
    wait_until(lambda: sum(it.sites().values()) == 1, 5, "the one that was seen")
    thread = threading.Thread(target=lock.release, args=(2,))
    thread.start()
    thread.join()
    it.until(0, "holders")
    it.until(2, "lock.max")  # the highest value that was seen
    assert it.sites() == {}


def test_locks_that_are_c(monitor: ResourceMonitor) -> None:
    plain, again = Watched(monitor, threading.Lock(), "plain"), Watched(monitor, threading.RLock(), "again")
    for it in (plain, again):
        it.until(0, "holders")
        with it.resource.target:
            it.until(1, "holders")
            it.until(1.0, "uno.resource.utilization")
            said = it.explain()
        it.until(0, "holders")
        assert it.read("waiting") is None  # nobody can tell
        assert it.explain() == ""
    assert said.startswith("1 of 1 slots held: tests/contract/")
    assert said.endswith("for thread MainThread")


@pytest.mark.usefixtures("named")
def test_only_those_with_a_name_are_found() -> None:
    nameless = asyncio.Semaphore(1)
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        monitor.discover_resources("lock")
        found = {id(r.target): r.id for r in monitor.manager.by_type("lock")}
        assert found[id(named_semaphore)].endswith("test_lock.named_semaphore")
        assert found[id(named_lock)].endswith("test_lock.named_lock")
        assert id(nameless) not in found


@pytest.mark.usefixtures("named")
async def test_it_dies_when_it_is_dropped(monitor: ResourceMonitor) -> None:
    global named_semaphore
    assert named_semaphore is not None
    monitor.discover_resources("lock")
    async with named_semaphore:
        [resource] = [r for r in monitor.manager if r.target is named_semaphore]
        await soon(lambda: monitor.read(resource.id, "holders") == 1, "a holder")
    gone, named_semaphore = weakref.ref(named_semaphore), None
    gc.collect()
    assert gone() is None
    await soon(lambda: resource not in monitor.manager, "the resource leaves")


async def test_a_condition_that_has_kept_the_hook_works_on(monitor: ResourceMonitor) -> None:
    before = failures.cell.value
    lock = asyncio.Lock()
    it = Watched(monitor, lock)
    condition = asyncio.Condition(lock)
    async with condition:
        await it.soon(1, "holders")
    monitor.manager.unregister("it")
    async with condition:
        assert lock.locked()
    semaphore = threading.Semaphore(1)
    Watched(monitor, semaphore)
    acquire, release = semaphore.acquire, semaphore.release
    monitor.manager.unregister("it")
    del semaphore
    assert acquire() is True  # all that is left of it
    release()
    assert failures.cell.value == before


def test_everything_is_as_before_and_hooked_again() -> None:
    for lock in (threading.Semaphore(), asyncio.Lock()):
        before = set(vars(lock))
        first, second = (ResourceMonitor(ResourceManager(), interval=0.05) for _ in range(2))
        for monitor in (first, second):
            monitor.manager.register(lock, id="it")
        for _ in range(2):
            with first:
                assert hooked("threading") == ["Semaphore.__enter__"]
                with second:
                    assert "acquire" in vars(lock)
                assert "acquire" in vars(lock)
                with ResourceMonitor(ResourceManager(), interval=0.05) as third:
                    third.manager.register(lock, id="it")
                    third.manager.unregister("it")
                assert "acquire" in vars(lock)
            assert hooked("threading") == []
            assert not {"acquire", "release"} & set(vars(lock))
        assert set(vars(lock)) == before
