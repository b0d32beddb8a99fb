"""What does the page of one resource show, what do its charts, and what does the map?"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.alerts import title_of
from uno.core.monitoring.dashboard.cards import Cards, Steps, readable, short
from uno.core.monitoring.dashboard.web import HTTPError
from uno.core.monitoring.dependencies import MAX_ROUTES, SERVERS
from uno.core.monitoring.names import resolve, short_names
from uno.core.monitoring.thresholds import AlertLevel, Threshold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.readings import Holder
    from uno.core.monitoring.series import Series
    from uno.core.resources import Resource

MAX_POINTS = 2_000
MAX_LINES = 60  # of one chart
MAX_SERIES = 200  # of one metric on a resource's page
SIZING_SECONDS = 30.0
LINES = {"gauge": ("value",), "counter": ("rate",), "histogram": ("p95", "mean")}


def find(cards: Cards, id: str | None) -> Resource:
    """The resource of this id; HTTPError 404 with near names, 400 without an id."""
    if not id:
        raise HTTPError(400, "say which resource: ?id=...")
    try:
        return cards.monitor.manager.get(id)
    except KeyError as error:
        raise HTTPError(404, str(error)) from None


def resource(cards: Cards, id: str | None) -> Steps:
    """All about one resource."""
    found, monitor = find(cards, id), cards.monitor
    levels = monitor.team.firing()
    active = [alert for alert in cards.alerts() if alert["resource"] == found.id]
    detail = cards.card(found, levels, cards.ticks(), [alert["id"] for alert in active])
    yield
    by_metric: dict[str, list[Series]] = {}
    for series in monitor.view.select(found.id):
        by_metric.setdefault(series.metric.name, []).append(series)
    metrics = []
    for series_of in by_metric.values():
        metrics.append(_metric(cards, found, series_of))
        yield
    ended = [cards.alert(a) for a in monitor.team.ended() if a.resource == found.id]
    holders = monitor.holders(found.id)
    called = sorted(monitor.team.calls(found))  # by whom; of an application, which of its routes
    routes, callers = (called[:MAX_ROUTES], []) if found.type in SERVERS else ([], called)
    yield
    return {
        **detail,
        "note": " ".join(filter(None, (detail["note"], _sizing(cards, found)))),
        "metrics": metrics,
        "holders": [_holder(cards, h) for h in holders if not h.waiting],
        "waiters": [_holder(cards, h) for h in holders if h.waiting],
        "thresholds": _thresholds(cards, found, by_metric, levels.get(found.id, {})),
        "depends_on": [*found.depends_on, *([found.endpoint] if found.endpoint else []), *routes],
        "dependents": [*_dependents(cards, found), *callers],
        "health_history": [
            {"time": cards.wall(h.since), "status": h.status.value, "reason": readable(h.reason)}
            for h in monitor.health.history(found.id)
            if h.since is not None
        ],
        "alert_history": active + ended[:100],
        "anomalies": _anomalies(cards, by_metric),
    }


def _sizing(cards: Cards, resource: Resource) -> str:
    """Which size would fit, as the report of the last hour says; looked up every 30 s at most."""
    monitor = cards.monitor
    known = cards.sizings.get(resource.id)
    now = monitor.clock.now()
    if known is None or now - known[0] > SIZING_SECONDS:
        notes = monitor.generate_report(resource_id=resource.id).notes
        words = " ".join(note for note in notes if note.startswith("Sizing: "))
        known = now, words.replace(f"{resource.id}: ", "", 1)
        if len(cards.sizings) >= MAX_SERIES:
            cards.sizings.clear()
        cards.sizings[resource.id] = known
    return known[1]


def _metric(cards: Cards, resource: Resource, found: list[Series]) -> dict[str, Any]:
    spec, store = found[0].metric, cards.monitor.view
    lines = []
    for series in found[:MAX_SERIES]:
        stats = store.stats(series)
        lines.append({"labels": series.label_map, "value": next(iter(stats.values())), "stats": stats})
    return {
        "name": spec.name,
        "title": title_of(spec),
        "kind": spec.kind,
        "unit": spec.unit,
        "description": spec.description,
        "short": short_names(spec.name, resource.type),
        "series": lines,
    }


def _holder(cards: Cards, holder: Holder) -> dict[str, Any]:
    return {
        "site": holder.site,
        "caller": holder.caller or None,
        "since": cards.wall(holder.since),
        "count": holder.slots,
    }


def _thresholds(
    cards: Cards, resource: Resource, by_metric: dict[str, list[Series]], levels: dict[str, AlertLevel]
) -> list[dict[str, Any]]:
    book = cards.monitor.alerts
    own = {(rule.resource_id, rule.resource_type, rule.metric) for rule in book.rules() if not rule.default}
    rows = []
    for name, found in by_metric.items():
        threshold = book.threshold_for(resource.id, resource.type, name, found[0].wire)
        if threshold is None:
            continue
        spec = found[0].metric
        scopes = ((resource.id, None), (None, resource.type), (None, None))
        chosen = any((*scope, known) in own for scope in scopes for known in (name, found[0].wire))
        rows.append(
            {
                "metric": name,
                "title": title_of(spec) + (f" {threshold.stat or 'p95'}" if spec.kind == "histogram" else ""),
                "unit": _unit_of(threshold, spec.kind, spec.unit),
                "warning": threshold.warning,
                "critical": threshold.critical,
                "direction": "above" if threshold.above else "below",
                "for": threshold.for_,
                "message": threshold.alert_message,
                "level": levels.get(name, AlertLevel.OK).label,
                "default": not chosen,
            }
        )
    return rows


def _unit_of(threshold: Threshold, kind: str, unit: str) -> str:
    if kind == "counter" and threshold.stat in (None, "rate"):
        return unit + "/s"
    return "" if kind == "histogram" and threshold.stat in ("rate", "count") else unit


def _dependents(cards: Cards, resource: Resource) -> list[str]:
    return [other.id for other in cards.monitor.manager if resource.id in other.depends_on]


def _anomalies(cards: Cards, by_metric: dict[str, list[Series]]) -> list[dict[str, Any]]:
    detector = cards.monitor.detector
    if detector is None:
        return []
    watched = set(detector.watched())
    open_now = {anomaly.key: anomaly for anomaly in detector.active()}
    rows = []
    for found in by_metric.values():
        for series in found:
            if series.key not in watched:
                continue
            anomaly = open_now.get(series.key)
            try:
                state = detector.state(series.key)["learning"]
            except KeyError:  # it has just gone
                continue
            rows.append(
                {
                    "metric": series.metric.name,
                    "labels": series.label_map,
                    "state": state,
                    "started": None if anomaly is None else cards.wall(anomaly.started),
                    "explanation": "" if anomaly is None else anomaly.explanation,
                }
            )
    return rows


def series(cards: Cards, query: dict[str, str]) -> Steps:
    """The past of one metric of one resource. HTTPError 400 and 404 that say what is wrong."""
    monitor = cards.monitor
    found = find(cards, query.get("resource"))
    metric = query.get("metric", "")
    name = resolve(metric, found.type)
    chosen = monitor.view.select(found.id, name)
    if not chosen:
        known = sorted({s.metric.name for s in monitor.view.select(found.id)})
        raise HTTPError(
            404, f"{found.id!r} has no metric {metric!r}. It has {', '.join(known) or 'none yet'}."
        )
    now = cards.wall(monitor.clock.now())
    end = _number(query, "end", now)
    start = _number(query, "start", end - 900)
    if start >= end:
        raise HTTPError(400, "start= comes before end=, both in Unix seconds")
    points = int(min(MAX_POINTS, max(2, _number(query, "points", 600))))
    spec = chosen[0].metric
    axis = cards.axis(monitor.clock.moment(start), monitor.clock.moment(end), points)
    lines, exact = [], True
    for one in chosen[:MAX_LINES]:
        for stat in LINES[spec.kind]:
            values, is_exact = _line(cards, one, stat, axis)
            exact = exact and is_exact
            lines.append({"labels": one.label_map, "stat": stat, "values": values})
            yield
    threshold = monitor.alerts.threshold_for(found.id, found.type, name, chosen[0].wire)
    drawn = threshold is not None and threshold.stat in (None, *LINES[spec.kind])
    return {
        "resource": found.id,
        "metric": spec.name,
        "title": title_of(spec),
        "unit": spec.unit,
        "kind": spec.kind,
        "times": [cards.wall(t) for t in axis.tolist()],
        "series": lines,
        "warning": threshold.warning if threshold is not None and drawn else None,
        "critical": threshold.critical if threshold is not None and drawn else None,
        "exact": exact,
    }


def _line(
    cards: Cards, series: Series, stat: str, axis: NDArray[np.float64]
) -> tuple[list[float | None], bool]:
    """A statistic at each time of ``axis``: of the samples that are nearest to it, the mean; of a p95 the largest."""
    import numpy as np

    n = len(axis)
    if not n:
        return [], True
    times, values, exact = cards.monitor.history.range(series, stat, float(axis[0]), float(axis[-1]))
    known = ~np.isnan(values)
    place = np.searchsorted((axis[1:] + axis[:-1]) / 2, times[known])
    values = values[known]
    if stat == "p95":
        line = np.full(n, np.nan)
        np.fmax.at(line, place, values)
    else:
        counts = np.bincount(place, minlength=n)
        line = np.where(counts > 0, np.bincount(place, values, n) / np.maximum(counts, 1), np.nan)
    return [short(value) for value in line.tolist()], exact


def _number(query: dict[str, str], name: str, default: float) -> float:
    text = query.get(name)
    if text is None or text == "":
        return default
    try:
        value = float(text)
        if -1e11 < value < 1e11:
            return value
    except ValueError:
        pass
    raise HTTPError(400, f"{name}= is a number, not {text[:40]!r}")


def graph(cards: Cards) -> dict[str, Any]:
    """The dependency map and its picture."""
    made = cards.monitor.generate_dependency_graph()
    return {**made.to_dict(), "svg": made.to_svg() if made.nodes else ""}


def alerts(cards: Cards) -> Generator[None, None, dict[str, Any]]:
    """Active alerts and those that are over."""
    history = []
    for alert in cards.monitor.team.ended():
        history.append(cards.alert(alert))
        yield
    return {"active": cards.alerts(), "history": history}
