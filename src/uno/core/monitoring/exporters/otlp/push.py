"""When is pushed, and what happens when the receiver is slow, full or gone?

One daemon thread takes a snapshot each interval and sends what waits, the oldest first. What cannot be sent waits in
a bounded queue; the request that was begun is sent again as it is, so that a receiver may recognise it. The
application's threads only ever set a flag.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from uno.core.monitoring.exporters.otlp.config import Config
from uno.core.monitoring.exporters.otlp.encode import Encoding, Json, Protobuf
from uno.core.monitoring.exporters.otlp.snapshot import Batch, Layout, Ledger, Requests, Snapshot, take
from uno.core.monitoring.metrics import CounterCell
from uno.core.monitoring.monitor import SELF, ResourceMonitor
from uno.core.monitoring.names import STANDARD

if TYPE_CHECKING:
    from uno.core.monitoring.exporters.otlp.http import Outcome, Transport

log = logging.getLogger("uno.exporters.otlp")

MAX_WAITING = 64
MAX_WAITING_BYTES = 16 * 1024 * 1024
MAX_AGE = 3_600.0
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
AT_EXIT = 2.0
GZIP_LEVEL = 1

_WORDS = {
    "connect": "no connection can be made",
    "network": "the connection ends before an answer",
    "timeout": "it does not answer in time",
    "tls": "no secure connection can be made",
    "throttled": "it asks for less (429)",
    "unavailable": "it is not available (502, 503 or 504)",
    "refused": "it refuses the request (4xx): are address, headers and protocol right?",
    "error": "it fails (5xx)",
    "redirect": "it points elsewhere, which is not followed: set the endpoint to the final address",
    "internal": "the request could not be made",
}


class OtlpExporter:
    """Pushes the last tick of a monitor to a receiver. Made by setup_otlp_exporter().

    ``flush()`` sends at once, ``stop()`` ends it after a last flush. It ends with the monitor, too, and goes on when
    that starts again.
    """

    def __init__(self, resource_monitor: ResourceMonitor, config: Config) -> None:
        self.resource_monitor = resource_monitor
        self._config = config
        self._encoding: Encoding = Json() if config.protocol == "http/json" else Protobuf()
        self._ledger = Ledger()
        self._queue: deque[Snapshot] = deque()
        self._cells: dict[tuple[str, str], CounterCell] = {}
        self._resumes = True
        self._begin_anew()
        if not config.disabled:
            _EXPORTERS.add(self)
            self._watch_monitor()

    def _begin_anew(self) -> None:
        """As at first: without a thread and with nothing waiting."""
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing: float | None = None
        self._asked = self._answered = self._faults = 0
        self._due = self._retry_at = 0.0
        self._attempt = 0
        self._told = False  # the receiver has said when to come again
        self._queue.clear()
        self._head: Snapshot | None = None
        self._batches: Iterator[Batch] = iter(())
        self._batch: Batch | None = None
        self._body = b""
        self._head_since = 0.0
        self._layout: Layout | None = None
        self._after = self._seq = 0
        self._said: set[str] = set()
        self._transport: Transport | None = None
        self._requests: Requests | None = None

    def __repr__(self) -> str:
        return f"OtlpExporter({self._config!r})"

    @property
    def running(self) -> bool:
        """Whether it sends by itself."""
        return self._thread is not None

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send each interval. Does nothing when it does so already, or OTEL_SDK_DISABLED says so."""
        if self._config.disabled:
            return
        with self._wake:
            self._resumes = True
            if self._thread is not None:
                return
            self._closing = None
            self._due = time.monotonic() + self._config.interval
            self._retry_at, self._attempt = 0.0, 0
            thread = threading.Thread(target=self._main, name="uno-otlp", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:  # no more threads can be had, or the interpreter ends
                self._thread = None
                return
        atexit.register(self._at_exit)

    def stop(self, timeout: float = AT_EXIT) -> bool:
        """Send the last values and what waits, ``timeout`` seconds at most, and end. Whether all was sent."""
        self._resumes = False
        return self._end(timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Send the last tick and what waits now; whether all was taken within ``timeout`` (seconds).

        By default OTEL_METRIC_EXPORT_TIMEOUT, 30 s. Not to be called on an event loop: it waits.
        """
        if self._thread is None:
            return False
        deadline = time.monotonic() + (self._config.export_timeout if timeout is None else timeout)
        monitor = self.resource_monitor
        while monitor.running and monitor.store.frame is None:  # the first tick is under way
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        with self._wake:
            self._asked += 1
            mine, faults = self._asked, self._faults
            if not self._told:
                self._retry_at = 0.0
            self._wake.notify_all()
            while self._thread is not None and (self._answered < mine or self._pending):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._wake.wait(left)
            return not self._pending and self._answered >= mine and self._faults == faults

    @property
    def _pending(self) -> bool:
        return self._head is not None or bool(self._queue)

    def _end(self, timeout: float) -> bool:
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        atexit.unregister(self._at_exit)
        deadline = time.monotonic() + timeout
        with self._wake:
            self._asked += 1
            self._closing = deadline
            if not self._told:
                self._retry_at = 0.0
            self._wake.notify_all()
        thread.join(timeout)
        with self._wake:
            if self._thread is thread:  # it hangs: the connection is cut, and the thread ends when it notices
                self._thread = None
            transport = self._transport
            left = [*self._queue] if self._head is None else [self._head, *self._queue]
            self._queue.clear()
            self._head = self._batch = None
        if thread.is_alive() and transport is not None:
            transport.abort()
            thread.join(0.1)
        for snapshot in left:
            self._count("dropped", "shutdown", snapshot.points)
        return not left

    def _at_exit(self) -> None:
        if self.resource_monitor.running:
            self.resource_monitor.stop()  # which ends this, too
        self._end(AT_EXIT)

    def _watch_monitor(self) -> None:
        monitor = self.resource_monitor
        monitor.subscribe(self._ticked)
        monitor.on_stop(self._end)

    def _ticked(self) -> None:
        if self._thread is None and self._resumes:
            self.start()

    # -- the thread ------------------------------------------------------------------------------------

    def _main(self) -> None:
        me = threading.current_thread()
        try:
            while (step := self._next(me)) is not None:
                try:
                    step()
                except Exception as error:
                    self._failed_ourselves(error)
        finally:
            with self._wake:
                mine = self._thread is me
                if mine:
                    self._thread = None
                self._wake.notify_all()
            if mine and self._transport is not None:
                self._transport.close()

    def _next(self, me: threading.Thread) -> Callable[[], None] | None:
        """What is to be done now; waits until there is something, None for the end."""
        with self._wake:
            while self._thread is me:
                now = time.monotonic()
                closing = self._closing
                if self._answered < self._asked:
                    return self._answer
                if closing is not None:
                    if not self._pending or now >= closing or self._retry_at >= closing:
                        return None
                elif now >= self._due:
                    # What was missed is skipped, never caught up in a bunch.
                    missed = int((now - self._due) // self._config.interval)
                    self._due += (missed + 1) * self._config.interval
                    return self._take
                if self._pending and now >= self._retry_at:
                    return self._send
                until = self._due if closing is None else closing
                if self._pending:
                    until = min(until, self._retry_at)
                self._wake.wait(max(0.001, until - now))
            return None

    def _answer(self) -> None:
        asked = self._asked
        self._take()
        with self._wake:
            self._answered = asked
            self._wake.notify_all()

    def _take(self) -> None:
        monitor = self.resource_monitor
        if not monitor.running:
            monitor.freeze()
        snapshot = take(monitor, self._encoding, self._layout, after=self._after, seq=self._seq)
        if snapshot is None:
            return
        frame = monitor.store.frame
        self._seq = self._seq if frame is None else frame.seq
        self._after = snapshot.time
        if snapshot.layout is not self._layout:
            self._layout = snapshot.layout
            waiting = [waits.layout for waits in self._queue]
            self._ledger.keep([snapshot.layout, *waiting, *([self._head.layout] if self._head else [])])
        with self._wake:
            self._queue.append(snapshot)
            size = sum(waits.size for waits in self._queue)
            while len(self._queue) > 1 and (len(self._queue) > MAX_WAITING or size > MAX_WAITING_BYTES):
                oldest = self._queue.popleft()
                size -= oldest.size
                self._count("dropped", "queue_full", oldest.points)
                self._say("queue_full", "metrics for %s wait in vain: the oldest are dropped")

    # -- sending ---------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what waits first, as far as it goes."""
        from uno.core.monitoring.exporters.otlp.http import Transport

        with self._wake:
            if self._head is None:
                if not self._queue:
                    return
                self._head, self._head_since = self._queue.popleft(), time.monotonic()
                if self._requests is None:
                    self._requests = self._make_requests()
                self._batches = self._requests.make(self._head, self._ledger)
                self._batch = None
        if self._transport is None:
            self._transport = Transport(self._config)
        if self._batch is None:
            batch = next(self._batches, None)
            if batch is None:
                self._done()
                return
            body = batch.body
            if self._config.compression == "gzip":
                import gzip

                body = gzip.compress(body, GZIP_LEVEL, mtime=0)
            self._batch, self._body = batch, body
        seconds = self._config.timeout
        if self._closing is not None:
            seconds = min(seconds, max(0.01, self._closing - time.monotonic()))
        encoding = "gzip" if self._config.compression == "gzip" else ""
        outcome = self._transport.send(self._body, self._encoding.media_type, encoding, seconds)
        with self._wake:
            if self._thread is threading.current_thread() and self._batch is not None:
                self._judge(self._batch, outcome)

    def _judge(self, batch: Batch, outcome: Outcome) -> None:
        if outcome.reason:
            self._count("failures", outcome.reason)
            self._say(outcome.reason, f"metrics cannot be sent to %s: {_WORDS[outcome.reason]}")
        if outcome.again and time.monotonic() - self._head_since < MAX_AGE:
            self._told = outcome.after is not None
            self._retry_at = time.monotonic() + (
                max(self._pause(), outcome.after or 0.0)  # a wrong clock there must not make us hurry
            )
            self._attempt += 1
            return
        self._told, self._retry_at, self._attempt = False, 0.0, 0
        self._batch, self._body = None, b""
        if outcome.reason:
            self._count("dropped", "too_old" if outcome.again else outcome.reason, batch.points)
            return
        self._ledger.commit(batch.entries)
        rejected = min(outcome.rejected, batch.points)
        self._count("exported", "", batch.points - rejected)
        if rejected:
            self._count("dropped", "rejected", rejected)
            self._say("rejected", "%s takes only a part of the metrics")
        if self._said - {"rejected"}:
            self._said &= {"rejected"}
            log.info("metrics are sent to %s again", self._config.endpoint.shown)

    def _done(self) -> None:
        with self._wake:
            self._head = self._batch = None
            self._wake.notify_all()

    def _pause(self) -> float:
        """Seconds until the next attempt: twice as long each time, and at random, lest all come at once."""
        import random

        longest = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(self._attempt, 16))
        if self._closing is not None:
            longest = min(longest, 0.2)
        return longest * random.uniform(0.5, 1.0)

    def _failed_ourselves(self, error: Exception) -> None:
        """A fault of ours: this snapshot is given up. Its kind is told, never its text."""
        with self._wake:
            head, self._head, self._batch = self._head, None, None
            self._answered = self._asked
            self._faults += 1
            self._wake.notify_all()
        self._count("failures", "internal")
        if head is not None:
            self._count("dropped", "internal", head.points)
        self._say("internal", f"metrics cannot be sent to %s: {_WORDS['internal']} ({type(error).__name__})")

    def _make_requests(self) -> Requests:
        import platform
        import uuid

        from uno import __version__

        attributes: dict[str, str | int] = {
            "telemetry.sdk.name": "uno",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": __version__,
            "service.instance.id": str(uuid.uuid4()),  # each process is an instance: a forked one is another
            "host.name": platform.node(),
            "process.pid": os.getpid(),
            **self._config.resource,
        }
        sender = self._encoding.sender(list(attributes.items()), "uno", __version__)
        return Requests(self._encoding, sender, self._config.temporality, self._config.histograms)

    # -- telling ---------------------------------------------------------------------------------------

    def _count(self, what: str, reason: str, amount: int = 1) -> None:
        """Into the monitor's own series. Exporters of one monitor share them."""
        cell = self._cells.get((what, reason))
        if cell is None:
            spec = STANDARD[f"uno.otlp.{what}"]
            labels = (reason,) if spec.labels else ()
            store = self.resource_monitor.store
            present = [s.cell for s in store.select(SELF, spec.name) if s.labels == labels]
            cell = present[0] if present and isinstance(present[0], CounterCell) else CounterCell()
            store.add(SELF, spec, labels, cell)
            self._cells[what, reason] = cell
        cell.inc(amount)

    def _say(self, what: str, text: str) -> None:
        """Once until it is over. ``text`` has a place for where it is sent to."""
        if what not in self._said:
            self._said.add(what)
            log.warning(text, self._config.endpoint.shown)

    # -- fork ------------------------------------------------------------------------------------------

    def reinit_after_fork(self) -> None:
        """In a forked child: what waits is the parent's to send, and so is what was counted before."""
        was_running, transport = self._thread is not None, self._transport
        self._begin_anew()
        if transport is not None:
            transport.close()  # the child's end only
        monitor = self.resource_monitor
        self._ledger.begin_anew(monitor.store, monitor.clock.wall(monitor.clock.now()))
        monitor.subscribe(self._ticked)
        if was_running:
            self.start()


_EXPORTERS: weakref.WeakSet[OtlpExporter] = weakref.WeakSet()


def _after_fork() -> None:
    for exporter in list(_EXPORTERS):
        try:
            exporter.reinit_after_fork()
        except Exception as error:
            log.error("pushing metrics could not be resumed after fork (%s)", type(error).__name__)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
