"""Is a wrong call refused where it is made, in words that name the thing and the fix, and is nothing of it shown?"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI

from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter
from uno.core.monitoring.resources import (
    AlertLevel,
    Gauge,
    HealthRegistry,
    MetricError,
    ResourceHealthAdapter,
    ResourceMonitor,
    ResourceTypeMonitor,
    Threshold,
    UnknownMetricError,
    UnknownResourceTypeError,
)
from uno.core.resources import ResourceError, UnknownResourceError

SECRET = "hunter2"
HUGE = 10**400


class Secretive:
    """What an application may hand over by mistake."""

    def __repr__(self) -> str:
        return f"Secretive({SECRET})"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(interval=0.05)
    monitor.manager.register(Secretive(), id="shop")
    monitor.manager.register(None, id="licences", read=lambda: {"used": 3})
    yield monitor
    monitor.stop()


class NoPairs(ResourceTypeMonitor):
    resource_type = "pump"
    thresholds: ClassVar[Any] = 5


class NoThreshold(NoPairs):
    thresholds = (("depth", 0.5),)


def needs_one(value: object) -> None: ...


def odd(value: object) -> Any:
    """An argument that a type checker would refuse."""
    return value


CASES: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    # resources
    (lambda m: m.manager.register(Secretive(), id=Secretive()), ResourceError, "bad resource id"),
    (lambda m: m.manager.register(Secretive(), id="x" * 9_999), ResourceError, "bad resource id 'xxx"),
    (lambda m: m.manager.register(Secretive(), name=Secretive()), ResourceError, "name= is a text"),
    (lambda m: m.manager.register(Secretive(), type=Secretive()), ResourceError, "bad resource type"),
    (
        lambda m: m.manager.register(Secretive(), id=f"postgresql://shop:{SECRET}@db/shop"),
        ResourceError,
        "id= is shown everywhere",
    ),
    (
        lambda m: m.manager.register(Secretive(), name=f"postgresql://shop:{SECRET}@db/shop"),
        ResourceError,
        "name= is shown everywhere",
    ),
    (lambda m: m.manager.register(None, id="x", read=needs_one), ResourceError, "without arguments.*'value'"),
    (lambda m: m.manager.register(Secretive(), loop=5), ResourceError, "loop= is the event loop"),
    (lambda m: m.manager.unregister(Secretive()), UnknownResourceError, "by its id.*class Secretive"),
    (lambda m: m.set_threshold(m.manager.get("shop"), "x", Threshold(1)), UnknownResourceError, "class Resource"),
    (lambda m: m.manager.get([]), UnknownResourceError, "by its id"),
    (lambda m: m.level_of("shp"), UnknownResourceError, "Did you mean 'shop'"),
    # metrics
    (lambda m: m.read("shop", Secretive()), UnknownMetricError, "class Secretive"),
    (lambda m: m.read("licences", "used", 5), MetricError, "labels= maps names to values"),
    (lambda m: m.series("licences", 5), UnknownMetricError, "no metric 5"),
    (lambda m: m.series(metric=5), UnknownMetricError, "no metric 5"),
    (lambda m: m.add_metric("shop", Gauge("x"), read=needs_one), TypeError, "without arguments.*'value'"),
    # levels
    (lambda m: Threshold(HUGE), ValueError, "warning is larger"),
    (lambda m: Threshold(1, for_=HUGE), ValueError, "for_ must be a finite duration"),
    (lambda m: Threshold(1, for_=datetime.timedelta(-1)), ValueError, "0 seconds or more"),
    (lambda m: Threshold(1, alert_message=odd(Secretive())), ValueError, "alert_message is a text"),
    (lambda m: Threshold(1, stat=odd([])), ValueError, "stat names a statistic"),
    (lambda m: Threshold(1, direction=odd(Secretive())), ValueError, "'above' or 'below'"),
    (lambda m: m.set_threshold(resource_type=5, metric_name="x", threshold=Threshold(1)), TypeError, "'database'"),
    (lambda m: m.set_threshold(resource_type=[], metric_name="x", threshold=Threshold(1)), TypeError, "'database'"),
    (lambda m: m.on_alert(lambda: None), TypeError, "one argument, the alert"),
    (lambda m: m.subscribe(None), TypeError, "without arguments"),
    # types, reports, parts
    (lambda m: m.discover_resources([]), UnknownResourceTypeError, "unknown resource type"),
    (lambda m: m.generate_report([]), UnknownResourceTypeError, "unknown resource type"),
    (lambda m: m.generate_report(Secretive()), UnknownResourceTypeError, "class Secretive"),
    (lambda m: m.register_type_monitor(NoPairs()), TypeError, "NoPairs.thresholds holds pairs"),
    (lambda m: m.register_type_monitor(NoThreshold()), TypeError, "NoThreshold.thresholds holds pairs"),
    (lambda m: ResourceMonitor(service=odd(5)), TypeError, "service= is the name"),
    (lambda m: ResourceMonitor(history=odd(5)), TypeError, "history= is a MemoryHistory"),
    (lambda m: ResourceMonitor(discover=odd("database")), TypeError, r"call discover_resources\(\)"),
    (lambda m: HealthRegistry().register_adapter(odd(None)), TypeError, "takes a ResourceHealth"),
    (lambda m: HealthRegistry().register_adapter(odd(ResourceHealthAdapter)), TypeError, "takes a ResourceHealth"),
    # the web
    (lambda m: setup_monitoring(FastAPI(), m, allow_anonymous=odd("no")), TypeError, "allow_anonymous= is True"),
    (lambda m: setup_monitoring(FastAPI(), m, enable_dashboard=odd("no")), TypeError, "enable_dashboard= is True"),
    (lambda m: setup_monitoring(FastAPI(), m, dashboard_path="/a b"), ValueError, "dashboard_path begins with"),
    (lambda m: setup_monitoring(FastAPI(), m, dashboard_path="/a?b"), ValueError, "dashboard_path begins with"),
    (lambda m: setup_monitoring(FastAPI(), m, dashboard_path="/{app}"), ValueError, "dashboard_path begins with"),
    (lambda m: setup_monitoring(FastAPI(), m, health_path="/a//b"), ValueError, "health_path begins with"),
    (lambda m: setup_prometheus_exporter(m, prometheus_client=5), TypeError, "CollectorRegistry"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), CASES, ids=map(str, range(len(CASES))))
def test_misuse(
    monitor: ResourceMonitor, call: Callable[[Any], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        call(monitor)
    told = f"{caught.value!s} {caught.value!r}"
    assert SECRET not in told
    assert len(str(caught.value)) < 600
    assert len(monitor.manager) == 2, "nothing half done"


def test_what_is_no_id_is_not_in_the_manager(monitor: ResourceMonitor) -> None:
    wrongs: list[object] = [[], {}, None, 5, Secretive()]
    for wrong in wrongs:
        assert wrong not in monitor.manager


def test_wrong_labels_of_an_update_are_said(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    class Pump(ResourceTypeMonitor):
        resource_type = "custom"

        def setup_metrics(self) -> None:
            self.add_metric("pressure", labels=["place"])

        def collect_metrics(self, resource: Any) -> None:
            self.update_metric("pressure", 1, labels=["place"])  # type: ignore[arg-type]

    monitor.register_type_monitor(Pump())
    monitor.tick()
    assert "labels of 'pressure' map names to values, not list" in caplog.text


def test_a_type_monitor_whose_definition_fails_may_be_registered_again(monitor: ResourceMonitor) -> None:
    class Pump(ResourceTypeMonitor):
        resource_type = "custom"
        fails = True

        def setup_metrics(self) -> None:
            self.add_metric("pressure")
            if self.fails:
                raise ConnectionError("not yet")
            self.add_metric("depth")

        def collect_metrics(self, resource: Any) -> None:
            self.update_metric("depth", 7)

    pump = Pump()
    with pytest.raises(ConnectionError):
        monitor.register_type_monitor(pump)
    pump.fails = False
    monitor.register_type_monitor(pump)
    monitor.tick()
    assert monitor.read("shop", "depth") == 7


def test_an_alert_is_one_line_of_the_log(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uno.alerts")
    depth = monitor.add_metric("shop", Gauge("depth", labels=["tenant"]))
    depth.labels("a\n12:00:00 CRITICAL all is lost\x1b[31m").set(9)
    monitor.set_threshold("shop", "depth", Threshold(1))
    monitor.tick()
    assert monitor.level_of("shop") is AlertLevel.WARNING
    depth.labels("a\n12:00:00 CRITICAL all is lost\x1b[31m").set(0)
    monitor.tick()
    lines = [record.getMessage() for record in caplog.records if record.name == "uno.alerts"]
    assert len(lines) == 2
    assert all(line.isprintable() and "all is lost" in line for line in lines)
