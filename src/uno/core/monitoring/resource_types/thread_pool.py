"""How are thread pools watched? concurrent.futures.ThreadPoolExecutor, also asyncio's default executor."""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from math import inf
from threading import get_ident
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    ONE_CLOCK,
    SLOW_SECONDS,
    CallScope,
    Hold,
    Site,
    Stat,
    announce,
    caller,
    code_of,
    describe_error,
    describe_holds,
    describe_slow,
    failures,
    install,
    scope,
    stat_of,
    thread_position,
)
from uno.core.monitoring.metrics import MAX_PENDING
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

DEFAULT_PREFIX = re.compile(r"ThreadPoolExecutor-\d+\Z")


class ThreadPool(ResourceTypeMonitor):
    """Threads, queue, wait and run time of a ThreadPoolExecutor.

    A thread is busy while it runs a task that it began after the hooks were installed.
    """

    resource_type = "thread_pool"
    targets = ("concurrent.futures.thread.ThreadPoolExecutor",)
    library = "concurrent.futures.thread"
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "thread_pool.thread.count",
        "thread_pool.thread.max",
        "thread_pool.queue.size",
        "thread_pool.task.wait_time",
        "thread_pool.task.duration",
        "thread_pool.tasks",
        "uno.resource.errors",
    )
    headline = (
        "uno.resource.utilization",
        "thread_pool.queue.size",
        "thread_pool.task.duration",
        "thread_pool.task.wait_time",
    )
    thresholds = (
        ("thread_pool.task.wait_time", Threshold(0.5, 5.0, "Tasks wait for a free thread", for_=2)),
        ("uno.resource.utilization", Threshold(0.95, None, "All threads are busy", for_=10)),
    )

    def identify(self, target: Any) -> Identity:
        prefix = target._thread_name_prefix or ""
        # The default prefix counts the pools of the process: another number after each restart.
        return Identity("thread-pool" if not prefix or DEFAULT_PREFIX.match(prefix) else prefix)

    def attach(self, target: Any) -> None:
        stat_of(target)

    def install(self) -> list[Callable[[], None]]:
        thread = sys.modules["concurrent.futures.thread"]
        return [install(thread._WorkItem, "__init__", _init), install(thread._WorkItem, "run", _run)]

    def stat(self, target: Any) -> Stat:
        stat = stat_of(target)
        stat.drain()
        stat.outcome("completed").value = stat.total.value - stat.outcome("failed").value
        return stat

    def collect_metrics(self, resource: Resource) -> None:
        pool = resource.target
        stat = self.stat(pool)
        in_use, limit = self.capacity(pool)
        update = self.update_metric
        known = not self.read_only
        update("uno.resource.utilization", in_use / limit if known else None)
        update("thread_pool.thread.count", in_use if known else None, {"state": "active"})
        idle = max(0, len(pool._threads) - in_use) if known else None
        update("thread_pool.thread.count", idle, {"state": "idle"})
        update("thread_pool.thread.max", limit)
        update("thread_pool.queue.size", _queued(pool))
        update("thread_pool.task.wait_time", stat.wait)
        update("thread_pool.task.duration", stat.duration)
        update("uno.resource.errors", stat.errors)
        for outcome in ("completed", "failed"):
            update("thread_pool.tasks", stat.outcome(outcome), {"outcome": outcome})

    def capacity(self, target: Any) -> tuple[float, float]:
        return min(len(stat_of(target).holds), target._max_workers), target._max_workers

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = self.stat(target)
        in_use, limit = self.capacity(target)
        return {
            "active_threads": in_use,
            "max_threads": limit,
            "queue_depth": _queued(target),
            "completed_tasks": stat.outcome("completed").value,
            "failed_tasks": stat.outcome("failed").value,
        }

    def ping(self, target: Any) -> bool:
        """Whether tasks can be submitted. A pool whose threads are all busy still takes them."""
        return not (target._shutdown or target._broken)

    def explain(self, target: Any, metric: str) -> str:
        if target._broken:
            return "the initializer of its threads failed: no task runs any more"
        stat = stat_of(target)
        if target._shutdown and not stat.holds:
            return "it was shut down"
        # Where each busy thread is now says more than where its task begins.
        now = Stat()
        for ident, hold in list(stat.holds.items()):
            site = thread_position(ident)[0] or hold.site
            now.holds[ident] = Hold(site, hold.caller, hold.since)
        held = describe_holds(now, "thread", target._max_workers)
        return "; ".join(filter(None, (held, describe_slow(stat), describe_error(stat))))


