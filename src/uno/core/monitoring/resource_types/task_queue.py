"""How are queues inside the process watched? asyncio.Queue, queue.Queue, their subclasses, SimpleQueue."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_HOLDS,
    Hold,
    Stat,
    caller,
    failures,
    install,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

#: Times of putting that are kept for each queue; of more waiting items the oldest are of unknown age.
MAX_TIMES = 100_000


_attaching = threading.RLock()


class TaskQueue(ResourceTypeMonitor):
    """Depth, limit, waiting, wait in queue; time per task where the consumers call ``task_done()``.

    Hooks act on watched queues only. SimpleQueue is immutable C: its depth is all that can be told.
    """

    resource_type = "task_queue"
    targets = ("asyncio.queues.Queue", "queue.Queue", "_queue.SimpleQueue", "queue._PySimpleQueue")
    library = "queue"
    only_named = True
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "task_queue.size",
        "task_queue.max",
        "task_queue.oldest_age",
        "task_queue.waiting",
        "task_queue.enqueued",
        "task_queue.processed",
        "task_queue.task.wait_time",
        "task_queue.task.duration",
        "uno.resource.errors",
    )
    headline = (
        "task_queue.size",
        "task_queue.oldest_age",
        "task_queue.processed",
        "task_queue.task.wait_time",
    )
    thresholds = (
        ("uno.resource.utilization", Threshold(0.8, 0.95, "The queue is nearly full", for_=2)),
        ("task_queue.oldest_age", Threshold(30, 300, "Tasks wait long in the queue")),
    )

    def identify(self, target: Any) -> Identity:
        return Identity("queue", labels={"kind": f"{type(target).__module__}.{type(target).__name__}"})

    def attach(self, target: Any) -> None:
        if not _has_stat(target):
            return
        with _attaching:
            extra = stat_of(target).extra
            extra["monitors"] = extra.get("monitors", 0) + 1
            if "since" not in extra:
                extra["since"] = monotonic()
                if type(target)._get in (asyncio.Queue._get, queue.Queue._get):
                    extra["times"] = deque(maxlen=MAX_TIMES)

    def detach(self, target: Any) -> None:
        """Without a Stat the hooks pass a queue by; several monitors of one process share it."""
        if not _has_stat(target):
            return
        with _attaching:
            extra = stat_of(target).extra
            extra["monitors"] = extra.get("monitors", 1) - 1
            if extra["monitors"] <= 0:
                target.__dict__.pop(ATTRIBUTE, None)

    def install(self) -> list[Callable[[], None]]:
        undo = [
            install(asyncio.Queue, "put_nowait", _put_nowait),
            install(asyncio.Queue, "get_nowait", _get_nowait),
            install(asyncio.Queue, "task_done", _task_done),
            install(queue.Queue, "put", _put),
            install(queue.Queue, "task_done", _task_done),
        ]
        for cls in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
            undo += [install(cls, "_put", _inner_put), install(cls, "_get", _inner_get)]
        return undo

    def at_rest(self, target: Any) -> object:
        depth = _depth(target)
        if depth or not _has_stat(target):  # what waits grows older
            return None
        stat = stat_of(target)
        return _waiting(target), target.maxsize, len(stat.outcomes), len(stat.holds), "times" in stat.extra

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        update = self.update_metric
        depth = _depth(target)
        update("task_queue.size", depth, {"state": "waiting"})
        if not _has_stat(target):
            return
        stat = stat_of(target)
        limit = target.maxsize
        if limit > 0:
            update("task_queue.max", limit)
            update("uno.resource.utilization", depth / limit)
        consumers, producers = _waiting(target)
        update("task_queue.waiting", consumers, {"side": "consumer"})
        update("task_queue.waiting", producers, {"side": "producer"})
        update("task_queue.enqueued", stat.outcome("enqueued"))
        update("task_queue.processed", stat.total, {"outcome": "taken"})
        update("uno.resource.errors", stat.errors)
        if "times" in stat.extra:
            update("task_queue.oldest_age", _oldest(stat, depth))
            update("task_queue.task.wait_time", stat.wait)
        if "done" in stat.outcomes:  # else the application never says that a task is done
            update("task_queue.processed", stat.outcome("done"), {"outcome": "done"})
            update("task_queue.size", len(stat.holds), {"state": "running"})
            update("task_queue.task.duration", stat.duration)

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        return _depth(target), getattr(target, "maxsize", 0) or None

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target) if _has_stat(target) else None
        return {
            "queue_depth": _depth(target),
            "max_size": getattr(target, "maxsize", 0) or None,
            "enqueued": stat.outcome("enqueued").value if stat else None,
            "taken": stat.total.value if stat else None,
            "done": stat.outcomes["done"].value if stat and "done" in stat.outcomes else None,
        }

    def explain(self, target: Any, metric: str) -> str:
        consumers, producers = _waiting(target) if _has_stat(target) else (0, 0)
        parts = [f"{producers} waiting to put"] if producers else []
        if _has_stat(target):
            stat = stat_of(target)
            if _depth(target) and not consumers:
                parts.append("nobody is waiting to take")
            puts = sorted(((int(by.calls.value), who) for who, by in stat.callers.items()), reverse=True)
            if puts:
                parts.append("put by " + ", ".join(f"{who} ({n})" for n, who in puts[:3]))
            parts += [describe_holds(stat, "task"), describe_error(stat)]
        return "; ".join(filter(None, parts))

    def bound_loop(self, target: Any) -> Any:
        return getattr(target, "_loop", None)


def _has_stat(target: Any) -> bool:
    return isinstance(target, (asyncio.Queue, queue.Queue))


def _depth(target: Any) -> int:
    # queue.Queue.qsize() takes the mutex, which the application may hold; len() of what is inside does not.
    return target._qsize() if isinstance(target, queue.Queue) else target.qsize()


def _waiting(target: Any) -> tuple[int, int]:
    """(consumers, producers) that wait."""
    if isinstance(target, queue.Queue):
        return len(target.not_empty._waiters), len(target.not_full._waiters)  # type: ignore[attr-defined]
    return len(target._getters), len(target._putters)


def _oldest(stat: Stat, depth: int) -> float:
    """Age of the oldest item; of what was put before the queue was watched, the time since then."""
    if not depth:
        return 0.0
    times = stat.extra["times"]
    try:
        since: float = times[0] if len(times) >= depth else stat.extra["since"]
    except IndexError:  # taken meanwhile
        return 0.0
    return max(0.0, monotonic() - since)


def _entered(target: Any, stat: Stat) -> None:
    stat.outcome("enqueued").value += 1
    times = stat.extra.get("times")
    if times is not None:
        times.append(monotonic())
    stat.called(caller()).calls.value += 1


def _left(stat: Stat, depth: int) -> None:
    """An item was taken and ``depth`` are left. The oldest items are those without a time."""
    stat.total.value += 1
    stat.last_ok = now = monotonic()
    times = stat.extra.get("times")
    if times is not None:
        while len(times) > depth + 1:
            times.popleft()
        if len(times) == depth + 1:
            stat.wait.observe(now - times.popleft())
    if "done" in stat.outcomes and len(stat.holds) < MAX_HOLDS:
        name = caller()
        stat.holds[_consumer()] = Hold(None, name, now)


def _consumer() -> int:
    """Who is taking: the task, else the thread."""
    if asyncio._get_running_loop() is not None:
        return id(asyncio.current_task())

    return threading.get_ident()


def _recorded(where: str, record: Callable[[Any, Stat], None], queue: Any) -> None:
    try:
        stat = queue.__dict__.get(ATTRIBUTE)
        if stat is not None:  # detached meanwhile
            record(queue, stat)
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures(where, error)


def _hooked(where: str, record: Callable[[Any, Stat], None]) -> Callable[[Any], Any]:
    """A hook on a method without arguments that records the call afterwards, for watched queues only."""

    def wrap(original: Any) -> Any:
        def hook(self: Any) -> Any:
            result = original(self)
            if ATTRIBUTE in self.__dict__:
                _recorded(where, record, self)
            return result

        return hook

    return wrap


def _refused(error: Exception, target: Any, stat: Stat) -> None:
    stat.failed(error)


def _done(target: Any, stat: Stat) -> None:
    stat.outcome("done").value += 1
    hold = stat.holds.pop(_consumer(), None)
    if hold is not None:
        stat.duration.observe(monotonic() - hold[2])


_get_nowait = _hooked("asyncio.Queue.get_nowait", lambda self, stat: _left(stat, self.qsize()))
_inner_get = _hooked("queue.Queue._get", lambda self, stat: _left(stat, self._qsize()))
_task_done = _hooked("Queue.task_done", _done)


def _inner_put(original: Any) -> Any:
    def _put(self: Any, item: Any) -> None:
        original(self, item)
        if ATTRIBUTE in self.__dict__:
            _recorded("queue.Queue._put", _entered, self)

    return _put


def _put_nowait(original: Any) -> Any:
    def put_nowait(self: Any, item: Any) -> None:
        if ATTRIBUTE not in self.__dict__:
            return original(self, item)  # type: ignore[no-any-return]
        try:
            original(self, item)
        except asyncio.QueueFull as error:
            _recorded("asyncio.Queue.put_nowait", partial(_refused, error), self)
            raise
        _recorded("asyncio.Queue.put_nowait", _entered, self)

    return put_nowait


def _put(original: Any) -> Any:
    def put(self: Any, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if ATTRIBUTE not in self.__dict__:
            return original(self, item, block, timeout)  # type: ignore[no-any-return]
        try:
            original(self, item, block, timeout)
        except queue.Full as error:
            _recorded("queue.Queue.put", partial(_refused, error), self)
            raise

    return put
