"""Are taskiq's tasks seen as they are, with a Redis list and a stream: sent, waiting, run, failed, retried?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends
from taskiq.receiver import Receiver
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from tests import servers
from tests.contract.jobs import RUNNING, WAITING, check_lifetime, check_outages, watching
from tests.contract.kit import Watched, soon

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE: dict[str, asyncio.Event] = {}


def declared(broker: Any) -> Any:
    """A broker with tasks that tries again."""
    broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=2))

    @broker.task(task_name="work")
    async def work(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @broker.task(task_name="compute")
    def compute(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @broker.task(task_name="fail")
    async def fail() -> None:
        raise LookupError("no such order")

    @broker.task(task_name="again", retry_on_error=True)
    async def again() -> None:
        raise LookupError("no such order")

    @broker.task(task_name="requeue")
    async def requeue(context: Context = TaskiqDepends()) -> None:  # noqa: B008
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()

    @broker.task(task_name="stand")
    async def stand() -> None:
        await GATE["open"].wait()

    return broker


@pytest.fixture(params=[ListQueueBroker, RedisStreamBroker])
def broker(request: pytest.FixtureRequest, redis_with_password: servers.Redis) -> Any:
    queue = f"orders-{os.getpid()}-{abs(hash(request.node.name))}"
    return declared(request.param(redis_with_password.url, queue_name=queue))


async def send(broker: Any, name: str, *args: Any) -> Any:
    return await broker.find_task(name).kiq(*args)


@contextlib.asynccontextmanager
async def working(broker: Any) -> AsyncIterator[None]:
    """A worker that runs one task at a time, while the block lasts."""
    end = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=1, run_startup=False)
    task = asyncio.create_task(receiver.listen(end))
    try:
        yield
    finally:
        end.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def counted(watched: Watched, outcome: str, expected: float) -> None:
    await watched.soon(expected, "tasks", "total", outcome=outcome)


async def test_what_an_application_sends_and_a_worker_runs(broker: Any) -> None:
    await broker.startup()
    with watching(broker) as (_, [watched]):
        began = time.monotonic()
        for _ in range(2):
            await send(broker, "work", 0.1)
        await send(broker, "compute", 0.1)
        await send(broker, "fail")
        sent = time.monotonic()
        await watched.soon(4, "task_queue.enqueued", "total")
        await watched.soon(4, "queue_depth", **WAITING)
        assert "4 in orders-" in watched.explain()
        await soon(lambda: (watched.read("oldest_age") or 0) > 0.2, "it grows")
        assert (watched.read("oldest_age") or 0) <= time.monotonic() - began + 0.1
        start = time.monotonic()
        async with working(broker):
            await counted(watched, "succeeded", 3)
            await counted(watched, "failed", 1)
            took = time.monotonic() - start
            await watched.soon(0, "queue_depth", **WAITING)
            await watched.soon(0, "queue_depth", **RUNNING)
            await watched.soon(0, "oldest_age")
            await watched.soon(4, "task_duration", "count")
            assert 0.3 <= (watched.read("task_duration", "sum") or 0) <= took
            await watched.soon(4, "task_queue.task.wait_time", "count")
            wait = watched.read("task_queue.task.wait_time", "sum") or 0
            assert 4 * (start - sent) + 0.1 + 0.2 + 0.3 <= wait + 0.01 <= 4 * (took + start - began)
            await send(broker, "again")
            await counted(watched, "retried", 1)
            await counted(watched, "failed", 2)
            await send(broker, "requeue")
            await counted(watched, "retried", 2)
            await counted(watched, "succeeded", 4)
    await broker.shutdown()


async def test_a_running_task_is_named_and_results_are_the_same() -> None:
    GATE["open"] = asyncio.Event()
    broker = declared(InMemoryBroker())

    async def result() -> tuple[Any, ...]:
        found = await (await send(broker, "work", 0.01)).wait_result()
        return found.return_value, found.is_err, found.labels

    before = await result()
    with watching(broker) as (monitor, [watched]):
        assert await result() == before, "also its labels"
        await send(broker, "stand")
        await watched.soon(1, "queue_depth", **RUNNING)
        assert "1 running task held: tests/contract/test_taskiq.py" in watched.explain()
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.caller == "taskiq task stand"
        assert watched.read("queue_depth", **WAITING) is None, "unknown"
        GATE["open"].set()
        await counted(watched, "succeeded", 2)
    await broker.shutdown()


def test_a_server_that_goes(redis_with_password: servers.Redis) -> None:
    broker = declared(ListQueueBroker(redis_with_password.url, queue_name="going"))
    with watching(broker) as (_, [watched]):

        async def once() -> None:
            await send(broker, "work", 0)
            await broker.shutdown()

        asyncio.run(once())
        check_outages(watched, redis_with_password)


def test_found_and_left_as_it_was(redis_with_password: servers.Redis) -> None:
    names = iter("abcdefgh")

    def make() -> Any:
        return ListQueueBroker(redis_with_password.url, queue_name=next(names))

    check_lifetime(make, "taskiq")
    broker = declared(make())
    before = list(broker.middlewares)
    with watching(broker), watching(broker):
        assert len(broker.middlewares) == len(before) + 1
    assert broker.middlewares == before
