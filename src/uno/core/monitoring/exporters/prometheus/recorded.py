"""What does a page need to know of a series? The one place that reads cells and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from uno.core.monitoring.buckets import Distribution
from uno.core.monitoring.cells import CounterCell, Exemplar, HistogramCell
from uno.core.monitoring.series import Frame, Series

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import SeriesStore


def view(monitor: ResourceMonitor) -> SeriesStore:
    """Where the series are read."""
    return monitor.view


def distribution(frame: Frame, series: Series) -> Distribution | None:
    """A histogram at the frame's moment; None for a gap."""
    return frame.histograms.get(series)


def bounds(series: Series) -> tuple[float, ...] | None:
    """The finite upper bounds of the classic buckets; None for what is no histogram."""
    cell = series.cell
    return cell.bounds if isinstance(cell, HistogramCell) else None


def created(series: Series) -> float | None:
    """When the cell began to count, in Unix seconds; None for a gauge."""
    cell = series.cell
    return cell.created if isinstance(cell, CounterCell | HistogramCell) else None


def exemplar(series: Series) -> Exemplar | None:
    """The newest exemplar of a counter."""
    cell = series.cell
    return cell.exemplar if isinstance(cell, CounterCell) else None


def exemplars(series: Series) -> Mapping[int, Exemplar] | None:
    """The newest exemplar of each bucket of a histogram, by the bucket's place."""
    cell = series.cell
    return cell.exemplars if isinstance(cell, HistogramCell) else None
