"""Does the monitor keep what applications define, and tell what it read?"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from uno.core.monitoring import collection
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter
from uno.core.monitoring.resources import (
    AlertLevel,
    Counter,
    Gauge,
    Histogram,
    MetricError,
    ResourceMonitor,
    ResourceTypeMonitor,
    Threshold,
    UnknownMetricError,
)
from uno.core.resources import Resource, UnknownResourceError
from uno.testing import wait_until


class Shop:
    """A custom resource."""


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(interval=0.05)
    monitor.manager.register(Shop(), id="shop")
    yield monitor
    monitor.stop()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/shop.sqlite",
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=0,
        connect_args={"check_same_thread": False},
    )
    yield engine
    engine.dispose()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def query(engine: sqlalchemy.Engine, times: int = 1) -> None:
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("select 1"))


def page(monitor: ResourceMonitor) -> str:
    return setup_prometheus_exporter(monitor).render().decode()


# -- the application's own metrics ---------------------------------------------------------------------


def test_metrics_to_record_to(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("in_stock", labels=["article"]))
    counter = monitor.add_metric("shop", Counter("orders"))
    histogram = monitor.add_metric("shop", Histogram("wait", unit="s"))
    monitor.tick()
    assert monitor.read("shop", "in_stock") is None
    gauge.labels("pen").set(3)
    gauge.labels(article="ink").set(4)
    counter.inc(5)
    for value in (0.1, 0.2, 0.3):
        histogram.observe(value)
    monitor.tick()
    assert monitor.read("shop", "in_stock", {"article": "pen"}) == 3
    assert monitor.read("shop", "orders", stat="total") == 5
    assert monitor.read("shop", "wait", stat="count") == 3
    assert monitor.read("shop", "wait", stat="mean") == pytest.approx(0.2)
    assert monitor.read("shop", "wait", stat="max") == 0.3
    assert monitor.read("shop", "wait") == pytest.approx(0.3, rel=0.02), "the p95"
    with pytest.raises(MetricError, match=r"2 series, choose with labels=.*article=pen"):
        monitor.read("shop", "in_stock")
    assert monitor.read("shop", "in_stock", {"article": "paper"}) is None
    with pytest.raises(MetricError, match="rate, total, not 'p95'"):
        monitor.read("shop", "orders", stat="p95")
    monitor.tick()
    assert monitor.read("shop", "wait", stat="mean") is None, "nothing was observed in this tick"
    assert monitor.read("shop", "wait", stat="count") == 3
    assert {(r.metric, r.kind, r.unit) for r in monitor.series("shop")} == {
        ("in_stock", "gauge", ""), ("orders", "counter", ""), ("wait", "histogram", "s"),
    }  # fmt: skip


def test_rates(monitor: ResourceMonitor) -> None:
    counter = monitor.add_metric("shop", Counter("orders"))
    counter.inc(1)
    monitor.tick()
    assert monitor.read("shop", "orders") is None, "one point is no rate"
    first = monitor.store.frame
    counter.inc(10)
    time.sleep(0.05)
    monitor.tick()
    second = monitor.store.frame
    assert first is not None
    assert second is not None
    assert monitor.read("shop", "orders") == pytest.approx(10 / (second.time - first.time))


def test_read_functions(monitor: ResourceMonitor) -> None:
    threads: list[str] = []

    def plain() -> int:
        threads.append(threading.current_thread().name)
        return 7

    async def of_loop() -> float:
        threads.append(threading.current_thread().name)
        return 8.5

    monitor.add_metric("shop", Gauge("plain"), read=plain)
    monitor.add_metric("shop", Gauge("of_loop"), read=of_loop)
    monitor.add_metric("shop", Gauge("given"), read=lambda: of_loop())
    totals = [10, 12, 3, 4]
    monitor.add_metric("shop", Counter("total"), read=lambda: totals[0])
    seen = []
    for _ in range(4):
        monitor.tick()
        seen.append(monitor.read("shop", "total", stat="total"))
        totals.pop(0)
    assert seen == [10, 12, 15, 16], "a fall is a reset"
    assert [monitor.read("shop", name) for name in ("plain", "of_loop", "given")] == [7, 8.5, 8.5]
    assert threading.current_thread().name not in threads


async def test_an_async_read_runs_on_the_loop_of_its_resource(monitor: ResourceMonitor) -> None:
    home = asyncio.get_running_loop()
    loops: list[Any] = []

    async def read() -> int:
        loops.append(asyncio.get_running_loop())
        return 1

    monitor.manager.register(Shop(), id="here")
    monitor.add_metric("here", Gauge("n"), read=read)
    monitor.start()
    await asyncio.to_thread(until, lambda: monitor.read("here", "n") is not None)
    assert set(loops) == {home}


@pytest.mark.parametrize(
    ("metric", "read", "error", "words"),
    [
        ("text", None, TypeError, "takes a Counter, Gauge or Histogram, not str"),
        (Gauge("g"), 5, TypeError, "read= is a function without arguments, not int"),
        (Gauge("g", labels=["a"]), int, MetricError, "gives one number"),
        (Histogram("h"), int, MetricError, "observe"),
        (Gauge("known"), None, MetricError, "has a metric 'known' already"),
        (Counter("known"), None, MetricError, "already"),
    ],
)
def test_metrics_that_cannot_be(
    monitor: ResourceMonitor, metric: Any, read: Any, error: type[Exception], words: str
) -> None:
    monitor.add_metric("shop", Gauge("known"))
    with pytest.raises(error, match=words):
        monitor.add_metric("shop", metric, read=read)
    monitor.tick()
    assert monitor.series("shop") == []


def test_one_metric_for_each_resource_and_one_kind_for_each_name(monitor: ResourceMonitor) -> None:
    monitor.manager.register(Shop(), id="other")
    gauge = monitor.add_metric("shop", Gauge("depth"))
    with pytest.raises(MetricError, match="belongs to 'shop'"):
        monitor.add_metric("other", gauge)
    with pytest.raises(MetricError, match="one name, one kind"):
        monitor.add_metric("other", Counter("depth"))
    monitor.add_metric("other", Gauge("depth")).set(2)
    gauge.set(1)
    monitor.tick()
    assert {r.resource: r.stats["value"] for r in monitor.series(metric="depth")} == {"shop": 1, "other": 2}
    with pytest.raises(UnknownResourceError, match="Did you mean 'shop'"):
        monitor.add_metric("shpo", Gauge("x"))


def test_a_metric_may_be_added_again_after_its_resource_left(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("depth"))
    gauge.set(1)
    monitor.manager.unregister("shop")
    gauge.set(2)  # goes nowhere, and hurts nobody
    monitor.tick()
    assert monitor.store.select("shop") == []
    monitor.manager.register(Shop(), id="shop")
    monitor.add_metric("shop", Gauge("depth")).set(3)
    monitor.tick()
    assert monitor.read("shop", "depth") == 3


# -- names that a type knows ---------------------------------------------------------------------------


def test_standard_names_are_fed_and_their_labels_filled(
    monitor: ResourceMonitor, engine: sqlalchemy.Engine
) -> None:
    monitor.manager.register(engine, id="main-db", name="Main", labels={"team": "orders"})
    monitor.add_metric("main-db", Gauge("connection_pool_usage", labels=["database_name", "pool_id", "team"]))
    monitor.add_metric("main-db", Histogram("query_duration", labels=["resource_name"]))
    monitor.add_metric("main-db", Counter("slow_queries"))
    monitor.add_metric("main-db", Gauge("db.client.connection.count", labels=["db.client.connection.state"]))
    monitor.start()
    held = [engine.connect() for _ in range(3)]
    query(engine, 4)
    until(lambda: monitor.read("main-db", "connection_pool_usage") == 0.75)
    until(lambda: (monitor.read("main-db", "query_duration", stat="count") or 0) >= 4)
    lines = page(monitor)
    assert 'pool_id="main-db",team="orders"} 0.75\n' in lines
    assert 'query_duration_count{resource="main-db",resource_name="Main"} ' in lines
    assert monitor.read("main-db", "connections", {"state": "used"}) == 3
    assert monitor.read("main-db", "uno_resource_utilization_ratio") == 0.75, "the name in Prometheus"
    assert monitor.read("main-db", "uno.resource.utilization") == 0.75
    for connection in held:
        connection.close()
    until(lambda: monitor.read("main-db", "connection_pool_usage") == 0)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (
            Gauge("connection_pool_usage", labels=["colour"]),
            "nothing fills the label 'colour'.*database_name",
        ),
        (Gauge("connections"), r"told apart by \['state'\]"),
        (Histogram("connection_pool_usage"), "is a gauge, not a histogram"),
        (Counter("connection_pool_usage"), "is a gauge, not a counter"),
    ],
)
def test_standard_names_used_wrongly(
    monitor: ResourceMonitor, engine: sqlalchemy.Engine, metric: Any, words: str
) -> None:
    monitor.manager.register(engine, id="main-db")
    with pytest.raises(MetricError, match=words):
        monitor.add_metric("main-db", metric)
    monitor.add_metric("main-db", Gauge("connection_pool_usage"))


def test_unknown_metrics_name_near_ones(monitor: ResourceMonitor, engine: sqlalchemy.Engine) -> None:
    monitor.manager.register(engine, id="main-db")
    with pytest.raises(UnknownMetricError, match=r"Did you mean .*'connection_pool_usage'") as caught:
        monitor.read("main-db", "conection_pool_usage")
    assert (caught.value.resource, caught.value.metric) == ("main-db", "conection_pool_usage")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownMetricError):
        monitor.set_threshold("main-db", "nope", Threshold(warning=1))
    with pytest.raises(UnknownMetricError, match="database"):
        monitor.set_threshold(resource_type="database", metric_name="nope", threshold=Threshold(warning=1))
    with pytest.raises(UnknownMetricError):
        monitor.configure_anomaly_detection("main-db", "nope")
    with pytest.raises(UnknownResourceError):
        monitor.read("main-dv", "connection_pool_usage")
    with pytest.raises(UnknownResourceError):
        monitor.series("main-dv")
    for wrong in ("", None, 5):
        with pytest.raises(UnknownMetricError):
            monitor.read("main-db", wrong)  # type: ignore[arg-type]


def test_a_short_name_over_all_types(monitor: ResourceMonitor) -> None:
    import queue

    with ThreadPoolExecutor(1) as pool:
        monitor.manager.register(pool, id="pool")
        monitor.manager.register(queue.Queue(), id="jobs")
        monitor.tick()
        found = {(r.resource, r.metric) for r in monitor.series(metric="queue_depth")}
        assert {("pool", "thread_pool.queue.size"), ("jobs", "task_queue.size")} <= found


# -- levels --------------------------------------------------------------------------------------------


def test_a_name_that_a_custom_resource_does_not_give_is_told(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.manager.register(None, id="licences", read=lambda: {"used": 3, "total": 10})
    monitor.set_threshold("licences", "usd", Threshold(1))
    monitor.set_threshold("licences", "used", Threshold(1))
    monitor.set_threshold("shop", "depth", Threshold(1))
    monitor.configure_anomaly_detection("licences", "totl")
    assert caplog.text == ""
    monitor.tick()
    monitor.tick()
    told = [record.getMessage() for record in caplog.records if record.name == "uno.monitor"]
    assert told == [
        "'licences' gives no metric 'usd' so far. Did you mean 'used'?",
        "'licences' gives no metric 'totl' so far. Did you mean 'total'?",
    ]
    assert [alert.metric for alert in monitor.alerts.active()] == ["used"]


def test_thresholds_that_could_never_fire_are_told(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.manager.register(asyncio.Queue(3), id="q")
    for of in ({"resource_id": "q"}, {"resource_type": "task_queue"}):
        with pytest.raises(MetricError, match="'queue_depth' has value, not 'p95'"):
            monitor.set_threshold(**of, metric_name="queue_depth", threshold=Threshold(1, stat="p95"))
    with pytest.raises(MetricError, match="not 'median'"):
        monitor.set_threshold("q", "queue_depth", Threshold(1, stat="median"))
    monitor.set_threshold(resource_type="task_quee", metric_name="depth", threshold=Threshold(1))
    assert "no resource has the type 'task_quee' yet. Did you mean 'task_queue'?" in caplog.text


def test_a_tick_by_hand_after_the_end_reads_all(monitor: ResourceMonitor) -> None:
    def slow() -> dict[str, int]:
        time.sleep(0.005)
        return {"n": 1}

    monitor.start()
    monitor.stop()
    monitor.manager.register(None, id="slow", read=slow)
    monitor.tick()
    assert monitor.read("slow", "n") == 1


def test_thresholds_by_resource_by_type_and_none(monitor: ResourceMonitor, engine: sqlalchemy.Engine) -> None:
    monitor.manager.register(engine, id="main-db")
    held = [engine.connect() for _ in range(3)]
    with pytest.raises(TypeError, match="one of the two"):
        monitor.set_threshold(metric_name="x", threshold=Threshold(warning=1))
    with pytest.raises(TypeError, match="one of the two"):
        monitor.set_threshold("main-db", "utilization", Threshold(warning=1), resource_type="database")
    with pytest.raises(TypeError, match="metric_name="):
        monitor.set_threshold("main-db", threshold=Threshold(warning=1))
    with pytest.raises(TypeError, match="is a Threshold, not float"):
        monitor.set_threshold("main-db", "utilization", 0.7)  # type: ignore[arg-type]
    monitor.set_threshold(
        resource_type="database", metric_name="utilization", threshold=Threshold(critical=0.5)
    )
    monitor.tick()
    assert monitor.level_of("main-db") is AlertLevel.CRITICAL
    monitor.set_threshold("main-db", "connection_pool_usage", Threshold(warning=0.5))
    monitor.tick()
    assert monitor.level_of("main-db") is AlertLevel.WARNING, "its own beats its type's"
    monitor.set_threshold("main-db", "connection_pool_usage", None)
    monitor.tick()
    assert monitor.level_of("main-db") is AlertLevel.OK
    for connection in held:
        connection.close()


def test_an_alert_of_a_resource_that_left_is_over(monitor: ResourceMonitor) -> None:
    heard: list[str] = []
    monitor.on_alert(lambda alert: heard.append(alert.state) if alert.resource == "shop" else None)
    monitor.add_metric("shop", Gauge("depth")).set(9)
    monitor.set_threshold("shop", "depth", Threshold(warning=1))
    monitor.start()
    until(lambda: heard == ["firing"])
    monitor.manager.unregister("shop")
    until(lambda: heard == ["firing", "resolved"])
    assert not [
        line for line in page(monitor).splitlines() if line.startswith("uno_alert") and "shop" in line
    ]


# -- type monitors -------------------------------------------------------------------------------------


class Interleaved(ResourceTypeMonitor):
    """Reads two resources at once, so that each is between the lines of the other."""

    def __init__(self) -> None:
        super().__init__(None, resource_type="pump")
        self.inside = 0

    def setup_metrics(self) -> None:
        self.add_metric("flow", "Litres", "counter", ["side"], unit="l")
        self.add_metric("pressure", "Pressure", "gauge")

    async def collect_metrics(self, resource: Any) -> None:
        self.inside += 1
        for _ in range(20):
            await asyncio.sleep(0)
        self.update_metric("flow", resource.target.total, labels={"side": "left"})
        for _ in range(20):
            await asyncio.sleep(0)
        self.update_metric("pressure", resource.target.total * 2)


class Pump:
    def __init__(self, total: float) -> None:
        self.total = total


class Valve(ResourceTypeMonitor):
    """Tells that nothing changes while its valve is shut."""

    resource_type = "valve"
    blocking = False

    def setup_metrics(self) -> None:
        self.add_metric("flow")
        self.read = 0

    def at_rest(self, target: Any) -> object:
        return None if target.open else target.flow

    def collect_metrics(self, resource: Resource) -> None:
        self.read += 1
        if resource.target.broken:
            raise OSError
        self.update_metric("flow", resource.target.flow)


class Leaky(Valve):
    """Reads more than what its base knows to be at rest."""

    def collect_metrics(self, resource: Resource) -> None:
        super().collect_metrics(resource)


class Water:
    open = broken = False
    flow = 1


def valve(monitor: ResourceMonitor, kind: type[Valve]) -> tuple[Valve, Water]:
    watch, water = kind(), Water()
    monitor.register_type_monitor(watch)
    monitor.manager.register(water, id="valve", type="valve")
    return watch, water


def test_what_is_at_rest_is_not_read_again(monitor: ResourceMonitor) -> None:
    watch, water = valve(monitor, Valve)
    for _ in range(5):
        monitor.tick()
    assert (watch.read, monitor.read("valve", "flow")) == (1, 1)
    water.flow = 2
    monitor.tick()
    assert (watch.read, monitor.read("valve", "flow")) == (2, 2)
    water.open = True
    for _ in range(3):
        monitor.tick()
    assert watch.read == 5
    water.open = False
    for _ in range(1 + 9 + 1):  # it is read once, left alone, and looked at all the same in the end
        monitor.tick()
    assert watch.read == 7


def test_a_gap_ends_though_all_is_at_rest(monitor: ResourceMonitor) -> None:
    _, water = valve(monitor, Valve)
    monitor.start()
    wait_until(lambda: monitor.read("valve", "flow") == 1, 5)
    monitor.stop()
    assert monitor.read("valve", "flow") is None
    monitor.start()
    wait_until(lambda: monitor.read("valve", "flow") == 1, 5)
    monitor.stop()
    water.broken = water.open = True
    monitor.tick()
    assert monitor.read("valve", "flow") is None
    water.broken = water.open = False
    monitor.start()
    wait_until(lambda: monitor.read("valve", "flow") == 1, 10)


def test_a_collection_of_its_own_is_made_whatever_its_base_says(monitor: ResourceMonitor) -> None:
    watch, _ = valve(monitor, Leaky)
    for _ in range(5):
        monitor.tick()
    assert watch.read == 5


def test_two_resources_read_at_once_never_mix(monitor: ResourceMonitor) -> None:
    pumps = [Pump(n * 100) for n in range(20)]
    for n, pump in enumerate(pumps):
        monitor.manager.register(pump, id=f"pump{n}", type="pump")
    monitor.register_type_monitor(Interleaved())
    for k in range(5):
        monitor.tick()
        for n, pump in enumerate(pumps):
            assert monitor.read(f"pump{n}", "flow", stat="total") == n * 100 + k
            assert monitor.read(f"pump{n}", "pressure") == (n * 100 + k) * 2
            pump.total += 1


def test_a_type_monitors_metrics_are_everywhere_at_once(monitor: ResourceMonitor) -> None:
    pump = Pump(5)
    monitor.manager.register(pump, id="pump", type="pump")
    kind = Interleaved()
    monitor.register_type_monitor(kind)
    monitor.set_threshold(resource_type="pump", metric_name="pressure", threshold=Threshold(warning=7))
    monitor.start()
    until(lambda: monitor.level_of("pump") is AlertLevel.WARNING)
    lines = page(monitor)
    assert '# HELP flow Litres\n# TYPE flow counter\nflow{resource="pump",side="left"} 5.0\n' in lines
    assert 'pressure{resource="pump"} 10.0\n' in lines
    report = monitor.generate_report(resource_type="pump")
    assert {"flow", "pressure"} <= {row["metric"] for row in report.to_dicts()}
    monitor.manager.register(Pump(1), id="later", type="pump")
    until(lambda: monitor.read("later", "pressure") == 2)
    with pytest.raises(ValueError, match="registered already"):
        monitor.register_type_monitor(kind)
    with pytest.raises(TypeError, match="a ResourceTypeMonitor is needed, not Pump"):
        monitor.register_type_monitor(pump)  # type: ignore[arg-type]
    with pytest.raises(UnknownMetricError, match="Did you mean 'pressure'"):
        monitor.read("pump", "presure")


def test_a_reset_of_a_total_is_growth_from_zero(monitor: ResourceMonitor) -> None:
    pump = Pump(100)
    monitor.manager.register(pump, id="pump", type="pump")
    monitor.register_type_monitor(Interleaved())
    seen = []
    for total in (100, 130, 20, 50):
        pump.total = total
        monitor.tick()
        seen.append(monitor.read("pump", "flow", stat="total"))
    assert seen == [100, 130, 150, 180]


def test_own_numbers_beat_a_short_name(monitor: ResourceMonitor, engine: sqlalchemy.Engine) -> None:
    class Slow(ResourceTypeMonitor):
        resource_type = "database"

        def setup_metrics(self) -> None:
            self.add_metric("slow_queries", metric_type="counter")

        async def collect_metrics(self, resource: Any) -> None:
            self.update_metric("slow_queries", 17)

    monitor.manager.register(engine, id="main-db")
    monitor.register_type_monitor(Slow())
    monitor.tick()
    assert monitor.read("main-db", "slow_queries", stat="total") == 17
    assert monitor.read("main-db", "uno.db.client.slow_operations", stat="total") == 0


@pytest.mark.parametrize(
    ("update", "error"),
    [
        (("flwo", 1, {"side": "left"}), MetricError),
        (("flow", 1, {"sid": "left"}), MetricError),
        (("flow", 1, None), MetricError),
        (("pressure", "high", None), MetricError),
        (("pressure", 1, {"side": object()}), MetricError),
    ],
)
def test_wrong_updates_are_said_and_taken_by_no_half(
    monitor: ResourceMonitor,
    update: tuple[Any, ...],
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wrong(Interleaved):
        async def collect_metrics(self, resource: Any) -> None:
            self.update_metric("pressure", 1)
            with pytest.raises(error):
                self.update_metric(*update)
            self.update_metric(*update)

    monitor.manager.register(Pump(1), id="pump", type="pump")
    monitor.register_type_monitor(Wrong())
    monitor.tick()
    assert all(value is None for r in monitor.series("pump") for value in r.stats.values())
    assert "pump" in caplog.text
    assert "MetricError" in caplog.text


def test_misused_type_monitors() -> None:
    with pytest.raises(ValueError, match="needs a resource_type"):
        ResourceTypeMonitor()
    with pytest.raises(ValueError, match="non-empty string"):
        ResourceTypeMonitor(None, resource_type="")
    kind = Interleaved()
    with pytest.raises(RuntimeError, match="inside collect_metrics only"):
        kind.update_metric("pressure", 1)
    with pytest.raises(MetricError, match="metric_type is"):
        kind.add_metric("x", metric_type="summary")  # type: ignore[arg-type]
    kind.add_metric("x")
    kind.add_metric("x")
    with pytest.raises(MetricError, match="twice, and differently"):
        kind.add_metric("x", metric_type="counter")
    with pytest.raises(MetricError, match="bad metric name"):
        kind.add_metric("two words")


PLUGIN = """
from uno.core.monitoring.resources import ResourceTypeMonitor
from uno.core.resources import Identity

