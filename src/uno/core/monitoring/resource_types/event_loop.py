"""How is an event loop watched? A beat inside shows how late it runs, a look from outside what blocks it."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.instrumentation import Site, describe_call, describe_site, thread_position
from uno.core.monitoring.metrics import HistogramCell
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Identity, Resource

if TYPE_CHECKING:
    import asyncio

BEAT = 0.1
#: A beat that is so late is looked after from outside, and said to be blocked: together within 0.2 s.
LOOK, OVERDUE = 0.03, 0.08
AGAIN = 0.05
REMEMBERED = 30.0
_WATCH_GAP = 1.0
_PLACES = 64


class Blocking(NamedTuple):
    """One time that a loop was blocked: for how many seconds, until when (monotonic), where it was seen."""

    seconds: float
    until: float
    places: Counter[tuple[Site | None, Site | None]]


class LoopTarget:
    """One event loop, held weakly. ``watch`` is to be called from another thread when it asks for it.

    The beat is a timer handle, so ``asyncio.all_tasks()`` does not show it, and it ends with the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_ident: int | None = None) -> None:
        self.lag = HistogramCell()
        self.last: Blocking | None = None
        self._loop = weakref.ref(loop)
        self._thread = thread_ident
        self._pid = os.getpid()
        self._handle: weakref.ref[asyncio.TimerHandle] | None = None  # a handle keeps its loop alive
        self._running = 0  # which start() the living beat belongs to; 0 when none shall live
        self._starts = 0
        self._due = 0.0  # when the next beat is due, in monotonic seconds; 0 before the first
        self._watched = 0.0
        self._places: Counter[tuple[Site | None, Site | None]] = Counter()
        self._count_after = 0.0
        self._tasks: int | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop; None when it is gone or closed."""
        loop = self._loop()
        return None if loop is None or loop.is_closed() else loop

    def start(self) -> None:
        """Begin to beat, from any thread; again without effect."""
        loop = self.loop
        if loop is None or self._running:
            return
        self._starts += 1
        self._running = self._starts
        self._soon(loop, self._beat, self._starts)

    def stop(self) -> None:
        """End the beat, from any thread."""
        self._running, self._due = 0, 0.0
        handle = None if self._handle is None else self._handle()
        self._handle, loop = None, self.loop
        if handle is not None and loop is not None:
            self._soon(loop, handle.cancel)

    def blocked(self, now: float) -> float:
        """For how many seconds the loop has been unable to run what is due; 0 when it is fine or stopped."""
        loop, due = self.loop, self._due
        if not due or loop is None or not loop.is_running() or os.getpid() != self._pid:
            return 0.0
        late = now - due
        return late if late > OVERDUE else 0.0

    def watch(self, now: float) -> float:
        """Look where the loop's thread is when the beat is overdue. ``now``: monotonic seconds.

        Returns in how many seconds to look again: right after a beat that does not come, so that an idle loop is
        looked at once a beat and a blocked one at once.
        """
        gap, self._watched = now - self._watched, now
        loop, due = self.loop, self._due
        if loop is None or not due:
            return BEAT
        if now - due < LOOK:
            return due + LOOK - now
        if not loop.is_running():
            self._due = 0.0  # stopped, not blocked: the next beat begins anew
        elif gap > _WATCH_GAP:
            pass  # whoever calls was late as well: the process stood still, not the loop
        elif self._thread is not None and len(self._places) < _PLACES:
            self._places[thread_position(self._thread)] += 1
        return AGAIN

    def tasks(self, now: float) -> int | None:
        """How many tasks are not done. Counting takes time with many tasks: 0.2 % of one thread at most."""
        loop = self.loop
        if loop is None:
            return None
        if now >= self._count_after:
            import asyncio  # loaded with the loop, and not for the sake of those that have none

            self._tasks = len(asyncio.all_tasks(loop))
            self._count_after = now + 500 * (monotonic() - now)
        return self._tasks

    def explain(self, now: float) -> str:
        """ "blocked 1.8 s at shop/app.py:120 in checkout (time.sleep)", or the last time that was so."""
        seconds = self.blocked(now)
        if seconds:
            return f"blocked {seconds:.1f} s{_describe(self._places)}"
        last = self.last
        if last is None or now - last.until > REMEMBERED:
            return ""
        return f"was blocked {last.seconds:.1f} s{_describe(last.places)}, {now - last.until:.0f} s ago"

    def _soon(self, loop: asyncio.AbstractEventLoop, callback: Any, *args: Any) -> None:
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # closed meanwhile
            self._running = 0

    def _beat(self, start: int) -> None:
        """Runs inside the loop."""
        if start != self._running:
            return
        loop = self._loop()
        if loop is None or os.getpid() != self._pid:
            return
        now = monotonic()
        if self._due:
            late = now - self._due
            self.lag.observe(late if late > 0 else 0.0)
            if self._places:
                if late > OVERDUE:
                    self.last = Blocking(late, now, self._places)
                self._places = Counter()
        self._thread = threading.get_ident()
        self._due = now + BEAT
        self._handle = weakref.ref(loop.call_later(BEAT, self._beat, start))


class EventLoopMonitor(ResourceTypeMonitor):
    """Lag, blockings and tasks of an event loop (asyncio's own or uvloop)."""

    resource_type = "event_loop"
    targets = (f"{__name__}.LoopTarget",)
    blocking = False
    metrics = pick("uno.asyncio.loop.lag", "uno.asyncio.loop.blocked", "uno.asyncio.loop.tasks")
    headline = ("uno.asyncio.loop.lag", "uno.asyncio.loop.blocked", "uno.asyncio.loop.tasks")
    thresholds = (
        (
            "uno.asyncio.loop.lag",
            Threshold(0.25, 1.0, "The event loop is blocked", stat="max", keep_firing_for=3),
        ),
        ("uno.asyncio.loop.blocked", Threshold(0.5, 2.0, "The event loop is blocked", keep_firing_for=3)),
    )

    def identify(self, target: LoopTarget) -> Identity:
        loop = target.loop
        return Identity("event-loop", labels={} if loop is None else {"loop": type(loop).__module__})

    def attach(self, target: LoopTarget) -> None:
        target.start()

    def detach(self, target: LoopTarget) -> None:
        target.stop()

    def collect_metrics(self, resource: Resource) -> None:
        target: LoopTarget = resource.target
        now = monotonic()
        running = target.loop is not None
        self.update_metric("uno.asyncio.loop.lag", target.lag)
        self.update_metric("uno.asyncio.loop.blocked", target.blocked(now) if running else None)
        self.update_metric("uno.asyncio.loop.tasks", target.tasks(now))

    def statistics(self, target: LoopTarget) -> Mapping[str, float | None]:
        now = monotonic()
        return {"blocked": target.blocked(now) if target.loop else None, "tasks": target.tasks(now)}

    def ping(self, target: LoopTarget) -> bool | None:
        """True while the beat is on time. A blocked loop is not down: its thresholds speak of it."""
        if target.loop is None:
            return False
        return None if target.blocked(monotonic()) else True

    def explain(self, target: LoopTarget, metric: str) -> str:
        return target.explain(monotonic())


def _describe(places: Counter[tuple[Site | None, Site | None]]) -> str:
    """Where a loop was seen most often, and what was called there."""
    seen: Counter[str] = Counter()
    # A thread that collects garbage lets others run only in the callbacks, so there it is seen.
    collecting = {getattr(callback, "__code__", None) for callback in list(gc.callbacks)}
    for (site, innermost), times in list(places.items()):
        if innermost is None:
            continue
        if innermost[0] in collecting:
            seen[describe_site(site) + " (garbage collection)" if site else "garbage collection"] += times
            continue
        if site is None:  # library code that nothing of the application called
            seen[describe_site(innermost)] += times
            continue
        within = describe_call(site) if innermost == site else innermost[0].co_qualname
        seen[describe_site(site) + (f" ({within})" if within else "")] += times
    return f" at {seen.most_common(1)[0][0]}" if seen else ""
