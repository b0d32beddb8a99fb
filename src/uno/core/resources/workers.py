"""Where does a call run that may block for ever?"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

MAX_THREADS = 32
IDLE_SECONDS = 10.0


class OverloadedError(RuntimeError):
    """Every worker thread is held by a call that does not return."""


class Workers:
    """A few daemon threads that start on demand and leave when idle.

    Not concurrent.futures' executor: its threads are joined at exit, so one hung call would hang the program.
    """

    def __init__(self, *, max_threads: int = MAX_THREADS, idle: float = IDLE_SECONDS) -> None:
        self._max, self._idle = max_threads, idle
        self.reinit_after_fork()

    def reinit_after_fork(self) -> None:
        """Begin anew without threads, as at first."""
        self._lock = threading.Lock()
        #: how often it was closed before, and the job; None lets a thread end
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], Callable[[], None]] | None]] = (
            queue.SimpleQueue()
        )
        self._threads = 0
        self._free = 0
        self._closed = 0  # how often

    @property
    def room(self) -> bool:
        """Whether a call that is submitted now begins at once."""
        return self._free > 0 or self._threads < self._max

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run ``function()`` on a worker, in the caller's context. OverloadedError through the future when all hang."""
        future: Future[Any] = Future()
        context = contextvars.copy_context()

        def job() -> Callable[[], None]:
            """Does the work; what it returns tells the result."""
            if not future.set_running_or_notify_cancel():
                return lambda: None
            try:
                result = context.run(function)
            except BaseException as error:  # noqa: BLE001 - handed to whoever awaits the future
                return partial(future.set_exception, error)
            return partial(future.set_result, result)

        with self._lock:
            closed = self._closed
            if self._free > 0:
                self._free -= 1
            elif self._threads < self._max:
                self._threads += 1
                try:
                    threading.Thread(target=self._work, name="uno-worker", daemon=True).start()
                except RuntimeError as error:  # no more threads can be had
                    self._threads -= 1
                    future.set_exception(error)
                    return future
            else:
                future.set_exception(OverloadedError(f"all {self._max} worker threads are busy"))
                return future
        self._jobs.put((closed, job))
        return future

    def _work(self) -> None:
        jobs, lock = self._jobs, self._lock
        while True:
            try:
                closed, job = jobs.get(timeout=self._idle)
            except queue.Empty:
                with lock:
                    if self._free > 0:  # else a job is on its way to this thread
                        self._free -= 1
                        self._threads -= 1
                        return
                continue
            if job is None:
                return
            tell = job()
            with lock:
                over = closed != self._closed
                if over:  # closed since it was submitted
                    self._threads -= 1
                else:
                    self._free += 1  # before anybody hears of the result: they may submit again at once
            tell()
            if over:
                return
            del job, tell  # nothing of the application is kept while idle

    def close(self) -> None:
        """Let the idle threads end at once, and busy ones with their job; one that hangs is left behind (it is a
        daemon)."""
        with self._lock:
            idle, self._free = self._free, 0
            self._closed += 1
            self._threads -= idle
        for _ in range(idle):
            self._jobs.put((self._closed, None))
