"""How do the application's callbacks hear of alerts, when one of them fails or hangs?

Each callback has a queue and a daemon thread of its own, so that none can hold back another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uno.core.resources.errors import misfit

if TYPE_CHECKING:
    from uno.core.monitoring.alerts import Alert

log = logging.getLogger("uno.alerts")

MAX_QUEUE: Final = 1_000
DEADLINE: Final = (
    10.0  # seconds: an async callback is cancelled then, of a plain one it is said that it hangs
)

Callback = Callable[["Alert"], object]
C = TypeVar("C", bound=Callable[[Any], object])


class Delivery:
    """Tells each callback, one alert after the other, on threads that start with the first alert.

    A callback may be ``async def``: it then runs in an event loop of its own for at most 10 s, so it must not use
    objects that belong to the application's loop. One that hangs misses alerts when more than ``max_queue`` wait for
    it: the oldest are dropped and counted in ``dropped``. An exception is counted in ``failures``. Either is
    logged once for each callback, an exception by its type only.
    """

    def __init__(self, max_queue: int = MAX_QUEUE) -> None:
        self._max = max_queue
        self._receivers: tuple[_Receiver, ...] = ()

    @property
    def dropped(self) -> int:
        """Alerts that callbacks were too slow for."""
        return sum(receiver.dropped for receiver in self._receivers)

    @property
    def failures(self) -> int:
        """Exceptions of callbacks."""
        return sum(receiver.failures for receiver in self._receivers)

    def reinit_after_fork(self) -> None:
        """Renew locks and queues; the threads start again when they are needed."""
        for receiver in self._receivers:
            receiver.reinit_after_fork()

    def add(self, callback: C) -> C:
        """Add a callback and return it."""
        if not callable(callback):
            raise TypeError(f"on_alert takes a callable, not {type(callback).__name__}")
        if why := misfit(callback, None):
            raise TypeError(f"on_alert takes a function of one argument, the alert: {why}")
        self._receivers = (*self._receivers, _Receiver(callback, self._max))
        return callback

    def remove(self, callback: Callback) -> None:
        """Take a callback out again; nothing happens when it is not there."""
        leaving = [receiver for receiver in self._receivers if receiver.callback == callback]
        self._receivers = tuple(receiver for receiver in self._receivers if receiver not in leaving)
        for receiver in leaving:
            receiver.close()

    def put(self, alerts: Iterable[Alert]) -> None:
        """Queue alerts; never waits for a callback."""
        if self._receivers and (told := list(alerts)):
            for receiver in self._receivers:
                receiver.put(told)

    def close(self, timeout: float = 1.0) -> None:
        """Tell what is queued and end the threads, waiting at most ``timeout`` seconds for all of them."""
        threads = [receiver.close() for receiver in self._receivers]
        deadline = time.monotonic() + timeout
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))


class _Receiver:
    """One callback."""

    def __init__(self, callback: Callback, max_queue: int) -> None:
        self.callback, self.dropped, self.failures = callback, 0, 0
        self._name = getattr(callback, "__qualname__", type(callback).__name__)
        self._max = max_queue
        self._said_hung = False
        self.reinit_after_fork()

    def reinit_after_fork(self) -> None:
        self._queue: deque[Alert] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._since: float | None = None  # when the call under way began

    def put(self, alerts: list[Alert]) -> None:
        with self._wake:
            for alert in alerts:
                if len(self._queue) >= self._max:
                    self._queue.popleft()
                    self.dropped += 1
                    if self.dropped == 1:
                        log.warning(
                            "the alert callback %s is too slow: the oldest of %d alerts are dropped",
                            self._name,
                            self._max,
                        )
                self._queue.append(alert)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="uno-alerts", daemon=True)
                self._thread.start()
            self._wake.notify()
            since = self._since
        if since is not None and time.monotonic() - since > DEADLINE and not self._said_hung:
            self._said_hung = True
            log.warning("the alert callback %s hangs: its alerts wait, those of others do not", self._name)

    def close(self) -> threading.Thread | None:
        """Let the thread end when all is told, and return it."""
        with self._wake:
            thread, self._thread = self._thread, None
            self._wake.notify_all()
        return thread

    def _run(self) -> None:
        me, wake, queue = threading.current_thread(), self._wake, self._queue
        while True:
            with wake:
                self._since = None
                while not queue and self._thread is me:
                    wake.wait()
                if not queue:
                    return
                alert = queue.popleft()
                self._since = time.monotonic()
            self._call(alert)

    def _call(self, alert: Alert) -> None:
        try:
            result = self.callback(alert)
            if hasattr(result, "__await__"):
                import asyncio

                asyncio.run(_within(result, DEADLINE))
        except BaseException as error:  # noqa: BLE001 - nothing that a receiver does may end its thread
            self.failures += 1
            if self.failures == 1:
                log.warning("the alert callback %s failed: %s", self._name, type(error).__name__)


async def _within(work: Awaitable[object], deadline: float) -> None:
    import asyncio

    await asyncio.wait_for(work, deadline)
