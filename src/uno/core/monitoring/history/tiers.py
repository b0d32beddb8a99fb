"""In which shapes does the memory keep samples?

Exact ticks in chunks, five minutes of all columns as one record, and sketches of what histograms observed.
"""

from __future__ import annotations

from array import array
from collections import deque
from math import inf, nan, nextafter
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.metrics import Sketch
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COARSE = 300.0
MINUTE, HALF_HOUR = 60.0, 1_800.0
FINE_SKETCHES, COARSE_SKETCHES = 61, 337


class Chunk:
    """Consecutive ticks, one row each."""

    __slots__ = ("n", "rows", "times")

    def __init__(self, length: int, width: int) -> None:
        import numpy as np

        self.times = np.empty(length)
        self.rows = np.full((length, width), np.nan)
        self.n = 0

    @property
    def bytes(self) -> int:
        """Memory that is taken."""
        return int(self.rows.nbytes + self.times.nbytes)

    def move(self, old: NDArray[np.int64]) -> None:
        """Put the columns where the store has put them: ``old`` is the former place of each."""
        self.rows = _pick(self.rows, old, nan)


class Record(NamedTuple):
    """Five minutes of all columns, as readers see them: never changed."""

    time: float
    seconds: float
    ticks: int
    n: NDArray[np.int32]
    low: NDArray[Any]
    high: NDArray[Any]
    mean: NDArray[Any]
    last: NDArray[np.float64]


class Coarse:
    """Five minutes of all columns. ``mean`` holds sums until they are over."""

    __slots__ = ("closed", "high", "last", "low", "mean", "n", "seconds", "ticks", "time")

    def __init__(self, time: float, width: int) -> None:
        import numpy as np

        self.time, self.seconds, self.ticks, self.closed = time, 0.0, 0, False
        self.n = np.zeros(width, np.int32)
        self.low: NDArray[Any] = np.full(width, np.nan)
        self.high: NDArray[Any] = np.full(width, np.nan)
        self.mean: NDArray[Any] = np.zeros(width)
        self.last = np.full(width, np.nan)

    def add(self, signal: NDArray[np.float64], row: NDArray[np.float64], seconds: float) -> None:
        """Take one tick, which stands for ``seconds``."""
        import numpy as np

        width = len(row)
        if len(self.n) < width:
            everything = np.arange(width + width // 32 + 8)
            self.move(everything)
        known = ~np.isnan(signal)
        self.n[:width] += known
        np.fmin(self.low[:width], signal, out=self.low[:width])
        np.fmax(self.high[:width], signal, out=self.high[:width])
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(self.mean[:width], signal, out=self.mean[:width], where=known)
        np.copyto(self.last[:width], row, where=~np.isnan(row))
        self.seconds += seconds
        self.ticks += 1

    def close(self) -> None:
        """Make it small, for no tick will be added."""
        import numpy as np

        with np.errstate(over="ignore"):
            self.mean = self.record().mean.astype(np.float32)
            self.low, self.high = self.low.astype(np.float32), self.high.astype(np.float32)
        self.closed = True

    def record(self) -> Record:
        """As it is now."""
        import numpy as np

        if self.closed:
            return Record(
                self.time, self.seconds, self.ticks, self.n, self.low, self.high, self.mean, self.last
            )
        mean = np.where(self.n > 0, self.mean / np.maximum(self.n, 1), np.nan)
        n, low, high, last = self.n.copy(), self.low.copy(), self.high.copy(), self.last.copy()
        return Record(self.time, self.seconds, self.ticks, n, low, high, mean, last)

    def move(self, old: NDArray[np.int64]) -> None:
        """As Chunk.move."""
        self.n = _pick(self.n, old, 0)
        self.mean = _pick(self.mean, old, nan if self.closed else 0)
        self.low, self.high = _pick(self.low, old, nan), _pick(self.high, old, nan)
        self.last = _pick(self.last, old, nan)

    @property
    def bytes(self) -> int:
        """Memory that is taken."""
        return sum(int(a.nbytes) + 112 for a in (self.n, self.low, self.high, self.mean, self.last))


def _pick(array: NDArray[Any], old: NDArray[np.int64], fill: float) -> NDArray[Any]:
    import numpy as np

    inside = old < array.shape[-1]
    taken = np.ascontiguousarray(array[..., np.where(inside, old, 0)])
    taken[..., ~inside] = fill
    return taken


class _Packed(NamedTuple):
    """A sketch at rest."""

    start: float
    places: array[int]
    counts: array[int]

    @property
    def bytes(self) -> int:
        return 8 * len(self.places) + 250


class _Tier:
    """The sketches of one histogram in periods of one length."""

    __slots__ = ("bytes", "length", "limit", "lost", "open", "packed", "start")

    def __init__(self, length: float, limit: int) -> None:
        self.length, self.limit = length, limit
        self.packed: deque[_Packed] = deque()
        self.open, self.start = Sketch(), 0.0
        self.lost = float("-inf")  # what came before was forgotten
        self.bytes = 0

    def add(self, time: float, sketch: Sketch) -> None:
        start = time - time % self.length
        if start != self.start:
            if self.open.counts:
                counts = self.open.counts
                packed = _Packed(self.start, array("i", counts.keys()), array("I", counts.values()))
                self.packed.append(packed)
                self.bytes += packed.bytes
            self.open, self.start = Sketch(), start
            self.forget(start - self.limit * self.length)
        self.open.merge(sketch)

    def forget(self, before: float) -> None:
        """Drop what was over by ``before``."""
        while self.packed and self.packed[0].start + self.length <= before:
            gone = self.packed.popleft()
            self.bytes -= gone.bytes
            self.lost = gone.start + self.length

    def between(self, start: float, end: float) -> list[_Packed]:
        """All that overlaps the period."""
        found = [p for p in list(self.packed) if p.start < end and p.start + self.length > start]
        if self.start < end and self.start + self.length > start and self.open.counts:
            counts = dict(self.open.counts)
            found.append(_Packed(self.start, array("i", counts.keys()), array("I", counts.values())))
        return found


class Sketches:
    """What one histogram observed: by the minute for an hour, by the half hour for a week."""

    __slots__ = ("coarse", "fine")

    def __init__(self) -> None:
        self.fine = _Tier(MINUTE, FINE_SKETCHES)
        self.coarse = _Tier(HALF_HOUR, COARSE_SKETCHES)

    def add(self, time: float, sketch: Sketch) -> None:
        """Take what was observed up to ``time``."""
        self.fine.add(time, sketch)
        self.coarse.add(time, sketch)

    @property
    def bytes(self) -> int:
        """Memory that is taken by what is at rest."""
        return self.fine.bytes + self.coarse.bytes + 600

    def between(self, start: float, end: float) -> tuple[Sketch, bool]:
        """All of the minutes, or where those are forgotten half hours, that overlap the period; whether minutes
        were enough."""
        import numpy as np

        end = nextafter(end, inf)  # a tick at the very end belongs to the period
        minutes = start >= self.fine.lost
        found: list[_Packed] = []
        if not minutes:
            border = -(-self.fine.lost // HALF_HOUR) * HALF_HOUR
            found = self.coarse.between(start, min(end, border))
            start = border
        found += self.fine.between(start, end)
        if not found:
            return Sketch(), minutes
        places = np.concatenate([packed.places for packed in found])
        counts = np.concatenate([packed.counts for packed in found])
        lowest = int(places.min())
        sums = np.bincount(places - lowest, weights=counts)
        used = np.flatnonzero(sums)
        return Sketch(
            dict(zip((used + lowest).tolist(), sums[used].astype(int).tolist(), strict=True))
        ), minutes
