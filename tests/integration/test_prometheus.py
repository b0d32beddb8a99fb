"""Does Prometheus read what uno measured, sample for sample?"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.servers import Prometheus, free_port
from uno.core.monitoring.integration import setup_monitoring, setup_prometheus_exporter
from uno.core.monitoring.resources import (
    Counter,
    Gauge,
    Histogram,
    MetricError,
    ResourceMonitor,
    ResourceTypeMonitor,
    Threshold,
)
from uno.core.resources import ResourceManager


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(interval=0.05)
    monitor.manager.register(object(), id="shop")
    yield monitor
    monitor.stop()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(monitor: ResourceMonitor) -> Samples:
    """All samples of the application's own metrics, as another parser reads them."""
    text = setup_prometheus_exporter(monitor, prometheus_client=False).render().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def one(samples: Samples, name: str, /, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted({"resource": "shop", **labels}.items()))))


# -- where it is served --------------------------------------------------------------------------------


def test_as_a_router(monitor: ResourceMonitor) -> None:
    exporter = setup_prometheus_exporter(monitor)
    monitor.add_metric("shop", Gauge("in_stock")).set(12)
    app = FastAPI()
    app.include_router(exporter.router, prefix="/metrics", tags=["monitoring"])
    app.include_router(exporter.router, prefix="/internal/metrics")
    with TestClient(app) as client:
        for path in ("/metrics", "/internal/metrics"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert 'in_stock{resource="shop"} 12.0\n' in answer.text
        head = client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert client.post("/metrics").status_code == 405
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]


def test_as_an_application(monitor: ResourceMonitor) -> None:
    monitor.add_metric("shop", Gauge("in_stock")).set(12)
    app = Starlette(routes=[Mount("/metrics", setup_prometheus_exporter(monitor).app)])
    with TestClient(app) as client:
        assert 'in_stock{resource="shop"} 12.0\n' in client.get("/metrics").text
        head = client.head("/metrics/")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        assert client.post("/metrics/").status_code == 405


def test_compressed_when_that_is_wanted(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("in_stock", labels=["article"]))
    for n in range(50):
        gauge.labels(f"article {n}").set(n)
    exporter = setup_prometheus_exporter(monitor)
    plain, headers = exporter.respond("")
    packed, packed_headers = exporter.respond("br, GZip")
    assert "content-encoding" not in headers
    assert headers["vary"] == packed_headers["vary"] == "accept, accept-encoding"
    assert packed_headers["content-encoding"] == "gzip"
    assert len(packed) < len(plain) / 4
    assert b"article 49" in gzip.decompress(packed)
    assert "content-encoding" not in exporter.respond("gzip;q=0, identity")[1]


def test_misuse(monitor: ResourceMonitor) -> None:
    with pytest.raises(TypeError, match="takes a ResourceMonitor, not ResourceManager"):
        setup_prometheus_exporter(monitor.manager)  # type: ignore[arg-type]


def test_an_empty_monitor_says_nothing_wrong() -> None:
    monitor = ResourceMonitor(ResourceManager())
    assert scrape(monitor) == {}
    monitor.tick()
    assert {name for name, _ in scrape(monitor)} >= {"uno_monitor_series"}


# -- what is said --------------------------------------------------------------------------------------

