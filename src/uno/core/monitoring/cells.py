"""Where does one number live, and how is it recorded without a lock?

What makes recording exact under the GIL, with threads, signal handlers, finalisers and forks in between, is one
fact of CPython: it hands over to somebody else only after a call, at a jump backwards and at the start of a
function. Three steps follow from it, and nothing else here touches shared state:

- ``slot += operand`` and ``slot = operand``, where the operand is a float (``inc``, ``set``), also with a comparison
  of floats in between;
- compare and replace: ``if self.totals is old: self.totals = new``, tried again when somebody was faster. What is
  replaced is never changed, so that who reads has count, sum and buckets of one moment;
- several C calls in one, by ``map`` (:func:`at_once`). The first of them alone may create containers: 3.11 runs the
  garbage collector, and so finalisers, whenever one is created.

tests/unit/test_exactness.py takes the methods apart and fails where that no longer holds. On an interpreter without
the GIL the same methods run under a lock (:func:`lock_everything`).
"""

from __future__ import annotations

import os
import sys
import time
from _thread import _count as thread_count
from _thread import get_ident
from _weakref import ref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import repeat, starmap
from math import inf, isfinite, nan
from operator import add, call
from typing import TYPE_CHECKING, Any, ClassVar

from uno.core.monitoring.buckets import (
    FINEST,
    ZERO_THRESHOLD,
    Distribution,
    NativeBuckets,
    Sketch,
    Summary,
    loaded_numpy,
    native_merge,
    summarize,
)
from uno.core.monitoring.wrapping import Around
from uno.core.records import NamedTuple

#: Seconds; wide enough for a cache hit and for a slow report.
DEFAULT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: A histogram that has so many observations waiting gets a ring.
WARM = 64
#: Observations that a ring holds; the first rings of a process are large, so that all of them stay small together.
LARGE_RING, SMALL_RING, LARGE_RINGS = 4_096, 512, 64
MAX_PENDING = LARGE_RING
MOST_PARTS = 16
MAX_EXEMPLAR = 128
HAS_GIL: bool = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
_MAX = sys.float_info.max


class MetricError(ValueError):
    """A metric was defined or used in a way that cannot work; the message names the fix."""


class Exemplar(NamedTuple):
    """One event that stands for many: its labels (a trace's id), value, and Unix seconds."""

    labels: tuple[tuple[str, str], ...]
    value: float
    time: float


def at_once(*calls: Callable[[], Any]) -> tuple[Any, ...]:
    """Make calls of C functions with nobody in between; all but the first must not create containers."""
    return tuple(map(call, calls))


def number_of(value: object, what: str) -> float:
    """``value`` as float: int, bool, Decimal, numpy's scalars; MetricError for text and all else."""
    try:
        if value.__class__ is int:
            return float(value)
        convert = getattr(value, "__float__", None)
        if convert is not None:
            return float(convert())
    except (TypeError, ValueError, OverflowError):
        pass
    kind = "one so large" if isinstance(value, int) else type(value).__name__
    raise MetricError(f"{what} takes a number, not {kind}")


def exemplar_of(labels: Mapping[str, str], value: float) -> Exemplar:
    """An exemplar of now. MetricError unless the labels are text of at most 128 characters together."""
    if not isinstance(labels, Mapping):
        raise MetricError('an exemplar is given by its labels: {"trace_id": ...}')
    pairs = tuple(labels.items())
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise MetricError("an exemplar's labels are text")
    if sum(len(text) for pair in pairs for text in pair) > MAX_EXEMPLAR:
        raise MetricError(f"an exemplar's labels have {MAX_EXEMPLAR} characters at most, names counted in")
    return Exemplar(pairs, value, time.time())


# -- counters and gauges -----------------------------------------------------------------------------------


#: Where a counter keeps its total that is in no worker's shard.
NOWHERE = memoryview(bytearray(8)).cast("d")


