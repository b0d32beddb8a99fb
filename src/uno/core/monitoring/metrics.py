"""What is a metric, and how does an application record to it?

A metric is a family of cells, one for each combination of label values. A cell holds the number; recording
touches the cell only, without a lock: ``slot += operand`` is exact under the GIL because CPython hands the
lock over at calls and jumps only, never between the load and the store of one augmented assignment.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import ceil, exp, inf, isfinite, log, nan
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

Kind = Literal["counter", "gauge", "histogram"]

#: Seconds; wide enough for a cache hit and for a slow report.
DEFAULT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MAX_CHILDREN = 1_000
MAX_LABEL_LENGTH = 200
OVERFLOW = "_overflow"
MAX_PENDING = 4_096
_LARGEST = 709.78  # the logarithm of the largest float
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:.]*\Z")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_RESERVED_LABELS = frozenset(("resource", "le", "quantile"))


class MetricError(ValueError):
    """A metric was defined or used in a way that cannot work; the message names the fix."""


class Spec(NamedTuple):
    """What a metric is: its definition without any value.

    ``name`` is the model's name (dots for standard metrics, verbatim for the application's own), ``unit`` is
    UCUM ("s", "By", "1", "{connection}"), ``title`` the words that a page shows.
    """

    name: str
    kind: Kind
    description: str = ""
    unit: str = ""
    labels: tuple[str, ...] = ()
    title: str = ""


class CounterCell:
    """A number that only grows."""

    __slots__ = ("_before", "_last", "given", "value")

    def __init__(self) -> None:
        self.value: float = 0.0
        self.given = False  # totals are given, rather than amounts added
        self._before = self._last = 0.0

    def inc(self, amount: float = 1.0) -> None:  # floats alone are compared and added fastest
        """Add ``amount``; negative, NaN and infinite are refused with MetricError before anything changes."""
        if not 0.0 <= amount < inf:
            raise MetricError(
                f"a counter only grows, and by finite amounts: cannot add {amount!r}; use a Gauge for values that fall"
            )
        self.value += amount

    def set_total(self, total: float) -> None:
        """Take a total that somebody else counts; a fall means that their count began anew at zero."""
        total = float(total)
        if not (isfinite(total) and total >= 0):
            raise MetricError(f"a counter's total is a number from zero up, not {total!r}")
        if total < self._last:
            self._before += self._last
        self._last = total
        self.value = self._before + total
        self.given = True

    def gap(self) -> None:
        """The total is not known at present; the next one given ends the gap."""
        self.value = nan
        self.given = True


class GaugeCell:
    """A number that rises and falls; NaN means that there is nothing to tell at present."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def set(self, value: float) -> None:
        """Store ``value``; TypeError or ValueError where it is not a number."""
        if value.__class__ is not float:
            value = float(value)
        self.value = value

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        """Subtract ``amount``."""
        self.value -= amount

    def track(self) -> _Track:
        """Count what is inside a ``with`` block."""
        return _Track(self)


class _Track:
    __slots__ = ("_cell",)

    def __init__(self, cell: GaugeCell) -> None:
        self._cell = cell

    def __enter__(self) -> None:
        self._cell.value += 1

    def __exit__(self, *exc_info: object) -> None:
        self._cell.value -= 1


