"""What does measuring requests add to one, beside its peers?

Each application is called in this process through ASGI, without a server, block by block in turns: with what is
measured around its router, and without, since two equal applications differ by microseconds. The median of the
differences counts. The control adds nothing. Counts prove that each side recorded every request.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks._measure import line

ROUNDS = 25
CALLS = 300
Count = Callable[[], float]


def _application(routes: int, framework: str) -> Any:
    if framework == "starlette":
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def answer(request: Any) -> Any:
            return JSONResponse({"id": 7})

        return Starlette(routes=[Route(f"/r{n}/{{id}}", answer) for n in range(routes)])
    from fastapi import FastAPI

    app = FastAPI()

    async def order(id: int) -> dict[str, int]:
        return {"id": id}

    for n in range(routes):
        app.add_api_route(f"/r{n}/{{id}}", order)
    return app


def _nothing(app: Any) -> Count:
    return lambda: 0


def _uno(**options: Any) -> Callable[[Any], Count]:
    def add(app: Any) -> Count:
        from uno.core.monitoring.integration import setup_monitoring
        from uno.core.monitoring.resources import ResourceMonitor

        monitor = ResourceMonitor(interval=3_600)
        setup_monitoring(app, monitor, **options)

        def count() -> float:
            monitor.tick()  # what was appended is folded here, as each tick does it
            found = monitor.store.select("http-server", "http.server.request.duration")
            return sum(monitor.store.value(series, "count") or 0.0 for series in found)

        return count

    return add


def _floor(app: Any) -> Count:
    class PassThrough:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, lambda message: send(message))

    app.add_middleware(PassThrough)
    return lambda: 0


def _alone(app: Any) -> Count:
    from uno.core.monitoring.http_server import HTTPServerMiddleware
    from uno.core.monitoring.resources import ResourceMonitor

    monitor = ResourceMonitor(interval=3_600)
    app.add_middleware(HTTPServerMiddleware, monitor)

    def count() -> float:
        monitor.tick()
        found = monitor.store.select("http-server", "http.server.request.duration")
        return sum(monitor.store.value(series, "count") or 0.0 for series in found)

    return count


def _instrumentator(app: Any) -> Count:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    registry = CollectorRegistry()
    Instrumentator(registry=registry).instrument(app)
    return lambda: _prometheus(registry, "http_request_duration_seconds")


def _exporter(app: Any) -> Count:
    from prometheus_client import REGISTRY
    from starlette_exporter import PrometheusMiddleware

    prefix = f"bench{id(app)}"
    app.add_middleware(PrometheusMiddleware, prefix=prefix, app_name="bench", group_paths=True)
    return lambda: _prometheus(REGISTRY, f"{prefix}_request_duration_seconds")


def _prometheus(registry: Any, name: str) -> float:
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{name}_count"
    )


def _reader() -> tuple[Any, Count]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()

    def count() -> float:
        data = reader.get_metrics_data()
        return sum(
            point.count
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name in ("http.server.duration", "http.server.request.duration")
            for point in metric.data.data_points
        )

    return MeterProvider([reader]), count


def _otel_asgi(app: Any) -> Count:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.trace import NoOpTracerProvider

    provider, count = _reader()
    app.add_middleware(OpenTelemetryMiddleware, meter_provider=provider, tracer_provider=NoOpTracerProvider())
    return count


def _otel_fastapi(app: Any) -> Count:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.trace import NoOpTracerProvider

    provider, count = _reader()
    FastAPIInstrumentor.instrument_app(app, meter_provider=provider, tracer_provider=NoOpTracerProvider())
    return count


SUBJECTS: dict[str, tuple[str, Callable[[Any], Count]]] = {
    "control": ("nothing, once more", _nothing),
    "floor": ("a middleware that passes messages on", _floor),
    "uno": ("uno: setup_monitoring", _uno()),
    "off": ("  of this without the measuring of requests", _uno(http_metrics=False)),
    "alone": ("uno: HTTPServerMiddleware alone", _alone),
    "instrumentator": ("prometheus-fastapi-instrumentator", _instrumentator),
    "exporter": ("starlette-exporter", _exporter),
    "otel-asgi": ("opentelemetry-instrumentation-asgi, metrics only", _otel_asgi),
    "otel-fastapi": ("opentelemetry-instrumentation-fastapi, metrics only", _otel_fastapi),
}


async def _request(app: Callable[..., Awaitable[None]], path: str) -> int:
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"shop"), (b"user-agent", b"benchmark")],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 80),
            "state": {},
        },
        receive,
        send,
    )
    return status


async def _block(app: Any, path: str) -> float:
    """CPU seconds of a request: nothing here waits, and others use this machine too."""
    begun = time.thread_time()
    for _ in range(CALLS):
        await _request(app, path)
    return (time.thread_time() - begun) / CALLS


async def _compare(framework: str, routes: int, names: list[str]) -> dict[str, tuple[float, float]]:
    """By name: (seconds of a request, seconds added)."""
    path = f"/r{routes - 1}/7"
    apps: dict[str, tuple[Any, Any, Any, Count]] = {}
    for name in names:
        app = _application(routes, framework)
        bare = app.build_middleware_stack()
        try:
            count = SUBJECTS[name][1](app)
        except ImportError as missing:
            line(SUBJECTS[name][0], "-", "", f"is not installed ({missing.name})")
            continue
        apps[name] = app, bare, app.build_middleware_stack(), count
    turn = list(apps)
    shuffle = random.Random(1).shuffle
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in apps}
    for number in range(1 + ROUNDS):
        shuffle(turn)
        for name in turn:
            app, bare, whole, _ = apps[name]
            times = {}
            for stack in (bare, whole) if number % 2 else (whole, bare):
                app.middleware_stack = stack
                assert await _request(app, path) == 200
                times[id(stack)] = await _block(app, path)
            if number:  # the first one warms
                found[name].append((times[id(bare)], times[id(whole)] - times[id(bare)]))
    asked = (1 + CALLS) * (1 + ROUNDS)
    for name, (_, _, _, count) in apps.items():
        if name not in ("control", "floor", "off"):
            assert count() == asked, f"{name} recorded {count()} of {asked} requests"
    bases = [base for pairs in found.values() for base, _ in pairs]
    return {
        "bare": (statistics.median(bases), 0.0),
        **{name: (0.0, statistics.median(added for _, added in pairs)) for name, pairs in found.items()},
    }


def run() -> None:
    """FastAPI with one and with 41 routes; Starlette with 41."""
    for framework, routes in (("fastapi", 1), ("fastapi", 41), ("starlette", 41)):
        names = [name for name in SUBJECTS if framework == "fastapi" or name != "otel-fastapi"]
        found = asyncio.run(_compare(framework, routes, names))
        base = found.pop("bare")[0]
        line(
            f"{framework}, {routes} routes: a request", f"{base * 1e6:.1f} us", "", f"{CALLS * ROUNDS:,} each"
        )
        ours = found["uno"][1]
        for name, (_, added) in found.items():
            limit = "<= 6 us" if name == "uno" and routes == 41 else ""
            least = {"instrumentator": 20, "exporter": 50, "otel-asgi": 50, "otel-fastapi": 50}.get(name)
            ratio = f"{added / ours:.0f} times uno's (at least {least})" if least else ""
            line(f"  {SUBJECTS[name][0]}", f"+{added * 1e6:.1f} us", limit, ratio)


if __name__ == "__main__":
    run()
