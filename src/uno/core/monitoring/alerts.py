"""What is wrong right now, what was, and who has to hear of it?

AlertBook keeps the thresholds and steps their states on each tick; other engines (anomalies, health, leaks)
open and close alerts of their own in the same book.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from uno.core.monitoring.delivery import Delivery
from uno.core.monitoring.metrics import MetricError
from uno.core.monitoring.thresholds import AlertLevel, Threshold, ThresholdState
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.metrics import Spec
    from uno.core.monitoring.series import Frame, Selector, Series, SeriesStore

log = logging.getLogger("uno.alerts")

MAX_ALERTS: Final = 1_000
MAX_HISTORY: Final = 500
REFRESH: Final = 5.0  # seconds between two looks for the cause of an alert that stays
REFRESHES: Final = 50  # at most so many of them in one tick
QUIET: Final = 30.0  # seconds without any observation after which a histogram's alert is over

AlertState = Literal["pending", "firing", "resolved"]
Explain = Callable[[str, str], str]
C = TypeVar("C", bound=Callable[["Alert"], object])


class Alert(NamedTuple):
    """One thing that is, or was, wrong; immutable, so a new one stands for each change.

    Times are unix seconds: ``since`` is when the breach began, ``fired_at`` when it had lasted long enough,
    ``resolved_at`` when it was over. ``value`` is None while there is no data. ``level`` and ``value`` are the present
    ones; those of a resolved alert are the worst it reached.
    """

    id: str
    resource: str
    metric: str
    labels: dict[str, str]
    source: str
    level: AlertLevel
    state: AlertState
    value: float | None
    threshold: float | None
    message: str
    cause: str
    since: float
    fired_at: float | None = None
    resolved_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the level by its label."""
        return {**self._asdict(), "level": self.level.label, "labels": dict(self.labels)}


class Rule(NamedTuple):
    """A threshold and what it is for. ``threshold=None`` keeps a wider rule from applying."""

    resource_id: str | None
    resource_type: str | None
    metric: str
    threshold: Threshold | None
    default: bool = False


class UnknownThresholdError(KeyError):
    """No threshold was set there; the message says which are."""

    def __str__(self) -> str:
        return str(self.args[0])


Key = tuple[str, str, str, tuple[tuple[str, str], ...]]  # source, resource, metric, labels


class _Watched:
    """One series under its threshold."""

    __slots__ = ("key", "observed", "of_tick", "selector", "series", "state")

    def __init__(self, series: Series, threshold: Threshold, selector: Selector) -> None:
        self.series = series
        self.selector = selector
        #: It speaks of what one tick observed (p95, mean, max), so that it has no value when that was nothing.
        self.of_tick = threshold.stat in (None, "p95", "mean", "max") and series.metric.kind == "histogram"
        self.observed = -inf  # Unix seconds of the last value
        self.state = ThresholdState(threshold)
        self.key: Key = ("threshold", series.resource, series.metric.name, tuple(series.label_map.items()))

    def step(self, frame: Frame, value: float) -> bool:
        """Take the value of `frame`; True when the state changed.

        A histogram that is read, but observed nothing for QUIET seconds, is on the good side of any level: no
        slow call is left to be alarmed about. A gap of the whole resource still clears nothing.
        """
        now, state = frame.time, self.state
        if value == value:
            self.observed = now
        elif self.of_tick and now - self.observed >= QUIET:
            count = frame.values[self.series.column] if self.series.column < len(frame.values) else nan
            if count == count:
                changed = state.step(now, -inf if state.threshold.above else inf) is not None
                state.value = None
                return changed
        return state.step(now, value) is not None


class _Live:
    """An alert that is pending or firing."""

    __slots__ = ("alert", "explained", "found", "peak", "worst")

    def __init__(self, alert: Alert, explained: float) -> None:
        self.alert = alert
        self.peak, self.worst = alert.level, alert.value
        self.explained = explained  # when the cause was last looked for
        self.found = ""  # a newer cause, not told yet

    def saw(self, value: float | None, *, above: bool) -> None:
        """Remember the worst value."""
        if value is not None and (
            self.worst is None or (value > self.worst if above else value < self.worst)
        ):
            self.worst = value


