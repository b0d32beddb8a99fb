"""Does a resource that misbehaves hurt only itself?"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from uno.core.monitoring.exporters.prometheus import PrometheusExporter
from uno.core.monitoring.resources import (
    AnomalyDetector,
    Gauge,
    HealthStatus,
    ResourceMonitor,
    ResourceTypeMonitor,
    Threshold,
)
from uno.core.resources import ResourceManager


class Good:
    """A custom resource that always answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def get_statistics(self) -> dict[str, float]:
        self.asked += 1
        return {"asked": self.asked}


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(ResourceManager(), interval=0.05, collect_timeout=0.05)
    yield monitor
    monitor.stop()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def the_good_one_goes_on(monitor: ResourceMonitor, ticks: int = 20) -> None:
    start = monitor.read("good", "asked")
    assert start is not None
    until(lambda: (monitor.read("good", "asked") or 0) >= start + ticks)


def test_one_that_raises(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def get_statistics(self) -> dict[str, float]:
            raise RuntimeError("password=hunter2")

    monitor.manager.register(Good(), id="good")
    monitor.manager.register(Bad(), id="bad")
    with caplog.at_level(logging.WARNING, "uno"):
        monitor.start()
        until(lambda: monitor.read("good", "asked"))
        the_good_one_goes_on(monitor)
    said = [r for r in caplog.records if r.name == "uno.collection" and "bad" in r.getMessage()]
    assert len(said) == 1, "once per change, not once per tick"
    assert "hunter2" not in caplog.text
    failures = monitor.store.select("uno", "uno.collect.failures")
    (one,) = [s for s in failures if s.label_map == {"target": "bad", "reason": "RuntimeError"}]
    assert (monitor.store.value(one, "total") or 0) >= 2


def test_system_exit_of_a_collector_stays_inside(monitor: ResourceMonitor) -> None:
    async def leave() -> float:
        raise SystemExit(3)

    def leave_too() -> float:
        raise KeyboardInterrupt

    monitor.manager.register(Good(), id="good")
    monitor.manager.register(None, id="leaver", read=leave)
    monitor.manager.register(None, id="other", read=leave_too)
    monitor.start()
    until(lambda: monitor.read("good", "asked"))
    the_good_one_goes_on(monitor)


@pytest.mark.parametrize("kind", ["async", "thread", "uncancellable"])
def test_one_that_hangs_for_ever(monitor: ResourceMonitor, kind: str) -> None:
    release = threading.Event()
    calls = 0

    class Hung:
        async def hang(self) -> dict[str, float]:
            nonlocal calls
            calls += 1
            while not release.is_set():
                try:
                    await asyncio.sleep(0.05 if kind == "uncancellable" else 3600)
                except asyncio.CancelledError:
                    if kind != "uncancellable":
                        raise
            return {"late": 1.0}

        def block(self) -> dict[str, float]:
            nonlocal calls
            calls += 1
            release.wait()
            return {"late": 1.0}

    hung = Hung()
    monitor.manager.register(Good(), id="good")
    monitor.manager.register(hung, id="hung", read=hung.block if kind == "thread" else hung.hang)
    monitor.start()
    until(lambda: monitor.read("good", "asked"))
    the_good_one_goes_on(monitor)
    if kind != "async":  # one that could be cancelled is tried again
        assert calls == 1, "one call in flight and no more"
    assert monitor.store.select("hung") == []
    until(lambda: monitor.health_of("hung").status is HealthStatus.UNKNOWN)
    release.set()
    if kind != "async":
        until(lambda: monitor.store.select("hung", "late"))  # it recovers by itself


def test_one_that_blocks_the_loop_it_runs_on(monitor: ResourceMonitor) -> None:
    release = threading.Event()

    async def block() -> float:
        release.wait()  # blocking inside a coroutine: nothing else on this loop can run
        return 1.0

    monitor.manager.register(None, id="plain", read=lambda: 7.0)
    monitor.manager.register(None, id="blocker", read=block)
    monitor.start()
    until(lambda: monitor.read("plain", "value") == 7.0)
    seq = monitor.store.frame.seq  # type: ignore[union-attr]
    until(lambda: monitor.store.frame.seq > seq + 20)  # type: ignore[union-attr]
    release.set()


@pytest.mark.parametrize("answer", ["text", None, [1, 2], object(), {"a": "text", 3: 4}, {"n": math.nan}])
def test_nonsense_is_a_gap(monitor: ResourceMonitor, answer: Any) -> None:
    monitor.manager.register(Good(), id="good")
    monitor.manager.register(None, id="odd", read=lambda: answer)
    monitor.start()
    until(lambda: monitor.read("good", "asked"))
    the_good_one_goes_on(monitor, 5)
    assert all(value is None for r in monitor.series("odd") for value in r.stats.values())
    assert b'resource="odd",' not in b"".join(
        line for line in PrometheusExporter(monitor).render().splitlines() if line.startswith((b"n{", b"a{"))
    )


def test_slow_only_sometimes_leaves_gaps_and_never_an_old_value(monitor: ResourceMonitor) -> None:
    slow = threading.Event()

    def read() -> float:
        if slow.is_set():
            time.sleep(0.3)
        return 5.0

    monitor.manager.register(None, id="moody", read=read)
    monitor.start()
    until(lambda: monitor.read("moody", "value") == 5.0)
    slow.set()
    until(lambda: monitor.read("moody", "value") is None)
    slow.clear()
    until(lambda: monitor.read("moody", "value") == 5.0)


def test_a_batch_is_taken_whole_or_not_at_all(monitor: ResourceMonitor) -> None:
    class Half(ResourceTypeMonitor):
        resource_type = "halves"
        fail = False

        def setup_metrics(self) -> None:
            self.add_metric("first")
            self.add_metric("second")

        def collect_metrics(self, resource: Any) -> None:
            self.update_metric("first", 2.0 if self.fail else 1.0)
            if self.fail:
                raise RuntimeError
            self.update_metric("second", 1.0)

    half = Half()
    monitor.manager.register(object(), id="half", type="halves")
    monitor.register_type_monitor(half)
    monitor.tick()
    assert (monitor.read("half", "first"), monitor.read("half", "second")) == (1.0, 1.0)
    half.fail = True
    monitor.tick()
    assert (monitor.read("half", "first"), monitor.read("half", "second")) == (None, None)


def test_unregistered_while_it_is_read(monitor: ResourceMonitor) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def read() -> float:
        inside.set()
        go_on.wait(5)
        return 1.0

    monitor.collect_timeout = 5
    monitor = ResourceMonitor(monitor.manager, interval=0.05, collect_timeout=5)
    monitor.manager.register(None, id="leaving", read=read)
    monitor.start()
    try:
        assert inside.wait(5)
        monitor.manager.unregister("leaving")
        go_on.set()
        seq = monitor.store.frame.seq if monitor.store.frame else 0
        until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > seq + 3)
        assert monitor.store.select("leaving") == []
    finally:
        monitor.stop()


