"""What do the workers of a service tell each other beside numbers, and what do all of them say together?

Alerts, health, who holds what, who calls what, exemplars: each worker writes down at every tick what it knows, and
reads what the others wrote. Alone, a monitor says what it knows itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.alerts import Alert
from uno.core.monitoring.cells import CounterCell, Exemplar, HistogramCell
from uno.core.monitoring.health import Health, HealthStatus
from uno.core.monitoring.readings import Holder, holders_of
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    from uno.core.monitoring.clock import Clock
    from uno.core.monitoring.graph.model import Calls
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import Series, SeriesStore
    from uno.core.resources import Resource

log = logging.getLogger("uno.workers")

MAX_HOLDERS = 50
MAX_ENDED = 50

#: A series: resource, metric, names and values of its labels.
_Series = tuple[str, str, tuple[str, ...], tuple[str, ...]]


class _Told(NamedTuple):
    """What another worker said. Times are those of this monitor's clock."""

    worker: int
    alerts: list[Alert]
    health: dict[str, Health]
    holders: dict[str, list[Holder]]
    calls: dict[str, dict[str, Calls]]
    exemplars: dict[_Series, dict[int, Exemplar]]


class Team:
    """All workers of the service as one; readers may come from any thread."""

    def __init__(self, monitor: ResourceMonitor) -> None:
        self._monitor = monitor
        self._known: dict[int, tuple[bytes, _Told | None]] = {}
        self._said_long = False

    # -- speaking --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Tell the others what this worker knows, and show what they said of exemplars."""
        monitor = self._monitor
        if monitor.view is monitor.store:
            return
        own = _exemplars_of(monitor.store.all())
        # All of it, else without exemplars, else only what is wrong.
        shorter: tuple[tuple[dict[_Series, dict[int, Exemplar]], bool], ...] = (
            (own, True),
            ({}, True),
            ({}, False),
        )
        told = any(monitor.sharing.tell(_encode(self._words(*what))) for what in shorter)
        if not told and not self._said_long:
            self._said_long = True
            log.warning("there is too much to tell the other workers of alerts and health: nothing is told")
        exemplars = [own, *(other.exemplars for other in self._others())]
        if any(exemplars):
            _show(monitor.view, exemplars)

    def _words(self, exemplars: dict[_Series, dict[int, Exemplar]], whole: bool) -> dict[str, Any]:
        monitor = self._monitor
        clock, now = monitor.clock, monitor.clock.now()
        words: dict[str, Any] = {
            "alerts": [
                _alert_out(alert, clock)
                for alert in (*monitor.alerts.active(), *monitor.alerts.history(MAX_ENDED if whole else 0))
            ],
            "health": {r.id: _health_out(monitor.health.health(r.id, now), clock) for r in monitor.manager},
        }
        if whole:
            holders, calls = {}, {}
            for resource in monitor.manager:
                held = self._own_holders(resource)
                if held:
                    holders[resource.id] = [
                        (h.site, h.caller, round(clock.wall(h.since), 2), h.slots, h.waiting)
                        for h in held[:MAX_HOLDERS]
                    ]
                called = monitor.callers.calls(resource, monitor.stat_of(resource), monitor.store)
                if called:
                    calls[resource.id] = called
            words |= {"holders": holders, "calls": calls}
        if exemplars:
            words["exemplars"] = [[*key, list(found.items())] for key, found in exemplars.items()]
        return words

    # -- hearing ---------------------------------------------------------------------------------------

    def _others(self) -> list[_Told]:
        words = self._monitor.sharing.words
        known = {}
        for worker, said in words:
            before = self._known.get(worker)
            known[worker] = (
                before if before is not None and before[0] == said else (said, self._decode(worker, said))
            )
        self._known = known
        return [told for _, told in known.values() if told is not None]

    def _decode(self, worker: int, said: bytes) -> _Told | None:
        from uno.core.monitoring.graph.model import Calls

        clock = self._monitor.clock
        try:
            words = json.loads(said)
            return _Told(
                worker,
                [_alert_in(alert, worker, clock) for alert in words["alerts"]],
                {str(id): _health_in(health, clock) for id, health in words["health"].items()},
                {
                    str(id): [
                        Holder(str(site), str(by), clock.moment(since), int(slots), bool(waiting))
                        for site, by, since, slots, waiting in held
                    ]
                    for id, held in words.get("holders", {}).items()
                },
                {
                    str(id): {
                        str(name): Calls(float(n), float(errors), *map(_known, present))
                        for name, (n, errors, *present) in calls.items()
                    }
                    for id, calls in words.get("calls", {}).items()
                },
                {
                    (str(resource), str(metric), tuple(names), tuple(labels)): {
                        int(at): Exemplar(
                            tuple((str(k), str(v)) for k, v in pairs), float(value), float(time)
                        )
                        for at, (pairs, value, time) in found
                    }
                    for resource, metric, names, labels, found in words.get("exemplars", ())
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # it is damaged

    # -- what all say ----------------------------------------------------------------------------------

    def health(self, resource_id: str, now: float | None = None) -> Health:
        """The health of a resource over all workers that know it: the worst, but down only where it is so in all.

        What a part of the workers has is degraded at most, so that every worker gives the same answer.
        """
        monitor = self._monitor
        own = monitor.health.health(resource_id, monitor.clock.now() if now is None else now)
        found = [own, *(told.health[resource_id] for told in self._others() if resource_id in told.health)]
        known = [health for health in found if health.status is not HealthStatus.UNKNOWN]
        if len(found) == 1 or not known:
            return own
        worst = max(known, key=lambda health: health.status.rank)
        alike = [health for health in known if health.status is worst.status]
        if len(alike) == len(known):
            return alike[0]
        where = f"(in {len(alike)} of {len(known)} workers)"
        if worst.status is HealthStatus.DOWN:
            return worst._replace(status=HealthStatus.DEGRADED, reason=f"down, {worst.reason} {where}")
        return worst._replace(reason=f"{worst.reason} {where}")

    def alerts(self) -> list[Alert]:
        """What is pending or firing in some worker, each thing once: the worst first, then the newest."""
        own = self._monitor.alerts.active()
        others = [a for told in self._others() for a in told.alerts if a.state != "resolved"]
        if not others:
            return own
        found: dict[Any, Alert] = {}
        for alert in sorted((*own, *others), key=lambda a: (a.state != "firing", -a.level, -a.since)):
            found.setdefault((alert.source, alert.resource, alert.metric, tuple(alert.labels.items())), alert)
        return list(found.values())

    def ended(self) -> list[Alert]:
        """What fired in some worker and is over, the latest first."""
        own = self._monitor.alerts.history()
        others = [a for told in self._others() for a in told.alerts if a.state == "resolved"]
        return sorted((*own, *others), key=lambda a: -(a.resolved_at or 0.0)) if others else own

    def firing(self) -> dict[str, dict[str, AlertLevel]]:
        """By resource, the worst level of each metric that fires in some worker."""
        found = self._monitor.alerts.firing()
        for told in self._others():
            for alert in told.alerts:
                if alert.state == "firing" and alert.source != "health":
                    levels = found.setdefault(alert.resource, {})
                    levels[alert.metric] = max(alert.level, levels.get(alert.metric, AlertLevel.OK))
        return found

    def holders(self, resource: Resource) -> list[Holder]:
        """Who holds and awaits slots of a resource in all workers: the most first, holders before waiters."""
        found: dict[tuple[str, str, bool], Holder] = {}
        others = (told.holders.get(resource.id, []) for told in self._others())
        for told in (self._own_holders(resource), *others):
            for holder in told:
                key = holder.site, holder.caller, holder.waiting
                same = found.get(key)
                found[key] = (
                    holder
                    if same is None
                    else holder._replace(since=min(holder.since, same.since), slots=holder.slots + same.slots)
                )
        return sorted(found.values(), key=lambda h: (h.waiting, -h.slots, h.since))

    def _own_holders(self, resource: Resource) -> list[Holder]:
        monitor = self._monitor
        stat = monitor.stat_of(resource)
        return [] if stat is None else holders_of(stat, monitor.clock.now())

    def calls(self, resource: Resource) -> dict[str, Calls]:
        """Who calls a resource, in all workers; of what a resource serves, its routes."""
        from uno.core.monitoring.graph.model import Calls

        monitor = self._monitor
        found = monitor.callers.calls(resource, monitor.stat_of(resource), monitor.store)
        for told in self._others():
            for name, calls in told.calls.get(resource.id, {}).items():
                found[name] = calls.plus(found.get(name, Calls()))
        return found


# -- what is written -----------------------------------------------------------------------------------------


def _encode(words: dict[str, Any]) -> bytes:
    return json.dumps(words, separators=(",", ":")).encode("ascii")


def _known(number: Any) -> float | None:
    return None if number is None else float(number)


def _health_out(health: Health, clock: Clock) -> list[Any]:
    times = (health.since, health.checked)
    walls = [None if at is None else round(clock.wall(at), 2) for at in times]
    return [health.status.value, health.reason, *walls, health.known]


def _health_in(told: list[Any], clock: Clock) -> Health:
    status, reason, since, checked, known = told
    since, checked = (None if at is None else clock.moment(at) for at in (since, checked))
    return Health(HealthStatus(status), str(reason), since, checked, bool(known))


def _alert_out(alert: Alert, clock: Clock) -> dict[str, Any]:
    times = {
        name: None if at is None else round(clock.wall(at), 2)
        for name, at in (
            ("since", alert.since),
            ("fired_at", alert.fired_at),
            ("resolved_at", alert.resolved_at),
        )
    }
    return {**alert._asdict(), **times, "level": alert.level.label}


def _alert_in(told: dict[str, Any], worker: int, clock: Clock) -> Alert:
    level = next(level for level in AlertLevel if level.label == told["level"])
    alert = Alert(**{**told, "level": level})
    where = f"worker {worker}"
    fired, over = alert.fired_at, alert.resolved_at
    return alert._replace(
        cause=f"{alert.cause} ({where})" if alert.cause else f"in {where}",
        since=clock.moment(alert.since),
        fired_at=None if fired is None else clock.moment(fired),
        resolved_at=None if over is None else clock.moment(over),
    )


def _exemplars_of(found: Iterable[Series]) -> dict[_Series, dict[int, Exemplar]]:
    """The newest ones of each series; a counter's under 0."""
    exemplars = {}
    for series in found:
        cell = series.cell
        if isinstance(cell, HistogramCell):
            seen = cell.exemplars
            if seen:
                exemplars[_key(series)] = dict(seen)
        elif isinstance(cell, CounterCell) and cell.exemplar is not None:
            exemplars[_key(series)] = {0: cell.exemplar}
    return exemplars


def _show(shown: SeriesStore, told: list[dict[_Series, dict[int, Exemplar]]]) -> None:
    """Give the series of all workers the newest of what was told."""
    newest: dict[_Series, dict[int, Exemplar]] = {}
    for key, found in (item for exemplars in told for item in exemplars.items()):
        known = newest.setdefault(key, {})
        for at, exemplar in found.items():
            if at not in known or known[at].time < exemplar.time:
                known[at] = exemplar
    for key, found in newest.items():
        series = shown.find(*key)
        if series is not None and isinstance(series.cell, HistogramCell):
            series.cell.exemplars = found
        elif series is not None and isinstance(series.cell, CounterCell):
            series.cell.exemplar = found.get(0)


def _key(series: Series) -> _Series:
    return series.resource, series.metric.name, series.metric.labels, series.labels
