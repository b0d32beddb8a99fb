"""What do all task queues that live at a server have in common?

What an application sends and runs is told by hooks, into a Stat. What waits at the server is asked for on a
connection of our own, on a thread that lives for one round of questions: the application waits for nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic, time
from types import CodeType, ModuleType
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import ATTRIBUTE, CallScope, Stat, announce, install, scope, stat_of
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Resource

ASK_SECONDS = 5.0
STALE_SECONDS = 15.0
TIMEOUT = 2
MAX_QUEUES = 100
THREAD = "uno-job-queue"
#: The label or header in which a task carries the time when it was sent, where the library has no such thing.
SENT = "uno_sent"
#: Several monitors of one process may watch the same queue.
_ATTACHING = threading.Lock()

_QUEUE = "messaging.destination.name"
_SIZE = "task_queue.size"
_OLDEST = "task_queue.oldest_age"
_WORKERS = "task_queue.worker.count"
_DEPTHS = "messaging.destination.depth"
_CONSUMERS = "messaging.consumer.count"


class Look(NamedTuple):
    """What one round of questions found; None is unknown."""

    #: tasks that wait, by queue
    waiting: Mapping[str, float | None] = {}
    #: tasks that are due later
    scheduled: float | None = None
    #: tasks that run, in whichever process; else those of this process are all that can be told
    running: float | None = None
    #: seconds since the oldest waiting task was sent; 0 when none waits
    oldest: float | None = None
    workers: float | None = None
    #: consumers by queue
    consumers: Mapping[str, float | None] = {}


class Closable(Protocol):
    """A connection of ours."""

    def close(self) -> object: ...


class JobQueueMonitor(ResourceTypeMonitor):
    """Depth, age, wait, run and outcomes of a queue; what differs is how the server is asked (:meth:`look`)."""

    resource_type = "task_queue"
    blocking = False
    metrics = pick(
        _SIZE,
        "task_queue.enqueued",
        "task_queue.processed",
        "task_queue.task.wait_time",
        "task_queue.task.duration",
        "messaging.client.operation.duration",
        "uno.resource.errors",
    )
    headline = (
        _SIZE,
        "task_queue.processed",
        "task_queue.task.duration",
        "task_queue.task.wait_time",
    )
    thresholds = (("task_queue.task.wait_time", Threshold(30, 300, "Tasks wait long for a worker", for_=5)),)
    #: whether the server tells how many tasks run, in whichever process
    runs_at_server: ClassVar[bool] = False
    #: outcomes that are shown even while there was none
    outcomes: tuple[str, ...] = ("succeeded", "failed", "retried")

    def look(self, target: Any, asker: Asker) -> Look:
        """Ask the server. May block for some seconds: it is called on a thread of ours, never the application's."""
        raise NotImplementedError

    def stat_for(self, target: Any) -> Stat:
        """The Stat of ``target``, made when there is none."""
        return stat_of(target)

    def listen(self, target: Any, stat: Stat) -> Callable[[], None] | None:
        """Ask the library to tell ``stat`` of what happens to ``target``; returns what ends that.

        What listens must not hold ``target``.
        """
        return None

    def attach(self, target: Any) -> None:
        extra = self.stat_for(target).extra
        with _ATTACHING:
            extra["monitors"] = extra.get("monitors", 0) + 1
            if extra["monitors"] == 1:
                extra["unlisten"] = self.listen(target, self.stat_for(target))

    def detach(self, target: Any) -> None:
        extra = self.stat_for(target).extra
        with _ATTACHING:
            extra["monitors"] = extra.get("monitors", 1) - 1
            if extra["monitors"] > 0:
                return
            unlisten, asker = extra.pop("unlisten", None), extra.pop("asker", None)
        if unlisten is not None:
            unlisten()
        if asker is not None:
            asker.close()

    def collect_metrics(self, resource: Resource) -> None:
        target = resource.target
        stat, asker = self.stat_for(target), self._asker(target)
        asker.start(self, target)
        look = asker.current()
        update, specs = self.update_metric, self.specs
        update(_SIZE, total(look.waiting), {"state": "waiting"}, at_server=True)
        running = len(stat.holds) if look.running is None else look.running
        update(_SIZE, running, {"state": "running"}, at_server=self.runs_at_server)
        if look.scheduled is not None or stat.extra.get("schedules"):
            stat.extra["schedules"] = True  # once told, a gap is a gap
            update(_SIZE, look.scheduled, {"state": "scheduled"}, at_server=True)
        for name, value in ((_OLDEST, look.oldest), (_WORKERS, look.workers)):
            if name in specs:
                update(name, value)
        for name, values in ((_DEPTHS, look.waiting), (_CONSUMERS, look.consumers)):
            if name in specs:
                for queue, number in values.items():
                    update(name, number, {_QUEUE: queue})
        update("task_queue.enqueued", stat.outcome("sent"))
        for outcome in dict.fromkeys((*self.outcomes, *stat.outcomes)):
            if outcome != "sent":
                update("task_queue.processed", stat.outcome(outcome), {"outcome": outcome})
        update("task_queue.task.wait_time", stat.wait)
        update("task_queue.task.duration", stat.process)
        if "messaging.client.operation.duration" in specs:
            update("messaging.client.operation.duration", stat.duration)
        update("uno.resource.errors", stat.errors)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat, look = self.stat_for(target), self._asker(target).current()
        return {
            "queue_depth": total(look.waiting),
            "enqueued": stat.outcome("sent").value,
            **{outcome: stat.outcome(outcome).value for outcome in self.outcomes},
            "running": len(stat.holds),
        }

    def ping(self, target: Any) -> bool | None:
        """What the last look at the server said, at most a few seconds ago; None before the first."""
        return self._asker(target).up

    def explain(self, target: Any, metric: str) -> str:
        stat, asker = self.stat_for(target), self._asker(target)
        look = asker.current()
        deepest = sorted(((n, name) for name, n in look.waiting.items() if n), reverse=True)
        waiting = ", ".join(f"{n:g} in {name}" for n, name in deepest[:3])
        oldest = f"the oldest waits for {look.oldest:.0f} s" if look.oldest else ""
        idle = "no worker takes tasks" if look.workers == 0 else ""
        lost = f"the broker cannot be read ({asker.error})" if asker.error else ""
        said = (lost, waiting, oldest, idle, describe_holds(stat, "running task"), describe_error(stat))
        return "; ".join(filter(None, said))

    def _asker(self, target: Any) -> Asker:
        extra = self.stat_for(target).extra
        found: Asker = extra.get("asker") or extra.setdefault("asker", Asker())
        return found


