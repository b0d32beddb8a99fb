"""Does a secret appear in anything that uno shows, writes, logs or raises?

Every place that may hold one gets a canary of its own, so that a hit says where it came from; then all features are
used and all that came out is searched, also for the canary's encoded forms.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import celery
import httpx
import pytest
import redis
import redis.asyncio
import sqlalchemy
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import PASSWORD, PostgreSQL, RabbitMQ, Redis, free_port
from uno.core.monitoring.health import HealthRegistry
from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter
from uno.core.monitoring.resources import (
    AnomalyDetector,
    Counter,
    Gauge,
    ResourceMonitor,
    ResourceTypeMonitor,
    Threshold,
)

pytestmark = pytest.mark.server


class Canaries:
    """Makes secrets and remembers what each is for."""

    def __init__(self) -> None:
        self.known = {PASSWORD: "the servers' password"}
        self._numbers = itertools.count(1)

    def __call__(self, place: str) -> str:
        secret = f"Kn4ry{next(self._numbers):03d}x9Zq"
        self.known[secret] = place
        return secret

    def found(self, sinks: dict[str, str]) -> list[str]:
        hits = []
        for secret, place in self.known.items():
            forms = {secret, secret.lower(), urllib.parse.quote(secret), secret.encode().hex()}
            forms |= {base64.b64encode(b"x" * n + secret.encode())[4:-4].decode() for n in range(3)}
            hits += [
                f"{place} in {sink}" for sink, text in sinks.items() if any(form in text for form in forms)
            ]
        return hits


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


@contextmanager
def served(app: Any) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def test_the_search_finds_what_is_there() -> None:
    canary = Canaries()
    secret = canary("url")
    for text in (
        f"a:{secret}@host",
        base64.b64encode(f"user:{secret}".encode()).decode(),
        secret.encode().hex(),
    ):
        assert canary.found({"page": text}) == ["url in page"]
    assert canary.found({"page": "nothing"}) == []


def test_no_secret_appears_anywhere(
    postgresql: PostgreSQL,
    redis_with_password: Redis,
    rabbitmq: RabbitMQ,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    canary = Canaries()
    closed = free_port()
    token = canary("dashboard token")
    registry = HealthRegistry()
    monitor = ResourceMonitor(interval=0.2)
    register = monitor.manager.register
    add_unnamed: list[Any] = []

    class Custom:
        """Whatever it is asked, it tells a secret."""

        password = canary("attribute of a custom resource")

        def __repr__(self) -> str:
            return f"Custom({canary_of_repr})"

        __str__ = __repr__

        def get_statistics(self) -> dict[str, float]:
            raise RuntimeError(canary_of_statistics)

        async def ping(self) -> bool:
            raise ConnectionError(canary_of_ping)

    canary_of_repr, canary_of_statistics, canary_of_ping = map(canary, ("repr", "get_statistics", "ping"))

    class Kind(ResourceTypeMonitor):
        resource_type = "custom_kind"
        secret = canary("type monitor")

        def setup_metrics(self) -> None:
            self.add_metric("depth")

        async def collect_metrics(self, resource: Any) -> None:
            self.update_metric("depth", 1)
            raise ValueError(self.secret)

    def failing(secret: str) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            raise LookupError(secret)

        return fail

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pg = postgresql.url.removeprefix("postgresql://")
        wrong = f"user:{canary('refused database URL')}@127.0.0.1:{closed}/shop"
        engine = sqlalchemy.create_engine(f"postgresql+psycopg://{pg}?application_name={canary('URL query')}")
        refused = sqlalchemy.create_engine(f"postgresql+psycopg://{wrong}")
        async_engine = create_async_engine(f"postgresql+asyncpg://{pg}")
        pool = await asyncpg.create_pool(postgresql.url, min_size=1, max_size=2)
        cache = redis.Redis.from_url(redis_with_password.url)
        refused_cache = redis.Redis.from_url(f"redis://name:{canary('redis URL')}@127.0.0.1:{closed}/0")
        async_cache = redis.asyncio.from_url(redis_with_password.url)
        client = httpx.Client(
            base_url=f"http://user:{canary('httpx userinfo')}@127.0.0.1:{closed}/v1?key={canary('httpx query')}",
            headers={"authorization": f"Bearer {canary('httpx header')}"},
        )
        async_client = httpx.AsyncClient(
            auth=("user", canary("httpx auth")), params={"token": canary("httpx params")}
        )
        broker = await aio_pika.connect_robust(rabbitmq.url)
        tasks = celery.Celery(
            broker=f"amqp://user:{canary('celery broker')}@127.0.0.1:{closed}//",
            backend=f"redis://:{canary('celery backend')}@127.0.0.1:{closed}/1",
        )
        workers = ThreadPoolExecutor(1)
        named = {
            "db": engine, "refused-db": refused, "async-db": async_engine, "pg": pool, "cache": cache,
            "refused-cache": refused_cache, "async-cache": async_cache, "http": client, "async-http": async_client,
            "broker": broker, "tasks": tasks, "workers": workers, "custom": Custom(),
        }  # fmt: skip
        for id, obj in named.items():
            register(obj, id=id, depends_on=["db"] if id != "db" else ())
        register(Custom(), id="kind", type="custom_kind")
        register(None, id="reader", read=failing(canary("read=")))
        add_unnamed.extend([refused.url, sqlalchemy.create_engine(f"postgresql+psycopg://{wrong}")])
        app.state.named = named
        monitor.discover_all_resources()
        yield
        await asyncio.to_thread(client.close)
        await async_client.aclose()
        await broker.close()
        await async_cache.aclose()
        await pool.close()
        await async_engine.dispose()
        for other in (engine, refused, add_unnamed[1]):
            other.dispose()
        cache.close()
        refused_cache.close()
        workers.shutdown()

    app = FastAPI(lifespan=lifespan)
    setup_monitoring(app, monitor, token=token, health_registry=registry)
    app.include_router(setup_prometheus_exporter(monitor).router, prefix="/metrics")
    registry.register("own", failing(canary("own health check")), interval=0.2)
    monitor.register_type_monitor(Kind())
    monitor.set_anomaly_detector(AnomalyDetector())
    monitor.on_alert(failing(canary("alert callback")))
    literal, argument = canary("SQL literal"), canary("argument of a task")

    @app.get("/use/{id}")
    async def use(id: str) -> str:
        named = app.state.named
        with suppress(Exception), named["db"].connect() as connection:
            connection.execute(sqlalchemy.text(f"select '{literal}'"))
            connection.execute(sqlalchemy.text(f"select no_such_column_{literal}"))
        for call in (
            lambda: named["refused-db"].connect(),
            lambda: named["cache"].set(literal, argument),
            lambda: named["cache"].execute_command("NOSUCH", argument),
            lambda: named["refused-cache"].get(argument),
            lambda: named["http"].get(f"/login?password={argument}"),
            lambda: named["workers"].submit(failing(argument), argument).result(),
            lambda: named["workers"].submit(time.sleep, 0).result(),
        ):
            with suppress(Exception):
                await asyncio.to_thread(call)
        with suppress(Exception):
            async with named["async-db"].connect() as connection:
                await connection.execute(sqlalchemy.text(f"select '{literal}', pg_sleep(0.6)"))
        for awaitable in (
            named["pg"].fetchval("select $1::text", argument),
            named["pg"].fetchval(f"select nothing_{argument}"),
            named["async-cache"].set(literal, argument),
            named["async-http"].get(f"http://user:{argument}@127.0.0.1:{closed}/?token={argument}"),
        ):
            with suppress(Exception):
                await awaitable
        with suppress(Exception):
            channel = await named["broker"].channel()
            await channel.default_exchange.publish(aio_pika.Message(argument.encode()), "queue")
            await channel.close()
        return "used"

    def get(path: str, accept: str = "*/*") -> str:
        request = urllib.request.Request(
            address + path, headers={"authorization": f"Bearer {token}", "accept": accept}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return f"{answer.headers}\n{answer.read().decode()}"
        except urllib.error.HTTPError as error:
            with error:
                return f"{error.headers}\n{error.read().decode()}"

    def stream() -> str:
        request = urllib.request.Request(
            f"{address}/monitoring/dashboard/api/stream", headers={"authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
            read = b""
            deadline = time.monotonic() + 10
            while read.count(b"\n\n") < 4 and time.monotonic() < deadline:
                read += answer.read1(65_536)
            return read.decode()

    sinks: dict[str, str] = {}
    caplog.set_level(logging.DEBUG, "uno")
    with served(app) as address:
        for n in range(3):
            assert "used" in get(f"/use/{n}?password={argument}")
        ids = [r.id for r in monitor.manager]
        assert set(app.state.named) <= set(ids)
        monitor.add_metric("custom", Gauge("depth")).set(1)
        monitor.add_metric("custom", Counter("calls"), read=failing(canary("add_metric read=")))
        seq = monitor.store.frame.seq if monitor.store.frame else 0
        until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > seq + 3)
        for reading in monitor.series():  # every metric alerts, so that every cause is told
            if reading.resource in monitor.manager:
                monitor.set_threshold(reading.resource, reading.metric, Threshold(warning=-1))
        get("/use/again")
        until(
            lambda: {"db", "cache", "http", "workers", "pg"} <= {a.resource for a in monitor.alerts.active()}
        )
        until(lambda: monitor.health_of("custom").reason)
        until(lambda: any(a.cause for a in monitor.alerts.active()))

        page = "/monitoring/dashboard"
        for path in (
            "/metrics", "/health", f"{page}/", f"{page}/api/snapshot", f"{page}/api/graph", f"{page}/api/alerts",
            f"{page}/api/report", f"{page}/api/report.csv", f"{page}/api/session", "/openapi.json",
        ):  # fmt: skip
            sinks[path] = get(path)
        for id in ids:
            sinks[f"page of {id}"] = get(f"{page}/api/resource?id={urllib.parse.quote(id)}")
        sinks["stream"] = stream()
        graph = monitor.generate_dependency_graph()
        graph.export_dot(str(tmp_path / "map.dot"))
        graph.export_json(str(tmp_path / "map.json"))
        report = monitor.generate_report()
        report.export_csv(str(tmp_path / "report.csv"))
        report.export_json(str(tmp_path / "report.json"))
        for file in tmp_path.iterdir():
            sinks[file.name] = file.read_text()
        sinks |= {
            "svg": graph.to_svg(),
            "report": str(report) + report._repr_html_() + repr(report),
            "alerts": json.dumps([a.to_dict() for a in monitor.alerts.active()])
            + repr(monitor.alerts.active()),
            "objects": repr(
                [monitor, monitor.manager, list(monitor.manager), registry, graph, monitor.series()]
            ),
            "resources": repr([(r.name, r.labels, r.endpoint, r.how) for r in monitor.manager]),
            "health": repr([monitor.health_of(id) for id in ids]) + repr(registry.report()),
            "holders": repr([monitor.holders(id) for id in ids]),
        }
        for attempt in (
            lambda: monitor.manager.get("nope"),
            lambda: register(app.state.named["db"], id="again"),
            lambda: monitor.read("db", "nope"),
            lambda: monitor.add_metric("db", Custom()),  # type: ignore[type-var]
            lambda: register(Custom(), labels={"a": Custom()}),  # type: ignore[dict-item]
            lambda: register(Custom(), depends_on=[Custom()]),  # type: ignore[list-item]
            lambda: monitor.add_metric("db", Counter("c", labels=["a"])).labels(Custom()),
            lambda: Gauge("g").set(Custom()),  # type: ignore[arg-type]
            lambda: Threshold(warning=Custom()),  # type: ignore[arg-type]
            lambda: ResourceMonitor(Custom()),  # type: ignore[arg-type]
            lambda: setup_monitoring(Custom()),
            lambda: setup_monitoring(FastAPI(), monitor, token=token, allow_anonymous=True),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011
                attempt()
            sinks[f"error {type(caught.value).__name__}: {str(caught.value)[:40]}"] = repr(
                caught.value
            ) + str(caught.value)
    sinks["logs"] = "\n".join(
        f"{record.getMessage()} {record.exc_text or ''} {record.exc_info or ''}"
        for record in caplog.records
        if record.name.startswith("uno")
    )
    sinks["terminal"] = "".join(capfd.readouterr())
    assert len(sinks["/metrics"]) > 5_000
    assert len(sinks["stream"]) > 500
    assert "RuntimeError" in sinks["logs"]
    assert any("held" in text or "slow" in text for text in sinks.values())
    assert canary.found(sinks) == []
