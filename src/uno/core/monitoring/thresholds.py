"""When does a value become a warning, and when does it stop being one?

The semantics are those of Prometheus' alerting rules (``for``, ``keep_firing_for``): each level is a rule of
its own with its own timers, as if it had been exported as two rules. Recovery levels are added as hysteresis
of a firing rule. ``promtool test rules`` is the oracle of the tests.
"""

from __future__ import annotations

import enum
import math
import sys
from datetime import timedelta
from typing import Any, Final, Literal, Self

from uno.core.records import NamedTuple
from uno.core.resources.errors import shown

Direction = Literal["auto", "above", "below"]
State = Literal["ok", "pending", "firing"]

# Prometheus keeps time in milliseconds; half of one absorbs the rounding of float seconds since 1970.
_HALF_MS: Final = 0.0005


class ThresholdError(ValueError):
    """A threshold that could never mean what its author wanted; the message names the fix."""


_ARGUMENTS: Final = (
    "warning",
    "critical",
    "alert_message",
    "direction",
    "warning_recovery",
    "critical_recovery",
    "for_",
    "keep_firing_for",
    "stat",
)
_DEFAULTS: Final = {"alert_message": "", "direction": "auto", "for_": 0.0, "keep_firing_for": 0.0}


class AlertLevel(enum.IntEnum):
    """How bad it is; larger is worse."""

    OK = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def label(self) -> str:
        """The level in lower case: ``"ok"``, ``"warning"``, ``"critical"``."""
        return self.name.lower()


class Threshold:
    """Levels at which a metric becomes a warning or critical. Immutable.

    ``warning`` and ``critical`` are in the metric's own unit (0.7 of a ratio, seconds, bytes) and are crossed
    strictly (``>`` or ``<``). ``direction="auto"``: bad above, or bad below when ``warning > critical``.
    ``warning_recovery`` and ``critical_recovery`` are the values that a *firing* level has to come back to.
    ``for_`` and ``keep_firing_for`` are seconds or a ``timedelta``. ``stat`` names what is compared:
    ``"value"`` of a gauge, ``"rate"`` or ``"total"`` of a counter, ``"p95"``, ``"mean"``, ``"max"`` or
    ``"rate"`` of a histogram; ``None`` is the metric's usual one.

    Raises ThresholdError (a ValueError) for levels that contradict each other.
    """

    __slots__ = (*_ARGUMENTS, "above")

    warning: float | None
    critical: float | None
    alert_message: str
    direction: Direction
    warning_recovery: float | None
    critical_recovery: float | None
    for_: float
    keep_firing_for: float
    stat: str | None
    above: bool  # what "auto" came to

    def __new__(
        cls,
        warning: float | None = None,
        critical: float | None = None,
        alert_message: str = "",
        *,
        direction: Direction = "auto",
        warning_recovery: float | None = None,
        critical_recovery: float | None = None,
        for_: float | timedelta = 0,
        keep_firing_for: float | timedelta = 0,
        stat: str | None = None,
    ) -> Self:
        if warning is None and critical is None:
            raise ThresholdError("a threshold needs a level: pass warning=, critical= or both")
        if not isinstance(alert_message, str):
            raise ThresholdError(f"alert_message is a text, not {type(alert_message).__name__}")
        if stat is not None and not isinstance(stat, str):
            raise ThresholdError(f"stat names a statistic, for example 'max', not {type(stat).__name__}")
        warning = _number("warning", warning)
        critical = _number("critical", critical)
        above = _is_above(warning, critical, direction)
        values = {
            "warning": warning,
            "critical": critical,
            "alert_message": alert_message,
            "direction": direction,
            "warning_recovery": _recovery("warning", warning, warning_recovery, above),
            "critical_recovery": _recovery("critical", critical, critical_recovery, above),
            "for_": _seconds("for_", for_),
            "keep_firing_for": _seconds("keep_firing_for", keep_firing_for),
            "stat": stat,
            "above": above,
        }
        self = super().__new__(cls)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return self

    def limit(self, level: AlertLevel) -> float | None:
        """The value beyond which this level is breached, or None when the threshold has no such level."""
        if level is AlertLevel.WARNING:
            return self.warning
        return self.critical if level is AlertLevel.CRITICAL else None

    def recovery(self, level: AlertLevel) -> float | None:
        """The value that ends this level once it fires; the limit itself without hysteresis."""
        given = self.warning_recovery if level is AlertLevel.WARNING else self.critical_recovery
        return self.limit(level) if given is None else given

    def breaches(self, value: float, limit: float) -> bool:
        """True when `value` is strictly on the bad side of `limit`; NaN never is."""
        return value > limit if self.above else value < limit

    def level_of(self, value: float | None) -> AlertLevel:
        """The level of a single value, without any timer; a gap (None, NaN) is OK."""
        if value is not None:
            if self.critical is not None and self.breaches(value, self.critical):
                return AlertLevel.CRITICAL
            if self.warning is not None and self.breaches(value, self.warning):
                return AlertLevel.WARNING
        return AlertLevel.OK

    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Threshold cannot be changed: set a new one with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Threshold cannot be changed")

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Threshold) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shown = [f"{n}={v!r}" for n in _ARGUMENTS if (v := getattr(self, n)) != _DEFAULTS.get(n)]
        return f"Threshold({', '.join(shown)})"

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:  # copies and pickles are made anew
        return (), {name: getattr(self, name) for name in _ARGUMENTS}

    def __getstate__(self) -> None:
        return None