LABELS = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ["\n", '"', "\\", "\\n", '\\"', "a\r\nb", "\ud800", "é😀", "{}", "a,b=c", "", " ", "\x00", "\u2028"]
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.dictionaries(st.tuples(LABELS, LABELS), st.floats(), max_size=6),
    help=LABELS,
    observed=st.lists(st.floats(-1e9, 1e9), max_size=20),
)
def test_whatever_the_text_another_parser_reads_the_same(
    values: dict[tuple[str, str], float], help: str, observed: list[float]
) -> None:
    monitor = ResourceMonitor(ResourceManager())
    monitor.manager.register(object(), id="shop")
    gauge = monitor.add_metric("shop", Gauge("g", help, ["first", "second"]))
    histogram = monitor.add_metric("shop", Histogram("h", help, ["first"]))
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
        for number in observed:
            histogram.labels(labels[0]).observe(number)
    samples = scrape(monitor)

    def wire(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    seen = 0
    expected = {
        reading.labels["first"] + "\0" + reading.labels["second"] for reading in monitor.series("shop", "g")
    }
    assert len(expected) == len(values)
    wired = [tuple(map(wire, labels)) for labels in values]
    for labels, value in values.items():
        if wired.count(tuple(map(wire, labels))) > 1:  # two that only lone surrogates tell apart
            continue
        got = one(samples, "g", first=wire(labels[0]), second=wire(labels[1]))
        assert got == (None if math.isnan(value) else value), "a gap has no line"
        seen += got is not None
    for reading in monitor.series("shop", "h"):
        if [wire(r.labels["first"]) for r in monitor.series("shop", "h")].count(
            wire(reading.labels["first"])
        ) > 1:
            continue
        labels_of = {"first": wire(reading.labels["first"])}
        assert one(samples, "h_count", **labels_of) == reading.stats["count"]
        assert one(samples, "h_sum", **labels_of) == pytest.approx(reading.stats["sum"], rel=1e-9, abs=1e-6)


def test_counters_and_histograms_hold_their_invariants(monitor: ResourceMonitor) -> None:
    counter = monitor.add_metric("shop", Counter("orders_total"))
    histogram = monitor.add_metric("shop", Histogram("wait", "Waiting", unit="s", buckets=[0.1, 1, 10]))
    stop = threading.Event()

    def record() -> None:
        while not stop.is_set():
            counter.inc()
            for value in (0.05, 0.1, 0.5, 5.0, 50.0):
                histogram.observe(value)

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    before: Samples = {}
    monitor.start()
    for _ in range(30):
        samples = scrape(monitor)
        buckets = [one(samples, "wait_bucket", le=le) for le in ("0.1", "1.0", "10.0", "+Inf")]
        if buckets[0] is not None:
            assert buckets == sorted(buckets), "cumulative"  # type: ignore[type-var]
            assert buckets[-1] == one(samples, "wait_count"), "all of one moment"
        for key, value in samples.items():
            if key[0] in ("orders_total", "wait_count", "wait_sum", "wait_bucket"):
                assert value >= before.get(key, 0)
        before = samples
        counted = one(samples, "orders_total")
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert counted is not None
    assert counted > 0


def test_numbers_of_other_kinds(monitor: ResourceMonitor) -> None:
    monitor.add_metric("shop", Counter("c_total")).inc(np.float64(2))
    monitor.add_metric("shop", Gauge("g")).inc(np.int64(3))  # type: ignore[arg-type]
    monitor.add_metric("shop", Gauge("t")).set(True)
    monitor.add_metric("shop", Histogram("h")).observe(np.float32(0.5))  # type: ignore[arg-type]
    monitor.add_metric("shop", Gauge("up")).set(math.inf)
    monitor.add_metric("shop", Gauge("down")).set(-math.inf)
    samples = scrape(monitor)
    assert [one(samples, name) for name in ("c_total", "g", "t", "h_sum", "up", "down")] == [
        2, 3, 1, 0.5, math.inf, -math.inf,
    ]  # fmt: skip


def test_a_gap_has_no_line(monitor: ResourceMonitor) -> None:
    answers: list[dict[str, Any] | None] = [{"a": 1, "b": 2}, {"a": 1}, None, {"a": None, "b": 2}]
    monitor.manager.register(None, id="pump", read=lambda: answers[0])
    seen = []
    while answers:
        monitor.tick()
        monitor.collection.jobs["pump", "read"].not_before = 0.0  # do not wait for the back-off
        samples = scrape(monitor)
        seen.append([one(samples, name, resource="pump") for name in ("a", "b")])
        answers.pop(0)
    assert seen == [[1, 2], [1, None], [None, None], [None, 2]]


def test_names_that_prometheus_does_not_have(monitor: ResourceMonitor) -> None:
    odd = {
        "pool size": 1,
        "pool-size": 2,
        "5xx": 3,
        "": 4,
        "größe": 5,
        "a\nb": 6,
        "uno_resource_info": 7,
        "ok": 8,
    }
    monitor.manager.register(None, id="odd", read=lambda: odd)
    monitor.tick()
    samples = scrape(monitor)
    found = {name: value for (name, labels), value in samples.items() if dict(labels)["resource"] == "odd"}
    assert found["ok"] == 8
    assert found["_5xx"] == 3
    assert found["pool_size"] in (1, 2), "one of the two; another reader could not tell them apart"
    assert found["gr__e"] == 5
    assert found["a_b"] == 6
    assert found["uno_resource_info"] == 1, "ours"


def test_labels_that_prometheus_cannot_tell_apart(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("g", labels=["http.method", "http_method"]))
    gauge.labels("GET", "POST").set(1)
    assert one(scrape(monitor), "g", http_method="GET;POST") == 1


def test_a_clash_of_kinds_or_names_leaves_one_out_and_says_so(
    monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    class Kind(ResourceTypeMonitor):
        def __init__(self, type: str, name: str, kind: Any) -> None:
            super().__init__(None, type)
            self.name = name
            self.add_metric(name, metric_type=kind)

        async def collect_metrics(self, resource: Any) -> None:
            self.update_metric(self.name, 1)

    for type, name, kind in (("a", "depth", "gauge"), ("b", "depth", "counter"), ("c", "depth_count", "gauge"),
                             ("d", "wait_count", "gauge"), ("e", "wait", "histogram")):  # fmt: skip
        monitor.manager.register(object(), id=type, type=type)
        monitor.register_type_monitor(Kind(type, name, kind))
    with caplog.at_level(logging.WARNING, "uno.exporters"):
        exporter = setup_prometheus_exporter(monitor)
        for _ in range(3):
            monitor.tick()
            exporter.render()
    said = [r.getMessage().split(" is left out")[0] for r in caplog.records if r.name.startswith("uno.exp")]
    samples = scrape(monitor)
    assert one(samples, "depth", resource="a") == 1
    assert one(samples, "depth", resource="b") is None
    assert one(samples, "depth_count", resource="c") == 1
    assert (one(samples, "wait_count", resource="d") is None) != (
        one(samples, "wait_count", resource="e") is None
    )
    assert said == [
        "depth of b",
        "wait_count of d" if one(samples, "wait_count", resource="d") is None else "wait of e",
    ], "once each"
    gauge = monitor.add_metric("shop", Gauge("size"))
    gauge.set(1)
    with pytest.raises(MetricError, match="one name, one kind"):
        monitor.add_metric("a", Counter("size"))


def test_resources_their_health_and_alerts(monitor: ResourceMonitor) -> None:
    gauge = monitor.add_metric("shop", Gauge("level", labels=["side"]))
    monitor.set_threshold("shop", "level", Threshold(warning=1, critical=2))
    gauge.labels("left").set(5)
    monitor.tick()
    samples = scrape(monitor)
    assert one(samples, "uno_resource_info", type="custom", name="shop", endpoint="") == 1
    assert one(samples, "uno_resource_health", uno_resource_health="unknown") == 1
    assert one(samples, "uno_resource_health", uno_resource_health="up") == 0
    alerts = [dict(labels) for (name, labels), _ in samples.items() if name == "uno_alert"]
    assert {
        "label_side": "left",
        "level": "critical",
        "state": "firing",
        "source": "threshold",
    }.items() <= alerts[0].items()
    gauge.labels("left").set(0)
    monitor.tick()
    assert not [name for name, _ in scrape(monitor) if name == "uno_alert"]


def test_a_resource_that_leaves_takes_its_lines_along(monitor: ResourceMonitor) -> None:
    for n in range(50):
        for k in range(40):  # so many that their places are used again
            monitor.manager.register(None, id=f"r{k}", read=partial(dict.fromkeys, ("m0", "m1", "m2"), n))
        monitor.tick()
        samples = scrape(monitor)
        if n % 10 == 0:
            assert [one(samples, "m1", resource=f"r{k}") for k in range(40)] == [n] * 40
        for k in range(40):
            monitor.manager.unregister(f"r{k}")
    monitor.tick()
    assert not [labels for _, labels in scrape(monitor) if dict(labels).get("resource", "").startswith("r")]


def test_the_application_is_not_asked(monitor: ResourceMonitor) -> None:
    release = threading.Event()
    for n in range(10):
        monitor.manager.register(None, id=f"hung{n}", read=release.wait)
    monitor.add_metric("shop", Gauge("fine")).set(1)
    monitor.start()
    until(lambda: monitor.read("shop", "fine") == 1)
    exporter = setup_prometheus_exporter(monitor)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        body = exporter.render()
        times.append(time.perf_counter() - begun)
        assert b"fine{" in body
    release.set()
    assert sorted(times)[10] < 0.05


# -- the real thing ------------------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong(monitor: ResourceMonitor, promtool: str, tmp_path: Path) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/shop.sqlite")
    monitor.manager.register(engine, id="db")
    monitor.add_metric("shop", Gauge("in_stock", "Articles \\ in\nstock", ["article"])).labels('"a"\n\\').set(
        1
    )
    monitor.add_metric("shop", Histogram("wait_seconds", "Waiting")).observe(0.2)
    monitor.add_metric("shop", Counter("orders_total", "Orders")).inc()
    with monitor:
        until(lambda: monitor.read("db", "connections_max") is not None)
        text = setup_prometheus_exporter(monitor, prometheus_client=False).render().decode()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr  # 3: advice on naming
    assert "error" not in done.stderr.lower(), done.stderr
    engine.dispose()


@pytest.mark.server
def test_a_real_prometheus_reads_the_same(prometheus: Callable[[str], Prometheus]) -> None:
    app = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.1), enable_dashboard=False)
    monitor.manager.register(object(), id="shop")
    odd = 'a "quoted" \\ back\nline é😀'
    monitor.add_metric("shop", Gauge("in_stock", "Articles", ["article"])).labels(odd).set(12)
    orders = monitor.add_metric("shop", Counter("orders_total", "Orders"))
    wait = monitor.add_metric("shop", Histogram("wait_seconds", "Waiting", buckets=[0.1, 0.2, 0.4, 0.8]))
    app.include_router(setup_prometheus_exporter(monitor).router, prefix="/metrics")

    @app.get("/order")
    async def order() -> None:
        orders.inc()
        wait.observe(0.15)
        await asyncio.sleep(0)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        real = prometheus(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
        )

        def ask(query: str) -> list[tuple[dict[str, str], float]]:
            url = f"{real.url}/api/v1/query?query={urllib.parse.quote(query)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
            return [(series["metric"], float(series["value"][1])) for series in found]

        until(lambda: ask("up") and ask("up")[0][1] == 1, 20)

        def use() -> bool:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/order", timeout=5).close()
            found = ask('rate(orders_total{resource="shop"}[5s])')
            return bool(found) and found[0][1] > 0

        until(use, 20)
        ((labels, value),) = ask("in_stock")
        assert value == 12
        assert labels["article"] == odd
        assert labels["resource"] == "shop"
        ((_, quantile),) = ask("histogram_quantile(0.5, rate(wait_seconds_bucket[10s]))")
        assert 0.1 < quantile < 0.2
        assert ask('uno_resource_info{resource="shop",type="custom"}')[0][1] == 1
        assert ask('uno_resource_health{resource="process",uno_resource_health="up"}')[0][1] == 1
        assert ask("scrape_samples_scraped")[0][1] > 20
    finally:
        server.should_exit = True
        thread.join(10)
