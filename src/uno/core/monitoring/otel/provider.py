"""Who makes meters and instruments, and what happens when two have one name?"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, CallbackT, Observation
from opentelemetry.util.types import Attributes

from uno.core.monitoring.metrics import Histogram as HistogramMetric
from uno.core.monitoring.metrics import Kind, MetricError
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.otel.attributes import text_of
from uno.core.monitoring.otel.instruments import (
    Counter,
    Gauge,
    Histogram,
    Observable,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from uno.core.monitoring.otel.streams import Stream, default_bounds
from uno.core.monitoring.otel.views import Choice, View
from uno.core.monitoring.resource_types.opentelemetry import MeterTarget
from uno.core.monitoring.series import MAX_SAMPLED, Batch
from uno.core.resources import Resource

log = logging.getLogger("uno.otel")

MAX_OBSERVATIONS = 10_000
#: Series of one callback that may show a gap, since it does not tell them any more, before they are forgotten.
MAX_GONE = 100
_NAME = re.compile(r"[A-Za-z][-_./A-Za-z0-9]{0,254}\Z")
_UNIT = re.compile(r"[\x20-\x7e]{0,63}\Z")
_AS_IT_IS = Choice()

#: The API's kind of instrument: (kind of metric, whether values of several add up).
_KINDS: dict[type, tuple[Kind, bool]] = {
    Counter: ("counter", True),
    UpDownCounter: ("gauge", True),
    Gauge: ("gauge", False),
    Histogram: ("histogram", False),
    ObservableCounter: ("counter", True),
    ObservableUpDownCounter: ("gauge", True),
    ObservableGauge: ("gauge", False),
}
_NO_OP: dict[type, type] = {
    Counter: metrics.NoOpCounter,
    UpDownCounter: metrics.NoOpUpDownCounter,
    Gauge: metrics._NoOpGauge,
    Histogram: metrics.NoOpHistogram,
    ObservableCounter: metrics.NoOpObservableCounter,
    ObservableUpDownCounter: metrics.NoOpObservableUpDownCounter,
    ObservableGauge: metrics.NoOpObservableGauge,
}
T = TypeVar("T")


class UnoMeterProvider(metrics.MeterProvider):
    """Records what OpenTelemetry's metrics API is told into a ResourceMonitor.

    Each meter becomes a resource of the type "opentelemetry", called after the library. ``views`` choose what is
    kept (see View). Callbacks of observable instruments run at the monitor's tick on threads of their own, each with
    the monitor's deadline, and never in a request. Nothing that an instrument is given raises; it is dropped, and
    said once. ``OTEL_SDK_DISABLED=true`` records nothing, as with OpenTelemetry's SDK.

    The monitor is started and stopped by whoever made it. Raises TypeError for what is no monitor or no view.
    """

    def __init__(self, resource_monitor: ResourceMonitor, *, views: Sequence[View] = ()) -> None:
        if not isinstance(resource_monitor, ResourceMonitor):
            raise TypeError(
                f"UnoMeterProvider takes a ResourceMonitor, not {type(resource_monitor).__name__}"
            )
        for view in views:
            if not isinstance(view, View):
                raise TypeError(f"views= are of uno.core.monitoring.otel.View, not {type(view).__name__}")
        self.resource_monitor = resource_monitor
        self.views = tuple(views)
        self._meters: dict[tuple[Any, ...], UnoMeter] = {}
        self._disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        self._shut = False
        self._lock = threading.RLock()

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> metrics.Meter:
        """The meter of an instrumentation library; the same one for the same arguments."""
        if self._shut or self._disabled:
            return metrics.NoOpMeter(name, version=version, schema_url=schema_url)
        if not isinstance(name, str) or not name:
            log.warning("a meter without a name: it is called 'opentelemetry'; pass the library's name")
            name = ""
        marks = tuple(sorted((str(key), text_of(value)) for key, value in (attributes or {}).items()))
        key = (name, version, schema_url, marks)
        with self._lock:
            meter = self._meters.get(key)
            if meter is None:
                meter = self._meters[key] = UnoMeter(self, name, version, schema_url)
            return meter

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Wait until a tick has taken everything recorded so far; False when none did in time.

        Blocks the calling thread. A monitor that does not run is made to tick once.
        """
        if self._shut:
            return False
        monitor = self.resource_monitor
        if not monitor.running:
            monitor.tick()
            return True
        ticked = threading.Event()
        seen = 0

        def tell() -> None:
            nonlocal seen
            seen += 1
            if seen > 1 or begun != monitor.store.frame:
                ticked.set()

        begun = monitor.store.frame
        end = monitor.subscribe(tell)
        try:
            return ticked.wait(max(0.0, timeout_millis) / 1_000)
        finally:
            end()

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Record nothing from now on. What was recorded stays readable; callbacks are not asked any more."""
        with self._lock:
            if self._shut:
                log.warning("shutdown() of this UnoMeterProvider was called already")
                return
            self._shut = True
            meters = list(self._meters.values())
        for meter in meters:
            meter.close()


class UnoMeter(metrics.Meter):
    """The instruments of one library. See opentelemetry.metrics.Meter."""

    def __init__(
        self, provider: UnoMeterProvider, name: str, version: str | None, schema_url: str | None
    ) -> None:
        super().__init__(name, version=version, schema_url=schema_url)
        self._provider = provider
        self._resource: Resource | None = None
        self._instruments: dict[tuple[str, type, str, str], Any] = {}
        self._names: dict[str, str] = {}
        self._streams: dict[str, list[Stream]] = {}
        self._sources = 0
        self._lock = threading.RLock()

    def create_counter(self, name: str, unit: str = "", description: str = "") -> metrics.Counter:
        return self._make(Counter, name, unit, description)

    def create_up_down_counter(
        self, name: str, unit: str = "", description: str = ""
    ) -> metrics.UpDownCounter:
        return self._make(UpDownCounter, name, unit, description)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> metrics._Gauge:
        return self._make(Gauge, name, unit, description)

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> metrics.Histogram:
        return self._make(Histogram, name, unit, description, bounds=explicit_bucket_boundaries_advisory)

    def create_observable_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> metrics.ObservableCounter:
        return self._make(ObservableCounter, name, unit, description, callbacks=callbacks)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> metrics.ObservableUpDownCounter:
        return self._make(ObservableUpDownCounter, name, unit, description, callbacks=callbacks)

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> metrics.ObservableGauge:
        return self._make(ObservableGauge, name, unit, description, callbacks=callbacks)

    def _make(
        self,
        cls: type[T],
        name: str,
        unit: str | None,
        description: str | None,
        *,
        bounds: Sequence[float] | None = None,
        callbacks: Iterable[CallbackT] | None = None,
    ) -> T:
        if self._provider._shut or not isinstance(name, str) or not _NAME.match(name):
            if not self._provider._shut:
                log.warning("%r is no name of an instrument: it records nothing; begin with a letter, then "
                            "letters, digits and _ . - /, 255 at most",
                            name[:80] if isinstance(name, str) else type(name))  # fmt: skip
            no_op: T = _NO_OP[cls](name)
            return no_op
        description = description if isinstance(description, str) else ""
        unit = unit or ""
        if not isinstance(unit, str) or not _UNIT.match(unit):
            log.warning("the unit of %s is not 63 ASCII characters at most: it is left out", name)
            unit = ""
        with self._lock:
            name = self._names.setdefault(name.lower(), name)  # the first spelling is the name
            key = (name, cls, unit, description)
            instrument = self._instruments.get(key)
            if instrument is None:
                streams = self._streams_for(cls, name, unit, description, self._bounds(name, unit, bounds))
                instrument = self._instruments[key] = cls(name, unit, description, streams)  # type: ignore[call-arg]
                if self._resource is not None:
                    self._resource.target.instruments = len(self._instruments)
            elif bounds is not None and streams_differ(instrument.streams, bounds):
                log.warning("the histogram %s was made with other buckets already: the first ones hold", name)
            if isinstance(instrument, Observable):
                for callback in callbacks or ():
                    self._observe(instrument, callback)
        made: T = instrument
        return made

    def _bounds(self, name: str, unit: str, advice: Sequence[float] | None) -> tuple[float, ...]:
        if advice:
            try:
                return HistogramMetric("advice", buckets=advice)._new().bounds
            except MetricError as error:
                log.warning("the advised buckets of %s cannot be: %s", name, error)
        return default_bounds(unit)

    def _streams_for(
        self, cls: type, name: str, unit: str, description: str, bounds: tuple[float, ...]
    ) -> tuple[Stream, ...]:
        kind = cls.__mro__[2]  # the API's own class
        chosen = [
            view
            for view in self._provider.views
            if view.takes(kind, name, unit, self.name, self.version, self.schema_url)
        ]
        choices = [view.choice for view in chosen if not view.drop] if chosen else [_AS_IT_IS]
        return tuple(self._stream(cls, name, unit, description, choice, bounds) for choice in choices)

    def _stream(
        self, cls: type, name: str, unit: str, description: str, choice: Choice, bounds: tuple[float, ...]
    ) -> Stream:
        kind, additive = _KINDS[cls]
        name = choice.name or name
        description = description if choice.description is None else choice.description
        present = self._streams.setdefault(name.lower(), [])
        for stream in present:
            if (stream.kind, stream.additive, stream.unit, stream.choice) == (kind, additive, unit, choice):
                if stream.description != description:
                    log.warning(
                        "%s of %s was described otherwise already: both record the same", name, self.name
                    )
                return stream
        if present:
            other = f"{name}.{len(present) + 1}"
            log.warning(
                "%s of %s is a %s in %r already, now a %s in %r: this one is recorded as %s; "
                "give one of them another name, by a View if it is not yours",
                name, self.name, present[0].kind, present[0].unit, kind, unit, other,
            )  # fmt: skip
            name = other
        resource = self._registered()
        store = self._provider.resource_monitor.store
        stream = Stream(
            store,
            resource.id,
            kind,
            name,
            unit,
            description,
            choice,
            choice.bounds or bounds,
            additive=additive,
        )
        present.append(stream)
        return stream

    def _registered(self) -> Resource:
        if self._resource is None:
            manager = self._provider.resource_monitor.manager
            target = MeterTarget(self.name or "opentelemetry", self.version or "")
            self._resource = manager.register(target)
        return self._resource

    def _observe(self, instrument: Observable, callback: CallbackT) -> None:
        streams = instrument.streams
        if not streams or self._resource is None:
            return
        if not callable(callback) and not hasattr(callback, "send"):
            log.warning("a callback of %s is a %s, not a function: it is left out",
                        instrument.name, type(callback).__name__)  # fmt: skip
            return
        monitor = self._provider.resource_monitor
        self._sources += 1
        options = CallbackOptions(timeout_millis=monitor.collect_timeout * 1_000)

        resource, source = self._resource.id, f"{instrument.name} #{self._sources}"
        seen: set[Any] = set()

        def take(batch: Batch, found: list[Observation]) -> None:
            for observation in found:
                for stream in streams:
                    stream.put(batch, observation.value, observation.attributes)
            seen.update(batch.values)
            if len(seen) > min(
                MAX_GONE + len(batch.values), MAX_SAMPLED
            ):  # ids that come and go must not stay for ever
                seen.intersection_update(batch.values)
                monitor.store.withdraw(resource, source, lambda spec, labels: (spec, labels) not in seen)

        monitor.collection.add_source(self._resource, source, _asking(callback, options), take)

    def close(self) -> None:
        """Record nothing, ask nobody."""
        with self._lock:
            for instrument in self._instruments.values():
                instrument.close()
            if self._resource is not None:
                self._provider.resource_monitor.collection.drop_sources(self._resource)


def streams_differ(streams: tuple[Stream, ...], bounds: Sequence[float]) -> bool:
    """Whether streams that are there have other buckets than ``bounds``, by no view's doing."""
    return any(s.choice.bounds is None and s.bounds != tuple(map(float, bounds)) for s in streams)


def _asking(callback: CallbackT, options: CallbackOptions) -> Callable[[], list[Observation]]:
    """What asks a callback, a function or a generator, for its observations."""
    begun = False

    def ask() -> list[Observation]:
        nonlocal begun
        found: Any
        if callable(callback):
            found = callback(options)
        else:
            if not begun:
                next(callback)
                begun = True
            try:
                found = callback.send(options)
            except StopIteration:
                return []
        if hasattr(found, "__await__"):
            close = getattr(found, "close", None)
            if close is not None:
                close()
            raise TypeError("a callback of an observable instrument is no coroutine function")
        return list(islice(found, MAX_OBSERVATIONS))

    return ask