class _Index:
    """All watched series as columns, so that one comparison finds those that need a look."""

    def __init__(self, watched: dict[str, _Watched]) -> None:
        import numpy as np

        self.watched = list(watched.values())
        self.column = np.array([w.selector.column for w in self.watched], dtype=np.intp)
        self.is_rate = np.array([w.selector.rate for w in self.watched], dtype=bool)
        self.sign = np.array([1.0 if w.state.threshold.above else -1.0 for w in self.watched])
        self.limit = np.array([_first_limit(w.state.threshold) for w in self.watched]) * self.sign
        self.active = np.array([w.state.state != "ok" for w in self.watched], dtype=bool)

    def read(self, frame: Frame) -> NDArray[np.float64]:
        """The watched statistics of `frame`; NaN for gaps and for columns younger than the frame."""
        import numpy as np

        width = len(frame.row)
        if not width:
            return np.full(len(self.watched), np.nan)
        column = np.minimum(self.column, width - 1)
        found = np.where(self.is_rate, frame.rates[column], frame.row[column])
        found[self.column >= width] = np.nan
        return found

    def hot(self, values: NDArray[np.float64]) -> list[int]:
        """The positions of those that breach their first level or are not ok."""
        import numpy as np

        return np.flatnonzero((values * self.sign > self.limit) | self.active).tolist()


