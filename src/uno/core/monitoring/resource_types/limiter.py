"""How are anyio's capacity limiters watched? Above all that of Starlette's and FastAPI's 40 threads.

A limiter has neither room for an attribute nor a lock; the Stat hangs on the queue of its waiters.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic, perf_counter
from types import CodeType, FunctionType
from typing import Any

from uno.core.monitoring.causes import describe_holds
from uno.core.monitoring.instrumentation import (
    MAX_HOLDS,
    CallScope,
    Hold,
    Site,
    Stat,
    announce,
    call_site,
    caller,
    code_of,
    describe_site,
    failures,
    install,
    is_application,
    scope,
    stat_of,
    thread_position,
    unscoped,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

_BACKEND = "anyio._backends._asyncio"
_THREADS = "run_sync_in_worker_thread"
#: While no other token is out, the place that takes one is looked up at most this often.
SITE_SECONDS = 0.001


class CapacityLimiterMonitor(ResourceTypeMonitor):
    """Borrowed tokens, limit, waiting, wait and use time of a CapacityLimiter on asyncio.

    The limiter of `to_thread.run_sync` (Starlette runs `def` endpoints with it) is called `limiter-threads`.
    """

    resource_type = "limiter"
    targets = (f"{_BACKEND}.CapacityLimiter", "anyio._core._synchronization.CapacityLimiterAdapter")
    library, tested = _BACKEND, ">=4,<5"
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "limiter.token.count",
        "limiter.token.max",
        "limiter.waiting",
        "limiter.wait_time",
        "limiter.use_time",
        "limiter.oldest_use",
    )
    headline = ("uno.resource.utilization", "limiter.waiting", "limiter.wait_time", "limiter.oldest_use")
    thresholds = (
        ("limiter.wait_time", Threshold(0.5, 5.0, "Calls wait for a free thread or token", for_=2)),
        ("uno.resource.utilization", Threshold(0.95, None, "All tokens are borrowed", for_=10)),
    )

    def identify(self, target: Any) -> Identity:
        return Identity("threads" if _is_for_threads(target) else "limiter")

    def covers(self, target: Any) -> tuple[object, ...]:
        inner = _inner(target)
        return () if inner is target or inner is None else (inner,)

    def attach(self, target: Any) -> None:
        self.stat(target)

    def install(self) -> list[Callable[[], None]]:
        limiter, backend = sys.modules[_BACKEND].CapacityLimiter, sys.modules[_BACKEND].AsyncIOBackend
        return [
            install(limiter, "acquire_on_behalf_of", _acquire),
            install(limiter, "acquire_on_behalf_of_nowait", _acquire_nowait),
            install(limiter, "release_on_behalf_of", _release),
            *(
                [install(backend, _THREADS, _named)]
                if isinstance(vars(backend).get(_THREADS), classmethod)
                else []
            ),
        ]

    def stat(self, target: Any) -> Stat | None:
        inner = _inner(target)
        return None if inner is None else stat_of(inner._wait_queue)

    def capacity(self, target: Any) -> tuple[float, float | None]:
        inner, limit = _inner(target), target.total_tokens
        return (0 if inner is None else inner.borrowed_tokens), (None if limit == inf else limit)

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat, (used, limit) = self.stat(target), self.capacity(target)
        update = self.update_metric
        update("uno.resource.utilization", used / limit if limit else None)
        update("limiter.token.count", used, {"state": "borrowed"})
        update("limiter.token.count", None if limit is None else max(0, limit - used), {"state": "free"})
        update("limiter.token.max", limit)
        update("limiter.waiting", _waiting(target))
        if stat is not None:  # else no event loop has used it
            update("limiter.wait_time", stat.wait)
            update("limiter.use_time", stat.use)
            update("limiter.oldest_use", stat.oldest())

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        used, limit = self.capacity(target)
        return {"borrowed": used, "limit": limit, "waiting": _waiting(target)}

    def ping(self, target: Any) -> bool:
        return True

    def explain(self, target: Any, metric: str) -> str:
        stat = self.stat(target)
        if stat is None:
            return ""
        text = describe_holds(stat, "token", self.capacity(target)[1])
        return "; ".join(filter(None, (text, _threads_at() if _is_for_threads(target) else "")))


def _inner(target: Any) -> Any:
    """The limiter itself; of one that was made outside of a loop, None until a loop uses it."""
    return target._internal_limiter if hasattr(type(target), "_internal_limiter") else target


def _waiting(target: Any) -> int:
    inner = _inner(target)
    return 0 if inner is None else len(inner._wait_queue)


def _is_for_threads(target: Any) -> bool:
    """Whether it is the one that an event loop's worker threads have by default."""
    backend, lowlevel = sys.modules.get(_BACKEND), sys.modules.get("anyio.lowlevel")
    try:
        variable, loops = backend._default_thread_limiter, lowlevel._run_vars  # type: ignore[union-attr]
        keys = (variable, variable._name)  # newer and older versions
        return any(values.get(key) is target for values in list(loops.values()) for key in keys)
    except (AttributeError, RuntimeError):  # another version; a loop that came meanwhile
        return False


