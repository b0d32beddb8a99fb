"""How are locks and semaphores watched? Those of asyncio and threading that the application holds by a name.

A library may take its own locks a million times a second, so the hooks sit on the watched objects alone, held there by
a weak reference. ``threading.Lock`` and ``RLock`` are immutable C: whether they are held is all that can
be told, and of an RLock by which thread.
"""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_holds
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    MAX_HOLDS,
    Hold,
    Stat,
    call_site,
    caller,
    failures,
    install,
    stat_of,
    thread_position,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

_OWNER = re.compile(r"<(?:un)?locked _thread\.RLock object owner=(\d+) count=(\d+)")
_keys = count(1)
#: While nobody holds it or waits, the place that takes a lock is looked up at most this often.
SITE_SECONDS = 0.001


class LockMonitor(ResourceTypeMonitor):
    """Holders, limit, waiting, wait and hold time of locks and semaphores of asyncio and threading.

    The limit of a semaphore is its bound where it has one, else the highest value that was seen.
    """

    resource_type = "lock"
    targets = (
        "asyncio.locks.Lock",
        "asyncio.locks.Semaphore",
        "threading.Semaphore",
        "_thread.lock",
        "_thread.RLock",
    )
    library = "threading"
    only_named = True
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "lock.holders",
        "lock.max",
        "lock.waiting",
        "lock.acquired",
        "lock.timeouts",
        "lock.wait_time",
        "lock.hold_time",
        "lock.oldest_hold",
    )
    headline = ("lock.holders", "lock.waiting", "lock.wait_time", "lock.hold_time")
    thresholds = (("lock.wait_time", Threshold(1.0, 10.0, "A lock is waited for", for_=2)),)

    def identify(self, target: Any) -> Identity:
        return Identity("lock", labels={"kind": f"{type(target).__module__}.{type(target).__name__}"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._installed = False

    def attach(self, target: Any) -> None:
        if _is_hooked(target):
            _limit(target, stat_of(target))
            self._watched.add(target)
            if self._installed:
                _hook(target)

    def detach(self, target: Any) -> None:
        if target in self._watched:
            self._watched.discard(target)
            if self._installed:
                _unhook(target)

    def install(self) -> list[Callable[[], None]]:
        undo = install(threading.Semaphore, "__enter__", _enter)
        self._installed = True
        for target in list(self._watched):
            _hook(target)

        def uninstall() -> None:
            undo()
            self._installed = False
            for target in list(self._watched):
                _unhook(target)

        return [uninstall]

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        held, limit = self.capacity(target)
        update = self.update_metric
        update("lock.holders", held)
        update("lock.max", limit)
        update("uno.resource.utilization", held / limit if limit else None)
        if not _is_hooked(target):
            return
        stat = stat_of(target)
        update("lock.waiting", _waiting(target))
        update("lock.acquired", stat.total)
        update("lock.timeouts", stat.timeouts)
        update("lock.wait_time", stat.wait)
        update("lock.hold_time", stat.use)
        update("lock.oldest_hold", stat.oldest())

    def capacity(self, target: Any) -> tuple[float, float | None]:
        if not _is_hooked(target):
            return _held(target), 1
        if isinstance(target, asyncio.Lock):
            return int(target.locked()), 1
        limit = _limit(target, stat_of(target))
        return limit - target._value, limit

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        held, limit = self.capacity(target)
        return {"held": held, "limit": limit, "waiting": _waiting(target) if _is_hooked(target) else None}

    def explain(self, target: Any, metric: str) -> str:
        if not _is_hooked(target):
            return _describe_owner(target)
        stat = stat_of(target)
        waiting = _waiting(target)
        held = describe_holds(stat, "slot", self.capacity(target)[1])
        return "; ".join(filter(None, (held, f"{waiting} waiting" if waiting else "")))

    def bound_loop(self, target: Any) -> Any:
        return getattr(target, "_loop", None)


def _is_hooked(target: Any) -> bool:
    return isinstance(target, (asyncio.Lock, asyncio.Semaphore, threading.Semaphore))


def _waiting(target: Any) -> int:
    if isinstance(target, threading.Semaphore):
        return len(target._cond._waiters)  # type: ignore[attr-defined]
    waiters = target._waiters or ()
    return sum(not waiter.done() for waiter in list(waiters))


def _limit(target: Any, stat: Stat) -> int:
    if isinstance(target, asyncio.Lock):
        return 1
    bound = target.__dict__.get("_bound_value", target.__dict__.get("_initial_value"))
    if bound is not None:
        return int(bound)
    highest = stat.extra["highest"] = max(stat.extra.get("highest", 0), target._value)
    return int(highest)


def _held(target: Any) -> int:
    """Of a C lock; an RLock can tell only since Python 3.14, before that its words do."""
    locked = getattr(target, "locked", None)
    return int(locked()) if locked is not None else int(repr(target).startswith("<locked"))


def _describe_owner(target: Any) -> str:
    owner = _OWNER.match(repr(target))
    if owner is None or owner[2] == "0":
        return ""
    ident = int(owner[1])
    names = [thread.name for thread in threading.enumerate() if thread.ident == ident]
    site = thread_position(ident)[0]
    now = Stat()
    now.holds[0] = Hold(site, f"thread {names[0]}" if names else "a thread", monotonic())
    return describe_holds(now, "slot", 1).partition(" (")[0]


def _who() -> int:
    """Who takes or gives back: the task, else the thread."""
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return id(task)
    return threading.get_ident()


def _hook(target: Any) -> None:
    """Let ``target`` tell of itself; counted, since several monitors may watch it."""
    extra = stat_of(target).extra
    extra["users"] = extra.get("users", 0) + 1
    if extra["users"] == 1:
        reference = weakref.ref(target)
        is_thread = isinstance(target, threading.Semaphore)
        target.acquire = (_acquire if is_thread else _acquire_async)(reference, type(target).acquire)
        target.release = _release(reference, type(target).release)


def _unhook(target: Any) -> None:
    stat: Stat | None = target.__dict__.get(ATTRIBUTE)
    if stat is None:
        return
    stat.extra["users"] -= 1
    if stat.extra["users"] == 0:
        for name in ("acquire", "release", ATTRIBUTE):
            target.__dict__.pop(name, None)


def _enter(original: Any) -> Any:
    """``with`` finds ``__enter__`` on the class, where it is another name of acquire."""

    def __enter__(self: Any) -> Any:
        return self.acquire()

    return __enter__


def _asked(target: Any) -> Hold | None:
    """Somebody asks who may have to wait. None when it cannot be noted."""
    try:
        stat: Stat | None = target.__dict__.get(ATTRIBUTE)
        if stat is None:  # not watched any more, but a Condition has kept the hook
            return None
        waits = target.locked() if isinstance(target, asyncio.Lock) else target._value <= 0
        now, site = monotonic(), None
        if waits or stat.holds or now - stat.sited > SITE_SECONDS:
            stat.sited = now
            site = call_site(3)
        hold = Hold(site, caller(), now)
        if waits:
            stat.waiters[id(hold)] = hold
        return hold
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("lock.acquire", error)
        return None


def _got(target: Any, asked: Hold | None, start: float, got: bool) -> None:
    try:
        stat: Stat | None = target.__dict__.get(ATTRIBUTE)
        if stat is None or asked is None:
            return
        stat.waiters.pop(id(asked), None)
        if not got:
            stat.timeouts.value += 1
            return
        stat.wait.add(perf_counter() - start)
        stat.total.value += 1
        stat.called(asked.caller).calls.value += 1
        if len(stat.holds) < MAX_HOLDS:
            key = next(_keys)
            stat.holds[key] = asked._replace(since=monotonic())
            stat.extra.setdefault("mine", {}).setdefault(_who(), []).append(key)
    except Exception as error:  # noqa: BLE001
        failures("lock.acquire", error)


def _gave_up(target: Any, asked: Hold | None) -> None:
    """It was cancelled or interrupted while it waited."""
    stat: Stat | None = target.__dict__.get(ATTRIBUTE)
    if stat is not None:
        stat.waiters.pop(id(asked), None)


def _acquire_async(reference: Callable[[], Any], original: Any) -> Any:
    async def acquire() -> Any:
        target = reference()
        if target is None:  # this function is all that is left of it: nobody else can wait or release
            return True
        asked, start = _asked(target), perf_counter()
        try:
            result = await original(target)
        except BaseException:
            _gave_up(target, asked)
            raise
        _got(target, asked, start, True)
        return result

    return acquire


def _acquire(reference: Callable[[], Any], original: Any) -> Any:
    def acquire(blocking: bool = True, timeout: float | None = None) -> Any:
        target = reference()
        if target is None:
            return True
        asked, start = _asked(target), perf_counter()
        try:
            result = original(target, blocking, timeout)
        except BaseException:
            _gave_up(target, asked)
            raise
        _got(target, asked, start, result)
        return result

    return acquire


def _release(reference: Callable[[], Any], original: Any) -> Any:
    def release(*args: Any, **kwargs: Any) -> Any:
        target = reference()
        if target is None:
            return None
        result = original(target, *args, **kwargs)
        try:
            if ATTRIBUTE in target.__dict__:
                _released(target, args[0] if args else kwargs.get("n", 1))
        except Exception as error:  # noqa: BLE001
            failures("lock.release", error)
        return result

    return release


def _released(target: Any, times: int) -> None:
    """What this task or thread took last; where it took nothing, what has been held longest."""
    stat: Stat = target.__dict__[ATTRIBUTE]
    mine: dict[int, list[int]] = stat.extra.setdefault("mine", {})
    for _ in range(times):
        who = _who()
        if not mine.get(who):
            who = next(iter(mine), 0)
        keys = mine.get(who)
        if not keys:  # taken before anybody watched
            return
        key = keys.pop()
        if not keys:
            mine.pop(who, None)
        stat.release(key)