class CounterCell:
    """A number that only grows. ``created``: Unix seconds when it began at zero; ``exemplar``: the last one given."""

    __slots__ = ("_at", "_map", "_totals", "created", "exemplar", "value")

    def __init__(self) -> None:
        self.value: float = 0.0
        self._map, self._at = NOWHERE, 0  # where several workers keep the total too
        self.created = time.time()
        self.exemplar: Exemplar | None = None
        self._totals: list[float] | None = None  # before the last reset, last given; None: amounts are added

    def inc(self, amount: float | None = None, exemplar: Mapping[str, str] | None = None) -> None:
        """Add ``amount`` (1); negative, NaN and infinite are refused with MetricError before anything changes.

        ``exemplar``: labels of the event that did it, {"trace_id": ...}.
        """
        if amount is None and exemplar is None:
            self.value += 1.0
            return
        if amount.__class__ is not float:
            amount = 1.0 if amount is None else number_of(amount, "a counter")
        if amount >= 0.0:
            kept = exemplar_of(exemplar, amount) if exemplar else None
            total = self.value + amount
            if total <= _MAX:
                self.value = total
                if kept is not None:
                    self.exemplar = kept
                return
        self._refuse(amount)

    def inc_mapped(self, amount: float | None = None, exemplar: Mapping[str, str] | None = None) -> None:
        """What ``inc`` does among several workers, see workers/cells.py. Load and store of the total are one step."""
        if amount is None and exemplar is None:
            self.value += 1.0
            self._map[self._at] = self.value
            return
        if amount.__class__ is not float:
            amount = 1.0 if amount is None else number_of(amount, "a counter")
        if amount >= 0.0:
            kept = exemplar_of(exemplar, amount) if exemplar else None
            total = self.value + amount
            if total <= _MAX:
                self.value = total
                self._map[self._at] = total
                if kept is not None:
                    self.exemplar = kept
                return
        self._refuse(amount)

    def _refuse(self, amount: float) -> None:
        """MetricError that says why ``amount`` cannot be added; none while the total is not known."""
        if not 0.0 <= amount <= _MAX:
            raise MetricError(
                f"a counter only grows, and by finite amounts: cannot add {amount!r}; use a Gauge for values that fall"
            )
        if self.value == self.value:
            raise MetricError(f"a counter of {self.value!r} cannot take {amount!r}: no float is that large")

    def start_anew(self) -> None:
        """Count from zero, in a forked child whose parent keeps what was counted. Totals that others count go on."""
        self.created, self.exemplar = time.time(), None
        if self._totals is not None:
            last = self._totals[1]
            self._totals = [-last, last]
        if self.value == self.value:
            self.value = 0.0

    @property
    def given(self) -> bool:
        """Whether totals are given, rather than amounts added."""
        return self._totals is not None

    def set_total(self, total: float) -> None:
        """Take a total that somebody else counts; a fall means that their count began anew at zero."""
        total = float(total)
        if not (isfinite(total) and total >= 0):
            raise MetricError(f"a counter's total is a number from zero up, not {total!r}")
        before, last = self._totals or (0.0, 0.0)
        if total < last:
            before += last
        self._totals = [before, total]
        self.value = before + total

    def gap(self) -> None:
        """The total is not known at present; the next one given ends the gap."""
        self._totals = self._totals or [0.0, 0.0]
        self.value = nan

    def count_exceptions(self, *kinds: type[BaseException]) -> Around:
        """Count what a ``with`` block or a decorated function raises; ``kinds`` chooses (default: Exception)."""
        return _Exceptions(self, kinds or (Exception,))


