"""Where do the current values live, and how are all of them frozen at one instant?

A Series is one metric of one resource with one set of label values. Its cell is written by the application,
by hooks and by collectors; the tick reads every cell once and makes a Frame, which all readers share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence, Sized
from contextvars import ContextVar
from math import inf, nan
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.metrics import (
    Cell,
    CounterCell,
    Distribution,
    GaugeCell,
    HistogramCell,
    Kind,
    Metric,
    MetricError,
    Sketch,
    Spec,
    cell_for,
    clean_label,
    number_of,
)
from uno.core.monitoring.names import wire_name
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("uno.series")

MAX_SERIES = 50_000
#: of one way of reading one resource: names and labels that never end are cut off here
MAX_SAMPLED = 1_000
#: of a resource at rest the values are left as they are for so long
REST_TICKS = 9
HISTOGRAM_COLUMNS = ("count", "sum", "mean", "p95", "max")
STATS: dict[str, tuple[str, ...]] = {
    "gauge": ("value",),
    "counter": ("rate", "total"),
    "histogram": ("p95", "mean", "max", "rate", "count", "sum"),
}


class Selector(NamedTuple):
    """How to read one statistic from a Frame: which column, and whether its rate is meant."""

    column: int
    rate: bool = False


class Frame:
    """All series at one instant. Never changed after it was made.

    ``time``: Unix seconds; ``values``: one number per column, NaN for a gap; ``row``: the same as float64;
    ``rates``: change per second of the columns that count, NaN for all others and where there is none (first
    tick, reset); ``counting``: which columns those are; ``histograms``: the Distribution
    of each histogram; ``sketches``: what each histogram observed since the frame
    before; ``moved``: when columns were put closer together since then, the old place of each column; ``forgotten``:
    the keys of the series that went with it.
    """

    __slots__ = (
        "counting", "forgotten", "histograms", "moved", "rates", "row", "seq", "sketches", "time", "values", "version",
    )  # fmt: skip

    def __init__(
        self,
        time: float,
        seq: int,
        version: int,
        values: list[float],
        row: NDArray[np.float64],
        rates: NDArray[np.float64],
        counting: NDArray[np.bool_],
        histograms: dict[Series, Distribution],
        sketches: list[tuple[Series, Sketch]],
        moved: NDArray[np.int64] | None,
        forgotten: tuple[str, ...] = (),
    ) -> None:
        self.time, self.seq, self.version = time, seq, version
        self.values, self.row, self.rates, self.counting = values, row, rates, counting
        self.histograms, self.sketches, self.moved, self.forgotten = histograms, sketches, moved, forgotten


class Series:
    """One metric of one resource with one set of label values."""

    __slots__ = ("cell", "column", "key", "labels", "live", "metric", "resource", "wire")

    def __init__(self, resource: str, metric: Spec, labels: tuple[str, ...], cell: Cell, column: int) -> None:
        self.resource, self.metric, self.labels, self.cell, self.column = (
            resource,
            metric,
            labels,
            cell,
            column,
        )
        self.live = True
        self.wire = wire_name(metric)
        pairs = ",".join(f"{name}={value}" for name, value in zip(metric.labels, labels, strict=True))
        self.key = f"{resource}|{metric.name}|{pairs}"

    @property
    def label_map(self) -> dict[str, str]:
        """Label values by name."""
        return dict(zip(self.metric.labels, self.labels, strict=True))

    @property
    def width(self) -> int:
        """How many columns the series takes."""
        return len(HISTOGRAM_COLUMNS) if self.metric.kind == "histogram" else 1

    def __repr__(self) -> str:
        return f"Series({self.key!r})"


#: Smaller whole numbers are floats without a loss.
_EXACT = 2**53


#: A metric with label values.
Entry = tuple[Spec, tuple[str, ...]]


class Sampled(dict[Entry, Series]):
    """The series of one way of reading one resource. ``words``: the same by what update_metric was given, so that a
    series which is read each second is found without looking at its definition. ``rest``: what the values are of, see
    :meth:`ResourceTypeMonitor.at_rest`; ``rested``: for how many ticks they have been left as they are."""

    __slots__ = ("rest", "rested", "words")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.words: dict[Any, Series] = {}
        self.rest: object = None
        self.rested = 0


class Batch:
    """What one collection of one resource gave. It is committed whole or not at all.

    ``known`` and ``shared``: numbers and cells of series that were found by their words, which only ``reader`` may do;
    all others are in ``values`` and ``cells``.
    """

    __slots__ = (
        "cells",
        "known",
        "reader",
        "resource",
        "rest",
        "sampled",
        "shared",
        "source",
        "values",
        "words",
    )

    def __init__(
        self, resource: str, source: str = "", sampled: Sampled | None = None, reader: object = None
    ) -> None:
        self.resource = resource
        self.source = source
        self.sampled = sampled
        self.words = None if sampled is None else sampled.words
        self.reader = None if sampled is None else reader
        self.rest: object = None
        self.known: dict[Series, float] = {}
        self.shared: dict[Series, Cell] = {}
        self.values: dict[Entry, float] = {}
        self.cells: dict[Entry, Cell] = {}

    def put_known(self, words: object, value: Any) -> bool:
        """Add what needs no look at its definition, as almost all that is read again; False: use put()."""
        try:
            series = self.words[words]  # type: ignore[index]
        except (KeyError, TypeError):  # new, or no label value
            return False
        if series.cell is value:
            self.shared[series] = value
            return True
        if value.__class__ is int and -_EXACT < value < _EXACT:
            value = float(value)
        if value.__class__ is not float:
            return False
        kind = series.metric.kind
        if kind == "gauge" or (kind == "counter" and 0.0 <= value < inf):
            self.known[series] = value
            return True
        return False

    def learn(self, words: object, entry: Entry, labels: Mapping[str, object] | None) -> None:
        """Remember by which words a series is called; of labels that are text, for 1 and True are looked up alike."""
        sampled = self.sampled
        if sampled is None or len(sampled.words) >= 2 * MAX_SAMPLED:
            return
        if not labels or (
            labels.__class__ is dict and all(text.__class__ is str for text in labels.values())
        ):
            series = sampled.get(entry)
            if series is not None:
                sampled.words[words] = series

    def forget_known(self) -> None:
        """Have all series looked for by their definitions."""
        for series, value in self.known.items():
            self.values[series.metric, series.labels] = value
        for series, cell in self.shared.items():
            self.cells[series.metric, series.labels] = cell
        self.known, self.shared = {}, {}

    def put(self, spec: Spec, value: Any, labels: Mapping[str, object] | None = None) -> Entry:
        """Add a number, or a cell to be shared. None and NaN mean unknown: the series shows a gap.

        Raises MetricError for labels that ``spec`` does not have and for values that are no numbers.
        """
        name, kind, _, _, names, _, _ = spec
        if labels:
            if not isinstance(labels, Mapping):
                raise MetricError(f"labels of {name!r} map names to values, not {type(labels).__name__}")
            if len(labels) != len(names) or not all(map(labels.__contains__, names)):
                raise MetricError(f"{name!r} has the labels {list(names)}, got {sorted(labels)}")
            key = tuple([clean_label(labels[label]) for label in names])
        elif names:
            raise MetricError(f"{name!r} needs the labels {list(names)}, got none")
        else:
            key = ()
        if value.__class__ is not float:
            if value is None:
                self.values[spec, key] = nan
                return spec, key
            if value.__class__ is int and -_EXACT < value < _EXACT:
                value = float(value)
            elif isinstance(value, (CounterCell, GaugeCell, HistogramCell)):
                self.cells[spec, key] = value
                return spec, key
            else:
                value = number_of(value, repr(name))
        if kind != "gauge" and ((kind == "counter" and value < 0) or value in (inf, -inf)):
            raise MetricError(f"{name!r} is a {kind}, it cannot take {value!r}")
        self.values[spec, key] = value
        return spec, key


#: The batch of the resource that is being collected here; two resources read at once never mix.
current_batch: ContextVar[Batch | None] = ContextVar("uno_batch", default=None)


#: Resource, metric, names of the labels, their values: two label sets of one name may live in one family.
_Identity = tuple[str, str, tuple[str, ...], tuple[str, ...]]


class SeriesStore:
    """All series and the last Frame. Writers are the monitor's thread and definitions; readers take no lock."""

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self.version = 0
        self.placed = 0  # the version in which columns were last moved; an older frame has them elsewhere
        self.frame: Frame | None = None
        self.refused = 0
        self.bad_values = 0
        self._max = max_series
        self._series: dict[_Identity, Series] = {}
        self._gone: dict[_Identity, Series] = {}
        self._columns: list[Any] = []  # what has a .value, one per column
        self._used = 0  # columns of live series
        self._counting: list[bool] = []
        self._histograms: list[Series] = []
        self._sampled: dict[tuple[str, str], Sampled] = {}
        self._kinds: dict[tuple[str, str], tuple[Kind, int]] = {}  # with how many series have the name
        self._lock = threading.RLock()
        self._by_resource: dict[str, list[Series]] = {}
        self._said_full: set[tuple[str, str]] = set()
        self._mask: Any = None
        self._mask_version = -1
        #: Called for each series that has come, and for one whose cell is another now.
        self.joined: Callable[[Series], None] | None = None

    # -- what there is ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._series)

    def all(self) -> list[Series]:
        """Every live series."""
        return list(self._series.values())

    def select(self, resource: str | None = None, metric: str | None = None) -> list[Series]:
        """The live series of a resource, of a metric (model name or Prometheus name), of both, or all."""
        found = self.all() if resource is None else list(self._by_resource.get(resource, ()))
        if metric is not None:
            found = [s for s in found if s.metric.name == metric or s.wire == metric]
        return found

    def find(
        self, resource: str, metric: str, names: tuple[str, ...], labels: tuple[str, ...]
    ) -> Series | None:
        """The series with these names and values of labels, None where there is none."""
        return self._series.get((resource, metric, names, labels))

    def add(self, resource: str, spec: Spec, labels: tuple[str, ...], cell: Cell) -> Series | None:
        """Make a series known; None when the bound on series is reached (counted in ``refused``).

        MetricError when the same name stands for another kind of metric.
        """
        key = (resource, spec.name, spec.labels, labels)
        with self._lock:
            kind, _ = self._kinds.get((resource, spec.name), (spec.kind, 0))
            if kind != spec.kind:
                raise MetricError(f"{spec.name!r} of {resource!r} is a {kind} already, not a {spec.kind}")
            present = self._series.get(key)
            if present is not None:
                if present.cell is not cell:
                    self._put_cell(present, cell)
                    if self.joined is not None:
                        self.joined(present)
                return present
            if len(self._series) >= self._max:
                self.refused += 1
                if self.refused == 1:
                    log.warning("more than %d series: further ones are not kept", self._max)
                return None
            series = self._gone.pop(key, None)
            if series is not None and series.metric == spec:
                series.live = True
                self._put_cell(series, cell)
            else:
                series = Series(resource, spec, labels, cell, len(self._columns))
                counting = {
                    "gauge": (False,),
                    "counter": (True,),
                    "histogram": (True, True, False, False, False),
                }
                self._columns.extend([None] * series.width)
                self._counting.extend(counting[spec.kind])
                self._put_cell(series, cell)
            self._used += series.width
            self._series[key] = series
            self._kinds[resource, spec.name] = kind, self._kinds.get((resource, spec.name), (kind, 0))[1] + 1
            self._by_resource.setdefault(resource, []).append(series)
            if spec.kind == "histogram":
                self._histograms = [*self._histograms, series]
            self.version += 1
            if self.joined is not None:
                self.joined(series)
            return series

    def attach(self, resource: str, metric: Metric[Any]) -> None:
        """Keep all cells of an application's metric, those there are and those to come, as series of ``resource``."""
        spec = metric.spec
        metric.watch(
            lambda labels, cell: (self.add(resource, spec, labels, cell), None)[1],
            lambda removed: self.discard(resource, spec, removed),
        )

    def discard(self, resource: str, spec: Spec, removed: Mapping[tuple[str, ...], Cell]) -> None:
        """Forget series of a metric, by their labels, unless they have other cells by now."""
        with self._lock:
            leaving = set()
            for labels, cell in removed.items():
                series = self._series.get((resource, spec.name, spec.labels, labels))
                if series is not None and series.cell is cell:
                    leaving.add(series)
            if not leaving:
                return
            for series in leaving:
                self._retire(series)
            # Replaced, never changed: a reader may be going through it.
            self._by_resource[resource] = [s for s in self._by_resource[resource] if s not in leaving]
            if spec.kind == "histogram":
                self._histograms = [s for s in self._histograms if s not in leaving]
            self.version += 1

    def remove(self, resource: str) -> None:
        """Forget the series of a resource; they revive with their history when it comes back."""
        with self._lock:
            removed = self._by_resource.pop(resource, [])
            for series in removed:
                self._retire(series)
            for source in [source for source in list(self._sampled) if source[0] == resource]:
                self._sampled.pop(source, None)
                self._said_full.discard(source)
            if any(series.metric.kind == "histogram" for series in removed):
                self._histograms = [series for series in self._histograms if series.live]
            self.version += 1

    def withdraw(self, resource: str, source: str, gone: Callable[[Spec, tuple[str, ...]], bool]) -> None:
        """Forget the series of a source that will not come again."""
        with self._lock:
            sampled = self._sampled.get((resource, source), _NO_SERIES)
            leaving = [series for key, series in list(sampled.items()) if gone(*key)]
            if not leaving:
                return
            # Replaced, never changed: a commit may be going through it.
            self._sampled[resource, source] = Sampled(
                (k, s) for k, s in list(sampled.items()) if s not in leaving
            )
            for series in leaving:
                if series.live:
                    self._retire(series)
            self._index()

    def _retire(self, series: Series) -> None:
        key = _identity(series)
        self._gone[key] = self._series.pop(key)
        kind, others = self._kinds.pop((series.resource, series.metric.name))
        if others > 1:
            self._kinds[series.resource, series.metric.name] = kind, others - 1
        series.live = False
        self._used -= series.width
        for i in range(series.column, series.column + series.width):
            self._columns[i] = _GAP

    def _put_cell(self, series: Series, cell: Cell) -> None:
        series.cell = cell
        parts = (
            (cell.count, cell.sum, cell.mean, cell.p95, cell.max)
            if isinstance(cell, HistogramCell)
            else (cell,)
        )
        self._columns[series.column : series.column + len(parts)] = parts

    def _index(self) -> None:
        by_resource: dict[str, list[Series]] = {}
        for series in self._series.values():
            by_resource.setdefault(series.resource, []).append(series)
        self._by_resource = by_resource
        self._histograms = [s for s in self._series.values() if s.metric.kind == "histogram"]
        self.version += 1

    # -- what collectors bring -------------------------------------------------------------------------

    def batch(self, resource: str, source: str, reader: object) -> Batch:
        """An empty batch, which ``reader`` fills."""
        return Batch(resource, source, self._sampled.get((resource, source)), reader)

    def rests(self, resource: str, source: str, rest: object) -> bool:
        """Whether the values of a source are of ``rest`` already. After REST_TICKS times they are read again, lest
        what a type has overlooked stays for good."""
        sampled = self._sampled.get((resource, source))
        if sampled is None or sampled.rest is None or sampled.rest != rest or sampled.rested >= REST_TICKS:
            return False
        sampled.rested += 1
        return True

    def commit(self, batch: Batch) -> None:
        """Take a batch whole: what it names gets its value, what it no longer names becomes a gap."""
        sampled = self._sampled.get((batch.resource, batch.source))
        if sampled is None:
            sampled = self._sampled.setdefault((batch.resource, batch.source), Sampled())
        if batch.sampled is not sampled:
            batch.forget_known()  # series were withdrawn meanwhile
        known, again = batch.known, batch.shared
        for key in (*batch.values, *batch.cells) if known or again else ():
            twice = sampled.get(key)  # given in other words too
            if twice is not None:
                known.pop(twice, None)
                again.pop(twice, None)
        for seen, cell in again.items():
            if seen.cell is not cell:  # another source has replaced it
                self.add(batch.resource, seen.metric, seen.labels, cell)
        found: list[tuple[Cell, float]] = []
        present = len(known) + len(again)
        for key, value in batch.values.items():
            series = sampled.get(key)
            if series is None:
                if self._is_full(batch, sampled):
                    continue
                cell = cell_for(key[0])
                if isinstance(cell, CounterCell):
                    cell.gap()  # nothing was counted yet, which is not zero
                series = self.add(batch.resource, *key, cell)
                if series is None:
                    continue
                sampled[key] = series
            found.append((series.cell, value))
        for key, shared in batch.cells.items():
            series = sampled.get(key)
            if series is None and self._is_full(batch, sampled):
                continue
            if series is None or series.cell is not shared:
                series = self.add(batch.resource, *key, shared)
                if series is None:
                    continue
                sampled[key] = series
            present += 1
        # Nothing fails from here on, so that no batch is taken by half.
        sampled.rest, sampled.rested = batch.rest, 0
        for seen, value in known.items():
            target = seen.cell
            if isinstance(target, GaugeCell):
                target.value = value
            else:
                _give(target, value)
        for target, value in found:
            _give(target, value)
        if len(sampled) > len(found) + present:
            for key, series in sampled.items():
                if (
                    key not in batch.values
                    and key not in batch.cells
                    and series not in known
                    and series not in again
                ):
                    _blank(series)

    def _is_full(self, batch: Batch, sampled: Sized) -> bool:
        if len(sampled) < MAX_SAMPLED:
            return False
        self.refused += 1
        source = (batch.resource, batch.source)
        if source not in self._said_full:
            self._said_full.add(source)
            log.warning("%s (%s) gives more than %d series: further ones are not kept", *source, MAX_SAMPLED)
        return True

    def blank(self, resource: str, source: str = "") -> None:
        """The resource could not be read: its sampled series show a gap until it can."""
        sampled = self._sampled.get((resource, source), _NO_SERIES)
        sampled.rest = None
        for series in list(sampled.values()):
            _blank(series)

    def blank_all(self) -> None:
        """Nothing is read any more: every sampled gauge shows a gap."""
        for resource, source in list(self._sampled):
            self.blank(resource, source)

    # -- the tick --------------------------------------------------------------------------------------

    def tick(self, time: float) -> Frame:
        """Freeze every series at ``time`` (Unix seconds)."""
        import numpy as np

        last = self.frame
        moved: NDArray[np.int64] | None = None
        forgotten: tuple[str, ...] = ()
        with self._lock:
            if len(self._columns) - self._used > max(1_000, self._used):
                living = {series.key for series in self._series.values()}
                forgotten = tuple(s.key for s in self._gone.values() if s.key not in living)
                moved = np.array(self._compact(), dtype=np.int64)
            columns, version, histograms = self._columns, self.version, self._histograms
            sketches = []
            frozen = {}
            for series in histograms:
                cell = series.cell
                if isinstance(cell, HistogramCell):
                    sketch = cell.freeze()
                    if sketch is not None:
                        sketches.append((series, sketch))
                    frozen[series] = cell.frozen
            values = list(map(_VALUE, columns))
            if self._mask_version != version:
                self._mask = np.array(self._counting, dtype=bool)
                self._mask_version = version
            counting = self._mask
        try:
            row = np.array(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            values = [self._number(value) for value in values]
            row = np.array(values, dtype=np.float64)
        rates = np.full(len(row), np.nan)
        if last is not None and time > last.time:
            before = last.row
            if moved is not None:  # a series that came since the last frame had no place there
                known = moved < len(before)
                before = np.append(before, np.nan)[np.where(known, moved, len(before))]
            n = min(len(before), len(row))
            with np.errstate(invalid="ignore", over="ignore"):  # of infinite gauges
                change = row[:n] - before[:n]
            change[change < 0] = np.nan
            rates[:n] = change / (time - last.time)
            rates[~counting] = np.nan
        seq = 1 if last is None else last.seq + 1
        self.frame = Frame(
            time, seq, version, values, row, rates, counting, frozen, sketches, moved, forgotten
        )
        return self.frame

    def _compact(self) -> list[int]:
        """Close the gaps that removed series left; returns the old place of each column."""
        old: list[int] = []
        for series in self._series.values():
            place = len(old)
            old.extend(range(series.column, series.column + series.width))
            series.column = place
        self._columns = [self._columns[i] for i in old]
        self._counting = [self._counting[i] for i in old]
        self._gone.clear()
        self._index()
        self.placed = self.version
        return old

    def _number(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self.bad_values += 1
            return nan
        return number

    # -- reading ---------------------------------------------------------------------------------------

    def selector(self, series: Series, stat: str | None = None) -> Selector:
        """How to read ``stat`` of ``series``; without a stat: value, rate or p95 by the kind of metric.

        MetricError for a statistic that the kind does not have.
        """
        return select_column(series, stat)

    def gather(self, frame: Frame, selectors: Sequence[Selector]) -> NDArray[np.float64]:
        """The selected numbers of a frame, NaN for a gap."""
        import numpy as np

        if not selectors:
            return np.empty(0)
        chosen = np.array(selectors, dtype=np.int64)
        column, rate = chosen[:, 0], chosen[:, 1].astype(bool)
        inside = column < len(frame.row)
        column = np.where(inside, column, 0)
        found = (
            np.where(rate, frame.rates[column], frame.row[column])
            if len(frame.row)
            else np.full(len(column), nan)
        )
        return np.where(inside, found, nan)

    def value(self, series: Series, stat: str | None = None, frame: Frame | None = None) -> float | None:
        """One statistic of one series at the last tick; None for a gap."""
        frame = frame or self.frame
        if frame is None:
            return None
        column, rate = self.selector(series, stat)
        if column >= len(frame.values):
            return None
        value = float(frame.rates[column]) if rate else frame.values[column]
        return value if value == value else None

    def stats(self, series: Series) -> dict[str, float | None]:
        """All statistics of one series at the last tick."""
        return {stat: self.value(series, stat) for stat in STATS[series.metric.kind]}

    def reinit_after_fork(self) -> None:
        """Replace the lock in a forked child."""
        self._lock = threading.RLock()


def _identity(series: Series) -> _Identity:
    return series.resource, series.metric.name, series.metric.labels, series.labels


def select_column(series: Series, stat: str | None = None) -> Selector:
    """See SeriesStore.selector."""
    kind = series.metric.kind
    if stat is None:
        stat = STATS[kind][0]
    if stat not in STATS[kind]:
        raise MetricError(f"a {kind} like {series.metric.name!r} has {', '.join(STATS[kind])}, not {stat!r}")
    if kind == "histogram":
        return Selector(series.column, True) if stat == "rate" else Selector(series.column + _PLACE[stat])
    return Selector(series.column, stat == "rate")


_PLACE = {stat: place for place, stat in enumerate(HISTOGRAM_COLUMNS)}
_VALUE = attrgetter("value")
_GAP = GaugeCell(nan)
_NO_SERIES = Sampled()


def _give(cell: Cell, value: float) -> None:
    """Bring one number to its series."""
    if isinstance(cell, GaugeCell):
        cell.value = value
    elif value != value:
        if isinstance(cell, CounterCell):
            cell.gap()
    elif isinstance(cell, CounterCell):
        cell.set_total(value)
    else:
        cell.observe(value)


def _blank(series: Series) -> None:
    cell = series.cell
    if isinstance(cell, GaugeCell):
        cell.value = nan
    elif isinstance(cell, CounterCell) and cell.given:  # what hooks count is known although nobody could read
        cell.gap()
