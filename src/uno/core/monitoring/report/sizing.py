"""Which size would fit a pool, by what was measured?"""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uno.core.monitoring.report.model import Row

#: What is used, what limits it, and the wait for it, by the words for one slot.
POOLS = {
    "connection": (
        "db.client.connection.use_time",
        "db.client.connection.max",
        "db.client.connection.wait_time",
    ),
    "thread": ("thread_pool.task.duration", "thread_pool.thread.max", "thread_pool.task.wait_time"),
}
MIN_USES = 200
MIN_SECONDS = 60.0
#: Sizes nearer than this share to the present one are as good.
CLOSE = 0.25


class Sizing(NamedTuple):
    """The size that fits by measurement: ``load`` is the mean number of slots in use at a time."""

    load: float
    size: int


def fitting(uses: float, mean_use: float, seconds: float) -> Sizing:
    """The size for ``uses`` in ``seconds``, each of ``mean_use`` seconds.

    Little's law (J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", Operations Research 9 (1961)) gives
    the mean number in use, L = lambda * W, whatever the distributions are. Arrivals vary, so some are spare, by the
    square-root staffing rule: L + 2 * sqrt(L) (S. Halfin and W. Whitt, Operations Research 29 (1981)).
    """
    load = uses / seconds * mean_use
    return Sizing(load, max(1, ceil(load + 2 * sqrt(load))))


def advice(rows: Iterable[Row], interval: float, workers: int = 1) -> list[str]:
    """One sentence for each pool whose size does not fit, with its evidence. Nothing without enough of it.

    ``rows`` tell of all ``workers``, each of which has such a pool.
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if not row.labels:
            found.setdefault(row.resource, {})[row.metric] = row
    told = []
    for resource, metrics in found.items():
        for noun, names in POOLS.items():
            if all(name in metrics for name in names):
                use, limit, wait = (metrics[name] for name in names)
                words = _words(noun, use, limit, wait, interval, workers)
                if words:
                    told.append(f"{resource}: {words}")
    return told


def _words(noun: str, use: Row, limit: Row, wait: Row, interval: float, workers: int) -> str:
    size, seconds = limit.last, limit.count * interval
    if size is None or limit.min != limit.max or not size or not use.exact or use.mean is None:
        return ""  # unknown, or changed in this time
    if use.count < MIN_USES or seconds < MIN_SECONDS:
        return ""
    uses, size = use.count / workers, size / workers
    load, fits = fitting(uses, use.mean, seconds)
    if abs(fits - size) <= max(1, CLOSE * size):
        return ""
    waited = f", 95 % waited less than {wait.p95:.3g} s" if wait.p95 is not None and wait.count else ""
    words = (
        f"{fits} {noun}{'' if fits == 1 else 's'} would fit, it may have {size:g}: {uses / seconds:.3g} uses a "
        f"second of {use.mean:.3g} s each keep {load:.2g} busy on average ({uses:,.0f} uses in {seconds:.0f} s"
        f"{waited})."
    )
    if workers > 1:
        words += f" In each of the {workers} workers, were all used alike."
    if noun == "connection":
        process = "" if workers > 1 else "For this process; multiply by the workers. "
        words += f" {process}The server's own limit is unknown."
    return words
