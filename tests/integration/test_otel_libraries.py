"""Do libraries that speak OpenTelemetry record into the monitor, the real ones against real servers?"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.integration.test_setup_monitoring import get, served
from tests.servers import Redis
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.otel import UnoMeterProvider, View
from uno.core.monitoring.resources import ResourceMonitor

DURATION = "http.server.request.duration"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(interval=3_600) as monitor:
        yield monitor


@pytest.fixture
def provider(monitor: ResourceMonitor) -> UnoMeterProvider:
    return UnoMeterProvider(monitor)


def recorded(monitor: ResourceMonitor, resource: str, metric: str) -> list[tuple[dict[str, str], Any]]:
    monitor.tick()
    return [
        (reading.labels, reading.stats["count" if reading.kind == "histogram" else "value"])
        for reading in monitor.series(resource)
        if reading.metric == metric
    ]


def test_fastapis_own_telemetry(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    app = FastAPI(telemetry={"meter_provider": provider, "tracing": False, "logs": False})
    setup_monitoring(app, monitor, enable_dashboard=False)

    @app.get("/orders/{id}")
    def order(id: int) -> int:
        if id == 5:
            raise LookupError
        return id

    inner = FastAPI()
    inner.add_api_route("/items/{item}", lambda item: item)
    app.mount("/sub", inner)
    with served(app) as address:
        for n in (1, 2, 3, 5):
            get(f"{address}/orders/{n}")
        get(f"{address}/nothing/7")
        get(f"{address}/sub/items/7")
        found = recorded(monitor, "fastapi", DURATION)
        active = recorded(monitor, "fastapi", "http.server.active_requests")
        ours = recorded(monitor, "http-server", DURATION)
        graph = monitor.generate_dependency_graph()
        orders = [edge for edge in graph.edges if edge.target == "caller GET /orders/{id}"]
        (edge,) = orders
        assert (edge.source, edge.calls, edge.errors) == ("fastapi", 4, 1)
        assert {
            (
                labels.get("http.route"),
                labels.get("http.response.status_code"),
                labels.get("error.type"),
                count,
            )
            for labels, count in found
        } == {
            ("/orders/{id}", "200", None, 3),
            ("/orders/{id}", "500", "LookupError", 1),
            (None, "404", None, 1),
            ("/sub/items/{item}", "200", None, 1),
        }
        assert {value for _, value in active} == {0}
        assert ours == [], "never both"
        (series, *_) = monitor.store.select("fastapi", DURATION)
        assert series.cell.bounds[:2] == (0.005, 0.01)  # type: ignore[union-attr]


@pytest.mark.parametrize("why", ["elsewhere", "metrics off", "not set up"])
def test_ours_records_where_fastapis_telemetry_does_not(
    monitor: ResourceMonitor, provider: UnoMeterProvider, why: str
) -> None:
    other = UnoMeterProvider(ResourceMonitor(interval=3_600))
    telemetry: Any = {
        "elsewhere": {"meter_provider": other, "tracing": False, "logs": False},
        "metrics off": {"meter_provider": provider, "metrics": False},
        "not set up": {},
    }[why]
    app = FastAPI(telemetry=telemetry)
    setup_monitoring(app, monitor, enable_dashboard=False)
    app.add_api_route("/orders/{id}", lambda id: id)
    with TestClient(app) as client:
        client.get("/orders/1")
        assert [count for _, count in recorded(monitor, "http-server", DURATION)] == [1]
        assert "fastapi" not in monitor.manager


def test_what_fastapis_telemetry_excludes_is_not_recorded(
    monitor: ResourceMonitor, provider: UnoMeterProvider
) -> None:
    app = FastAPI(
        telemetry={
            "meter_provider": provider,
            "tracing": False,
            "logs": False,
            "exclude": lambda scope: scope["path"] == "/quiet",
        }
    )
    setup_monitoring(app, monitor, enable_dashboard=False)
    app.add_api_route("/quiet", lambda: 1)
    app.add_api_route("/loud", lambda: 1)
    with TestClient(app) as client:
        client.get("/quiet")
        client.get("/loud")
        assert [labels["http.route"] for labels, _ in recorded(monitor, "fastapi", DURATION)] == ["/loud"]
        assert recorded(monitor, "http-server", DURATION) == []


def test_httpx(monitor: ResourceMonitor, provider: UnoMeterProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.httpx")
    from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability

    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)
    app = FastAPI()
    app.add_api_route("/x", lambda: 1)
    instrumentor = instrumentation.HTTPXClientInstrumentor()
    instrumentor.instrument(meter_provider=provider)
    try:
        with served(app) as address:
            with httpx.Client() as client:
                client.get(f"{address}/x")
                client.get(f"{address}/none")

            async def main() -> None:
                async with httpx.AsyncClient() as client:
                    await client.get(f"{address}/x")

            asyncio.run(main())
    finally:
        instrumentor.uninstrument()
    found = recorded(monitor, "opentelemetry.instrumentation.httpx", "http.client.request.duration")
    by_status = {labels["http.response.status_code"]: count for labels, count in found}
    assert by_status == {"200": 2, "404": 1}
    assert {labels["server.address"] for labels, _ in found} == {"127.0.0.1"}


def test_sqlalchemy(monitor: ResourceMonitor, tmp_path: Path) -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
    provider = UnoMeterProvider(monitor, views=[View("db.client.*", attribute_keys=["state"])])
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/a.sqlite", poolclass=sqlalchemy.QueuePool, pool_size=3
    )
    instrumentor = instrumentation.SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, meter_provider=provider, skip_dep_check=True)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("select 1"))
            found = recorded(
                monitor, "opentelemetry.instrumentation.sqlalchemy", "db.client.connections.usage"
            )
            assert ({"state": "used"}, 1) in found
    finally:
        instrumentor.uninstrument()
        engine.dispose()


@pytest.mark.server
def test_redis(redis_server: Redis) -> None:
    """redis-py's own metrics, which go to the global provider; the contributed instrumentation makes spans only."""
    pytest.importorskip("redis.observability")
    program = f"""
from opentelemetry import metrics
from uno.core.monitoring.otel import UnoMeterProvider
from uno.core.monitoring.resources import ResourceMonitor

monitor = ResourceMonitor()
metrics.set_meter_provider(UnoMeterProvider(monitor))

import redis
from redis.observability import MetricGroup, OTelConfig, get_observability_instance

get_observability_instance().init(OTelConfig(metric_groups=list(MetricGroup)))
client = redis.Redis.from_url({redis_server.url!r})
for n in range(5):
    client.set("a", n)
assert client.get("a") == b"4"
monitor.tick()
found = [r for r in monitor.series() if r.metric == "db.client.operation.duration"]
(resource,) = {{r.resource for r in found}}
assert monitor.manager.get(resource).type == "opentelemetry"
by_command = {{r.labels["db.operation.name"]: r.stats["count"] for r in found}}
assert by_command["SET"] == 5, by_command
assert by_command["GET"] == 1, by_command
"""
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", program], check=True, timeout=30)


def test_contribs_asgi_middleware(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.asgi")
    app = FastAPI()
    app.add_api_route("/orders/{id}", lambda id: id)
    wrapped = instrumentation.OpenTelemetryMiddleware(app, meter_provider=provider)
    with TestClient(wrapped) as client:
        for n in range(3):
            client.get(f"/orders/{n}")
    names = {series.metric.name for series in monitor.store.select("opentelemetry.instrumentation.asgi")}
    assert {"http.server.duration", "http.server.active_requests"} <= names or {DURATION} <= names
    assert sum(
        count
        for name in names
        if "duration" in name
        for _, count in recorded(monitor, "opentelemetry.instrumentation.asgi", name)
    ) in (3, 6)
