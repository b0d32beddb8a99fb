"""How are pools of processes watched? concurrent.futures.ProcessPoolExecutor, multiprocessing.Pool and ThreadPool.

Nothing of ours goes to the other process: what a task is made of stays picklable, and neither its function nor its
arguments are touched. Workers take tasks in the order in which these came, so a result tells that the task at the head
of the line has begun. That is where wait and run times come from; starting a process counts as running.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    Hold,
    Site,
    Stat,
    announce,
    caller,
    code_of,
    failures,
    install,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Identity, Resource

_keys = count()
_ASKED = "_uno_asked"


class PoolUse(NamedTuple):
    """Workers that are busy, there are, there may be; tasks that no worker has begun. None: it cannot be told."""

    active: int | None
    workers: int
    limit: int
    waiting: int | None


class _Task(NamedTuple):
    key: int
    stat: Stat
    submitted: float | None  # None: before anybody watched
    caller: str


class _Line:
    """The tasks of one pool in their order: those that run are in ``holds``, the others in ``waiters``."""

    __slots__ = ("_early", "_lock", "unseen")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._early: set[int] = set()  # submitted or begun at a time that nobody knows
        #: calls of which nobody knows how many tasks they have: while they last, nobody knows who runs
        self.unseen: set[int] = set()

    def enter(self, task: _Task, hold: Hold, workers: int) -> None:
        stat = task.stat
        with self._lock:
            if task.submitted is None:
                self._early.add(task.key)
            if len(stat.holds) >= workers:
                stat.waiters[task.key] = hold
                return
            stat.holds[task.key] = hold
            if task.submitted is not None:
                stat.wait.add(0.0)

    def leave(self, task: _Task) -> None:
        """A task ended, or was cancelled while it waited: the next one begins."""
        stat, now = task.stat, monotonic()
        with self._lock:
            if stat.waiters.pop(task.key, None) is not None:
                self._early.discard(task.key)
                return
            held = stat.holds.pop(task.key, None)
            if held is None:
                return
            if task.key in self._early:
                self._early.discard(task.key)
            else:
                stat.duration.add(now - held[2])
            key = next(iter(stat.waiters), None)
            if key is None:
                return
            hold = stat.waiters.pop(key)
            if key in self._early:
                self._early.discard(key)  # from here on its time is known
            else:
                stat.wait.add(now - hold[2])
            stat.holds[key] = hold[0], hold[1], now


class _ProcessPools(ResourceTypeMonitor):
    resource_type = "process_pool"
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "process_pool.process.count",
        "process_pool.process.max",
        "process_pool.queue.size",
        "process_pool.task.wait_time",
        "process_pool.task.duration",
        "process_pool.task.total_time",
        "process_pool.tasks",
        "uno.resource.errors",
    )
    headline = (
        "uno.resource.utilization",
        "process_pool.queue.size",
        "process_pool.task.duration",
        "process_pool.task.wait_time",
    )
    thresholds = (
        ("process_pool.task.wait_time", Threshold(1.0, 10.0, "Tasks wait for a free process", for_=2)),
        ("uno.resource.utilization", Threshold(0.95, None, "All processes are busy", for_=10)),
    )

    def use(self, pool: Any) -> PoolUse:
        """How much of ``pool`` is used, read from memory without a lock."""
        raise NotImplementedError

    def identify(self, target: Any) -> Identity:
        return Identity("process-pool")

    def attach(self, target: Any) -> None:
        _stat(target)

    def collect_metrics(self, resource: Resource) -> None:
        pool = resource.target
        stat = _stat(pool)
        active, workers, limit, waiting = self.use(pool)
        update = self.update_metric
        update("uno.resource.utilization", None if active is None else active / limit)
        update("process_pool.process.count", active, {"state": "active"})
        update(
            "process_pool.process.count",
            None if active is None else max(0, workers - active),
            {"state": "idle"},
        )
        update("process_pool.process.max", limit)
        update("process_pool.queue.size", waiting)
        update("process_pool.task.wait_time", stat.wait)
        update("process_pool.task.duration", stat.duration)
        update("process_pool.task.total_time", stat.process)
        update("uno.resource.errors", stat.errors)
        for outcome in ("completed", "failed", "cancelled"):
            update("process_pool.tasks", stat.outcome(outcome), {"outcome": outcome})

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        active, _, limit, _ = self.use(target)
        return None if active is None else (active, limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = _stat(target)
        active, workers, limit, waiting = self.use(target)
        return {
            "active_processes": active,
            "processes": workers,
            "max_processes": limit,
            "queue_depth": waiting,
            "completed_tasks": stat.outcome("completed").value,
            "failed_tasks": stat.outcome("failed").value,
        }

    def explain(self, target: Any, metric: str) -> str:
        stat = _stat(target)
        held = describe_holds(stat, "worker", self.use(target).limit)
        return "; ".join(filter(None, (held, describe_error(stat))))


class ProcessPoolExecutorMonitor(_ProcessPools):
    """Workers, pending tasks, wait, run and total time of a ProcessPoolExecutor."""

    targets = ("concurrent.futures.process.ProcessPoolExecutor",)
    library = "concurrent.futures.process"

    def install(self) -> list[Callable[[], None]]:
        executor = sys.modules["concurrent.futures.process"].ProcessPoolExecutor
        return [install(executor, "submit", _submit)]

    def use(self, pool: Any) -> PoolUse:
        there = len(pool._processes or ())
        limit = pool._max_workers
        pending = len(pool._pending_work_items)
        active = min(pending, limit)
        return PoolUse(active, there, limit, pending - active)

    def ping(self, target: Any) -> bool:
        """Whether tasks can be submitted. A pool whose processes are all busy still takes them."""
        return not (target._shutdown_thread or target._broken)

    def explain(self, target: Any, metric: str) -> str:
        if target._broken:
            return "one of its processes died: no task runs any more"
        return super().explain(target, metric)


class MultiprocessingPoolMonitor(_ProcessPools):
    """Workers, waiting tasks and times of a multiprocessing.Pool, also of its ThreadPool.

    A chunk of ``map`` is one task. While ``imap`` still reads its input, how much waits cannot be told, and the wait
    and run times of what comes meanwhile are unknown.
    """

    targets = ("multiprocessing.pool.Pool",)
    library = "multiprocessing.pool"

    def install(self) -> list[Callable[[], None]]:
        module = sys.modules["multiprocessing.pool"]
        return [
            install(module.ApplyResult, "__init__", _asked),
            install(module.MapResult, "__init__", _asked),
            install(module.IMapIterator, "__init__", _asked),
            install(module.ApplyResult, "_set", _answered),
            install(module.MapResult, "_set", _answered),
            install(module.IMapIterator, "_set", _answered),
            install(module.IMapUnorderedIterator, "_set", _answered),
        ]

    def use(self, pool: Any) -> PoolUse:
        out, unknown = 0, False
        for result in list(pool._cache.values()):
            left = _left(result)
            unknown |= left is None
            out += left or 0
        limit = pool._processes
        active = None if unknown and out < limit else min(out, limit)
        return PoolUse(active, len(pool._pool), limit, None if unknown or active is None else out - active)

    def ping(self, target: Any) -> bool:
        """Whether tasks can be submitted."""
        return bool(target._state == "RUN")


def _left(result: Any) -> int | None:
    """Tasks of one call that have not ended; None where the input is still being read."""
    attributes = result.__dict__
    if "_number_left" in attributes:
        return int(attributes["_number_left"])
    if "_unsorted" not in attributes:
        return 1
    length = attributes["_length"]
    return None if length is None else max(0, length - attributes["_index"] - len(attributes["_unsorted"]))


def _stat(pool: Any) -> Stat:
    """The Stat of ``pool``; the first time, what was submitted before anybody watched is noted."""
    stat: Stat | None = pool.__dict__.get(ATTRIBUTE)
    if stat is not None and "line" in stat.extra:
        return stat
    stat, line = stat_of(pool), _Line()
    if stat.extra.setdefault("line", line) is line:
        announce(pool)
        for item in list(pool.__dict__.get("_pending_work_items", {}).values()):
            task = _Task(next(_keys), stat, None, caller())
            line.enter(task, Hold(_place(item.fn, item.args), "", monotonic()), pool._max_workers)
            item.future.add_done_callback(_Ended(task))
        line.unseen.update(list(pool.__dict__.get("_cache", ())))
    return stat


def _place(fn: Any, args: tuple[Any, ...]) -> Site | None:
    """Where the function of a task is defined."""
    code = code_of(fn, args)
    return None if code is None else (code, 0)


def _submit(original: Any) -> Any:
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        task = None
        try:
            stat = _stat(self)
            task = _Task(next(_keys), stat, perf_counter(), caller())
            hold = Hold(_place(fn, args), task.caller, monotonic())
            stat.extra["line"].enter(task, hold, self._max_workers)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ProcessPoolExecutor.submit", error)
        try:
            future = original(self, fn, *args, **kwargs)
        except BaseException:  # it takes no tasks any more
            if task is not None:
                task.stat.extra["line"].leave(task)
            raise
        if task is not None:
            future.add_done_callback(_Ended(task))
        return future

    return submit


class _Ended:
    """What a future calls when it is done."""

    __slots__ = ("task",)

    def __init__(self, task: _Task) -> None:
        self.task = task

    def __call__(self, future: Any) -> None:
        try:
            if future.cancelled():
                self.task.stat.extra["line"].leave(self.task)
                self.task.stat.outcome("cancelled").value += 1
            else:
                _ended(self.task, future.exception())
        except Exception as error:  # noqa: BLE001
            failures("ProcessPoolExecutor.done", error)


def _ended(task: _Task, error: BaseException | None) -> None:
    now, stat = perf_counter(), task.stat
    stat.extra["line"].leave(task)
    if task.submitted is not None:
        stat.process.add(now - task.submitted)
    stat.total.value += 1
    by = stat.called(task.caller)
    by.calls.value += 1
    if error is None:
        stat.last_ok = monotonic()
        stat.outcome("completed").value += 1
    else:
        stat.failed(error)
        by.errors.value += 1
        stat.outcome("failed").value += 1


def _asked(original: Any) -> Any:
    """multiprocessing: a call was made, of one task or of many."""

    def __init__(self: Any, pool: Any, *args: Any, **kwargs: Any) -> None:
        known = _ASKED in self.__dict__  # MapResult.__init__ calls that of ApplyResult
        if not known:
            try:
                self.__dict__[_ASKED] = _Task(next(_keys) << 32, _stat(pool), perf_counter(), caller())
            except Exception as error:  # noqa: BLE001
                failures("multiprocessing.Pool", error)
        original(self, pool, *args, **kwargs)
        if known:
            return
        try:
            task = self.__dict__[_ASKED]
            line: _Line = task.stat.extra["line"]
            line.unseen.intersection_update(list(pool._cache))
            left = _left(self)
            if left is None or line.unseen:  # until these end nobody can tell who is at the head of the line
                line.unseen.add(self._job)
            else:
                hold = Hold(None, task.caller, monotonic())
                for number in range(left):
                    line.enter(task._replace(key=task.key + number), hold, pool._processes)
        except Exception as error:  # noqa: BLE001
            failures("multiprocessing.Pool", error)

    return __init__


def _answered(original: Any) -> Any:
    """multiprocessing: the result of one task came."""

    def _set(self: Any, i: Any, obj: Any) -> None:
        try:
            task = self.__dict__.get(_ASKED)
            if task is not None:
                number = i if isinstance(i, int) and "_number_left" in self.__dict__ else 0
                _ended(task._replace(key=task.key + number), None if obj[0] else obj[1])
        except Exception as error:  # noqa: BLE001
            failures("multiprocessing.Pool", error)
        original(self, i, obj)

    return _set
