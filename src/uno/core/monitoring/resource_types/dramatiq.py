"""How are dramatiq's messages watched? What an application sends and runs, and how much waits at the broker."""

from __future__ import annotations

import copy
import json
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from time import perf_counter, time
from typing import Any

from uno.core.monitoring.instrumentation import Stat, failures, install
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types import _job_queue
from uno.core.monitoring.resource_types._job_queue import (
    MAX_QUEUES,
    SENT,
    Asker,
    JobQueueMonitor,
    Look,
    begin,
    came_to,
    code_of,
    first_seen,
    on_behalf_of,
    over,
    redis_endpoint,
    redis_line,
    waited,
)
from uno.core.resources import Identity

MAX_DELAYED = 10_000
_AMQP = b"AMQP\x00\x00\x09\x01"


class DramatiqMonitor(JobQueueMonitor):
    """Messages sent, run, failed and retried in this process; depth of all declared queues at Redis or RabbitMQ.

    dramatiq is watched by a middleware of uno's at the end of the broker's, which goes when the monitor stops. Each
    message that is sent carries the time in an option, ``uno_sent``, from which a worker knows how long it waited: a
    number, which workers without uno pass over. A worker of dramatiq takes messages ahead of time: those are not
    counted as waiting any more. The age of the oldest is known with Redis, the number of consumers with RabbitMQ.
    """

    targets = ("dramatiq.broker.Broker",)
    library = "dramatiq"
    tested = ">=1.17,<3"
    metrics = JobQueueMonitor.metrics + pick(
        "task_queue.oldest_age", "messaging.destination.depth", "messaging.consumer.count"
    )

    def ready(self) -> bool:
        return "dramatiq.broker" in sys.modules and "dramatiq.middleware" in sys.modules

    def identify(self, target: Any) -> Identity:
        return Identity("dramatiq", _endpoint(target), {"kind": type(target).__name__})

    def install(self) -> list[Callable[[], None]]:
        broker = sys.modules["dramatiq.broker"].Broker
        undo = [install(broker, "declare_actor", _declare_actor)]
        for module, name in (
            ("brokers.redis", "RedisBroker"),
            ("brokers.rabbitmq", "RabbitmqBroker"),
            ("brokers.stub", "StubBroker"),
        ):
            cls = getattr(sys.modules.get(f"dramatiq.{module}"), name, None)
            if cls is not None:
                undo.append(install(cls, "enqueue", _enqueue))
        return undo

    def listen(self, target: Any, stat: Stat) -> Callable[[], None]:
        base = sys.modules["dramatiq.middleware"].Middleware
        names = [name for name in vars(_Recorder) if not name.startswith("_")]
        # dramatiq asks each middleware for everything: what we have no use for is the base class's.
        ours = type("Uno", (base,), {name: vars(_Recorder)[name] for name in names})()
        ours.stat, ours.running, ours.delayed = stat, {}, set()
        target.add_middleware(ours)

        def unlisten(middleware: list[Any] = target.middleware) -> None:
            with suppress(ValueError):
                middleware.remove(ours)

        return unlisten

    def look(self, target: Any, asker: Asker) -> Look:
        names = sorted(target.get_declared_queues())[:MAX_QUEUES]
        if "client" in target.__dict__:
            return _look_redis(target, names, asker)
        if "parameters" in target.__dict__:
            return _look_rabbitmq(target, names)
        if isinstance(target.queues, dict):  # the broker for tests
            later = sum(q.qsize() for name, q in list(target.queues.items()) if name in target.delay_queues)
            return Look(
                {
                    n: target.queues[n].qsize()
                    for n in names
                    if n in target.queues and n not in target.delay_queues
                },
                scheduled=later,
            )
        return Look(dict.fromkeys(names))


def _endpoint(broker: Any) -> str | None:
    if "client" in broker.__dict__:
        return redis_endpoint(getattr(broker.client, "connection_pool", None))
    for parameters in _parameters(broker):
        vhost = parameters.virtual_host
        return f"{parameters.host}:{parameters.port}/{'' if vhost == '/' else vhost}"
    return None


def _parameters(broker: Any) -> list[Any]:
    found = broker.__dict__.get("parameters")
    return found if isinstance(found, list) else [] if found is None else [found]


def _look_redis(broker: Any, names: list[str], asker: Asker) -> Look:
    if not names:
        return Look()
    line = redis_line(asker, broker.client.connection_pool)
    keys = [f"{broker.namespace}:{name}" for name in names]
    answers = line.ask(
        *(("LLEN", key) for key in keys),
        *(("HLEN", f"{key}.DQ.msgs") for key in keys),
        *(("LINDEX", key, 0) for key in keys),
    )
    n = len(names)
    depths, later, first = answers[:n], answers[n : 2 * n], answers[2 * n :]
    heads = [("HGET", f"{key}.msgs", id) for key, id in zip(keys, first, strict=True) if id is not None]
    sent = [_sent(message) for message in line.ask(*heads)] if heads else []
    known = [at for at in sent if at is not None]
    oldest = None if len(known) < len(sent) else max((time() - at for at in known), default=0.0)
    scheduled = None if None in later else sum(later)
    return Look(
        dict(zip(names, depths, strict=True)),
        scheduled=scheduled,
        oldest=oldest if oldest is None else max(0.0, oldest),
    )


