"""Are Celery's tasks seen as they are, with Redis and with RabbitMQ: sent, waiting, run, failed?"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import TestWorkController, start_worker

from tests import servers
from tests.servers import PASSWORD, wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

WAITING, RUNNING = {"state": "waiting"}, {"state": "running"}


@pytest.fixture(params=["redis_with_password", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> servers.Server:
    server: servers.Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def app(broker: servers.Server, request: pytest.FixtureRequest) -> Iterator[Celery]:
    app = Celery("shop", broker=broker.url, set_as_current=False)
    app.conf.task_default_queue = f"orders-{os.getpid()}-{abs(hash(request.node.name))}"
    app.conf.broker_connection_timeout = 2
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_hijack_root_logger = False

    @app.task(name="shop.work", shared=False)
    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @app.task(name="shop.fail", shared=False)
    def fail() -> None:
        raise LookupError("no such order")

    yield app
    app.close()


@pytest.fixture(autouse=True)
def no_wait_for_a_worker_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery waits for ever for a worker whose thread has ended, with the alarm of the test's own time limit off."""

    def ensure_started(self: Any) -> None:
        assert self._on_started.wait(30), "the worker did not start"

    monkeypatch.setattr(TestWorkController, "ensure_started", ensure_started)


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    """A worker started by Celery's testing kit sets the root logger's level, whatever the configuration says."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture
def monitor(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[ResourceMonitor]:
    monkeypatch.setattr("uno.core.monitoring.resource_types.celery.DEPTH_SECONDS", 0.2)
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        monitor.manager.register(app, id="celery")
        yield monitor
        monitor.manager.unregister("celery")
        wait_until(
            lambda: not any(t.name == "uno-celery" for t in threading.enumerate()), 10, "our threads end"
        )


def eventually(
    monitor: ResourceMonitor,
    expected: object,
    metric: str,
    labels: dict[str, str] | None = None,
    stat: str | None = None,
) -> None:
    wait_until(
        lambda: monitor.read("celery", metric, labels, stat=stat) == expected, 15, f"{metric} {expected}"
    )


def work(app: Celery, seconds: float) -> Any:
    return app.tasks["shop.work"].apply_async((seconds,))


def test_sent_waiting_run_and_failed(app: Celery, monitor: ResourceMonitor, broker: servers.Server) -> None:
    for _ in range(3):
        work(app, 0.2)
    app.tasks["shop.fail"].apply_async()
    app.send_task("shop.work", (0,))
    eventually(monitor, 5, "task_queue.enqueued", stat="total")
    eventually(monitor, 5, "queue_depth", WAITING)
    eventually(
        monitor, 5, "messaging.destination.depth", {"messaging.destination.name": app.conf.task_default_queue}
    )
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
        eventually(monitor, 4, "tasks", {"outcome": "succeeded"}, "total")
        eventually(monitor, 1, "tasks", {"outcome": "failed"}, "total")
        eventually(monitor, 1, "errors", stat="total")
        eventually(monitor, 0, "queue_depth", WAITING)
        eventually(monitor, 0, "queue_depth", RUNNING)
        if broker.name == "rabbitmq":
            eventually(monitor, 1, "messaging.consumer.count")
        else:
            assert not monitor.series("celery", "messaging.consumer.count")  # Redis knows no consumers
        eventually(monitor, 5, "processing_time", stat="count")
        ran = monitor.read("celery", "processing_time", stat="sum")
        assert ran == pytest.approx(0.6, abs=0.2)
        eventually(monitor, 5, "task_queue.task.wait_time", stat="count")
        assert (monitor.read("celery", "task_queue.task.wait_time", stat="sum") or 0) > 0.5


def test_a_running_task_is_named(app: Celery, monitor: ResourceMonitor) -> None:
    resource = monitor.manager.get("celery")
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL"):
        work(app, 1.5)
        eventually(monitor, 1, "queue_depth", RUNNING)
        text = resource.driver.explain(app, "task_queue.size")  # type: ignore[union-attr]
        eventually(monitor, 1, "tasks", {"outcome": "succeeded"}, "total")
    assert "1 running task held: tests/contract/test_celery.py" in text
    assert "for celery task shop.work" in text


def test_a_frozen_broker_costs_the_depth_and_nothing_else(
    app: Celery, monitor: ResourceMonitor, broker: servers.Server
) -> None:
    work(app, 0)
    eventually(monitor, 1, "queue_depth", WAITING)
    broker.freeze()
    eventually(monitor, None, "queue_depth", WAITING)
    assert monitor.read("celery", "task_queue.enqueued", stat="total") == 1
    resource = monitor.manager.get("celery")
    assert asyncio.run(resource.ping()) is False
    assert "the broker cannot be read" in resource.driver.explain(app, "task_queue.size")  # type: ignore[union-attr]
    broker.thaw()
    eventually(monitor, 1, "queue_depth", WAITING)
    assert asyncio.run(resource.ping()) is True


def test_a_broker_that_is_restarted_is_found_again(
    app: Celery, monitor: ResourceMonitor, broker: servers.Server
) -> None:
    work(app, 0)
    eventually(monitor, 1, "queue_depth", WAITING)
    resource = monitor.manager.get("celery")
    assert resource.endpoint == f"127.0.0.1:{broker.port}/" + ("0" if broker.name == "redis" else "")
    broker.kill()
    eventually(monitor, None, "queue_depth", WAITING)
    text = resource.driver.explain(app, "task_queue.size")  # type: ignore[union-attr]
    assert "cannot be read" in text
    assert PASSWORD not in f"{text} {resource!r} {monitor.series('celery')}"
    broker.start()
    # What Redis kept in memory is lost, RabbitMQ's durable queue is there again.
    wait_until(lambda: monitor.read("celery", "queue_depth", WAITING) is not None, 15, "a depth again")
