"""What is a metric, and how does an application record to it?

A metric is a family of cells, one for each combination of label values: a dict that makes what it misses. Recording
touches the cell only, without a lock; cells.py says why that is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice, pairwise
from keyword import iskeyword
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar

from uno.core.masking import masked
from uno.core.monitoring.buckets import Distribution as Distribution
from uno.core.monitoring.buckets import NativeBuckets as NativeBuckets
from uno.core.monitoring.buckets import Sketch as Sketch
from uno.core.monitoring.cells import DEFAULT_BUCKETS as DEFAULT_BUCKETS
from uno.core.monitoring.cells import HAS_GIL
from uno.core.monitoring.cells import MAX_PENDING as MAX_PENDING
from uno.core.monitoring.cells import CounterCell as CounterCell
from uno.core.monitoring.cells import Exemplar as Exemplar
from uno.core.monitoring.cells import GaugeCell as GaugeCell
from uno.core.monitoring.cells import HistogramCell as HistogramCell
from uno.core.monitoring.cells import MetricError as MetricError
from uno.core.monitoring.cells import number_of as number_of
from uno.core.monitoring.wrapping import Around
from uno.core.records import NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
#: How the gauges of several workers become one: their sum, the largest, the smallest, or one series for each.
Merge = Literal["sum", "max", "min", "worker"]

MAX_CHILDREN = 1_000
MAX_LABEL_LENGTH = 200
#: Upper bounds of a histogram: each is a line of every series.
MAX_BUCKETS = 500
OVERFLOW = "_overflow"
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:.]*\Z")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_RESERVED_LABELS = frozenset(("resource", "le", "quantile"))


class Spec(NamedTuple):
    """What a metric is: its definition without any value.

    ``name`` is the model's name (dots for standard metrics, verbatim for the application's own), ``unit`` is
    UCUM ("s", "By", "1", "{connection}"), ``title`` the words that a page shows, ``merge`` how gauges of several
    workers become one.
    """

    name: str
    kind: Kind
    description: str = ""
    unit: str = ""
    labels: tuple[str, ...] = ()
    title: str = ""
    merge: Merge = "sum"


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
        text = str.__str__(value)  # plain, also of an enum or of a class with a __str__ of its own
    elif isinstance(value, int | float):
        text = str(value)
    else:
        raise MetricError(f"label values are str, int, float or bool, not {type(value).__name__}")
    text = masked(text)
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"


class _Missing:
    """Stands for a label that was not given."""


_MISSING = _Missing()


class Metric(dict[Any, C]):
    """A family of cells. Use Counter, Gauge or Histogram.

    ``max_children`` bounds the combinations of label values; what comes beyond shares one series whose labels are all
    "_overflow", and is counted in ``overflowed``. Raises MetricError for names and labels that cannot be.
    """

    kind: ClassVar[Kind]
    spec: Spec
    #: Uses of label values beyond ``max_children``.
    overflowed: int
    _max: int
    __slots__ = ("__weakref__", "_cell", "_forget", "_max", "_watcher", "labels", "overflowed", "spec")

    if TYPE_CHECKING:

        def labels(self, *values: object, **named: object) -> C:
            """The cell of these label values, by position or by name. MetricError where they do not fit."""

    def __init__(
        self,
        name: str,
        description: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        title: str = "",
        max_children: int = MAX_CHILDREN,
        merge: Merge = "sum",
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not _NAME.match(name):
            raise MetricError(
                f"bad metric name {name!r}: use letters, digits, '_', ':' and '.', not a digit first"
            )
        for what, text in (("description", description), ("unit", unit), ("title", title)):
            if not isinstance(text, str):
                raise MetricError(f"the {what} of {name!r} is text, not {type(text).__name__}")
        if isinstance(labels, str):
            raise MetricError(f"labels of {name!r} is a sequence of names: labels=[{labels!r}]")
        if not isinstance(labels, Sequence):
            raise MetricError(f"labels of {name!r} is a sequence of names, not {type(labels).__name__}")
        for label in labels:
            if not isinstance(label, str) or not _LABEL.match(label) or label.startswith("__"):
                raise MetricError(f"bad label name {label!r} of {name!r}: use letters, digits, '_' and '.'")
            if label in _RESERVED_LABELS:
                raise MetricError(f"label {label!r} of {name!r} is set by uno itself; choose another name")
        if len(set(labels)) != len(labels):
            raise MetricError(f"{name!r} names a label twice: {list(labels)}")
        if not isinstance(max_children, int) or max_children < 1:
            raise MetricError(f"max_children of {name!r} is a whole number from 1, not {max_children!r}")
        if merge not in ("sum", "max", "min", "worker"):
            raise MetricError(f"merge of {name!r} is 'sum', 'max', 'min' or 'worker', not {merge!r}")
        if merge == "worker" and "worker" in labels:
            raise MetricError(
                f"merge='worker' of {name!r} sets the label 'worker' itself; choose another name"
            )
        self.spec = Spec(name, self.kind, description, unit, tuple(labels), title, merge)
        self.overflowed = 0
        self._max = max_children
        self._watcher: Callable[[tuple[str, ...], C], None] | None = None
        self._forget: Callable[[Mapping[tuple[str, ...], C]], None] | None = None
        self._cell: C | None = None  # of a metric without labels
        self.labels = _labels_maker(self.spec.labels)(self)  # type: ignore[method-assign]

    @property
    def name(self) -> str:
        """The name as it was given."""
        return self.spec.name

    def _new(self) -> C:
        raise NotImplementedError

    # Methods of dict would let a series be lost; two metrics are the same when they are one.
    def _closed(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("series come from labels() or [...], go by remove() or clear(), and are not copied")

    __setitem__ = __delitem__ = update = pop = popitem = setdefault = copy = _closed
    __ior__ = __or__ = __ror__ = __reduce_ex__ = _closed
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.name!r})"

    def _only(self) -> C:
        """The cell of a metric without labels."""
        if self.spec.labels:
            names = ", ".join(f"{name}=..." for name in self.spec.labels)
            raise MetricError(f"{self.spec.name!r} has labels: choose a series with .labels({names}) first")
        cell = self._cell
        if cell is None:
            self._cell = cell = self[()]
        return cell

    def __missing__(self, key: object) -> C:
        names = self.spec.labels
        values = key if isinstance(key, tuple) else (key,)
        if len(values) != len(names) or _MISSING in values:
            given = sum(value is not _MISSING for value in values)
            raise MetricError(f"{self.spec.name!r} has {len(names)} labels {list(names)}, got {given} values")
        plain = self._plain(values)
        return self._find(plain[0] if len(names) == 1 else plain)

    def _plain(self, values: Iterable[object]) -> tuple[str, ...]:
        try:
            return tuple(map(clean_label, values))
        except MetricError as error:
            raise MetricError(f"{self.spec.name!r}: {error}") from None

    def _find(self, key: str | tuple[str, ...]) -> C:
        cell = self.get(key)
        if cell is not None:
            return cell
        if len(self) >= self._max:  # unbounded label values must not become unbounded memory
            self.overflowed += 1
            if self.overflowed == 1:
                import logging

                logging.getLogger("uno.metrics").warning(
                    "%s has %d series: further ones share the series %r", self.spec.name, self._max, OVERFLOW
                )
            key = OVERFLOW if isinstance(key, str) else (OVERFLOW,) * len(key)
        mine = self._new()
        cell = dict.setdefault(self, key, mine)  # one step: all threads get the same cell
        watcher = self._watcher
        if watcher is not None and cell is mine:
            labels = (key,) if isinstance(key, str) else key
            watcher(labels, cell)
            forget = self._forget
            if forget is not None and self.get(key) is not cell:  # it was removed before the watcher knew it
                forget({labels: cell})
        return cell

    def cells(self) -> Iterator[tuple[tuple[str, ...], C]]:
        """Each combination of label values that was used, with its cell."""
        return iter([((key,) if isinstance(key, str) else key, cell) for key, cell in list(self.items())])

    def watch(
        self,
        watcher: Callable[[tuple[str, ...], C], None] | None,
        forget: Callable[[Mapping[tuple[str, ...], C]], None] | None = None,
    ) -> None:
        """Call ``watcher`` for each cell, those there are and those to come, and ``forget`` with those that were
        removed. One watcher at a time."""
        self._watcher, self._forget = watcher, forget
        if watcher is not None:
            for key, cell in self.cells():
                watcher(key, cell)

    # -- series that will not come again ---------------------------------------------------------------

    def remove(self, *values: object) -> None:
        """Forget the series of these label values; nothing happens where there is none.

        Who kept its cell, or a method of it, records to nobody. The same labels begin a new series later on, a
        counter's at zero. Raises MetricError for labels that do not fit, and for a metric without labels.
        """
        names = self._removable()
        if len(values) != len(names):
            raise MetricError(f"{self.spec.name!r} has {len(names)} labels {names}, got {len(values)} values")
        self._remove([self._plain(values)])

    def remove_by_labels(self, labels: Mapping[str, object]) -> None:
        """Forget all series with these label values, by name, whatever their other labels are; see remove.

        Nothing happens where ``labels`` is empty: clear() forgets all.
        """
        names = self._removable()
        if not isinstance(labels, Mapping):
            raise MetricError(f"remove_by_labels takes labels by name, {{{names[0]!r}: ...}}")
        if not labels.keys() <= set(names):
            raise MetricError(f"{self.spec.name!r} has the labels {names}, got {sorted(labels)}")
        wanted = list(zip(map(names.index, labels), self._plain(labels.values()), strict=True))
        if wanted:
            self._remove([key for key, _ in self.cells() if all(key[at] == text for at, text in wanted)])

    def clear(self) -> None:
        """Forget all series; see remove. A metric without labels keeps its one."""
        if self.spec.labels:
            self._remove([key for key, _ in self.cells()])

    def _removable(self) -> list[str]:
        if not self.spec.labels:
            raise MetricError(f"{self.spec.name!r} has no labels: its one series is not removed")
        return list(self.spec.labels)

    def _remove(self, keys: Iterable[tuple[str, ...]]) -> None:
        removed: dict[tuple[str, ...], C] = {}
        for key in keys:
            cell = dict.pop(self, key[0] if len(key) == 1 else key, None)
            if cell is not None:
                removed[key] = cell
        forget = self._forget
        if forget is not None and removed:
            forget(removed)

    def reinit_after_fork(self) -> None:
        """Nothing: there is no lock that another thread of the parent could have held."""


@lru_cache(256)
def _labels_maker(names: tuple[str, ...]) -> Callable[[Metric[Any]], Callable[..., Any]]:
    """What makes a metric's ``labels``: a function whose parameters are the labels, so that Python itself sorts the
    arguments. Names that cannot be parameters are sorted here."""
    if not names or not all(name.isidentifier() and not iskeyword(name) for name in names):
        return lambda metric: partial(_labels, metric)
    # Names were checked: identifiers, not beginning with two underscores.
    parameters = ", ".join(f"{name}=__missing" for name in names)
    key = names[0] if len(names) == 1 else ", ".join(names)
    source = (
        "def make(__metric):\n"
        f"    def labels({parameters}):\n"
        "        try:\n"
        f"            return __metric[{key}]\n"
        "        except TypeError:\n"
        f"            __unhashable(__metric, ({key},))\n"
        "            raise\n"
        "    labels.__qualname__ = __called(__metric)\n"
        "    return labels\n"
    )
    space: dict[str, Any] = {"__missing": _MISSING, "__unhashable": _unhashable, "__called": _called}
    exec(source, space)
    made: Callable[[Metric[Any]], Callable[..., Any]] = space["make"]
    return made


def _called(metric: Metric[Any]) -> str:
    """What ``labels`` is called where Python itself refuses its arguments: with a TypeError that begins with this."""
    names = ", ".join(metric.spec.labels)
    return f"{metric.spec.name!r} has the labels ({names}), each given once, by position or by name: labels"


def _unhashable(metric: Metric[Any], values: tuple[object, ...]) -> None:
    """MetricError where a label value is what cannot even be looked up."""
    try:
        hash(values)
    except TypeError:
        metric._plain(values)
        raise MetricError(f"{metric.spec.name!r}: text that cannot be looked up is no label value") from None


def _labels(metric: Metric[Any], *values: object, **named: object) -> Any:
    names = metric.spec.labels
    if named:
        if values or named.keys() != set(names):
            raise MetricError(f"{metric.spec.name!r} has the labels {list(names)}, got {sorted(named)}")
        values = tuple(named[name] for name in names)
    try:
        return metric[values]
    except TypeError:
        _unhashable(metric, values)
        raise


class Counter(Metric[CounterCell]):
    """Something that is counted: ``Counter("orders").inc()``, ``c["GET", "/"].inc(2)``, ``c.labels(code="200").inc()``.

    A series is there from its first use on; ``inc(0)`` shows it at zero.
    """

    kind = "counter"
    __slots__ = ()

    def _new(self) -> CounterCell:
        return CounterCell()

    def inc(self, amount: float | None = None, exemplar: Mapping[str, str] | None = None) -> None:
        """Add ``amount`` (1) to the series without labels; see CounterCell.inc."""
        if amount is None and exemplar is None:
            try:
                self._cell.value += 1.0  # type: ignore[union-attr]
            except AttributeError:  # its first use, or it has labels
                self._only().inc()
            return
        self._only().inc(amount, exemplar)

    def inc_mapped(self, amount: float | None = None, exemplar: Mapping[str, str] | None = None) -> None:
        """What ``inc`` does among several workers, see workers/cells.py."""
        cell = self._cell
        if cell is None or amount is not None or exemplar is not None:
            self._only().inc(amount, exemplar)
            return
        cell.value += 1.0
        cell._map[cell._at] = cell.value

    def count_exceptions(self, *kinds: type[BaseException]) -> Around:
        """Count what a ``with`` block or a decorated function raises; ``kinds`` chooses (default: Exception)."""
        return self._only().count_exceptions(*kinds)


class Gauge(Metric[GaugeCell]):
    """Something that rises and falls: ``Gauge("in_stock").set(12)``.

    It is a gap until it is set. ``merge``: how the values of several workers become one, "sum", "max", "min", or
    "worker" for a series each.
    """

    kind = "gauge"
    __slots__ = ()

    def _new(self) -> GaugeCell:
        return GaugeCell()

    def set(self, value: float) -> None:
        """Store ``value`` in the series without labels; see GaugeCell.set."""
        if value.__class__ is not float:
            value = number_of(value, "a gauge")
        try:
            self._cell.value = value  # type: ignore[union-attr]
        except AttributeError:
            self._only().value = value

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount`` to the series without labels."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Subtract ``amount`` from the series without labels."""
        self._only().dec(amount)

    def set_to_current_time(self) -> None:
        """Store the present time in Unix seconds."""
        self._only().set_to_current_time()

    def track(self) -> Around:
        """Count what is inside a ``with`` block or a decorated function."""
        return self._only().track()

    def time(self) -> Around:
        """Store how many seconds a ``with`` block or a call of a decorated function took."""
        return self._only().time()