def _queued(pool: Any) -> int:
    """Tasks that no thread has taken yet, cancelled ones included."""
    size: int = pool._work_queue.qsize()
    if not pool._shutdown:
        return size
    # shutdown() queues a mark that stays there; without a living thread nothing else can be left.
    return max(0, size - 1) if any(thread.is_alive() for thread in list(pool._threads)) else 0


class _Worker:
    """A thread of a pool: the Stat of the pool, and the task that it runs. Read as a Hold."""

    __slots__ = ("caller", "ident", "item", "start", "stat")

    def __init__(self, stat: Stat) -> None:
        self.stat, self.ident, self.caller = stat, get_ident(), ""
        self.item: Any = None
        self.start = 0.0

    @property
    def site(self) -> Site | None:
        """Where the function is defined."""
        item = self.item
        if item is None:  # it has ended since
            return None
        fn, args = item.task[:2] if hasattr(item, "task") else (item.fn, item.args)  # Python 3.14 has a task
        code = code_of(fn, args)
        return None if code is None else (code, 0)

    @property
    def since(self) -> float:
        """When it started, in monotonic seconds."""
        return self.start if ONE_CLOCK else monotonic() - (perf_counter() - self.start)


class _Here(threading.local):
    worker: _Worker | None = None


_here = _Here()


def _adopt() -> _Worker | None:
    """The first task in this thread, which was started with a weak reference to its pool.

    The worker's frame knows it as well, but who asks for a frame's locals makes it keep them: the task and its result.
    """
    arguments = getattr(threading.current_thread(), "_args", None) or (None,)
    pool = arguments[0]() if type(arguments[0]) is weakref.ref else None
    if pool is None:
        return None
    stat: Stat | None = pool.__dict__.get(ATTRIBUTE)
    if stat is None:
        stat = stat_of(pool)
        announce(pool)
    _here.worker = _Worker(stat)
    return _here.worker


def _init(original: Any) -> Any:
    """Writes down when a task was submitted and by whom."""

    def __init__(self: Any, future: Any, *task: Any) -> None:
        original(self, future, *task)
        try:
            current = scope.get()
            name = caller() if current is None else current._name or current.name
            self._uno_submitted = perf_counter(), name
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ThreadPoolExecutor.submit", error)

    return __init__


def _run(original: Any) -> Any:
    """Times a task from submit to start and from start to end. Contexts are not copied into executors by
    themselves; the caller's name alone goes along."""

    def run(self: Any, *context: Any) -> None:
        worker = None
        try:
            future = self.future
            if future._state == "PENDING":  # else it was cancelled
                worker = _here.worker or _adopt()
            if worker is not None:
                stat = worker.stat
                try:
                    submitted, name = self._uno_submitted
                except AttributeError:  # before the hooks
                    submitted, name = None, caller()
                if (
                    worker.caller != name
                ):  # the scope stays until the next task: nobody else runs in this thread
                    worker.caller = name
                    scope.set(CallScope(name))
                worker.item = self
                worker.start = start = perf_counter()
                if submitted is not None:
                    waits = stat.wait.pending
                    waits.append(start - submitted)
                    if len(waits) > MAX_PENDING:
                        stat.wait.fold()
                stat.holds[worker.ident] = worker  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001
            failures("ThreadPoolExecutor.run", error)
            worker = None
        if worker is None:
            original(self, *context)
            return
        original(self, *context)
        try:
            now = perf_counter()
            del stat.holds[worker.ident]
            failure = future._exception
            if failure is None:
                log = stat.log
                log.append((start, now, name))
                if len(log) > MAX_PENDING:
                    stat.drain()
            else:
                stat.outcome("failed").value += 1
                stat.done(now - start, failure, name, inf)
            if now - start > SLOW_SECONDS:
                stat.note_slow(worker.site)
            worker.item = None  # the task and its result go when the application drops them
        except Exception as error:  # noqa: BLE001
            failures("ThreadPoolExecutor.run", error)

    return run