class GaugeCell:
    """A number that rises and falls; NaN means that there is nothing to tell at present."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def set(self, value: float) -> None:
        """Store ``value``, NaN for a gap; MetricError where it is not a number."""
        if value.__class__ is not float:
            value = number_of(value, "a gauge")
        self.value = value

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``; MetricError for NaN and what is no number."""
        if amount.__class__ is not float:
            amount = number_of(amount, "a gauge")
        if amount != amount:
            raise MetricError("a gauge cannot be changed by NaN; set(nan) makes a gap")
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Subtract ``amount``; as inc."""
        if amount.__class__ is not float:
            amount = number_of(amount, "a gauge")
        if amount != amount:
            raise MetricError("a gauge cannot be changed by NaN; set(nan) makes a gap")
        self.value -= amount

    def set_to_current_time(self) -> None:
        """Store the present time in Unix seconds."""
        self.value = time.time()

    def track(self) -> Around:
        """Count what is inside a ``with`` block or a decorated function."""
        return _Track(self)

    def time(self) -> Around:
        """Store how many seconds a ``with`` block or a call of a decorated function took."""
        return _Timer(self.set)


# -- what with blocks and decorators do --------------------------------------------------------------------


class _Track(Around):
    __slots__ = ("_cell",)

    def __init__(self, cell: GaugeCell) -> None:
        self._cell = cell

    def __enter__(self) -> _Track:
        self._cell.inc()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cell.dec()

    def _again(self) -> _Track:
        return self


class _Exceptions(Around):
    __slots__ = ("_cell", "_kinds")

    def __init__(self, cell: CounterCell, kinds: tuple[type[BaseException], ...]) -> None:
        self._cell, self._kinds = cell, kinds

    def __enter__(self) -> _Exceptions:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None and issubclass(kind, self._kinds):
            self._cell.inc()

    def _again(self) -> _Exceptions:
        return self


class _Timer(Around):
    __slots__ = ("_start", "_take")

    def __init__(self, take: Callable[[float], object]) -> None:
        self._take = take

    def __enter__(self) -> _Timer:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._take(time.perf_counter() - self._start)

    def _again(self) -> _Timer:
        return _Timer(self._take)


# -- histograms --------------------------------------------------------------------------------------------

#: What was taken out of a histogram and is not in its totals yet, and who took it: a forked child finishes it.
_FLYING: dict[int, tuple[HistogramCell, list[Any], int]] = {}


@lru_cache(256)
def _nothing(bounds: tuple[float, ...] | None, native: bool) -> Distribution:
    counts = () if bounds is None else (0,) * (len(bounds) + 1)
    return Distribution(0, 0.0, counts, NativeBuckets(FINEST, ZERO_THRESHOLD, 0, {}, {}) if native else None)


class _Slot:
    """One column of a histogram, read by the tick like any other cell."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


class _Live:
    """What a histogram has once a store ticks it: its columns, and what was observed since the last tick."""

    __slots__ = ("count", "frozen", "max", "mean", "p95", "parts", "sum")

    def __init__(self, totals: Distribution) -> None:
        self.count, self.sum = _Slot(totals.count), _Slot(totals.sum)
        self.mean, self.p95, self.max = _Slot(nan), _Slot(nan), _Slot(nan)
        self.frozen = totals
        self.parts: list[tuple[Sketch, float, int, float]] = []  # each with largest value, count, sum


class _Alarm:
    """The first elements of a full ring. A deque with a bound drops its oldest element for a new one: that is an alarm
    and never a value, and whoever pushed it out folds, before they go on. There are more of them than threads, each
    of which can be stopped just here."""

    __slots__ = ("_cell",)

    def __init__(self, cell: ref[HistogramCell]) -> None:
        self._cell = cell

    def __del__(self) -> None:
        cell = self._cell()
        if cell is not None:
            cell.fold()


class _Ring:
    """Observations that wait to be folded. ``items`` begins with alarms; ``spare`` are those for the next round."""

    __slots__ = ("cell", "items", "spare")
    made: ClassVar[int] = 0

    def __init__(self, cell: HistogramCell) -> None:
        large = _Ring.made < LARGE_RINGS
        _Ring.made += 1
        self.cell = ref(cell)
        wanted = self.wanted()
        size = LARGE_RING if large else SMALL_RING
        self.items: deque[Any] = deque((_Alarm(self.cell) for _ in range(wanted)), size)
        self.spare: list[_Alarm] | None = None

    def wanted(self) -> int:
        """How many alarms: one for each thread, and some for handlers that interrupt them."""
        return 8 + min(thread_count(), 120)

    def take(self, pending: list[Any], flight: list[Any]) -> None:
        """Move all that waits into ``flight``."""
        ring, spare = self.items, self.spare
        self.spare = None  # nobody comes in between: two never have the same
        if spare is None:
            spare = []
        for _ in range(self.wanted() - len(spare)):
            spare.append(_Alarm(self.cell))
        rearm = map(ring.append, starmap(spare.pop, repeat(())))
        at_once(
            partial(flight.extend, ring),
            ring.clear,
            partial(flight.extend, pending),
            pending.clear,
            *repeat(rearm.__next__, len(spare)),
        )
        at = 0
        for item in flight:
            if item.__class__ is not _Alarm:
                break
            at += 1
        spare.extend(flight[:at])
        del flight[:at]
        self.spare = spare


