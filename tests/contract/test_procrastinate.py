"""Are procrastinate's jobs seen as they are: deferred, waiting, scheduled, run, failed, retried?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.schema import SchemaManager
from procrastinate.testing import InMemoryConnector

from tests import servers
from tests.contract.jobs import RUNNING, SCHEDULED, WAITING, check_lifetime, check_outages, watching
from tests.contract.kit import Watched, soon
from tests.servers import PASSWORD

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GATE: dict[str, asyncio.Event] = {}


def declared(connector: Any) -> procrastinate.App:
    """An app with tasks."""
    app = procrastinate.App(connector=connector)

    @app.task(name="work")
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @app.task(name="compute")
    def compute(seconds: float) -> None:
        time.sleep(seconds)

    @app.task(name="fail")
    async def fail() -> None:
        raise LookupError("no such order")

    @app.task(name="again", retry=1)
    async def again() -> None:
        raise LookupError("no such order")

    @app.task(name="stand")
    async def stand() -> None:
        await GATE["open"].wait()

    return app


@pytest.fixture
def database(postgresql: servers.PostgreSQL) -> Iterator[str]:
    """Its address, with procrastinate's tables in a schema of their own, without jobs."""
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS jobs CASCADE")
        connection.execute("CREATE SCHEMA jobs")
        connection.execute("SET search_path TO jobs, public")
        connection.execute(SchemaManager.get_schema().encode())
    yield postgresql.url
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA jobs CASCADE")


def connector(url: str) -> Any:
    return procrastinate.PsycopgConnector(
        conninfo=url, min_size=1, max_size=4, kwargs={"options": "-c search_path=jobs,public"}
    )


async def defer(app: procrastinate.App, name: str, **kwargs: Any) -> None:
    await app.tasks[name].defer_async(**kwargs)


@contextlib.asynccontextmanager
async def working(app: procrastinate.App) -> AsyncIterator[None]:
    """A worker that runs one job at a time, while the block lasts."""
    worker = asyncio.create_task(
        app.run_worker_async(
            concurrency=1, install_signal_handlers=False, fetch_job_polling_interval=0.2, listen_notify=False
        )
    )
    try:
        yield
    finally:
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


async def counted(watched: Watched, outcome: str, expected: float) -> None:
    await watched.soon(expected, "tasks", "total", outcome=outcome)


async def test_what_an_application_defers_and_a_worker_runs(database: str) -> None:
    app = declared(connector(database))
    with watching(app) as (monitor, [watched]):
        async with app.open_async():
            began = time.monotonic()
            await defer(app, "work", seconds=0.1)
            await app.tasks["work"].batch_defer_async({"seconds": 0.1})
            await defer(app, "compute", seconds=0.1)
            await defer(app, "fail")
            await app.tasks["work"].configure(schedule_in={"hours": 1}).defer_async(seconds=0)
            sent = time.monotonic()
            await watched.soon(5, "task_queue.enqueued", "total")
            await watched.soon(4, "queue_depth", **WAITING)
            await watched.soon(1, "queue_depth", **SCHEDULED)
            await watched.soon(0, "task_queue.worker.count")
            assert "4 in default" in watched.explain()
            await soon(lambda: (watched.read("oldest_age") or 0) > 0.2, "it grows")
            assert (watched.read("oldest_age") or 0) <= time.monotonic() - began
            start = time.monotonic()
            async with working(app):
                await counted(watched, "succeeded", 3)
                await counted(watched, "failed", 1)
                took = time.monotonic() - start
                await watched.soon(1, "task_queue.worker.count")
                await watched.soon(0, "queue_depth", **WAITING)
                await watched.soon(0, "queue_depth", **RUNNING)
                await watched.soon(0, "oldest_age")
                await watched.soon(4, "task_duration", "count")
                assert 0.3 <= (watched.read("task_duration", "sum") or 0) <= took
                await watched.soon(4, "task_queue.task.wait_time", "count")
                wait = watched.read("task_queue.task.wait_time", "sum") or 0
                assert 4 * (start - sent) + 0.1 + 0.2 + 0.3 <= wait + 0.01 <= 4 * (took + start - began)
                await defer(app, "again")
                await counted(watched, "retried", 1)
                await counted(watched, "failed", 2)
                await watched.soon(6, "task_queue.task.wait_time", "count")
        assert watched.resource.endpoint is not None
        assert watched.resource.endpoint.startswith("127.0.0.1:")
        assert PASSWORD not in f"{watched.resource!r}{monitor.generate_report()}"


async def test_a_running_job_is_named(database: str) -> None:
    GATE["open"] = asyncio.Event()
    app = declared(connector(database))
    with watching(app) as (monitor, [watched]):
        async with app.open_async(), working(app):
            await defer(app, "stand")
            await watched.soon(1, "queue_depth", **RUNNING)
            assert "1 running task held: tests/contract/test_procrastinate.py" in watched.explain()
            (holder,) = monitor.holders(watched.resource.id)
            assert holder.caller == "procrastinate job stand"
            GATE["open"].set()
            await counted(watched, "succeeded", 1)


def test_a_server_that_goes(database: str, postgresql: servers.PostgreSQL) -> None:
    app = declared(
        procrastinate.SyncPsycopgConnector(conninfo=database, kwargs={"options": "-c search_path=jobs"})
    )
    with watching(app) as (_, [watched]):
        with app.open():
            app.tasks["work"].defer(seconds=0)
        check_outages(watched, postgresql)


def test_found_and_left_as_it_was(database: str) -> None:
    def make() -> procrastinate.App:
        app = declared(connector(database))
        procrastinate.App(
            connector=InMemoryConnector()
        )  # procrastinate itself keeps the one that was made last
        return app

    check_lifetime(make, "procrastinate")


async def test_other_connectors_and_threads() -> None:
    app = declared(InMemoryConnector())
    with watching(app) as (_, [watched]):
        async with app.open_async():
            await defer(app, "work", seconds=0)
            await watched.soon(1, "task_queue.enqueued", "total")
            assert watched.read("queue_depth", **WAITING) is None, "unknown"
