"""Which series does the anomaly detector see, and what becomes of what it finds?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from uno.core.monitoring.alerts import Alert, title_of
from uno.core.monitoring.series import Frame, Selector, Series
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.monitoring.type_monitor import ResourceTypeMonitor

if TYPE_CHECKING:
    from uno.core.monitoring.anomaly import AnomalyDetector
    from uno.core.monitoring.monitor import ResourceMonitor

MAX_WATCHED = 1_000


class AnomalyWatch:
    """Feeds one detector from the frames and turns its findings into alerts."""

    def __init__(self, monitor: ResourceMonitor, detector: AnomalyDetector) -> None:
        self.detector = detector
        self._monitor = monitor
        self._settings: dict[tuple[str, str], tuple[float | None, timedelta | None]] = {}
        self._watched: dict[str, Series] = {}
        self._keys: tuple[str, ...] = ()
        self._selectors: list[Selector] = []
        self._open: dict[str, Series] = {}  # what an alert stands for
        self._version = -1

    def configure(
        self, resource_id: str, metric: str, sensitivity: float | None, training_period: timedelta | None
    ) -> None:
        """Settings for one metric of one resource, taking effect with the next tick."""
        from uno.core.monitoring.anomaly import AnomalyDetector

        AnomalyDetector(  # says what is wrong with the settings, at the call that gave them
            **({} if sensitivity is None else {"sensitivity": sensitivity}),  # type: ignore[arg-type]
            **({} if training_period is None else {"training_period": training_period}),  # type: ignore[arg-type]
        )
        self._settings[resource_id, metric] = (sensitivity, training_period)
        self._version = -1

    def series_of(self, resource_id: str) -> list[Series]:
        """What is watched of a resource."""
        return [series for series in self._watched.values() if series.resource == resource_id]

    def _choose(self) -> None:
        """Watch what is configured and the first headline metric of each resource."""
        monitor = self._monitor
        wanted: dict[str, Series] = {}
        for resource in monitor.manager:
            driver = resource.driver
            heads = driver.headline[:1] if isinstance(driver, ResourceTypeMonitor) else ()
            names = [metric for id, metric in self._settings if id == resource.id]
            for series in monitor.store.select(resource.id):
                if series.metric.name in names or series.metric.name in heads:
                    wanted[series.key] = series
        wanted = dict(list(wanted.items())[:MAX_WATCHED])
        for key in [key for key in self._watched if key not in wanted]:
            self.detector.unwatch(key)
        for key, series in wanted.items():  # a known one keeps what it has learnt
            sensitivity, period = self._settings.get((series.resource, series.metric.name), (None, None))
            self.detector.watch(
                key,
                sensitivity=sensitivity,
                training_period=period,
                unit=series.metric.unit,
                title=title_of(series.metric),
            )
        self._watched = wanted
        self._keys = tuple(wanted)
        self._selectors = [monitor.store.selector(series) for series in wanted.values()]
        self._version = monitor.store.version

    def step(self, frame: Frame) -> list[Alert]:
        """Let the detector see a frame; returns the alerts that changed."""
        monitor = self._monitor
        if self._version != monitor.store.version:
            self._choose()
        if not self._watched and not self._open:
            return []
        changes: list[Alert] = []
        values = monitor.store.gather(frame, self._selectors)
        for anomaly in self.detector.step(frame.time, values, self._keys):
            series = self._watched.get(anomaly.key) or self._open.get(anomaly.key)
            if series is None:
                continue
            at = ("anomaly", series.resource, series.metric.name, series.label_map)
            if anomaly.ended is not None:
                self._open.pop(anomaly.key, None)
                changes += monitor.alerts.close(*at, now=frame.time)
            else:
                self._open[anomaly.key] = series
                changes += monitor.alerts.open(
                    *at, AlertLevel.WARNING, anomaly.explanation, anomaly.observed, now=frame.time
                )
        return changes
