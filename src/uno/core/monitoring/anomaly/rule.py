"""When do strange samples make an alarm, and when is it over? And how are fast samples made slower?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from uno.core.monitoring.anomaly.engine import Floats

FOLD = 15.0  # seconds: faster samples are judged as means over this long
REST = 80  # samples without a second alarm ...
STRANGER = 3.0  # ... unless the score is so much higher than that of the first
RAISE = 0.25  # each alarm raises the level, paid back at the rate of the budget
WEEK = 604800.0


class Fold:
    """The samples of all series since the last step."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(0), np.zeros(0)
        self._from = self._ticked = -math.inf

    def resize(self, keep: NDArray[np.intp], add: int) -> None:
        self._sum, self._count = (np.append(old[keep], np.zeros(add)) for old in (self._sum, self._count))

    def add(self, now: float, values: Floats) -> Floats | None:
        """The mean of each series when it is time to judge, NaN where no number came; else None.

        Time is when the fold is full to half a tick: then slow ticks are each judged at once.
        """
        finite = np.isfinite(values)
        with np.errstate(over="ignore"):
            self._sum += np.where(finite, values, 0.0)
        self._count += finite
        early = 0 < now - self._from < FOLD - (now - self._ticked) / 2
        self._ticked = now
        if early:
            return None
        self._from = now
        means: Floats = np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)
        self.resize(np.zeros(0, np.intp), len(values))
        return means


class Rule:
    """Alarm when the score reaches the level; then a rest, and a higher level until the budget has paid."""

    def __init__(self) -> None:
        self.rest, self.raised, self.calm = np.zeros(0), np.zeros(0), np.zeros(0)
        self.score = np.zeros(0)  # the last one
        self.alarm = np.zeros(0)  # that of the last alarm
        self.since = np.zeros(0)  # when it came over two thirds of the level; NaN: it is not
        self.budget = np.zeros(0)  # false alarms a week

    def resize(self, keep: NDArray[np.intp], add: int) -> None:
        """Keep these columns, in this order, and add new ones."""
        for name, start in (
            ("rest", 0),
            ("raised", 0),
            ("calm", 0),
            ("score", 0),
            ("alarm", 0),
            ("since", math.nan),
        ):
            setattr(self, name, np.append(getattr(self, name)[keep], np.full(add, float(start))))

    def level(self, every: Floats) -> Floats:
        """The score that raises an alarm, for samples `every` so many seconds.

        Fitted on twelve kinds of noise: ten times fewer samples have a score 1.45 higher.
        """
        a_week = WEEK / np.clip(every, 1e-3, 300)
        level: Floats = 5 + 1.45 * (np.log10(a_week / self.budget) - 3.55) + self.raised
        return level

    def step(self, now: float, score: Floats, every: Floats) -> NDArray[np.bool_]:
        """Where an alarm is raised. NaN is no sample: nothing rests, nothing calms down."""
        judged = ~np.isnan(score)
        self.score = np.where(judged, score, self.score)
        self.raised = np.maximum(self.raised - RAISE * self.budget * judged * every / WEEK, 0.0)
        level = self.level(every)
        fired: NDArray[np.bool_] = (score >= level) & ((self.rest <= 0) | (score >= self.alarm + STRANGER))
        calm = score < level / 2
        self.calm = np.where(calm, self.calm + 1, np.where(judged, 0.0, self.calm))
        self.since = np.where(score < level * 2 / 3, math.nan, self.since)
        self.since = np.where((score >= level * 2 / 3) & np.isnan(self.since), now, self.since)
        self.alarm = np.where(fired, score, self.alarm)
        self.rest = np.where(fired, REST, self.rest - judged)
        self.raised = self.raised + RAISE * fired
        return fired