def _number(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ThresholdError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ThresholdError(f"{name} is larger than any value can be") from None
    if math.isnan(number):
        raise ThresholdError(f"{name} is NaN, which nothing is above or below: pass a number")
    return number


def _is_above(warning: float | None, critical: float | None, direction: str) -> bool:
    if direction not in ("auto", "above", "below"):
        raise ThresholdError(f"direction must be 'auto', 'above' or 'below', not {shown(direction)}")
    if warning is None or critical is None or warning == critical:
        return direction != "below"
    rising = warning < critical
    if direction == "above" and not rising:
        raise ThresholdError(
            f"warning {warning:g} is above critical {critical:g} although direction is 'above': "
            "swap the levels, or say direction='below'"
        )
    if direction == "below" and rising:
        raise ThresholdError(
            f"warning {warning:g} is below critical {critical:g} although direction is 'below': "
            "swap the levels, or say direction='above'"
        )
    return rising


def _recovery(name: str, limit: float | None, value: float | None, above: bool) -> float | None:
    value = _number(f"{name}_recovery", value)
    if value is None:
        return None
    if limit is None:
        raise ThresholdError(f"{name}_recovery needs {name}= as well")
    if value > limit if above else value < limit:
        side = "below" if above else "above"
        raise ThresholdError(
            f"{name}_recovery {value:g} is on the bad side of {name} {limit:g}: it must be at or {side} it"
        )
    return value


def _seconds(name: str, value: float | timedelta) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ThresholdError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if not 0 <= value <= sys.float_info.max:
        raise ThresholdError(f"{name} must be a finite duration of 0 seconds or more, not {value!r}")
    return float(value)


class Transition(NamedTuple):
    """One change of a series' state or level."""

    time: float
    old_state: State
    old_level: AlertLevel
    state: State
    level: AlertLevel
    value: float


class _Rule:
    """One level of one series: inactive, pending or firing (Prometheus ``rules/alerting.go``, ``Eval``)."""

    __slots__ = ("active_at", "began", "firing", "level", "limit", "missed_at", "recovery")

    def __init__(self, level: AlertLevel, limit: float, recovery: float) -> None:
        self.level = level
        self.limit = limit
        self.recovery = recovery
        self.reset()

    def reset(self) -> None:
        self.firing = False
        self.began: float | None = None  # for people: when the breach began
        self.active_at: float | None = None  # for the timers: the same on the clock that stands still in gaps
        self.missed_at: float | None = None  # first evaluation without a breach while firing, on that clock

    def step(self, now: float, clock: float, value: float, threshold: Threshold) -> None:
        if threshold.breaches(value, self.recovery if self.firing else self.limit):
            self.missed_at = None
            if self.active_at is None:
                self.began, self.active_at = now, clock
        elif not self.firing:
            self.reset()
            return
        else:
            if self.missed_at is None:
                self.missed_at = clock
            if clock - self.missed_at + _HALF_MS >= threshold.keep_firing_for:
                self.reset()
                return
        if self.active_at is not None and clock - self.active_at + _HALF_MS >= threshold.for_:
            self.firing = True


class ThresholdState:
    """The state of one series under one threshold; pure: time and values come in, transitions go out.

    ``level`` is the worst *firing* level; ``state`` is ``"pending"`` while something is breached but nothing
    fires yet; ``since`` is when the oldest current breach began; ``value`` is the last one, None in a gap.
    """

    __slots__ = ("_gap", "_last", "_lost", "_rules", "level", "since", "state", "threshold", "value")

    def __init__(self, threshold: Threshold) -> None:
        self.threshold: Final = threshold
        self.level = AlertLevel.OK
        self.state: State = "ok"
        self.since: float | None = None
        self.value: float | None = None
        self._last: float | None = None  # time of the last value
        self._gap = False  # nothing was read since then
        self._lost = 0.0  # seconds spent in gaps: they count toward no timer
        self._rules = [
            _Rule(level, limit, recovery)
            for level in (AlertLevel.WARNING, AlertLevel.CRITICAL)
            if (limit := threshold.limit(level)) is not None
            and (recovery := threshold.recovery(level)) is not None
        ]

    def step(self, now: float, value: float | None) -> Transition | None:
        """Take the value read at `now` (unix seconds) and return what changed, if anything did.

        None and NaN are a gap: it breaches nothing and clears nothing, and the time from the value before
        it to the value after it counts neither toward ``for_`` nor toward ``keep_firing_for``.
        """
        if value is None or value != value:
            self.value = None
            self._gap = True
            return None
        if self._last is not None and (self._gap or now < self._last):  # a clock set back counts as a gap too
            self._lost += now - self._last
        self._last = now
        self._gap = False
        self.value = value

        level, since, breached = AlertLevel.OK, None, False
        for rule in self._rules:
            rule.step(now, now - self._lost, value, self.threshold)
            if rule.began is not None:
                breached = True
                since = rule.began if since is None else min(since, rule.began)
                if rule.firing:
                    level = rule.level
        state: State = "firing" if level else "pending" if breached else "ok"
        self.since = since
        if state == self.state and level is self.level:
            return None
        change = Transition(now, self.state, self.level, state, level, value)
        self.state, self.level = state, level
        return change
