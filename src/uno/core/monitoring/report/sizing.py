"""Which size would fit a pool, by what was measured, and does the server take what all workers may open?"""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING

from uno.core.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uno.core.monitoring.report.model import Row

#: What is used, what limits it, and the wait for it; with the words for one slot.
POOLS = (
    (
        "connection",
        "db.client.connection.use_time",
        "db.client.connection.max",
        "db.client.connection.wait_time",
    ),
    ("connection", "http.client.connection.use_time", "http.client.connection.max", "http.client.wait_time"),
    ("thread", "thread_pool.task.duration", "thread_pool.thread.max", "thread_pool.task.wait_time"),
    ("process", "process_pool.task.duration", "process_pool.process.max", "process_pool.task.wait_time"),
    ("token", "limiter.use_time", "limiter.token.max", "limiter.wait_time"),
)
#: Their limits are mostly the library's own, which costs nothing: only a larger one is advised.
GENEROUS = ("http.client.connection.max", "limiter.token.max")
MIN_USES = 200
MIN_SECONDS = 60.0
#: Sizes nearer than this share to the present one are as good.
CLOSE = 0.25


class Sizing(NamedTuple):
    """The size that fits by measurement: ``load`` is the mean number of slots in use at a time."""

    load: float
    size: int


class Pool(NamedTuple):
    """What is known of a pool at present. ``limit`` is its own in this process, ``parts`` what that is the sum of.

    ``server`` takes ``taken`` connections at most, ``reserved`` of them for its administrators, and has ``opened`` now,
    from anybody; ``setting`` is what the server calls its limit. None is unknown.
    """

    limit: float | None
    parts: tuple[float, ...] = ()
    server: str = ""
    setting: str = ""
    taken: float | None = None
    reserved: float | None = None
    opened: float | None = None

    @property
    def room(self) -> float | None:
        """The connections that the server takes from applications."""
        return None if self.taken is None else self.taken - (self.reserved or 0)


def fitting(uses: float, mean_use: float, seconds: float) -> Sizing:
    """The size for ``uses`` in ``seconds``, each of ``mean_use`` seconds.

    Little's law (J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", Operations Research 9 (1961)) gives
    the mean number in use, L = lambda * W, whatever the distributions are. Arrivals vary, so some are spare, by the
    square-root staffing rule: L + 2 * sqrt(L) (S. Halfin and W. Whitt, Operations Research 29 (1981)).
    """
    load = uses / seconds * mean_use
    return Sizing(load, max(1, ceil(load + 2 * sqrt(load))))


def advice(
    rows: Iterable[Row], interval: float, pools: Mapping[str, Pool] | None = None, workers: int = 1
) -> list[str]:
    """One sentence for each pool whose size does not fit, with its evidence. Nothing without enough of it.

    The rows are those of all ``workers``, which share the load; ``pools`` says what this process knows of each.
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if not row.labels:
            found.setdefault(row.resource, {})[row.metric] = row
    told = []
    for resource, metrics in found.items():
        for noun, *names in POOLS:
            if all(name in metrics for name in names):
                use, limit, wait = (metrics[name] for name in names)
                words = _words(noun, use, limit, wait, interval, (pools or {}).get(resource), workers)
                if words:
                    told.append(f"{resource}: {words}")
    return told


def _words(
    noun: str, use: Row, limit: Row, wait: Row, interval: float, pool: Pool | None, workers: int
) -> str:
    sum_, seconds = limit.last, limit.count * interval
    if sum_ is None or limit.min != limit.max or not sum_ or not use.exact or use.mean is None:
        return ""  # unknown, or changed in this time
    if use.count < MIN_USES or seconds < MIN_SECONDS:
        return ""
    size = sum_ / workers
    if pool is not None and pool.limit is not None and pool.limit != size:
        return ""  # not the same in all workers, or not there in all
    load, fits = fitting(use.count / workers, use.mean, seconds)
    if abs(fits - size) <= max(1, CLOSE * size) or (fits < size and limit.metric in GENEROUS):
        return ""
    waited = f", 95 % waited less than {wait.p95:.3g} s" if wait.p95 is not None and wait.count else ""
    each = f" in each of {workers} workers" if workers > 1 else ""
    slots = noun if fits == 1 else f"{noun}es" if noun == "process" else f"{noun}s"
    words = (
        f"{fits} {slots}{each} would fit, {'each' if each else 'it'} may have {size:g}: {use.count / seconds:.3g} uses "
        f"a second of {use.mean:.3g} s each keep {load:.2g} busy on average{each} ({use.count:,} uses in "
        f"{seconds:.0f} s{waited})."
    )
    if use.metric.startswith("db."):
        words += _against_server(fits, pool, workers)
    return words


def _against_server(fits: int, pool: Pool | None, workers: int) -> str:
    alone = "" if workers > 1 else " For this process; multiply by the workers."
    if pool is None or pool.room is None:
        return f"{alone} The server's own limit is unknown."
    if fits * workers <= pool.room:
        return ""
    product = f"{workers} x {fits} = {fits * workers}" if workers > 1 else f"{fits}"
    return (
        f" But {product} is more than the {pool.room:g} that the server has for applications: hold connections for "
        f"less time, or raise {pool.setting or 'its limit'}."
    )


def against_servers(pools: Mapping[str, Pool], workers: int) -> dict[str, str]:
    """For each server that tells its limit a sentence on what all pools of all workers may open, by the server.

    It is a warning where that is more than the server takes.
    """
    servers: dict[str, dict[str, Pool]] = {}
    for resource, pool in pools.items():
        if pool.server and pool.limit is not None:
            servers.setdefault(pool.server, {})[resource] = pool
    told = {}
    for server, found in servers.items():
        asked = max(found.values(), key=lambda pool: (pool.taken is not None, pool.opened or 0))
        if asked.room is not None:
            told[server] = f"{', '.join(found)}: {_sum(server, list(found.values()), asked, workers)}"
    return told


def _sum(server: str, pools: list[Pool], asked: Pool, workers: int) -> str:
    sum_ = sum(pool.limit or 0 for pool in pools) * workers
    times = f"{workers} workers x " if workers > 1 else ""
    terms = []
    for pool in pools:
        parts = " + ".join(f"{part:g}" for part in pool.parts)
        terms.append(times + (f"({parts})" if len(pool.parts) > 1 else f"{pool.limit:g}"))
    product = f"{' + '.join(terms)} = " if times or len(pools) > 1 or len(pools[0].parts) > 1 else ""
    room = asked.room or 0
    takes = f"the server {server} takes {asked.taken:g}"
    if asked.reserved:
        takes += f", {room:g} for applications"
    if asked.opened is not None:
        takes += f"; {asked.opened:g} {'is' if asked.opened == 1 else 'are'} open now"
    many = f"{product}{sum_:g} connections may be opened{'' if times else ' by this process'}"
    if sum_ <= room:
        return f"{many}, {takes}."
    return (
        f"WARNING: {many}, {sum_ - room:g} more than there is room for: {takes}. What is beyond is refused: make the "
        f"pools smaller, or raise {asked.setting or 'its limit'}."
    )