class Asker:
    """Asks how deep the queues are, every few seconds, and keeps the connection in between."""

    def __init__(self) -> None:
        self.up: bool | None = None
        self.error = ""
        #: connections of ours, by any name
        self.kept: dict[str, Closable] = {}
        self._found = Look()
        self._found_at = self._next = 0.0
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        # No __del__: of objects that die together in a cycle, the sockets might go first, and say so.
        weakref.finalize(self, _hang_up, self.kept, self._pid).atexit = False

    def current(self) -> Look:
        """What was found last; unknown where that failed or is too old."""
        found = self._found
        if self.up and monotonic() - self._found_at <= STALE_SECONDS:
            return found
        return Look(dict.fromkeys(found.waiting), consumers=dict.fromkeys(found.consumers))

    def start(self, kind: JobQueueMonitor, target: Any) -> None:
        """Begin a round of questions when it is time."""
        now = monotonic()
        if os.getpid() != self._pid:  # forked: connections and thread are the parent's
            self.__init__()  # type: ignore[misc]
        if now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + ASK_SECONDS
        self._thread = threading.Thread(target=self._ask, args=(kind, target), name=THREAD, daemon=True)
        self._thread.start()

    def _ask(self, kind: JobQueueMonitor, target: Any) -> None:
        with self._lock:
            try:
                self._found = kind.look(target, self)
                self.up, self.error = True, ""
            except Exception as error:  # noqa: BLE001 - libraries of any kind raise what they like
                self.up, self.error = False, type(error).__name__
                _hang_up(self.kept, self._pid)
            self._found_at = monotonic()

    def close(self) -> None:
        """Close the connections; a round of questions that is under way ends first, within some seconds."""
        if os.getpid() == self._pid and (self.kept or self._lock.locked()):
            threading.Thread(target=self._close, name=THREAD, daemon=True).start()

    def _close(self) -> None:
        with self._lock:
            _hang_up(self.kept, self._pid)


def _hang_up(kept: dict[str, Closable], pid: int) -> None:
    if os.getpid() == pid:
        while kept:
            with suppress(Exception):
                kept.popitem()[1].close()


def total(waiting: Mapping[str, float | None]) -> float | None:
    """How many wait in all queues; unknown unless each is known."""
    known = [n for n in waiting.values() if n is not None]
    return sum(known) if len(known) == len(waiting) > 0 else None


class LateHooks:
    """Hooks on modules that a library loads only when it needs them; ``wanted`` says what to hook in each."""

    def __init__(
        self, wanted: Mapping[str, Callable[[ModuleType], list[tuple[Any, str, Callable[[Any], Any]]]]]
    ) -> None:
        self._wanted = wanted
        self._users: list[dict[str, list[Callable[[], None]]]] = []

    def install(self) -> Callable[[], None]:
        """Hook what is loaded, and the rest with :meth:`take`; returns what undoes it all."""
        user: dict[str, list[Callable[[], None]]] = {}
        self._users.append(user)

        def undo() -> None:
            self._users.remove(user)
            for each in (each for found in user.values() for each in found):
                each()

        try:
            self.take()
        except BaseException:
            undo()
            raise
        return undo

    def take(self) -> None:
        """Called by hooks when a module may have been loaded."""
        for user in self._users.copy():
            for name, hooks in self._wanted.items():
                module = sys.modules.get(name)
                if module is not None and name not in user:
                    user[name] = [install(owner, method, wrap) for owner, method, wrap in hooks(module)]


