"""What does OpenTelemetry's API cost on uno's MeterProvider, beside its SDK?

Both record the same, call by call in turns, in CPU time of this thread. What was recorded is read back from both.
"""

from __future__ import annotations

import asyncio
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks._measure import line
from benchmarks.http_server import _request

ROUNDS = 60
CALLS = 1_000
FIVE = {
    "http.request.method": "GET",
    "url.scheme": "http",
    "network.protocol.version": "1.1",
    "http.route": "/orders/{id}",
    "http.response.status_code": 200,
}


def _cpu(call: Callable[[], object], calls: int) -> float:
    begun = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - begun) / calls


def _sdk() -> tuple[Any, Callable[[str], float]]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()

    def total(name: str) -> float:
        data = reader.get_metrics_data()
        return sum(
            getattr(point, "count", None) or getattr(point, "value", 0)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        )

    return MeterProvider([reader]), total


def _uno() -> tuple[Any, Callable[[str], float]]:
    from uno.core.monitoring.otel import UnoMeterProvider
    from uno.core.monitoring.resources import ResourceMonitor

    monitor = ResourceMonitor(interval=3_600)

    def total(name: str) -> float:
        monitor.tick()
        stat = {"counter": "total", "gauge": "value", "histogram": "count"}
        return sum(
            reading.stats[stat[reading.kind]] or 0.0 for reading in monitor.series() if reading.metric == name
        )

    return UnoMeterProvider(monitor), total


def _calls(provider: Any) -> dict[str, Callable[[], object]]:
    meter = provider.get_meter("bench")
    counter, level = meter.create_counter("counter"), meter.create_up_down_counter("level")
    gauge, wait = meter.create_gauge("gauge"), meter.create_histogram("wait", "s")
    return {
        "counter": lambda: counter.add(1),
        "counter, 5 attributes": lambda: counter.add(1, FIVE),
        "level": lambda: level.add(1),
        "gauge": lambda: gauge.set(1.0),
        "wait": lambda: wait.record(0.1),
        "wait, 5 attributes": lambda: wait.record(0.1, FIVE),
    }


def _api() -> None:
    ours, our_total = _uno()
    theirs, their_total = _sdk()
    our_calls, their_calls = _calls(ours), _calls(theirs)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in our_calls}
    for _ in range(ROUNDS):
        for name in our_calls:
            figures[name].append((_cpu(our_calls[name], CALLS), _cpu(their_calls[name], CALLS)))
    empty = statistics.median(_cpu(lambda: None, CALLS) for _ in range(ROUNDS))
    counts = {name: (our_total(name), their_total(name)) for name in ("counter", "level", "wait")}
    asked = {"counter": 2 * CALLS * ROUNDS, "level": CALLS * ROUNDS, "wait": 2 * CALLS * ROUNDS}
    for name, both in counts.items():
        assert both == (asked[name], asked[name]), f"{name}: {both} of {asked[name]} recorded"
    for name, pairs in figures.items():
        our = statistics.median(a for a, _ in pairs) - empty
        their = statistics.median(b for _, b in pairs) - empty
        line(
            f"OpenTelemetry API on uno: {name}",
            f"{our * 1e9:.0f} ns",
            "",
            f"SDK {their * 1e9:.0f} ns, {their / our:.1f} times (at least 12)",
        )


def _application(provider: Any) -> Any:
    from fastapi import FastAPI

    app = FastAPI(
        telemetry={"meter_provider": provider, "tracing": False, "logs": False, "metrics": bool(provider)}
    )

    async def order(id: int) -> dict[str, int]:
        return {"id": id}

    for n in range(41):
        app.add_api_route(f"/r{n}/{{id}}", order)
    return app


async def _fastapi() -> None:
    ours, our_total = _uno()
    theirs, their_total = _sdk()
    apps = {"without": _application(None), "uno": _application(ours), "sdk": _application(theirs)}
    calls, rounds = 50, 60
    times: dict[str, list[float]] = {name: [] for name in apps}
    for number in range(rounds):
        for place in range(3):
            name = list(apps)[(number + place) % 3]
            begun = time.thread_time()
            for _ in range(calls):
                await _request(apps[name], "/r40/7")
            times[name].append((time.thread_time() - begun) / calls)
    name = "http.server.request.duration"
    assert (our_total(name), their_total(name)) == (calls * rounds,) * 2
    base = statistics.median(times["without"])
    our, their = (
        statistics.median(a - b for a, b in zip(times[which], times["without"], strict=True))
        for which in ("uno", "sdk")
    )
    line(
        "FastAPI's own telemetry, added to a request by uno",
        f"+{our * 1e6:.1f} us",
        "<= 22 us",
        f"on {base * 1e6:.0f} us; SDK +{their * 1e6:.1f} us, {their / our:.1f} times; {calls * rounds:,} requests each",
    )


def run() -> None:
    """The API's calls, then FastAPI's telemetry on both providers."""
    try:
        importlib.import_module("opentelemetry.sdk.metrics")
    except ImportError:
        line("OpenTelemetry API", "-", "", "opentelemetry-sdk is not installed")
        return
    _api()
    asyncio.run(_fastapi())


if __name__ == "__main__":
    run()