class _Slot:
    """One column of a histogram, read by the tick like any other cell."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


class Sketch:
    """Counts by relative magnitude, from which any quantile can be told within 1 %.

    Logarithmic buckets with a ratio of 1.02, after DDSketch (Masson, Rim, Lee, VLDB 2019). Values at or below
    zero share the lowest bucket. Sketches of different times add up exactly.
    """

    __slots__ = ("counts",)
    RATIO: ClassVar[float] = log(1.02)
    LOWEST: ClassVar[int] = -2_000  # about 6e-18; also holds zero and below

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts = {} if counts is None else counts

    def add(self, values: Sequence[float]) -> None:
        """Count each of ``values``: finite numbers, ascending."""
        counts, ratio, lowest = self.counts, self.RATIO, self.LOWEST
        at, n = bisect_right(values, 6e-18), len(values)
        if at:
            counts[lowest] = counts.get(lowest, 0) + at
        many = n - at > 100  # then it is cheaper to look for the end of each bucket
        while at < n:
            index = ceil(log(values[at]) / ratio)
            end = max(at + 1, bisect_right(values, exp(min(index * ratio, _LARGEST)), at)) if many else at + 1
            counts[index] = counts.get(index, 0) + end - at
            at = end

    def merge(self, other: Sketch) -> None:
        """Add the counts of ``other``."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """The value at each of ``ranks`` (ascending, 0 to 1); NaN each when nothing was counted."""
        total = sum(self.counts.values())
        if not total:
            return [nan] * len(ranks)
        out: list[float] = []
        buckets = iter(sorted(self.counts.items()))
        index, seen = next(buckets)
        # The middle of a bucket in relative terms: the bound of the error holds on both sides.
        for rank in ranks:
            goal = rank * (total - 1) + 1
            while seen < goal - 1e-9:
                index, count = next(buckets)
                seen += count
            out.append(0.0 if index == self.LOWEST else exp(min((index - 0.5) * self.RATIO, _LARGEST)))
        return out

    def __len__(self) -> int:
        return len(self.counts)


class HistogramCell:
    """A distribution. ``observe`` only appends; the tick folds what was appended.

    Totals (``count``, ``sum``, ``buckets``) run from the beginning; ``mean``, ``p95`` and ``max`` speak of the
    last tick and are NaN when nothing was observed in it.
    """

    __slots__ = (
        "_append", "_interval", "_lock", "_top", "bounds", "bucket_counts", "count", "frozen", "max",
        "mean", "p95", "pending", "sum", "total", "weight",
    )  # fmt: skip

    def __init__(self, bounds: Sequence[float] = DEFAULT_BUCKETS) -> None:
        self.bounds = tuple(bounds)
        self.bucket_counts = [0] * (len(self.bounds) + 1)
        self.total = 0
        self.weight = 0.0
        #: (count, sum, counts by bucket) of the last tick: what a scrape shows, all of one moment.
        self.frozen: tuple[int, float, tuple[int, ...]] = (0, 0.0, tuple(self.bucket_counts))
        self.count, self.sum = _Slot(0.0), _Slot(0.0)
        self.mean, self.p95, self.max = _Slot(nan), _Slot(nan), _Slot(nan)
        #: What was observed and is not folded yet. Always the same list: hooks append finite floats to it, and call
        #: fold() when it is longer than MAX_PENDING.
        self.pending: list[float] = []
        self._append = self.pending.append
        self._interval = Sketch()
        self._top = -inf
        self._lock = threading.RLock()  # re-entrant: a signal handler may observe while this thread folds

    def observe(self, value: float) -> None:
        """Count ``value``. What is not a finite number is refused with MetricError."""
        if value.__class__ is not float:
            value = number_of(value, "a histogram")
        if not -inf < value < inf:
            raise MetricError(f"a histogram takes finite numbers, not {value!r}")
        self._append(value)
        if len(self.pending) >= MAX_PENDING:  # nobody ticks: stay bounded
            self.fold()

    def add(self, value: float) -> None:
        """Count ``value``, a finite float for certain: observe() without its checks, for hooks."""
        self._append(value)
        if len(self.pending) >= MAX_PENDING:
            self.fold()

    def time(self) -> _Timer:
        """Observe how many seconds a ``with`` block takes."""
        return _Timer(self)

    def fold(self) -> None:
        """Bring what was appended into the totals."""
        with self._lock:
            buffer = self.pending
            n = len(buffer)
            if not n:
                return
            chunk = buffer[:n]
            del buffer[:n]
            chunk.sort()
            below = 0
            counts = self.bucket_counts
            for i, bound in enumerate(self.bounds):
                at = bisect_right(chunk, bound, below)
                if at != below:
                    counts[i] += at - below
                    below = at
                if at == n:
                    break
            else:
                counts[-1] += n - below
            self.total += n
            self.weight += sum(chunk)
            self._interval.add(chunk)
            if chunk[-1] > self._top:
                self._top = chunk[-1]

    def freeze(self) -> Sketch | None:
        """Fold, and set the columns to this moment. Returns what was observed since the last freeze."""
        with self._lock:
            self.fold()
            interval = self._interval
            if not interval.counts:
                self.mean.value = self.p95.value = self.max.value = nan
                return None
            seen = self.total - self.frozen[0]
            self.mean.value = (self.weight - self.frozen[1]) / seen if seen else nan
            self.p95.value = min(interval.quantiles((0.95,))[0], self._top)
            self.max.value = self._top
            self.count.value, self.sum.value = self.total, self.weight
            self.frozen = (self.total, self.weight, tuple(self.bucket_counts))
            self._interval, self._top = Sketch(), -inf
            return interval

    def reinit_after_fork(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._lock = threading.RLock()


class _Timer:
    __slots__ = ("_cell", "_start")

    def __init__(self, cell: HistogramCell) -> None:
        self._cell = cell

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        self._cell.observe(time.perf_counter() - self._start)


Cell = CounterCell | GaugeCell | HistogramCell
C = TypeVar("C", CounterCell, GaugeCell, HistogramCell)


def cell_for(spec: Spec) -> Cell:
    """A new, empty cell for ``spec``; a gauge starts as a gap, for it has not been read yet."""
    if spec.kind == "counter":
        return CounterCell()
    if spec.kind == "gauge":
        return GaugeCell(nan)
    return HistogramCell()


def clean_label(value: object) -> str:
    """A label value as text of bounded length. Only str, int, float and bool are taken: the text of any other
    object might hold a password."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | float):
        text = str(value)
    else:
        raise MetricError(f"label values are str, int, float or bool, not {type(value).__name__}")
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"


