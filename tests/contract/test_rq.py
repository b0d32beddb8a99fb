"""Are RQ's queues seen as they are: enqueued, waiting, scheduled, run, failed, retried?"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from rq import Queue, Retry, SimpleWorker, Worker
from rq.timeouts import TimerDeathPenalty

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
from tests.contract.kit import hooked
from tests.servers import wait_until

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE = threading.Event()


def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise LookupError("no such order")


def stand() -> None:
    GATE.wait(10)


def again() -> Retry:
    return Retry(max=1)


class InThread(SimpleWorker):
    """A worker for tests: in a thread, without signals."""

    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self) -> None:
        pass


@pytest.fixture
def client(redis_with_password: servers.Redis) -> Iterator[Any]:
    client = redis.Redis.from_url(redis_with_password.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def queue(client: Any, request: pytest.FixtureRequest) -> Queue:
    return Queue(f"orders-{request.node.name}", connection=client)


def test_what_an_application_enqueues_and_a_worker_runs(queue: Queue, client: Any) -> None:
    with watching(queue) as (_, [watched]):
        began = time.monotonic()
        for _ in range(3):
            queue.enqueue(work, 0.1)
        queue.enqueue(fail)
        queue.enqueue(again)
        queue.enqueue_in(timedelta(hours=1), work, 0)
        watched.until(5, "task_queue.enqueued", "total")
        watched.until(5, "queue_depth", **WAITING)
        watched.until(1, "queue_depth", **SCHEDULED)
        watched.until(0, "task_queue.worker.count")
        assert "5 in orders-" in watched.explain()
        assert "no worker takes tasks" in watched.explain()
        wait_until(lambda: (watched.read("oldest_age") or 0) > 0.2, 5, "it grows")
        assert (watched.read("oldest_age") or 0) <= time.monotonic() - began
        start = time.monotonic()
        InThread([Queue(queue.name, connection=client)], connection=client).work(burst=True)
        took = time.monotonic() - start
        until_counted(watched, "succeeded", 3)
        until_counted(watched, "failed", 2)  # fail, and again when it has no tries left
        until_counted(watched, "retried", 1)
        watched.until(0, "queue_depth", **WAITING)
        watched.until(0, "queue_depth", **RUNNING)
        watched.until(0, "oldest_age")
        watched.until(6, "task_duration", "count")
        ran = watched.read("task_duration", "sum") or 0
        assert 0.3 <= ran <= took
        watched.until(6, "task_queue.task.wait_time", "count")
        # The n-th of three waits for those before it, and all wait until the worker starts.
        wait = watched.read("task_queue.task.wait_time", "sum") or 0
        assert 5 * (start - began) + 0.1 + 0.2 + 0.3 + 0.3 <= wait + 0.15 <= 6 * (time.monotonic() - began)


def test_a_running_job_is_named(queue: Queue, client: Any) -> None:
    GATE.clear()
    with watching(queue) as (monitor, [watched]):
        queue.enqueue(stand)
        worker = InThread([queue], connection=client)
        thread = threading.Thread(target=worker.work, kwargs={"burst": True})
        thread.start()
        watched.until(1, "queue_depth", **RUNNING)
        watched.until(1, "task_queue.worker.count")
        wait_until(lambda: "1 running task held" in watched.explain(), 5, "it runs")
        assert "tests/contract/test_rq.py" in watched.explain()
        assert "for rq job" in watched.explain()
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.site.startswith("tests/contract/test_rq.py:")
        GATE.set()
        thread.join(10)
        until_counted(watched, "succeeded", 1)


def test_a_worker_that_forks_is_seen_from_its_parent(queue: Queue, client: Any) -> None:
    with watching(queue) as (_, [watched]):
        queue.enqueue(work, 0.2)
        queue.enqueue(fail)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Worker([Queue(queue.name, connection=client)], connection=client).work(burst=True)
        until_counted(watched, "succeeded", 1)
        until_counted(watched, "failed", 1)
        watched.until(2, "task_duration", "count")
        assert 0.2 <= (watched.read("task_duration", "sum") or 0) < 5
        watched.until(2, "task_queue.task.wait_time", "count")


def test_queues_of_one_name_are_one_resource(client: Any) -> None:
    queues = [Queue("several", connection=client) for _ in range(3)]
    with watching() as (monitor, _):
        monitor.discover_resources("task_queue")
        mine = [r for r in monitor.manager if any(r.target is queue for queue in queues)]
        assert len(mine) == 1
        assert mine[0].endpoint is not None
        assert mine[0].endpoint.startswith("127.0.0.1:")
        queues[2].enqueue(work, 0)
        wait_until(
            lambda: monitor.read(mine[0].id, "task_queue.enqueued", stat="total") == 1, 5, "it is counted"
        )


def test_a_server_that_goes(queue: Queue, redis_with_password: servers.Redis) -> None:
    with watching(queue) as (_, [watched]):
        queue.enqueue(work, 0)
        check_outages(watched, redis_with_password)


def test_found_and_left_as_it_was(client: Any) -> None:
    names = iter("abcdefgh")

    def make() -> Queue:
        return Queue(next(names), connection=client)

    check_lifetime(make, "rq")


def test_results_are_the_same_without_uno(queue: Queue, client: Any) -> None:
    def results() -> list[object]:
        jobs = [queue.enqueue(work, 0.0), queue.enqueue(fail), queue.enqueue(work, 0.01)]
        InThread([queue], connection=client).work(burst=True)
        return [(job.get_status(refresh=True), job.return_value()) for job in jobs]

    before = results()
    assert hooked("rq") == []
    with watching(queue):
        assert results() == before
