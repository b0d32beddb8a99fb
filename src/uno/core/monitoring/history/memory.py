"""How is an hour kept second by second, and a week in five minutes, in bounded memory?

Rows of one float64 per column: a chunk holds 256 ticks. Beside it a coarser tier keeps, for each column and
five minutes, the smallest, largest and mean value and the last total. Histograms also keep sketches, by the
minute for an hour and by the half hour for a week, so that a percentile over any period is within 1 %.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from uno.core.monitoring.history import HistoryStats, Levels, Points, Summary
from uno.core.monitoring.metrics import Sketch
from uno.core.monitoring.series import STATS, Frame, Series, select_column

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 256
HOUR, WEEK = 3_600.0, 7 * 86_400.0
COARSE = 300.0
DEFAULT_BYTES = 64 * 2**20


class _Chunk:
    """Consecutive ticks with the same columns."""

    __slots__ = ("n", "rows", "times")

    def __init__(self, width: int) -> None:
        import numpy as np

        self.times = np.empty(CHUNK)
        self.rows = np.full((CHUNK, width), np.nan)
        self.n = 0


class _Coarse:
    """Five minutes of all columns."""

    __slots__ = ("high", "last", "low", "mean", "n", "time")

    def __init__(self, time: float, width: int) -> None:
        import numpy as np

        self.time = time
        self.n = np.zeros(width, np.int32)
        self.low = np.full(width, np.nan)
        self.high = np.full(width, np.nan)
        self.mean = np.zeros(width)  # the sum, until the five minutes are over
        self.last = np.full(width, np.nan)

    def close(self) -> None:
        """Make it small."""
        import numpy as np

        self.mean = np.where(self.n > 0, self.mean / np.maximum(self.n, 1), np.nan).astype(np.float32)
        self.low, self.high = self.low.astype(np.float32), self.high.astype(np.float32)

    @property
    def bytes(self) -> int:
        return sum(int(a.nbytes) for a in (self.n, self.low, self.high, self.mean, self.last))


class _Packed(NamedTuple):
    """A sketch at rest."""

    start: float
    places: array[int]
    counts: array[int]


class _Sketches:
    """The sketches of one histogram, in two tiers."""

    __slots__ = ("coarse", "coarse_start", "fine", "fine_start", "open_coarse", "open_fine")

    def __init__(self) -> None:
        self.fine: deque[_Packed] = deque(maxlen=61)
        self.coarse: deque[_Packed] = deque(maxlen=337)
        self.open_fine, self.open_coarse = Sketch(), Sketch()
        self.fine_start = self.coarse_start = 0.0

    def add(self, time: float, sketch: Sketch) -> None:
        fine, coarse = time - time % 60, time - time % 1_800
        if fine != self.fine_start:
            _pack(self.fine, self.fine_start, self.open_fine)
            self.open_fine, self.fine_start = Sketch(), fine
        if coarse != self.coarse_start:
            _pack(self.coarse, self.coarse_start, self.open_coarse)
            self.open_coarse, self.coarse_start = Sketch(), coarse
        self.open_fine.merge(sketch)
        self.open_coarse.merge(sketch)

    def between(self, start: float, end: float) -> tuple[Sketch, bool]:
        """All that overlaps the period, and whether minutes (not half hours) tell it."""
        oldest = self.fine[0].start if self.fine else self.fine_start
        exact = start >= oldest or not self.coarse
        tier, length = (self.fine, 60.0) if exact else (self.coarse, 1_800.0)
        opened, opened_at = (
            (self.open_fine, self.fine_start) if exact else (self.open_coarse, self.coarse_start)
        )
        found = Sketch()
        for packed in list(tier):
            if packed.start < end and packed.start + length > start:
                found.merge(Sketch(dict(zip(packed.places, packed.counts, strict=True))))
        if opened_at < end and opened_at + length > start:
            found.merge(opened)
        return found, exact

    @property
    def bytes(self) -> int:
        packed = sum(len(p.places) * 6 + 200 for tier in (self.fine, self.coarse) for p in list(tier))
        return packed + 100 * (len(self.open_fine) + len(self.open_coarse))


def _pack(tier: deque[_Packed], start: float, sketch: Sketch) -> None:
    if sketch.counts:
        tier.append(_Packed(start, array("h", sketch.counts.keys()), array("L", sketch.counts.values())))


class MemoryHistory:
    """The history of a process that has no store: gone when the process ends.

    ``max_bytes`` bounds it: when there are more series than fit, the oldest samples go first.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_BYTES, hour: float = HOUR, week: float = WEEK) -> None:
        if max_bytes < 2**20:
            raise ValueError(f"max_bytes is at least 1 MiB, not {max_bytes!r}")
        self._max, self._hour, self._week = max_bytes, hour, week
        self._chunks: deque[_Chunk] = deque()
        self._coarse: deque[_Coarse] = deque()
        self._sketches: dict[str, _Sketches] = {}
        self._lock = threading.RLock()

    def append(self, frame: Frame) -> None:
        """Take one frame; frames come in ascending time."""
        import numpy as np

        with self._lock:
            if frame.moved is not None:
                self._move(frame.moved)
            width = len(frame.row)
            chunk = self._chunks[-1] if self._chunks else None
            if chunk is None or chunk.n == CHUNK or chunk.rows.shape[1] < width:
                chunk = _Chunk(width + width // 8 + 8)
                self._chunks.append(chunk)
            chunk.times[chunk.n] = frame.time
            chunk.rows[chunk.n, :width] = frame.row
            chunk.n += 1

            bucket = frame.time - frame.time % COARSE
            coarse = self._coarse[-1] if self._coarse else None
            if coarse is None or coarse.time != bucket or len(coarse.n) < width:
                if coarse is not None:
                    coarse.close()
                coarse = _Coarse(bucket, width + width // 8 + 8)
                self._coarse.append(coarse)
            # What counts is told by its rate, all else by its value.
            signal = np.where(frame.counting, frame.rates, frame.row)
            known = ~np.isnan(signal)
            coarse.n[:width] += known
            np.fmin(coarse.low[:width], signal, out=coarse.low[:width])
            np.fmax(coarse.high[:width], signal, out=coarse.high[:width])
            np.add(coarse.mean[:width], signal, out=coarse.mean[:width], where=known)
            np.copyto(coarse.last[:width], frame.row, where=~np.isnan(frame.row))

            for series, sketch in frame.sketches:
                self._sketches.setdefault(series.key, _Sketches()).add(frame.time, sketch)
            self._forget(frame.time)

    def _forget(self, now: float) -> None:
        while len(self._chunks) > 1 and self._chunks[1].times[0] < now - self._hour:
            self._chunks.popleft()
        while len(self._coarse) > 1 and self._coarse[0].time < now - self._week:
            self._coarse.popleft()
        if self._chunks[-1].n == 1 or len(self._coarse) == 1:  # a new chunk may have gone over the bound
            while len(self._chunks) > 2 and self._bytes() > self._max:
                self._chunks.popleft()
            while len(self._coarse) > 2 and self._bytes() > self._max:
                self._coarse.popleft()

    def _move(self, moved: NDArray[np.int64]) -> None:
        """The store has closed the gaps among its columns."""
        import numpy as np

        def pick(a: NDArray[Any], fill: float) -> NDArray[Any]:
            inside = moved < a.shape[-1]
            taken = a[..., np.where(inside, moved, 0)]
            taken[..., ~inside] = fill
            return taken

        for chunk in self._chunks:
            chunk.rows = pick(chunk.rows, nan)
        for coarse in self._coarse:
            coarse.n = pick(coarse.n, 0)
            coarse.low, coarse.high = pick(coarse.low, nan), pick(coarse.high, nan)
            coarse.mean, coarse.last = pick(coarse.mean, nan), pick(coarse.last, nan)

    def _bytes(self) -> int:
        return (
            sum(int(c.rows.nbytes + c.times.nbytes) for c in self._chunks)
            + sum(c.bytes for c in self._coarse)
            + sum(s.bytes for s in list(self._sketches.values()))
        )

    def keep_only(self, keys: set[str]) -> None:
        """Forget the sketches of all other series."""
        with self._lock:
            for key in self._sketches.keys() - keys:
                del self._sketches[key]

    # -- reading ---------------------------------------------------------------------------------------

    def _raw(self, column: int, start: float, end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        import numpy as np

        times, values = [np.empty(0)], [np.empty(0)]
        for chunk in list(self._chunks):
            n = chunk.n
            if n == 0 or chunk.times[n - 1] < start or chunk.times[0] > end:
                continue
            inside = (chunk.times[:n] >= start) & (chunk.times[:n] <= end)
            times.append(chunk.times[:n][inside])
            width = chunk.rows.shape[1]
            values.append(chunk.rows[:n, column][inside] if column < width else np.full(int(inside.sum()), np.nan))
        return np.concatenate(times), np.concatenate(values)

    def _samples(
        self, column: int, rate: bool, start: float, end: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[_Coarse, float]]]:
        """Exact samples, and the coarse ones of the time before those."""
        import numpy as np

        with self._lock:
            exact_from = float(self._chunks[0].times[0]) if self._chunks and self._chunks[0].n else end
            # a rate needs the sample before the first
            times, values = self._raw(column, start - (10.0 if rate else 0.0), end)
            coarse = [
                (c, c.time)
                for c in self._coarse
                if c.time + COARSE > start and c.time <= end and c.time + COARSE <= exact_from and column < len(c.n)
            ]
        if rate and len(times):
            known = ~np.isnan(values)
            times, values = times[known], values[known]
            change, span = np.diff(values), np.diff(times)
            values = np.where((change >= 0) & (span > 0), change / np.where(span > 0, span, 1), np.nan)
            times = times[1:]
            inside = times >= start
            times, values = times[inside], values[inside]
        return times, values, coarse

    def range(
        self, series: Series, stat: str | None, start: float, end: float, points: int | None = None
    ) -> Points:
        """One statistic between two times (Unix seconds), thinned to at most ``points``: the mean of what falls
        together, for p95 and max the largest. ``stat`` as in SeriesStore.selector."""
        import numpy as np

        stat = stat or STATS[series.metric.kind][0]
        column, rate = select_column(series, stat)
        times, values, coarse = self._samples(column, rate, start, end)
        largest = stat in ("p95", "max")
        if coarse:
            total = stat in ("total", "count", "sum")
            pick = "last" if total else "high" if largest else "mean"
            older = [float(getattr(c, pick)[column]) / _open(c, column, pick) for c, _ in coarse]
            times = np.concatenate((np.array([t for _, t in coarse]) + COARSE / 2, times))
            values = np.concatenate((np.array(older), values))
        if points is not None and points > 0 and len(times) > points:
            times, values = _thin(times, values, points, largest)
        return Points(times, values, not coarse)

    def summary(self, series: Series, start: float, end: float, levels: Levels = Levels()) -> Summary:
        """Count, extremes, mean, percentiles, last value and time beyond the levels between two times."""
        import numpy as np

        kind = series.metric.kind
        stat = "value" if kind == "gauge" else "rate" if kind == "counter" else "p95"
        column, rate = select_column(series, stat)
        times, values, coarse = self._samples(column, rate, start, end)
        known = ~np.isnan(values)
        span = np.diff(times, prepend=times[0]) if len(times) else np.empty(0)
        if len(span) > 1:
            span[0] = np.median(span[1:])
            span = np.minimum(span, 2 * np.median(span))
        elif len(span):
            span[0] = 1.0
        times, values, span = times[known], values[known], span[known]
        weights = np.ones(len(values))
        low, high = values, values
        if coarse:
            n = np.array([c.n[column] for c, _ in coarse], dtype=float)
            mean = np.array([float(c.mean[column]) / _open(c, column, "mean") for c, _ in coarse])
            some = n > 0
            low = np.concatenate((np.array([c.low[column] for c, _ in coarse])[some], low))
            high = np.concatenate((np.array([c.high[column] for c, _ in coarse])[some], high))
            values = np.concatenate((mean[some], values))
            weights = np.concatenate((n[some], weights))
            span = np.concatenate((np.full(int(some.sum()), COARSE), span))
        above = [0.0, 0.0]
        for i, level in enumerate((levels.warning, levels.critical)):
            if level is not None:
                above[i] = float(span[values < level if levels.below else values > level].sum())
        exact = not coarse
        if kind == "histogram":
            return self._summary_of_histogram(series, start, end, above, exact)
        if not len(values):
            return Summary(0, None, None, None, None, None, None, None, 0.0, 0.0, exact)
        order = np.argsort(values)
        reached = np.cumsum(weights[order])
        marks = [
            float(values[order][min(len(order) - 1, int(np.searchsorted(reached, q * reached[-1])))])
            for q in (0.5, 0.95, 0.99)
        ]
        return Summary(
            int(weights.sum()),
            float(low.min()),
            float((values * weights).sum() / weights.sum()),
            float(high.max()),
            marks[0],
            marks[1],
            marks[2],
            float(values[-1]),
            above[0],
            above[1],
            exact,
        )

    def _summary_of_histogram(
        self, series: Series, start: float, end: float, above: list[float], exact: bool
    ) -> Summary:
        import numpy as np

        with self._lock:
            kept = self._sketches.get(series.key)
            sketch, by_minute = kept.between(start, end) if kept is not None else (Sketch(), True)
        count = sum(sketch.counts.values())
        if not count:
            return Summary(0, None, None, None, None, None, None, None, 0.0, 0.0, exact)
        low, p50, p95, p99 = sketch.quantiles((0.0, 0.5, 0.95, 0.99))
        top = self.range(series, "max", start, end).values
        largest = float(np.nanmax(top)) if len(top) and not np.isnan(top).all() else sketch.quantiles((1.0,))[0]
        mean = sum(n * Sketch({i: 1}).quantiles((0.0,))[0] for i, n in sketch.counts.items()) / count
        p95s = self.range(series, "p95", start, end).values
        known = p95s[~np.isnan(p95s)]
        last = float(known[-1]) if len(known) else None
        return Summary(
            count,
            min(low, largest),
            mean,
            largest,
            min(p50, largest),
            min(p95, largest),
            min(p99, largest),
            last,
            above[0],
            above[1],
            exact and by_minute,
        )

    def stats(self) -> HistoryStats:
        """Bytes held, and how far back the coarse and the exact tier reach."""
        with self._lock:
            oldest = self._coarse[0].time if self._coarse else None
            exact = float(self._chunks[0].times[0]) if self._chunks and self._chunks[0].n else None
            return HistoryStats(self._bytes(), exact if oldest is None else min(oldest, exact or oldest), exact)

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._chunks.clear()
            self._coarse.clear()
            self._sketches.clear()

    def reinit_after_fork(self) -> None:
        """Replace the lock in a forked child; what the parent saw is not the child's."""
        self._lock = threading.RLock()
        self.close()


def _open(coarse: _Coarse, column: int, pick: str) -> float:
    """The divisor that turns the sum of five minutes not yet over into a mean."""
    if pick != "mean" or coarse.low.dtype.itemsize == 4:
        return 1.0
    n = float(coarse.n[column])
    return n if n else nan


def _thin(
    times: NDArray[np.float64], values: NDArray[np.float64], points: int, largest: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``points`` steps of equal length; a step without a sample is left out, one of gaps only is a gap."""
    import numpy as np

    step = (times[-1] - times[0]) / points or 1.0
    place = np.minimum(((times - times[0]) / step).astype(int), points - 1)
    known = ~np.isnan(values)
    n = np.bincount(place[known], minlength=points)
    present = np.bincount(place, minlength=points) > 0
    if largest:
        out = np.full(points, -np.inf)
        np.maximum.at(out, place[known], values[known])
        out[n == 0] = np.nan
    else:
        sums = np.bincount(place[known], weights=values[known], minlength=points)
        out = np.where(n > 0, sums / np.maximum(n, 1), np.nan)
    middle = times[0] + (np.arange(points) + 0.5) * step
    return middle[present], out[present]

