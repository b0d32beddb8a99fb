"""How are procrastinate's jobs watched? What an application defers and runs, and how much waits in PostgreSQL."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from select import select
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, announce, failures, install, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types import _job_queue
from uno.core.monitoring.resource_types._job_queue import (
    Asker,
    JobQueueMonitor,
    LateHooks,
    Look,
    begin,
    came_to,
    code_of,
    on_behalf_of,
    over,
)
from uno.core.resources import Identity

MAX_UNREAD = 10_000
AT_ONCE = 500
#: What a pool's settings hold beside the address, and a connection of ours has no use for.
_NOT_OURS = ("row_factory", "cursor_factory", "context", "autocommit", "prepare_threshold")

_DEPTHS = b"""
    SELECT queue_name,
           count(*) FILTER (WHERE status = 'todo' AND (scheduled_at IS NULL OR scheduled_at <= now())),
           count(*) FILTER (WHERE status = 'todo' AND scheduled_at > now()),
           count(*) FILTER (WHERE status = 'doing')
    FROM procrastinate_jobs WHERE status IN ('todo', 'doing') GROUP BY queue_name ORDER BY queue_name LIMIT 100
"""
_OLDEST = b"""
    SELECT extract(epoch FROM now() - min(greatest(event.at, job.scheduled_at)))
    FROM (SELECT id, scheduled_at FROM procrastinate_jobs
          WHERE status = 'todo' AND (scheduled_at IS NULL OR scheduled_at <= now()) ORDER BY id LIMIT 1000) AS job
    JOIN procrastinate_events AS event ON event.job_id = job.id AND event.type = 'deferred'
"""
_WORKERS = b"""
    SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '30 seconds'
"""
_EVENTS = b"""
    SELECT job_id, type, extract(epoch FROM at) FROM procrastinate_events
    WHERE job_id = ANY($1::bigint[]) AND type IN ('deferred', 'deferred_for_retry', 'retried', 'started') ORDER BY id
