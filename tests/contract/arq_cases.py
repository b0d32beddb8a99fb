"""What holds for arq's jobs; ``test_arq.py`` runs these cases beside the redis-py that arq needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import arq
import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Retry, Worker, func

from tests import servers
from tests.contract.jobs import RUNNING, SCHEDULED, WAITING, check_lifetime, check_outages, watching
from tests.contract.kit import Watched, hooked, soon

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE: dict[str, asyncio.Event] = {}


async def work(ctx: Any, seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def fail(ctx: Any) -> None:
    raise LookupError("no such order")


async def again(ctx: Any) -> str:
    if ctx["job_try"] == 1:
        raise Retry()
    return "at last"


async def stand(ctx: Any) -> None:
    await GATE["open"].wait()


async def close(redis: ArqRedis) -> None:
    await getattr(redis, "aclose", redis.close)()
    await redis.connection_pool.disconnect()


def settings(server: servers.Redis) -> RedisSettings:
    return RedisSettings.from_dsn(server.url)


@pytest.fixture
async def redis(redis_with_password: servers.Redis) -> AsyncIterator[ArqRedis]:
    redis = await arq.create_pool(settings(redis_with_password))
    await redis.flushall()
    yield redis
    await close(redis)


def worker_of(redis: ArqRedis) -> Worker:
    functions = [func(f, max_tries=3) for f in (work, fail, again, stand)]
    return Worker(functions, redis_pool=redis, burst=True, max_jobs=1, poll_delay=0.02, handle_signals=False)


async def counted(watched: Watched, outcome: str, expected: float) -> None:
    await watched.soon(expected, "tasks", "total", outcome=outcome)


async def test_what_an_application_enqueues_and_a_worker_runs(redis: ArqRedis) -> None:
    with watching(redis) as (_, [watched]):
        began = time.monotonic()
        for _ in range(3):
            await redis.enqueue_job("work", 0.1)
        await redis.enqueue_job("fail", _job_id="once")
        assert await redis.enqueue_job("fail", _job_id="once") is None
        sent = time.monotonic()
        await watched.soon(4, "task_queue.enqueued", "total")
        await watched.soon(4, "queue_depth", **WAITING)
        await watched.soon(0, "task_queue.worker.count")
        assert "4 in arq:queue" in watched.explain()
        await soon(lambda: (watched.read("oldest_age") or 0) > 0.2, "it grows")
        assert (watched.read("oldest_age") or 0) <= time.monotonic() - began + 0.1
        start = time.monotonic()
        await worker_of(redis).main()
        took = time.monotonic() - start
        await counted(watched, "succeeded", 3)
        await counted(watched, "failed", 1)
        await watched.soon(0, "queue_depth", **WAITING)
        await watched.soon(0, "queue_depth", **RUNNING)
        await watched.soon(0, "oldest_age")
        await watched.soon(None, "task_queue.worker.count")  # one has reported: at least one
        await watched.soon(4, "task_duration", "count")
        assert 0.3 <= (watched.read("task_duration", "sum") or 0) <= took
        await watched.soon(4, "task_queue.task.wait_time", "count")
        wait = watched.read("task_queue.task.wait_time", "sum") or 0
        assert 4 * (start - sent) + 0.1 + 0.2 <= wait + 0.02 <= 4 * (took + start - began) + 0.02
        await redis.enqueue_job("again")
        await worker_of(redis).main()
        await counted(watched, "retried", 1)
        await counted(watched, "succeeded", 4)
        await redis.enqueue_job("work", 0, _defer_by=3600, _queue_name="later")
        await watched.soon(1, "queue_depth", **SCHEDULED)
        assert watched.resource.endpoint is not None
        assert watched.resource.endpoint.startswith("127.0.0.1:")


async def test_a_running_job_is_named(redis: ArqRedis) -> None:
    GATE["open"] = asyncio.Event()
    with watching(redis) as (monitor, [watched]):
        await redis.enqueue_job("stand")
        worker = asyncio.create_task(worker_of(redis).main())
        await watched.soon(1, "queue_depth", **RUNNING)
        await soon(lambda: "1 running task held: tests/contract/arq_cases.py" in watched.explain(), "named")
        await watched.soon(0, "queue_depth", **WAITING)  # arq itself leaves it in its queue
        (holder,) = monitor.holders(watched.resource.id)
        assert holder.caller == "arq job stand"
        GATE["open"].set()
        await worker
        await counted(watched, "succeeded", 1)


async def test_its_connections_are_a_resource_of_their_own(redis: ArqRedis) -> None:
    with watching() as (monitor, _):
        monitor.discover_resources("task_queue")
        monitor.discover_resources("redis")
        await redis.enqueue_job("work", 0)

        def kinds() -> set[str]:
            mine = (redis, redis.connection_pool)
            return {r.type for r in monitor.manager if any(r.target is obj for obj in mine)}

        await soon(lambda: kinds() == {"task_queue", "redis"}, f"both, not {kinds()}")


async def test_results_are_the_same_without_uno(redis: ArqRedis) -> None:
    async def results() -> list[object]:
        jobs = [await redis.enqueue_job("work", 0.01), await redis.enqueue_job("again")]
        await worker_of(redis).main()
        return [await job.result(timeout=5) for job in jobs if job is not None]

    before = await results()
    assert hooked("arq") == []
    with watching(redis):
        assert await results() == before


def test_a_server_that_goes(redis_with_password: servers.Redis) -> None:
    async def enqueue() -> ArqRedis:
        redis = await arq.create_pool(settings(redis_with_password))
        await redis.flushall()
        return redis

    async def once(redis: ArqRedis) -> None:
        await redis.enqueue_job("work", 0)
        await close(redis)

    with asyncio.Runner() as runner:
        redis = runner.run(enqueue())
        with watching(redis) as (_, [watched]):
            runner.run(once(redis))
            check_outages(watched, redis_with_password)


def test_found_and_left_as_it_was(redis_with_password: servers.Redis) -> None:
    check_lifetime(lambda: ArqRedis(host="127.0.0.1", port=redis_with_password.port), "arq")
