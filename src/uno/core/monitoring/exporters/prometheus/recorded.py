"""What does a page need to know of a cell? The one place that reads cells and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from uno.core.monitoring.series import Frame, Series

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import SeriesStore


class NativeBuckets(NamedTuple):
    """Stand-in until metrics.py has it."""

    schema: int
    zero_threshold: float
    zero_count: int
    positive: Mapping[int, int]
    negative: Mapping[int, int]


class Distribution(NamedTuple):
    """Stand-in until metrics.py has it."""

    count: int  # type: ignore[assignment]
    sum: float
    counts: tuple[int, ...]
    native: NativeBuckets | None = None


class Exemplar(NamedTuple):
    """Stand-in until metrics.py has it."""

    labels: tuple[tuple[str, str], ...]
    value: float
    time: float


def view(monitor: ResourceMonitor) -> SeriesStore:
    """Where the series are read."""
    return monitor.store


def distribution(frame: Frame, series: Series) -> Distribution | None:
    """A histogram at the frame's moment; None for a gap."""
    frozen = frame.histograms.get(series)
    return frozen if frozen is None or isinstance(frozen, Distribution) else Distribution(*frozen)


def bounds(series: Series) -> tuple[float, ...] | None:
    """The finite upper bounds of the classic buckets; None for what is no histogram."""
    return getattr(series.cell, "bounds", None)


def created(series: Series) -> float | None:
    """When the cell began to count, in Unix seconds."""
    return getattr(series.cell, "created", None)


def exemplar(series: Series) -> Exemplar | None:
    """The newest exemplar of a counter."""
    return getattr(series.cell, "exemplar", None)


def exemplars(series: Series) -> Mapping[int, Exemplar] | None:
    """The newest exemplar of each bucket of a histogram, by the bucket's place."""
    return getattr(series.cell, "exemplars", None)
