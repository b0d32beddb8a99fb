"""Where do samples go after the tick? Engines behind one small protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.series import Frame, Series


class Points(NamedTuple):
    """Samples of one statistic: times in Unix seconds, values with NaN for a gap; ``exact`` is False where a
    point stands for several samples of a coarser tier."""

    times: NDArray[np.float64]
    values: NDArray[np.float64]
    exact: bool


class Summary(NamedTuple):
    """One series over a period, in the metric's unit (a counter's in its unit per second). None: nothing known.

    ``samples`` is their number, for a histogram that of its observations; ``above_warning`` and
    ``above_critical`` are seconds; ``exact`` is False when a coarser tier was needed.
    """

    samples: int
    min: float | None
    mean: float | None
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    last: float | None
    above_warning: float
    above_critical: float
    exact: bool


class HistoryStats(NamedTuple):
    """What an engine holds: bytes, and the time of its oldest sample (Unix seconds, None when empty)."""

    bytes: int
    oldest: float | None
    oldest_exact: float | None


class Levels(NamedTuple):
    """The levels against which time is counted, on which side they lie, and of which statistic they speak (None: the
    metric's usual one)."""

    warning: float | None = None
    critical: float | None = None
    below: bool = False
    stat: str | None = None


class History(Protocol):
    """Keeps samples. ``append`` is called once a tick by the monitor's thread; the others by anybody."""

    def append(self, frame: Frame) -> None:
        """Take one frame."""

    def range(
        self, series: Series, stat: str | None, start: float, end: float, points: int | None = None
    ) -> Points:
        """One statistic between two times, thinned to at most ``points``."""

    def summaries(self, wanted: Sequence[tuple[Series, Levels]], start: float, end: float) -> list[Summary]:
        """What a report says of each of these series."""

    def stats(self) -> HistoryStats:
        """Size and reach."""

    def close(self) -> None:
        """Give everything back."""
