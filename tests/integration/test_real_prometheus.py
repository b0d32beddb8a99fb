"""Does a real Prometheus store what every format says?"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.integration.test_exposition import made_by_hand
from tests.servers import Prometheus
from uno.core.monitoring.exporters.prometheus import PrometheusExporter
from uno.core.monitoring.resources import Counter, Gauge, ResourceMonitor

pytestmark = pytest.mark.server

ODD = 'a "quoted" \\ back\nline % é😀'
Start = Callable[..., Prometheus]


class Target:
    """Serves a page that stands still at each path, and notes what was answered there."""

    def __init__(self, exporter: PrometheusExporter) -> None:
        self.answered: dict[str, str] = {}
        answered = self.answered

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                accept = "" if self.path == "/plain" else self.headers["accept"]
                body, headers = exporter.respond(self.headers.get("accept-encoding", ""), accept)
                answered[self.path[1:]] = headers["content-type"]
                assert headers["content-encoding"] == "gzip"
                self.send_response(200)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    monitor.add_metric("shop", Gauge("in_stock", "Articles", ["article"])).labels(ODD).set(12)
    monitor.add_metric("shop", Counter("orders_total", "Orders")).inc(3)
    monitor.manager.register(None, id="odd", read=lambda: {"pool size": 1, "größe": 2})
    many = monitor.add_metric("shop", Gauge("many", "Many", ["n"]))
    for n in range(600):
        many.labels(str(n)).set(n)
    made_by_hand(monitor, monkeypatch)
    target = Target(PrometheusExporter(monitor, prometheus_client=False))
    yield target
    target.close()


def ask(real: Prometheus, query: str, path: str = "query") -> Any:
    now = time.time()
    words = {"query": query, "start": now - 1e9, "end": now + 100} if path != "query" else {"query": query}
    with urllib.request.urlopen(
        f"{real.url}/api/v1/{path}?{urllib.parse.urlencode(words)}", timeout=5
    ) as answer:
        data = json.load(answer)["data"]
    return data["result"] if path == "query" else data


def values(real: Prometheus, query: str) -> list[float]:
    return [float(found["value"][1]) for found in ask(real, query)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.1)


def job(name: str, port: int, more: str = "") -> str:
    return (
        f"  - job_name: {name}\n    metrics_path: /{name}\n{more}"
        f"    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )


HEAD = "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n"


def check(real: Prometheus, name: str, *, classic: bool = True) -> None:
    """What every format has to have brought."""
    chosen = f'{{job="{name}"}}'
    until(lambda: values(real, f"up{chosen}") == [1] and values(real, f"many{chosen}"))
    assert values(real, f"in_stock{chosen}") == [12]
    assert ask(real, f"in_stock{chosen}")[0]["metric"]["article"] == ODD
    assert values(real, f"orders_total{chosen}") == [3]
    assert values(real, f"sum(many{chosen})") == [sum(range(600))]
    assert values(
        real, f'uno_resource_health{{job="{name}",resource="shop",uno_resource_health="unknown"}}'
    ) == [1]
    assert values(real, f'uno_resource_info{{job="{name}",resource="odd",type="custom"}}') == [1]
    if classic:
        assert values(real, f'both_seconds_bucket{{job="{name}",le=~"1|1.0"}}') == [9]
        if "proto_" not in name:  # there it is a native histogram and nothing else
            assert values(real, f"native_seconds_count{chosen}") == [11]
        (median,) = values(real, f"histogram_quantile(0.5, both_seconds_bucket{chosen})")
        assert 0.1 < median < 1


def native(real: Prometheus, name: str) -> None:
    """What only protobuf brings: buckets 2**(i/8) of schema 3."""
    for metric in ("both_seconds", "native_seconds"):
        assert values(real, f'histogram_count({metric}{{job="{name}"}})') == [11]
        assert values(real, f'histogram_sum({metric}{{job="{name}"}})') == [12.5]
        (top,) = values(real, f'histogram_quantile(0.999, {metric}{{job="{name}"}})')
        assert 2 ** (7 / 8) < top <= 2


def traces(real: Prometheus, query: str) -> set[str]:
    found = ask(real, query, "query_exemplars")
    return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}


def test_debians_prometheus(prometheus: Start, target: Target) -> None:
    own = ResourceMonitor(interval=0.1)
    own.manager.register(object(), id="here")
    own.add_metric("here", Gauge("served", "On a port of its own")).set(5)
    with own:
        port = own.serve_metrics(0)
        config = HEAD + job("plain", target.port) + job("default", target.port) + job("metrics", port)
        real = prometheus(config, features="exemplar-storage")
        check(real, "plain")
        check(real, "default")
        assert target.answered["plain"].startswith("text/plain; version=0.0.4")
        assert target.answered["default"].startswith("application/openmetrics-text; version=1.0.0")
        assert values(real, 'orders_created{job="plain"}') == []
        assert values(real, 'jobs_created{job="default"}') == [1_700_000_000.25]
        assert values(real, 'pool_size{job="default"}') == [1]
        until(lambda: values(real, "served") == [5])


def test_debians_prometheus_with_protobuf(prometheus: Start, target: Target) -> None:
    real = prometheus(HEAD + job("binary", target.port), features="native-histograms,exemplar-storage")
    check(real, "binary", classic=False)
    assert target.answered["binary"].startswith("application/vnd.google.protobuf")
    native(real, "binary")


@pytest.mark.slow
def test_a_newer_prometheus_in_every_format(prometheus: Start, target: Target, newer_prometheus: str) -> None:
    protocols = {
        "PrometheusProto": "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily",
        "PrometheusText0.0.4": "text/plain; version=0.0.4; charset=utf-8",
        "PrometheusText1.0.0": "text/plain; version=1.0.0; charset=utf-8; escaping=",
        "OpenMetricsText0.0.1": "application/openmetrics-text; version=0.0.1; charset=utf-8",
        "OpenMetricsText1.0.0": "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=",
    }
    schemes = ("allow-utf-8", "underscores", "values")
    config = HEAD
    names = {}
    for protocol in protocols:
        for scheme in schemes:
            name = re.sub("[^a-z0-9]", "_", f"{protocol}_{scheme}".lower())
            names[name] = protocol, scheme
            more = f"    scrape_protocols: [{protocol}]\n    metric_name_escaping_scheme: {scheme}\n"
            config += job(name, target.port, more + "    always_scrape_classic_histograms: true\n")
    real = prometheus(config, program=newer_prometheus, features="native-histograms,exemplar-storage")
    for name, (protocol, scheme) in names.items():
        check(real, name)
        assert target.answered[name].startswith(protocols[protocol])
        if target.answered[name].endswith(f"escaping={scheme}"):
            odd = {"allow-utf-8": "pool size", "underscores": "pool_size", "values": "U__pool_20_size"}[
                scheme
            ]
            found = ask(real, f'{{__name__=~"pool.size|U__pool_20_size",job="{name}"}}')
            assert [(one["metric"]["__name__"], one["value"][1]) for one in found] == [(odd, "1")]
        if protocol == "PrometheusProto":
            native(real, name)
    assert {"allow-utf-8", "values", "underscores"} <= {
        answer.rpartition("=")[2] for answer in target.answered.values()
    }
    assert traces(real, "jobs_total") == {"4bf92f35"}
    assert "b" in traces(real, "both_seconds_bucket")
