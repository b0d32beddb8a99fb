"""How are many series summed up at once?

Arrays hold one series a row and one tick (or five minutes) a column; NaN is a gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

QUANTILES = (0.5, 0.95, 0.99)


class Figures(NamedTuple):
    """One number for each series; NaN where nothing is known."""

    samples: Floats
    low: Floats
    mean: Floats
    high: Floats
    quantiles: tuple[Floats, ...]
    last: Floats


def rates(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Growth per second since the last known sample, and the seconds since then; a fall is a gap."""
    import numpy as np

    known = ~np.isnan(values)
    if known.all():
        before = np.maximum(np.arange(len(times)) - 1, 0)
        change, span = values - values[:, before], np.broadcast_to(times - times[before], values.shape)
    else:
        place = np.where(known, np.arange(len(times)), 0)
        np.maximum.accumulate(place, axis=1, out=place)
        place[:, 1:] = place[:, :-1].copy()
        change, span = values - np.take_along_axis(values, place, 1), times - times[place]
    fine = (change >= 0) & (span > 0)
    return np.where(fine, change / np.where(fine, span, 1.0), np.nan), np.where(fine, span, 0.0)


def growth(values: Floats) -> Floats:
    """By how much each total grew from the first column (NaN there: from zero), falls being resets."""
    import numpy as np

    known = ~np.isnan(values)
    place = np.where(known, np.arange(values.shape[1]), 0)
    np.maximum.accumulate(place, axis=1, out=place)
    filled = np.nan_to_num(np.take_along_axis(values, place, 1), nan=0.0)
    change = np.diff(filled, axis=1)
    grown: Floats = np.where(change < 0, filled[:, 1:], change).sum(axis=1)
    return grown


def spans(times: Floats, first: int) -> Floats:
    """How many seconds each tick from ``first`` on stands for: a pause is not held against anybody."""
    import numpy as np

    if len(times) < 2:
        return np.ones(len(times))[first:]
    span = np.diff(times, prepend=times[0])
    usual = float(np.median(span[1:]))
    span[0] = usual
    span = np.minimum(span, 2 * usual)
    return span[first:]


def figures(values: Floats, spans: Floats | None = None) -> Figures:
    """Of exact samples. ``spans``: weigh the mean by these."""
    import numpy as np

    known = ~np.isnan(values)
    n = known.sum(axis=1)
    if not values.shape[1]:
        nothing = np.full(len(values), np.nan)
        return Figures(n.astype(float), nothing, nothing, nothing, (nothing,) * 3, nothing)
    ordered = np.sort(values, axis=1)  # gaps last
    row = np.arange(len(values))
    top = np.maximum(n - 1, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        if spans is None:
            mean = np.where(known, values, 0.0).sum(axis=1) / np.where(n > 0, n, np.nan)
        else:
            total = spans.sum(axis=1)
            mean = np.where(known, values * spans, 0.0).sum(axis=1) / np.where(total > 0, total, np.nan)
    low, high = ordered[:, 0], ordered[row, top]
    return Figures(
        n.astype(float),
        low,
        np.clip(mean, low, high),  # rounding must not carry it outside
        high,
        tuple(ordered[row, np.maximum(np.ceil(q * n).astype(int) - 1, 0)] for q in QUANTILES),
        _last(values, known),
    )


def weighted_figures(values: Floats, weights: Floats, low: Floats, high: Floats) -> Figures:
    """Of values that stand for ``weights`` samples each, which lay between ``low`` and ``high``."""
    import numpy as np

    known = ~np.isnan(values)
    weights = np.where(known, weights, 0.0)
    n = weights.sum(axis=1)
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, 1)
    reached = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    row, top = np.arange(len(values)), np.maximum(known.sum(axis=1) - 1, 0)
    places = [np.minimum((reached < (q * n - 1e-9)[:, None]).sum(axis=1), top) for q in QUANTILES]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.where(known, values * weights, 0.0).sum(axis=1) / np.where(n > 0, n, np.nan)
    return Figures(
        n,
        np.fmin.reduce(low, axis=1),
        mean,
        np.fmax.reduce(high, axis=1),
        tuple(ordered[row, place] for place in places),
        _last(values, known),
    )


def _last(values: Floats, known: NDArray[np.bool_]) -> Floats:
    import numpy as np

    place = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    last: Floats = values[np.arange(len(values)), place]
    return last


def thin(times: Floats, values: Floats, points: int, largest: bool) -> tuple[Floats, Floats]:
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
