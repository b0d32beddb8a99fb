"""How do our metrics come into a page of prometheus_client? ``REGISTRY.register(as_collector(monitor))``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.exporters.prometheus import recorded
from uno.core.monitoring.exporters.prometheus.escaping import bound
from uno.core.monitoring.exporters.prometheus.negotiation import Format

if TYPE_CHECKING:
    from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter
    from uno.core.monitoring.monitor import ResourceMonitor


class MonitorCollector:
    """A collector for a registry of prometheus_client. See as_collector."""

    def __init__(self, exporter: PrometheusExporter, registry: Any = None) -> None:
        self._exporter = exporter
        self._registry = registry

    def describe(self) -> list[Any]:
        """Nothing: which metrics there are changes as resources come and go."""
        return []

    def collect(self) -> Iterator[Any]:
        """Metric objects of prometheus_client, from the last tick."""
        core, samples = _library("metrics_core"), _library("samples")
        style, layout, frame = self._exporter.snapshot(Format("openmetrics", "1.0.0"))
        taken = set(getattr(self._registry, "_names_to_collectors", ()))
        if layout is None or frame is None:
            return
        for family in layout.families:
            names = family.names
            if names.family in taken or names.line in taken:
                self._exporter.leave_out(names.family, "prometheus_client", "a collector there has that name")
                continue
            metric = core.Metric(names.family, family.help, names.type, style.unit(family))
            for series in (series for chunk in family.chunks for series in chunk.series):
                labels = dict(style.pairs(series))
                if family.kind == "histogram":
                    d = recorded.distribution(frame, series)
                    if d is None:
                        continue
                    edges = [*map(bound, recorded.bounds(series) or ()), "+Inf"] if d.counts else ["+Inf"]
                    totals = [*accumulate(d.counts)] or [d.count]
                    lines: list[tuple[str, dict[str, str], float]] = [
                        (f"{names.line}_bucket", {**labels, "le": le}, n)
                        for le, n in zip(edges, totals, strict=True)
                    ]
                    lines += [(f"{names.line}_count", labels, d.count), (f"{names.line}_sum", labels, d.sum)]
                else:
                    value = float(frame.row[series.column]) if series.column < len(frame.row) else None
                    lines = [(names.line, labels, value)] if value is not None and value == value else []
                metric.samples += [samples.Sample(*line) for line in lines]
            if metric.samples:
                yield metric


def _library(module: str) -> Any:
    found = sys.modules.get(f"prometheus_client.{module}")
    if found is None:
        raise RuntimeError("prometheus_client is not loaded: as_collector() is for its registries")
    return found


def as_collector(resource_monitor: ResourceMonitor, *, registry: Any = None) -> MonitorCollector:
    """What ``registry.register(...)`` of prometheus_client takes: all metrics of ``resource_monitor``.

    It asks no resource: each scrape shows the last tick. ``registry``, the one it will be registered with, leaves out
    what that has under the same name. prometheus_client has to be loaded by then; it is not imported here.
    """
    from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter

    return MonitorCollector(PrometheusExporter(resource_monitor, prometheus_client=False), registry)
