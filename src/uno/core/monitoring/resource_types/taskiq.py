"""How are taskiq's tasks watched? What an application sends and runs, and how much waits in Redis."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from time import perf_counter, time
from typing import Any

from uno.core.monitoring.instrumentation import Stat, failures, install
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._job_queue import (
    SENT,
    Asker,
    JobQueueMonitor,
    Look,
    begin,
    came_to,
    code_of,
    first_seen,
    on_behalf_of,
    over,
    redis_endpoint,
    redis_line,
    waited,
)
from uno.core.resources import Identity

#: How often a task has sent itself again.
_REQUEUED = "X-Taskiq-requeue"


class TaskiqMonitor(JobQueueMonitor):
    """Tasks sent, run, failed and retried in this process; depth and age of the oldest with taskiq-redis.

    taskiq is watched by a middleware of uno's at the end of the broker's, which goes when the monitor stops. Each task
    that is sent carries the time in a label, ``uno_sent``, which is taken off again before the task runs. How much
    waits is known with taskiq-redis' brokers for lists and streams (tasks that a worker has read from a stream and not
    acknowledged count as running); not with its publish/subscribe, cluster and sentinel brokers, nor elsewhere.
    """

    targets = ("taskiq.abc.broker.AsyncBroker",)
    library = "taskiq"
    tested = ">=0.11.20,<0.14"
    runs_at_server = True
    metrics = JobQueueMonitor.metrics + pick("task_queue.oldest_age")

    def ready(self) -> bool:
        return all(
            name in sys.modules for name in ("taskiq.kicker", "taskiq.abc.middleware", "taskiq.abc.broker")
        )

    def identify(self, target: Any) -> Identity:
        place = redis_endpoint(target.__dict__.get("connection_pool"))
        return Identity(_queue(target), place, {"kind": type(target).__name__})

    def install(self) -> list[Callable[[], None]]:
        undo = [install(sys.modules["taskiq.kicker"].AsyncKicker, "kiq", _kiq)]
        receiver = getattr(sys.modules.get("taskiq.receiver.receiver"), "Receiver", None)
        if receiver is not None:
            undo.append(install(receiver, "__init__", _receiver))
        return undo

    def listen(self, target: Any, stat: Stat) -> Callable[[], None]:
        base = sys.modules["taskiq.abc.middleware"].TaskiqMiddleware
        names = [name for name in vars(_Recorder) if not name.startswith("_")]
        # taskiq accepts subclasses of its own only.
        ours = type("Uno", (base,), {name: vars(_Recorder)[name] for name in names})()
        ours.stat, ours.running = stat, {}
        target.add_middlewares(ours)

        def unlisten(middlewares: list[Any] = target.middlewares) -> None:
            with suppress(ValueError):
                middlewares.remove(ours)

        return unlisten

    def look(self, target: Any, asker: Asker) -> Look:
        name, pool = _queue(target), target.__dict__.get("connection_pool")
        kinds = {cls.__name__ for cls in type(target).__mro__}
        if pool is not None and "ListQueueBroker" in kinds:
            depth, first = redis_line(asker, pool).ask(("LLEN", name), ("LINDEX", name, -1))
            return Look({name: depth}, oldest=0.0 if depth == 0 else _age(first))
        if pool is not None and "RedisStreamBroker" in kinds:
            return _look_stream(redis_line(asker, pool), name, target.consumer_group_name)
        return Look({name: None})


def _queue(broker: Any) -> str:
    name = broker.__dict__.get("queue_name")
    return name if isinstance(name, str) and name else "taskiq"


def _look_stream(line: Any, name: str, group: str) -> Look:
    (groups,) = line.ask(("XINFO", "GROUPS", name))
    for found in groups or ():
        told = dict(zip(found[::2], found[1::2], strict=False))
        if told.get(b"name") == group.encode():
            last = told[b"last-delivered-id"].decode()
            (after,) = line.ask(("XRANGE", name, f"({last}", "+", "COUNT", 1))
            oldest = max(0.0, time() - int(after[0][0].split(b"-")[0]) / 1000) if after else 0.0
            # The server itself cannot tell the lag of a group after entries were deleted.
            return Look({name: told.get(b"lag")}, running=told[b"pending"], oldest=oldest)
    return Look({name: None})


def _age(message: bytes | None) -> float | None:
    """How long ago a message was sent, if it is written in JSON and its sender was watched."""
    with suppress(ValueError, TypeError, LookupError):
        return max(0.0, time() - float(json.loads(message or b"")["labels"][SENT]))
    return None


# -- hooks -----------------------------------------------------------------------------------------------


def _kiq(original: Any) -> Any:
    async def kiq(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = first_seen(self.broker)
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("taskiq.AsyncKicker.kiq", error)
            return await original(self, *args, **kwargs)
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        return result

    return kiq


def _receiver(original: Any) -> Any:
    def __init__(self: Any, broker: Any, *args: Any, **kwargs: Any) -> None:
        try:
            first_seen(broker)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("taskiq.Receiver", error)
        original(self, broker, *args, **kwargs)

    return __init__


class _Running:
    """What is known of a task that runs."""

    __slots__ = ("again", "error", "requeued", "scope")

    def __init__(self, scope: AbstractContextManager[None], requeued: object) -> None:
        self.scope, self.requeued = scope, requeued
        self.again = False
        self.error: BaseException | None = None


class _Recorder:
    """The methods of our middleware."""

    stat: Stat
    broker: Any  # set by taskiq
    running: dict[str, _Running]

    def pre_send(self, message: Any) -> Any:
        try:
            message.labels[SENT] = time()
            ran = self.running.get(message.task_id)
            if ran is not None:  # sent again, with the same id, by whoever heard that it failed
                ran.again = True
        except Exception as error:  # noqa: BLE001 - a hook never fails the task
            failures("taskiq.pre_send", error)
        return message

    def post_send(self, message: Any) -> None:
        self.stat.outcome("sent").value += 1

    def pre_execute(self, message: Any) -> Any:
        try:
            waited(self.stat, message.labels.pop(SENT, None))
            by = f"taskiq task {message.task_name}"
            scope = on_behalf_of(by)
            self.running[message.task_id] = _Running(scope, message.labels.get(_REQUEUED))
            code = code_of(getattr(self.broker.find_task(message.task_name), "original_func", None))
            begin(self.stat, message.task_id, by, code)
            scope.__enter__()
        except Exception as error:  # noqa: BLE001 - a hook never fails the task
            failures("taskiq.pre_execute", error)
        return message

    def on_error(self, message: Any, result: Any, exception: BaseException) -> None:
        over(self.stat, message.task_id)
        ran = self.running.get(message.task_id)
        if ran is not None:
            ran.error = exception

    def post_execute(self, message: Any, result: Any) -> None:
        try:
            over(self.stat, message.task_id)
            ran = self.running.pop(message.task_id, None)
            if ran is None:  # begun before we watched
                return
            ran.scope.__exit__(None, None, None)
            # NoResultError is how a task says that it has sent itself again, or that there is nothing to store.
            silent = type(ran.error).__name__ == "NoResultError"
            if ran.again or message.labels.get(_REQUEUED) != ran.requeued:
                came_to(self.stat, "retried", None if silent else ran.error)
            elif ran.error is None or silent:
                came_to(self.stat, "succeeded")
            else:
                came_to(self.stat, "failed", ran.error)
        except Exception as error:  # noqa: BLE001 - a hook never fails the task
            failures("taskiq.post_execute", error)
