"""How does Prometheus read uno? Text format 0.0.4, from the last tick.

Source: prometheus.io, "Exposition formats".
"""

from __future__ import annotations

import gzip
import logging
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from uno.core.monitoring.metrics import HistogramCell, Kind
from uno.core.monitoring.names import wire_label
from uno.core.monitoring.series import Frame, Series

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor

log = logging.getLogger("uno.exporters.prometheus")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GZIP_FROM = 1_024


class _Family:
    """All series of one name: the text before each number is made once."""

    __slots__ = ("columns", "head", "histograms", "kind", "prefixes")

    def __init__(self, name: str, kind: Kind, help: str) -> None:
        self.kind = kind
        self.head = f"# HELP {name} {_escape_help(help or name)}\n# TYPE {name} {kind}\n"
        self.columns: list[int] = []
        self.prefixes: list[str] = []
        self.histograms: list[tuple[Series, list[str], str, str]] = []

    def add(self, name: str, series: Series) -> None:
        pairs = [
            ("resource", series.resource),
            *zip(map(wire_label, series.metric.labels), series.labels, strict=True),
        ]
        labels = ",".join(f'{key}="{_escape_label(value)}"' for key, value in pairs)
        cell = series.cell
        if series.metric.kind == "histogram" and isinstance(cell, HistogramCell):
            bounds = [*map(_number, cell.bounds), "+Inf"]
            buckets = [f'{name}_bucket{{{labels},le="{bound}"}} ' for bound in bounds]
            self.histograms.append(
                (series, buckets, f"{name}_sum{{{labels}}} ", f"{name}_count{{{labels}}} ")
            )
        else:
            self.columns.append(series.column)
            self.prefixes.append(f"{name}{{{labels}}} ")

    def render(self, frame: Frame, out: list[str]) -> None:
        values, width = frame.values, len(frame.values)
        lines = [
            f"{prefix}{value!r}\n" if -inf < value < inf else f"{prefix}{_number(value)}\n"
            for prefix, column in zip(self.prefixes, self.columns, strict=True)
            if column < width and (value := values[column]) == value  # NaN is a gap: no line
        ]
        for series, buckets, total_sum, total_count in self.histograms:
            frozen = frame.histograms.get(series)
            if frozen is not None:
                count, weight, counts = frozen
                lines.extend(f"{p}{n}\n" for p, n in zip(buckets, accumulate(counts), strict=True))
                lines.append(f"{total_sum}{weight!r}\n{total_count}{count}\n")
        if lines:
            out.append(self.head)
            out.extend(lines)


class PrometheusExporter:
    """Renders the last tick of a monitor. A series that has no value at present has no line."""

    def __init__(self, resource_monitor: ResourceMonitor) -> None:
        self.resource_monitor = resource_monitor
        self._families: list[_Family] = []
        self._version = -1
        self._clashes: set[str] = set()

    def render(self) -> bytes:
        """The page, as UTF-8 text in format 0.0.4."""
        monitor = self.resource_monitor
        store = monitor.store
        if not monitor.running:
            monitor.freeze()
        frame = store.frame
        out: list[str] = []
        if frame is not None:
            version = store.version
            if version != self._version:
                self._families = self._build()
                self._version = version
            for family in self._families:
                family.render(frame, out)
        self._state(out)
        return "".join(out).encode("utf-8", "replace")

    def respond(self, accept_encoding: str = "") -> tuple[bytes, dict[str, str]]:
        """Body and headers of the answer to a scrape."""
        body = self.render()
        headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store", "vary": "accept-encoding"}
        if len(body) >= GZIP_FROM and "gzip" in accept_encoding.lower():
            # Level 1: a third of the default level's time for nearly its size.
            body = gzip.compress(body, 1, mtime=0)
            headers["content-encoding"] = "gzip"
        return body, headers

    def _build(self) -> list[_Family]:
        families: dict[str, _Family] = {}
        for series in sorted(self.resource_monitor.store.all(), key=lambda s: s.wire):
            name = wire_label(series.wire)
            family = families.get(name)
            if family is None:
                family = families[name] = _Family(name, series.metric.kind, series.metric.description)
            if family.kind != series.metric.kind:
                if name not in self._clashes:
                    self._clashes.add(name)
                    log.warning(
                        "%s is a %s of one resource and a %s of %s; the latter is left out",
                        name, family.kind, series.metric.kind, series.resource,
                    )  # fmt: skip
                continue
            family.add(name, series)
        return list(families.values())

    def _state(self, out: list[str]) -> None:
        """Resources, their health, and alerts: few lines, made anew."""
        monitor = self.resource_monitor
        info, health = [], []
        for r in monitor.manager:
            info.append(
                _line(
                    "uno_resource_info", 1, resource=r.id, type=r.type, name=r.name, endpoint=r.endpoint or ""
                )
            )
            status = monitor.health_of(r.id).status.value if r in monitor.manager else "unknown"
            health.append(_line("uno_resource_health", 1, resource=r.id, status=status))
        alerts = [
            _line(
                "uno_alert", 1, resource=a.resource, metric=a.metric, level=a.level.label, state=a.state,
                source=a.source,
                **{f"label_{wire_label(k)}": v for k, v in a.labels.items()},
            )
            for a in monitor.alerts.active()
        ]  # fmt: skip
        for name, help, lines in (
            ("uno_resource_info", "What a resource is", info),
            ("uno_resource_health", "The health of a resource: 1 for its present status", health),
            ("uno_alert", "Alerts that are pending or firing", alerts),
        ):
            if lines:
                out.append(f"# HELP {name} {help}\n# TYPE {name} gauge\n")
                out.extend(lines)


def _line(name: str, value: float, /, **labels: str) -> str:
    pairs = ",".join(f'{key}="{_escape_label(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}\n"


def _number(value: float) -> str:
    return "+Inf" if value == inf else "-Inf" if value == -inf else repr(value)


def _escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