def number_of(value: object, what: str) -> float:
    """``value`` as float: int, bool, Decimal, numpy's scalars; MetricError for text and all else."""
    convert = getattr(value, "__float__", None)
    if convert is not None:
        try:
            return float(convert())
        except (TypeError, ValueError, OverflowError):
            pass
    kind = "one so large" if isinstance(value, int) else type(value).__name__
    raise MetricError(f"{what} takes a number, not {kind}")


class Metric(Generic[C]):
    """A family of cells. Use Counter, Gauge or Histogram."""

    kind: ClassVar[Kind]

    def __init__(
        self, name: str, description: str = "", labels: Sequence[str] = (), *, unit: str = "", title: str = ""
    ) -> None:
        if not isinstance(name, str) or not _NAME.match(name):
            raise MetricError(
                f"bad metric name {name!r}: use letters, digits, '_', ':' and '.', not a digit first"
            )
        if isinstance(labels, str):
            raise MetricError(f"labels of {name!r} is a sequence of names: labels=[{labels!r}]")
        for label in labels:
            if not isinstance(label, str) or not _LABEL.match(label) or label.startswith("__"):
                raise MetricError(f"bad label name {label!r} of {name!r}: use letters, digits, '_' and '.'")
            if label in _RESERVED_LABELS:
                raise MetricError(f"label {label!r} of {name!r} is set by uno itself; choose another name")
        if len(set(labels)) != len(labels):
            raise MetricError(f"{name!r} names a label twice: {list(labels)}")
        self.spec = Spec(name, self.kind, description, unit, tuple(labels), title)
        self.overflowed = 0
        self._children: dict[tuple[str, ...], C] = {}
        self._lock = threading.Lock()
        self._watcher: Callable[[tuple[str, ...], C], None] | None = None

    @property
    def name(self) -> str:
        """The name as it was given."""
        return self.spec.name

    def _new(self) -> C:
        raise NotImplementedError

    def labels(self, *values: object, **named: object) -> C:
        """The cell of these label values, by position or by name. MetricError where they do not fit."""
        names = self.spec.labels
        if named:
            if values or named.keys() != set(names):
                raise MetricError(f"{self.name!r} has the labels {list(names)}, got {sorted(named)}")
            values = tuple(named[name] for name in names)
        elif len(values) != len(names):
            raise MetricError(
                f"{self.name!r} has {len(names)} labels {list(names)}, got {len(values)} values"
            )
        key = tuple(value if type(value) is str else clean_label(value) for value in values)
        return self._children.get(key) or self._add(key)

    def __getitem__(self, key: str | tuple[str, ...]) -> C:
        return self.labels(*((key,) if isinstance(key, str) else key))

    def cells(self) -> Iterator[tuple[tuple[str, ...], C]]:
        """Each combination of label values that was used, with its cell."""
        return iter(list(self._children.items()))

    def watch(self, watcher: Callable[[tuple[str, ...], C], None] | None) -> None:
        """Call ``watcher`` for each cell, those there are and those to come. One watcher at a time."""
        with self._lock:
            self._watcher = watcher
            present = list(self._children.items())
        if watcher is not None:
            for key, cell in present:
                watcher(key, cell)

    def _add(self, key: tuple[str, ...]) -> C:
        key = tuple(clean_label(value) for value in key)
        with self._lock:
            cell = self._children.get(key)
            if cell is not None:
                return cell
            if len(self._children) >= MAX_CHILDREN:  # unbounded label values must not become unbounded memory
                self.overflowed += 1
                key = (OVERFLOW,) * len(key)
                cell = self._children.get(key)
                if cell is not None:
                    return cell
            cell = self._children[key] = self._new()
            watcher = self._watcher
        if watcher is not None:
            watcher(key, cell)
        return cell

    def _only(self) -> C:
        cell = self._children.get(())
        if cell is not None:
            return cell
        if self.spec.labels:
            names = ", ".join(f"{name}=..." for name in self.spec.labels)
            raise MetricError(f"{self.name!r} has labels: choose a series with .labels({names}) first")
        return self._add(())

    def reinit_after_fork(self) -> None:
        """Replace the locks in a forked child."""
        self._lock = threading.Lock()


