"""How are RQ's queues watched? What an application enqueues and runs, and how much waits in Redis."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter, time
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, announce, failures, install
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._job_queue import (
    Asker,
    JobQueueMonitor,
    Look,
    begin,
    came_to,
    code_of,
    end,
    on_behalf_of,
    over,
    redis_endpoint,
    redis_line,
    waited,
)
from uno.core.resources import Identity

MAX_UNREAD = 10_000
_OUTCOMES = {
    "finished": "succeeded",
    "failed": "failed",
    "stopped": "failed",
    "queued": "retried",
    "scheduled": "retried",
}

#: RQ makes a Queue whenever it needs one: all of the same name and server share a Stat.
_STATS: weakref.WeakValueDictionary[tuple[str, str], Stat] = weakref.WeakValueDictionary()


class RQMonitor(JobQueueMonitor):
    """Jobs enqueued, run and failed in this process; depth, age of the oldest, running jobs and workers from Redis.

    A worker that forks (RQ's default) is seen from its parent: run time includes the fork, and what came of a job is
    read from Redis some seconds later. Jobs that wait for another job, or for a rate limit, are not counted as waiting.
    Counts of an application that makes a Queue for each call live as long as one of them.
    """

    targets = ("rq.queue.Queue",)
    library = "rq"
    tested = ">=2.1,<4"
    runs_at_server = True
    metrics = JobQueueMonitor.metrics + pick("task_queue.oldest_age", "task_queue.worker.count")

    def ready(self) -> bool:
        return "rq.queue" in sys.modules and "rq.worker" in sys.modules

    def identify(self, target: Any) -> Identity:
        return Identity(target.name, _endpoint(target), {"kind": "rq"})

    def stat_for(self, target: Any) -> Stat:
        return _stat(target)

    def covers(self, target: Any) -> tuple[object, ...]:
        # One of those that share a Stat stands for all.
        extra = _stat(target).extra
        first = extra.get("first", lambda: None)()
        if first is None:
            extra["first"] = weakref.ref(target)
            return ()
        return () if first is target else (target,)

    def install(self) -> list[Callable[[], None]]:
        worker, queue = sys.modules["rq.worker"], sys.modules["rq.queue"].Queue
        # RQ 3, else RQ 2.
        performs = worker.BaseWorker if "perform_job" in vars(worker.BaseWorker) else worker.Worker
        enqueue = "_enqueue_async_job" if "_enqueue_async_job" in vars(queue) else "_enqueue_job"
        return [
            install(queue, enqueue, _enqueue),
            install(performs, "perform_job", _perform),
            install(worker.Worker, "execute_job", _execute),
        ]

    def look(self, target: Any, asker: Asker) -> Look:
        line = redis_line(asker, target.connection.connection_pool)
        key, name = target.key, target.name
        waiting, first, running, scheduled, workers = line.ask(
            ("LLEN", key),
            ("LINDEX", key, 0),
            ("ZCARD", f"rq:wip:{name}"),
            ("ZCARD", f"rq:scheduled:{name}"),
            ("SCARD", f"rq:workers:{name}"),
        )
        prefix = target.job_class.redis_job_namespace_prefix
        unread: deque[str] = _stat(target).extra.setdefault("unread", deque(maxlen=MAX_UNREAD))
        ids = [unread.popleft() for _ in range(len(unread))]
        questions: list[tuple[object, ...]] = [("HGET", prefix + job, "status") for job in ids]
        if first is not None:
            questions.append(("HGET", prefix + first.decode(), "enqueued_at"))
        try:
            answers = line.ask(*questions) if questions else []
        except Exception:
            unread.extend(ids)
            raise
        for job, status in zip(ids, answers, strict=False):
            # Of a job that is gone only this is certain: it is kept when it fails.
            outcome = _OUTCOMES.get(status.decode()) if status else "succeeded"
            if outcome is None:
                unread.append(job)
            else:
                came_to(_stat(target), outcome)
        oldest = 0.0 if first is None else _age(answers[-1])
        return Look({name: waiting}, scheduled=scheduled, running=running, oldest=oldest, workers=workers)


def _endpoint(queue: Any) -> str | None:
    return redis_endpoint(getattr(queue.connection, "connection_pool", None))


def _stat(queue: Any) -> Stat:
    own = queue.__dict__.get(ATTRIBUTE)
    if own is not None:
        return own  # type: ignore[no-any-return]
    place = _endpoint(queue)
    shared = Stat() if place is None else _STATS.setdefault((place, queue.name), Stat())
    return queue.__dict__.setdefault(ATTRIBUTE, shared)  # type: ignore[no-any-return]


def _age(enqueued_at: bytes | None) -> float | None:
    if not enqueued_at:
        return None
    with suppress(ValueError):
        return max(0.0, time() - _seconds(datetime.fromisoformat(enqueued_at.decode())))
    return None


def _seconds(at: datetime) -> float:
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


# -- hooks -----------------------------------------------------------------------------------------------


def _enqueue(original: Any) -> Any:
    def _enqueue_async_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = _stat(self)
            if stat.extra.get("first", lambda: None)() is None:
                stat.extra["first"] = weakref.ref(self)
                announce(self)
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("rq.Queue.enqueue", error)
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        stat.outcome("sent").value += 1
        return result

    return _enqueue_async_job


def _begin(job: Any, queue: Any) -> tuple[Stat, str] | None:
    try:
        stat = _stat(queue)
        if job.enqueued_at is not None:
            waited(stat, _seconds(job.enqueued_at))
        by = f"rq job {job.func_name}"
        module, _, name = job.func_name.rpartition(".")
        begin(stat, job.id, by, code_of(getattr(sys.modules.get(module), name, None)))
        return stat, by
    except Exception as error:  # noqa: BLE001 - a hook never fails the job
        failures("rq.Worker", error)
        return None


def _perform(original: Any) -> Any:
    """A job that this very process runs."""

    def perform_job(self: Any, job: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(job, queue)
        if begun is None:
            return original(self, job, queue, *args, **kwargs)
        stat, by = begun
        with on_behalf_of(by):
            try:
                went_well = original(self, job, queue, *args, **kwargs)
            except BaseException as error:
                end(stat, job.id, "failed", error)
                raise
        try:
            # A job that asks for another try by returning a Retry went well, too; one that repeats is queued again.
            asked = type(getattr(job, "_result", None)).__name__ == "Retry"
            if went_well and not asked:
                end(stat, job.id, "succeeded")
            else:
                again = job.get_status(refresh=False) in ("queued", "scheduled")
                end(stat, job.id, "retried" if again else "failed")
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("rq.Worker", error)
        return went_well

    return perform_job


def _execute(original: Any) -> Any:
    """A job for which this process forks."""

    def execute_job(self: Any, job: Any, queue: Any) -> Any:
        begun = _begin(job, queue)
        if begun is None:
            return original(self, job, queue)
        stat, _ = begun
        try:
            return original(self, job, queue)
        finally:
            over(stat, job.id)
            stat.extra.setdefault("unread", deque(maxlen=MAX_UNREAD)).append(job.id)

    return execute_job
