"""What do programs read of a monitor: one number, all statistics of a series, who holds what?"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Mapping, Sequence

from uno.core.monitoring.instrumentation import Stat, describe_site
from uno.core.monitoring.metrics import MetricError
from uno.core.monitoring.series import Series, SeriesStore
from uno.core.records import NamedTuple
from uno.core.resources.errors import near, shown

log = logging.getLogger("uno.monitor")


class UnknownMetricError(KeyError):
    """The resource has no metric of this name; the message names near ones."""

    def __init__(self, resource: str, metric: object, known: list[str]) -> None:
        self.resource, self.metric = resource, metric
        hint = near(metric, known) if isinstance(metric, str) else ""
        self._message = f"{shown(resource)} has no metric {shown(metric)}.{hint}"
        super().__init__(self._message)

    def __str__(self) -> str:
        return self._message


class Reading(NamedTuple):
    """One series at the last tick. ``stats`` holds its statistics by name, None for a gap."""

    resource: str
    metric: str
    labels: dict[str, str]
    kind: str
    unit: str
    stats: dict[str, float | None]


class Holder(NamedTuple):
    """Who holds (or, ``waiting``, waits for) slots of a resource. ``since`` is Unix seconds of the oldest."""

    site: str
    caller: str
    since: float
    slots: int
    waiting: bool


def reading(store: SeriesStore, series: Series) -> Reading:
    """One series at the last tick."""
    spec = series.metric
    return Reading(series.resource, spec.name, series.label_map, spec.kind, spec.unit, store.stats(series))


def choose(found: Sequence[Series], labels: Mapping[str, str] | None, what: str) -> Series | None:
    """The one series that has ``labels``, None where there is none; MetricError where there are several."""
    if labels is not None and not isinstance(labels, Mapping):
        raise MetricError(
            f"labels= maps names to values, labels={{'state': 'used'}}, not {type(labels).__name__}"
        )
    fitting = [s for s in found if all(_fits(s.label_map, k, v) for k, v in (labels or {}).items())]
    if len(fitting) > 1:
        options = "; ".join(", ".join(f"{k}={v}" for k, v in s.label_map.items()) for s in fitting[:6])
        raise MetricError(f"{what} has {len(fitting)} series, choose with labels=: {options}")
    return fitting[0] if fitting else None


def _fits(labels: Mapping[str, str], name: str, value: str) -> bool:
    return any(value == v and name in (k, k.rsplit(".", 1)[-1]) for k, v in labels.items())


def holders_of(stat: Stat, now: float) -> list[Holder]:
    """Who holds slots and who waits for one, grouped by place and caller; ``now``: Unix seconds."""
    offset = now - time.monotonic()
    found: list[Holder] = []
    for waiting, holds in ((False, stat.holds), (True, stat.waiters)):
        groups: dict[tuple[str, str], list[float]] = {}
        for site, caller, since in list(holds.values()):
            groups.setdefault((describe_site(site), caller), []).append(since)
        found += sorted(
            (Holder(site, caller, min(s) + offset, len(s), waiting) for (site, caller), s in groups.items()),
            key=lambda holder: (-holder.slots, holder.since),
        )
    return found


class Awaited:
    """Metrics that somebody waits for. A level on a name that a custom resource never gives would never fire."""

    def __init__(self, store: SeriesStore) -> None:
        self._store = store
        self._names: dict[tuple[str, str], None] = {}

    def add(self, resource_id: str, name: str) -> None:
        """Wait for a metric of a resource."""
        self._names[resource_id, name] = None

    def step(self, ids: Container[str]) -> None:
        """Say so, once, of each resource that is read by now and does not give the metric."""
        for resource_id, name in list(self._names):
            names = {series.metric.name for series in self._store.select(resource_id)}
            if not names and resource_id in ids:
                continue  # not read yet
            self._names.pop((resource_id, name), None)
            if names and name not in names:
                log.warning("%r gives no metric %r so far.%s", resource_id, name, near(name, names))
