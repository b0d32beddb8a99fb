"""How is each resource read and pinged?

One job for each way of reading: the library's own monitor, each of the application's type monitors, a custom
resource's statistics, each ``read=`` callback, and the ping. Results are committed whole; what failed leaves a
gap, a word in the resource's health, a count, and one line in the log when that changes.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.clock import Clock
from uno.core.monitoring.health import NO_LOOP, HealthBook
from uno.core.monitoring.instrumentation import OWN, CallScope, raised_at, scope
from uno.core.monitoring.metrics import CounterCell, MetricError, Spec
from uno.core.monitoring.sampler import RETRY, Job, Mode, is_awaitable
from uno.core.monitoring.series import Batch, SeriesStore, current_batch
from uno.core.monitoring.type_monitor import ResourceTypeMonitor, ask
from uno.core.resources import Resource, ResourceError, ResourceManager
from uno.core.resources.resource import numbers_of

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("uno.collection")

#: A server is pinged as often as MOST_PINGS a second allow, from once a second to once in PING_SECONDS, and only while
#: no call of the application tells as much; what leads to no server is asked each PING_SECONDS.
PING_SECONDS = 10.0
MOST_PINGS = 20.0
#: Without an answer for so long a ping has failed; at its deadline it has failed a second time.
PING_LATE, PING_TIMEOUT = 1.3, 1.8
SILENT_SECONDS = 60.0
MAX_REASONS = 10
OWN_SCOPE = CallScope(OWN)
#: Why nobody could be asked, which says nothing of the resource.
_UNAVAILABLE = (*NO_LOOP, "overloaded")


#: Whether this process was forked from one that had uno.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Told:
    """What the log says of one source: each reason once until it recovers, and at most once a minute."""

    __slots__ = ("at", "failing", "reasons")

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self.at = 0.0
        self.failing = False

    def is_news(self, reason: str, now: float) -> bool:
        if not self.failing and now - self.at >= SILENT_SECONDS:
            self.reasons.clear()
        if reason in self.reasons or len(self.reasons) >= MAX_REASONS:
            return False
        self.reasons.add(reason)
        self.at, self.failing = now, True
        return True


def _tells(kind: type[ResourceTypeMonitor]) -> bool:
    """Whether a type can tell from the application's own calls how a resource is."""
    base = ResourceTypeMonitor
    return kind.suspect is not base.suspect or kind.seems_up is not base.seems_up


def _tells_rest(type_monitor: ResourceTypeMonitor) -> bool:
    """Whether a type knows when its collection would give the same again: what it inherits of that says nothing of a
    collection of its own."""
    mro = type(type_monitor).__mro__
    rest = next(cls for cls in mro if "at_rest" in vars(cls))
    collection = next(cls for cls in mro if "collect_metrics" in vars(cls))
    return issubclass(rest, collection) and rest is not ResourceTypeMonitor


