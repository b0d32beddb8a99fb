"""The seven instruments of OpenTelemetry's API, recording into cells.

The way to a cell is remembered by the attributes' content. No lock is held, and nothing is raised: what cannot be
recorded is dropped and said once for each instrument.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.util.types import Attributes

from uno.core.monitoring.otel.attributes import cacheable
from uno.core.monitoring.otel.streams import Stream

log = logging.getLogger("uno.otel")

Record = Callable[[float], None]
_REMEMBERED = 4_096
LARGEST = sys.float_info.max


def _nothing(amount: float) -> None:
    """What records nowhere: a view dropped the instrument, or the provider is shut down."""


class Recorder:
    """What the synchronous instruments have in common."""

    #: What is called on a cell.
    method = "inc"
    rule = "a finite number"

    def __init__(self, name: str, unit: str, description: str, streams: tuple[Stream, ...]) -> None:
        self.name, self.unit, self.description = name, unit, description
        self.streams = streams
        self._known: dict[Any, Record] = {}
        self._plain: Record | None = None
        self._said = False

    def _find(self, attributes: Mapping[str, Any] | None) -> Record:
        """What records for these attributes; remembered where that is safe."""
        given = dict(attributes) if attributes else None
        method = self.method
        records: list[Record] = [getattr(stream.cell(given), method) for stream in self.streams]
        if len(records) == 1:
            record = records[0]
        elif records:
            record = _each(records)
        else:
            record = _nothing
        if given is None:
            self._plain = record
        elif cacheable(given):
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[(*given, *given.values())] = record
        return record

    def _again(self, amount: float, attributes: Mapping[str, Any] | None, error: Exception) -> None:
        """The quick way failed, before anything was recorded: attributes without a hash, or a bad amount."""
        try:
            if self._takes(amount):
                self._find(attributes)(amount)
                return
        except Exception as failure:  # noqa: BLE001 - never into the application
            error = failure
        self._refuse(type(error).__name__)

    def _takes(self, amount: float) -> bool:
        return -inf < amount < inf

    def _refuse(self, why: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s takes %s: others are left out (%s)", self.name, self.rule, why)

    def close(self) -> None:
        """Record nothing from now on."""
        self.streams = ()
        self._known = {}
        self._plain = _nothing


def _each(records: list[Record]) -> Record:
    def record(amount: float) -> None:
        for each in records:
            each(amount)

    return record


class Counter(Recorder, metrics.Counter):
    """See opentelemetry.metrics.Counter."""

    rule = "finite numbers from zero up"

    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        try:
            if not amount >= 0:
                self._refuse("negative or NaN")
                return
            if attributes:
                record = self._known.get((*attributes, *attributes.values())) or self._find(attributes)
            else:
                record = self._plain or self._find(None)
            record(amount)
        except Exception as error:  # noqa: BLE001 - never into the application
            self._again(amount, attributes, error)

    def _takes(self, amount: float) -> bool:
        return 0 <= amount <= LARGEST


class UpDownCounter(Recorder, metrics.UpDownCounter):
    """See opentelemetry.metrics.UpDownCounter."""

    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        try:
            if not -inf < amount < inf:
                self._refuse("not finite")
                return
            if attributes:
                record = self._known.get((*attributes, *attributes.values())) or self._find(attributes)
            else:
                record = self._plain or self._find(None)
            record(amount)
        except Exception as error:  # noqa: BLE001 - never into the application
            self._again(amount, attributes, error)


class Gauge(Recorder, metrics._Gauge):
    """See opentelemetry.metrics.Gauge."""

    method = "set"

    def set(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        try:
            if not -inf < amount < inf:
                self._refuse("not finite")
                return
            if attributes:
                record = self._known.get((*attributes, *attributes.values())) or self._find(attributes)
            else:
                record = self._plain or self._find(None)
            record(amount)
        except Exception as error:  # noqa: BLE001 - never into the application
            self._again(amount, attributes, error)


class Histogram(Recorder, metrics.Histogram):
    """See opentelemetry.metrics.Histogram."""

    method = "observe"
    rule = "finite numbers from zero up"

    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        try:
            if not 0 <= amount <= LARGEST:
                self._refuse("negative or not finite")
                return
            if attributes:
                record = self._known.get((*attributes, *attributes.values())) or self._find(attributes)
            else:
                record = self._plain or self._find(None)
            record(amount)
        except Exception as error:  # noqa: BLE001 - never into the application
            self._again(amount, attributes, error)

    def _takes(self, amount: float) -> bool:
        return 0 <= amount <= LARGEST


class Observable:
    """What the asynchronous instruments have in common: their callbacks are jobs of the monitor."""

    def __init__(self, name: str, unit: str, description: str, streams: tuple[Stream, ...]) -> None:
        self.name, self.unit, self.description = name, unit, description
        self.streams = streams

    def close(self) -> None:
        """Observe nothing from now on."""
        self.streams = ()


class ObservableCounter(Observable, metrics.ObservableCounter):
    """See opentelemetry.metrics.ObservableCounter."""


class ObservableUpDownCounter(Observable, metrics.ObservableUpDownCounter):
    """See opentelemetry.metrics.ObservableUpDownCounter."""


class ObservableGauge(Observable, metrics.ObservableGauge):
    """See opentelemetry.metrics.ObservableGauge."""
