"""Is it up, and may traffic be sent here?

HealthBook turns what the sampler sees (pings, collections, thresholds) into a Health for each resource.
HealthRegistry answers health endpoints from memory: from adapters such as ResourceHealthAdapter and from the
application's own checks, which run in the background. No request ever waits for a check.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import total_ordering
from typing import Any, Final, Literal, Protocol

from uno.core.monitoring.thresholds import AlertLevel
from uno.core.records import NamedTuple
from uno.core.resources.errors import shown

__all__ = [
    "Check",
    "Health",
    "HealthAdapter",
    "HealthBook",
    "HealthRegistry",
    "HealthReport",
    "HealthStatus",
    "ResourceHealthAdapter",
]

MEDIA_TYPE: Final = "application/health+json"
MAX_HISTORY: Final = 50
STALE_AFTER: Final = 3  # intervals without an answer until a result is no longer believed
MAX_RUNNING: Final = 16  # own checks that run at the same time

Verdict = Literal["pass", "warn", "fail"]
Group = Literal["live", "ready", "startup"]
GROUPS: Final = ("live", "ready", "startup")


@total_ordering
class HealthStatus(enum.Enum):
    """How a resource is; `<` means better. What is unknown ranks worse than all but down."""

    UP = "up"
    DEGRADED = "degraded"
    SATURATED = "saturated"
    UNKNOWN = "unknown"
    DOWN = "down"

    @property
    def rank(self) -> int:
        """0 for up; larger is worse."""
        return _RANKS[self]

    def __lt__(self, other: HealthStatus) -> bool:
        return _RANKS[self] < _RANKS[other] if isinstance(other, HealthStatus) else NotImplemented


_RANKS: Final = {status: rank for rank, status in enumerate(HealthStatus)}


class Health(NamedTuple):
    """The health of one resource at one instant. Times are unix seconds.

    `reason` is a category and perhaps the type of an exception, never its message. `since` is when `status`
    began, `checked` when an attempt to find out last ended (None: there was none yet), `known` whether any
    status other than unknown was ever seen.
    """

    status: HealthStatus
    reason: str = ""
    since: float | None = None
    checked: float | None = None
    known: bool = False


NOT_CHECKED: Final = Health(HealthStatus.UNKNOWN, "not checked yet")
NO_ANSWER: Final = "no answer yet"
HUNG: Final = "a call hangs, and no connection is free to ask the server"
#: The reason of a ping that a server refused since all its connections are in use.
OUT_OF_CONNECTIONS: Final = "out of connections"
#: The reasons of pings that an event loop could not make.
NO_LOOP: Final = ("event loop blocked", "event loop not running", "event loop closed")


# -- resources -----------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """All that the health of a resource is judged by.

    `pinged` and `collected` say whether either was tried at all; `ping` is the last answer, None while there
    is none or it is too old; `unused` says that there never was one, since nothing has used the resource yet, and
    `hung` that a call of the application hangs while no connection is free for a ping;
    `collect` is True while the last successful reading is recent.
    """

    pinged: bool = False
    ping: bool | None = None
    ping_failures: int = 0  # in a row
    ping_reason: str = ""
    collected: bool = False
    collect: bool = False
    collect_reason: str = ""
    levels: Mapping[str, AlertLevel] = {}  # worst firing level by metric
    unused: bool = False
    hung: bool = False


def judge(seen: Evidence, failures: int = 2) -> tuple[HealthStatus, str]:
    """The status that the evidence amounts to, and why; `failures` pings in a row have to fail for `down`.

    A pool that is used up makes pings fail, so a saturated resource is not called down, nor one that could not be
    asked because it is idle or used up: its last answer stands, unless a call hangs. Such a resource is degraded, for
    the call may be slow, and unknown when the last answer is too old. Without a recent ping that succeeded, a resource
    whose numbers cannot be read is unknown; with one it is degraded.
    """
    firing = [(level, metric) for metric, level in seen.levels.items() if level]
    full = [m for level, m in firing if level is AlertLevel.CRITICAL and is_utilization(m)]
    if full:
        saturated = HealthStatus.SATURATED, f"critical: {min(full)}"
    if seen.ping is False and seen.ping_reason == OUT_OF_CONNECTIONS:
        return HealthStatus.SATURATED, "the server is out of connections"
    if seen.ping is False and seen.ping_failures >= failures:
        return saturated if full else (HealthStatus.DOWN, seen.ping_reason or "ping failed")
    if not seen.pinged and not seen.collected:
        return HealthStatus.UNKNOWN, NOT_CHECKED.reason
    if full and seen.hung:
        return saturated
    if seen.pinged and seen.ping is None:
        no_loop = seen.ping_reason in NO_LOOP
        said = seen.ping_reason if no_loop else _because("no recent answer to a ping", seen.ping_reason)
        return HealthStatus.UNKNOWN, said
    if seen.collected and not seen.collect and not seen.pinged:
        return HealthStatus.UNKNOWN, _because("no recent reading", seen.collect_reason)
    if full:
        return saturated
    if seen.ping is False:
        return HealthStatus.DEGRADED, _because("a ping failed", seen.ping_reason)
    if seen.hung:
        return HealthStatus.DEGRADED, HUNG
    if firing:
        level, metric = max(firing)
        return HealthStatus.DEGRADED, f"{level.label}: {metric}"
    if seen.collected and not seen.collect:
        return HealthStatus.DEGRADED, _because("numbers cannot be read", seen.collect_reason)
    return (HealthStatus.UNKNOWN, NO_ANSWER) if seen.unused else (HealthStatus.UP, "")


def is_utilization(metric: str) -> bool:
    """True for metrics whose critical level means that a limit is reached."""
    return metric.endswith((".utilization", "_utilization", "_usage"))


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


class _Record:
    """What is remembered of one resource."""

    __slots__ = (
        "collect_good",
        "collect_reason",
        "collect_tried",
        "health",
        "history",
        "hung",
        "interval",
        "levels",
        "ping_at",
        "ping_failures",
        "ping_ok",
        "ping_reason",
        "ping_tried",
        "steady",
        "untried",
        "unused",
    )

    def __init__(self) -> None:
        self.interval: float | None = None
        self.ping_ok: bool | None = None
        self.ping_at = 0.0  # of the last definite answer
        self.ping_tried: float | None = None
        self.ping_failures = 0
        self.ping_reason = ""
        self.untried = 0  # pings in a row that the event loop could not make
        self.unused = self.hung = False
        self.collect_good: float | None = None  # last success
        self.collect_tried: float | None = None
        self.collect_reason = ""
        self.levels: Mapping[str, AlertLevel] = {}
        #: (whether the ping, whether the reading is recent) of the last judgement; None where it has to be made anew
        self.steady: tuple[bool, bool] | None = None
        self.health = NOT_CHECKED
        self.history: deque[Health] = deque(maxlen=MAX_HISTORY)

    @property
    def checked(self) -> float | None:
        """When an attempt to find out last ended."""
        return max((at for at in (self.ping_tried, self.collect_tried) if at is not None), default=None)


class HealthBook:
    """The health of every resource, pushed by the sampler; reading takes no lock and touches no resource.

    `interval` is the time between two collections and `ping_interval` that between two pings, in seconds;
    after three of them without an answer a result is no longer believed, also when the monitor itself has
    stopped. `failures` pings in a row have to fail until a resource is down. All `now` are unix seconds of
    one clock, best one that does not jump.
    """

    def __init__(self, *, interval: float = 1.0, ping_interval: float = 10.0, failures: int = 2) -> None:
        self.interval = interval
        self.ping_interval = ping_interval
        self.failures = failures
        self._records: dict[str, _Record] = {}
        self._updated: float | None = None

    def watch(self, resource_id: str, interval: float | None = None) -> None:
        """Show a resource as unknown until something is heard of it; `interval` overrides the book's."""
        self._record(resource_id).interval = interval

    def forget(self, resource_id: str) -> None:
        """The resource is gone."""
        self._records.pop(resource_id, None)

    def record_ping(
        self, resource_id: str, ok: bool | None, reason: str, now: float, *, confirmed: bool = False
    ) -> None:
        """A ping ended. None as `ok`: it could not be tried, which says nothing either way; `reason` says why. After
        two that an event loop could not make, blocked or closed as it is, the last answer is not believed any more.

        `reason` is a category or an exception's type ("timeout", "ConnectionRefusedError"), never a message. A failure
        is `confirmed` when the application's own calls fail or hang as well: then it needs no second one.
        """
        record = self._record(resource_id)
        record.ping_tried, record.ping_reason, record.steady = now, reason, None
        if ok is None:
            record.untried += reason in NO_LOOP
        else:
            record.untried = 0
            record.ping_ok, record.ping_at = ok, now
            needed = self.failures if confirmed else 0
            record.ping_failures = 0 if ok else max(record.ping_failures + 1, needed)
            record.unused = record.hung = False

    def record_untold(
        self, resource_id: str, now: float, *, unused: bool = False, hung: bool = False
    ) -> None:
        """A ping found no way to ask (nothing uses the resource, or all of it is used): the last answer stands.

        `unused`: where there never was an answer, none can be inferred either. `hung`: a call of the application
        hangs, so that a good answer grows old.
        """
        record = self._record(resource_id)
        if (record.hung, record.unused, record.untried) != (hung, unused, 0):
            record.steady = None
        record.hung, record.untried = hung, 0
        if record.ping_ok is None:
            record.unused = unused
        elif not (hung and record.ping_ok):
            record.ping_at = now

    def failing(self, resource_id: str) -> bool:
        """Whether the last ping that had an answer had a bad one."""
        return self._record(resource_id).ping_ok is False

    def answered(self, resource_id: str) -> bool:
        """Whether a ping ever had an answer, good or bad."""
        return self._record(resource_id).ping_ok is not None

    def record_collect(self, resource_id: str, ok: bool, reason: str, now: float) -> None:
        """A collection ended; `reason` as in `record_ping`."""
        record = self._record(resource_id)
        if record.collect_tried is None or record.collect_reason != reason:
            record.steady = None
        record.collect_tried, record.collect_reason = now, reason
        if ok:
            record.collect_good = now

    def update(
        self, now: float, levels: Mapping[str, Mapping[str, AlertLevel]]
    ) -> list[tuple[str, Health, Health]]:
        """Judge every resource at a tick; returns (resource id, health before, health now) of each change.

        `levels` gives for each resource the worst firing level by metric, as AlertBook.firing() does.
        """
        self._updated = now
        changes = []
        for resource_id, record in list(self._records.items()):
            firing = levels.get(resource_id)
            if not firing and not record.levels and record.steady == self._recent(record, now):
                continue  # nothing was heard that could change it
            before, record.levels = record.health, firing or {}
            if self._judge(record, now):
                changes.append((resource_id, before, record.health))
        return changes

    def rejudge(self, resource_id: str, now: float) -> None:
        """Judge one resource between ticks, by what was heard of it since and the levels of the last tick."""
        record = self._records.get(resource_id)
        if record is not None and self._updated is not None:
            self._judge(record, now)

    def _judge(self, record: _Record, now: float) -> bool:
        """Whether its status has changed."""
        before = record.health
        status, reason = judge(self._evidence(record, record.levels, now), self.failures)
        record.steady = self._recent(record, now)
        changed = status is not before.status
        record.health = Health(
            status=status,
            reason=reason,
            since=now if changed or before.since is None else before.since,
            checked=record.checked,
            known=reason != NO_ANSWER and (before.known or status is not HealthStatus.UNKNOWN),
        )
        if changed:
            record.history.append(record.health)
        return changed

    def health(self, resource_id: str, now: float) -> Health:
        """The health of a resource as of the last tick; unknown when there was none for three intervals."""
        record = self._records.get(resource_id)
        if record is None:
            return NOT_CHECKED
        limit, health = self._updated, record.health
        if health.checked is None:
            return health
        health = health._replace(checked=record.checked)  # a judgement that stays is not made anew
        if limit is not None and now - limit > STALE_AFTER * self.interval:
            return health._replace(
                status=HealthStatus.UNKNOWN, reason="the monitor does not run", since=limit
            )
        return health

    def history(self, resource_id: str) -> list[Health]:
        """The last changes of a resource's status, the latest first."""
        record = self._records.get(resource_id)
        return [] if record is None else list(reversed(record.history.copy()))

    def _recent(self, record: _Record, now: float) -> tuple[bool, bool]:
        """Whether the last answer to a ping, and the last reading that went well, are still believed."""
        interval = self.interval if record.interval is None else record.interval
        good = record.collect_good
        return (
            record.untried < 2 and now - record.ping_at <= STALE_AFTER * self.ping_interval,
            good is not None and now - good <= STALE_AFTER * interval,
        )

    def _record(self, resource_id: str) -> _Record:
        return self._records.get(resource_id) or self._records.setdefault(resource_id, _Record())

    def _evidence(self, record: _Record, levels: Mapping[str, AlertLevel], now: float) -> Evidence:
        ping_recent, collect_recent = self._recent(record, now)
        return Evidence(
            pinged=record.ping_tried is not None,
            ping=record.ping_ok if ping_recent else None,
            ping_failures=record.ping_failures,
            ping_reason=record.ping_reason,
            unused=record.unused,
            hung=record.hung,
            collected=record.collect_tried is not None,
            collect=collect_recent,
            collect_reason=record.collect_reason,
            levels=levels,
        )