class Counter(Metric[CounterCell]):
    """Something that is counted: ``Counter("orders").inc()``, ``c.labels("GET").inc(2)``."""

    kind = "counter"

    def _new(self) -> CounterCell:
        return CounterCell()

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount`` to the series without labels."""
        self._only().inc(amount)


class Gauge(Metric[GaugeCell]):
    """Something that rises and falls: ``Gauge("in_stock").set(12)``."""

    kind = "gauge"

    def _new(self) -> GaugeCell:
        return GaugeCell()

    def set(self, value: float) -> None:
        """Store ``value`` in the series without labels."""
        self._only().set(value)

    def inc(self, amount: float = 1) -> None:
        """Add ``amount`` to the series without labels."""
        self._only().inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Subtract ``amount`` from the series without labels."""
        self._only().dec(amount)

    def track(self) -> _Track:
        """Count what is inside a ``with`` block, in the series without labels."""
        return self._only().track()


class Histogram(Metric[HistogramCell]):
    """A distribution: ``Histogram("wait", unit="s").observe(0.2)``, ``with h.time(): ...``.

    ``buckets`` are the upper bounds that Prometheus sees; quantiles on pages and in reports come from a finer
    sketch and do not depend on them.
    """

    kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        title: str = "",
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> None:
        super().__init__(name, description, labels, unit=unit, title=title)
        self._bounds = _bounds(name, buckets)

    def _new(self) -> HistogramCell:
        return HistogramCell(self._bounds)

    def observe(self, value: float) -> None:
        """Count ``value`` in the series without labels."""
        self._only().observe(value)

    def time(self) -> _Timer:
        """Time a ``with`` block, in the series without labels."""
        return self._only().time()


def _bounds(name: str, buckets: Sequence[float]) -> tuple[float, ...]:
    """The finite upper bounds; the last may be infinite, which is always there."""
    if not isinstance(buckets, Iterable):
        raise MetricError(f"buckets of {name!r} is a sequence of numbers, not {type(buckets).__name__}")
    bounds = [number_of(bound, f"a bucket of {name!r}") for bound in buckets]
    if bounds and bounds[-1] == inf:
        bounds.pop()
    if not bounds or not all(map(isfinite, bounds)) or any(not a < b for a, b in pairwise(bounds)):
        raise MetricError(
            f"buckets of {name!r} are finite ascending numbers, for example [0.1, 0.5, 1], not {bounds}"
        )
    return tuple(bounds)


def metric_of(spec: Spec) -> Counter | Gauge | Histogram:
    """A metric with the definition ``spec``."""
    make: type[Counter] | type[Gauge] | type[Histogram]
    make = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[spec.kind]  # type: ignore[assignment]
    return make(spec.name, spec.description, spec.labels, unit=spec.unit, title=spec.title)