"""


class ProcrastinateMonitor(JobQueueMonitor):
    """Jobs deferred, run, failed and retried in this process; depth by queue, age and workers from PostgreSQL.

    procrastinate's depth is that of the whole database, read with psycopg on a connection of uno's own; with other
    connectors it is unknown. How long a job waited is read some seconds after it started from procrastinate's own
    table of events: unknown for jobs that are deleted by then. Workers are those with a heartbeat in the last 30 s.
    """

    targets = ("procrastinate.app.App",)
    library = "procrastinate"
    tested = ">=3.5,<4"
    runs_at_server = True
    metrics = JobQueueMonitor.metrics + pick(
        "task_queue.oldest_age", "task_queue.worker.count", "messaging.destination.depth"
    )

    def ready(self) -> bool:
        return all(f"procrastinate.{name}" in sys.modules for name in ("app", "manager"))

    def identify(self, target: Any) -> Identity:
        return Identity(
            "procrastinate", _endpoint(target.connector), {"kind": type(target.connector).__name__}
        )

    def stat_for(self, target: Any) -> Stat:
        return _stat(target)

    def install(self) -> list[Callable[[], None]]:
        manager = sys.modules["procrastinate.manager"].JobManager
        app = sys.modules["procrastinate.app"].App
        batch = "batch_" if "batch_defer_jobs" in vars(manager) else ""  # there, one job is a batch of one
        return [
            install(app, "open", _open),
            install(app, "open_async", _open),
            install(app, "_worker", _worker),
            install(manager, f"{batch}defer_job{'s' if batch else ''}", _defer),
            install(manager, f"{batch}defer_job{'s' if batch else ''}_async", _defer_async),
            install(manager, "defer_periodic_job", _defer_async),
            _WORKER.install(),
        ]

    def look(self, target: Any, asker: Asker) -> Look:
        settings = _settings(target.connector)
        if settings is None:
            return Look()
        line = asker.kept.get("postgresql")
        if not isinstance(line, _Line):
            asker.kept["postgresql"] = line = _Line(*settings)
        depths = {queue: tuple(map(int, numbers)) for queue, *numbers in line.ask(_DEPTHS)}
        ((age,),) = line.ask(_OLDEST)
        stat = _stat(target)
        self._waits(stat, line)
        waiting: dict[str, float | None] = {name: waits for name, (waits, _, _) in depths.items()}
        known = stat.extra.setdefault("queues", {})
        if len(known) < _job_queue.MAX_QUEUES:
            known.update(dict.fromkeys(waiting or ("default",), 0))
        return Look(
            {**known, **waiting},
            scheduled=sum(later for _, later, _ in depths.values()),
            running=sum(doing for _, _, doing in depths.values()),
            oldest=0.0 if not any(waiting.values()) else None if age is None else max(0.0, float(age)),
            workers=line.workers(),
        )

    def _waits(self, stat: Stat, line: _Line) -> None:
        """How long the jobs waited that started since the last look."""
        unread: deque[tuple[int, int, datetime | None]] | None = stat.extra.get("unread")
        if not unread:
            return
        jobs = [unread.popleft() for _ in range(min(len(unread), AT_ONCE))]
        try:
            rows = line.ask(_EVENTS, "{" + ",".join(str(id) for id, _, _ in jobs) + "}")
        except Exception:
            unread.extendleft(reversed(jobs))
            raise
        events: dict[int, list[tuple[str, float]]] = {}
        for id, kind, at in rows:
            events.setdefault(int(id), []).append((kind, float(at)))
        for job, attempt, due in jobs:
            starts = [n for n, (kind, _) in enumerate(events.get(job, ())) if kind == "started"]
            if attempt < len(starts):
                started = events[job][starts[attempt]][1]
                sent = [at for kind, at in events[job][: starts[attempt]] if kind != "started"]
                since = max(sent[-1:] + ([due.timestamp()] if due is not None else []), default=started)
                stat.wait.observe(max(0.0, started - since))


class _Line:
    """One connection of ours to PostgreSQL, read with a deadline."""

    def __init__(self, conninfo: str, options: Mapping[str, Any]) -> None:
        given = {name: value for name, value in options.items() if name not in _NOT_OURS}
        given |= {"connect_timeout": max(2, _job_queue.TIMEOUT), "autocommit": True}
        given.setdefault("application_name", "uno monitor")
        self._connection = sys.modules["psycopg"].connect(conninfo, **given)

    def ask(self, sql: bytes, *values: str) -> list[list[Any]]:
        """The rows of an answer, as text; TimeoutError when there is none in time."""
        server = self._connection.pgconn
        deadline = monotonic() + _job_queue.TIMEOUT
        server.send_query_params(sql, [value.encode() for value in values])
        while server.is_busy():
            if not select([server.socket], [], [], max(0.0, deadline - monotonic()))[0]:
                raise TimeoutError
            server.consume_input()
        result = server.get_result()
        while server.get_result() is not None:
            pass
        if result is None or result.status != sys.modules["psycopg.pq"].ExecStatus.TUPLES_OK:
            raise LookupError("PostgreSQL refused the question")
        fields = range(result.nfields)
        return [
            [
                None if (got := result.get_value(row, field)) is None else bytes(got).decode()
                for field in fields
            ]
            for row in range(result.ntuples)
        ]

    def workers(self) -> int | None:
        """Workers that live."""
        with suppress(LookupError):  # an older schema has no table of them
            ((number,),) = self.ask(_WORKERS)
            return int(number)
        return None

    def close(self) -> None:
        self._connection.close()


def _settings(connector: Any) -> tuple[str, Mapping[str, Any]] | None:
    """How psycopg connects, as the connector's pool was told; None with another library."""
    if "psycopg" not in sys.modules or "psycopg_connector" not in type(connector).__module__:
        return None
    pool = connector.__dict__.get("_async_pool") or connector.__dict__.get("_pool")
    if pool is not None:
        conninfo, options = getattr(pool, "conninfo", None), getattr(pool, "kwargs", None)
    else:
        given = connector.__dict__.get("_pool_args") or {}
        conninfo, options = given.get("conninfo", ""), given.get("kwargs")
    if not isinstance(conninfo, str) or not isinstance(options, (dict, type(None))):
        return None  # made anew for each connection
    return conninfo, options or {}


