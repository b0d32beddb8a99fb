"""Are APScheduler's jobs seen as they are: scheduled, due, running, executed, failed, missed, skipped?"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

from tests import servers
from tests.contract.jobs import RUNNING, SCHEDULED, WAITING, check_lifetime, until_counted, watching
from tests.contract.kit import everything_said, hooked, soon
from tests.servers import PASSWORD, wait_until

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE = threading.Event()


def work(seconds: float) -> None:
    time.sleep(seconds)


def fail() -> None:
    raise LookupError("no such order")


def stand() -> None:
    GATE.wait(10)


def now(seconds: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)
    yield scheduler
    GATE.set()
    if scheduler.running:
        scheduler.shutdown()


def test_what_is_scheduled_and_run(scheduler: BackgroundScheduler) -> None:
    with watching(scheduler) as (_, [watched]):
        scheduler.add_job(work, "date", [0], run_date=now(3600))
        watched.until(1, "queue_depth", **SCHEDULED)
        assert "the scheduler does not run" in watched.explain()
        due = now(0.2)
        for _ in range(3):
            scheduler.add_job(work, "date", [0.1], run_date=due)
        scheduler.add_job(fail, "date", run_date=due)
        scheduler.add_job(work, "date", [0], run_date=now(-60), misfire_grace_time=1)
        scheduler.start()
        until_counted(watched, "succeeded", 3)
        until_counted(watched, "failed", 1)
        until_counted(watched, "missed", 1)
        watched.until(0, "queue_depth", **WAITING)
        watched.until(0, "queue_depth", **RUNNING)
        watched.until(1, "queue_depth", **SCHEDULED)
        watched.until(1, "errors", "total")
        assert 0.3 <= (watched.read("task_duration", "sum") or 0) < 3
        # One thread: the second and third of three wait for those before; the one that was missed, for a minute.
        wait = (watched.read("task_queue.task.wait_time", "sum") or 0) - 60
        assert 0.1 + 0.2 <= wait + 0.01 < 10


def test_what_waits_and_what_stands(scheduler: BackgroundScheduler) -> None:
    GATE.clear()
    with watching(scheduler) as (monitor, [watched]):
        scheduler.start()
        scheduler.add_job(stand, "date", run_date=now(), name="stand")
        watched.until(1, "queue_depth", **RUNNING)
        scheduler.add_job(work, "date", [0], run_date=now())
        watched.until(1, "queue_depth", **WAITING)
        wait_until(lambda: (watched.read("oldest_age") or 0) > 0.2, 5, "it grows")
        assert "1 running task held: tests/contract/test_apscheduler.py" in watched.explain()
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.caller == "apscheduler job stand"
        GATE.set()
        until_counted(watched, "succeeded", 2)
        watched.until(0, "oldest_age")
        GATE.clear()
        scheduler.add_job(stand, "interval", seconds=0.05, max_instances=1, id="often")
        wait_until(lambda: (watched.read("tasks", "total", outcome="skipped") or 0) >= 1, 10, "it is skipped")
        scheduler.remove_job("often")
        scheduler.pause()
        assert "paused" in watched.explain()


async def test_on_an_event_loop() -> None:
    scheduler = AsyncIOScheduler(timezone=UTC)

    async def stay() -> None:
        await asyncio.sleep(0.1)

    with watching(scheduler) as (_, [watched]):
        scheduler.start()
        scheduler.add_job(stay, "date", run_date=now())
        scheduler.add_job(work, "date", [0.1], run_date=now())
        await watched.soon(2, "tasks", "total", outcome="succeeded")
        await soon(lambda: watched.read("task_duration", "count") == 2, "two runs")
        assert 0.2 <= (watched.read("task_duration", "sum") or 0) < 2
        scheduler.shutdown()


def test_jobs_in_redis_and_in_processes(redis_with_password: servers.Redis) -> None:
    store = RedisJobStore(host="127.0.0.1", port=redis_with_password.port, password=PASSWORD)
    store.redis.flushall()
    scheduler = BackgroundScheduler(
        jobstores={"default": store}, executors={"default": ProcessPoolExecutor(1)}, timezone=UTC
    )
    with watching(scheduler) as (monitor, [watched]):
        scheduler.start()
        scheduler.add_job(work, "date", [0], run_date=now(3600))
        watched.until(1, "queue_depth", **SCHEDULED)
        scheduler.add_job(time.sleep, "date", [0.01], run_date=now())
        # On a busy machine the process takes long to start.
        wait_until(lambda: watched.read("tasks", "total", outcome="succeeded") == 1, 40, "it has run")
        watched.until(0, "queue_depth", **RUNNING)
        watched.until(0, "task_duration", "count")
        redis_with_password.freeze()
        watched.until(None, "queue_depth", **SCHEDULED)
        assert asyncio.run(watched.resource.ping()) is False
        redis_with_password.thaw()
        watched.until(1, "queue_depth", **SCHEDULED)
        assert asyncio.run(watched.resource.ping()) is True
        assert PASSWORD not in everything_said(monitor)
        scheduler.shutdown()


def test_found_and_left_as_it_was() -> None:
    from apscheduler.executors import asyncio as on_loop
    from apscheduler.executors import base, pool

    check_lifetime(lambda: BackgroundScheduler(timezone=UTC), "apscheduler")
    scheduler: Any = BackgroundScheduler(timezone=UTC)
    with watching(scheduler), watching(scheduler):
        assert pool.run_job is not base.run_job
        assert on_loop.run_coroutine_job is not base.run_coroutine_job
        assert len(scheduler._listeners) == 1
    assert pool.run_job is on_loop.run_job is base.run_job
    assert on_loop.run_coroutine_job is base.run_coroutine_job
    assert scheduler._listeners == []
    assert hooked("apscheduler") == []
