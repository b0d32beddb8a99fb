"""Does the monitor show the detector the right numbers, and turn what it finds into alerts?"""

from __future__ import annotations

from datetime import timedelta

import pytest

from uno.core.monitoring.resources import AnomalyDetector, Gauge, ResourceMonitor
from uno.core.resources import ResourceManager


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> ResourceMonitor:
    monitor = ResourceMonitor(ResourceManager(), interval=60)
    time = Time()
    monkeypatch.setattr(monitor.clock, "now", time.now)
    tick = monitor.tick

    def later() -> None:
        time.at += 60
        tick()

    monkeypatch.setattr(monitor, "tick", later)
    monitor.manager.register(object(), id="shop")
    return monitor


def test_a_jump_is_an_alert_in_words_and_resolves(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("orders_open", title="Open orders"))
    monitor.set_anomaly_detector(AnomalyDetector())
    monitor.configure_anomaly_detection(resource_id="shop", metric_name="orders_open", sensitivity=0.8)
    for n in range(400):
        gauge.set(100 + n % 7)
        monitor.tick()
    assert monitor.alerts.active() == []
    gauge.set(900)
    monitor.tick()
    monitor.tick()
    (alert,) = monitor.alerts.active()
    assert (alert.source, alert.resource, alert.metric) == ("anomaly", "shop", "orders_open")
    assert "900" in alert.message
    for n in range(300):
        gauge.set(100 + n % 7)
        monitor.tick()
    assert monitor.alerts.active() == []
    assert [a.source for a in monitor.alerts.history()] == ["anomaly"]


def test_new_settings_keep_what_was_learnt(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("orders_open"))
    detector = AnomalyDetector()
    monitor.set_anomaly_detector(detector)
    monitor.configure_anomaly_detection("shop", "orders_open")
    for n in range(100):
        gauge.set(n % 7)
        monitor.tick()
    (key,) = detector.watched()
    learnt = detector.state(key)["samples"]
    monitor.configure_anomaly_detection("shop", "orders_open", 0.9, timedelta(days=1))
    monitor.tick()
    assert detector.state(key)["samples"] == learnt + 1


def test_an_anomaly_ends_with_its_series(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("orders_open"))
    monitor.configure_anomaly_detection("shop", "orders_open", 0.8)
    for n in range(200):
        gauge.set(n % 7)
        monitor.tick()
    gauge.set(10_000)
    monitor.tick()
    monitor.tick()
    assert len(monitor.alerts.active()) == 1
    monitor.manager.unregister("shop")
    monitor.tick()
    monitor.tick()
    assert monitor.alerts.active() == []


@pytest.mark.parametrize(("sensitivity", "period"), [(2.0, None), (-0.1, None), (None, timedelta(0))])
def test_bad_settings_are_refused_at_the_call(
    monitor: ResourceMonitor, sensitivity: float | None, period: timedelta | None
) -> None:
    monitor.add_metric("shop", Gauge("orders_open"))
    with pytest.raises(ValueError, match=r"sensitivity|training_period"):
        monitor.configure_anomaly_detection("shop", "orders_open", sensitivity, period)
