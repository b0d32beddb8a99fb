"""Where do an instrument's measurements go? One stream for each view of it: cells by attributes, in the store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from math import isfinite, nan
from typing import Any

from uno.core.monitoring.metrics import (
    DEFAULT_BUCKETS,
    Cell,
    CounterCell,
    GaugeCell,
    HistogramCell,
    Kind,
    MetricError,
    Spec,
)
from uno.core.monitoring.otel.attributes import MAX_ITEMS, label_name, text_of
from uno.core.monitoring.otel.views import Choice
from uno.core.monitoring.series import MAX_SAMPLED, Batch, SeriesStore

log = logging.getLogger("uno.otel")

#: The specification's default for the attribute sets of one stream; further ones share the overflow series.
CARDINALITY = 2_000
OVERFLOW = (("otel.metric.overflow",), ("true",))
#: The specification's default bounds; they suit milliseconds, so histograms in seconds have uno's own.
OTEL_BUCKETS = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1e3, 2.5e3, 5e3, 7.5e3, 1e4)

Key = tuple[tuple[str, ...], tuple[str, ...]]


def default_bounds(unit: str) -> tuple[float, ...]:
    """The bounds of a histogram that nobody gave any."""
    return DEFAULT_BUCKETS if unit == "s" else OTEL_BUCKETS


class Stream:
    """The series of one instrument, as one view (or none) wants it."""

    def __init__(
        self,
        store: SeriesStore,
        resource: str,
        kind: Kind,
        name: str,
        unit: str,
        description: str,
        choice: Choice,
        bounds: tuple[float, ...],
        *,
        additive: bool,
    ) -> None:
        self.resource, self.kind, self.name, self.unit, self.description = (
            resource,
            kind,
            name,
            unit,
            description,
        )
        self.choice, self.bounds, self.additive = choice, bounds, additive
        self.overflowed = 0
        self._rename = dict(choice.rename)
        self._store = store
        self._specs: dict[tuple[str, ...], Spec] = {}
        self._cells: dict[Key, Cell] = {}
        self._said = False
        self._lock = (
            threading.RLock()
        )  # re-entrant: a signal handler may record while this thread makes a cell

    def key(self, attributes: Mapping[str, Any] | None) -> Key:
        """Label names and values, sorted by name. What is no attribute is left out, and said once."""
        if not attributes:
            return (), ()
        keep, drop, rename = self.choice.keep, self.choice.drop, self._rename
        pairs: dict[str, str] = {}
        for name, value in attributes.items():
            if len(pairs) >= MAX_ITEMS:
                self._say(f"more than {MAX_ITEMS} attributes at once: further ones are left out")
                break
            if (keep is not None and name not in keep) or name in drop:
                continue
            if value is None:  # the API's empty value: as good as absent
                continue
            text = text_of(value) if isinstance(name, str) and name else None
            if text is None:
                self._say("an attribute whose value is neither text nor number is left out")
                continue
            pairs[label_name(rename.get(name, name))] = text
        names = tuple(sorted(pairs))
        return names, tuple([pairs[name] for name in names])

    def spec(self, names: tuple[str, ...]) -> Spec:
        """The definition of the series with these label names."""
        known = self._specs.get(names)
        if known is None:
            known = self._specs[names] = Spec(self.name, self.kind, self.description, self.unit, names)
        return known

    def cell(self, attributes: Mapping[str, Any] | None) -> Cell:
        """The cell of these attributes, made when it is not there."""
        key = self.key(attributes)
        cell = self._cells.get(key)
        if cell is not None:
            return cell
        with self._lock:
            if key not in self._cells and len(self._cells) >= CARDINALITY:
                self.overflowed += 1
                self._say(
                    f"more than {CARDINALITY:,} sets of attributes: further ones are added up in one series"
                )
                key = OVERFLOW
            cell = self._cells.get(key)
            if cell is None:
                cell = self._cells[key] = self._new()
        try:
            self._store.add(self.resource, self.spec(key[0]), key[1], cell)
        except MetricError as clash:
            self._say(str(clash))
        return cell

    def _new(self) -> Cell:
        if self.kind == "counter":
            return CounterCell()
        if self.kind == "gauge":
            return GaugeCell(0.0 if self.additive else nan)
        return HistogramCell(self.bounds)

    def put(self, batch: Batch, value: float, attributes: Mapping[str, Any] | None) -> None:
        """Take one observation of a callback into ``batch``."""
        if isinstance(value, (int, float)) and not isfinite(value):
            self._say("a callback gave a number that is not finite: it is left out")
            return
        names, values = self.key(attributes)
        entry = (self.spec(names), values)
        before = batch.values.get(entry)
        if before is None and len(batch.values) >= MAX_SAMPLED - 1:
            self.overflowed += 1
            entry = (self.spec(OVERFLOW[0]), OVERFLOW[1])
            before = batch.values.get(entry)
        batch.put(entry[0], value, dict(zip(entry[0].labels, entry[1], strict=True)))
        if before is not None and self.additive:
            batch.values[entry] += before

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s of %s: %s", self.name, self.resource, what)