def test_a_discovered_object_that_is_dropped_leaves(monitor: ResourceMonitor) -> None:
    pool = ThreadPoolExecutor(1, thread_name_prefix="short-lived")
    found = [r for r in monitor.discover_resources("thread_pool") if r.target is pool]
    assert len(found) == 1
    monitor.tick()
    assert monitor.store.select(found[0].id)
    pool.shutdown()
    del pool
    gc.collect()
    monitor.tick()
    assert found[0].id not in monitor.manager
    assert monitor.store.select(found[0].id) == []


def test_closed_objects_are_read_without_harm(monitor: ResourceMonitor) -> None:
    pool = ThreadPoolExecutor(1)
    monitor.manager.register(pool, id="closed")
    pool.shutdown()
    monitor.tick()
    assert monitor.read("closed", "utilization") == 0.0


def test_an_exception_in_a_callback(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    from uno.core.monitoring.resources import Threshold

    heard: list[str] = []
    monitor.manager.register(Good(), id="good")
    gauge = monitor.add_metric("good", Gauge("level"))
    monitor.set_threshold("good", "level", Threshold(warning=1))

    @monitor.on_alert
    def broken(alert: Any) -> None:
        raise RuntimeError("password=hunter2")

    monitor.on_alert(lambda alert: heard.append(alert.state))
    monitor.start()
    gauge.set(5)
    until(lambda: heard == ["firing"])
    gauge.set(0)
    until(lambda: heard == ["firing", "resolved"])
    assert "hunter2" not in caplog.text
    the_good_one_goes_on(monitor, 3)


def test_ten_hung_resources_do_not_slow_a_scrape(monitor: ResourceMonitor) -> None:
    release = threading.Event()
    for n in range(10):
        monitor.manager.register(None, id=f"hung-{n}", read=release.wait)
    monitor.manager.register(Good(), id="good")
    monitor.start()
    until(lambda: monitor.read("good", "asked"))
    exporter = PrometheusExporter(monitor)
    exporter.render()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        exporter.render()
        times.append(time.perf_counter() - start)
    release.set()
    assert sorted(times)[10] < 0.05, "a hung resource costs its deadline when it is waited for"


def test_parts_that_fail_leave_alerts_and_health_alone(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(AnomalyDetector):
        def step(self, *arguments: Any, **more: Any) -> Any:
            raise RuntimeError("a defect")

    monitor.manager.register(None, id="stock", read=lambda: {"left": 1})
    monitor.set_anomaly_detector(Broken())
    monitor.configure_anomaly_detection("stock", "left")
    monitor.set_threshold("stock", "left", Threshold(5, direction="below"))
    with caplog.at_level(logging.ERROR, "uno.monitor"):
        for _ in range(3):
            monitor.tick()
    assert [alert.resource for alert in monitor.alerts.active()] == ["stock"]
    assert monitor.health_of("stock").status is HealthStatus.DEGRADED
    assert [record.getMessage() for record in caplog.records] == [
        "the anomaly detector failed; alerts and health go on without it"
    ]


def test_what_is_dropped_while_it_is_read_is_no_failure(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    dropped: list[ThreadPoolExecutor] = []

    class Dropper:
        def get_statistics(self) -> dict[str, float]:
            for pool in dropped:
                pool.shutdown()
            dropped.clear()
            return {}

    with caplog.at_level(logging.WARNING, "uno"), monitor:
        monitor.manager.register(Dropper(), id="dropper")
        monitor.discover_resources("thread_pool")
        for _ in range(30):
            dropped.append(ThreadPoolExecutor(1))
            dropped[0].submit(int).result()
            until(lambda: not dropped)
    assert not [record.getMessage() for record in caplog.records if "AttributeError" in record.getMessage()]


def test_failures_go_with_their_resource(monitor: ResourceMonitor) -> None:
    for number in range(50):
        monitor.manager.register(None, id=f"job-{number}", read=lambda: 1 / 0)
        monitor.tick()
        monitor.manager.unregister(f"job-{number}")
    monitor.tick()
    assert monitor.collection.failures == {}
    assert monitor.store.select("uno", "uno.collect.failures") == []


def test_a_ping_that_hangs_for_ever_is_down() -> None:
    class Frozen:
        def get_statistics(self) -> dict[str, float]:
            return {"open": 1}

        def ping(self) -> None:
            done.wait()

    done = threading.Event()
    manager = ResourceManager()
    manager.register(Frozen(), id="frozen")
    try:
        with ResourceMonitor(manager, interval=0.1) as monitor:
            until(lambda: monitor.health_of("frozen").status is HealthStatus.DOWN)
    finally:
        done.set()


def test_infinite_numbers_are_no_warning(monitor: ResourceMonitor) -> None:
    monitor.manager.register(None, id="far", read=lambda: {"distance": math.inf, "other": 1.7e308})
    for _ in range(4):
        monitor.tick()  # a warning would be an error here
    assert monitor.read("far", "distance") == math.inf


def test_numbers_give_way_to_what_a_type_monitor_declares(monitor: ResourceMonitor) -> None:
    class Database:
        def get_statistics(self) -> dict[str, float]:
            return {"queries": 7, "usage": 0.5}

    class DatabaseMonitor(ResourceTypeMonitor):
        def __init__(self) -> None:
            super().__init__(monitor.manager, "database")

        def setup_metrics(self) -> None:
            self.add_metric("queries", "Queries", "counter")

        async def collect_metrics(self, resource: Any) -> None:
            self.update_metric("queries", 9)

    monitor.manager.register(Database(), id="main-db", type="database")
    monitor.tick()
    assert monitor.read("main-db", "queries") == 7
    monitor.register_type_monitor(DatabaseMonitor())
    for _ in range(2):
        monitor.tick()
    assert [(r.metric, r.kind) for r in monitor.series("main-db")] == [
        ("usage", "gauge"),
        ("queries", "counter"),
    ]
    assert monitor.read("main-db", "queries", stat="total") == 9
    assert monitor.read("main-db", "usage") == 0.5
