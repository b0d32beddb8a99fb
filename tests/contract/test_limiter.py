"""Are anyio's limiters seen as they are, above all the threads that a web framework runs plain functions on?"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import anyio
import httpx
import pytest
from anyio import to_thread
from fastapi import FastAPI

from tests.contract.kit import Watched, hooked, soon
from uno.core.monitoring.instrumentation import scope
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

made_outside: anyio.CapacityLimiter | None = None


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


def work(release: threading.Event) -> tuple[float, float]:
    start = time.monotonic()
    release.wait(10)
    time.sleep(0.1)
    return start, time.monotonic()


async def test_tokens_waiting_and_times(monitor: ResourceMonitor) -> None:
    limiter = anyio.CapacityLimiter(2)
    it = Watched(monitor, limiter)
    release = threading.Event()
    tasks = [asyncio.create_task(to_thread.run_sync(work, release, limiter=limiter)) for _ in range(5)]
    await it.soon(2, "borrowed", state="borrowed")
    await it.soon(0, "borrowed", state="free")
    await it.soon(1.0, "uno.resource.utilization")
    await it.soon(2, "limiter.token.max")
    await it.soon(3, "waiting")
    place = f"tests/contract/test_limiter.py:{work.__code__.co_firstlineno} in work"
    assert it.explain().startswith(f"2 of 2 tokens held: {place} for task ")
    assert it.sites() == {place: 2}
    assert it.sites(waiting=True) == {place: 3}
    release.set()
    seen = await asyncio.gather(*tasks)
    await it.soon(5, "limiter.use_time", "count")
    held = sum(end - start for start, end in seen)
    assert held <= (it.read("limiter.use_time", "sum") or 0) < held + 0.5  # starting a thread is part of it
    await it.soon(0, "uno.resource.utilization")
    await it.soon(0, "limiter.oldest_use")
    assert it.sites() == it.sites(waiting=True) == {}


async def test_wait_time_against_the_truth(monitor: ResourceMonitor) -> None:
    limiter, waited = anyio.CapacityLimiter(2), []
    it = Watched(monitor, limiter)

    async def work() -> None:
        asked = time.monotonic()
        async with limiter:
            waited.append(time.monotonic() - asked)
            await asyncio.sleep(0.1)

    await asyncio.gather(*(work() for _ in range(6)))
    await it.soon(6, "wait_time", "count")
    assert sum(waited) >= 0.6
    assert it.read("wait_time", "sum") == pytest.approx(sum(waited), abs=0.03)


async def test_who_waits_in_vain_leaves_nothing(monitor: ResourceMonitor) -> None:
    limiter = anyio.CapacityLimiter(1)
    it = Watched(monitor, limiter)
    async with limiter:
        with pytest.raises(anyio.WouldBlock):
            limiter.acquire_on_behalf_of_nowait("another")
        with pytest.raises(RuntimeError, match="already holding"):
            limiter.acquire_nowait()
        with anyio.move_on_after(0.1):
            await limiter.acquire_on_behalf_of("a third")
        await it.soon(1, "borrowed", state="borrowed")
        assert it.sites(waiting=True) == {}
        assert len(it.sites()) == 1
    with pytest.raises(RuntimeError, match="isn't holding"):
        limiter.release()
    await it.soon(0, "borrowed", state="borrowed")
    assert it.sites() == {}


async def test_threads_of_endpoints() -> None:
    release = threading.Event()
    app = FastAPI()

    @app.get("/slow")
    def slow() -> None:
        release.wait(10)

    monitor = setup_monitoring(app, ResourceMonitor(ResourceManager(), interval=0.05, discover=True))
    try:
        monitor.start()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = [asyncio.create_task(client.get("/slow")) for _ in range(3)]
            limiter = anyio.to_thread.current_default_thread_limiter()
            await soon(lambda: any(r.target is limiter for r in monitor.manager), "the limiter")
            (id,) = (r.id for r in monitor.manager if r.target is limiter)
            assert id.startswith("limiter-threads")
            await soon(lambda: monitor.read(id, "borrowed", {"state": "borrowed"}) == 3, "three threads")
            assert monitor.read(id, "limiter.token.max") == 40
            resource = monitor.manager.get(id)
            text = resource.driver.explain(resource.target, "uno.resource.utilization")  # type: ignore[union-attr]
            holders = monitor.holders(id)
            release.set()
            await asyncio.gather(*calls)
        line = slow.__code__.co_firstlineno
        assert f"3 at tests/contract/test_limiter.py:{line + 2} in slow" in text
        assert f"tests/contract/test_limiter.py:{line} in slow" in holders[0].site
        assert {holder.caller for holder in holders} == {"GET /slow"}
    finally:
        release.set()
        await asyncio.to_thread(monitor.stop)


@pytest.fixture
def outside() -> Iterator[anyio.CapacityLimiter]:
    """Made where no loop runs, and held by the name above."""
    global made_outside
    made_outside = anyio.CapacityLimiter(3)
    yield made_outside
    made_outside = None


async def test_one_that_was_made_outside_of_a_loop(outside: anyio.CapacityLimiter) -> None:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        monitor.discover_resources("limiter")
        [name] = [r.id for r in monitor.manager if r.target is outside]
        assert name.endswith("test_limiter.made_outside")
        await soon(lambda: monitor.read(name, "borrowed", {"state": "borrowed"}) == 0, "a reading")
        async with outside:
            await soon(lambda: monitor.read(name, "borrowed", {"state": "borrowed"}) == 1, "one")
            assert monitor.read(name, "borrowed", {"state": "free"}) == 2
            assert [r.id for r in monitor.manager if r.target is outside._limiter] == []  # type: ignore[attr-defined]


async def test_a_thread_works_for_the_task_that_waits_for_it(monitor: ResourceMonitor) -> None:
    locks = threading.Semaphore(1)
    watched = Watched(monitor, locks)
    await soon(lambda: hooked("anyio._backends"), "hooks")
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locks:
            inside.set()
            release.wait(10)

    async def nightly_job() -> None:
        await to_thread.run_sync(hold)

    async def later() -> None:
        assert scope.get() is None, "the task that waited has no scope of its own afterwards"

    async def both() -> None:
        await nightly_job()
        await asyncio.create_task(later())

    job = asyncio.create_task(both())
    await soon(inside.is_set, "it holds")
    [holder] = monitor.holders(watched.resource.id)
    assert holder.caller.startswith("task ")
    assert holder.caller.endswith("both")
    release.set()
    await job


async def test_it_dies_when_it_is_dropped() -> None:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        monitor.discover_resources("limiter")
        limiter = anyio.CapacityLimiter(1)
        async with limiter:
            await soon(lambda: any(r.target is limiter for r in monitor.manager), "found by its use")
        [resource] = [r for r in monitor.manager if r.target is limiter]
        gone = weakref.ref(limiter)
        limiter = None  # type: ignore[assignment]
        await soon(lambda: (gc.collect(), gone())[1] is None, "the object goes")
        await soon(lambda: resource not in monitor.manager, "the resource leaves")


def test_the_class_is_as_before_and_hooked_again() -> None:
    for _ in range(2):
        with ResourceMonitor(ResourceManager(), interval=0.05):
            assert len(hooked("anyio._backends")) == 4
        assert hooked("anyio._backends") == []
