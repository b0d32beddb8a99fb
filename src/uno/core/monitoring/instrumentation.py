"""What do hooks hang on an instance, and where did a call come from?

A hook is a plain closure on a class. It records into a Stat that hangs on the instance itself, so that
nothing of ours keeps the instance alive, and several monitors of one process read the same numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial
from operator import sub
from threading import RLock, current_thread, local
from time import get_clock_info, monotonic, perf_counter
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
from typing import Any

from uno.core.monitoring.cells import HAS_GIL
from uno.core.monitoring.metrics import MAX_PENDING, CounterCell, HistogramCell
from uno.core.records import NamedTuple

log = logging.getLogger("uno.hooks")

#: Whether perf_counter() and monotonic() tell the same time, as on Linux and macOS.
ONE_CLOCK = get_clock_info("perf_counter").implementation == get_clock_info("monotonic").implementation
MAX_CALLERS = 64
MAX_HOLDS = 4_096
MAX_SLOW = 256
#: Elements of a log after which it is counted, rather than with the next tick.
MAX_LOG = 4 * MAX_PENDING
SLOW_SECONDS = 0.5
#: For how long a slow call or an error is named as a cause.
RECENT_SECONDS = 60.0
OWN = "uno monitor"
#: In a Stat's ``extra``: a question of ours to a server that nothing cuts short.
WHOLE = "whole"

_CORE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_OWN = (_CORE, os.path.join(os.path.dirname(os.path.dirname(_CORE)), "testing.py"))


@lru_cache(1)
def _foreign() -> tuple[str, ...]:
    import sysconfig  # not at import: it loads the build's configuration

    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in paths]
    return tuple({place + os.sep for path in places for place in (path, os.path.realpath(path))})


def is_first_party(filename: str) -> bool:
    """Whether a file belongs to the application: not to Python, to an installed library, or to uno itself."""
    if filename.startswith("<") or f"{os.sep}site-packages{os.sep}" in filename or filename.startswith(_OWN):
        return False
    return not filename.startswith(_foreign())


class _Party(dict[str, bool]):
    """First-party or not, by file name; looked up once for each file of the process."""

    def __missing__(self, filename: str) -> bool:
        known = self[filename] = is_first_party(filename)
        return known


_PARTY = _Party()

Site = tuple[CodeType, int]


def is_application(code: CodeType) -> bool:
    """Whether code belongs to the application; cheap enough for hooks."""
    return _PARTY[code.co_filename]


def code_of(fn: Any, args: tuple[Any, ...]) -> CodeType | None:
    """The code that a task runs, looking through partial objects and asyncio.to_thread's Context.run."""
    for _ in range(4):
        code = getattr(fn, "__code__", None)
        if code.__class__ is CodeType:
            return code
        if fn.__class__ is partial:
            fn, args = fn.func, fn.args + args
        elif getattr(fn, "__name__", "") == "run" and args:
            fn, args = args[0], args[1:]
        else:
            return None
    return None


def call_site(depth: int = 2) -> Site | None:
    """The innermost first-party frame above the caller, as ``(code, instruction offset)``.

    The line is looked up when it is shown, not here. Frames of a parent greenlet are followed, since SQLAlchemy's
    asyncio runs its core in one.
    """
    frame: FrameType | None
    try:
        frame = sys._getframe(depth)
    except ValueError:  # the stack is not that deep
        frame = sys._getframe(1)
    party = _PARTY
    while frame is not None:
        if party[frame.f_code.co_filename]:
            return frame.f_code, frame.f_lasti
        frame = frame.f_back
    greenlet = sys.modules.get("greenlet")
    if greenlet is not None:
        parent = greenlet.getcurrent().parent
        while parent is not None:
            frame = parent.gr_frame
            while frame is not None:
                if party[frame.f_code.co_filename]:
                    return frame.f_code, frame.f_lasti
                frame = frame.f_back
            parent = parent.parent
    return None


