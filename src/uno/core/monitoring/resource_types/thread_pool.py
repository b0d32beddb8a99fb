"""How are thread pools watched? concurrent.futures.ThreadPoolExecutor, also asyncio's default executor."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping
from math import inf
from operator import sub
from threading import get_ident
from time import monotonic, perf_counter
from typing import Any
from weakref import ref

from uno.core.monitoring.causes import describe_error, describe_holds, describe_slow
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_LOG,
    ONE_CLOCK,
    SLOW_SECONDS,
    CallScope,
    Site,
    Stat,
    announce,
    caller,
    code_of,
    failures,
    hang,
    here,
    hung,
    install,
    scope,
    thread_position,
    unscoped,
)
from uno.core.monitoring.metrics import MAX_PENDING
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

DEFAULT_PREFIX = re.compile(r"ThreadPoolExecutor-\d+\Z")


class ThreadStat(Stat):
    """What happened to one pool. Who holds its threads is read from them, when somebody asks."""

    __slots__ = ("workers",)

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[int, ref[_Worker]] = {}

    def forget_parent(self) -> None:
        super().forget_parent()
        self.workers = {}

    def living(self) -> list[_Worker]:
        """The threads that have run a task."""
        return [worker for known in list(self.workers.values()) if (worker := known()) is not None]

    def drain(self) -> None:
        """Of each task in ``log``: when it was submitted, started and ended, and for whom."""
        self.holds = {w.ident: (w.site, w.caller, w.since) for w in self.living() if w.item is not None}
        log = self.taken()
        if not log:
            return
        starts, ends = log[1::4], log[2::4]
        times = list(map(sub, ends, starts))
        self.wait.pending.extend(map(sub, starts, log[0::4]))
        self.duration.pending.extend(times)
        self.total.value += len(times)
        self.called_by(log[3::4], times)
        self.last_ok = max(self.last_ok, ends[-1] if ONE_CLOCK else monotonic())
        for cell in (self.wait, self.duration):
            if len(cell.pending) > MAX_PENDING:
                cell.fold()


def thread_stat(pool: Any) -> ThreadStat:
    """The Stat that hangs on ``pool``, made when there is none."""
    return hung(pool) or hang(pool, ATTRIBUTE, ThreadStat())  # type: ignore[no-any-return]


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
        thread_stat(target)

    def install(self) -> list[Callable[[], None]]:
        thread = sys.modules["concurrent.futures.thread"]
        return [install(thread._WorkItem, "__init__", _init), install(thread._WorkItem, "run", _run)]

    def stat(self, target: Any) -> Stat:
        stat = thread_stat(target)
        if stat.workers or stat.log or stat.holds:
            stat.drain()
        stat.outcome("completed").value = stat.total.value - stat.outcome("failed").value
        return stat

    def at_rest(self, target: Any) -> object:
        stat = thread_stat(target)
        if stat.log or stat.holds or any(worker.item is not None for worker in stat.living()):
            return None
        return stat.total.value, len(target._threads), _queued(target), target._max_workers

    def collect_metrics(self, resource: Resource) -> None:
        pool = resource.target
        stat = self.stat(pool)
        in_use, limit = _busy(pool, stat), pool._max_workers
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
        return _busy(target, self.stat(target)), target._max_workers

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = self.stat(target)
        in_use, limit = _busy(target, stat), target._max_workers
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
        stat = self.stat(target)
        if target._shutdown and not stat.holds:
            return "it was shut down"
        # Where each busy thread is now says more than where its task begins.
        now = Stat()
        for ident, (begin, name, since) in list(stat.holds.items()):
            now.holds[ident] = thread_position(ident)[0] or begin, name, since
        held = describe_holds(now, "thread", target._max_workers)
        return "; ".join(filter(None, (held, describe_slow(stat), describe_error(stat))))


def _busy(pool: Any, stat: Stat) -> float:
    return float(min(len(stat.holds), pool._max_workers))


def _queued(pool: Any) -> int:
    """Tasks that no thread has taken yet, cancelled ones included."""
    size: int = pool._work_queue.qsize()
    if not pool._shutdown:
        return size
    # shutdown() queues a mark that stays there; without a living thread nothing else can be left.
    return max(0, size - 1) if any(thread.is_alive() for thread in list(pool._threads)) else 0


class _Worker:
    """A thread of a pool: the Stat of the pool, and the task that it runs."""

    __slots__ = ("__weakref__", "caller", "ident", "item", "start", "stat")

    def __init__(self, stat: ThreadStat) -> None:
        self.stat, self.ident, self.caller = stat, get_ident(), ""
        self.item: Any = None
        self.start = 0.0
        stat.workers[self.ident] = ref(self)

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
    pool = arguments[0]() if type(arguments[0]) is ref else None
    if pool is None:
        return None
    stat: ThreadStat | None = hung(pool)
    if stat is None:
        stat = thread_stat(pool)
        announce(pool)
    _here.worker = _Worker(stat)
    return _here.worker


# A call with * or ** is as dear as all the rest of a hook: each argument has its name. Up to Python 3.13 a task is a
# function and its arguments; from 3.14 on it is one object, and runs in a context.


def _init(original: Any) -> Any:
    """Writes down when a task was submitted and by whom."""

    def __init__(self: Any, future: Any, fn: Any, args: Any = None, kwargs: Any = None) -> None:
        if args is None:
            original(self, future, fn)
        else:
            original(self, future, fn, args, kwargs)
        try:
            current = scope.get()
            name = unscoped() if current is None else current._name or current.name
            self._uno_for = name
            self._uno_submitted = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ThreadPoolExecutor.submit", error)

    return __init__


def _run(original: Any) -> Any:
    """Times a task from submit to start and from start to end. Contexts are not copied into executors by
    themselves; the caller's name alone goes along."""

    def run(self: Any, context: Any = None) -> None:
        try:
            worker = _here.worker or _adopt()
            if worker is not None:
                try:
                    submitted, name = self._uno_submitted, self._uno_for
                except AttributeError:  # before the hooks
                    submitted, name = None, caller()
                if worker.caller != name:
                    # It stays until the next task: nobody else runs in this thread. A task that brings a context of
                    # its own, as those of asyncio.to_thread do, finds no scope there.
                    worker.caller = here.caller = name
                    scope.set(CallScope(name))
                worker.item, future = self, self.future
                worker.start = start = perf_counter()
        except Exception as error:  # noqa: BLE001
            failures("ThreadPoolExecutor.run", error)
            worker = None
        if context is None:
            original(self)
        else:
            original(self, context)
        if worker is None:
            return
        try:
            now = perf_counter()
            stat = worker.stat
            if future._exception is not None or submitted is None or now - start > SLOW_SECONDS:
                _odd(worker, future, submitted, now, name)
            elif future._state != "CANCELLED_AND_NOTIFIED":  # before it could begin
                done = submitted, start, now, name
                log = stat.log
                log += done
                if len(log) > MAX_LOG:
                    stat.drain()
            worker.item = None  # the task and its result go when the application drops them
        except Exception as error:  # noqa: BLE001
            failures("ThreadPoolExecutor.run", error)

    return run


def _odd(worker: _Worker, future: Any, submitted: float | None, now: float, name: str) -> None:
    """A task that failed, was slow, or was submitted at a time that nobody knows."""
    if future._state == "CANCELLED_AND_NOTIFIED":
        return
    stat, seconds = worker.stat, now - worker.start
    if submitted is not None:
        stat.wait.add(worker.start - submitted)
    if future._exception is not None:
        stat.outcome("failed").value += 1
    stat.done(seconds, future._exception, name, inf)
    if seconds > SLOW_SECONDS:
        stat.note_slow(worker.site)
