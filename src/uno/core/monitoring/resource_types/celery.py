"""How are Celery's tasks watched? What an application sends and runs, and how much waits at the broker."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic, perf_counter, time
from typing import Any
from urllib.parse import urlsplit

from uno.core.monitoring.causes import describe_error, describe_holds
from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    CallScope,
    Stat,
    announce,
    failures,
    install,
    scope,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

SENT = "uno_sent"
DEPTH_SECONDS = 5.0
STALE_SECONDS = 15.0
MAX_QUEUES = 100
TIMEOUT = 2
#: An application that was not used yet is left in peace at first: reading its settings loads them.
SETTLE_SECONDS = 5.0
_DEPTHS = "messaging.destination.depth"
_CONSUMERS = "messaging.consumer.count"
_OUTCOMES = {"SUCCESS": "succeeded", "FAILURE": "failed", "RETRY": "retried"}


class CeleryMonitor(ResourceTypeMonitor):
    """Tasks sent, run and failed, their wait and run time in this process; depth and consumers at the broker.

    Each task that is sent carries the time in a header, ``uno_sent``, from which the worker knows how long it waited:
    the clocks of both machines should agree. It is nothing but a number, and workers without uno pass it over.

    A prefork worker (Celery's default) runs its tasks in child processes, which are not this process: the parent shows
    what waits at the broker, but no tasks that run. They are seen with ``--pool threads``, ``solo``, and in a child
    that starts a monitor of its own, at Celery's signal ``worker_process_init``.
    """

    resource_type = "task_queue"
    targets = ("celery.app.base.Celery",)
    library = "celery"
    tested = ">=5.3,<6"
    blocking = False
    metrics = pick(
        "task_queue.size",
        "task_queue.enqueued",
        "task_queue.processed",
        "task_queue.task.wait_time",
        "task_queue.task.duration",
        "messaging.client.operation.duration",
        _DEPTHS,
        _CONSUMERS,
        "uno.resource.errors",
    )
    headline = (
        "task_queue.size",
        "task_queue.processed",
        "task_queue.task.duration",
        "task_queue.task.wait_time",
    )
    thresholds = (
        ("task_queue.task.wait_time", Threshold(30, 300, "Tasks wait long for a worker", for_=5)),
        (_CONSUMERS, Threshold(0.5, None, "No worker takes tasks", direction="below", for_=30)),
    )

    def identify(self, target: Any) -> Identity:
        return Identity(target.main if _is_text(target.main) else "celery", _endpoint(target))

    def attach(self, target: Any) -> None:
        stat_of(target).extra.setdefault("since", monotonic())

    def detach(self, target: Any) -> None:
        broker = stat_of(target).extra.pop("broker", None)
        if broker is not None:
            broker.close()

    def ready(self) -> bool:
        return "celery.app.base" in sys.modules and "celery.signals" in sys.modules

    def install(self) -> list[Callable[[], None]]:
        signals = sys.modules["celery.signals"]
        undo = [install(sys.modules["celery.app.base"].Celery, "send_task", _send_task)]
        for name, receiver in (
            ("before_task_publish", _before_publish),
            ("task_prerun", _prerun),
            ("task_postrun", _postrun),
            ("task_failure", _failure),
        ):
            signal = getattr(signals, name)
            signal.connect(receiver, weak=False, dispatch_uid=f"uno-{name}")

            def disconnect(signal: Any = signal, name: str = name) -> None:
                signal.disconnect(dispatch_uid=f"uno-{name}")

            undo.append(disconnect)
        return undo

    def collect_metrics(self, resource: Resource) -> None:
        app = resource.target
        stat = stat_of(app)
        update = self.update_metric
        broker = _broker(app)
        broker.start(app, stat.extra["since"])
        depths = broker.current()
        known = [ready for ready, _ in depths.values() if ready is not None]
        waiting = sum(known) if len(known) == len(depths) > 0 else None
        update("task_queue.size", waiting, {"state": "waiting"}, at_server=True)
        for name, (ready, consumers) in depths.items():
            update(_DEPTHS, ready, {"messaging.destination.name": name})
            if consumers is not None:
                update(_CONSUMERS, consumers, {"messaging.destination.name": name})
        update("task_queue.size", len(stat.holds), {"state": "running"})
        update("task_queue.enqueued", stat.outcome("sent"))
        for outcome in ("succeeded", "failed", "retried"):
            update("task_queue.processed", stat.outcome(outcome), {"outcome": outcome})
        update("task_queue.task.wait_time", stat.wait)
        update("task_queue.task.duration", stat.process)
        update("messaging.client.operation.duration", stat.duration)
        update("uno.resource.errors", stat.errors)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        known = [ready for ready, _ in _broker(target).current().values()]
        return {
            "queue_depth": None if not known or None in known else sum(n or 0 for n in known),
            "enqueued": stat.outcome("sent").value,
            "succeeded": stat.outcome("succeeded").value,
            "failed": stat.outcome("failed").value,
            "running": len(stat.holds),
        }

    def ping(self, target: Any) -> bool | None:
        """What the last look at the broker said, at most a few seconds ago; None before the first."""
        return _broker(target).up

    def explain(self, target: Any, metric: str) -> str:
        stat, broker = stat_of(target), _broker(target)
        deepest = sorted(((n, name) for name, (n, _) in broker.current().items() if n), reverse=True)
        waiting = ", ".join(f"{n} in {name}" for n, name in deepest[:3])
        lost = f"the broker cannot be read ({broker.error})" if broker.error else ""
        return "; ".join(
            filter(None, (lost, waiting, describe_holds(stat, "running task"), describe_error(stat)))
        )


class _Broker:
    """One kept connection that asks how deep the queues are; never declares or changes anything.

    It blocks, so it is used on a thread that lives for no longer than one round of questions.
    """

    def __init__(self) -> None:
        self.up: bool | None = None
        self.error = ""
        self._found: dict[str, tuple[int | None, int | None]] = {}
        self._found_at = self._next = 0.0
        self._connection: Any = None
        self._channel: Any = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def current(self) -> dict[str, tuple[int | None, int | None]]:
        """(ready messages, consumers) by queue; None where they are unknown or too old."""
        if monotonic() - self._found_at > STALE_SECONDS:
            return dict.fromkeys(self._found, (None, None))
        return self._found

    def start(self, app: Any, since: float) -> None:
        """Begin a round of questions when it is time, once ``app`` is in use or quiet."""
        now = monotonic()
        if os.getpid() != self._pid:  # forked: connection and thread are the parent's
            self.__init__()  # type: ignore[misc]
        in_flight = self._thread is not None and self._thread.is_alive()
        if in_flight or now < self._next or (not app.configured and now - since < SETTLE_SECONDS):
            return
        self._next = now + DEPTH_SECONDS
        self._thread = threading.Thread(target=self._ask, args=(app,), name="uno-celery", daemon=True)
        self._thread.start()

    def _ask(self, app: Any) -> None:
        with self._lock:
            names: list[str] = list(self._found)
            try:
                names = [name for name in app.amqp.queues if _is_text(name)][:MAX_QUEUES]
                self._found = {name: self._depth(app, name) for name in names}
                self.up, self.error = True, ""
            except Exception as error:  # noqa: BLE001 - brokers of any kind raise what they like
                self._found = dict.fromkeys(names, (None, None))
                self.up, self.error = False, type(error).__name__
                self._hang_up()
            self._found_at = monotonic()

    def _depth(self, app: Any, name: str) -> tuple[int | None, int | None]:
        if self._connection is None:
            self._connection = _connect(app)
        connection = self._connection
        if self._channel is None:
            self._channel = connection.channel()
        # Brokers behind kombu's virtual channels (Redis, ...) know no consumers and drop empty queues.
        amqp = connection.transport.driver_type == "amqp"
        try:
            answer = self._channel.queue_declare(queue=name, passive=True)
        except connection.channel_errors as error:
            if getattr(error, "reply_code", getattr(error, "code", None)) not in (404, "404"):
                raise
            if amqp:  # the broker has closed the channel
                self._channel = None
                return None, None
            return 0, None
        return answer.message_count, answer.consumer_count if amqp else None

    def close(self) -> None:
        """Close the connection; a round of questions that is under way ends first, within some seconds."""
        if os.getpid() == self._pid:
            threading.Thread(target=self._close, name="uno-celery", daemon=True).start()

    def _close(self) -> None:
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                # A broker that does not answer would not answer a farewell either.
                polite = self.up or not hasattr(connection.transport, "_collect")
                connection.release() if polite else connection.collect()


def _connect(app: Any) -> Any:
    url = app.conf.broker_read_url
    first = url if _is_text(url) else next(iter(url or ("",)))
    options: dict[str, Any] = {}
    if _is_text(first) and first.startswith(("amqp", "pyamqp")):
        options = {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT}
    elif _is_text(first) and first.startswith(("redis", "sentinel", "valkey")):
        options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    connection = app.connection_for_read(connect_timeout=TIMEOUT, heartbeat=0, transport_options=options)
    connection.connect()
    return connection


def _broker(app: Any) -> _Broker:
    found: _Broker = stat_of(app).extra.setdefault("broker", _Broker())
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _endpoint(app: Any) -> str | None:
    """Host, port and virtual host of the broker; read without loading settings that are not loaded yet."""
    url = app.conf.broker_url if app.configured else app._preconf.get("broker_url")
    if not isinstance(url, str) or not url:
        return None
    try:
        parts = urlsplit(url.partition(";")[0])
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host:
        return None
    redis = parts.scheme.startswith("redis")
    port = port or (6379 if redis else 5672)
    path = parts.path.strip("/")
    return f"{host}:{port}/{path or ('0' if redis else '')}"


# -- hooks -----------------------------------------------------------------------------------------------


def _send_task(original: Any) -> Any:
    """Counts and times what is sent, whichever task class or canvas it comes from."""

    def send_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            known = ATTRIBUTE in self.__dict__
            stat = stat_of(self)
            if not known:
                announce(self)
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Celery.send_task", error)
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        stat.outcome("sent").value += 1
        return result

    return send_task


def _before_publish(headers: Any = None, **_: Any) -> None:
    # The worker may be another process: only the message can tell it when it was sent.
    if isinstance(headers, dict):
        headers[SENT] = time()


def _stat_of_task(task: Any) -> Stat:
    app = task.app
    if type(app).__name__ == "Proxy":
        app = app._get_current_object()
    return stat_of(app)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    def receive(**signal: Any) -> None:
        try:
            function(**signal)
        except Exception as error:  # noqa: BLE001 - a hook never fails the task
            failures(f"celery.{function.__name__}", error)

    return receive


@_guarded
def _prerun(sender: Any, task_id: str, **_: Any) -> None:
    stat, request = _stat_of_task(sender), sender.request
    sent = getattr(request, SENT, None)
    if isinstance(sent, float) and not request.eta and not request.is_eager:  # an eta is no wait for a worker
        stat.wait.observe(max(0.0, time() - sent))
    by = f"celery task {sender.name}"
    stat.hold(hash(task_id), (sender.run.__code__, 0) if hasattr(sender.run, "__code__") else None, by)
    stat.extra.setdefault("scopes", {})[task_id] = scope.set(CallScope(by))


@_guarded
def _postrun(sender: Any, task_id: str, state: str | None = None, **_: Any) -> None:
    stat = _stat_of_task(sender)
    hold = stat.holds.pop(hash(task_id), None)
    if hold is not None:
        stat.process.observe(monotonic() - hold[2])
    stat.outcome(_OUTCOMES.get(state or "", "other")).value += 1
    token = stat.extra.get("scopes", {}).pop(task_id, None)
    if token is not None:
        with suppress(ValueError):  # the pool has changed the context meanwhile
            scope.reset(token)


@_guarded
def _failure(sender: Any, exception: BaseException, **_: Any) -> None:
    _stat_of_task(sender).failed(exception)
