"""How do metrics that the application keeps in prometheus_client come into our page?

Only where the application has loaded that library: it is never imported here. Their collectors are asked on a thread
of their own, one by one. One that takes long keeps that thread, and another goes on with the rest. What one raises
loses its own lines; one that hangs does so until it is back, and is waited for once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus.collector import MonitorCollector
from uno.core.monitoring.exporters.prometheus.style import Sample, Style
from uno.core.records import NamedTuple

log = logging.getLogger("uno.exporters.prometheus")

#: How long a page waits for one of their collectors, and for all of them, in seconds.
PATIENCE = 2.0
LONGEST = 5.0
#: After so many seconds the others are asked beside it.
_ASIDE = 0.1
_KINDS = frozenset(
    ("counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset", "unknown")
)
_TOTALS = {"counter": "_total", "info": "_info"}


class ForeignFamily(NamedTuple):
    """One of their families, written in the style of the page."""

    name: str
    lines: frozenset[str]
    parts: list[bytes]


class _Reading:
    """One reading of a registry: its collectors one after the other, and past those that take long."""

    def __init__(self, collectors: Iterable[Any], style: Style, say: Callable[[Any, str], None]) -> None:
        self.families: list[ForeignFamily] = []
        self.left = deque(collectors)
        self.askers: list[_Asker] = []
        self.style, self.say = style, say
        self._until = time.monotonic() + LONGEST

    def waits(self) -> bool:
        """Whether it is worth waiting; where every thread is held up, another one goes on with the rest."""
        now = time.monotonic()
        waited = [asker.waited(now) for asker in self.askers if asker.is_alive()]
        if now >= self._until:
            return False
        if self.left and all(seconds >= _ASIDE for seconds in waited):
            asker = _Asker(self)
            try:
                asker.start()
            except RuntimeError:  # the process has no thread to give
                return False
            self.askers.append(asker)
            return True
        return any(seconds < PATIENCE for seconds in waited)

    def lives(self) -> bool:
        """Whether another page may join: in a forked child no thread of the parent lives."""
        return time.monotonic() < self._until and any(asker.is_alive() for asker in self.askers)


class _Asker(threading.Thread):
    """Asks collectors of a reading, one after the other; ``asking`` is the present one, and since when."""

    def __init__(self, reading: _Reading) -> None:
        super().__init__(name="uno-prometheus-client", daemon=True)
        self.asking: tuple[Any, float] | None = None
        self._reading = reading

    def waited(self, now: float) -> float:
        """For how many seconds the present collector has not answered."""
        asking = self.asking
        return now - asking[1] if asking is not None else 0.0

    def run(self) -> None:
        reading = self._reading
        while True:
            try:
                collector = reading.left.popleft()
            except IndexError:  # all are asked
                return
            self.asking = (collector, time.monotonic())
            try:
                for metric in collector.collect():
                    family = translate(metric, reading.style)
                    if family is not None:
                        reading.families.append(family)
                    time.sleep(0)  # let the application's threads in
            except BaseException as error:  # SystemExit, too: it is theirs, and the thread is ours
                reading.say(collector, f"it raised {type(error).__name__}")
            finally:
                self.asking = None


class Bridge:
    """Appends a registry of prometheus_client: the library's own, or one that is given."""

    def __init__(self, registry: Any = None) -> None:
        self._registry = registry
        #: Those under way, shared by pages of one format: there are two dozen of these.
        self._readings: dict[Style, _Reading] = {}
        #: Threads whose collector was given up. It is not asked again before it is back.
        self._hung: set[_Asker] = set()
        self._said: set[str] = set()

    def read(self, style: Style) -> Generator[float, None, list[ForeignFamily]]:
        """Their families in ``style``; yields while there is something to wait for."""
        registry = self._registry
        if registry is None:
            registry = getattr(sys.modules.get("prometheus_client"), "REGISTRY", None)
        if registry is None:
            return []
        reading = self._reading(registry, style)
        pause = 0.0
        while reading.waits():
            yield pause
            pause = min(max(2 * pause, 0.0005), 0.01)
        self._end(reading)
        return list(reading.families)

    def _reading(self, registry: Any, style: Style) -> _Reading:
        """The one under way, or a new one of all collectors that do not hang."""
        present = self._readings.get(style)
        if present is not None:
            if present.lives():
                return present
            self._end(present)  # nobody did: its reader has gone
        hung = []
        for asker in list(self._hung):
            asking = asker.asking
            if asking is not None and asker.is_alive():
                hung.append(asking[0])
            else:
                self._hung.discard(asker)
        asked = [one for one in _collectors(registry) if not any(one is other for other in hung)]
        reading = self._readings[style] = _Reading(asked, style, self._say)
        return reading

    def _end(self, reading: _Reading) -> None:
        """Give up what has not answered yet."""
        if self._readings.get(reading.style) is reading:
            del self._readings[reading.style]
        late = list(reading.left)
        reading.left.clear()
        now = time.monotonic()
        for asker in reading.askers:
            asking = asker.asking
            if asking is None or not asker.is_alive():
                continue
            self._hung.add(asker)
            if now - asking[1] >= PATIENCE:
                self._say(asking[0], f"it has not answered within {PATIENCE:g} s")
            else:
                late.append(asking[0])
        for collector in late:
            self._say(collector, "the collectors before it took all the time there is")

    def _say(self, collector: Any, why: str) -> None:
        name = type(collector).__name__
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