def _sent(message: bytes | None) -> float | None:
    """When a message was sent, if it is written in JSON."""
    with suppress(ValueError, TypeError, LookupError):
        found = json.loads(message or b"")
        return float(found.get("options", {}).get(SENT) or found["message_timestamp"] / 1000)
    return None


def _look_rabbitmq(broker: Any, names: list[str]) -> Look:
    pika = sys.modules["pika"]
    options = [copy.copy(parameters) for parameters in _parameters(broker)]
    for parameters in options:
        parameters.socket_timeout = parameters.stack_timeout = _job_queue.TIMEOUT
        parameters.blocked_connection_timeout = _job_queue.TIMEOUT
        parameters.connection_attempts, parameters.heartbeat = 1, 2
    # Ask first whether anybody answers: pika writes a page of errors to the log when nobody does.
    living = [parameters for parameters in options if parameters.ssl_options or _answers(parameters)]
    if not living:
        raise ConnectionError
    # A connection for each round: one that is kept has to be served all the time.
    connection = pika.BlockingConnection(parameters=living)
    waiting: dict[str, float | None] = {}
    consumers: dict[str, float | None] = {}
    later = 0
    try:
        channel = connection.channel()
        for name in (each for queue in names for each in (queue, f"{queue}.DQ")):
            try:
                answer = channel.queue_declare(queue=name, passive=True).method
            except pika.exceptions.ChannelClosedByBroker:  # it does not exist before it is first used
                channel = connection.channel()
                waiting.update({} if name.endswith(".DQ") else {name: 0})
                continue
            if name.endswith(".DQ"):
                later += answer.message_count
            else:
                waiting[name], consumers[name] = answer.message_count, answer.consumer_count
    finally:
        with suppress(Exception):
            connection.close()
    return Look(waiting, scheduled=later, consumers=consumers)


def _answers(parameters: Any) -> bool:
    try:
        place = (parameters.host, parameters.port)
        with socket.create_connection(place, _job_queue.TIMEOUT) as connection:
            connection.sendall(_AMQP)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


# -- hooks -----------------------------------------------------------------------------------------------


def _declare_actor(original: Any) -> Any:
    def declare_actor(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            first_seen(self)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("dramatiq.Broker.declare_actor", error)
        return original(self, *args, **kwargs)

    return declare_actor


def _enqueue(original: Any) -> Any:
    def enqueue(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = first_seen(self)
            started = perf_counter()
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("dramatiq.Broker.enqueue", error)
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            stat.done(perf_counter() - started, error)
            raise
        stat.done(perf_counter() - started)
        return result

    return enqueue


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    def receive(self: Any, broker: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(self, broker, message, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a hook never fails the message
            failures(f"dramatiq.{function.__name__}", error)

    return receive


class _Recorder:
    """The methods of our middleware."""

    stat: Stat
    #: what runs, and what ran and is not acknowledged yet
    running: dict[str, tuple[AbstractContextManager[None], list[BaseException | None]]]

    #: ids of messages that this worker keeps until they are due, when it sends them again
    delayed: set[str]

    @_guarded
    def before_delay_message(self, broker: Any, message: Any) -> None:
        if len(self.delayed) < MAX_DELAYED:
            self.delayed.add(message.message_id)

    @_guarded
    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.message_id not in self.delayed:
            message.options[SENT] = time() + (delay or 0) / 1000

    @_guarded
    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.message_id in self.delayed:
            self.delayed.discard(message.message_id)
        else:
            self.stat.outcome("sent").value += 1

    @_guarded
    def before_process_message(self, broker: Any, message: Any) -> None:
        waited(self.stat, message.options.get(SENT) or message.message_timestamp / 1000)
        by = f"dramatiq actor {message.actor_name}"
        actor = broker.actors.get(message.actor_name)
        begin(self.stat, message.message_id, by, code_of(getattr(actor, "fn", None)))
        scope = on_behalf_of(by)
        scope.__enter__()
        self.running[message.message_id] = (scope, [None])

    @_guarded
    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        over(self.stat, message.message_id)
        scope, came = self.running[message.message_id]
        scope.__exit__(None, None, None)
        came[0] = exception

    @_guarded
    def after_skip_message(self, broker: Any, message: Any) -> None:
        if message.message_id in self.running:
            over(self.stat, message.message_id)
            self.running.pop(message.message_id)[0].__exit__(None, None, None)
            came_to(self.stat, "skipped")

    @_guarded
    def before_ack(self, broker: Any, message: Any) -> None:
        ran = self.running.pop(message.message_id, None)
        if ran is not None:
            error = ran[1][0]
            came_to(self.stat, "succeeded" if error is None else "retried", error)

    @_guarded
    def before_nack(self, broker: Any, message: Any) -> None:
        ran = self.running.pop(message.message_id, None)
        came_to(self.stat, "failed", ran[1][0] if ran is not None else None)