class AlertBook:
    """The thresholds, their states, and every alert of any source.

    `evaluate`, `open` and `close` belong to the monitor's thread; thresholds may be set from any thread and
    take effect with the next tick; reading (`active`, `history`, `level`, `firing`) takes no lock.
    `interval` is the time between two ticks in seconds: time that is longer than two of them was not watched.
    """

    def __init__(self, store: SeriesStore, *, interval: float = 1.0, max_alerts: int = MAX_ALERTS) -> None:
        self.interval = interval
        self.truncated = 0  # alerts that found no room in the last tick
        self.explain_failures = 0
        self.delivery = Delivery()
        self._store = store
        self._max = max_alerts
        self._rules: dict[tuple[str | None, str | None, str, bool], Rule] = {}
        self._live: dict[Key, _Live] = {}
        self._history: deque[Alert] = deque(maxlen=MAX_HISTORY)
        self._firing: dict[str, dict[str, AlertLevel]] = {}
        self._watched: dict[str, _Watched] = {}
        self._index: _Index | None = None
        self._version = -1
        self._resources: dict[str, str] = {}
        self._floor = 0  # no live alert ranks lower
        self._said_truncated = False
        self._said_unreadable: set[tuple[str, str | None]] = set()
        self._last: float | None = None
        self._lock = threading.RLock()

    # -- thresholds ------------------------------------------------------------------------------------

    def set(
        self,
        resource_id: str | None,
        resource_type: str | None,
        metric: str,
        threshold: Threshold | None,
        default: bool = False,
    ) -> None:
        """Set or replace the threshold of a metric for one resource, for a type, or (both None) for all.

        One for the resource beats one for its type, which beats one for all, which beats `default` ones.
        `metric` is the model's, the Prometheus or the application's own name. `None` as threshold means: none
        here, whatever wider rules say. Alerts of the replaced threshold are resolved at the next tick.
        """
        if resource_id is not None and resource_type is not None:
            raise ValueError(
                "a threshold is for one resource or for a type: pass resource_id or resource_type"
            )
        with self._lock:
            rule = Rule(resource_id, resource_type, metric, threshold, default)
            self._rules[resource_id, resource_type, metric, default] = rule
            self._version = -1

    def remove(
        self, resource_id: str | None, resource_type: str | None, metric: str, default: bool = False
    ) -> None:
        """Remove what `set` set; its alerts are resolved at the next tick. Raises UnknownThresholdError."""
        with self._lock:
            if self._rules.pop((resource_id, resource_type, metric, default), None) is None:
                known = sorted(
                    f"{rule.resource_id or rule.resource_type or 'all'}: {rule.metric}"
                    for rule in self._rules.values()
                    if rule.default is default
                )
                there = resource_id or resource_type or "all resources"
                raise UnknownThresholdError(
                    f"no threshold of {metric!r} is set for {there!r}; set are: {', '.join(known) or 'none'}"
                )
            self._version = -1

    def rules(self) -> list[Rule]:
        """All thresholds as they were set."""
        return list(self._rules.values())

    def threshold_for(self, resource_id: str, resource_type: str | None, *names: str) -> Threshold | None:
        """The threshold in effect for a metric (by any of its names) of a resource, or None."""
        rules = self._rules
        for id, type, default in (
            (resource_id, None, False),
            (None, resource_type, False),
            (None, None, False),
            (resource_id, None, True),
            (None, resource_type, True),
            (None, None, True),
        ):
            for name in names:
                rule = rules.get((id, type, name, default))
                if rule is not None:
                    return rule.threshold
        return None

    # -- the tick --------------------------------------------------------------------------------------

    def evaluate(
        self, frame: Frame, resources: Mapping[str, str], explain: Explain | None = None
    ) -> list[Alert]:
        """Step every threshold to `frame` and return the alerts that changed.

        `resources` gives the type of each resource that exists; alerts of others are resolved. `explain` is
        asked for the cause (one sentence or "") when an alert fires, escalates, and every few seconds while the
        breach goes on.
        """
        with self._lock:
            now = frame.time
            changes: list[Alert] = []
            if self._version != self._store.version or self._resources != resources:
                self._reindex(now, resources, changes)
            unwatched = self._last is not None and now - self._last > 2 * self.interval
            self._last = now
            self.truncated = 0
            firing: dict[str, dict[str, AlertLevel]] = {}
            index = self._index
            if index is not None and index.watched:
                values = index.read(frame)
                hot = index.hot(values)
                refreshes = REFRESHES
                for i, value in zip(hot, values[hot].tolist(), strict=True):
                    watched = index.watched[i]
                    state = watched.state
                    if unwatched:
                        state.step(now, None)
                    changed = watched.step(frame, value)
                    index.active[i] = state.state != "ok"
                    if state.level:
                        levels = firing.setdefault(watched.series.resource, {})
                        name = watched.series.metric.name
                        levels[name] = max(state.level, levels.get(name, AlertLevel.OK))
                    refreshes -= self._follow(now, watched, changed, explain, refreshes > 0, changes)
            self._firing = firing
            if self.truncated and not self._said_truncated:
                self._said_truncated = True
                log.warning("more than %d alerts at once: only the worst are kept", self._max)
            return changes

    def _reindex(self, now: float, resources: Mapping[str, str], changes: list[Alert]) -> None:
        self._version = self._store.version
        self._resources = dict(resources)
        effective: dict[tuple[str, str], Threshold | None] = {}
        before, self._watched = self._watched, {}
        for series in self._store.all():
            resource, spec = series.resource, series.metric
            if resource not in resources:
                continue
            at = (resource, spec.name)
            if at not in effective:
                effective[at] = self.threshold_for(resource, resources[resource], spec.name, series.wire)
            threshold = effective[at]
            if threshold is None:
                continue
            known = before.get(series.key)
            if known is not None and known.series is series and known.state.threshold == threshold:
                known.selector = self._store.selector(series, threshold.stat)  # columns may have moved
                self._watched[series.key] = known
                continue
            try:
                selector = self._store.selector(series, threshold.stat)
            except MetricError as error:
                if (spec.name, threshold.stat) not in self._said_unreadable:
                    self._said_unreadable.add((spec.name, threshold.stat))
                    log.warning("a threshold cannot be read: %s", error)
                continue
            self._watched[series.key] = _Watched(series, threshold, selector)
        for key, watched in before.items():
            if self._watched.get(key) is not watched and watched.key in self._live:
                if watched.series.resource not in resources:
                    reason = "resource removed"
                elif not watched.series.live:
                    reason = "series removed"
                else:
                    reason = "threshold changed"
                self._resolve(now, watched.key, changes, reason)
        for event in [k for k in self._live if k[0] != "threshold" and k[1] not in resources]:
            self._resolve(now, event, changes, "resource removed")
        self._index = _Index(self._watched)

    def _follow(
        self,
        now: float,
        watched: _Watched,
        changed: bool,
        explain: Explain | None,
        may_refresh: bool,
        changes: list[Alert],
    ) -> bool:
        """Bring the alert of one series up to its state; True when a cause was looked for unasked."""
        state, key = watched.state, watched.key
        live = self._live.get(key)
        if state.state == "ok":
            if live is not None:
                live.alert = live.alert._replace(value=live.worst)
                self._resolve(now, key, changes)
            return False
        firing = state.state == "firing"
        if live is None:
            if not self._has_room(state.level, now, changes):
                return False
            alert = Alert(
                id=_identity(key, state.since or now),
                resource=watched.series.resource,
                metric=watched.series.metric.name,
                labels=watched.series.label_map,
                source="threshold",
                level=state.level,
                state="firing" if firing else "pending",
                value=state.value,
                threshold=_limit_shown(state),
                message=_message(watched),
                cause=self._cause(explain, watched.series) if firing else "",
                since=state.since or now,
                fired_at=now if firing else None,
            )
            self._add(key, _Live(alert, now), changes)
            return False
        alert = live.alert
        live.saw(state.value, above=state.threshold.above)
        if changed:
            worse = state.level > alert.level
            live.alert = alert._replace(
                level=state.level,
                state="firing" if firing else "pending",
                value=state.value,
                threshold=_limit_shown(state),
                message=_message(watched),
                cause=(self._cause(explain, watched.series) if worse else "") or alert.cause,
                fired_at=now if firing and alert.fired_at is None else alert.fired_at,
            )
            live.peak = max(live.peak, state.level)
            live.explained, live.found = now, ""
            self._changed(live.alert, changes)
            return False
        # An alert that lingers keeps the cause of its worst level: who is met now is innocent.
        breached = firing and state.threshold.level_of(state.value) >= live.peak
        cause = alert.cause
        if breached and live.found:
            cause, live.found = live.found, ""
        if firing and may_refresh and not 0 <= now - live.explained < REFRESH:
            live.explained = now
            live.alert = alert._replace(value=state.value, message=_message(watched), cause=cause)
            if breached:
                # A value speaks of the time since the last tick, and may be over by now: told when the breach goes on.
                live.found = self._cause(explain, watched.series)
            return breached
        if state.value != alert.value or cause is not alert.cause:
            live.alert = alert._replace(value=state.value, cause=cause)
        return False

    def _cause(self, explain: Explain | None, series: Series) -> str:
        if explain is None:
            return ""
        try:
            return explain(series.resource, series.metric.name)
        except Exception as error:  # noqa: BLE001 - the alert matters more than its explanation
            self.explain_failures += 1
            if self.explain_failures == 1:
                log.warning("the cause of an alert could not be found: %s", type(error).__name__)
            return ""

    # -- alerts of other sources -----------------------------------------------------------------------

    def open(
        self,
        source: str,
        resource: str,
        metric: str,
        labels: Mapping[str, str],
        level: AlertLevel,
        message: str,
        value: float | None = None,
        *,
        now: float,
        cause: str = "",
    ) -> list[Alert]:
        """Open, or update, the alert of another engine and return the changes; it fires at once.

        `source` is "anomaly", "health" or "leak"; source, resource, metric and labels together say which one.
        A new value, message or cause alone is no change.
        """
        key: Key = (source, resource, metric, tuple(sorted(labels.items())))
        changes: list[Alert] = []
        with self._lock:
            live = self._live.get(key)
            if live is None:
                if self._has_room(level, now, changes):
                    alert = Alert(
                        id=_identity(key, now),
                        resource=resource,
                        metric=metric,
                        labels=dict(labels),
                        source=source,
                        level=level,
                        state="firing",
                        value=value,
                        threshold=None,
                        message=message,
                        cause=cause,
                        since=now,
                        fired_at=now,
                    )
                    self._add(key, _Live(alert, now), changes)
                return changes
            changed = level is not live.alert.level
            live.alert = live.alert._replace(level=level, value=value, message=message, cause=cause)
            live.peak = max(live.peak, level)
            if changed:
                self._changed(live.alert, changes)
            return changes

    def close(
        self,
        source: str,
        resource: str,
        metric: str,
        labels: Mapping[str, str],
        *,
        now: float,
        reason: str = "",
    ) -> list[Alert]:
        """Resolve what `open` opened and return the change; nothing when it is not open."""
        changes: list[Alert] = []
        with self._lock:
            key: Key = (source, resource, metric, tuple(sorted(labels.items())))
            if key in self._live:
                self._resolve(now, key, changes, reason)
        return changes

    # -- bookkeeping -----------------------------------------------------------------------------------

    def _has_room(self, rank: int, now: float, changes: list[Alert]) -> bool:
        if len(self._live) < self._max:
            return True
        self.truncated += 1
        while rank > self._floor:
            least = next((key for key, live in self._live.items() if _rank(live.alert) == self._floor), None)
            if least is not None:
                self._resolve(now, least, changes, f"no longer followed: more than {self._max} alerts")
                return True
            self._floor += 1
        return False

    def _add(self, key: Key, live: _Live, changes: list[Alert]) -> None:
        self._live[key] = live
        self._changed(live.alert, changes)

    def _resolve(self, now: float, key: Key, changes: list[Alert], reason: str = "") -> None:
        live = self._live.pop(key)
        alert = live.alert._replace(
            state="resolved", level=live.peak, resolved_at=now, cause=reason or live.alert.cause
        )
        if alert.fired_at is not None:
            self._history.append(alert)
        self._changed(alert, changes)

    def _changed(self, alert: Alert, changes: list[Alert]) -> None:
        changes.append(alert)
        if alert.state != "resolved":
            self._floor = min(self._floor, _rank(alert))
        if alert.fired_at is None:
            log.debug("%s: %s", alert.state, plain(alert.message))
        elif alert.state == "resolved":
            lasted = human((alert.resolved_at or 0) - alert.fired_at, "s")
            log.info("resolved after %s: %s", lasted, plain(_placed(alert)))
        else:
            level = logging.CRITICAL if alert.level is AlertLevel.CRITICAL else logging.WARNING
            cause = f" ({plain(alert.cause)})" if alert.cause else ""
            log.log(level, "%s%s", plain(_placed(alert)), cause)

    # -- reading ---------------------------------------------------------------------------------------

    def active(self) -> list[Alert]:
        """What is pending or firing: the worst first, then the newest."""
        alerts = [live.alert for live in list(self._live.values())]
        return sorted(alerts, key=lambda alert: (-_rank(alert), -alert.since))

    def history(self, limit: int = MAX_HISTORY) -> list[Alert]:
        """What fired and is over, the latest first."""
        return list(reversed(self._history.copy()))[:limit]

    def firing(self) -> dict[str, dict[str, AlertLevel]]:
        """By resource, the worst firing level of each metric; of all sources but "health"."""
        found = {resource: dict(levels) for resource, levels in self._firing.items()}
        for live in list(self._live.values()):
            alert = live.alert
            if alert.source not in ("threshold", "health"):
                levels = found.setdefault(alert.resource, {})
                levels[alert.metric] = max(alert.level, levels.get(alert.metric, AlertLevel.OK))
        return found

    def level(self, resource_id: str) -> AlertLevel:
        """The worst level that fires on a resource."""
        return max(self.firing().get(resource_id, {}).values(), default=AlertLevel.OK)

    # -- delivery --------------------------------------------------------------------------------------

    def on_alert(self, callback: C) -> C:
        """Call `callback(alert)` for each alert that fires, changes its level or is resolved; see Delivery.

        Returns the callback, so that it can be used as a decorator.
        """
        return self.delivery.add(callback)

    def deliver(self, changes: Sequence[Alert]) -> None:
        """Hand changes over to the callbacks; returns at once. Alerts that never fired are not told."""
        self.delivery.put(alert for alert in changes if alert.fired_at is not None)

    def shutdown(self, timeout: float = 1.0) -> None:
        """End the delivery's threads; what is queued is told first, within `timeout` seconds."""
        self.delivery.close(timeout)

    def reinit_after_fork(self) -> None:
        """Renew the locks in a forked child and forget what the parent had still to deliver."""
        self._lock = threading.RLock()
        self.delivery.reinit_after_fork()


