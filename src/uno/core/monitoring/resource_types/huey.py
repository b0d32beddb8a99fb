"""How are huey's tasks watched? What an application enqueues and runs, and how much waits in its storage."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, time
from types import CodeType
from typing import Any

from uno.core.monitoring.instrumentation import CallScope, Stat, failures, install, scope
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types import _job_queue
from uno.core.monitoring.resource_types._job_queue import (
    Asker,
    JobQueueMonitor,
    Look,
    begin,
    came_to,
    code_of,
    first_seen,
    over,
    redis_endpoint,
    redis_line,
    waited,
)
from uno.core.resources import Identity

#: Tasks of which is remembered when this process enqueued them.
MAX_SENT = 10_000
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Signals that end a run, and what came of it unless there is another try.
_ENDS = {
    "complete": "succeeded",
    "error": "failed",
    "timeout": "failed",
    "locked": "failed",
    "rate-limited": "failed",
    "canceled": "canceled",
    "interrupted": "interrupted",
}
#: Signals of a task that does not run at all.
_NEVER_RAN = ("expired", "revoked")


class HueyMonitor(JobQueueMonitor):
    """Tasks enqueued, run, failed and retried in this process, by huey's own signals; depth of queue and schedule.

    A huey task does not carry the time when it was enqueued: wait and age of the oldest are known of the last 10,000
    tasks that this very process enqueued, and the wait of tasks with an ``eta`` everywhere; else both are unknown.
    Depth is read from Redis, SQLite, files and memory; not from huey's PostgreSQL storage. A consumer of the type
    "process" runs its tasks in children, which are not this process.
    """

    targets = ("huey.api.Huey",)
    library = "huey"
    tested = ">=2.5.3,<4"
    metrics = JobQueueMonitor.metrics + pick("task_queue.oldest_age")

    def ready(self) -> bool:
        return "huey.api" in sys.modules

    def identify(self, target: Any) -> Identity:
        storage = target.storage
        return Identity(target.name, _endpoint(storage), {"kind": type(storage).__name__})

    def install(self) -> list[Callable[[], None]]:
        return [install(sys.modules["huey.api"].Huey, "enqueue", _enqueue)]

    def listen(self, target: Any, stat: Stat) -> Callable[[], None]:
        recorder = _Recorder(stat, target.utc)
        receiver = recorder.receive
        target.signal()(receiver)
        reference = weakref.ref(target)

        def unlisten() -> None:
            living = reference()
            if living is not None:
                living.disconnect_signal(receiver)

        return unlisten

    def look(self, target: Any, asker: Asker) -> Look:
        storage, kinds = target.storage, {cls.__name__ for cls in type(target.storage).__mro__}
        first: bytes | None = None
        if "RedisStorage" in kinds:
            asked = (
                ("LLEN", storage.queue_key),
                ("ZCARD", storage.queue_key),  # of a storage with priorities
                ("ZCARD", storage.schedule_key),
                ("LINDEX", storage.queue_key, -1),
                ("ZRANGE", storage.queue_key, 0, 0),
            )
            listed, ranked, scheduled, last, least = redis_line(asker, storage.pool).ask(*asked)
            waiting = listed if listed is not None else ranked
            first = last if last is not None else next(iter(least or ()), None)
        elif "SqliteStorage" in kinds:
            waiting, scheduled, first = _look_sqlite(storage)
        elif "PostgresStorage" in kinds:
            waiting = scheduled = None
        else:
            waiting, scheduled = storage.queue_size(), storage.schedule_size()
            first = next(iter(storage.enqueued_items(1)), None)
        oldest = 0.0 if waiting == 0 else _age(first, self.stat_for(target).extra.get("sent", {}))
        return Look({target.name: waiting}, scheduled=scheduled, oldest=oldest)


def _endpoint(storage: Any) -> str | None:
    if hasattr(storage, "pool"):
        return redis_endpoint(storage.pool)
    filename = getattr(storage, "filename", None)
    return filename if isinstance(filename, str) else None


def _look_sqlite(storage: Any) -> tuple[int | None, int | None, bytes | None]:
    import sqlite3

    path = Path(storage.filename)
    if not path.exists():
        return None, None, None
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_job_queue.TIMEOUT)) as connection:

        def ask(sql: str) -> Any:
            return (connection.execute(sql, (storage.name,)).fetchone() or (None,))[0]

        return (
            ask("select count(*) from task where queue = ?"),
            ask("select count(*) from schedule where queue = ?"),
            ask("select data from task where queue = ? order by priority desc, id limit 1"),
        )


def _age(message: object, sent: Mapping[str, float]) -> float | None:
    """How long ago this process enqueued a task; told by the id in its message, which is not unpacked."""
    if isinstance(message, (bytes, bytearray, memoryview)):
        for found in _UUID.findall(bytes(message)):
            at = sent.get(found.decode())
            if at is not None:
                return max(0.0, time() - at)
    return None


def _code(task: Any) -> CodeType | None:
    cls = type(task)
    wrapper = getattr(sys.modules.get(cls.__module__), cls.__name__, None)
    return code_of(getattr(wrapper, "func", None))


# -- hooks -----------------------------------------------------------------------------------------------


def _enqueue(original: Any) -> Any:
    def enqueue(self: Any, task: Any) -> Any:
        try:
            stat = first_seen(self)
            several = hasattr(task, "tasks")  # a group: each of its tasks comes again by itself
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Huey.enqueue", error)
            return original(self, task)
        try:
            result = original(self, task)
        except BaseException as error:
            if not several:
                stat.done(perf_counter() - started, error)
            raise
        if not several:
            stat.done(perf_counter() - started)
        return result

    return enqueue


class _Recorder:
    """Hears huey's signals."""

    def __init__(self, stat: Stat, utc: bool) -> None:
        self._stat, self._utc = stat, utc
        self._sent: dict[str, float] = stat.extra.setdefault("sent", {})
        self._scopes: dict[str, Any] = {}

    def receive(self, signal: str, task: Any, *args: Any, **_: Any) -> None:
        try:
            self._received(signal, task, *args)
        except Exception as error:  # noqa: BLE001 - a hook never fails the task
            failures("huey.signal", error)

    def _received(self, signal: str, task: Any, *args: Any) -> None:
        stat, id = self._stat, task.id
        if signal == "enqueued":
            now, due = time(), self._due(task)
            if due is None or due > now:  # else it comes from the schedule, and was counted before
                stat.outcome("sent").value += 1
                self._remember(id, now if due is None else due)
            else:
                self._remember(id, due)
        elif signal == "executing":
            sent = self._sent.pop(id, None)
            waited(stat, self._due(task) or sent)
            by = f"huey task {task.name}"
            begin(stat, id, by, _code(task))
            self._scopes[id] = scope.set(CallScope(by))
        elif signal in _ENDS:
            self._over(id)
            error = next((arg for arg in args if isinstance(arg, BaseException)), None)
            if signal == "complete" or not task.retries:
                came_to(stat, _ENDS[signal], error)
            elif error is not None:
                stat.failed(error)
        elif signal == "retrying":
            self._over(id)
            came_to(stat, "retried")
        elif signal in _NEVER_RAN:
            self._sent.pop(id, None)
            came_to(stat, signal)

    def _remember(self, id: str, at: float) -> None:
        if len(self._sent) >= MAX_SENT:
            self._sent.pop(next(iter(self._sent)), None)
        self._sent[id] = at

    def _due(self, task: Any) -> float | None:
        if not isinstance(task.eta, datetime):
            return None
        eta = task.eta.replace(tzinfo=UTC) if self._utc and task.eta.tzinfo is None else task.eta
        return eta.timestamp()

    def _over(self, id: str) -> None:
        over(self._stat, id)
        token = self._scopes.pop(id, None)
        if token is not None:
            scope.reset(token)