class Histogram(Metric[HistogramCell]):
    """A distribution: ``Histogram("wait", unit="s").observe(0.2)``, ``with h.time(): ...``.

    ``buckets`` are the upper bounds that Prometheus sees, None for none; ``native``: exponential buckets too, which
    need no bounds. Quantiles on pages and in reports come from a finer sketch and do not depend on either.
    """

    kind = "histogram"
    __slots__ = ("_bounds", "_native", "observe")

    if TYPE_CHECKING:

        def observe(self, value: float) -> None:
            """Count ``value`` in the series without labels; what is not a finite number is left out and counted."""

    def __init__(
        self,
        name: str,
        description: str = "",
        labels: Sequence[str] = (),
        *,
        unit: str = "",
        title: str = "",
        buckets: Sequence[float] | None = DEFAULT_BUCKETS,
        native: bool = False,
        max_children: int = MAX_CHILDREN,
    ) -> None:
        super().__init__(name, description, labels, unit=unit, title=title, max_children=max_children)
        if buckets is None and not native:
            raise MetricError(f"{name!r} needs buckets, or native=True for exponential ones")
        self._bounds = None if buckets is None else _bounds(name, buckets)
        self._native = bool(native)
        self.observe = self._first  # type: ignore[method-assign]

    def _first(self, value: float) -> None:
        """The first use; afterwards ``observe`` is the cell's own. A method that was bound before comes here."""
        cell = self._only()
        self.observe = cell.observe  # type: ignore[method-assign]
        cell.observe(value)

    def observe_exemplar(self, value: float, exemplar: Mapping[str, str]) -> None:
        """Count ``value`` and keep it as an example of its bucket; see HistogramCell.observe_exemplar."""
        self._only().observe_exemplar(value, exemplar)

    def time(self, exemplar: Mapping[str, str] | None = None) -> Around:
        """Observe how many seconds a ``with`` block or a call of a decorated function takes."""
        return self._only().time(exemplar)

    def _new(self) -> HistogramCell:
        cell = HistogramCell(self._bounds, self._native)
        if not self.spec.labels:  # its only one: worth the memory
            cell.warm()
        return cell

    @property
    def refused(self) -> int:
        """Observations that were left out, for they were not finite numbers."""
        return sum(cell.refused for cell in list(self.values()))


