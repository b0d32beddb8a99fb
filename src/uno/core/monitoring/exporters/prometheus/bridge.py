"""How do metrics that the application keeps in prometheus_client come into our page?

Only where the application has loaded that library: it is never imported here. Their collectors are asked on a thread
of their own, one by one: what one raises loses its own lines, and one that hangs is waited for once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus.collector import MonitorCollector
from uno.core.monitoring.exporters.prometheus.style import Sample, Style

log = logging.getLogger("uno.exporters.prometheus")

#: How long a page waits for their collectors, in seconds.
PATIENCE = 2.0
_MAX_JOBS = 4
_KINDS = frozenset(
    ("counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset", "unknown")
)
_TOTALS = {"counter": "_total", "info": "_info"}


class ForeignFamily(NamedTuple):
    """One of their families, written in the style of the page."""

    name: str
    lines: frozenset[str]
    parts: list[bytes]


class _Job:
    """One reading of a registry, on its own thread."""

    def __init__(self, registry: Any, style: Style, say: Callable[[str, str], None]) -> None:
        self.families: list[ForeignFamily] = []
        self.asking = ""
        self.done = False
        self.given_up = False
        self._registry, self._style, self._say = registry, style, say
        self.thread = threading.Thread(target=self._run, name="uno-prometheus-client", daemon=True)

    def _run(self) -> None:
        try:
            for collector in _collectors(self._registry):
                name = type(collector).__name__
                self.asking = name
                try:
                    for metric in collector.collect():
                        family = translate(metric, self._style)
                        if family is not None:
                            self.families.append(family)
                        time.sleep(0)  # let the application's threads in
                except Exception as error:
                    self._say(name, f"it raised {type(error).__name__}")
        finally:
            self.done = True


class Bridge:
    """Appends a registry of prometheus_client: the library's own, or one that is given."""

    def __init__(self, registry: Any = None) -> None:
        self._registry = registry
        self._jobs: dict[Style, _Job] = {}
        self._said: set[str] = set()

    def read(self, style: Style) -> Generator[float, None, list[ForeignFamily]]:
        """Their families in ``style``; yields while there is something to wait for."""
        registry = self._registry
        if registry is None:
            registry = getattr(sys.modules.get("prometheus_client"), "REGISTRY", None)
        if registry is None or not _collectors(registry):
            return []
        job = self._job(registry, style)
        if job is None:
            return []
        yield 0.0
        pause, until = 0.0005, time.monotonic() + PATIENCE
        while not job.done and not job.given_up:
            if time.monotonic() > until:
                job.given_up = True
                self._say(job.asking, f"it has not answered within {PATIENCE:g} s")
                break
            yield pause
            pause = min(2 * pause, 0.01)
        if job.done and self._jobs.get(style) is job:
            self._jobs.pop(style, None)
        return list(job.families)

    def _job(self, registry: Any, style: Style) -> _Job | None:
        """The reading under way, or a new one; None while one hangs."""
        for known, job in list(self._jobs.items()):
            if job.done or not job.thread.is_alive():  # in a forked child, no thread of the parent lives
                self._jobs.pop(known, None)
        present = self._jobs.get(style)
        if present is not None:
            return None if present.given_up else present
        if len(self._jobs) >= _MAX_JOBS or any(job.given_up for job in self._jobs.values()):
            return None
        job = _Job(registry, style, self._say)
        job.thread.start()
        self._jobs[style] = job
        return job

    def _say(self, name: str, why: str) -> None:
        if name not in self._said and len(self._said) < 100:
            self._said.add(name)
            log.warning("prometheus_client's %s is left out: %s", name, why)


def _collectors(registry: Any) -> list[Any]:
    """The collectors of a registry, each to be asked by itself; ours, when it is registered there, not."""
    known = getattr(registry, "_collector_to_names", None)
    found = [registry] if known is None else list(known)
    return [one for one in found if not isinstance(one, MonitorCollector)]


def translate(metric: Any, style: Style) -> ForeignFamily | None:
    """One of prometheus_client's Metric objects, written in ``style``; None when there is nothing to show."""
    name, kind = metric.name, metric.type
    if kind not in _KINDS:
        raise ValueError("a type that OpenMetrics does not have")
    samples: list[Sample] = []
    for s in metric.samples:
        if not s.name.startswith(name):
            raise ValueError("a sample with another name than its family")
        if getattr(s, "native_histogram", None) is not None:
            continue
        exemplar = None
        if s.exemplar is not None:
            stamp = None if s.exemplar.timestamp is None else float(s.exemplar.timestamp)
            exemplar = Exemplar(tuple(s.exemplar.labels.items()), float(s.exemplar.value), stamp)  # type: ignore[arg-type]
        time = None if s.timestamp is None else float(s.timestamp)
        labels = tuple(sorted((str(key), str(value)) for key, value in s.labels.items()))
        samples.append(Sample(s.name[len(name) :], labels, float(s.value), time, exemplar))
    parts = style.made_anew(name, kind, metric.documentation, samples, unit=metric.unit or "")
    if not parts:
        return None
    lines = {style.escaped(name + s.suffix) for s in samples}
    lines |= {style.escaped(name), style.escaped(name + _TOTALS.get(kind, ""))}
    if kind == "counter" and style.format.syntax != "openmetrics":
        lines.discard(style.escaped(name))
    return ForeignFamily(name, frozenset(lines), parts)
