"""Is a blocked event loop seen, measured and named, and an idle one left in peace?"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types.event_loop import LoopTarget
from uno.core.resources import ResourceManager

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

LAG, BLOCKED = "uno.asyncio.loop.lag", "uno.asyncio.loop.blocked"
POLICIES = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(
        getattr(uvloop, "new_event_loop", None),
        id="uvloop",
        marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not installed"),
    ),
]


class Loop:
    """An application: an event loop on a thread of its own."""

    def __init__(self, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = make()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def do(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(params=POLICIES)
def application(request: pytest.FixtureRequest) -> Iterator[Loop]:
    application = Loop(request.param)
    yield application
    application.end()


@pytest.fixture
def monitor(application: Loop) -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        monitor.bind_loop(application.loop)
        wait_until(lambda: monitor.read("event-loop", LAG, stat="max") is not None, 5, "a beat")
        yield monitor


def explanation(monitor: ResourceMonitor) -> str:
    resource = monitor.manager.get("event-loop")
    return resource.driver.explain(resource.target, LAG)  # type: ignore[union-attr]


def block() -> None:
    time.sleep(1.5)


def short(began: list[float]) -> None:
    began.append(time.monotonic())
    time.sleep(0.3)


def compute() -> None:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        sum(range(2_000))


def test_a_blocked_loop_is_measured_and_its_line_named(application: Loop, monitor: ResourceMonitor) -> None:
    started = time.monotonic()
    application.do(block)
    wait_until(lambda: (monitor.read("event-loop", BLOCKED) or 0) > 0.15, 5, "blocked")
    assert time.monotonic() - started < 1
    place = f"test_event_loop.py:{block.__code__.co_firstlineno + 1} in block (time.sleep)"
    wait_until(lambda: place in explanation(monitor), 1, "the line")
    assert explanation(monitor).startswith("blocked ")
    wait_until(lambda: (monitor.read("event-loop", LAG, stat="max") or 0) > 0.5, 5, "the lag")
    wait_until(lambda: monitor.read("event-loop", BLOCKED) == 0, 5, "free again")
    assert explanation(monitor).startswith("was blocked 1.")
    assert place in explanation(monitor)


def test_a_line_is_named_within_200_ms(application: Loop, monitor: ResourceMonitor) -> None:
    place = f"test_event_loop.py:{short.__code__.co_firstlineno + 2} in short (time.sleep)"
    named = []
    for _ in range(3):
        began: list[float] = []
        application.do(partial(short, began))
        wait_until(lambda: began, 5, "it begins")  # noqa: B023
        while place not in explanation(monitor) or not explanation(monitor).startswith("blocked "):
            assert time.monotonic() - began[0] < 5
            time.sleep(0.002)
        named.append(time.monotonic() - began[0])
        wait_until(lambda: monitor.read("event-loop", BLOCKED) == 0, 5, "free again")
    assert sorted(named)[1] < 0.2, named  # the machine itself may stand still for a moment


def test_a_computation_is_named_as_well(application: Loop, monitor: ResourceMonitor) -> None:
    application.do(compute)
    wait_until(lambda: "in compute" in explanation(monitor), 5, "the line")
    assert "test_event_loop.py:" in explanation(monitor)


def test_an_idle_loop_is_not_blocked(application: Loop, monitor: ResourceMonitor) -> None:
    end, late, ticks = time.monotonic() + 1, 0, 0
    while time.monotonic() < end:
        ticks += 1
        late += (monitor.read("event-loop", BLOCKED) or 0) > 0
        late += (monitor.read("event-loop", LAG, stat="max") or 0) > 0.1
        time.sleep(0.02)
    assert late <= ticks / 5  # the machine itself may stand still for a moment


def test_tasks_are_counted_and_ours_is_not_among_them(application: Loop, monitor: ResourceMonitor) -> None:
    wait_until(lambda: monitor.read("event-loop", "tasks") == 0, 5, "no tasks")

    async def wait() -> None:
        await asyncio.sleep(60)

    tasks = [asyncio.run_coroutine_threadsafe(wait(), application.loop) for _ in range(30)]
    wait_until(lambda: monitor.read("event-loop", "tasks") == 30, 5, "30 tasks")
    for task in tasks:
        task.cancel()
    wait_until(lambda: monitor.read("event-loop", "tasks") == 0, 5, "no tasks")


def test_a_loop_that_is_stopped_for_a_while_is_not_blocked() -> None:
    loop = asyncio.new_event_loop()
    target = LoopTarget(loop)
    target.start()
    loop.run_until_complete(asyncio.sleep(0.15))
    for _ in range(6):  # nobody runs it now, and the clock goes on
        time.sleep(0.1)
        target.watch(time.monotonic())
        assert target.blocked(time.monotonic()) == 0
    loop.run_until_complete(asyncio.sleep(0.15))
    target.lag.freeze()
    assert target.lag.max.value < 0.15
    target.stop()
    loop.close()


def test_the_loop_is_not_kept_alive_and_the_beat_ends_with_it() -> None:
    loop = asyncio.new_event_loop()
    target = LoopTarget(loop)
    target.start()
    loop.run_until_complete(asyncio.sleep(0.15))
    gone = weakref.ref(loop)
    loop.close()
    assert target.loop is None
    assert target.tasks(time.monotonic()) is None
    del loop
    gc.collect()
    assert gone() is None
    target.watch(time.monotonic())
    target.stop()


def test_after_detach_the_loop_beats_no_more() -> None:
    async def scheduled() -> int:
        await asyncio.sleep(0.05)
        return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]

    async def work() -> None:
        target = LoopTarget(asyncio.get_running_loop())
        target.start()
        assert await scheduled() == 1
        target.stop()
        assert await scheduled() == 0
        target.start()
        target.start()
        assert await scheduled() == 1
        target.stop()

    asyncio.run(work())


def test_a_garbage_collection_that_blocks_is_called_so(application: Loop, monitor: ResourceMonitor) -> None:
    def slow(phase: str, _: dict[str, int]) -> None:
        if phase == "stop" and threading.get_ident() == application.thread.ident:
            time.sleep(0.5)

    gc.callbacks.append(slow)
    try:
        application.do(gc.collect)
        wait_until(
            lambda: "(garbage collection)" in explanation(monitor) or "at garbage" in explanation(monitor),
            5,
            "it",
        )
    finally:
        gc.callbacks.remove(slow)
