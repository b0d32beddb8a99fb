"""Who reads the resources, when, and what if one of them hangs?

The clock is a thread of its own. It never runs a line of the application: what is async runs on its home
loop, what may block runs on a worker thread, and both have a deadline after which they are abandoned: the
answer, should it ever come, is discarded. Only uno's own collectors, which read memory, run on the clock.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Literal

from uno.core.resources.workers import OverloadedError, Workers

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

log = logging.getLogger("uno.sampler")

Mode = Literal["inline", "worker", "loop"]
#: Between ticks something may ask to be looked at: that often, when it wishes, never more often than PULSE_GAP.
PULSE, PULSE_GAP = 0.1, 0.02
STUCK = 5.0
#: What is done rarely and failed is repeated after this, to be sure and to see it recover; a bit less than a tick.
RETRY = 0.9
#: So many calls run on workers at once; those that take longer than YOUNG seconds do not count.
ABREAST, YOUNG = 8, 0.01


class Job:
    """Something that is done each tick, or each ``every`` seconds, for one resource. A tick does not wait for
    ``background`` jobs; their results are taken by a later one.

    States: idle -> in flight -> idle. A job that passed its deadline stays in flight until its call really
    ends, so that a hung resource holds one call and not one more each tick. After ``late`` seconds a background job
    is said to have failed, and again at its deadline; an answer in between is taken.
    """

    __slots__ = (
        "background", "done", "every", "failures", "in_flight", "label", "late", "loop", "mode", "not_before", "reason",
        "run", "started", "task", "timeout", "token", "warned",
    )  # fmt: skip

    def __init__(
        self,
        label: str,
        run: Callable[[], Any],
        done: Callable[[Any, BaseException | None, str], None],
        *,
        mode: Mode,
        timeout: float,
        loop: Callable[[], asyncio.AbstractEventLoop | None] | None = None,
        every: float = 0.0,
        background: bool = False,
        late: float = inf,
    ) -> None:
        self.background, self.late, self.warned = background, late, False
        self.label, self.run, self.done = label, run, done
        self.mode, self.timeout, self.loop, self.every = mode, timeout, loop, every
        self.in_flight = False
        self.token = 0
        self.failures = 0
        self.not_before = 0.0
        self.started = 0.0
        self.reason = ""
        self.task: Any = None


class LoopUnavailableError(RuntimeError):
    """The home loop of a resource is closed or does not run."""


class Sampler:
    """The clock: calls ``tick`` each ``interval`` seconds on its own thread, and runs jobs within it."""

    def __init__(self, *, interval: float, tick: Callable[[], None], workers: Workers) -> None:
        self.interval = interval
        self.missed = 0
        #: each returns in how many seconds it is to be called again
        self.pulses: tuple[Callable[[], float], ...] = ()
        self._pulse_at = 0.0
        self._tick = tick
        self._workers = workers
        self._own = OwnLoop()
        self._here = threading.local()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._turn = (
            threading.RLock()
        )  # of a thread that takes results: a tick by hand may run beside the clock
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._background: dict[Job, float] = {}
        self._pending: deque[Job] = deque()  # for workers, in their turn
        self._on_workers: dict[Job, float] = {}  # since when
        self._results: deque[tuple[Job, int, Any, BaseException | None]] = deque()
        self._thread: threading.Thread | None = None
        #: set after the first tick, in which modules are imported: a fork must not find them half loaded
        self.warm = threading.Event()

    def was_running_before_fork(self) -> bool:
        """Whether the parent's clock ticked: its thread object is here, the thread is not."""
        return self._thread is not None and not self._stop.is_set()

    def before_fork(self) -> None:
        """Wait until the first tick is over, 2 s at most."""
        if self.running and threading.current_thread() is not self._thread:
            self.warm.wait(2.0)

    def reinit_after_fork(self) -> None:
        """Begin anew in a forked child, where the thread does not exist."""
        self._reset()
        self._own = OwnLoop()

    # -- the thread ------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the clock ticks."""
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._stop.is_set()

    def start(self) -> None:
        """Start the thread; nothing happens when it runs."""
        with self._lock:
            if self.running:
                return
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._main, args=(self._stop,), name="uno-monitor", daemon=True
            )
            self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread; waits ``timeout`` seconds at most. Nothing happens when it does not run."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            with self._lock:
                if self._thread is None and not thread.is_alive():
                    self._stop = threading.Event()  # a tick by hand waits for its jobs again
        self._own.close()

    def stopped_here(self) -> bool:
        """Whether this thread is a clock that was stopped and not waited for to the end."""
        stop: threading.Event | None = getattr(self._here, "stop", None)
        return stop is not None and stop.is_set()

    def _main(self, stop: threading.Event) -> None:
        self._here.stop = stop
        due = time.monotonic()
        while not stop.is_set():
            try:
                self._tick()
            except Exception:
                log.exception("a tick failed; the next one is due in %g s", self.interval)
            self.warm.set()
            due += self.interval
            late = time.monotonic() - due
            if late > 0:  # what was missed is skipped, never caught up in a bunch
                skipped = int(late // self.interval) + 1
                self.missed += skipped
                due += skipped * self.interval
            while not stop.is_set() and (left := due - time.monotonic()) > 0:
                self._wake.wait(min(left, self._until_pulse(), self._until_late()))
                self._wake.clear()
                if not stop.is_set():
                    self._look_at_background()
                    self._pulse()

    def _until_pulse(self) -> float:
        return max(0.0, self._pulse_at - time.monotonic()) if self.pulses else self.interval

    def _until_late(self) -> float:
        if self._pending and self._workers.room:
            return YOUNG
        now = time.monotonic()
        return max(0.0, min(map(_next_deadline, self._background.items()), default=inf) - now)

    def _look_at_background(self) -> None:
        """Take the answers that came between ticks, and tell of those that did not come in time."""
        if (self._background or self._results) and self._turn.acquire(blocking=False):
            try:
                self._take_results({})
                self._enforce(self._background, time.monotonic())
                self._submit_pending()
            finally:
                self._turn.release()

    def _pulse(self) -> None:
        """Look at what is to be watched between ticks, if that is due."""
        if not self.pulses or self._until_pulse() > 0.001:
            return
        wait = PULSE
        for pulse in self.pulses:
            try:
                wait = min(wait, pulse())
            except Exception:
                log.exception("a watch failed")
        self._pulse_at = time.monotonic() + max(wait, PULSE_GAP)

    # -- one round of jobs -----------------------------------------------------------------------------

    def run(self, jobs: Iterable[Job]) -> None:
        """Do all jobs that are due, and return when each is done or past its deadline."""
        with self._turn:
            self._run(jobs)

    def _run(self, jobs: Iterable[Job]) -> None:
        # The clock may take the wake-ups of a tick by hand.
        beside = self.running and threading.current_thread() is not self._thread
        now = time.monotonic()
        open_jobs: dict[Job, float] = {}
        self._take_results(open_jobs)
        self._enforce(self._background, now)
        by_loop: dict[Any, list[Job]] = {}
        for job in jobs:
            if job.in_flight:
                if job.every and job not in self._background and now >= job.not_before:
                    self._finish(
                        job, None, TimeoutError(), "timeout"
                    )  # it still hangs: that is no answer either
                continue
            if now < job.not_before:
                continue
            job.token += 1
            job.started, job.warned = now, False
            job.not_before = now + job.every if job.every else 0.0
            if job.mode == "inline":
                self._inline(job)
                continue
            job.in_flight = True
            (self._background if job.background else open_jobs)[job] = now + job.timeout
            if job.mode == "worker":
                self._pending.append(job)
            else:
                by_loop.setdefault(self._loop_of(job), []).append(job)
        for loop, group in by_loop.items():
            self._launch(loop, group)
        self._submit_pending()
        while open_jobs:
            self._take_results(open_jobs)
            self._submit_pending()
            if not open_jobs or self._stop.is_set():
                break
            now = time.monotonic()
            self._enforce(open_jobs, now)
            self._pulse()
            if open_jobs:
                longest = YOUNG if self._pending or beside else min(PULSE, self._until_pulse())
                self._wake.wait(min(longest, max(0.0, min(open_jobs.values()) - now)))
                self._wake.clear()
        self._own.check()

    def _loop_of(self, job: Job) -> asyncio.AbstractEventLoop:
        home = job.loop() if job.loop is not None else None
        return home or self._own.get()

    def _enforce(self, open_jobs: dict[Job, float], now: float) -> None:
        for job, deadline in list(open_jobs.items()):
            if now >= deadline:
                del open_jobs[job]
                self._abandon(job)
            elif now >= _next_deadline((job, deadline)):
                job.warned = True
                if job not in self._pending:
                    self._tell(job, None, TimeoutError(), self._why_late(job))

    def _inline(self, job: Job) -> None:
        try:
            result = job.run()
            if is_awaitable(result):
                _drop(result)
                raise TypeError("an awaitable from a collector that does not block; define it with async def")
        except Exception as error:
            self._finish(job, None, error)
        else:
            self._finish(job, result, None)

    def _submit_pending(self) -> None:
        """Hand calls to workers, few at a time: most take no time, and threads are not for nothing."""
        while self._pending and self._workers.room:
            now = time.monotonic()
            if sum(now - since < YOUNG for since in self._on_workers.values()) >= ABREAST:
                return
            job = self._pending.popleft()
            self._on_workers[job] = now
            if job in self._background:
                self._background[job], job.warned = now + job.timeout, False
            self._submit(job)

    def _submit(self, job: Job) -> None:
        token = job.token

        def tell(future: Future[Any]) -> None:
            error = future.exception()
            self._answer(job, token, None if error else future.result(), error)

        self._workers.submit(job.run).add_done_callback(tell)

    def _launch(self, loop: asyncio.AbstractEventLoop, group: list[Job], begun: Any = None) -> None:
        """One hop for all jobs of a loop. ``begun`` is what a single job's call has given already."""
        tokens = [(job, job.token) for job in group]

        def begin() -> None:
            for job, token in tokens:
                if job.token != token:  # the deadline passed before the loop came to it
                    _drop(begun)
                    self._answer(job, token, None, TimeoutError())
                    continue
                job.task = loop.create_task(self._on_loop(job, token, begun), name="uno")

        try:
            if loop.is_closed():
                raise LoopUnavailableError("event loop closed")
            if not loop.is_running():
                raise LoopUnavailableError("event loop not running")
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:
            _drop(begun)
            for job, token in tokens:
                self._answer(job, token, None, error)

    async def _on_loop(self, job: Job, token: int, begun: Any) -> None:
        error: BaseException | None = None
        result = None
        try:
            result = job.run() if begun is None else begun
            if is_awaitable(result):
                result = await result
        except BaseException as raised:  # also SystemExit: it must not end the application's loop
            error = raised
        self._answer(job, token, result, error)
        if error is not None and type(error).__name__ == "CancelledError" and job.token == token:
            raise error  # the loop is shutting down

    def _answer(self, job: Job, token: int, result: Any, error: BaseException | None) -> None:
        self._results.append((job, token, result, error))
        self._wake.set()

    def _take_results(self, open_jobs: dict[Job, float]) -> None:
        while self._results:
            job, token, result, error = self._results.popleft()
            self._on_workers.pop(job, None)
            if job.mode == "worker" and is_awaitable(result):
                # A plain function that gives a coroutine: that belongs on the loop, now and from now on.
                job.mode = "loop"
                if job.token == token:
                    self._launch(self._loop_of(job), [job], result)
                    continue
                _drop(result)
            job.in_flight = False
            job.task = None
            for waited in (open_jobs, self._background):
                if job in waited and job.token == token:
                    del waited[job]
                    self._finish(job, result, error)

    def _abandon(self, job: Job) -> None:
        job.token += 1  # what it may still answer is too late
        if job in self._pending:  # it never came to its turn
            self._pending.remove(job)
            job.in_flight = False
            self._finish(job, None, OverloadedError())
            return
        task, loop = job.task, job.loop() if job.loop is not None else None
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                (loop or task.get_loop()).call_soon_threadsafe(task.cancel)
        self._finish(job, None, TimeoutError(), self._why_late(job))

    def _why_late(self, job: Job) -> str:
        return "event loop blocked" if job.mode == "loop" and job.task is None else "timeout"

    def _finish(self, job: Job, result: Any, error: BaseException | None, reason: str = "") -> None:
        if error is None:
            job.failures = 0
            job.reason = ""
        else:
            job.failures += 1
            job.reason = reason or reason_of(error)
            if job.every:
                job.not_before = time.monotonic() + min(job.every, RETRY)
            # Off for longer and longer, up to 5 s: never for good, so that it recovers by itself.
            elif job.failures > 1:
                pause = min(5.0, self.interval * 2 ** min(job.failures - 2, 8))
                job.not_before = max(job.not_before, time.monotonic() + pause - self.interval / 2)
        self._tell(job, result, error, job.reason)

    def _tell(self, job: Job, result: Any, error: BaseException | None, reason: str) -> None:
        try:
            job.done(result, error, reason)
        except Exception:
            log.exception("the result of %s could not be taken", job.label)


def _next_deadline(waited_for: tuple[Job, float]) -> float:
    """When something is to be said of a background job that has not ended."""
    job, deadline = waited_for
    return deadline if job.warned else min(deadline, deadline - job.timeout + job.late)


def is_awaitable(result: object) -> bool:
    """As inspect.isawaitable, which takes a hundred times as long for what is none."""
    if result is None:
        return False
    cls = type(result)
    return hasattr(cls, "__await__") or (cls is GeneratorType and inspect.isawaitable(result))


def _drop(awaitable: Any) -> None:
    """Leave a coroutine that nobody will await, without Python's warning about it."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


def reason_of(error: BaseException) -> str:
    """Why a collection failed, in a word that is safe to show: the type of the error, never its text."""
    if isinstance(error, LoopUnavailableError):
        return str(error)  # our own words
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OverloadedError):
        return "overloaded"
    return type(error).__name__


class OwnLoop:
    """An event loop on a thread of its own, for async collectors whose resource has no home loop.

    When a collector blocks it, it is left to that collector and replaced, at most three times.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat = 0.0
        self._asked = 0.0
        self._replaced = 0
        self._lock = threading.Lock()

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop, started when there is none."""
        import asyncio

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="uno-loop", daemon=True).start()
                deadline = time.monotonic() + 1
                while not self._loop.is_running() and time.monotonic() < deadline:
                    time.sleep(0.001)
                self._asked = self._beat = time.monotonic()
            return self._loop

    def check(self) -> None:
        """Ask for a sign of life; replace the loop when there was none for 5 s."""
        loop = self._loop
        if loop is None:
            return
        now = time.monotonic()
        if self._beat < self._asked:
            if now - self._asked > STUCK and self._replaced < 3:
                log.warning("a collector blocks the monitor's event loop; the others go on on a new one")
                self._replaced += 1
                loop.call_soon_threadsafe(loop.stop)
                self._loop = None
            return
        self._asked = now
        loop.call_soon_threadsafe(self._alive)

    def _alive(self) -> None:
        self._beat = time.monotonic()

    def close(self) -> None:
        """Stop the loop and its thread."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
        loop.close()


def running_loop() -> Any:
    """The event loop that runs in this thread, or None; without importing asyncio."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()
