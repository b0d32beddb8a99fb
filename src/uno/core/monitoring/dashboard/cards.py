"""What does the overview show of each resource, and what is the verdict?

Everything is read from the monitor's memory at its last tick. Builders are generators that yield where the work may
be interrupted: a thousand cards take longer than an application's event loop should stand still.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Generator, Mapping
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from uno import __version__
from uno.core.monitoring.alerts import Alert, human, title_of
from uno.core.monitoring.dependencies import RANK, shown_level
from uno.core.monitoring.health import NO_ANSWER, Health
from uno.core.monitoring.hooks import notes_of
from uno.core.monitoring.names import STANDARD
from uno.core.monitoring.series import STATS, Frame, Selector, Series, select_column
from uno.core.monitoring.thresholds import AlertLevel
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Resource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.metrics import Spec
    from uno.core.monitoring.monitor import ResourceMonitor

SELF = "uno"  # the resource that stands for the monitor itself
UTILIZATION = "uno.resource.utilization"
FIGURES = 4
SPARK_TICKS = 60
WORDS = 160  # characters of a cause in the verdict
NAME = 80  # characters of a resource's name there

Steps = Generator[None, None, dict[str, Any]]


class Figure(NamedTuple):
    """One number of a card: a statistic of a metric, over all its series."""

    metric: str
    title: str
    unit: str
    stat: str
    largest: bool  # else they are added up
    series: list[Series]
    selectors: list[Selector]
    limit: Selector | None  # of what a utilization is a share

    def value(self, frame: Frame | None) -> float | None:
        """The number at a tick; None when no series has a value."""
        if frame is None:
            return None
        values = [value for one in self.selectors if (value := self._at(frame, one)) is not None]
        if not values:
            return None
        return max(values) if self.largest else sum(values)

    def words(self, frame: Frame | None, *, alone: bool = True) -> str:
        """ "4 of 10" for a share of a limit, not of several workers (the share is that of the fullest one); "3 waiting,
        2 running" where labels tell the parts."""
        if frame is None:
            return ""
        if self.metric == UTILIZATION:
            if not alone:
                return ""
            use, limit = self.value(frame), self._at(frame, self.limit)
            return "" if use is None or limit is None else f"{round(use * limit):,} of {round(limit):,}"
        if not 2 <= len(self.series) <= 4:
            return ""
        found = []
        for series, selector in zip(self.series, self.selectors, strict=True):
            value = self._at(frame, selector)
            if value is not None:
                unit = "By" if self.unit.startswith("By") else ""
                found.append(f"{human(value, unit, selector.rate)} {' '.join(series.labels)}")
        return ", ".join(found)

    @staticmethod
    def _at(frame: Frame, selector: Selector | None) -> float | None:
        if selector is None or selector.column >= len(frame.values):
            return None
        value = float(frame.rates[selector.column]) if selector.rate else frame.values[selector.column]
        return value if isfinite(value) else None


def figure_of(spec: Spec, found: list[Series], limit: Selector | None = None) -> Figure:
    """How a card shows a metric: a gauge by its value, a counter by its rate, a histogram by its p95."""
    stat = STATS[spec.kind][0]
    title, unit = title_of(spec), spec.unit
    if spec.kind == "histogram":
        title += " p95"
    elif spec.kind == "counter":
        unit += "/s"
    largest = spec.kind == "histogram" or (spec.unit in ("1", "s") and spec.kind == "gauge")
    return Figure(
        spec.name, title, unit, stat, largest, found, [select_column(s, stat) for s in found], limit
    )