class Collection:
    """The jobs of all resources."""

    def __init__(
        self,
        manager: ResourceManager,
        store: SeriesStore,
        health: HealthBook,
        clock: Clock,
        *,
        timeout: float,
    ) -> None:
        self.jobs: dict[tuple[str, str], Job] = {}
        self._servers: set[str] = set()  # ids of resources whose pings ask a server
        #: failed collections by resource and reason
        self.failures: dict[tuple[str, str], CounterCell] = {}
        self.type_monitors: list[ResourceTypeMonitor] = []
        self.app_loop: asyncio.AbstractEventLoop | None = None
        self._manager, self._store, self._health, self._clock = manager, store, health, clock
        self._timeout = timeout
        #: jobs that others than the resource's type bring; kept as they are while the resource is there
        self._sources: dict[str, dict[str, Job]] = {}
        self._reads: dict[str, dict[str, tuple[Spec, Callable[[], Any]]]] = {}
        self._told: dict[tuple[str, str], _Told] = {}
        self._parents: dict[str, Callable[[], Any]] = {}
        self._lock = threading.RLock()

    def reinit_after_fork(self) -> None:
        """Nothing is in flight in a forked child, and its loops do not run."""
        self._lock = threading.RLock()
        self.app_loop = None
        for job in self.jobs.values():
            job.in_flight, job.task, job.not_before = False, None, 0.0
        self._parents.clear()
        for resource in self._manager:
            self._note_parents(resource)

    def _note_parents(self, resource: Resource) -> None:
        """Note, in a forked process, what of a resource is the parent's, who goes on using it."""
        driver, target = resource.driver, resource.target
        if not _forked or target is None or not isinstance(driver, ResourceTypeMonitor):
            return
        part = ask(driver.inherited, target, otherwise=None)
        if part is not None:
            self._parents[resource.id] = driver.reference(target) if part is target else weakref.ref(part)

    def _is_parents(self, resource: Resource) -> bool:
        """Whether a ping would speak on a connection of the parent process."""
        known, driver, target = self._parents.get(resource.id), resource.driver, resource.target
        if known is None or target is None or not isinstance(driver, ResourceTypeMonitor):
            return False
        part = known()
        if part is not None and ask(driver.inherited, target, otherwise=part) is part:
            return True
        self._parents.pop(resource.id, None)  # the application has its own here
        return False

    def monitors_of(self, resource: Resource) -> list[ResourceTypeMonitor]:
        """Those that watch a resource: its library's, then the application's of its type."""
        driver = resource.driver
        own: list[ResourceTypeMonitor] = [driver] if isinstance(driver, ResourceTypeMonitor) else []
        return own + [m for m in self.type_monitors if m.resource_type == resource.type]

    def add_read(self, resource: Resource, spec: Spec, read: Callable[[], Any]) -> None:
        """Call ``read`` each tick for the value of ``spec``."""
        with self._lock:
            self._reads.setdefault(resource.id, {})[spec.name] = (spec, read)
            self.plan(resource)

    def add_source(
        self, resource: Resource, source: str, call: Callable[[], Any], take: Callable[[Batch, Any], None]
    ) -> None:
        """Call ``call`` each tick, on a worker and with the deadline of any collection, and let ``take`` fill the
        batch of ``source``."""
        with self._lock:
            job = self._job(resource, source, call, take, mode="worker")
            self._sources.setdefault(resource.id, {})[source] = job
            self.jobs = {**self.jobs, (resource.id, source): job}

    def drop_sources(self, resource: Resource) -> None:
        """Undo every add_source() of a resource; what it gave shows a gap."""
        with self._lock:
            for source in self._sources.pop(resource.id, {}):
                self.jobs = {key: job for key, job in self.jobs.items() if key != (resource.id, source)}
                self._store.blank(resource.id, source)

    def forget(self, resource: Resource) -> None:
        """The resource was unregistered."""
        with self._lock:
            self.jobs = {key: job for key, job in self.jobs.items() if key[0] != resource.id}
            self._servers.discard(resource.id)
            self._parents.pop(resource.id, None)
            self._reads.pop(resource.id, None)
            self._sources.pop(resource.id, None)
            for key in [key for key in self._told if key[0] == resource.id]:
                del self._told[key]
            for key in [key for key in self.failures if key[0] == resource.id]:
                del self.failures[key]

    def plan(self, resource: Resource) -> None:
        """The jobs that read and ping a resource."""
        with self._lock:
            jobs = {key: job for key, job in self.jobs.items() if key[0] != resource.id}
            driver = resource.driver
            monitors = self.monitors_of(resource)
            for number, type_monitor in enumerate(monitors):
                type_monitor.ensure_set_up()
                source = "driver" if type_monitor is driver else f"{type(type_monitor).__name__}-{number}"
                jobs[resource.id, source] = self._collector(resource, source, type_monitor)
            if driver is None and resource.read is not None:
                jobs[resource.id, "read"] = self._custom(resource)
            for spec, read in self._reads.get(resource.id, {}).values():
                jobs[resource.id, f"read {spec.name}"] = self._reader(resource, spec, read)
            for source, job in self._sources.get(resource.id, {}).items():
                jobs[resource.id, source] = job
            if driver is not None or callable(getattr(resource.target, "ping", None)):
                if driver is not None and resource.endpoint and not resource.endpoint.startswith("file:"):
                    self._servers.add(resource.id)
                if (resource.id, "ping") not in self.jobs:
                    self._note_parents(resource)
                jobs[resource.id, "ping"] = self._pinger(resource)
            self.jobs = jobs

    def _home(self, resource: Resource) -> asyncio.AbstractEventLoop | None:
        if resource.loop is not None:
            return resource.loop
        driver, target = resource.driver, resource.target
        bound = (
            ask(driver.bound_loop, target, otherwise=None)
            if isinstance(driver, ResourceTypeMonitor) and target is not None
            else None
        )
        if bound is not None:
            return bound  # type: ignore[no-any-return]
        if self.app_loop is not None and self.app_loop.is_closed():
            self.app_loop = None  # the application ended; what belongs to no loop goes on
        return self.app_loop

    def _job(
        self,
        resource: Resource,
        source: str,
        call: Callable[[], Any],
        take: Callable[[Batch, Any], None],
        *,
        mode: Mode,
        reader: ResourceTypeMonitor | None = None,
    ) -> Job:
        """A job that lets ``take`` fill a batch for one resource from what ``call`` gave, awaited if need be."""

        def run() -> Any:
            batch = self._store.batch(resource.id, source, reader)
            token = current_batch.set(batch)
            try:
                found = call()
                if not is_awaitable(found):
                    take(batch, found)
                    return batch
            finally:
                current_batch.reset(token)
            return awaited(batch, found)

        async def awaited(batch: Batch, found: Any) -> Batch:
            token = current_batch.set(batch)
            try:
                take(batch, await found)
            finally:
                current_batch.reset(token)
            return batch

        return Job(
            f"{resource.id} ({source})",
            run,
            partial(self._collected, resource, source),
            mode=mode,
            timeout=self._timeout,
            loop=lambda: self._home(resource),
        )

    def _collector(self, resource: Resource, source: str, type_monitor: ResourceTypeMonitor) -> Job:
        collect = partial(type_monitor.collect_metrics, resource)
        mode: Mode = (
            "loop"
            if inspect.iscoroutinefunction(collect)
            else "worker"
            if type_monitor.blocking
            else "inline"
        )
        job = self._job(resource, source, collect, lambda batch, found: None, mode=mode, reader=type_monitor)
        if mode == "inline" and _tells_rest(type_monitor):
            job.run = partial(self._unless_at_rest, resource, source, type_monitor, job.run)
        return job

    def _unless_at_rest(
        self, resource: Resource, source: str, type_monitor: ResourceTypeMonitor, collect: Callable[[], Any]
    ) -> Batch | None:
        """What ``collect`` gives; None when the type tells that it would be what there is already."""
        target = resource.target
        rest = None if target is None else ask(type_monitor.at_rest, target, otherwise=None)
        if rest is not None:
            rest = rest, type_monitor.read_only
            if self._store.rests(resource.id, source, rest):
                return None
        batch: Batch = collect()
        batch.rest = rest
        return batch

    def _custom(self, resource: Resource) -> Job:
        def take(batch: Batch, found: object) -> None:
            for name, value in numbers_of(resource.id, found).items():
                batch.put(Spec(name, "gauge"), value)

        def call() -> Any:
            read = resource.read
            return {} if read is None else read()

        mode: Mode = "loop" if inspect.iscoroutinefunction(resource.read) else "worker"
        return self._job(resource, "read", call, take, mode=mode)

    def _reader(self, resource: Resource, spec: Spec, read: Callable[[], Any]) -> Job:
        mode: Mode = "loop" if inspect.iscoroutinefunction(read) else "worker"

        def take(batch: Batch, found: object) -> None:
            batch.put(spec, found)

        return self._job(resource, f"read {spec.name}", read, take, mode=mode)

    def _pinger(self, resource: Resource) -> Job:
        driver = resource.driver

        def run() -> Any:
            token = scope.set(OWN_SCOPE)
            try:
                living = resource.target
                if living is None or (isinstance(driver, ResourceTypeMonitor) and driver.read_only):
                    return None
                if self._is_parents(resource):
                    return None
                found = driver.ping(living) if driver is not None else living.ping()
            finally:
                scope.reset(token)
            return awaited(found) if is_awaitable(found) else found

        async def awaited(found: Any) -> Any:
            token = scope.set(OWN_SCOPE)
            try:
                return await found
            finally:
                scope.reset(token)

        own = driver.ping if driver is not None else resource.target.ping
        return Job(
            f"{resource.id} (ping)",
            run,
            partial(self._pinged, resource),
            mode="loop" if inspect.iscoroutinefunction(own) else "worker",
            timeout=PING_TIMEOUT,
            loop=lambda: self._home(resource),
            late=PING_LATE,
            every=self._ping_seconds(resource),
            background=True,
        )

    def _collected(
        self, resource: Resource, source: str, batch: Any, error: BaseException | None, reason: str
    ) -> None:
        if resource not in self._manager:  # unregistered while it was read
            return
        if error is not None and resource.discovered and resource.target is None:  # dropped while it was read
            return
        driver = resource.driver
        looks = source == "driver" and isinstance(driver, ResourceTypeMonitor) and _tells(type(driver))
        if error is None and batch is None:  # at rest: all is as it was
            self._health.record_collect(resource.id, True, "", self._clock.now())
            if looks:
                self._look(resource)
            return
        if error is None:
            if driver is None:
                self._give_way(resource, source, batch)
            try:
                self._store.commit(batch)
            except MetricError as clash:
                error, reason = clash, "MetricError"
        now = self._clock.now()
        self._health.record_collect(resource.id, error is None, reason, now)
        if error is None:
            told = self._told.get((resource.id, source))
            if told is not None and told.failing:
                told.failing = False
                log.info("%s: %s answers again", resource.id, source)
            if looks:
                self._look(resource)
            return
        self._store.blank(resource.id, source)
        self.failures.setdefault((resource.id, reason), CounterCell()).inc()
        if self._told.setdefault((resource.id, source), _Told()).is_news(reason, now):
            own = isinstance(error, MetricError | ResourceError)  # our own words are safe to show
            log.warning(
                "%s: %s gave nothing (%s)%s",
                resource.id,
                source,
                reason,
                f": {error}" if own else raised_at(error),
            )

    def _give_way(self, resource: Resource, source: str, batch: Batch) -> None:
        """The plain numbers of a custom resource give way to what type monitors declare."""
        declared = {name for type_monitor in self.monitors_of(resource) for name in type_monitor.specs}
        if declared:
            if source == "read":
                batch.values = {key: v for key, v in batch.values.items() if key[0].name not in declared}
            self._store.withdraw(resource.id, "read", lambda spec, labels: spec.name in declared)

    def _look(self, resource: Resource) -> None:
        """What the application's own calls tell: a ping is due now, rather than in its turn, or there is no need of
        one."""
        job, driver, target = self.jobs.get((resource.id, "ping")), resource.driver, resource.target
        if job is None or target is None or not isinstance(driver, ResourceTypeMonitor) or driver.read_only:
            return
        if ask(driver.suspect, target, otherwise=False):
            if not job.in_flight:
                job.not_before = min(job.not_before, job.started + RETRY)
        elif ask(driver.seems_up, target, otherwise=False):
            job.not_before = max(job.not_before, time.monotonic() + RETRY / 2)
            self._heard(resource, True, "")
        elif not self._health.answered(resource.id):  # a success of before this tick is better than no word
            stat = ask(driver.stat, target, otherwise=None)
            if stat is not None and stat.last_ok > stat.last_error:
                self._heard(resource, True, "")

    def _ping_seconds(self, resource: Resource) -> float:
        driver, target = resource.driver, resource.target
        if resource.id not in self._servers or target is None or not isinstance(driver, ResourceTypeMonitor):
            return PING_SECONDS
        if ask(driver.pings_cheaply, target, otherwise=False):
            # a bit less than a tick, or every other one would be left out
            return min(PING_SECONDS, max(RETRY, len(self._servers) / MOST_PINGS))
        return PING_SECONDS

    def _heard(self, resource: Resource, ok: bool | None, reason: str, *, confirmed: bool = False) -> None:
        """Something is known of a resource's health: shown at once, not at the next tick."""
        now = self._clock.now()
        self._health.record_ping(resource.id, ok, reason, now, confirmed=confirmed)
        self._health.rejudge(resource.id, now)
        if ok:
            self._answered(resource)

    def _suspect(self, resource: Resource) -> bool:
        """Whether the application's own calls fail or hang at present."""
        driver, target = resource.driver, resource.target
        if target is None or not isinstance(driver, ResourceTypeMonitor):
            return False
        return ask(driver.suspect, target, otherwise=False)

    def _hangs(self, resource: Resource) -> bool:
        driver, target = resource.driver, resource.target
        if target is None or not isinstance(driver, ResourceTypeMonitor):
            return False
        return ask(driver.hangs, target, otherwise=False)

    def _refusal(self, resource: Resource, error: BaseException | None) -> str:
        driver = resource.driver
        if error is None or not isinstance(driver, ResourceTypeMonitor):
            return ""
        return ask(driver.refusal, error, otherwise="")

    def _answered(self, resource: Resource) -> None:
        driver, target = resource.driver, resource.target
        if isinstance(driver, ResourceTypeMonitor) and target is not None and not self._is_parents(resource):
            ask(driver.answered, target, otherwise=None)

    def _pinged(self, resource: Resource, result: Any, error: BaseException | None, reason: str) -> None:
        if resource not in self._manager:
            return
        unavailable = reason in _UNAVAILABLE
        ok = (
            None
            if unavailable or (error is None and result is None)
            else error is None and result is not False
        )
        job = self.jobs.get((resource.id, "ping"))
        if job is not None:
            job.every = self._ping_seconds(resource)
            if error is None:
                job.not_before = job.started + job.every
        if error is None and result is None:  # it has no way to tell
            leads_out = resource.driver is not None and resource.endpoint is not None
            now = self._clock.now()
            self._health.record_untold(resource.id, now, unused=leads_out, hung=self._hangs(resource))
            self._health.rejudge(resource.id, now)
            if leads_out and job is not None and not self._health.answered(resource.id):
                job.not_before = min(job.not_before, job.started + RETRY)  # it may be used any moment
            return
        if ok is False:
            reason = self._refusal(resource, error) or reason or "ping answered no"
        self._heard(resource, ok, reason, confirmed=self._suspect(resource))
