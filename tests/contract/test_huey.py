"""Are huey's tasks seen as they are, in Redis, SQLite and memory: enqueued, waiting, scheduled, run, failed?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huey import Huey, MemoryHuey, PriorityRedisHuey, RedisHuey, SqliteHuey
from huey.exceptions import RetryTask

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
from tests.servers import wait_until

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE = threading.Event()


def declared(huey: Huey) -> Huey:
    """A huey with tasks."""

    @huey.task(name="work")
    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @huey.task(name="fail")
    def fail() -> None:
        raise LookupError("no such order")

    @huey.task(name="again", retries=1)
    def again() -> None:
        raise LookupError("no such order")

    @huey.task(name="ask_again", context=True)
    def ask_again(task: Any = None) -> None:
        if task.retries == 0 and not GATE.is_set():
            GATE.set()
            raise RetryTask()

    huey.shop = {"work": work, "fail": fail, "again": again, "ask_again": ask_again, "stand": stand_in(huey)}
    return huey


def close(huey: Huey) -> None:
    huey.storage.close()
    if hasattr(huey.storage, "conn") and hasattr(huey.storage, "pool"):
        huey.storage.conn.close()
        huey.storage.pool.disconnect()


def stand_in(huey: Huey) -> Any:
    @huey.task(name="stand")
    def stand() -> None:
        GATE.wait(10)

    return stand


@pytest.fixture(params=["redis", "priorities", "sqlite", "memory"])
def huey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Huey]:
    name = request.node.name
    if request.param in ("redis", "priorities"):
        url = request.getfixturevalue("redis_with_password").url
        huey = (RedisHuey if request.param == "redis" else PriorityRedisHuey)(name, url=url)
    elif request.param == "sqlite":
        huey = SqliteHuey(name, filename=str(tmp_path / "huey.db"))
    else:
        huey = MemoryHuey(name)
    yield declared(huey)
    close(huey)


def run(huey: Huey) -> None:
    """As a worker does it, until nothing waits."""
    while (task := huey.dequeue()) is not None:
        huey.execute(task)


def test_what_an_application_enqueues_and_a_consumer_runs(huey: Huey) -> None:
    GATE.clear()
    with watching(huey) as (_, [watched]):
        began = time.monotonic()
        for _ in range(3):
            huey.shop["work"](0.1)
        huey.shop["fail"]()
        huey.shop["again"]()
        huey.add_schedule(
            huey.shop["work"].s(0).__class__((0,), eta=huey._get_timestamp().replace(year=2100))
        )
        sent = time.monotonic()
        watched.until(5, "task_queue.enqueued", "total")
        watched.until(5, "queue_depth", **WAITING)
        watched.until(1, "queue_depth", **SCHEDULED)
        assert "5 in " in watched.explain()
        wait_until(lambda: (watched.read("oldest_age") or 0) > 0.2, 5, "it grows")
        assert (watched.read("oldest_age") or 0) <= time.monotonic() - began
        start = time.monotonic()
        run(huey)
        took = time.monotonic() - start
        until_counted(watched, "succeeded", 3)
        until_counted(watched, "failed", 2)
        until_counted(watched, "retried", 1)
        watched.until(0, "queue_depth", **WAITING)
        watched.until(0, "queue_depth", **RUNNING)
        watched.until(0, "oldest_age")
        watched.until(6, "task_duration", "count")
        assert 0.3 <= (watched.read("task_duration", "sum") or 0) <= took
        watched.until(6, "task_queue.task.wait_time", "count")
        wait = watched.read("task_queue.task.wait_time", "sum") or 0
        assert 5 * (start - sent) + 0.1 + 0.2 + 0.3 + 0.3 <= wait + 0.005 <= 6 * (took + start - began)
        huey.shop["ask_again"]()
        run(huey)
        until_counted(watched, "retried", 2)
        until_counted(watched, "succeeded", 4)


def test_a_running_task_is_named_and_a_foreign_one_has_no_age() -> None:
    GATE.clear()
    huey = declared(MemoryHuey("standing"))
    with watching(huey) as (monitor, [watched]):
        huey.shop["stand"]()
        thread = threading.Thread(target=run, args=(huey,))
        thread.start()
        watched.until(1, "queue_depth", **RUNNING)
        assert "1 running task held" in watched.explain()
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.caller == "huey task stand"
        GATE.set()
        thread.join(10)
        until_counted(watched, "succeeded", 1)
        message = huey.serialize_task(huey.shop["work"].s(0))
        huey.storage.enqueue(message)  # as another process does
        watched.until(1, "queue_depth", **WAITING)
        watched.until(None, "oldest_age")


def test_a_server_that_goes(redis_with_password: servers.Redis) -> None:
    huey = declared(RedisHuey("going", url=redis_with_password.url))
    huey.storage.flush_all()
    with watching(huey) as (_, [watched]):
        huey.shop["work"](0)
        check_outages(watched, redis_with_password)
    close(huey)


def test_found_and_left_as_it_was(redis_with_password: servers.Redis) -> None:
    names = iter("abcdefgh")

    def make() -> Huey:
        return RedisHuey(next(names), url=redis_with_password.url)

    check_lifetime(make, "huey")
    huey = make()
    with watching(huey), watching(huey):
        assert len(huey._signal.receivers["any"]) == 1
    assert huey._signal.receivers["any"] == []
