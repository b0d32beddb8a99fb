"""How is what was observed summed up? Classic buckets, native (exponential) ones, and sketches for quantiles."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, repeat
from math import ceil, exp, frexp, inf, ldexp, log, nan
from operator import sub, truediv
from typing import TYPE_CHECKING, Any, ClassVar

from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: So many observations at once are counted by numpy, see loaded_numpy().
MANY = 96
_CHUNK = 256
MOST_NATIVE = 160
FINEST, COARSEST = 5, -4
ZERO_THRESHOLD = 2.0**-128
_LARGEST = 709.78  # the logarithm of the largest float


class NativeBuckets(NamedTuple):
    """Exponential buckets: index ``i`` holds (base**(i-1), base**i] with base 2**(2**-schema); ``negative`` holds the
    mirror image. Values within ``zero_threshold`` of zero are in ``zero_count``. As in Prometheus' native histograms;
    OpenTelemetry's index is one less. Never changed after it was made.
    """

    schema: int
    zero_threshold: float
    zero_count: int
    positive: Mapping[int, int]
    negative: Mapping[int, int]


class Distribution(NamedTuple):
    """All of a histogram at one moment. ``counts`` are those of the classic buckets, one by one (not summed up), the
    last for everything above; () without classic buckets. Never changed after it was made.
    """

    count: int  # type: ignore[assignment]  # of observations; tuple's method is not missed
    sum: float
    counts: tuple[int, ...]
    native: NativeBuckets | None = None


# -- sketches ----------------------------------------------------------------------------------------------


class Sketch:
    """Counts by relative magnitude, from which any quantile can be told within 1 %.

    Logarithmic buckets with a ratio of 1.02, after DDSketch (Masson, Rim, Lee, VLDB 2019). Values at or below
    zero share the lowest bucket. Sketches of different times add up exactly. (The finest native buckets have a ratio
    of 1.022, which would be 1.1 %: that is why they are not the same.)
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
        if at == n:
            return
        if n - at < 128:
            for value in values[at:]:
                index = ceil(log(value) / ratio)
                counts[index] = counts.get(index, 0) + 1
            return
        span = (log(values[-1]) - log(values[at])) / ratio
        if n - at < 4 * span:
            rest = values[at:] if at else values
            for index, count in Counter(map(ceil, map(truediv, map(log, rest), repeat(ratio)))).items():
                counts[index] = counts.get(index, 0) + count
            return
        while at < n:  # few buckets for so many: look for the end of each
            index = ceil(log(values[at]) / ratio)
            end = max(at + 1, bisect_right(values, exp(min(index * ratio, _LARGEST)), at))
            counts[index] = counts.get(index, 0) + end - at
            at = end

    def merge(self, other: Sketch) -> None:
        """Add the counts of ``other``."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """The value at each of ``ranks`` (0 to 1); NaN each when nothing was counted."""
        places = sorted(self.counts)
        upto = list(accumulate(map(self.counts.__getitem__, places)))
        if not upto or not upto[-1]:
            return [nan] * len(ranks)
        out: list[float] = []
        # The middle of a bucket in relative terms: the bound of the error holds on both sides.
        for rank in ranks:
            index = places[bisect_left(upto, rank * (upto[-1] - 1) + 1 - 1e-9)]
            out.append(0.0 if index == self.LOWEST else exp(min((index - 0.5) * self.RATIO, _LARGEST)))
        return out

    def __len__(self) -> int:
        return len(self.counts)


# -- native buckets ----------------------------------------------------------------------------------------


@lru_cache(8)
def _fractions(schema: int) -> list[float]:
    return [2.0 ** (i / 2**schema) / 2 for i in range(2**schema)]


def native_index(value: float, schema: int) -> int:
    """The bucket of ``value`` (> 0), exact at the bounds. After prometheus/client_golang, histogram.go."""
    fraction, power = frexp(value)
    if schema > 0:
        return bisect_left(_fractions(schema), fraction) + ((power - 1) << schema)
    return ((power - (fraction == 0.5)) + (1 << -schema) - 1) >> -schema


def native_bound(index: int, schema: int) -> float:
    """The upper bound of a bucket; inf beyond the largest float."""
    try:
        if schema > 0:
            at = index & ((1 << schema) - 1)
            return ldexp(_fractions(schema)[at], (index >> schema) + 1)
        return ldexp(1.0, index << -schema)
    except OverflowError:
        return inf


def _halve(counts: Mapping[int, int]) -> dict[int, int]:
    out: dict[int, int] = {}
    for index, count in counts.items():
        at = (index + 1) >> 1
        out[at] = out.get(at, 0) + count
    return out


def native_merge(one: NativeBuckets, two: NativeBuckets) -> NativeBuckets:
    """The sum of two, at the finest schema that keeps it within 160 buckets."""
    schema = min(one.schema, two.schema)
    sides: list[dict[int, int]] = []
    for part in (3, 4):
        total: dict[int, int] = {}
        for buckets in (one, two):
            counts: Mapping[int, int] = buckets[part]  # type: ignore[assignment]
            for _ in range(buckets.schema - schema):
                counts = _halve(counts)
            for index, count in counts.items():
                total[index] = total.get(index, 0) + count
        sides.append(total)
    while len(sides[0]) + len(sides[1]) > MOST_NATIVE and schema > COARSEST:
        schema -= 1
        sides = [_halve(side) for side in sides]
    threshold = max(one.zero_threshold, two.zero_threshold)
    return NativeBuckets(schema, threshold, one.zero_count + two.zero_count, *sides)


def native_of(ordered: Sequence[float], schema: int = FINEST) -> NativeBuckets:
    """Native buckets of finite numbers in ascending order."""
    low, high = bisect_left(ordered, -ZERO_THRESHOLD), bisect_right(ordered, ZERO_THRESHOLD)
    positive = _run(ordered, high, schema)
    negative = _run([-value for value in reversed(ordered[:low])], 0, schema) if low else {}
    return NativeBuckets(schema, ZERO_THRESHOLD, high - low, positive, negative)


def _run(ordered: Sequence[float], at: int, schema: int) -> dict[int, int]:
    counts: dict[int, int] = {}
    n = len(ordered)
    while at < n:
        index = native_index(ordered[at], schema)
        end = bisect_right(ordered, native_bound(index, schema), at)
        counts[index] = end - at
        at = end
    return counts


# -- classic buckets ----------------------------------------------------------------------


def count_in(values: Sequence[float], bounds: tuple[float, ...]) -> list[int]:
    """Finite numbers, in any order, counted by upper bound."""
    counts = [0] * (len(bounds) + 1)
    for start in range(
        0, len(values), _CHUNK
    ):  # short lists are sorted in less time, for each of their numbers
        chunk = sorted(values[start : start + _CHUNK])
        if len(chunk) < len(bounds):
            for value in chunk:
                counts[bisect_left(bounds, value)] += 1
            continue
        below = 0
        for i, upto in enumerate(map(bisect_right, repeat(chunk), bounds)):
            counts[i] += upto - below
            below = upto
        counts[-1] += len(chunk) - below
    return counts


# -- all of it -----------------------------------------------------------------------------


class Summary:
    """What :func:`summarize` found: counts by classic bucket, native buckets, a sketch, and the largest value."""

    __slots__ = ("counts", "native", "sketch", "top")

    def __init__(self, counts: list[int], native: NativeBuckets | None, sketch: Sketch, top: float) -> None:
        self.counts, self.native, self.sketch, self.top = counts, native, sketch, top


def loaded_numpy() -> Any:
    """numpy, where somebody has loaded it, and wholly: another thread may be importing it. Nobody does for counting."""
    np = sys.modules.get("numpy")
    return None if getattr(getattr(np, "__spec__", None), "_initializing", True) else np


def summarize(
    values: list[float], bounds: tuple[float, ...], *, native: bool, sketching: bool, np: Any = None
) -> Summary:
    """Count finite numbers, in any order. Without ``sketching`` there is no sketch, and perhaps no largest value."""
    if np is not None and len(values) >= MANY:
        array = np.fromiter(values, np.float64, len(values))
        array.sort()  # takes a tenth of the time of sorted(), and then finding the bounds takes none
        upto = array.searchsorted(bounds, "right").tolist()
        counts = list(map(sub, [*upto, len(values)], [0, *upto]))
        buckets = native_of(array.tolist()) if native else None
        return Summary(counts, buckets, _sketch_of(np, array) if sketching else Sketch(), float(array[-1]))
    if not native and not sketching:
        return Summary(count_in(values, bounds), None, Sketch(), nan)
    ordered, sketch = sorted(values), Sketch()
    if sketching:
        sketch.add(ordered)
    top = ordered[-1] if ordered else nan
    return Summary(count_in(ordered, bounds), native_of(ordered) if native else None, sketch, top)


def _sketch_of(np: Any, ordered: NDArray[np.float64]) -> Sketch:
    sketch = Sketch()
    low = int(ordered.searchsorted(6e-18, "right"))
    if low:
        sketch.counts[Sketch.LOWEST] = low
    if low < len(ordered):
        places = np.ceil(np.log(ordered[low:]) / Sketch.RATIO)
        last = np.append(np.flatnonzero(places[1:] != places[:-1]), len(places) - 1)
        counts = last.copy()
        counts[0] += 1
        counts[1:] -= last[:-1]
        sketch.counts.update(zip(places[last].astype(np.int64).tolist(), counts.tolist(), strict=True))
    return sketch
