"""How does Prometheus read uno? Text format 0.0.4, from the last tick.

Source: prometheus.io, "Exposition formats".
"""

from __future__ import annotations

import gzip
import logging
import time
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
_STATE = ("uno_resource_info", "uno_resource_health", "uno_alert")


class _Family:
    """All series of one name: the text before each number is made once."""

    __slots__ = ("columns", "head", "histograms", "kind", "prefixes", "seen")

    def __init__(self, name: str, kind: Kind, help: str) -> None:
        self.kind = kind
        self.head = f"# HELP {name} {_escape_help(help or name)}\n# TYPE {name} {kind}\n"
        self.columns: list[int] = []
        self.prefixes: list[str] = []
        self.histograms: list[tuple[Series, list[str], str, str]] = []

        self.seen: set[str] = set()

    def add(self, name: str, series: Series) -> bool:
        """False when there is such a line already."""
        pairs = {"resource": series.resource}
        for label, value in zip(map(wire_label, series.metric.labels), series.labels, strict=True):
            # "a.b" and "a_b" are one name here; OpenTelemetry's specification joins their values so.
            pairs[label] = f"{pairs[label]};{value}" if label in pairs else value
        labels = ",".join(f'{key}="{_escape_label(value)}"' for key, value in pairs.items())
        if labels in self.seen:
            return False
        self.seen.add(labels)
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
        return True

    def render(self, frame: Frame, values: list[float], out: list[str]) -> None:
        width = len(values)
        lines = [
            f"{prefix}{value!r}\n" if -inf < value < inf else f"{prefix}{_number(value)}\n"
            for prefix, column in zip(self.prefixes, self.columns, strict=True)
            if column < width and (value := values[column]) == value  # NaN is a gap: no line
        ]
        for series, buckets, total_sum, total_count in self.histograms:
            frozen = frame.histograms.get(series)
            if frozen is not None:
                count, weight, counts = frozen[:3]
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
        for _ in range(50):
            if frame is None or frame.version >= store.placed:
                break
            time.sleep(0.001)  # columns were moved this instant: the frame that goes with them is being made
            frame = store.frame
        if frame is not None:
            version = store.version
            if version != self._version:
                self._families = self._build()
                self._version = version
            values: list[float] = frame.row.tolist()  # plain floats, whatever was recorded
            for family in self._families:
                family.render(frame, values, out)
        self._state(out)
        return "".join(out).encode("utf-8", "replace")

    def respond(self, accept_encoding: str = "") -> tuple[bytes, dict[str, str]]:
        """Body and headers of the answer to a scrape."""
        body = self.render()
        headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store", "vary": "accept-encoding"}
        if len(body) >= GZIP_FROM and _accepts_gzip(accept_encoding):
            # Level 1: a third of the default level's time for nearly its size.
            body = gzip.compress(body, 1, mtime=0)
            headers["content-encoding"] = "gzip"
        return body, headers

    def _build(self) -> list[_Family]:
        families: dict[str, _Family] = {}
        taken = set(_STATE)  # the names of lines, which histograms have several of
        for series in sorted(self.resource_monitor.store.all(), key=lambda s: s.wire):
            name, kind = wire_label(series.wire), series.metric.kind
            family = families.get(name)
            if family is None:
                lines = (
                    {f"{name}_{part}" for part in ("bucket", "sum", "count")}
                    if kind == "histogram"
                    else {name}
                )
                if lines & taken:
                    self._leave_out(name, series, "its lines have the names of another metric")
                    continue
                taken |= lines
                family = families[name] = _Family(name, kind, series.metric.description)
            if family.kind != kind:
                self._leave_out(name, series, f"it is a {kind} there and a {family.kind} of another resource")
            elif not family.add(name, series):
                self._leave_out(name, series, "another metric of the resource has the same name here")
        return list(families.values())

    def _leave_out(self, name: str, series: Series, why: str) -> None:
        if name not in self._clashes and len(self._clashes) < 100:
            self._clashes.add(name)
            log.warning("%s of %s is left out: %s", name, series.resource, why)

    def _state(self, out: list[str]) -> None:
        """Resources, their health, and alerts: few lines, made anew."""
        monitor = self.resource_monitor
        info, health = [], []
        now = monitor.clock.now()
        for r in monitor.manager:
            info.append(
                _line(
                    "uno_resource_info", 1, resource=r.id, type=r.type, name=r.name, endpoint=r.endpoint or ""
                )
            )
            status = monitor.health.health(r.id, now).status.value
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
                out.extend(dict.fromkeys(lines))


def _line(name: str, value: float, /, **labels: str) -> str:
    pairs = ",".join(f'{key}="{_escape_label(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}\n"


def _accepts_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.lower().split(","):
        coding, _, quality = offer.replace(" ", "").partition(";q=")
        if coding == "gzip":
            return quality.strip("0.") != "" or not quality
    return False


def _number(value: float) -> str:
    return "+Inf" if value == inf else "-Inf" if value == -inf else repr(value)


def _escape_label(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