class HistogramCell:
    """A distribution. ``observe`` only writes down; folding, by the tick, a scrape, or by who observes when very much
    waits, brings it into ``totals``. What is not a finite number is left out then, and counted in ``refused``.

    ``created``: Unix seconds; ``exemplars``: the last one for each classic bucket, by its place.
    ``mean``, ``p95`` and ``max`` speak of the last tick and are NaN when nothing was observed in it.
    """

    __slots__ = (
        "__weakref__", "_append", "_live", "_ring", "bounds", "created", "exemplars", "pending", "refused", "totals",
    )  # fmt: skip

    def __init__(self, bounds: Sequence[float] | None = DEFAULT_BUCKETS, native: bool = False) -> None:
        self.bounds: tuple[float, ...] = () if bounds is None else tuple(bounds)
        #: All that was folded, from the beginning.
        self.totals = _nothing(None if bounds is None else self.bounds, native)
        self.created = time.time()
        self.exemplars: dict[int, Exemplar] | None = None
        self.refused = 0
        #: What was observed and is not folded yet, as long as it is little. Always the same list.
        self.pending: list[Any] = []
        self._ring: _Ring | None = None
        self._live: _Live | None = None

    def observe(self, value: float) -> None:
        """Count ``value``. Never raises: what is not a finite number is left out, and counted in ``refused``."""
        if self._ring is not None:  # this method was bound before there was one
            self._append(value)
            return
        pending = self.pending
        pending.append(value)
        if len(pending) >= WARM:
            self.warm()
            self.fold()

    add = observe

    def observe_exemplar(self, value: float, exemplar: Mapping[str, str]) -> None:
        """Count ``value`` and keep it as an example of its bucket, with labels: {"trace_id": ...}.

        MetricError for labels of more than 128 characters and for what is not a finite number.
        """
        value = number_of(value, "a histogram")
        if not -inf < value < inf:
            raise MetricError(f"a histogram takes finite numbers, not {value!r}")
        if exemplar:
            kept = exemplar_of(exemplar, value)
            if self.exemplars is None:
                self.exemplars = {}
            self.exemplars[bisect_left(self.bounds, value)] = kept
        self.observe(value)

    def time(self, exemplar: Mapping[str, str] | None = None) -> Around:
        """Observe how many seconds a ``with`` block or a call of a decorated function takes."""
        if exemplar is not None:
            return _Timer(partial(_observe_exemplar, self, exemplar))
        return _Timer(self.observe)

    def warm(self) -> None:
        """From now on ``observe`` is a C function: much is observed here. Does nothing where there is no GIL."""
        if self._ring is None and HAS_GIL:
            ring = _Ring(self)
            append = ring.items.append
            if self._ring is None:
                self._append = append
                self._ring = ring
            self.__class__ = WarmHistogramCell

    def fold(self) -> None:
        """Bring what was observed into the totals. Any thread may, several at once too."""
        pending, ring = self.pending, self._ring
        if not pending and (ring is None or ring.items[-1].__class__ is _Alarm):
            return
        flight: list[Any] = []
        key = id(flight)
        _FLYING[key] = self, flight, get_ident()
        if ring is None:
            at_once(partial(flight.extend, pending), pending.clear)
        else:
            ring.take(pending, flight)
        self._land(key, flight)

    def _land(self, key: int, flight: list[Any]) -> None:
        refused = 0
        live = self._live
        bounds, native, sketching = self.bounds, self.totals.native is not None, live is not None
        found: Summary | None = None
        try:
            total = float(sum(flight))
            if -inf < total < inf:
                np = loaded_numpy()
                found = summarize(flight, bounds, native=native, sketching=sketching, np=np)
        except Exception:  # noqa: BLE001 - text, an array, an object that compares in its own way
            pass
        if found is None:
            values = [value for value in map(_finite, flight) if value is not None]
            refused = len(flight) - len(values)
            total, found = sum(values), summarize(values, bounds, native=native, sketching=sketching)
        n = len(flight) - refused
        while True:
            totals = self.totals
            new = totals
            if n:
                counts = tuple(map(add, totals.counts, found.counts))
                merged = found.native and native_merge(totals.native, found.native)  # type: ignore[arg-type]
                new = Distribution(totals.count + n, totals.sum + total, counts, merged)
            # From here to the deletion nobody comes in between.
            if self.totals is totals:
                self.totals = new
                self.refused += refused
                del _FLYING[key]
                break
        if live is not None and n:
            live.parts.append((found.sketch, found.top, n, total))
            if len(live.parts) >= MOST_PARTS:  # nobody ticks: stay bounded
                live.parts.append(_join(at_once(live.parts.copy, live.parts.clear)[0]))

    def collect(self) -> Distribution:
        """All that was observed up to now, by whoever is not folding in this moment."""
        self.fold()
        return self.totals

    def start_anew(self) -> None:
        """Forget all that was observed, in a forked child whose parent keeps it."""
        self.fold()
        totals = self.totals
        self.totals = _nothing(self.bounds if totals.counts else None, totals.native is not None)
        self.created, self.exemplars = time.time(), None
        live = self._live
        if live is not None:
            live.parts.clear()
            live.frozen, live.count.value, live.sum.value = self.totals, 0.0, 0.0
            live.mean.value = live.p95.value = live.max.value = nan

    # -- what the tick needs ---------------------------------------------------------------------------

    def watched(self) -> _Live:
        """The columns; from the first call on, each tick tells of what was observed in it."""
        if self._live is None:
            self._live = _Live(self.totals)
        return self._live

    def freeze(self) -> Sketch | None:
        """Fold, and set the columns to this moment. Returns what was observed since the last freeze."""
        live = self._live or self.watched()
        self.fold()
        totals = self.totals
        if totals is not live.frozen:
            live.count.value, live.sum.value, live.frozen = totals.count, totals.sum, totals
        if not live.parts:
            if live.max.value == live.max.value:
                live.mean.value = live.p95.value = live.max.value = nan
            return None
        sketch, top, n, total = _join(at_once(live.parts.copy, live.parts.clear)[0])
        live.mean.value = total / n if n else nan
        live.p95.value = min(sketch.quantiles((0.95,))[0], top)
        live.max.value = top
        return sketch

    @property
    def frozen(self) -> Distribution:
        """All of the last tick: what a scrape shows."""
        return self.watched().frozen

    @property
    def count(self) -> _Slot:
        """The column of the number of observations."""
        return self.watched().count

    @property
    def sum(self) -> _Slot:
        """The column of their sum."""
        return self.watched().sum

    @property
    def mean(self) -> _Slot:
        """The column of the mean of the last tick."""
        return self.watched().mean

    @property
    def p95(self) -> _Slot:
        """The column of the 95th percentile of the last tick."""
        return self.watched().p95

    @property
    def max(self) -> _Slot:
        """The column of the largest observation of the last tick."""
        return self.watched().max


