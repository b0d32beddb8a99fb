"""How are thread pools watched? concurrent.futures.ThreadPoolExecutor, also asyncio's default executor."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident
from time import monotonic, perf_counter
from types import CodeType
from typing import Any

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    CallScope,
    Hold,
    Site,
    Stat,
    announce,
    caller,
    describe_error,
    describe_holds,
    describe_slow,
    failures,
    install,
    scope,
    stat_of,
    thread_position,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

DEFAULT_PREFIX = re.compile(r"ThreadPoolExecutor-\d+\Z")


class ThreadPool(ResourceTypeMonitor):
    """Threads, queue, wait and run time of a ThreadPoolExecutor.

    A thread is busy while it runs a task that was submitted after the hooks were installed.
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
        return [install(thread.ThreadPoolExecutor, "submit", _submit)]

    def collect_metrics(self, resource: Resource) -> None:
        pool = resource.target
        stat = stat_of(pool)
        in_use, limit = self.capacity(pool)
        update = self.update_metric
        update("uno.resource.utilization", in_use / limit)
        update("thread_pool.thread.count", in_use, {"state": "active"})
        update("thread_pool.thread.count", max(0, len(pool._threads) - in_use), {"state": "idle"})
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
        stat = stat_of(target)
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


def _submit(original: Any) -> Any:
    """Times a task from submit to start and from start to end, and carries the caller's name along."""

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = self.__dict__.get(ATTRIBUTE)
            if stat is None:
                stat = stat_of(self)
                announce(self)
            task = _Task(stat, fn, caller())
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ThreadPoolExecutor.submit", error)
            return original(self, fn, *args, **kwargs)
        return original(self, task, *args, **kwargs)

    return submit


class _Task(CallScope):
    """A submitted function that tells its Stat when it starts and ends.

    While it runs it also is what the Stat holds (site, caller, since) and the scope of what it calls.
    """

    __slots__ = ("_args", "_fn", "_stat", "_time", "caller")

    def __init__(self, stat: Stat, fn: Any, by: str) -> None:
        self._name = self.caller = by
        self._stat, self._fn, self._time = stat, fn, perf_counter()

    @property
    def site(self) -> Site | None:
        """Where the function is defined."""
        code = _code(self._fn, self._args)
        return None if code is None else (code, 0)

    @property
    def since(self) -> float:
        """When it started, in monotonic seconds."""
        return monotonic() - (perf_counter() - self._time)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stat, fn, thread = self._stat, self._fn, get_ident()
        self._args = args
        started = perf_counter()
        stat.wait.observe(started - self._time)
        self._time = started
        stat.holds[thread] = self  # type: ignore[assignment]
        # Contexts are not copied into executors by themselves; only the caller's name goes along.
        token = scope.set(self) if scope.get() is None else None
        outcome, failure = "completed", None  # type: str, BaseException | None
        try:
            return fn(*args, **kwargs)
        except BaseException as error:
            outcome, failure = "failed", error
            raise
        finally:
            if token is not None:
                scope.reset(token)
            stat.holds.pop(thread, None)
            cell = stat.outcomes.get(outcome) or stat.outcome(outcome)
            cell.value += 1
            stat.done(perf_counter() - started, failure, self.caller)
            # Whoever keeps the scope or the traceback shall not keep these.
            self._fn, self._args, failure = None, (), None


def _code(fn: Any, args: tuple[Any, ...]) -> CodeType | None:
    """The code that a task runs, looking through partial objects and asyncio.to_thread's Context.run."""
    for _ in range(4):
        code = getattr(fn, "__code__", None)
        if code.__class__ is CodeType:
            return code
        if fn.__class__ is partial:
            fn, args = fn.func, fn.args + args
        elif getattr(fn, "__name__", "") == "run" and args:
            fn, args = args[0], args[1:]
        else:
            return None
    return None
