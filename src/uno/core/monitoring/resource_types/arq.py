"""How are arq's jobs watched? What an application enqueues and runs, and how much waits in Redis."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from time import perf_counter, time
from typing import Any

from uno.core.monitoring.instrumentation import CallScope, Stat, failures, install, scope
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._job_queue import (
    MAX_QUEUES,
    Asker,
    JobQueueMonitor,
    LateHooks,
    Look,
    begin,
    code_of,
    first_seen,
    over,
    redis_endpoint,
    redis_line,
    waited,
)
from uno.core.resources import Identity

#: Due jobs of a queue of which is asked whether they run: arq keeps both in one set.
MAX_LOOKED_AT = 1_000
_COUNTS = {"jobs_complete": "succeeded", "jobs_failed": "failed", "jobs_retried": "retried"}


class ArqMonitor(JobQueueMonitor):
    """Jobs enqueued, run, failed and retried in this process; depth and age of the oldest from Redis.

    Of arq's queues those are watched that this process enqueues to or works on. arq keeps a running job in its queue:
    which of the first 1,000 due jobs run is asked for. The number of workers is known only to be none, while no worker
    reports. The wait of a job begins when it is due. The connections of an ArqRedis are a resource of their own.
    """

    targets = ("arq.connections.ArqRedis",)
    library = "arq"
    tested = ">=0.26,<0.29"
    runs_at_server = True
    metrics = JobQueueMonitor.metrics + pick(
        "task_queue.oldest_age", "task_queue.worker.count", "messaging.destination.depth"
    )

    def ready(self) -> bool:
        return "arq.connections" in sys.modules

    def identify(self, target: Any) -> Identity:
        return Identity(target.default_queue_name, redis_endpoint(target.connection_pool), {"kind": "arq"})

    def install(self) -> list[Callable[[], None]]:
        redis = sys.modules["arq.connections"].ArqRedis
        return [install(redis, "enqueue_job", _enqueue), _WORKER.install()]

    def look(self, target: Any, asker: Asker) -> Look:
        names = list(_queues(self.stat_for(target), target))
        line = redis_line(asker, target.connection_pool)
        now = int(time() * 1000)
        answers = line.ask(
            *(("ZCOUNT", name, "-inf", now) for name in names),
            *(("ZCOUNT", name, f"({now}", "+inf") for name in names),
            *(("EXISTS", f"{name}:health-check") for name in names),
            *(
                ("ZRANGEBYSCORE", name, "-inf", now, "WITHSCORES", "LIMIT", 0, MAX_LOOKED_AT)
                for name in names
            ),
        )
        n = len(names)
        due, later, healthy, jobs = (answers[i * n : (i + 1) * n] for i in range(4))
        waiting: dict[str, float | None] = {}
        running, oldest = 0, 0.0
        for name, number, found in zip(names, due, jobs, strict=True):
            if number is None or found is None:
                waiting[name] = None
                continue
            ids, scores = found[::2], found[1::2]
            runs = line.ask(*(("EXISTS", b"arq:in-progress:" + id) for id in ids)) if ids else []
            waiting[name] = max(0, number - sum(runs))
            running += sum(runs)
            since = next(
                (float(at) for at, is_running in zip(scores, runs, strict=True) if not is_running), now
            )
            oldest = max(oldest, (now - since) / 1000)
        return Look(
            waiting,
            scheduled=None if None in later else sum(later),
            running=running,
            oldest=oldest,
            workers=None if any(healthy) else 0,
        )


def _queues(stat: Stat, redis: Any) -> dict[str, None]:
    found: dict[str, None] = stat.extra.setdefault("queues", {redis.default_queue_name: None})
    return found


def _uses(stat: Stat, redis: Any, queue: object) -> None:
    queues = _queues(stat, redis)
    if isinstance(queue, str) and queue not in queues and len(queues) < MAX_QUEUES:
        stat.extra["queues"] = {**queues, queue: None}


# -- hooks -----------------------------------------------------------------------------------------------


def _enqueue(original: Any) -> Any:
    async def enqueue_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            _WORKER.take()
            stat = first_seen(self)
            _uses(stat, self, kwargs.get("_queue_name"))
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("arq.ArqRedis.enqueue_job", error)
            return await original(self, *args, **kwargs)
        try:
            job = await original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        if job is not None:  # else there is one with the same id
            stat.outcome("sent").value += 1
        return job

    return enqueue_job


class _Job:
    """A job in a worker of this process."""

    __slots__ = ("id", "name", "score", "stat", "worker")

    def __init__(self, stat: Stat, worker: Any, id: str, score: int) -> None:
        self.stat, self.worker, self.id, self.score = stat, worker, id, score
        self.name = "arq job"


_current: ContextVar[_Job | None] = ContextVar("uno_arq_job", default=None)


def _run(original: Any) -> Any:
    async def run_job(self: Any, job_id: str, score: int) -> Any:
        try:
            stat = first_seen(self.pool)
            _uses(stat, self.pool, self.queue_name)
            job = _Job(stat, self, job_id, score)
            token = _current.set(job)
            scoped = scope.set(CallScope(lambda: job.name))
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("arq.Worker.run_job", error)
            return await original(self, job_id, score)
        try:
            return await original(self, job_id, score)
        finally:
            over(stat, job_id)  # unless it was over before its result was written
            _count(stat, self)
            with suppress(ValueError):
                scope.reset(scoped)
                _current.reset(token)

    return run_job


def _count(stat: Stat, worker: Any) -> None:
    """Add what the worker has counted since the last time."""
    try:
        workers = stat.extra.setdefault("workers", weakref.WeakKeyDictionary())
        now = {name: getattr(worker, name) for name in _COUNTS}
        before = workers.get(worker, {})
        workers[worker] = now
        for name, outcome in _COUNTS.items():
            more = now[name] - before.get(name, 0)
            stat.outcome(outcome).value += more
            if outcome == "failed":
                stat.errors.value += more
    except Exception as error:  # noqa: BLE001 - a hook never fails the job
        failures("arq.Worker", error)


def _deserialize(original: Any) -> Any:
    """Called once for each job, when it was read and before it runs: only now it is known which function it calls."""

    def deserialize_job_raw(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        try:
            job = _current.get()
            if job is not None:
                job.name = f"arq job {found[0]}"
                waited(job.stat, job.score / 1000)
                function = job.worker.functions.get(found[0])
                begin(job.stat, job.id, job.name, code_of(getattr(function, "coroutine", None)))
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("arq.Worker", error)
        return found

    return deserialize_job_raw


def _finish(original: Any) -> Any:
    async def finish(self: Any, job_id: str, *args: Any, **kwargs: Any) -> Any:
        try:
            over(first_seen(self.pool), job_id)
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("arq.Worker", error)
        return await original(self, job_id, *args, **kwargs)

    return finish


_WORKER = LateHooks(
    {
        "arq.worker": lambda module: [
            (module.Worker, "run_job", _run),
            (module.Worker, "finish_job", _finish),
            (module.Worker, "finish_failed_job", _finish),
            (module, "deserialize_job_raw", _deserialize),
        ]
    }
)
