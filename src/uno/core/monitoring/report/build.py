"""How is a report made from the history, the levels and the alerts?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from uno.core.monitoring.alerts import Alert, title_of
from uno.core.monitoring.discovery import UnknownResourceTypeError
from uno.core.monitoring.history import Levels
from uno.core.monitoring.report.model import Report, Row
from uno.core.monitoring.report.show import clock_time
from uno.core.monitoring.report.sizing import Pool, advice, against_servers
from uno.core.monitoring.series import STATS
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.monitoring.type_monitor import ResourceTypeMonitor

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import Series
    from uno.core.resources import Resource

HOUR = timedelta(hours=1)


def build_report(
    monitor: ResourceMonitor,
    resource_type: str | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    *,
    resource_id: str | None = None,
) -> Report:
    """See ResourceMonitor.generate_report."""
    clock = monitor.clock
    now = _moment(clock.wall(clock.now()))
    start, end = _times(start_time, end_time, now)
    resources = _chosen(monitor, resource_type, resource_id)
    since, until = clock.moment(start.timestamp()), clock.moment(end.timestamp())

    wanted = [(r, s, _levels(monitor, r, s)) for r in resources for s in monitor.view.select(r.id)]
    told = monitor.history.summaries([(series, levels) for _, series, levels in wanted], since, until)
    active = monitor.team.alerts()
    present = {(a.resource, a.metric, *a.labels.values()): a.level for a in active if a.state == "firing"}
    rows = []
    for (resource, series, levels), found in zip(wanted, told, strict=True):
        spec = series.metric
        level = present.get((resource.id, spec.name, *series.labels), AlertLevel.OK)
        rows.append(
            Row(
                resource.id, resource.name, resource.type, spec.name, title_of(spec), series.label_map, spec.kind,
                spec.unit + "/s" if spec.kind == "counter" else spec.unit,
                found.samples, found.min, found.mean, found.max, found.p50, found.p95, found.p99, found.last,
                levels.warning, levels.critical, levels.below, levels.stat or STATS[spec.kind][0],
                found.above_warning, found.above_critical, level.label, found.exact,
            )
        )  # fmt: skip
    ids = {resource.id for resource in resources}
    alerts = {
        a.id: _on_the_wall(a, clock.wall)
        for a in (*monitor.team.ended(), *active)
        if a.resource in ids and a.fired_at and a.fired_at <= until and (a.resolved_at or until) >= since
    }
    fired = sorted(alerts.values(), key=lambda a: a.fired_at or 0.0)
    notes = []
    oldest = monitor.history.stats().oldest
    if oldest is None or oldest > until or (rows and not any(row.count for row in rows)):
        notes.append(f"No samples between {start:%Y-%m-%d %H:%M:%S} and {clock_time(end, start)}.")
    elif oldest > since + 2 * monitor.interval:
        notes.append(f"The history begins at {clock_time(_moment(clock.wall(oldest)), start)}.")
    if not all(row.exact for row in rows):
        notes.append("~: five-minute means stand in for samples that are no longer kept.")
    current = until > clock.now() - 2 * monitor.interval
    notes += [f"Sizing: {words}" for words in _sizing(monitor, rows, resources, current=current)]
    verdict = _verdict(resources, rows, fired, resource_type, current=current)
    return Report(start, end, verdict, rows, fired, notes)


def _sizing(
    monitor: ResourceMonitor, rows: list[Row], resources: list[Resource], *, current: bool
) -> list[str]:
    """Which sizes would fit, and, where the time ends now, what all pools together may ask of their servers."""
    workers = monitor.sharing.count
    pools = {resource.id: _pool(monitor, resource) for resource in monitor.manager}
    told = advice(rows, monitor.interval, pools, workers)
    if current:
        wanted = {pools[resource.id].server for resource in resources if resource.id in pools}
        sums = against_servers(pools, workers)
        told += [words for server, words in sums.items() if server in wanted]
    return told


def _pool(monitor: ResourceMonitor, resource: Resource) -> Pool:
    """What is known at present of a pool, and of its server by whichever worker has asked it."""
    target, driver = resource.target, resource.driver
    if target is None or not isinstance(driver, ResourceTypeMonitor):
        return Pool(None)
    try:
        limit, parts = (driver.capacity(target) or (0, None))[1], driver.limit_parts(target)
    except Exception:  # noqa: BLE001 - of an unexpected shape: its collection says so
        return Pool(None)
    if not driver.asked:
        return Pool(limit)
    told = []
    for what in ("max", "reserved", "count"):
        found = monitor.view.select(resource.id, f"uno.db.server.connection.{what}")
        told.append(monitor.view.value(found[0]) if found else None)
    database = resource.labels.get("db.namespace", "")
    server = (resource.endpoint or "").removesuffix(f"/{database}")
    setting = "maxclients" if resource.type == "redis" else "max_connections"
    return Pool(limit, parts, server, setting, *told)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def _times(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    for name, value in (("start_time", start), ("end_time", end)):
        if value is not None and not isinstance(value, datetime):
            raise TypeError(f"{name} is a datetime, not {type(value).__name__}")
    if start is not None and end is not None and (start.utcoffset() is None) != (end.utcoffset() is None):
        raise ValueError(
            f"start_time {start.isoformat()} and end_time {end.isoformat()}: one has a time zone and the other has "
            "none; give both or neither (then local time is meant)"
        )
    last = now if end is None else _local("end_time", end)
    first = (min(last, now) - HOUR).astimezone() if start is None else _local("start_time", start)
    if first >= last:
        what = "now" if end is None else "end_time"
        raise ValueError(f"start_time {first.isoformat()} is not before {what} {last.isoformat()}")
    if first >= now:
        raise ValueError(f"start_time {first.isoformat()} is in the future, it is {now.isoformat()}")
    return first, min(last, now)


def _local(name: str, value: datetime) -> datetime:
    try:
        return value.astimezone()
    except (OverflowError, OSError, ValueError):
        raise ValueError(f"{name} {value.isoformat()} is too far away to be told in local time") from None


def _chosen(monitor: ResourceMonitor, type: str | None, id: str | None) -> list[Resource]:
    resources = [monitor.manager.get(id)] if id is not None else list(monitor.manager)
    if type is None:
        return resources
    known = {*monitor.kinds.types(), *(resource.type for resource in monitor.manager)}
    known |= {type_monitor.resource_type for type_monitor in monitor.collection.type_monitors}
    if not isinstance(type, str) or type not in known:
        raise UnknownResourceTypeError(type, known)
    return [resource for resource in resources if resource.type == type]


def _levels(monitor: ResourceMonitor, resource: Resource, series: Series) -> Levels:
    threshold = monitor.alerts.threshold_for(resource.id, resource.type, series.metric.name, series.wire)
    if threshold is None or threshold.stat not in (None, *STATS[series.metric.kind]):
        return Levels()
    return Levels(threshold.warning, threshold.critical, not threshold.above, threshold.stat)


def _on_the_wall(alert: Alert, wall: Callable[[float], float]) -> Alert:
    fired, over = alert.fired_at, alert.resolved_at
    return alert._replace(
        since=wall(alert.since),
        fired_at=None if fired is None else wall(fired),
        resolved_at=None if over is None else wall(over),
    )


def _verdict(
    resources: list[Resource],
    rows: list[Row],
    alerts: list[Alert],
    type: str | None,
    *,
    current: bool,
) -> str:
    if not resources:
        return f"There are no resources{f' of type {type}' if type else ''}."
    worst: dict[str, tuple[float, ...]] = {}
    words: dict[str, str] = {}
    for alert in alerts:
        rank = (float(alert.level), alert.state == "firing", alert.fired_at or 0.0)
        if rank >= worst.get(alert.resource, ()):
            worst[alert.resource], words[alert.resource] = rank, alert.message
    names = {resource.id: resource.name for resource in resources}
    troubled = sorted(worst, key=lambda id: worst[id], reverse=True)
    many = f"{len(resources)} resource{'' if len(resources) == 1 else 's'}"
    if not troubled:
        if not any(row.count for row in rows):
            return f"Nothing is known of {many} in this time."
        return f"{'All ' if len(resources) > 1 else ''}{many} stayed within the levels."
    told = "; ".join(f"{names[id]} ({words[id]})" for id in troubled[:3])
    more = f"; and {len(troubled) - 3} more" if len(troubled) > 3 else ""
    verb = ("needs" if len(troubled) == 1 else "need") if current else "needed"
    return f"{len(troubled)} of {many} {verb} attention: {told}{more}."
