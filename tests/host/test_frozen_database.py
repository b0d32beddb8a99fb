"""What if a database freezes: does it stay that database's problem?

PostgreSQL is stopped with SIGSTOP: its port accepts, nothing answers. That is worse than a crash, for no call fails.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import pytest
import sqlalchemy
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import PostgreSQL, free_port
from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter
from uno.core.monitoring.resources import HealthStatus, ResourceMonitor

TOKEN = "a-token-that-the-operator-chose"
NAMES = ("sync-engine", "async-engine", "asyncpg-pool")


def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begun


def get(url: str, timeout: float = 5.0) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def application(server: PostgreSQL) -> tuple[FastAPI, ResourceMonitor]:
    monitor = ResourceMonitor()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = server.url.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, pool_size=3, max_overflow=0)
        async_engine = create_async_engine(url, pool_size=3, max_overflow=0)
        pool = await asyncpg.create_pool(server.url, min_size=1, max_size=3)
        app.state.engine, app.state.async_engine, app.state.pool = engine, async_engine, pool
        for name, resource in zip(NAMES, (engine, async_engine, pool), strict=True):
            monitor.manager.register(resource, id=name)
        yield
        await pool.close()
        await async_engine.dispose()
        engine.dispose()

    app = FastAPI(lifespan=lifespan)
    setup_monitoring(app, monitor, token=TOKEN)
    app.include_router(setup_prometheus_exporter(monitor).router, prefix="/metrics")

    @app.get("/sync-engine")
    def sync() -> int:
        with app.state.engine.connect() as connection:
            return int(connection.execute(sqlalchemy.text("select 1")).scalar_one())

    @app.get("/async-engine")
    async def async_() -> int:
        async with app.state.async_engine.connect() as connection:
            return int((await connection.execute(sqlalchemy.text("select 1"))).scalar_one())

    @app.get("/asyncpg-pool")
    async def pool() -> int:
        return int(await app.state.pool.fetchval("select 1"))

    return app, monitor


@contextmanager
def served(app: Any) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, 15, "the application's start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.mark.server
def test_a_frozen_database(postgresql: PostgreSQL) -> None:
    app, monitor = application(postgresql)
    with served(app) as address:
        for name in NAMES:
            assert get(f"{address}/{name}") == (200, b"1")
        for name in NAMES:
            until(lambda name=name: monitor.health_of(name).status is HealthStatus.UP, 10, name)  # type: ignore[misc]
        until(lambda: get(f"{address}/health")[0] == 200, 10, "health")

        postgresql.freeze()
        answers: dict[str, tuple[int, bytes]] = {}

        def call(name: str) -> None:
            answers[name] = get(f"{address}/{name}", timeout=60)

        callers = [threading.Thread(target=call, args=(name,)) for name in NAMES]
        for caller in callers:
            caller.start()
        frozen_at = time.monotonic()
        times: dict[str, list[float]] = {
            "/metrics": [],
            "/health": [],
            "/monitoring/dashboard/api/snapshot": [],
        }
        seen: dict[str, float] = {}
        while len(seen) < len(NAMES) or len(times["/health"]) < 15:
            assert time.monotonic() - frozen_at < 12, f"not noticed: {set(NAMES) - set(seen)}"
            for path, kept in times.items():
                begun = time.perf_counter()
                status, _ = get(f"{address}{path}")
                kept.append(time.perf_counter() - begun)
                assert status in (200, 503)
            for name in NAMES:
                if monitor.health_of(name).status is not HealthStatus.UP:
                    seen.setdefault(name, time.monotonic() - frozen_at)
            time.sleep(0.05)
        assert {path: t for path, kept in times.items() if (t := statistics.median(kept)) > 0.05} == {}
        assert max(seen.values()) < 8, seen
        until(lambda: get(f"{address}/health")[0] == 503, 10, "health says so")
        checks = json.loads(get(f"{address}/health")[1])["checks"]
        assert {checks[f"{name}:database"][0]["observedValue"] for name in NAMES} <= {"down", "degraded"}
        assert answers == {}, "the application's own calls wait, as they would without uno"

        postgresql.thaw()
        for caller in callers:
            caller.join(20)
        assert answers == dict.fromkeys(NAMES, (200, b"1")), "and go on"

        def recovered() -> bool:
            for (
                name
            ) in NAMES:  # the application goes on using them: an alert of slow queries ends by fast ones
                assert get(f"{address}/{name}") == (200, b"1")
            return all(monitor.health_of(name).status is HealthStatus.UP for name in NAMES)

        until(recovered, 15, "recovery")
        until(lambda: get(f"{address}/health")[0] == 200, 10, "health says so")
        # No connection stays with a ping that hung.
        until(lambda: not any(monitor.holders(name) for name in NAMES), 5, "free connections")
        for name in NAMES:
            until(lambda name=name: monitor.read(name, "connections", {"state": "used"}) == 0, 5, name)  # type: ignore[misc]
    assert not monitor.running
