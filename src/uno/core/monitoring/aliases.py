"""How does an application's own metric get the numbers that its resource's type already has?

``Gauge("connection_pool_usage", labels=["database_name", "pool_id"])`` names something that uno measures. Its
series share the cells of the standard series: nothing is copied, and the labels are filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uno.core.monitoring.metrics import GaugeCell, HistogramCell, Metric, MetricError, Spec
from uno.core.monitoring.series import Series, SeriesStore
from uno.core.resources import Resource

_FILLED: dict[str, Callable[[Resource], str]] = {
    "database_name": lambda r: r.labels.get("db.namespace") or r.name,
    "pool_id": lambda r: r.id,
    "resource_id": lambda r: r.id,
    "resource_name": lambda r: r.name,
    "resource_type": lambda r: r.type,
    "name": lambda r: r.name,
    "type": lambda r: r.type,
    "endpoint": lambda r: r.endpoint or "",
    "host": lambda r: (r.endpoint or "").split("/")[0].rpartition(":")[0],
    "port": lambda r: (r.endpoint or "").split("/")[0].rpartition(":")[2],
}


class Aliases:
    """The application's metrics that are fed by standard ones."""

    def __init__(self, store: SeriesStore) -> None:
        self._store = store
        self._fed: dict[tuple[str, str], tuple[Resource, Metric[Any], str]] = {}
        self._version = -1

    def add(
        self, resource: Resource, metric: Metric[Any], source: str, source_labels: tuple[str, ...]
    ) -> None:
        """Feed ``metric`` from the standard metric ``source``. MetricError for labels that nothing fills."""
        names = metric.spec.labels
        missing = [label for label in source_labels if _short(label) not in map(_short, names)]
        if missing:
            raise MetricError(
                f"{metric.name!r} of {resource.id!r} is told apart by {[_short(m) for m in missing]}: "
                "add that to labels=[...]"
            )
        known = {*_FILLED, *resource.labels, *map(_short, source_labels), *source_labels}
        for label in names:
            if label not in known:
                raise MetricError(
                    f"nothing fills the label {label!r} of {metric.name!r}; known: {', '.join(sorted(known))}. "
                    f"Or give the resource such a label: register(..., labels={{{label!r}: ...}})"
                )
        self._fed[resource.id, metric.name] = (resource, metric, source)
        self._version = -1

    def forget(self, resource_id: str) -> None:
        """The resource was unregistered."""
        for key in [key for key in self._fed if key[0] == resource_id]:
            del self._fed[key]

    def feed(self) -> None:
        """Give the metrics their series; does something only when series came or went."""
        if not self._fed or self._version == self._store.version:
            return
        for resource, metric, source in list(self._fed.values()):
            for series in self._store.select(resource.id, source):
                labels = tuple(_fill(label, resource, series) for label in metric.spec.labels)
                self._store.add(resource.id, _spec(metric, series), labels, _share(metric, series))
        self._version = self._store.version


def _short(label: str) -> str:
    return label.rsplit(".", 1)[-1]


def _fill(label: str, resource: Resource, series: Series) -> str:
    own = series.label_map
    for name, value in own.items():
        if label in (name, _short(name)):
            return value
    if label in resource.labels:
        return resource.labels[label]
    return _FILLED[label](resource)


def _spec(metric: Metric[Any], series: Series) -> Spec:
    """The metric's own; over several workers it becomes one number as the standard metric does."""
    spec = metric.spec
    if spec.kind != "gauge" or spec.merge != "sum":
        return spec
    return spec._replace(merge="max" if series.metric.kind == "histogram" else series.metric.merge)


def _share(metric: Metric[Any], series: Series) -> Any:
    cell = series.cell
    if metric.kind == series.metric.kind:
        return cell
    if isinstance(cell, HistogramCell):  # a gauge of a distribution shows its mean, a counter its count
        return cell.mean if metric.kind == "gauge" else cell.count
    if metric.kind == "gauge" and not isinstance(cell, GaugeCell):
        return cell
    raise MetricError(f"{metric.name!r} is a {series.metric.kind}, not a {metric.kind}")
