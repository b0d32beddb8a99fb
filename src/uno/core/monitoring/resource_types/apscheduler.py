"""How are APScheduler's jobs watched? When they are due, when they start, how long they run, what came of them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from time import time
from typing import Any

from uno.core.monitoring.instrumentation import Stat, failures, install
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._job_queue import (
    Asker,
    JobQueueMonitor,
    LateHooks,
    Look,
    begin,
    came_to,
    code_of,
    first_seen,
    on_behalf_of,
    over,
    redis_line,
    waited,
)
from uno.core.monitoring.thresholds import Threshold
from uno.core.resources import Identity

MAX_DUE = 10_000
_BASE = "apscheduler.executors.base"
_EXECUTED, _ERROR, _MISSED, _MAX_INSTANCES = 2**12, 2**13, 2**14, 2**16
_OUTCOMES = {_EXECUTED: "succeeded", _ERROR: "failed", _MISSED: "missed", _MAX_INSTANCES: "skipped"}
#: Executors whose jobs are seen when they start; those of the others are told by their end alone.
_SEEN = ("ThreadPoolExecutor", "AsyncIOExecutor")


class APSchedulerMonitor(JobQueueMonitor):
    """Jobs of a scheduler: scheduled, due and waiting for a thread, running; executed, failed, missed and skipped.

    Skipped is a run for which too many instances of the job ran already. The wait of a job begins when it is due. Jobs
    that are scheduled are counted in memory and in Redis; in other stores (a database) their number is unknown, since
    only the scheduler's own connections could tell. Wait and run time are known of jobs in threads and on an event
    loop; of jobs in a process pool only what came of them.
    """

    targets = ("apscheduler.schedulers.base.BaseScheduler",)
    library = "apscheduler"
    tested = ">=3.10,<4"
    metrics = pick(
        "task_queue.size",
        "task_queue.oldest_age",
        "task_queue.enqueued",
        "task_queue.processed",
        "task_queue.task.wait_time",
        "task_queue.task.duration",
        "uno.resource.errors",
    )
    thresholds = (
        ("task_queue.task.wait_time", Threshold(5, 60, "Jobs start long after they are due", for_=5)),
    )
    outcomes = ("succeeded", "failed", "missed", "skipped")

    def ready(self) -> bool:
        return "apscheduler.schedulers.base" in sys.modules and _BASE in sys.modules

    def identify(self, target: Any) -> Identity:
        return Identity("scheduler", labels={"kind": type(target).__name__})

    def install(self) -> list[Callable[[], None]]:
        modules = sys.modules
        return [
            install(modules["apscheduler.schedulers.base"].BaseScheduler, "start", _start),
            install(modules[_BASE].BaseExecutor, "submit_job", _submit),
            _RUNS.install(),
        ]

    def listen(self, target: Any, stat: Stat) -> Callable[[], None]:
        def hear(event: Any) -> None:
            try:
                outcome = _OUTCOMES[event.code]
                at = getattr(event, "scheduled_run_time", None)
                if at is not None:  # one that was not seen when it started
                    _due(stat).pop((event.job_id, at), None)
                    stat.holds.pop(hash((event.job_id, at)), None)
                came_to(stat, outcome, getattr(event, "exception", None))
            except Exception as error:  # noqa: BLE001 - a hook never fails the job
                failures("apscheduler.listener", error)

        target.add_listener(hear, _EXECUTED | _ERROR | _MISSED | _MAX_INSTANCES)
        reference = weakref.ref(target)

        def unlisten() -> None:
            living = reference()
            if living is not None:
                living.remove_listener(hear)

        return unlisten

    def look(self, target: Any, asker: Asker) -> Look:
        scheduled: float | None = len(target._pending_jobs)
        for alias, store in list(target._jobstores.items()):
            kinds = {cls.__name__ for cls in type(store).__mro__}
            found: float | None = None
            if "MemoryJobStore" in kinds:
                found = sum(at is not None for _, at in list(store._jobs))
            elif "RedisJobStore" in kinds:
                line = redis_line(asker, store.redis.connection_pool, alias)
                (found,) = line.ask(("ZCARD", store.run_times_key))
            scheduled = None if scheduled is None or found is None else scheduled + found
        due = list(_due(self.stat_for(target)).values())
        oldest = max(0.0, time() - min(due)) if due else 0.0
        return Look({"due": len(due)}, scheduled=scheduled, oldest=oldest)

    def explain(self, target: Any, metric: str) -> str:
        state = {0: "the scheduler does not run", 2: "the scheduler is paused"}.get(target.state, "")
        return "; ".join(filter(None, (state, super().explain(target, metric))))


def _due(stat: Stat) -> dict[tuple[str, Any], float]:
    """What was handed to an executor and has not started, by job and run time; when it was due."""
    found: dict[tuple[str, Any], float] = stat.extra.setdefault("due", {})
    return found


# -- hooks -----------------------------------------------------------------------------------------------


def _start(original: Any) -> Any:
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            first_seen(self)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("apscheduler.start", error)
        return original(self, *args, **kwargs)

    return start


def _submit(original: Any) -> Any:
    def submit_job(self: Any, job: Any, run_times: Any) -> Any:
        try:
            _RUNS.take()
            stat = first_seen(self._scheduler)
            due = _due(stat)
            if any(cls.__name__ in _SEEN for cls in type(self).__mro__):
                if len(due) < MAX_DUE:
                    due.update(((job.id, at), at.timestamp()) for at in run_times)
            else:
                for at in run_times:
                    begin(stat, (job.id, at), _by(job), code_of(job.func))
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("apscheduler.submit_job", error)
            return original(self, job, run_times)
        try:
            result = original(self, job, run_times)
        except BaseException:  # too many instances run
            for at in run_times:
                due.pop((job.id, at), None)
                stat.holds.pop(hash((job.id, at)), None)
            raise
        stat.outcome("sent").value += len(run_times)
        return result

    return submit_job


def _by(job: Any) -> str:
    return f"apscheduler job {job.name}"


@contextmanager
def _running(job: Any, run_times: Any) -> Iterator[None]:
    """A job runs inside, once for each of its run times: nearly always one."""
    stat: Stat | None = None
    try:
        stat, by = first_seen(job._scheduler), _by(job)
        for at in run_times:
            _due(stat).pop((job.id, at), None)
            waited(stat, at.timestamp())
        begin(stat, (job.id, "runs", run_times[0]), by, code_of(job.func))
    except Exception as error:  # noqa: BLE001 - a hook never fails the job
        failures("apscheduler.run_job", error)
    if stat is None:
        yield
        return
    with on_behalf_of(by):
        try:
            yield
        finally:
            over(stat, (job.id, "runs", run_times[0]))


class _Run:
    """Runs a job in this process. In a process pool it is the function that it stands for."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __call__(self, job: Any, jobstore_alias: Any, run_times: Any, logger_name: Any) -> Any:
        with _running(job, run_times):
            return self._original(job, jobstore_alias, run_times, logger_name)

    def __reduce__(self) -> Any:
        return getattr, (_Base(), "run_job")


class _Base:
    """Stands for APScheduler's module where a call is sent to another process, which need not know of uno."""

    def __reduce__(self) -> Any:
        return import_module, (_BASE,)


def _run_coroutine(original: Any) -> Any:
    async def run_coroutine_job(job: Any, jobstore_alias: Any, run_times: Any, logger_name: Any) -> Any:
        with _running(job, run_times):
            return await original(job, jobstore_alias, run_times, logger_name)

    return run_coroutine_job


#: The functions that run a job are replaced in the modules that look them up, which come with their executors.
_RUNS = LateHooks(
    {
        "apscheduler.executors.pool": lambda module: [(module, "run_job", _Run)],
        "apscheduler.executors.asyncio": lambda module: [
            (module, "run_job", _Run),
            (module, "run_coroutine_job", _run_coroutine),
        ],
    }
)