def _endpoint(connector: Any) -> str | None:
    settings = _settings(connector)
    if settings is None:
        return None
    with suppress(Exception):  # psycopg's words about a bad address may hold a password
        parse = sys.modules["psycopg.conninfo"].conninfo_to_dict
        found = parse(
            settings[0], **{k: v for k, v in settings[1].items() if k in ("host", "port", "dbname")}
        )
        return f"{found.get('host') or 'localhost'}:{found.get('port') or 5432}/{found.get('dbname') or ''}"
    return None


def _stat(app: Any) -> Stat:
    # Jobs are deferred through the manager, which does not know its app.
    own = app.__dict__.get(ATTRIBUTE)
    return own if own is not None else app.__dict__.setdefault(ATTRIBUTE, stat_of(app.job_manager))  # type: ignore[no-any-return]


# -- hooks -----------------------------------------------------------------------------------------------


def _open(original: Any) -> Any:
    def opened(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if ATTRIBUTE not in self.__dict__:
                _stat(self)
                announce(self)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("procrastinate.App.open", error)
        return original(self, *args, **kwargs)

    return opened


def _worker(original: Any) -> Any:
    def _worker(self: Any, *args: Any, **kwargs: Any) -> Any:
        worker = original(self, *args, **kwargs)
        try:
            _WORKER.take()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("procrastinate.Worker", error)
        return worker

    return _worker


def _deferred(stat: Stat, began: float, result: Any) -> None:
    stat.done(perf_counter() - began)
    # a batch, a job, or the id of a periodic one that nobody else has deferred
    stat.outcome("sent").value += len(result) if isinstance(result, list) else result is not None


def _defer(original: Any) -> Any:
    def defer(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat, began = stat_of(self), perf_counter()
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - began, error)
            raise
        _deferred(stat, began, result)
        return result

    return defer


def _defer_async(original: Any) -> Any:
    async def defer(self: Any, *args: Any, **kwargs: Any) -> Any:
        stat, began = stat_of(self), perf_counter()
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - began, error)
            raise
        _deferred(stat, began, result)
        return result

    return defer


def _process(original: Any) -> Any:
    async def _process_job(self: Any, context: Any) -> Any:
        try:
            stat, job = _stat(self.app), context.job
            stat.extra.setdefault("unread", deque(maxlen=MAX_UNREAD)).append(
                (job.id, job.attempts, job.scheduled_at)
            )
            by = f"procrastinate job {job.task_name}"
            task = self.app.tasks.get(job.task_name)
            begin(stat, job.id, by, code_of(getattr(task, "func", None)))
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("procrastinate.Worker", error)
            return await original(self, context)
        with on_behalf_of(by):
            try:
                return await original(self, context)
            finally:
                over(stat, job.id)  # unless its outcome came first

    return _process_job


def _outcome(original: Any) -> Any:
    """Called once for each job, when it has run and before that is written down."""

    def _log_job_outcome(
        self: Any, status: Any, context: Any, job_result: Any, job_retry: Any, exc_info: Any = False
    ) -> Any:
        try:
            stat = _stat(self.app)
            over(stat, context.job.id)
            error = exc_info if isinstance(exc_info, BaseException) else None
            came_to(stat, "retried" if job_retry else status.value, error)
        except Exception as error:  # noqa: BLE001 - a hook never fails the job
            failures("procrastinate.Worker", error)
        return original(
            self,
            status=status,
            context=context,
            job_result=job_result,
            job_retry=job_retry,
            exc_info=exc_info,
        )

    return _log_job_outcome


_WORKER = LateHooks(
    {
        "procrastinate.worker": lambda module: [
            (module.Worker, "_process_job", _process),
            (module.Worker, "_log_job_outcome", _outcome),
        ]
    }
)