class Cards:
    """Builds the snapshot and the ticks of one monitor; it only remembers which figures each card has."""

    def __init__(self, monitor: ResourceMonitor) -> None:
        self.monitor = monitor
        #: the figures of each card, for one version of the store; replaced whole, since two threads read it
        self._plans: tuple[int, dict[str, tuple[Resource, list[Figure]]]] = (-1, {})
        self._libraries: dict[str, str | None] = {}
        self._host = socket.gethostname()
        #: what was last said of the size of each resource, and when
        self.sizings: dict[str, tuple[float, str]] = {}

    # -- the whole and the tick ------------------------------------------------------------------------

    def snapshot(self) -> Steps:
        """All that the page needs at its start."""
        monitor = self.monitor
        alerts, levels = self.alerts(), monitor.team.firing()
        by_resource: dict[str, list[str]] = {}
        for alert in alerts:
            by_resource.setdefault(alert["resource"], []).append(alert["id"])
        axis = self.ticks()
        resources = []
        for resource in monitor.manager:
            resources.append(self.card(resource, levels, axis, by_resource.get(resource.id, [])))
            yield
        resources.sort(key=lambda card: (-RANK[card["level"]], card["type"], card["name"]))
        frame = monitor.view.frame
        return {
            "version": __version__,
            "service": monitor.service,
            "host": self._host,
            "pid": os.getpid(),
            "started": self.wall(monitor.started),
            "now": self.wall(monitor.clock.now()),
            "interval": monitor.interval,
            "running": monitor.running,
            "last_tick": None if frame is None else self.wall(frame.time),
            "verdict": self.verdict(
                [(card["name"], card["id"], card["level"], card["health"]) for card in resources]
            ),
            "cost": self.cost(),
            "discovery": [{"resource": r.id, "how": r.how} for r in monitor.manager if r.discovered],
            "resources": resources,
            "alerts": alerts,
        }

    def tick(self) -> dict[str, Any]:
        """What changes with a tick, without "added" and "removed"."""
        monitor = self.monitor
        frame, levels = monitor.view.frame, monitor.team.firing()
        resources: dict[str, Any] = {}
        judged = []
        for resource in monitor.manager:
            health = monitor.team.health(resource.id, self.moment())
            level = _level(health, levels.get(resource.id))
            figures = self.figures(resource)
            said = self._health(health)
            judged.append((resource.name, resource.id, level, said))
            resources[resource.id] = {
                "level": level,
                "health": said,
                "figures": [self._figure(figure, frame) for figure in figures],
                "v": figures[0].value(frame) if figures else None,
            }
        return {
            "now": self.wall(monitor.clock.now() if frame is None else frame.time),
            "seq": 0 if frame is None else frame.seq,
            "running": monitor.running,
            "verdict": self.verdict(judged),
            "cost": self.cost(),
            "resources": resources,
            "alerts": self.alerts(),
        }

    def card(
        self,
        resource: Resource,
        levels: Mapping[str, Mapping[str, AlertLevel]],
        axis: NDArray[np.float64],
        alerts: list[str],
    ) -> dict[str, Any]:
        """One resource of the snapshot."""
        frame = self.monitor.view.frame
        health = self.monitor.team.health(resource.id, self.moment())
        figures = self.figures(resource)
        running = self.monitor.running
        return {
            "id": resource.id,
            "name": resource.name,
            "type": resource.type,
            "endpoint": resource.endpoint,
            "labels": resource.labels,
            "discovered": resource.discovered,
            "library": self.library(resource),
            "note": notes_of(self.monitor.collection.monitors_of(resource)),
            "health": self._health(health),
            "level": _level(health, levels.get(resource.id)),
            "figures": [
                self._figure(figure, frame) if running else self._last(figure, axis) for figure in figures
            ],
            "spark": self._spark(figures[0], axis) if figures else None,
            "alerts": alerts,
        }

    # -- time ------------------------------------------------------------------------------------------

    def wall(self, moment: float) -> float:
        """A moment of the monitor's clock as people's time, to the millisecond."""
        return round(self.monitor.clock.wall(moment), 3)

    def moment(self) -> float:
        """As of when the state is told: now, or the last tick when the monitor does not run."""
        frame = self.monitor.view.frame
        if frame is not None and not self.monitor.running:
            return frame.time
        return self.monitor.clock.now()

    def ticks(self) -> NDArray[np.float64]:
        """The times of the last ticks, oldest first."""
        frame, interval = self.monitor.view.frame, self.monitor.interval
        end = 0.0 if frame is None else frame.time
        return self._times(end - (SPARK_TICKS + 1) * interval, end)[-SPARK_TICKS:]

    def axis(self, start: float, end: float, points: int) -> NDArray[np.float64]:
        """At most about ``points`` times for a chart. A time without samples stands where nothing was recorded for
        long, so that no line is drawn across."""
        import numpy as np

        times = self._times(start, end, points)
        if len(times) < 3:
            return times
        step = np.diff(times)
        usual = np.maximum(np.append(step[1:], 0), np.insert(step[:-1], 0, 0))
        holes = np.flatnonzero(step > 2.5 * np.maximum(usual, self.monitor.interval))
        return np.insert(times, holes + 1, times[holes] + step[holes] / 2)

    def _times(self, start: float, end: float, points: int | None = None) -> NDArray[np.float64]:
        """When the monitor ticked: its own series has a value at each tick."""
        import numpy as np

        found = self.monitor.view.select(SELF, "uno.monitor.tick.duration")
        if not found:
            return np.empty(0)
        return self.monitor.history.range(found[0], "value", start, end, points).times

    # -- figures ---------------------------------------------------------------------------------------

    def figures(self, resource: Resource) -> list[Figure]:
        """The figures of a card, the first one with a chart; made anew when series come or go."""
        store = self.monitor.view
        if self._plans[0] != store.version:
            self._plans = (store.version, {})
        plans = self._plans[1]
        known = plans.get(resource.id)
        if known is not None and known[0] is resource:
            return known[1]
        by_metric: dict[str, list[Series]] = {}
        for series in store.select(resource.id):
            by_metric.setdefault(series.metric.name, []).append(series)
        names: list[str] = []
        for type_monitor in self.monitor.collection.monitors_of(resource):
            names += [name for name in type_monitor.headline if name in by_metric and name not in names]
        if not names:
            order = ("gauge", "counter", "histogram")
            names = sorted(by_metric, key=lambda name: order.index(by_metric[name][0].metric.kind))
        limits = [found[0] for name, found in by_metric.items() if name.endswith(".max") and len(found) == 1]
        limit = select_column(limits[0]) if limits else None
        figures = [figure_of(by_metric[name][0].metric, by_metric[name], limit) for name in names[:FIGURES]]
        plans[resource.id] = (resource, figures)
        return figures

    def _figure(self, figure: Figure, frame: Frame | None) -> dict[str, Any]:
        value = figure.value(frame)
        text = figure.words(frame, alone=self.monitor.sharing.count == 1)
        shown = {"metric": figure.metric, "title": figure.title, "value": short(value), "unit": figure.unit}
        return {**shown, "text": text} if text else shown

    def _last(self, figure: Figure, axis: NDArray[np.float64]) -> dict[str, Any]:
        """A figure of a monitor that does not run: the last value that was known."""
        known = [value for value in self._line(figure, axis) if value is not None]
        value = known[-1] if known else None
        return {"metric": figure.metric, "title": figure.title, "value": short(value), "unit": figure.unit}

    def _line(self, figure: Figure, axis: NDArray[np.float64]) -> list[float | None]:
        """A figure at each time of ``axis``."""
        import numpy as np

        if not len(axis):
            return []
        total = np.full(len(axis), np.nan)
        history = self.monitor.history
        for series in figure.series:
            times, values, _ = history.range(series, figure.stat, float(axis[0]), float(axis[-1]))
            place = np.searchsorted(axis, times)
            fits = place < len(axis)
            place, times, values = place[fits], times[fits], values[fits]
            same = axis[place] == times
            line = np.full(len(axis), np.nan)
            line[place[same]] = values[same]
            if figure.largest:
                total = np.fmax(total, line)
            else:
                total = np.where(np.isnan(line), total, np.where(np.isnan(total), line, total + line))
        return [short(value) for value in total.tolist()]

    def _spark(self, figure: Figure, axis: NDArray[np.float64]) -> dict[str, Any]:
        return {
            "metric": figure.metric,
            "title": figure.title,
            "unit": figure.unit,
            "min": 0 if figure.unit == "1" else None,
            "max": 1 if figure.unit == "1" else None,
            "times": [self.wall(t) for t in axis.tolist()],
            "values": self._line(figure, axis),
        }

    # -- words -----------------------------------------------------------------------------------------

    def library(self, resource: Resource) -> str | None:
        """ "sqlalchemy 2.1.9"; None for what belongs to Python itself."""
        driver = resource.driver
        name = driver.library.partition(".")[0] if isinstance(driver, ResourceTypeMonitor) else ""
        if not name or name in sys.stdlib_module_names:
            return None
        if name not in self._libraries:
            version = getattr(sys.modules.get(name), "__version__", None)
            self._libraries[name] = f"{name} {version}" if isinstance(version, str) else name
        return self._libraries[name]

    def _health(self, health: Health) -> dict[str, Any]:
        return {
            "status": health.status.value,
            "reason": readable(health.reason),
            "since": None if health.since is None else self.wall(health.since),
            "checked": None if health.checked is None else self.wall(health.checked),
        }

    def alerts(self) -> list[dict[str, Any]]:
        """What is pending or firing."""
        return [self.alert(alert) for alert in self.monitor.team.alerts()]

    def alert(self, alert: Alert) -> dict[str, Any]:
        """One alert with the words and the unit of its metric."""
        found = self.monitor.view.select(alert.resource, alert.metric)
        spec = found[0].metric if found else STANDARD.get(alert.metric)
        unit = "" if spec is None else spec.unit + ("/s" if spec.kind == "counter" else "")
        return {
            **alert.to_dict(),
            "title": alert.metric if spec is None else title_of(spec),
            "unit": unit,
            "since": self.wall(alert.since),
            "fired_at": None if alert.fired_at is None else self.wall(alert.fired_at),
            "resolved_at": None if alert.resolved_at is None else self.wall(alert.resolved_at),
        }

    def cost(self) -> dict[str, Any]:
        """What monitoring itself uses."""
        monitor = self.monitor
        frame, stats = monitor.view.frame, monitor.history.stats()
        reach = (
            None if frame is None or stats.oldest is None else round(max(0.0, frame.time - stats.oldest), 1)
        )
        return {
            "cpu_ratio": short(monitor.cpu_ratio()),
            "tick_seconds": short(monitor.tick_seconds),
            "series": len(monitor.view),
            "history_bytes": stats.bytes,
            "retention_seconds": reach,
        }

    def verdict(self, judged: list[tuple[str, str, str, dict[str, Any]]]) -> dict[str, str]:
        """One sentence: is it well, and if not, what is worst and why? ``judged``: name, id, level, health."""
        n = len(judged)
        if not n:
            return {"level": "unknown", "text": "Nothing is monitored yet."}
        if self.monitor.view.frame is None:
            waits = (
                "Waiting for the first tick." if self.monitor.running else "The monitor has not been started."
            )
            return {"level": "unknown", "text": waits}
        bad = [one for one in judged if one[2] in ("critical", "warning")]
        unknown = [one for one in judged if one[2] == "unknown"]
        if not bad and not unknown:
            return {
                "level": "ok",
                "text": f"All {n} resources are well." if n > 1 else f"{judged[0][0]} is well.",
            }
        unused = [one for one in unknown if one[3]["reason"] == NO_ANSWER]
        if not bad and len(unused) == len(unknown) < n:
            text = f"{n - len(unused)} of {n} resources are well; no answer yet from {unused[0][0]}"
            return {"level": "ok", "text": text + _more(len(unused) - 1)}
        if not bad:
            name, _, _, health = unknown[0]
            text = (
                f"{len(unknown)} of {n} resources cannot be judged: {name} ({health['reason'] or 'unknown'})"
            )
            return {"level": "unknown", "text": text + _more(len(unknown) - 1)}
        causes: dict[str, Alert] = {}
        for alert in self.monitor.team.alerts():
            if alert.state == "firing":
                causes.setdefault(alert.resource, alert)
        bad.sort(key=lambda one: (one[2] != "critical", one[3]["status"] != "down", one[0]))
        said = [
            _sentence(name, health, causes.get(id), WORDS // min(2, len(bad)))
            for name, id, _, health in bad[:2]
        ]
        verb = "needs" if len(bad) == 1 else "need"
        text = f"{len(bad)} of {n} resources {verb} attention: {'; '.join(said)}{_more(len(bad) - 2)}"
        return {"level": bad[0][2], "text": text}


def readable(reason: str) -> str:
    """A health reason with a metric's title in place of its name."""
    word, colon, rest = reason.partition(": ")
    metric, *where = rest.split(" ", 1)  # "(in 1 of 4 workers)"
    spec = STANDARD.get(metric)
    return " ".join((f"{title_of(spec)} is {word}", *where)) if colon and spec is not None else reason


def _level(health: Health, levels: Mapping[str, AlertLevel] | None) -> str:
    """The worse of what the alerts and what the health say."""
    return shown_level(health, max((levels or {}).values(), default=AlertLevel.OK))


def _sentence(name: str, health: dict[str, Any], alert: Alert | None, room: int) -> str:
    why = (alert.cause or alert.message) if alert is not None else health["reason"]
    status = health["status"]
    state = "has an alert" if status == "up" else f"is {status}"
    name = cut(name, NAME)
    return f"{name} {state} ({cut(why, room)})" if why else f"{name} {state}"


def _more(n: int) -> str:
    return f"; and {n} more." if n > 0 else "."


def cut(text: str, room: int) -> str:
    """The text, shortened at a word where it is longer than ``room`` characters."""
    text = text.rstrip(".")
    if len(text) <= room:
        return text
    return text[:room].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def short(value: float | None) -> float | None:
    """Five significant digits, which is more than a page shows; None for what is no number."""
    if value is None or value != value or value in (inf, -inf):
        return None
    return float(f"{value:.5g}")
