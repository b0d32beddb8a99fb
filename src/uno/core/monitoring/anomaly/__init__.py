"""What is unusual, by how much, and compared with what?

All watched series are stepped together. Simple answers about each sample (how far from the long mean, from
what is usual at this time of day, from the samples just before ...) are each turned into a rarity against
the past of that very series, and the rarities are combined. All that is said about a sample comes from it
and earlier ones.

`sensitivity` is a budget of false alarms: 0.02 x 10^(2.8 s) for a series and week, so one a year at 0, one
in two weeks at 0.5, twelve a week at 1. `training_period` is how long the past is remembered, not a wait:
judging begins with the 33rd sample, and as long as little is known only gross things are rare.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.anomaly.words import duration, sentence
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.anomaly.engine import Engine, Floats
    from uno.core.monitoring.anomaly.rule import Fold, Rule

CALM = 12  # samples under half the level that end an anomaly, and steps without any


class Anomaly(NamedTuple):
    """One thing unusual: news of it when it starts, when it gets stranger or comes again, and when it ends.

    `started` and `ended` are Unix seconds, `ended` is None as long as it lasts. `observed` is what is
    compared with `usual`, in the unit of the series (a mean, a value, a spread, a number of equal samples:
    the explanation says which). `score` is the highest so far.
    """

    key: str
    started: float
    ended: float | None
    observed: float
    usual: float
    score: float
    explanation: str


class Replay(NamedTuple):
    """`scores`: one a sample, higher is stranger, 0 where none was judged; `flags`: a row for each
    sensitivity, True where an alarm is raised.
    """

    scores: Floats
    flags: NDArray[np.bool_]


class _Watch(NamedTuple):
    sensitivity: float
    period: float
    unit: str
    title: str

    @property
    def budget(self) -> float:
        """False alarms a week that are accepted."""
        return float(0.02 * 10 ** (2.8 * self.sensitivity))


class _Columns:
    """Everything numeric: a column for each watched series. Made with the first; this is what needs numpy."""

    __slots__ = ("engine", "fold", "period", "rule")

    def __init__(self) -> None:
        from uno.core.monitoring.anomaly.engine import Engine
        from uno.core.monitoring.anomaly.rule import Fold, Rule

        self.fold: Fold = Fold()
        self.engine: Engine = Engine()
        self.rule: Rule = Rule()
        self.period: Floats

    def resize(self, keep: Sequence[int], watches: Sequence[_Watch]) -> None:
        import numpy as np

        for part in (self.fold, self.engine, self.rule):
            part.resize(np.array(keep, np.intp), len(watches) - len(keep))
        self.period = np.array([watch.period for watch in watches])
        self.rule.budget = np.array([watch.budget for watch in watches])


class AnomalyDetector:
    """Finds what is unusual in any number of series.

    `sensitivity` (0 to 1) is a budget of false alarms, `training_period` how long the past is remembered;
    both can be set for each series. Raises ValueError for a sensitivity out of range and for a period that
    is not positive. Watch and unwatch from any thread; step from one.
    """

    def __init__(self, *, sensitivity: float = 0.5, training_period: timedelta = timedelta(days=7)) -> None:
        self.sensitivity = _checked_sensitivity(sensitivity)
        self.training_period = _checked_period(training_period)
        self._lock = threading.Lock()
        self._watches: dict[str, _Watch] = {}
        self._columns: _Columns | None = None
        self._keys: tuple[str, ...] = ()  # of the columns
        self._settled = True  # the columns are those that are watched
        self._gone: set[str] = set()  # columns to be left out when settling, even if watched again
        self._open: dict[str, Anomaly] = {}
        self._closing: list[Anomaly] = []  # of series no longer watched, to be told with the next step

    def watch(
        self,
        key: str,
        *,
        sensitivity: float | None = None,
        training_period: timedelta | None = None,
        unit: str = "",
        title: str = "",
    ) -> None:
        """Watch a series from the next step on; a series already watched keeps what it has learnt.

        `unit` (UCUM: s, By, 1, {connection}, By/s) and `title` are for the words only.
        """
        watch = _Watch(
            self.sensitivity if sensitivity is None else _checked_sensitivity(sensitivity),
            _checked_period(
                self.training_period if training_period is None else training_period
            ).total_seconds(),
            unit,
            title or key,
        )
        with self._lock:
            self._watches[key] = watch
            self._settled = False

    def unwatch(self, key: str) -> None:
        """Forget a series. One that is not watched is no error: it may have gone by itself."""
        with self._lock:
            if self._watches.pop(key, None):
                self._gone.add(key)
                self._settled = False
            if key in self._open:
                self._closing.append(self._open.pop(key))

    def watched(self) -> tuple[str, ...]:
        """The keys, in the order in which `step` expects values; a new tuple after each change."""
        with self._lock:
            self._settle()
            return self._keys

    def step(
        self, now: float, values: Sequence[float] | Floats, keys: tuple[str, ...] | None = None
    ) -> list[Anomaly]:
        """Give one value a series, NaN where there is none, at Unix time `now`; what is new comes back.

        `keys` is what `watched()` gave when the values were read: with it, a change in between is harmless,
        without it another number of values raises ValueError.
        """
        with self._lock:
            return self._step(now, values, keys)[0]

    def active(self) -> list[Anomaly]:
        """The anomalies that last."""
        with self._lock:
            return list(self._open.values())

    def state(self, key: str) -> dict[str, Any]:
        """What is known of a series, for people: `learning` in words, `samples`, `observed`, `usual`,
        `score`, `level` (the score that raises an alarm), `budget` (false alarms a week), `active`. Raises
        KeyError.
        """
        with self._lock:
            if key not in self._watches:
                raise KeyError(f"{key[:80]!r} is not watched for anomalies")
            watch = self._watches[key]
            out: dict[str, Any] = {
                "learning": f"learning, nothing seen yet of {duration(watch.period)}",
                "samples": 0,
                "observed": None,
                "usual": None,
                "score": None,
                "level": None,
                "budget": watch.budget,
                "active": key in self._open,
            }
            columns = self._columns
            if columns is None or key not in self._keys or key in self._gone:
                return out
            at, v = self._keys.index(key), columns.engine.v
            if v.n[at]:
                out["learning"] = columns.engine.learning(at, watch.period)
                out["samples"] = int(v.n[at])
                out["observed"], out["usual"] = float(v.x[at]), float(v.usual[at])
                out["score"] = float(columns.rule.score[at])
                out["level"] = float(columns.rule.level(v.every)[at])
            return out

    @classmethod
    def replay(
        cls,
        times: Sequence[float] | NDArray[np.int64],
        values: Sequence[float] | Floats,
        *,
        sensitivity: float | Sequence[float] | Floats = 0.5,
        training_period: timedelta = timedelta(days=7),
    ) -> Replay:
        """What would have been said of a recorded series, by stepping through it."""
        import numpy as np

        detector = cls(training_period=training_period)
        for number, level in enumerate(np.atleast_1d(np.asarray(sensitivity, float)).tolist()):
            detector.watch(str(number), sensitivity=level)
        width = len(detector.watched())
        scores, flags = np.zeros(len(times)), np.zeros((width, len(times)), bool)
        for i, (now, value) in enumerate(zip(times, values, strict=True)):
            fired = detector._step(float(now), np.full(width, value), None)[1]
            if fired is not None:
                assert detector._columns is not None
                judged = detector._columns.engine.judged[0]
                scores[i], flags[:, i] = detector._columns.rule.score[0] if judged else 0.0, fired
        return Replay(scores, flags)

    # What follows is called with the lock held.

    def _settle(self) -> None:
        """Make the columns those that are watched."""
        if self._settled:
            return
        if self._columns is None:
            self._columns = _Columns()
        place = {key: at for at, key in enumerate(self._keys) if key not in self._gone}
        self._gone.clear()
        self._keys = tuple(sorted(self._watches, key=lambda key: place.get(key, len(place))))
        keep = [place[key] for key in self._keys if key in place]
        self._columns.resize(keep, [self._watches[key] for key in self._keys])
        self._settled = True

    def _step(
        self, now: float, values: Sequence[float] | Floats, keys: tuple[str, ...] | None
    ) -> tuple[list[Anomaly], NDArray[np.bool_] | None]:
        """What is new; and where an alarm was raised, None when this tick was only folded."""
        import numpy as np

        self._settle()
        news = [one._replace(ended=now) for one in self._closing]
        self._closing.clear()
        row = np.asarray(values, float)
        if keys is not None and keys is not self._keys:
            given = dict(zip(keys, row.tolist(), strict=True))
            row = np.array([given.get(key, np.nan) for key in self._keys])
        if row.shape != (len(self._keys),):
            raise ValueError(f"{len(self._keys)} series are watched, but {row.size} values were given")
        if self._columns is None:
            return news, None
        engine, rule = self._columns.engine, self._columns.rule
        means = self._columns.fold.add(now, row)
        if means is None:
            return news, None
        score = engine.step(now, means, self._columns.period)
        fired = rule.step(now, score, engine.v.every)
        place = {key: at for at, key in enumerate(self._keys)} if self._open else {}
        for key, one in list(self._open.items()):
            at = place[key]
            silent = now - engine.v.last[at] > CALM * engine.v.every[at]
            if rule.calm[at] >= CALM or silent:
                news.append(self._open.pop(key)._replace(ended=now))
            elif score[at] > 1.1 * one.score and not fired[at]:
                news.append(self._tell(at, now))
        news += [self._tell(int(at), now) for at in np.flatnonzero(fired)]
        return news, fired

    def _tell(self, at: int, now: float) -> Anomaly:
        assert self._columns is not None
        key, rule = self._keys[at], self._columns.rule
        watch, before = self._watches[key], self._open.get(key)
        started = before.started if before else float(rule.since[at])
        finding = self._columns.engine.finding(at, watch.period)
        self._open[key] = one = Anomaly(
            key,
            started,
            None,
            finding.observed,
            finding.usual,
            max(float(rule.score[at]), before.score if before else 0.0),
            sentence(watch.title, watch.unit, finding, now - started),
        )
        return one


def _checked_sensitivity(value: float) -> float:
    if not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise ValueError(
            f"sensitivity is {value!r}; give a number from 0 (one false alarm a year) to 1 (twelve a week)"
        )
    return float(value)


def _checked_period(value: timedelta) -> timedelta:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise ValueError(
            f"training_period is {value!r}; give a timedelta longer than zero, such as timedelta(days=7)"
        )
    return value