def _threads_at(most: int = 3) -> str:
    """Where anyio's worker threads are, in lines of the application."""
    places: Counter[str] = Counter()
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread" and thread.ident is not None:
            site = thread_position(thread.ident)[0]
            if site is not None:
                places[describe_site(site)] += 1
    return ", ".join(f"{n} at {place}" for place, n in places.most_common(most))


def _site() -> Site | None:
    """The function that is to run in a thread, else who calls. Called by what the hook calls."""
    frame = sys._getframe(3)
    for _ in range(4):
        if frame.f_code.co_name == _THREADS:
            code = _application_code(frame.f_locals.get("func"))
            return None if code is None else (code, 0)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return call_site(4)


def _application_code(fn: Any) -> CodeType | None:
    """The application's function in what a framework runs: FastAPI hands it to a function of its own."""
    if fn.__class__ is partial:
        for inner in (fn.func, *fn.args, *fn.keywords.values()):
            if inner.__class__ is FunctionType and is_application(inner.__code__):
                return inner.__code__
    return code_of(fn, ())


def _took(limiter: Any, borrower: object, waited: float) -> None:
    queue = limiter._wait_queue
    stat = stat_of(queue)
    if "seen" not in stat.extra:
        stat.extra["seen"] = True
        announce(limiter)
    stat.wait.add(waited)
    now, holds = monotonic(), stat.holds
    site = None
    if holds or now - stat.sited > SITE_SECONDS:
        stat.sited = now
        site = _site()
    if len(holds) < MAX_HOLDS:
        name = caller()
        holds[id(borrower)] = Hold(site, name, now)
        stat.called(name).calls.value += 1


def _acquire(original: Any) -> Any:
    def acquire_on_behalf_of(self: Any, borrower: object) -> Any:
        if not self._wait_queue and len(self._borrowers) < self._total_tokens:
            return original(self, borrower)  # acquire_on_behalf_of_nowait sees it
        return waited(self, borrower)

    async def waited(limiter: Any, borrower: object) -> None:
        stat, waiter, start = None, None, perf_counter()
        try:
            stat = stat_of(limiter._wait_queue)
            waiter = Hold(_site(), caller(), monotonic())
            stat.waiters[id(waiter)] = waiter
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("CapacityLimiter.acquire", error)
        try:
            await original(limiter, borrower)
        finally:
            if stat is not None:
                stat.waiters.pop(id(waiter), None)
        try:
            if stat is not None and id(borrower) not in stat.holds:
                _took(limiter, borrower, perf_counter() - start)
        except Exception as error:  # noqa: BLE001
            failures("CapacityLimiter.acquire", error)

    return acquire_on_behalf_of


def _acquire_nowait(original: Any) -> Any:
    def acquire_on_behalf_of_nowait(self: Any, borrower: object) -> None:
        original(self, borrower)
        try:
            _took(self, borrower, 0.0)
        except Exception as error:  # noqa: BLE001
            failures("CapacityLimiter.acquire", error)

    return acquire_on_behalf_of_nowait


def _release(original: Any) -> Any:
    def release_on_behalf_of(self: Any, borrower: object) -> None:
        original(self, borrower)
        try:
            stat_of(self._wait_queue).release(id(borrower))
        except Exception as error:  # noqa: BLE001
            failures("CapacityLimiter.release", error)

    return release_on_behalf_of


def _named(original: Any) -> Any:
    """Lets the thread know for whom it works: it runs in a copy of the task's context, where a task has no name."""
    run = original.__func__

    def run_sync_in_worker_thread(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return run(cls, *args, **kwargs) if scope.get() is not None else named(cls, args, kwargs)

    async def named(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        token = scope.set(CallScope(unscoped()))
        try:
            return await run(cls, *args, **kwargs)
        finally:
            with suppress(ValueError):  # the coroutine was thrown away: that happens in another context
                scope.reset(token)

    return classmethod(run_sync_in_worker_thread)