class MemcachedMonitor(ResourceTypeMonitor):
    resource_type = "memcached"
    targets = ("somelib.Client",)
    blocking = False

    def setup_metrics(self):
        self.add_metric("items", "Items that are kept")

    def identify(self, target):
        return Identity("cache", f"{target.host}:11211")

    def collect_metrics(self, resource):
        self.update_metric("items", len(resource.target.items))
"""

USER = """
import json, logging, somelib
logging.basicConfig(format="%(name)s %(message)s", filename="log.txt")
from uno.core.monitoring.resources import ResourceMonitor
monitor = ResourceMonitor()
resource = monitor.manager.register(somelib.Client(), id="cache")
held = [somelib.Client()]
found = monitor.discover_resources("memcached")
monitor.tick()
print(json.dumps([resource.type, resource.endpoint, monitor.read("cache", "items"), [r.id for r in found]]))
"""


def test_a_plug_in_of_another_distribution(tmp_path: Path) -> None:
    info = tmp_path / "uno_memcached-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uno-memcached\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[uno.resource_types]\n"
        "broken = uno_broken:Monitor\nwrong = somelib:Client\n"
        "memcached = uno_memcached:MemcachedMonitor\n"
    )
    (tmp_path / "uno_memcached.py").write_text(PLUGIN)
    (tmp_path / "uno_broken.py").write_text("raise RuntimeError('password=hunter2')\n")
    (tmp_path / "somelib.py").write_text(
        "class Client:\n    host = 'cache.example'\n    def __init__(self):\n        self.items = {'a': 1, 'b': 2}\n"
    )
    (tmp_path / "user.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "user.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["memcached", "cache.example:11211", 2.0, ["user.held.0"]]
    log = (tmp_path / "log.txt").read_text()
    assert "broken (uno_broken:Monitor) was left out: RuntimeError" in log
    assert "wrong (somelib:Client) was left out: TypeError" in log
    assert "hunter2" not in log + done.stderr


# -- life ----------------------------------------------------------------------------------------------


def test_names_and_labels_that_never_end_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    monitor = ResourceMonitor(interval=0.05, collect_timeout=30)  # not one reading fails on a busy machine
    number = count()

    class Odd(ResourceTypeMonitor):
        blocking = False

        def setup_metrics(self) -> None:
            self.add_metric("served", labels=["customer"])

        def collect_metrics(self, resource: object) -> None:
            for _ in range(100):
                self.update_metric("served", 1, {"customer": str(next(number))})

    monitor.register_type_monitor(Odd(monitor.manager, "odd"))
    monitor.manager.register(object(), id="labels", type="odd")
    monitor.manager.register(None, id="names", read=lambda: {f"served_{next(number)}": 1 for _ in range(100)})
    for _ in range(20):
        monitor.tick()
    for id in ("labels", "names"):
        series = monitor.store.select(id)
        assert len(series) == 1_000
        assert {monitor.store.value(one) for one in series} == {None}, "what was not read again is a gap"
        assert sum(id in record.getMessage() for record in caplog.records) == 1
    (refused,) = monitor.store.select("uno", "uno.monitor.series.refused")
    assert monitor.store.value(refused, "total") == 2 * 10 * 100
    for id in ("labels", "names"):
        monitor.manager.unregister(id)
        assert monitor.store.select(id) == []


def test_one_that_fails_now_so_now_otherwise_says_each_once(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "uno.collection")
    outcomes: Iterator[Exception | None] = iter(())

    def read() -> dict[str, float]:
        error = next(outcomes, None)
        if error is not None:
            raise error
        return {"pages": 1}

    def said() -> list[str]:
        words = [record.getMessage().removeprefix("odd: read ") for record in caplog.records]
        caplog.clear()
        places = [word.partition(" at ")[2] for word in words]
        assert all(re.fullmatch(r"(tests/unit/test_monitor.py:\d+ in read)?", place) for place in places), (
            places
        )
        return [word.partition(" at ")[0] for word in words]

    def ticks(*errors: Exception | None) -> None:
        nonlocal outcomes
        outcomes = iter(errors)
        for _ in errors:
            for job in monitor.collection.jobs.values():
                job.not_before, job.failures = 0.0, 0  # without the pauses after a failure
            monitor.tick()

    monitor.manager.register(None, id="odd", read=read)
    one, other = RuntimeError(), OSError()
    ticks(*(one, other) * 10)
    assert said() == ["gave nothing (RuntimeError)", "gave nothing (OSError)"]
    ticks(*(None, one) * 10)
    assert said() == ["answers again"]
    monkeypatch.setattr(collection, "SILENT_SECONDS", 0.0)  # a minute later
    ticks(one, None)
    assert said() == ["gave nothing (RuntimeError)", "answers again"]


def test_listeners_of_the_tick(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []

    def broken() -> None:
        raise RuntimeError("no")

    monitor.subscribe(broken)
    end = monitor.subscribe(lambda: heard.append(monitor.store.frame.seq))  # type: ignore[union-attr]
    monitor.start()
    until(lambda: len(heard) >= 3)
    end()
    end()
    count = len(heard)
    seq = monitor.store.frame.seq if monitor.store.frame else 0
    until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > seq + 3)
    assert len(heard) - count <= 1
    assert heard == sorted(set(heard)), "each tick once"
    assert "a listener failed" in caplog.text


def test_a_reader_freezes_what_was_recorded_while_the_monitor_does_not_run(monitor: ResourceMonitor) -> None:
    asked: list[int] = []
    monitor.manager.register(None, id="custom", read=lambda: asked.append(1) or 5)  # type: ignore[func-returns-value]
    gauge = monitor.add_metric("shop", Gauge("depth"))
    gauge.set(4)
    assert 'depth{resource="shop"} 4.0\n' in page(monitor)
    gauge.set(5)
    assert 'depth{resource="shop"} 5.0\n' in page(monitor)
    assert asked == [], "and touches no resource"


def test_stop_leaves_gaps_and_what_the_application_records(monitor: ResourceMonitor) -> None:
    monitor.manager.register(None, id="custom", read=lambda: 5)
    gauge = monitor.add_metric("shop", Gauge("depth"))
    counter = monitor.add_metric("shop", Counter("orders"))
    gauge.set(4)
    counter.inc()
    monitor.start()
    until(lambda: monitor.read("custom", "value") == 5)
    monitor.stop()
    assert monitor.read("custom", "value") is None, "nobody reads it any more"
    assert 'resource="custom"' not in "".join(line for line in page(monitor).splitlines() if "value{" in line)
    gauge.inc()
    counter.inc()
    assert monitor.read("process", "memory") is None
    monitor.start()
    until(lambda: monitor.read("custom", "value") == 5)
    until(lambda: monitor.read("shop", "depth") == 5)
    assert monitor.read("shop", "orders", stat="total") == 2


def test_stop_while_a_tick_forgets_a_resource(monitor: ResourceMonitor) -> None:
    """The tick waits for nothing that stop() holds."""
    inside, go_on = threading.Event(), threading.Event()

    def listener() -> None:
        if "shop" in monitor.manager:
            inside.set()
            go_on.wait(5)
            monitor.manager.unregister("shop")

    monitor.subscribe(listener)
    monitor.start()
    assert inside.wait(5)
    stopping = threading.Thread(target=monitor.stop)
    stopping.start()
    time.sleep(0.05)
    begun = time.monotonic()
    go_on.set()
    stopping.join(5)
    assert not stopping.is_alive()
    assert time.monotonic() - begun < 1
    assert not monitor.running


def test_register_and_stop_at_once(monitor: ResourceMonitor) -> None:
    done = threading.Event()

    def churn() -> None:
        n = 0
        while not done.is_set():
            n += 1
            monitor.manager.register(None, id=f"r{n}", read=lambda: 1)
            monitor.manager.unregister(f"r{n}")

    thread = threading.Thread(target=churn)
    thread.start()
    begun = time.monotonic()
    for _ in range(20):
        monitor.start()
        monitor.stop()
    assert time.monotonic() - begun < 10
    done.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("interval", [0, -1, 0.001, 4_000, "1", float("nan"), None, True])
def test_bad_intervals(interval: Any) -> None:
    with pytest.raises(ValueError, match=r"interval is 0\.01 to 3600 seconds"):
        ResourceMonitor(interval=interval)
    if interval is not None:  # which leaves the choice
        with pytest.raises(ValueError, match="collect_timeout is more than 0"):
            ResourceMonitor(collect_timeout=-1 if interval == 0.001 else interval)


def test_more_plain_readers_than_threads() -> None:
    monitor = ResourceMonitor(interval=1)
    seen: set[str] = set()

    def read() -> float:
        seen.add(threading.current_thread().name)
        time.sleep(0.001)
        return 1.0

    for n in range(120):
        monitor.manager.register(None, id=f"r{n}", read=read)
    before = threading.active_count()
    monitor.tick()
    assert [monitor.read(f"r{n}", "value") for n in range(120)] == [1.0] * 120
    assert threading.active_count() - before < 32
    assert seen == {"uno-worker"}
    monitor.stop()


def test_a_monitor_that_is_dropped_is_gone() -> None:
    def use() -> weakref.ref[ResourceMonitor]:
        monitor = ResourceMonitor(interval=0.05)
        monitor.manager.register(Shop(), id="shop")
        monitor.start()
        until(lambda: monitor.store.frame is not None)
        monitor.stop()
        return weakref.ref(monitor)

    reference = use()
    gc.collect()
    assert reference() is None


# -- who and why ---------------------------------------------------------------------------------------


def test_holders(monitor: ResourceMonitor, engine: sqlalchemy.Engine) -> None:
    monitor.manager.register(engine, id="main-db")
    monitor.start()
    assert monitor.holders("main-db") == []
    assert monitor.holders("shop") == []
    begun = time.time()
    held = [engine.connect() for _ in range(4)]
    waiting = threading.Thread(target=query, args=(engine,), name="late-1")
    waiting.start()
    until(lambda: len(monitor.holders("main-db")) == 2)
    holder, waiter = monitor.holders("main-db")
    assert "test_monitor.py:" in holder.site
    assert holder.site.endswith(" in <listcomp>")
    assert (holder.slots, holder.waiting, waiter.slots, waiter.waiting) == (4, False, 1, True)
    assert waiter.site.endswith(" in query")
    assert waiter.caller == "thread late"
    assert abs(holder.since - begun) < 5
    for connection in held:
        connection.close()
    waiting.join()
    assert monitor.holders("main-db") == []


def test_a_pool_that_was_used_up_before_it_was_asked_is_up(monitor: ResourceMonitor, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/shop.db", poolclass=QueuePool, pool_size=1, max_overflow=0
    )
    monitor.tick()
    monitor.manager.register(engine, id="db")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(0.7)
        for _ in range(3):  # the ping, which finds no connection free, is not waited for
            monitor.tick()
            time.sleep(0.1)
        assert monitor.health_of("db").status is HealthStatus.UP
    monitor.stop()


def test_the_map_shows_what_is_down(monitor: ResourceMonitor) -> None:
    class Printer:
        def ping(self) -> bool:
            return False

    monitor.manager.register(Printer(), id="printer")
    with monitor:
        until(lambda: monitor.health_of("printer").status.value == "down", 60)
        levels = {node.id: node.level for node in monitor.generate_dependency_graph().nodes}
    assert levels["printer"] == "critical"
    assert levels["shop"] == "unknown", "nothing tells whether it works"


def test_the_map_shows_who_calls_what(monitor: ResourceMonitor, engine: sqlalchemy.Engine) -> None:
    pool = ThreadPoolExecutor(1, thread_name_prefix="jobs")
    client = httpx.Client(base_url="http://user:hunter2@127.0.0.1:9")
    monitor.manager.register(engine, id="main-db")
    monitor.manager.register(pool, id="jobs")
    monitor.manager.register(client, id="upstream", depends_on=["jobs", "not-there-yet"])
    app = FastAPI()
    setup_monitoring(app, monitor, enable_dashboard=False)

    @app.get("/orders/{id}")
    def order(id: int) -> int:
        query(engine)
        return pool.submit(lambda: (query(engine), id)[1]).result()  # type: ignore[func-returns-value]

    @app.get("/stock")
    async def stock() -> str:
        try:
            await asyncio.to_thread(client.get, "/stock")
        except httpx.ConnectError:
            return "down"
        return "up"

    with TestClient(app) as web:
        until(lambda: monitor.store.frame is not None)
        for n in range(3):
            assert web.get(f"/orders/{n}").json() == n
        assert web.get("/stock").json() == "down"
        until(lambda: latencies(monitor).get(("caller GET /orders/{id}", "main-db")))
        graph = monitor.generate_dependency_graph()
    found = {(edge.source, edge.target, edge.kind): edge for edge in graph.edges}
    nodes = {node.id: node for node in graph.nodes}
    route = "caller GET /orders/{id}"
    assert nodes[route].kind == "route"
    assert found[route, "jobs", "observed"].calls == 3
    assert found[route, "main-db", "observed"].calls == 6, "also from the pool's thread"
    assert ("upstream", "jobs", "declared") in found
    assert nodes["not-there-yet"].type == "unknown"
    assert found["caller GET /stock", "upstream", "observed"].errors == 1
    latency = found[route, "main-db", "observed"].latency
    assert latency is not None
    assert 0 < latency < 5
    (to_server,) = [edge for edge in graph.edges if edge.source == "main-db"]
    assert to_server.calls == 6, "all that went through the pool"
    servers = {node.name for node in graph.nodes if node.kind == "server"}
    assert any("shop.sqlite" in name for name in servers)
    assert "127.0.0.1:9" in servers
    assert "hunter2" not in json.dumps(graph.to_dict())
    pool.shutdown()
    client.close()


def latencies(monitor: ResourceMonitor) -> dict[tuple[str, str], float | None]:
    return {(edge.source, edge.target): edge.latency for edge in monitor.generate_dependency_graph().edges}


def test_a_program_needs_no_loop(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                from uno.core.monitoring.resources import ResourceMonitor
                with ResourceMonitor(interval=0.02) as monitor:
                    monitor.manager.register(None, id="x", read=lambda: 1)
                    while monitor.read("x", "value") != 1:
                        time.sleep(0.01)
                print("fastapi" in sys.modules, "sqlalchemy" in sys.modules)
                """
            ),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr


def test_a_tick_by_hand_beside_the_clock_gets_its_own_answers() -> None:
    def slow() -> float:
        time.sleep(0.02)
        return 1.0

    with ResourceMonitor(interval=3_600, collect_timeout=2) as monitor:
        monitor.manager.register(None, id="slow", read=slow)
        for _ in range(5):
            monitor.tick()
            assert monitor.read("slow", "value") == 1.0
        assert monitor.collection.failures == {}
