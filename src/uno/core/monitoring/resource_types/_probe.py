"""How is a server asked for what the client does not know, such as the depth of a queue?

Beside the collection, which only reads memory: on the owner's loop, or on a short-lived thread. Nothing waits for the
answer, and while a question is open no second one is asked: a server that hangs costs nothing but these numbers.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import OWN, CallScope, scope, stat_of
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Resource

if TYPE_CHECKING:
    import asyncio

#: A question is asked this often; an answer is shown for so long.
PROBE_SECONDS = 2.0
STALE_SECONDS = 10.0
_OWN = CallScope(OWN)

T = TypeVar("T")


class Probe(Generic[T]):
    """Asks ``ask(target)`` every so often, and keeps the last answer in ``found``; holds ``target`` weakly.

    ``every`` seconds a question, whose answer is shown for ``stale`` seconds; on a loop it is given up after
    ``deadline`` seconds. ``reference`` is a weak reference to a target that takes none of Python's own.
    """

    def __init__(
        self,
        target: Any,
        ask: Callable[[Any], T | Awaitable[T]],
        nothing: T,
        *,
        every: float = PROBE_SECONDS,
        stale: float = STALE_SECONDS,
        deadline: float | None = None,
        reference: Callable[[], Any] | None = None,
    ) -> None:
        self.found = nothing
        self.closed = False
        self._every, self._stale, self._deadline = every, stale, deadline
        self._ask, self._target = ask, reference or weakref.ref(target)
        self._asked = self._answered = 0.0
        self._open = False
        self._pid = os.getpid()
        self._task: asyncio.Task[None] | None = None

    def is_fresh(self) -> bool:
        """Whether ``found`` is young enough to be shown."""
        return bool(self._answered) and monotonic() - self._answered < self._stale

    def waiting(self) -> float:
        """For how many seconds the present question has been unanswered."""
        return monotonic() - self._asked if self._open else 0.0

    def on_thread(self) -> None:
        """Ask on a thread, when it is time and no question is open."""
        if self._due():
            self._open, self._asked = True, monotonic()
            threading.Thread(target=self._run, name="uno-probe", daemon=True).start()

    def on_loop(self, loop: Any) -> None:
        """Ask on ``loop``, from any thread, when it is time and no question is open."""
        if loop is not None and self._due():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._begin, loop)

    def close(self, loop: Any = None) -> None:
        """Ask no more."""
        self.closed = True
        if loop is not None and self._task is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._task.cancel)

    def _due(self) -> bool:
        if self._pid != os.getpid():  # forked: the question that was open stayed with the parent
            self._pid, self._open, self._task = os.getpid(), False, None
        never = not self._asked  # the clock may have begun less than ``every`` seconds ago
        return not self._open and not self.closed and (never or monotonic() - self._asked >= self._every)

    def _run(self) -> None:
        scope.set(_OWN)  # the thread's own context
        try:
            target = self._target()
            if target is not None:
                found = self._ask(target)
                del target
                self.found, self._answered = found, monotonic()  # type: ignore[assignment]
        except Exception:  # noqa: BLE001 - the connection is lost, or busy with getting lost
            pass
        finally:
            self._open = False

    def _begin(self, loop: Any) -> None:
        if self._due():
            self._open, self._asked = True, monotonic()
            self._task = loop.create_task(self._await(), name="uno-probe")

    async def _await(self) -> None:
        scope.set(_OWN)
        try:
            target = self._target()
            if target is not None:
                import asyncio

                async with asyncio.timeout(self._deadline):
                    self.found = await self._ask(target)  # type: ignore[misc]
                self._answered = monotonic()
        except Exception:  # noqa: BLE001
            pass
        finally:
            self._open = False


class Asking(ResourceTypeMonitor):
    """A type that asks its server. One probe for each target, which hangs on its Stat."""

    def question(self, target: Any) -> Any:
        """What the probe is to ask; on a thread a plain call, on a loop a coroutine."""
        raise NotImplementedError

    def probe(self, target: Any) -> Probe[Any]:
        """The probe of ``target``."""
        extra = stat_of(target).extra
        probe: Probe[Any] | None = extra.get("probe")
        return probe if probe is not None else extra.setdefault("probe", Probe(target, self.question, None))

    def answer(self, target: Any) -> Any:
        """The last answer, or None: there was none lately."""
        probe = self.probe(target)
        return probe.found if probe.is_fresh() else None

    def detach(self, target: Any) -> None:
        probe = stat_of(target).extra.pop("probe", None)
        if probe is not None:
            probe.close(self.bound_loop(target))

    def is_up(self, target: Any) -> bool:
        """Whether the client is connected; read from memory."""
        raise NotImplementedError

    def collect_metrics(self, resource: Resource) -> None:
        """What every client of a broker knows."""
        target = resource.target
        stat = stat_of(target)
        update = self.update_metric
        update("messaging.client.connection.up", self.is_up(target))
        update("messaging.client.sent.messages", stat.outcome("sent"))
        update("messaging.client.consumed.messages", stat.outcome("consumed"))
        update("messaging.client.operation.duration", stat.duration)
        update("messaging.process.duration", stat.process)
        update("uno.resource.errors", stat.errors)

    def explain_more(self, target: Any) -> list[str]:
        """What a type adds to :meth:`explain`."""
        return []

    def explain(self, target: Any, metric: str) -> str:
        stat, waiting = stat_of(target), self.probe(target).waiting()
        up = self.is_up(target)
        parts = [] if up else ["not connected"]
        if up and waiting > 1:
            parts.append(f"the broker has not answered for {waiting:.1f} s")
        parts += [*self.explain_more(target), describe_holds(stat, "message"), describe_error(stat)]
        return "; ".join(filter(None, parts))
