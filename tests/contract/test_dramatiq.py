"""Are dramatiq's messages seen as they are, with Redis and with RabbitMQ: sent, waiting, delayed, run, failed?"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from tests import servers
from tests.contract.jobs import (
    RUNNING,
    SCHEDULED,
    WAITING,
    check_lifetime,
    check_outages,
    until_counted,
    watching,
)
from tests.contract.kit import Watched
from tests.servers import wait_until

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE = threading.Event()


@pytest.fixture(params=["redis_with_password", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    server: servers.Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def broker(server: servers.Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    broker = declared(
        RedisBroker if server.name == "redis" else RabbitmqBroker, server.url, request.node.name
    )
    yield broker
    broker.close()
    if server.name == "redis":
        broker.client.close()


def declared(make: Callable[..., Any], url: str, test: str) -> Any:
    """A broker with actors; the queue is the test's own."""
    broker = make(url=url)
    queue = f"orders-{os.getpid()}-{abs(hash(test))}"

    @dramatiq.actor(broker=broker, queue_name=queue)
    def work(seconds: float) -> None:
        time.sleep(seconds)

    @dramatiq.actor(broker=broker, queue_name=queue, max_retries=0)
    def fail() -> None:
        raise LookupError("no such order")

    @dramatiq.actor(broker=broker, queue_name=queue, max_retries=1, min_backoff=10, max_backoff=20)
    def again() -> None:
        raise LookupError("no such order")

    @dramatiq.actor(broker=broker, queue_name=queue)
    def stand() -> None:
        GATE.wait(10)

    return broker


class Working:
    """A worker with one thread, while the block lasts."""

    def __init__(self, broker: Any) -> None:
        self.worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)

    def __enter__(self) -> None:
        self.worker.start()

    def __exit__(self, *_: object) -> None:
        self.worker.stop(timeout=5000)


def send(broker: Any, name: str, *args: Any) -> None:
    broker.get_actor(name).send(*args)


def test_what_an_application_sends_and_a_worker_runs(broker: Any, server: servers.Server) -> None:
    (queue,) = broker.get_declared_queues()
    with watching(broker) as (_, [watched]):
        began = time.monotonic()
        for _ in range(3):
            send(broker, "work", 0.1)
        sent = time.monotonic()
        send(broker, "fail")
        broker.get_actor("work").send_with_options(args=(0.0,), delay=600_000)
        watched.until(5, "task_queue.enqueued", "total")
        watched.until(4, "queue_depth", **WAITING)
        watched.until(4, "messaging.destination.depth", **{"messaging.destination.name": queue})
        watched.until(1, "queue_depth", **SCHEDULED)
        assert f"4 in {queue}" in watched.explain()
        if server.name == "redis":
            wait_until(lambda: (watched.read("oldest_age") or 0) > 0.2, 5, "it grows")
            assert (watched.read("oldest_age") or 0) <= time.monotonic() - began
        else:
            assert watched.read("oldest_age") is None, "RabbitMQ does not tell"
            watched.until(0, "messaging.consumer.count")
        start = time.monotonic()
        with Working(broker):
            until_counted(watched, "succeeded", 3)
            until_counted(watched, "failed", 1)
            took = time.monotonic() - start
            watched.until(0, "queue_depth", **WAITING)
            watched.until(0, "queue_depth", **RUNNING)
            if server.name == "rabbitmq":
                watched.until(1, "messaging.consumer.count")
        watched.until(4, "task_duration", "count")
        assert 0.3 <= (watched.read("task_duration", "sum") or 0) <= took
        watched.until(4, "task_queue.task.wait_time", "count")
        wait = watched.read("task_queue.task.wait_time", "sum") or 0
        assert 3 * (start - sent) + 0.1 + 0.2 <= wait <= 4 * (took + start - began)
        watched.until(1, "errors", "total")


def test_retries_and_delays(broker: Any) -> None:
    with watching(broker) as (_, [watched]), Working(broker):
        send(broker, "again")
        until_counted(watched, "retried", 1)
        until_counted(watched, "failed", 1)
        watched.until(2, "task_queue.enqueued", "total")  # the message and its second try
        watched.until(2, "task_queue.task.wait_time", "count")
        assert (watched.read("task_queue.task.wait_time", "sum") or 0) < 3


def test_a_running_message_is_named(broker: Any) -> None:
    GATE.clear()
    with watching(broker) as (monitor, [watched]), Working(broker):
        send(broker, "stand")
        watched.until(1, "queue_depth", **RUNNING)
        wait_until(lambda: "1 running task held: tests/contract/test_dramatiq.py" in watched.explain(), 5, "")
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.caller == "dramatiq actor stand"
        GATE.set()
        until_counted(watched, "succeeded", 1)


def test_a_server_that_goes(broker: Any, server: servers.Server) -> None:
    with watching(broker) as (_, [watched]):
        send(broker, "work", 0)
        # A RabbitMQ takes long to start again, and one that is gone is the same to us as one that does not answer.
        check_outages(watched, server, kill=server.name == "redis")


def test_found_and_left_as_it_was(redis_with_password: servers.Redis) -> None:
    names = iter(range(9))
    brokers = []

    def make() -> Any:
        broker = declared(RedisBroker, redis_with_password.url, str(next(names)))
        brokers.append([type(m).__name__ for m in broker.middleware])
        return broker

    check_lifetime(make, "dramatiq")
    broker = make()
    before = list(broker.middleware)
    with watching(broker):
        assert len(broker.middleware) == len(before) + 1
    assert broker.middleware == before


def test_the_broker_for_tests_and_no_password() -> None:
    broker = declared(lambda url: StubBroker(), "", "stub")
    with watching(broker) as (_, [watched]):
        send(broker, "work", 0)
        watched.until(1, "queue_depth", **WAITING)
        assert isinstance(watched, Watched)
        assert watched.resource.endpoint is None
    broker.close()
