"""How is an hour kept second by second, and a week in five minutes, in bounded memory?

Rows of one float64 per column: a chunk holds up to 256 ticks. Beside it a coarser tier keeps, for each column
and five minutes, the smallest, largest and mean value and the last total. Histograms also keep sketches, by
the minute for an hour and by the half hour for a week, so that a percentile is within 1 % of that of the
minutes which its period touches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uno.core.monitoring.history import HistoryStats, Levels, Points, Summary
from uno.core.monitoring.history.tiers import COARSE, Chunk, Coarse, Record, Sketches
from uno.core.monitoring.metrics import Sketch
from uno.core.monitoring.series import STATS, Frame, Selector, Series, select_column
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.history.arithmetic import Figures, Floats

CHUNK = 256
HOUR, WEEK = 3_600.0, 7 * 86_400.0
DEFAULT_BYTES = 64 * 2**20
EXACT_SHARE, SKETCH_SHARE = 0.625, 0.2  # of the memory, when there is too little of it
GROUP = 64  # series that are summed up at once: their samples fit the processor's cache
_NO_LEVELS = Levels()
_NOTHING = Summary(0, None, None, None, None, None, None, None, 0.0, 0.0, True)


class _Window(NamedTuple):
    """What there is of a period; stays as it is whatever the monitor adds or drops meanwhile."""

    times: Floats  # of exact ticks, some before the period for the sake of rates
    first: int  # the first exact tick inside
    rows: list[NDArray[np.float64]]
    records: list[Record]  # before those


class _Signal(NamedTuple):
    """One statistic of some series over a window: exact samples, and records of five minutes."""

    values: Floats
    spans: Floats  # seconds between the two samples that make a rate; 0 where there is none
    records: tuple[Floats, Floats, Floats, Floats] | None  # n, low, mean, high


class MemoryHistory:
    """The history of a process that has no store: gone when the process ends.

    ``max_bytes`` bounds it: when there are more series than fit, the oldest samples go first. ``hour`` and
    ``week`` are the seconds that the exact and the coarse tier reach back at most.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_BYTES, hour: float = HOUR, week: float = WEEK) -> None:
        if max_bytes < 2**20:
            raise ValueError(f"max_bytes is at least 1 MiB, not {max_bytes!r}")
        self._max, self._hour, self._week = max_bytes, hour, week
        self._chunks: deque[Chunk] = deque()
        self._coarse: deque[Coarse] = deque()
        self._sketches: dict[str, Sketches] = {}
        self._exact_bytes = self._coarse_bytes = self._sketch_bytes = 0
        self._lost = float("-inf")  # exact samples up to this time were forgotten
        self._last: float | None = None
        self._step = 0.0
        self._lock = threading.RLock()

    def append(self, frame: Frame) -> None:
        """Take one frame; frames come in ascending time."""
        import numpy as np

        with self._lock:
            if frame.moved is not None:
                self._move(frame)
            width = len(frame.row)
            chunk = self._chunks[-1] if self._chunks else None
            if chunk is None or chunk.n == len(chunk.times) or chunk.rows.shape[1] < width:
                room = width + width // 32 + 8
                length = int(self._max * EXACT_SHARE / 4 / (8 * room))  # two chunks always fit
                chunk = Chunk(max(8, min(CHUNK, length)), room)
                self._chunks.append(chunk)
                self._exact_bytes += chunk.bytes
            chunk.times[chunk.n] = frame.time
            chunk.rows[chunk.n, :width] = frame.row
            chunk.n += 1

            since = 0.0 if self._last is None else frame.time - self._last
            seconds = min(since, 2 * self._step) if self._step else since
            self._last, self._step = frame.time, since
            bucket = frame.time - frame.time % COARSE
            coarse = self._coarse[-1] if self._coarse else None
            if coarse is None or coarse.time != bucket:
                if coarse is not None:
                    self._coarse_bytes -= coarse.bytes
                    coarse.close()
                    self._coarse_bytes += coarse.bytes
                coarse = Coarse(bucket, width + width // 32 + 8)
                self._coarse.append(coarse)
                self._coarse_bytes += coarse.bytes
            # What counts is told by its rate, all else by its value.
            coarse.add(np.where(frame.counting, frame.rates, frame.row), frame.row, seconds)

            for series, sketch in frame.sketches:
                kept = self._sketches.get(series.key)
                if kept is None:
                    kept = self._sketches[series.key] = Sketches()
                    self._sketch_bytes += kept.bytes
                before = kept.bytes
                kept.add(frame.time, sketch)
                self._sketch_bytes += kept.bytes - before
            self._forget(frame.time)

    def _forget(self, now: float) -> None:
        chunks, coarse = self._chunks, self._coarse
        while len(chunks) > 1 and chunks[1].times[0] < now - self._hour:
            self._drop_chunk()
        while len(coarse) > 1 and coarse[0].time + COARSE < now - self._week:
            self._drop_coarse()
        while self._bytes() > self._max:
            if len(chunks) > 2 and self._exact_bytes > EXACT_SHARE * self._max:
                self._drop_chunk()
            elif self._sketch_bytes > SKETCH_SHARE * self._max and self._drop_sketches():
                continue
            elif len(coarse) > 2:
                self._drop_coarse()
            elif len(chunks) > 2:
                self._drop_chunk()
            else:
                break

    def _drop_chunk(self) -> None:
        gone = self._chunks.popleft()
        self._exact_bytes -= gone.bytes
        self._lost = float(gone.times[gone.n - 1])

    def _drop_coarse(self) -> None:
        gone = self._coarse.popleft()
        self._coarse_bytes -= gone.bytes
        for kept in self._sketches.values():
            kept.coarse.forget(gone.time + COARSE)
        self._sketch_bytes = sum(kept.bytes for kept in self._sketches.values())

    def _drop_sketches(self) -> bool:
        """Forget the oldest minute, or half hour, of all histograms: of those that take more. False: none is left."""
        sketches = self._sketches.values()
        fine, coarse = [kept.fine for kept in sketches], [kept.coarse for kept in sketches]
        more = fine if sum(tier.bytes for tier in fine) > sum(tier.bytes for tier in coarse) else coarse
        oldest = min((tier.packed[0].start for tier in more if tier.packed), default=None)
        if oldest is None:
            return False
        for tier in more:
            tier.forget(oldest + tier.length)
        self._sketch_bytes = sum(kept.bytes for kept in sketches)
        return True

    def _move(self, frame: Frame) -> None:
        """The store has closed the gaps among its columns."""
        assert frame.moved is not None
        for chunk in self._chunks:
            chunk.move(frame.moved)
        for coarse in self._coarse:
            coarse.move(frame.moved)
        self._exact_bytes = sum(chunk.bytes for chunk in self._chunks)
        self._coarse_bytes = sum(coarse.bytes for coarse in self._coarse)
        for key in frame.forgotten:
            gone = self._sketches.pop(key, None)
            if gone is not None:
                self._sketch_bytes -= gone.bytes

    def _bytes(self) -> int:
        return self._exact_bytes + self._coarse_bytes + self._sketch_bytes

    # -- reading ---------------------------------------------------------------------------------------

    def _window(self, start: float, end: float) -> _Window:
        import numpy as np

        with self._lock:
            chunks = [(chunk.times, chunk.rows, chunk.n) for chunk in self._chunks]
            lost = self._lost
            border = start
            records: list[Record] = []
            if start <= lost:  # the last five minutes in which something is missing are told by their record
                border = (lost // COARSE + 1) * COARSE
                records = [
                    c.record()
                    for c in self._coarse
                    if c.time + COARSE > start and c.time <= end and c.time < border
                ]
                if not records:
                    border = start
        times = np.concatenate([t[:n] for t, _, n in chunks]) if chunks else np.empty(0)
        first, stop = int(np.searchsorted(times, border)), int(np.searchsorted(times, end, "right"))
        # A rate needs the sample before the first, yet not one from before a pause.
        usual = float(np.median(np.diff(times[max(0, first - 8) : stop]))) if stop - first > 1 else 0.0
        begin = int(np.searchsorted(times, border - max(10.0, 3 * usual)))
        begin = max(begin, first - 8)
        rows, at = [], 0
        for _, block, n in chunks:
            low, high = max(begin - at, 0), min(stop - at, n)
            if low < high:
                rows.append(block[low:high])
            at += n
        stop = max(stop, begin)
        return _Window(times[begin:stop], min(first, stop) - begin, rows, records)

    def _signal(self, window: _Window, selectors: Sequence[Selector]) -> _Signal:
        """The values of some columns, or their rates."""
        import numpy as np

        from uno.core.monitoring.history import arithmetic

        columns = np.array([s.column for s in selectors], dtype=np.intp)
        values = _exact(window, columns)
        spans = np.zeros(values.shape)
        rated = np.array([s.rate for s in selectors], dtype=bool)
        if rated.any() and len(window.times):
            values[rated], spans[rated] = arithmetic.rates(window.times, values[rated])
        records = None
        if window.records:
            n, low, mean, high = (
                np.stack([_columns(getattr(r, part), columns) for r in window.records], axis=1)
                for part in ("n", "low", "mean", "high")
            )
            records = (np.nan_to_num(n), low, mean, high)
        return _Signal(values[:, window.first :], spans[:, window.first :], records)

    def range(
        self, series: Series, stat: str | None, start: float, end: float, points: int | None = None
    ) -> Points:
        """One statistic between two times (Unix seconds), thinned to at most ``points``: the mean of what
        falls together, for p95 and max the largest. ``stat`` as in SeriesStore.selector."""
        import numpy as np

        from uno.core.monitoring.history.arithmetic import thin

        stat = stat or STATS[series.metric.kind][0]
        window = self._window(start, end)
        column, rate = select_column(series, stat)
        signal = self._signal(window, [Selector(column, rate)])
        times, values = window.times[window.first :], signal.values[0]
        largest = stat in ("p95", "max")
        if signal.records is not None:
            older = signal.records[3 if largest else 2][0]
            if stat in ("total", "count", "sum"):
                older = np.array([_columns(r.last, np.array([column]))[0] for r in window.records])
            times = np.concatenate(([r.time + COARSE / 2 for r in window.records], times))
            values = np.concatenate((older, values))
        if points is not None and points > 0 and len(times) > points:
            times, values = thin(times, values, points, largest)
        return Points(times, values, not window.records)

    def summaries(self, wanted: Sequence[tuple[Series, Levels]], start: float, end: float) -> list[Summary]:
        """What a report says of each of these series between two times (Unix seconds)."""
        found: list[Summary] = [_NOTHING] * len(wanted)
        window = self._window(start, end)
        if not len(window.times) - window.first and not window.records:
            return found
        for kind in STATS:
            places = [i for i, (series, _) in enumerate(wanted) if series.metric.kind == kind]
            for at in range(0, len(places), GROUP):
                group = places[at : at + GROUP]
                some = [wanted[i] for i in group]
                told = self._summaries(window, some, start, end)
                for i, summary in zip(group, told, strict=True):
                    found[i] = summary
        return found

    def summary(self, series: Series, start: float, end: float, levels: Levels = _NO_LEVELS) -> Summary:
        """As summaries, of one series."""
        return self.summaries([(series, levels)], start, end)[0]

    def _summaries(
        self, window: _Window, wanted: Sequence[tuple[Series, Levels]], start: float, end: float
    ) -> list[Summary]:
        """Of series of one kind."""
        import numpy as np

        from uno.core.monitoring.history import arithmetic

        kind = wanted[0][0].metric.kind
        usual = STATS[kind][0]
        signal = self._signal(window, [select_column(series, usual) for series, _ in wanted])
        values, records = signal.values, signal.records
        if records is None:
            told = arithmetic.figures(values, signal.spans if kind == "counter" else None)
        else:
            n, low, mean, high = records
            told = arithmetic.weighted_figures(
                np.concatenate((mean, values), axis=1),
                np.concatenate((n, np.ones(values.shape)), axis=1),
                np.concatenate((low, values), axis=1),
                np.concatenate((high, values), axis=1),
            )
        beyond = self._beyond(window, signal, [levels for _, levels in wanted])
        for i, (series, levels) in enumerate(wanted):
            if levels.stat not in (None, usual):
                other = self._signal(window, [select_column(series, levels.stat)])
                beyond[i] = self._beyond(window, other, [levels])[0]
        exact = not window.records
        if kind == "histogram":
            return self._of_histograms(window, [series for series, _ in wanted], told, beyond, start, end)
        columns = [told.low, told.mean, told.high, *told.quantiles, told.last]
        return [
            Summary._make((int(n), *numbers, *over, exact)) if n else _NOTHING._replace(exact=exact)
            for n, over, *numbers in zip(
                told.samples.tolist(), beyond, *(c.tolist() for c in columns), strict=True
            )
        ]

    def _beyond(
        self, window: _Window, signal: _Signal, levels: Sequence[Levels]
    ) -> list[tuple[float, float]]:
        """Seconds beyond the warning and the critical level."""
        import numpy as np

        from uno.core.monitoring.history.arithmetic import spans

        values = signal.values
        seconds = np.broadcast_to(spans(window.times, window.first), values.shape)
        if signal.records is not None:
            n, _, mean, _ = signal.records
            each = np.array([r.seconds / max(r.ticks, 1) for r in window.records])
            values = np.concatenate((mean, values), axis=1)
            seconds = np.concatenate((n * each, seconds), axis=1)
        sign = np.array([-1.0 if level.below else 1.0 for level in levels])
        found = []
        for part in ("warning", "critical"):
            limits = [getattr(level, part) for level in levels]
            limit = np.array([np.inf if x is None else x for x in limits]) * sign
            limit[[x is None for x in limits]] = np.inf
            over = values * sign[:, None] > limit[:, None]
            found.append(np.where(over, seconds, 0.0).sum(axis=1).tolist())
        return list(zip(*found, strict=True))

    def _of_histograms(
        self,
        window: _Window,
        wanted: Sequence[Series],
        told: Figures,
        beyond: Sequence[tuple[float, float]],
        start: float,
        end: float,
    ) -> list[Summary]:
        """Counts, means and largest values from the ticks; percentiles from the sketches."""
        import numpy as np

        from uno.core.monitoring.history import arithmetic

        with self._lock:
            kept = [self._sketches.get(series.key) for series in wanted]
            sketches = [(Sketch(), True) if s is None else s.between(start, end) for s in kept]
        largest = self._signal(window, [select_column(series, "max") for series in wanted])
        top = (
            largest.values
            if largest.records is None
            else np.concatenate((largest.records[3], largest.values), axis=1)
        )
        highest = np.fmax.reduce(top, axis=1).tolist()
        exact = not window.records
        grown = []
        for stat in ("count", "sum"):
            totals = _exact(window, np.array([select_column(series, stat).column for series in wanted]))
            before = (
                totals[:, window.first - 1 : window.first]
                if window.first
                else np.full((len(wanted), 1), np.nan)
            )
            totals = np.concatenate((before, totals[:, window.first :]), axis=1)
            grown.append(arithmetic.growth(totals).tolist())
        found = []
        for (sketch, minutes), high, last, over, count, total in zip(
            sketches, highest, told.last.tolist(), beyond, *grown, strict=True
        ):
            if not exact:
                count = sum(sketch.counts.values())
                total = sum(n * Sketch({i: n}).quantiles((0.0,))[0] for i, n in sketch.counts.items())
            if not count:
                found.append(_NOTHING._replace(exact=exact))
                continue
            marks = [min(mark, high) for mark in sketch.quantiles((0.0, *arithmetic.QUANTILES))]
            numbers = [marks[0], total / count, high, *marks[1:], last]
            found.append(Summary._make((int(count), *map(_known, numbers), *over, exact and minutes)))
        return found

    def stats(self) -> HistoryStats:
        """Bytes held, and how far back the coarse and the exact tier reach."""
        with self._lock:
            exact = float(self._chunks[0].times[0]) if self._chunks else None
            if self._coarse and self._coarse[0].time < self._lost:
                return HistoryStats(self._bytes(), self._coarse[0].time, exact)
            return HistoryStats(self._bytes(), exact, exact)

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._chunks.clear()
            self._coarse.clear()
            self._sketches.clear()
            self._exact_bytes = self._coarse_bytes = self._sketch_bytes = 0
            self._lost, self._last, self._step = float("-inf"), None, 0.0

    def reinit_after_fork(self) -> None:
        """Replace the lock in a forked child; what the parent saw is not the child's."""
        self._lock = threading.RLock()
        self.close()


def _exact(window: _Window, columns: NDArray[np.intp]) -> Floats:
    """The exact samples of some columns, a row for each."""
    import numpy as np

    if not window.rows:
        return np.empty((len(columns), 0))
    parts = [_columns(block, columns) for block in window.rows]
    return np.ascontiguousarray(np.concatenate(parts).T)


def _columns(block: NDArray[np.float64], columns: NDArray[np.intp]) -> Floats:
    """Some columns of a block; NaN for those that came later than it."""
    import numpy as np

    inside = columns < block.shape[-1]
    if inside.all():
        found: Floats = block[..., columns]
        return found
    taken: Floats = block[..., np.where(inside, columns, 0)].astype(np.float64)
    taken[..., ~inside] = np.nan
    return taken


def _known(value: float) -> float | None:
    return value if value == value else None