class _Resource(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def type(self) -> str: ...


class HealthSource(Protocol):
    """What ResourceHealthAdapter needs of a ResourceMonitor."""

    def health_of(self, resource_id: str) -> Health:
        """The health of a resource, from memory."""


class Check(NamedTuple):
    """One line of a health report. The failure of an `optional` one is a warning only."""

    id: str
    type: str
    health: Health
    optional: bool = False


class HealthAdapter(Protocol):
    """A source of many checks; it must answer from memory."""

    def checks(self) -> Iterable[Check]:
        """The checks at this moment."""


class ResourceHealthAdapter:
    """The health of every resource, those that come later included, read from the monitor's memory.

    `optional` names resource ids or types without which the application still works: their failure is a
    warning and does not take the application out of service.
    """

    def __init__(
        self,
        resource_manager: Iterable[_Resource],
        resource_monitor: HealthSource,
        *,
        optional: Collection[str] = (),
    ) -> None:
        if not isinstance(resource_manager, Iterable):
            raise TypeError(
                f"ResourceHealthAdapter takes a ResourceManager first, not {type(resource_manager).__name__}"
            )
        if not callable(getattr(resource_monitor, "health_of", None)):
            raise TypeError(
                f"ResourceHealthAdapter takes a ResourceMonitor second, not {type(resource_monitor).__name__}"
            )
        if isinstance(optional, str):
            raise ValueError(f"optional is a collection of ids or types: optional=[{optional!r}]")
        if not isinstance(optional, Collection):
            raise TypeError(f"optional is a collection of ids or types, not {type(optional).__name__}")
        self._manager = resource_manager
        self._monitor = resource_monitor
        self._optional = frozenset(optional)

    def checks(self) -> Iterator[Check]:
        """One check for each resource."""
        for resource in self._manager:
            optional = resource.id in self._optional or resource.type in self._optional
            yield Check(resource.id, resource.type, self._monitor.health_of(resource.id), optional)


# -- the registry --------------------------------------------------------------------------------------


class HealthReport(NamedTuple):
    """The answer of a health endpoint."""

    status: Verdict
    checks: tuple[tuple[Check, Verdict], ...]

    @property
    def http_status(self) -> int:
        """503 when the status is "fail", else 200."""
        return 503 if self.status == "fail" else 200

    def to_dict(self) -> dict[str, Any]:
        """As `application/health+json` (draft-inadarei-api-health-check-06)."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for check, verdict in self.checks:
            health = check.health
            line = {
                "componentId": check.id,
                "componentType": check.type,
                "status": verdict,
                "observedValue": health.status.value,
            }
            if health.checked is not None:
                line["time"] = _iso(health.checked)
            if verdict != "pass" and health.reason:
                line["output"] = health.reason
            lines.setdefault(f"{check.id}:{check.type}", []).append(line)
        return {"status": self.status, "checks": lines}


class _OwnCheck:
    """A check of the application and its last result."""

    def __init__(
        self,
        name: str,
        check: Callable[[], Any],
        groups: frozenset[str],
        interval: float,
        timeout: float,
        max_age: float,
        optional: bool,
        loop: Any,
    ) -> None:
        self.name, self.check, self.groups, self.loop = name, check, groups, loop
        self.interval, self.timeout, self.max_age, self.optional = interval, timeout, max_age, optional
        self.health = NOT_CHECKED
        self.settled = 0.0  # monotonic time of the last result
        self.due = 0.0
        self.started: float | None = None  # monotonic start of the run under way
        self.abandoned = False  # that run is over its deadline; its answer will not be taken

    def reset_run(self) -> None:
        self.due, self.started, self.abandoned = 0.0, None, False

    def settle(self, now: float, wall: float, status: HealthStatus, reason: str) -> None:
        before = self.health
        since = before.since if status is before.status and before.since is not None else wall
        known = before.known or status is not HealthStatus.UNKNOWN
        self.settled = now
        self.health = Health(status, reason, since, wall, known)

    def current(self, now: float) -> Health:
        if self.health.checked is not None and now - self.settled > self.max_age:
            return self.health._replace(status=HealthStatus.UNKNOWN, reason="no recent result")
        return self.health


class HealthRegistry:
    """Answers "is it up" from memory.

    Groups: `live` (restart me when it fails; refuses checks of dependencies, whose failure a restart only
    spreads), `ready` (send no traffic while it fails), `startup` (wait while it fails). Without a group: all.

    Statuses: up is "pass"; degraded and saturated are "warn"; down is "fail". Unknown is "warn" while nothing
    was ever known, or while an event loop cannot ask, and "fail" for what has been known and has gone
    silent, since it ranks worse than anything but down. Whatever is optional warns at most. `startup`
    fails only until everything was tried once, so that a dependency that is down does not keep the
    application from starting. "fail" is HTTP 503, all else 200.

    The application's own checks run on threads of their own, at most 16 at a time and each check once at a
    time; one that is over its deadline is abandoned. They start with the first `register`, go on in a forked
    child, and end with `close`.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.loop: Any = None  # event loop of async checks that were registered outside of any
        self._clock = clock
        self._wall = wall
        self._adapters: tuple[tuple[HealthAdapter, frozenset[str]], ...] = ()
        self._checks: dict[str, _OwnCheck] = {}
        self._closed = False
        self.reinit_after_fork()

    def reinit_after_fork(self) -> None:
        """Renew the lock in a forked child; its thread starts with the next report."""
        self._pid = os.getpid()
        self._wake = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        for check in self._checks.values():
            check.reset_run()

    @property
    def adapters(self) -> tuple[HealthAdapter, ...]:
        """The adapters that were registered."""
        return tuple(adapter for adapter, _ in self._adapters)

    def register_adapter(
        self, adapter: HealthAdapter, *, groups: Collection[str] = ("ready", "startup")
    ) -> None:
        """Add a source of checks. ValueError for the group `live`: what it reports are dependencies; TypeError for
        what has no `checks()`."""
        if isinstance(adapter, type) or not callable(getattr(adapter, "checks", None)):
            raise TypeError(f"register_adapter takes a ResourceHealthAdapter(...), not {shown(adapter)}")
        self._adapters = (*self._adapters, (adapter, _groups(groups, dependency=True)))

    def register(
        self,
        name: str,
        check: Callable[[], Any],
        *,
        groups: Collection[str] = ("ready", "startup"),
        dependency: bool = True,
        optional: bool = False,
        interval: float = 10.0,
        timeout: float = 2.0,
        max_age: float | None = None,
        loop: Any = None,
    ) -> None:
        """Run `check` every `interval` seconds (give or take a tenth) in the background.

        It may be sync or async and returns None, True or False, a HealthStatus, or a pair of one of these and
        a text that may be shown to anybody; an exception means down, and only its type is shown. An async
        check runs on `loop`, else on the loop that runs now, else on `self.loop`, else on a loop of its own.
        After `timeout` seconds it is down; a result older than `max_age` (three intervals and a timeout) is
        unknown. Only a check that is no `dependency` may be in the group `live`.

        Raises ValueError for a name that is taken, unknown groups, or a dependency in `live`.
        """
        if not isinstance(name, str) or not name:
            raise ValueError("a health check needs a name")
        if not callable(check):
            raise ValueError(
                f"check {name!r} must be a function without arguments, not {type(check).__name__}"
            )
        if not (interval > 0 and timeout > 0):
            raise ValueError(f"interval and timeout of check {name!r} must be more than 0 seconds")
        chosen = _groups(groups, dependency)
        age = STALE_AFTER * interval + timeout if max_age is None else max_age
        home = _running_loop() if loop is None else loop
        own = _OwnCheck(name, check, chosen, interval, timeout, age, optional, home)
        self._notice_fork()
        with self._wake:
            if name in self._checks:
                raise ValueError(f"a health check {name!r} is registered already: unregister({name!r}) first")
            self._checks = {**self._checks, name: own}
            self._wake.notify()
        self._closed = False
        self._keep_running()

    def unregister(self, name: str) -> None:
        """Stop running a check. Raises KeyError when there is none of this name."""
        with self._wake:
            if name not in self._checks:
                raise KeyError(f"no health check {name!r}; there are: {', '.join(self._checks) or 'none'}")
            self._checks = {key: check for key, check in self._checks.items() if key != name}

    def report(self, group: Group | None = None) -> HealthReport:
        """The health of a group, or of everything, as it is known now; costs no check."""
        if group is not None:
            _groups((group,), dependency=False)
        self._keep_running()
        now = self._clock()
        checks: list[Check] = []
        for adapter, groups in self._adapters:
            if group is None or group in groups:
                try:
                    checks.extend(adapter.checks())
                except Exception as error:  # noqa: BLE001 - a broken adapter is itself a finding
                    health = Health(HealthStatus.UNKNOWN, type(error).__name__)
                    checks.append(Check(type(adapter).__name__, "adapter", health))
        checks.extend(
            Check(own.name, "check", own.current(now), own.optional)
            for own in self._checks.values()
            if group is None or group in own.groups
        )
        judged = tuple((check, verdict_of(check, group)) for check in checks)
        verdicts = {verdict for _, verdict in judged}
        overall: Verdict = "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"
        return HealthReport(overall, judged)

    def check(self, group: Group | None = None) -> dict[str, Any]:
        """`report` as a dict in the form of `application/health+json`."""
        return self.report(group).to_dict()

    def open(self) -> None:
        """Go on after `close`: the checks run again, those that were registered before included."""
        self._closed = False
        self._keep_running()

    def close(self, timeout: float = 1.0) -> None:
        """End the background thread; runs under way are abandoned. `open` and `register` start it again."""
        self._closed = True
        with self._wake:
            thread, self._thread = self._thread, None
            self._wake.notify_all()
        if thread is not None:
            thread.join(timeout)

    # -- the background --------------------------------------------------------------------------------

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            self.reinit_after_fork()

    def _keep_running(self) -> None:
        self._notice_fork()
        thread = self._thread
        if self._checks and not self._closed and (thread is None or not thread.is_alive()):
            with self._wake:
                if self._thread is thread:
                    self._thread = threading.Thread(target=self._run, name="uno-health", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        me, wake = threading.current_thread(), self._wake
        with wake:
            while self._thread is me:
                wake.wait(self._advance(self._clock()))

    def _advance(self, now: float) -> float | None:
        """Abandon what is late, start what is due; returns the seconds until there is more to do."""
        from random import uniform

        checks = self._checks.values()
        for check in checks:
            if check.started is not None and not check.abandoned and now - check.started >= check.timeout:
                check.abandoned = True
                check.settle(now, self._wall(), HealthStatus.DOWN, "timeout")
        running = sum(check.started is not None and not check.abandoned for check in checks)
        for check in checks:
            if check.started is None and now >= check.due and running < MAX_RUNNING:
                check.due = now + check.interval * uniform(0.9, 1.1)
                if self._start(check, now):
                    running += 1
        times = [c.started + c.timeout for c in checks if c.started is not None and not c.abandoned]
        if running < MAX_RUNNING:  # else whatever ends first makes room, and wakes this thread
            times += [c.due for c in checks if c.started is None]
        return max(0.0, min(times) - now) if times else None

    def _start(self, check: _OwnCheck, now: float) -> bool:
        check.started, check.abandoned = now, False
        try:
            threading.Thread(
                target=self._execute, args=(check,), name=f"uno-health-{check.name}", daemon=True
            ).start()
        except RuntimeError:  # the system gives no more threads
            check.started = None
            check.settle(now, self._wall(), HealthStatus.UNKNOWN, "no thread")
            return False
        return True

    def _execute(self, check: _OwnCheck) -> None:
        wake = self._wake
        try:
            result = check.check()
            if hasattr(result, "__await__"):
                result = _await(result, check.loop or self.loop, check.timeout)
            status, reason = _outcome(result)
        except BaseException as error:  # noqa: BLE001 - whatever a check does, it is only that check's result
            status, reason = HealthStatus.DOWN, type(error).__name__
        with wake:
            if not check.abandoned and wake is self._wake:
                check.settle(self._clock(), self._wall(), status, reason)
            check.started, check.abandoned = None, False
            wake.notify()


def verdict_of(check: Check, group: Group | None = None) -> Verdict:
    """What one check contributes to a report; see HealthRegistry for the rules."""
    health = check.health
    if health.status is HealthStatus.UP:
        return "pass"
    if group == "startup":
        return "fail" if health.checked is None else "warn"
    silent = health.status is HealthStatus.UNKNOWN and health.known and health.reason not in NO_LOOP
    failed = health.status is HealthStatus.DOWN or silent
    return "fail" if failed and not check.optional else "warn"


def _groups(names: Collection[str], dependency: bool) -> frozenset[str]:
    if isinstance(names, str):
        raise ValueError(f"groups is a collection of names: groups=[{names!r}]")
    for name in names:
        if name not in GROUPS:
            raise ValueError(f"no health group {name!r}: there are {', '.join(GROUPS)}")
    if dependency and "live" in names:
        raise ValueError(
            "the group 'live' takes no checks of dependencies: when one is down, restarting this process "
            "only spreads the failure. Use 'ready', or dependency=False for what looks at this process alone"
        )
    return frozenset(names)


def _outcome(result: object) -> tuple[HealthStatus, str]:
    text = ""
    if isinstance(result, Health):
        return result.status, result.reason
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, text = result
    if result is None or result is True:
        return HealthStatus.UP, text
    if result is False:
        return HealthStatus.DOWN, text or "the check said no"
    if isinstance(result, HealthStatus):
        return result, text
    return HealthStatus.UNKNOWN, f"the check returned {type(result).__name__} instead of True or False"


def _await(work: Awaitable[object], loop: Any, timeout: float) -> object:
    import asyncio

    async def run() -> object:
        return await asyncio.wait_for(work, timeout)

    if loop is None:
        return asyncio.run(run())
    coroutine = run()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop is closed
        coroutine.close()
        close = getattr(work, "close", None)
        if close is not None:
            close()
        raise
    try:
        return future.result(timeout)  # a blocked loop does not even begin
    except TimeoutError:
        future.cancel()
        raise


def _running_loop() -> Any:
    import sys

    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