class WarmHistogramCell(HistogramCell):
    """A HistogramCell of which much was seen: ``observe`` is the ring's ``append``, kept in a slot."""

    __slots__ = ()
    if not TYPE_CHECKING:
        observe = add = HistogramCell._append


def _observe_exemplar(cell: HistogramCell, exemplar: Mapping[str, str], value: float) -> None:
    cell.observe_exemplar(value, exemplar)


def _finite(value: object) -> float | None:
    try:
        number = number_of(value, "a histogram")
    except Exception:  # noqa: BLE001 - whatever its __float__ raises
        return None
    return number if -inf < number < inf else None


def _join(parts: list[tuple[Sketch, float, int, float]]) -> tuple[Sketch, float, int, float]:
    if len(parts) == 1:
        return parts[0]
    sketch = Sketch()
    for part in parts:
        sketch.merge(part[0])
    return (
        sketch,
        max((part[1] for part in parts), default=nan),
        sum(part[2] for part in parts),
        sum(part[3] for part in parts),
    )


# -- fork, and interpreters without the GIL ----------------------------------------------------------------


def _after_fork() -> None:
    """In a forked child: bring into the totals what threads that are not here any more were about to."""
    me = get_ident()
    for key, (cell, flight, who) in list(_FLYING.items()):
        if who != me:
            flight[:] = [value for value in flight if value.__class__ is not _Alarm]
            cell._land(key, flight)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def lock_everything() -> None:
    """Let one lock guard all recording: for interpreters where ``+=`` on a slot is not exact."""
    from functools import wraps
    from threading import RLock

    lock = RLock()  # a signal handler may record while this thread does

    def guarded(method: Any) -> Any:
        @wraps(method)
        def held(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(*args, **kwargs)

        return held

    for cell, names in (
        (CounterCell, ("inc", "set_total", "gap")),
        (GaugeCell, ("set", "inc", "dec")),
        (HistogramCell, ("observe", "add", "observe_exemplar", "fold", "freeze")),
    ):
        for name in names:
            setattr(cell, name, guarded(getattr(cell, name)))
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


if not HAS_GIL:
    lock_everything()