def _first_limit(threshold: Threshold) -> float:
    limit = threshold.critical if threshold.warning is None else threshold.warning
    assert limit is not None
    return limit


def _rank(alert: Alert) -> int:
    return alert.level if alert.state == "firing" else 0


def _identity(key: Key, since: float) -> str:
    from hashlib import blake2b

    return blake2b(f"{key!r} {since:.3f}".encode(errors="replace"), digest_size=8).hexdigest()


# -- words ---------------------------------------------------------------------------------------------


def _placed(alert: Alert) -> str:
    """The message, with the resource where the application's own words leave it out."""
    return alert.message if alert.resource in alert.message else f"{alert.resource}: {alert.message}"


def plain(words: str) -> str:
    """Without characters that would steer a terminal or begin a line of their own: labels come from anywhere."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def _level_shown(state: ThresholdState) -> AlertLevel:
    if state.level:
        return state.level
    return AlertLevel.CRITICAL if state.threshold.warning is None else AlertLevel.WARNING


def _limit_shown(state: ThresholdState) -> float | None:
    return state.threshold.limit(_level_shown(state))


def _message(watched: _Watched) -> str:
    state, series = watched.state, watched.series
    threshold, spec = state.threshold, series.metric
    if threshold.alert_message:
        return threshold.alert_message
    stat = threshold.stat or {"counter": "rate", "histogram": "p95"}.get(spec.kind, "value")
    per_second = stat == "rate"
    unit = "" if spec.kind == "histogram" and stat in ("count", "rate") else spec.unit
    level = _level_shown(state)
    limit, recovery = threshold.limit(level), threshold.recovery(level)
    subject = title_of(spec) + (f" ({stat})" if spec.kind == "histogram" else "")
    side = "above" if threshold.above else "below"
    bounds = f"{level.label} {side} {human(limit, unit, per_second)}"
    value = state.value
    held = value is not None and limit is not None and not threshold.breaches(value, limit)
    if held and recovery != limit:
        bounds += f", over at {human(recovery, unit, per_second)}"
    where = series.resource
    if series.labels:
        where += f" ({', '.join(f'{name}={text}' for name, text in series.label_map.items())})"
    return f"{subject}: {human(value, unit, per_second)} ({bounds}) on {where}"


def title_of(spec: Spec) -> str:
    """The words for a metric: its title, else its name made readable (``queue_depth``: "Queue depth")."""
    words = spec.title or spec.name.replace("_", " ").replace(".", " ").strip()
    return words[:1].upper() + words[1:]


def human(value: float | None, unit: str = "", per_second: bool = False) -> str:
    """A value as people write it: 0.95 "1" is "95 %", 0.012 "s" is "12 ms", 2e6 "By" is "1.91 MiB"."""
    if value is None or value != value:
        return "no data"
    size, suffix, factor = abs(value), "", 1.0
    if unit == "1":
        factor, suffix = 0.01, " %"
    elif unit == "s":
        for factor, name in _TIMES:
            if size >= factor or name == "µs":
                suffix = f" {name}"
                break
    elif unit == "By":
        for factor, name in _SIZES:
            if size >= factor or name == "B":
                suffix = f" {name}"
                break
    elif unit.startswith("{"):
        noun = unit.strip("{}").replace("_", " ")
        suffix = f" {noun if size == 1 else _plural(noun)}"
    elif unit:
        suffix = f" {unit}"
    if unit == "s" and size == 0:
        suffix = " s"
    return _digits(value / factor) + suffix + ("/s" if per_second else "")


_TIMES: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZES: Final = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun if noun.endswith("s") else noun + "s"


def _digits(value: float) -> str:
    size = abs(value)
    if size in (0.0, float("inf")):
        return "0" if size == 0 else "infinite" if value > 0 else "-infinite"
    if size >= 1e15 or size < 0.001:
        return f"{value:.3g}"
    text = f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