def _bounds(name: str, buckets: object) -> tuple[float, ...]:
    """The finite upper bounds; the last may be infinite, which is always there."""
    if not isinstance(buckets, Iterable):
        raise MetricError(f"buckets of {name!r} is a sequence of numbers, not {type(buckets).__name__}")
    bounds = [number_of(bound, f"a bucket of {name!r}") for bound in islice(buckets, MAX_BUCKETS + 2)]
    if bounds and bounds[-1] == inf:
        bounds.pop()
    if len(bounds) > MAX_BUCKETS:
        raise MetricError(
            f"{name!r} has more than {MAX_BUCKETS} buckets: choose fewer, or native=True for exponential ones"
        )
    if not bounds or not all(map(isfinite, bounds)) or any(not a < b for a, b in pairwise(bounds)):
        raise MetricError(
            f"buckets of {name!r} are finite ascending numbers, for example [0.1, 0.5, 1], not {bounds}"
        )
    return tuple(bounds)


def metric_of(spec: Spec) -> Counter | Gauge | Histogram:
    """A metric with the definition ``spec``."""
    make: type[Counter] | type[Histogram]
    if spec.kind == "gauge":
        return Gauge(
            spec.name, spec.description, spec.labels, unit=spec.unit, title=spec.title, merge=spec.merge
        )
    make = Counter if spec.kind == "counter" else Histogram
    return make(spec.name, spec.description, spec.labels, unit=spec.unit, title=spec.title)


if not HAS_GIL:  # the cells hold a lock then; what is quick because it goes round them must not

    def _inc(self: Counter, amount: float | None = None, exemplar: Mapping[str, str] | None = None) -> None:
        self._only().inc(amount, exemplar)

    def _set(self: Gauge, value: float) -> None:
        self._only().set(value)

    Counter.inc, Gauge.set = _inc, _set  # type: ignore[method-assign]