# -- what hooks record ---------------------------------------------------------------------------------------


def first_seen(target: Any) -> Stat:
    """The Stat of ``target``; one that had none is told to discovery."""
    known = ATTRIBUTE in target.__dict__
    stat = stat_of(target)
    if not known:
        announce(target)
    return stat


def waited(stat: Stat, sent: object) -> None:
    """A task starts that was sent, or due, at ``sent`` (seconds since 1970), if that is known."""
    if isinstance(sent, (int, float)) and sent > 0:
        stat.wait.observe(max(0.0, time() - sent))


def begin(stat: Stat, key: object, by: str, code: CodeType | None = None) -> None:
    """A task runs from now on."""
    stat.hold(hash(key), (code, 0) if code is not None else None, by)


def end(stat: Stat, key: object, outcome: str, error: BaseException | None = None) -> None:
    """A task does not run any more."""
    over(stat, key)
    came_to(stat, outcome, error)


def over(stat: Stat, key: object) -> None:
    """A task does not run any more; what came of it is not known yet."""
    hold = stat.holds.pop(hash(key), None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])


def came_to(stat: Stat, outcome: str, error: BaseException | None = None) -> None:
    """What came of a task."""
    stat.outcome(outcome).value += 1
    if error is not None:
        stat.failed(error)
    elif outcome == "failed":
        stat.errors.value += 1
    else:
        stat.last_ok = monotonic()


@contextmanager
def on_behalf_of(by: str) -> Iterator[None]:
    """What runs inside does so for the task ``by``."""
    token = scope.set(CallScope(by))
    try:
        yield
    finally:
        with suppress(ValueError):  # the library has changed the context meanwhile
            scope.reset(token)


def code_of(function: object) -> CodeType | None:
    """Where a function is written, also beneath a library's decorator."""
    for _ in range(5):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            return code
        function = getattr(function, "__wrapped__", None)
    return None


# -- Redis -----------------------------------------------------------------------------------------------------

_REDIS_OPTIONS = (
    "host", "port", "db", "username", "password", "path", "credential_provider",
    "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname",
    "ssl_password",
)  # fmt: skip


class RedisLine:
    """One connection of ours to the server of a pool of redis-py, which may be an asyncio one. Reads only."""

    def __init__(self, pool: Any) -> None:
        given = pool.connection_kwargs
        if not ("host" in given or "path" in given or type(pool).__name__ == "ConnectionPool"):
            raise LookupError("the pool does not say where it connects to")
        options: dict[str, Any] = {name: given[name] for name in _REDIS_OPTIONS if name in given}
        options |= {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
        modules = sys.modules
        with suppress(KeyError):  # an older redis-py does not try again by itself
            options["retry"] = modules["redis.retry"].Retry(modules["redis.backoff"].NoBackoff(), 0)
        kind = getattr(modules["redis.connection"], pool.connection_class.__name__, None)
        if kind is None:  # a class of the application's own
            kind = modules["redis.connection"].Connection
        try:
            self._connection = kind(protocol=2, **options)
        except TypeError:  # redis-py before 5
            self._connection = kind(**options)
        self._refused: type[Exception] = modules["redis.exceptions"].ResponseError

    def ask(self, *commands: tuple[object, ...]) -> list[Any]:
        """The answers to commands that only read; None for one that the server refuses."""
        connection = self._connection
        connection.connect()
        connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except self._refused:
                answers.append(None)
        return answers

    def close(self) -> None:
        self._connection.disconnect()


def redis_line(asker: Asker, pool: Any, name: str = "redis") -> RedisLine:
    """The kept line to the server of ``pool``."""
    line = asker.kept.get(name)
    if not isinstance(line, RedisLine):
        asker.kept[name] = line = RedisLine(pool)
    return line


def redis_endpoint(pool: Any) -> str | None:
    """host:port/database of a pool of redis-py."""
    given = getattr(pool, "connection_kwargs", None)
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("path"), str):
        return f"{given['path']}/{given.get('db') or 0}"
    host = given.get("host") or ("localhost" if type(pool).__name__ == "ConnectionPool" else None)
    return f"{host}:{given.get('port') or 6379}/{given.get('db') or 0}" if isinstance(host, str) else None


def url_endpoint(url: object, port: int) -> str | None:
    """host:port/path of an address, without user and password."""
    if not isinstance(url, str) or not url:
        return None
    try:
        parts = urlsplit(url)
        host, given = parts.hostname, parts.port
    except ValueError:
        return None
    return f"{host}:{given or port}/{parts.path.strip('/')}" if host else None