def thread_position(ident: int) -> tuple[Site | None, Site | None]:
    """Where another thread is now: its innermost first-party frame, and its innermost frame of all."""
    frame = sys._current_frames().get(ident)
    if frame is None:
        return None, None
    innermost = (frame.f_code, frame.f_lasti)
    while frame is not None:
        if _PARTY[frame.f_code.co_filename]:
            return (frame.f_code, frame.f_lasti), innermost
        frame = frame.f_back
    return None, innermost


_CALLEE = re.compile(r"[A-Za-z_][\w.]*(?=\()")


def describe_call(site: Site | None) -> str:
    """What is called at a site ("time.sleep"), read from the source; "" where that cannot be told.

    A dotted name only, never arguments: they may hold a password.
    """
    if site is None:
        return ""
    import linecache
    from itertools import islice

    code, lasti = site
    position = next(islice(code.co_positions(), lasti // 2, None), None)
    if position is None or position[0] is None or position[2] is None:
        return ""
    line = linecache.getline(code.co_filename, position[0]).encode()
    found = _CALLEE.match(line[position[2] :].decode(errors="replace").removeprefix("await "))
    return found.group() if found else ""


def describe_site(site: Site | None) -> str:
    """``"shop/orders.py:88 in checkout"``; "unknown" where no application code was on the stack."""
    if site is None:
        return "unknown"
    code, lasti = site
    line = next(
        (ln for start, end, ln in code.co_lines() if start <= lasti < end and ln), code.co_firstlineno
    )
    return f"{short_path(code.co_filename)}:{line} in {code.co_name}"


def raised_at(error: BaseException) -> str:
    """``" at shop/pumps.py:12 in read"``: the innermost place of the application that an error came through; ""
    where there is none."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_application(code):
            found = f" at {describe_site((code, traceback.tb_lasti))}"
        traceback = traceback.tb_next
    return found


def short_path(filename: str) -> str:
    """A file name without what is the same for all: relative to the working directory or the import path."""
    best = filename
    for root in (os.getcwd(), *sys.path):
        prefix = root.rstrip(os.sep) + os.sep
        if root and filename.startswith(prefix) and len(filename) - len(prefix) < len(best):
            best = filename[len(prefix) :]
    return best


class CallScope:
    """On whose behalf code runs: a route, a task, a job. The name is made once, when it is first needed."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str | Callable[[], str]) -> None:
        self._name = name if isinstance(name, str) else ""
        self._make = None if isinstance(name, str) else name

    @property
    def name(self) -> str:
        """What the dependency map and the table of holders show."""
        if not self._name and self._make is not None:
            self._name = self._make()
        return self._name


scope: ContextVar[CallScope | None] = ContextVar("uno_scope", default=None)


def caller() -> str:
    """The name of who is calling: the scope's, else the asyncio task's function, else the thread's."""
    current = scope.get()
    return unscoped() if current is None else current._name or current.name


def unscoped() -> str:
    """The name of who is calling outside of any scope."""
    loop = _running_loop()
    if loop is not None:
        task = sys.modules["asyncio"].current_task(loop)
        if task is not None:
            return _task_caller(getattr(task.get_coro(), "__qualname__", "task"))
    return here.caller


def _no_loop() -> Any:
    """The running event loop of this thread; replaced by asyncio's own function once that is loaded."""
    global _running_loop
    known = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    if known is None:
        return None
    _running_loop = known
    return known()


_running_loop: Callable[[], Any] = _no_loop


@lru_cache(1_024)
def _task_caller(name: str) -> str:
    return f"task {name}"


_NUMBERS = re.compile(r"(?:[-_]?\d+)+\Z")
#: What Python calls a thread that has no name of its own.
_NAMELESS = re.compile(r"Thread-\d+ \((.+)\)\Z")


def _thread_caller(name: str) -> str:
    nameless = _NAMELESS.match(name)
    return f"thread {nameless[1] if nameless else _NUMBERS.sub('', name)}"


class Here(local):
    """What this thread is called as a caller: the name that it has when it first calls, without its number, or for
    whom a pool's thread works."""

    def __init__(self) -> None:
        self.caller = _thread_caller(current_thread().name)


here = Here()


class Hold(NamedTuple):
    """Who holds or awaits one slot, and since when (monotonic seconds)."""

    site: Site | None
    caller: str
    since: float


#: A Hold, or a plain tuple of the same: a third of its cost, where one is made for each call.
Held = tuple[Site | None, str, float]


class Called:
    """What one caller had done: calls, those in vain, and the seconds that those took which were timed."""

    __slots__ = ("calls", "errors", "seconds", "timed")

    def __init__(self) -> None:
        self.calls = CounterCell()
        self.errors = CounterCell()
        self.timed = CounterCell()
        self.seconds = CounterCell()

    def took(self, calls: int, seconds: float) -> None:
        """So many calls went on for ``seconds`` together."""
        self.calls.value += calls
        self.timed.value += calls
        self.seconds.value += seconds


#: Those that a forked child takes over.
_STATS: weakref.WeakSet[Stat] = weakref.WeakSet()


class Stat:
    """What happened to one instance: times, outcomes, holders, callers. Written by hooks, read by collectors.

    All methods may be called from any thread, never block, and never raise into the application.
    """

    __slots__ = (
        "__weakref__", "active", "callers", "connects", "duration", "errors", "extra", "holds", "last_error",
        "last_error_kind", "last_ok", "log", "outcomes", "process", "running", "sited", "slow", "slow_calls",
        "timeouts", "total", "use", "wait", "waiters",
    )  # fmt: skip

    def __init__(self) -> None:
        self.wait = HistogramCell()
        self.use = HistogramCell()
        self.connects = HistogramCell()
        self.duration = HistogramCell()
        self.process = HistogramCell()
        self.total = CounterCell()
        self.errors = CounterCell()
        self.timeouts = CounterCell()
        self.slow = CounterCell()
        self.active = 0
        self.outcomes: dict[str, CounterCell] = {}
        self.holds: dict[int, Held] = {}
        self.waiters: dict[int, Held] = {}
        #: by caller: the edges of the dependency map
        self.callers: dict[str, Called] = {}
        #: when operations were slow, and from where they were called; None while none was
        self.slow_calls: deque[tuple[float, Site | None]] | None = None
        #: the operations that run now, by whatever key the hook uses: when each started (perf_counter), for whom
        self.running: dict[float, tuple[float, str]] = {}
        #: Operations that went well and are not counted yet. Of each its start and end (perf_counter) and for whom,
        #: one after the other: no object of its own, which the garbage collector would go through. Whoever writes
        #: makes a tuple of them first and adds it to the log right after looking the log up, see :meth:`drain`.
        self.log: list[Any] = []
        #: when a hook last looked up the place of a call, for those that do it at most a thousand times a second
        self.sited = 0.0
        self.last_ok = 0.0
        self.last_error = 0.0
        self.last_error_kind = ""
        #: what one resource type needs beyond this
        self.extra: dict[str, Any] = {}
        _STATS.add(self)

    def forget_parent(self) -> None:
        """In a forked child: who held, waited and ran was in threads that are not here."""
        self.holds, self.waiters, self.running, self.active = {}, {}, {}, 0
        self.extra.pop(WHOLE, None)

    def outcome(self, name: str) -> CounterCell:
        """The counter of one outcome; there are few."""
        cell = self.outcomes.get(name)
        if cell is None:
            if len(self.outcomes) >= MAX_CALLERS:
                name = "other"
            cell = self.outcomes.setdefault(name, CounterCell())
        return cell

    def called(self, name: str) -> Called:
        """What one caller had done; beyond 64 callers the rest share "other"."""
        known = self.callers.get(name)
        if known is None:
            if len(self.callers) >= MAX_CALLERS:
                name = "other"
            known = self.callers.setdefault(name, Called())
        return known

    def called_by(self, names: Sequence[str], seconds: Sequence[float]) -> None:
        """So many calls that went well: for whom each was, and how long it took."""
        counted = Counter(names)
        if len(counted) == 1:  # nearly always
            self.called(names[0]).took(len(names), sum(seconds))
            return
        took = dict.fromkeys(counted, 0.0)
        for name, each in zip(names, seconds, strict=True):
            took[name] += each
        for name, calls in counted.items():
            self.called(name).took(calls, took[name])

    def done(
        self,
        seconds: float,
        error: BaseException | None = None,
        name: str | None = None,
        slow: float = SLOW_SECONDS,
    ) -> None:
        """One operation ended after ``seconds``, on behalf of ``name``; beyond ``slow`` its place is noted."""
        self.duration.add(seconds)
        self.total.value += 1
        if name is None:
            name = caller()
        by = self.callers.get(name) or self.called(name)
        by.took(1, seconds)
        if error is None:
            self.last_ok = monotonic()
        else:
            self.failed(error)
            by.errors.value += 1
        if seconds > slow:
            self.note_slow(call_site(3))

    def note_slow(self, site: Site | None) -> None:
        """An operation was slow that was called from ``site``; of uno's own pings the place tells nobody anything."""
        self.slow.value += 1
        if caller() != OWN:
            if self.slow_calls is None:
                self.slow_calls = deque(maxlen=MAX_SLOW)
            self.slow_calls.append((monotonic(), site))

    def failed(self, error: BaseException) -> None:
        """Note an error: its type only, for a message may hold a password."""
        self.errors.value += 1
        self.last_error = monotonic()
        self.last_error_kind = type(error).__name__

    def hold(self, key: int, site: Site | None, name: str | None = None) -> None:
        """A slot was taken; ``key`` is the id() of what was handed out."""
        if len(self.holds) < MAX_HOLDS:
            self.holds[key] = site, caller() if name is None else name, monotonic()

    def release(self, key: int) -> float | None:
        """A slot was returned. Returns for how many seconds it was held, None when it is not known."""
        hold = self.holds.pop(key, None)
        if hold is None:
            return None
        held = monotonic() - hold[2]
        self.use.add(held)
        return held

    def drain(self) -> None:
        """Count the operations of ``log``: hooks of fast clients only write them down."""
        log = self.taken()
        if not log:
            return
        ends = log[1::3]
        times = list(map(sub, ends, log[0::3]))
        self.duration.pending.extend(times)
        self.total.value += len(times)
        self.called_by(log[2::3], times)
        self.last_ok = max(self.last_ok, ends[-1] if ONE_CLOCK else monotonic())
        if len(self.duration.pending) > MAX_PENDING:
            self.duration.fold()

    def wrote(self, start: float, end: float, name: str) -> None:
        """Write down an operation that went well."""
        entry = start, end, name
        log = self.log
        log += entry
        if len(log) > MAX_LOG:
            self.drain()

    def taken(self) -> list[Any]:
        """The log, which begins anew."""
        fresh: list[Any] = []  # made before, for the collector may run then, and whatever it sets off
        log, self.log = self.log, fresh
        return log

    def longest_running(self) -> float:
        """Seconds for which the oldest of the operations that run now has been running; 0 when none does."""
        since = min((start for start, _ in list(self.running.values())), default=None)
        return 0.0 if since is None else perf_counter() - since

    def oldest(self) -> float:
        """Seconds for which the longest-held slot is out; 0 when none is."""
        since = min((since for _, _, since in list(self.holds.values())), default=None)
        return 0.0 if since is None else monotonic() - since


ATTRIBUTE = "_uno_stat"


_hanging = RLock()


def hung(instance: Any, name: str = ATTRIBUTE) -> Any:
    """What was hung on ``instance``, or None.

    Never by its ``__dict__``: once that was asked for, CPython 3.11 and 3.12 look up every attribute of the instance
    the slow way, in the library's own code too. Runs no ``__getattr__``.
    """
    try:
        return object.__getattribute__(instance, name)
    except AttributeError:
        return None


def hang(instance: Any, name: str, value: Any) -> Any:
    """Hang ``value`` on ``instance``. Returns what hangs there, which another may have hung before."""
    with _hanging:
        found = hung(instance, name)
        if found is not None:
            return found
        try:
            object.__setattr__(instance, name, value)
        except TypeError:  # a class in C has a say in that
            return instance.__dict__.setdefault(name, value)
        return value


def stat_of(instance: Any) -> Stat:
    """The Stat that hangs on ``instance``, made when there is none. For instances that have a ``__dict__``."""
    return hung(instance) or hang(instance, ATTRIBUTE, Stat())  # type: ignore[no-any-return]


class _Hook:
    __slots__ = ("failed", "failed_at", "groups", "original", "users", "wrapper")

    def __init__(self, original: Any, wrapper: Any) -> None:
        self.original = original
        self.wrapper = wrapper
        self.users = 1
        #: how often it failed in a row, and when last (monotonic)
        self.failed = 0
        self.failed_at = 0.0
        #: those that installed it and have not undone it
        self.groups: list[HookGroup] = []


class HookGroup:
    """Hooks that belong together: they are taken off together. ``off`` says in words why they switched themselves off,
    "" while they did not."""

    def __init__(self) -> None:
        self.undos: list[Callable[[], None]] = []
        self.off = ""

    def undo(self) -> None:
        """Take all of them off, the last one first."""
        while self.undos:
            self.undos.pop()()


class _Installing(local):
    group: HookGroup | None = None


_installing = _Installing()
#: The living hooks by the code of their wrapper.
_hooks: dict[CodeType, list[_Hook]] = {}


def install_whole(make: Callable[[], list[Callable[[], None]]]) -> HookGroup:
    """Call ``make``, which installs hooks and returns what undoes them. When it raises, none of them stays."""
    group, before = HookGroup(), _installing.group
    _installing.group = group
    try:
        undos = make()
    except BaseException:
        group.undo()
        raise
    finally:
        _installing.group = before
    group.undos += [undo for undo in undos if undo not in group.undos]
    return group


#: What is called with its instance as the first argument; static and class methods are for ``wrap`` to know.
_PLAIN = (
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    staticmethod,
    classmethod,
)


def _callable(current: Any) -> Any:
    """``current`` as a function of the instance. Another's wrapper may be an object that must be bound first, as those
    of wrapt, which Datadog and OpenTelemetry use, are."""
    if type(current) in _PLAIN or not hasattr(type(current), "__get__"):
        return current

    def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
        return current.__get__(self, type(self))(*args, **kwargs)

    return bound


def _hook_in(current: Any) -> _Hook | None:
    """Our hook, when ``current`` is it, or wraps it as others do: by ``__wrapped__`` or in a closure."""
    level = [current]
    for _ in range(5):
        inside: list[Any] = []
        for one in level:
            hook = getattr(one, "__dict__", {}).get("__uno_hook__")
            if hook is not None and hook.wrapper is one:
                return hook  # type: ignore[no-any-return]
            inside.append(getattr(one, "__wrapped__", None))
            for cell in getattr(one, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # an empty cell
                    if type(cell.cell_contents) is FunctionType:
                        inside.append(cell.cell_contents)
        level = [one for one in inside if one is not None]
    return None


#: Classes of C extensions that refuse to be assigned to: Py_TPFLAGS_IMMUTABLETYPE.
_IMMUTABLE = 1 << 8


def _assign(owner: Any, name: str, value: Any) -> None:
    """``setattr(owner, name, value)``, also where ``owner`` is an extension's C class, which refuses it.

    Python itself refuses since interpreters may share such a class; its methods are looked up like any other's. So the
    entry is put beneath the proxy, and Python told that what it remembers of the class is out of date.
    """
    if not isinstance(owner, type) or not owner.__flags__ & _IMMUTABLE:  # a module, or an ordinary class
        setattr(owner, name, value)
        return
    import ctypes
    import gc

    (entries,) = gc.get_referents(vars(owner))
    if not HAS_GIL or type(entries) is not dict or entries.get(name) is None:
        raise TypeError(f"{owner.__name__} cannot be hooked")
    entries[name] = value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))


def install(owner: type, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace ``owner.name`` by ``wrap(original)``; returns what undoes it.

    Counted: a second installation shares the first one's wrapper, also where that lies beneath another's. The last
    undo restores the class as it was, unless somebody else has wrapped it since (then ours stays beneath theirs and
    only keeps counting).
    Raises AttributeError when ``owner`` does not define ``name`` itself.
    """
    current = owner.__dict__.get(name)
    if current is None:
        raise AttributeError(f"{owner.__name__} does not define {name}")
    hook = _hook_in(current)
    if hook is not None:
        hook.users += 1
    else:
        wrapper = wrap(_callable(current))
        hook = _Hook(current, wrapper)
        with contextlib.suppress(AttributeError):  # looks like the original, as far as that tells its looks
            wrapper.__wrapped__ = current
            wrapper.__name__, wrapper.__qualname__ = current.__name__, current.__qualname__
            wrapper.__doc__, wrapper.__module__ = current.__doc__, current.__module__
        wrapper.__uno_hook__ = hook
        _assign(owner, name, wrapper)
        code = getattr(wrapper, "__code__", None)
        if code is not None:
            _hooks.setdefault(code, []).append(hook)
    group = _installing.group
    if group is not None:
        hook.groups.append(group)
    undone = False

    def undo() -> None:
        nonlocal undone
        if undone:
            return
        undone = True
        hook.users -= 1
        if group in hook.groups:
            hook.groups.remove(group)
        if hook.users == 0 and owner.__dict__.get(name) is hook.wrapper:
            _assign(owner, name, hook.original)
            code: Any = getattr(hook.wrapper, "__code__", None)
            if hook in _hooks.get(code, ()):
                _hooks[code].remove(hook)
                if not _hooks[code]:
                    del _hooks[code]

    if group is not None:
        group.undos.append(undo)
    return undo


_new: deque[weakref.ref[Any]] = deque(maxlen=4_096)


def announce(obj: Any) -> None:
    """Tell discovery of an instance that hooks see for the first time. Kept weakly; objects without weak
    references are left for the next scan."""
    with contextlib.suppress(TypeError):
        _new.append(weakref.ref(obj))


def announced() -> list[Any]:
    """The living instances that were announced since the last call."""
    found = []
    while _new:
        try:
            obj = _new.popleft()()
        except IndexError:  # another monitor took it
            break
        if obj is not None:
            found.append(obj)
    return found


#: A hook that failed so often, with less than FORGET_SECONDS between, is switched off with those of its group.
MAX_FAILURES = 20
FORGET_SECONDS = 60.0


class HookFailures:
    """Counts hooks that failed and says so once each; the application's call went through. A hook that goes on failing
    is switched off."""

    def __init__(self) -> None:
        self.cell = CounterCell()
        self._said: set[str] = set()
        self._switching = RLock()

    def __call__(self, where: str, error: BaseException) -> None:
        self.cell.value += 1
        if where not in self._said:
            self._said.add(where)
            log.warning("the hook %s failed (%s); calls go through unobserved", where, type(error).__name__)
        if self._switching.acquire(
            blocking=False
        ):  # else another thread is at it: one failure goes uncounted
            try:
                self._count(where, error, sys._getframe(1))
            except Exception:
                log.exception("a hook that fails could not be switched off")
            finally:
                self._switching.release()

    def reinit_after_fork(self) -> None:
        """Renew the lock in a forked child."""
        self._switching = RLock()

    def _count(self, where: str, error: BaseException, frame: FrameType | None) -> None:
        for _ in range(8):  # the hook itself, or one that called what failed
            if frame is None:
                return
            hooks = _hooks.get(frame.f_code)
            if hooks is not None:
                break
            frame = frame.f_back
        else:
            return
        original = frame.f_locals.get("original") if frame is not None else None
        now = monotonic()
        for hook in [h for h in hooks if h.original is original] or list(hooks):
            hook.failed = 1 if now - hook.failed_at > FORGET_SECONDS else hook.failed + 1
            hook.failed_at = now
            if hook.failed >= MAX_FAILURES:
                hook.failed = 0
                for group in list(hook.groups):
                    group.off = f"the hook {where} failed {MAX_FAILURES} times ({type(error).__name__})"
                    group.undo()


#: Hooks sit on classes, so their failures belong to the process and not to one monitor.
failures = HookFailures()


def _after_fork() -> None:
    global _hanging
    _hanging = RLock()
    failures.reinit_after_fork()
    for stat in list(_STATS):
        stat.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
