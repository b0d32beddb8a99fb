"""Does what uno measured arrive by OTLP, exactly once, whatever the receiver does, and does the host never suffer?"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import random
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.otlp import Receiver, count_points, labels, points, total_by_labels, until
from tests.servers import VictoriaMetrics, find_program, free_port, required
from uno.core.monitoring.exporters.otlp import http, push, snapshot
from uno.core.monitoring.exporters.otlp.push import OtlpExporter
from uno.core.monitoring.integration import setup_otlp_exporter
from uno.core.monitoring.metrics import CounterCell
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor

SECRET = "Kn4ry001x9Zq"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    """A monitor that does not tick by itself: what is recorded is frozen when it is sent."""
    monitor = ResourceMonitor(interval=0.05, service="shop")
    monitor.manager.register(object(), id="shop")
    yield monitor
    monitor.stop()


def own(monitor: ResourceMonitor, what: str) -> dict[str, float]:
    """A self-metric by reason."""
    monitor.freeze()
    found = {}
    for series in monitor.store.select("uno", f"uno.otlp.{what}"):
        total = monitor.store.value(series, "total")
        if total:
            found[series.labels[0] if series.labels else ""] = total
    return found


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(push, "LAST_RETRY", 0.05)


# -- what arrives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_everything_arrives(
    monitor: ResourceMonitor, receiver: Receiver, protocol: str, compression: str
) -> None:
    began = time.time_ns()
    orders = monitor.add_metric("shop", Counter("orders", "Orders taken", ["kind"], unit="{order}"))
    orders.labels('a"\\\n\u20ac\ud800').inc(3)
    stock = monitor.add_metric("shop", Gauge("in_stock", labels=["article"]))
    for article, value in {"a": -0.0, "b": math.inf, "c": math.nan, "d": 5e-324}.items():
        stock.labels(article).set(value)
    wait = monitor.add_metric("shop", Histogram("wait", unit="s", buckets=[0.1, 1]))
    for value in (0.05, 0.5, 0.7, 4.0):
        wait.observe(value)
    exporter = setup_otlp_exporter(
        monitor,
        receiver.url,
        protocol=protocol,
        compression=compression,
        headers={"X-Token": SECRET},
        resource_attributes={"deployment.environment.name": "test"},
    )
    assert exporter.flush(10)
    (post,) = receiver.posts
    assert post.path == "/v1/metrics"
    media_type = {"http/protobuf": "application/x-protobuf", "http/json": "application/json"}[protocol]
    assert post.headers["content-type"] == media_type
    assert post.headers["content-encoding"] == ("gzip" if compression == "gzip" else None)
    assert post.headers["x-token"] == SECRET
    assert post.headers["user-agent"].startswith("uno-monitor/")
    resource = post.resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("shop", "test")
    assert len(resource["service.instance.id"]) == 36

    by_name = {metric.name: metric for metric in post.metrics}
    assert (by_name["orders"].description, by_name["orders"].unit) == ("Orders taken", "{order}")
    assert by_name["orders"].sum.is_monotonic
    (point,) = points(post, "orders")
    assert labels(point) == {"resource": "shop", "kind": 'a"\\\n\u20ac?'}
    assert point.as_double == 3
    assert began - 10**9 <= point.start_time_unix_nano <= point.time_unix_nano <= time.time_ns() + 10**9

    found = {labels(p)["article"]: p.as_double for p in points(post, "in_stock")}
    assert found == {"a": 0.0, "b": math.inf, "d": 5e-324}  # NaN is a gap: no point
    assert math.copysign(1, found["a"]) == -1

    (point,) = points(post, "wait")
    assert (point.count, list(point.explicit_bounds), list(point.bucket_counts)) == (4, [0.1, 1], [1, 2, 1])
    assert point.sum == 0.05 + 0.5 + 0.7 + 4.0
    (info,) = points(post, "uno.resource.info")
    assert labels(info)["resource"] == "shop"
    assert own(monitor, "exported") == {"": count_points(post)}
    assert (own(monitor, "dropped"), own(monitor, "failures")) == ({}, {})


def test_standard_names_keep_their_dots(monitor: ResourceMonitor, receiver: Receiver) -> None:
    exporter = setup_otlp_exporter(monitor, receiver.url, interval=60)
    with monitor:
        until(lambda: monitor.read("process", "process.cpu.time", stat="total"))
        assert exporter.flush(10)
    post = receiver.posts[0]
    (cpu,) = points(post, "process.cpu.time")
    assert labels(cpu)["resource"] == "process"
    assert cpu.as_double > 0
    names = {metric.name: metric.unit for metric in post.metrics}
    assert names["process.memory.usage"] == "By"
    assert names["uno.resource.health"] == "1"


def test_one_connection_is_kept_and_a_stale_one_is_not_used(
    monitor: ResourceMonitor, receiver: Receiver
) -> None:
    counter = monitor.add_metric("shop", Counter("orders"))
    exporter = setup_otlp_exporter(monitor, receiver.url)
    for _ in range(3):
        counter.inc()
        assert exporter.flush(10)
    assert len({post.port for post in receiver.posts}) == 1
    receiver.script.append("close")  # taken, then the connection ends: one failure that we hear of
    assert exporter.flush(10)
    assert own(monitor, "failures") == {"network": 1}
    receiver.script.append((200, {"connection": "close"}))
    assert exporter.flush(10)
    assert exporter.flush(10)
    assert own(monitor, "failures") == {"network": 1}


def test_each_interval_without_being_asked(monitor: ResourceMonitor, receiver: Receiver) -> None:
    monitor.add_metric("shop", Counter("orders")).inc()
    setup_otlp_exporter(monitor, receiver.url, interval=0.1)
    monitor.start()
    until(lambda: len(receiver.posts) >= 3)
    stamps = [points(post, "orders")[0].time_unix_nano for post in receiver.posts]
    assert stamps == sorted(set(stamps))


def test_series_come_and_go(monitor: ResourceMonitor, receiver: Receiver) -> None:
    exporter = setup_otlp_exporter(monitor, receiver.url)
    seen = []
    for n in range(4):
        monitor.manager.register(object(), id=f"r{n}")
        monitor.add_metric(f"r{n}", Gauge("depth")).set(n)
        if n >= 2:
            monitor.manager.unregister(f"r{n - 2}")
        assert exporter.flush(10)
        seen.append({labels(p)["resource"]: p.as_double for p in points(receiver.posts[-1], "depth")})
    assert seen == [{"r0": 0}, {"r0": 0, "r1": 1}, {"r1": 1, "r2": 2}, {"r2": 2, "r3": 3}]


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_large_exports_are_split_and_nothing_is_lost(
    monitor: ResourceMonitor,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    temporality: str,
) -> None:
    limit = 20_000
    make = snapshot.Requests.make
    monkeypatch.setattr(
        snapshot.Requests, "make", lambda self, taken, ledger: make(self, taken, ledger, limit)
    )
    orders = monitor.add_metric("shop", Counter("orders", labels=["n"]))
    wait = monitor.add_metric("shop", Histogram("wait", labels=["n"]))
    for n in range(300):
        orders.labels(str(n)).inc(n + 1)
        wait.labels(str(n)).observe(n)
    exporter = setup_otlp_exporter(monitor, receiver.url, protocol=protocol, temporality=temporality)
    assert exporter.flush(20)
    assert len(receiver.posts) > 3
    assert max(len(post.raw) for post in receiver.posts) <= limit
    sent = [(labels(p)["n"], p.as_double) for post in receiver.posts for p in points(post, "orders")]
    assert sorted(sent) == sorted((str(n), n + 1) for n in range(300))
    sent = [(labels(p)["n"], p.sum) for post in receiver.posts for p in points(post, "wait")]
    assert sorted(sent) == sorted((str(n), n) for n in range(300))
    assert own(monitor, "exported") == {"": sum(map(count_points, receiver.posts))}


# -- exponential histograms, exemplars, start times: hand-made cells of the contract -------------------


class Native(NamedTuple):
    schema: int
    zero_threshold: float
    zero_count: int
    positive: dict[int, int]
    negative: dict[int, int]


class Distribution(NamedTuple):
    count: int  # type: ignore[assignment]
    sum: float
    counts: tuple[int, ...]
    native: Native | None = None


def frozen_as(monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch, held: dict[str, Any]) -> None:
    """Let the store's frames show ``held["now"]`` as the state of each histogram."""
    tick = monitor.store.tick

    def freeze(now: float) -> Any:
        frame = tick(now)
        for series in frame.histograms:
            frame.histograms[series] = held["now"]
        return frame

    monkeypatch.setattr(monitor.store, "tick", freeze)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_exponential_histograms(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, temporality: str
) -> None:
    held: dict[str, Any] = {"now": Distribution(5, 9.0, (), Native(3, 0.001, 1, {4: 2, 7: 1}, {2: 1}))}
    frozen_as(monitor, monkeypatch, held)
    monitor.add_metric("shop", Histogram("wait")).observe(1)
    exporter = setup_otlp_exporter(monitor, receiver.url, temporality=temporality)
    assert exporter.flush(10)
    # Later at half the resolution, as when the values spread: 4 and 7 are in 2 and 4 there, 2 in 1.
    held["now"] = Distribution(9, 20.0, (), Native(2, 0.001, 2, {2: 3, 4: 1, 9: 2}, {1: 1}))
    assert exporter.flush(10)
    first, second = (points(post, "wait")[0] for post in receiver.posts)
    assert (first.count, first.scale, first.zero_count, first.zero_threshold) == (5, 3, 1, 0.001)
    assert (first.positive.offset, list(first.positive.bucket_counts)) == (3, [2, 0, 0, 1])
    assert (first.negative.offset, list(first.negative.bucket_counts)) == (1, [1])
    assert not first.HasField("sum")  # something negative was observed: it is not monotonic
    assert second.scale == 2
    if temporality == "cumulative":
        assert (second.count, second.zero_count) == (9, 2)
        assert (second.positive.offset, list(second.positive.bucket_counts)) == (1, [3, 0, 1, 0, 0, 0, 0, 2])
        assert second.start_time_unix_nano == first.start_time_unix_nano
    else:
        assert (second.count, second.zero_count, second.sum) == (4, 1, 11.0)
        assert (second.positive.offset, list(second.positive.bucket_counts)) == (1, [1, 0, 0, 0, 0, 0, 0, 2])
        assert list(second.negative.bucket_counts) == []
        assert second.start_time_unix_nano == first.time_unix_nano


@pytest.mark.parametrize("wanted", ["explicit_bucket_histogram", "base2_exponential_bucket_histogram"])
def test_a_histogram_that_has_both_is_sent_as_wanted(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    held: dict[str, Any] = {"now": Distribution(2, 9.0, (1, 1), Native(0, 0.0, 0, {1: 2}, {}))}
    frozen_as(monitor, monkeypatch, held)
    monitor.add_metric("shop", Histogram("wait", buckets=[1])).observe(1)
    assert setup_otlp_exporter(monitor, receiver.url, histograms=wanted).flush(10)
    (metric,) = [m for m in receiver.posts[0].metrics if m.name == "wait"]
    assert metric.WhichOneof("data") == (
        "histogram" if wanted.startswith("explicit") else "exponential_histogram"
    )


@pytest.mark.skipif(not hasattr(CounterCell, "exemplar"), reason="cells keep no exemplars")
def test_exemplars_are_sent_once(monitor: ResourceMonitor, receiver: Receiver) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    orders: Any = monitor.add_metric("shop", Counter("orders"))
    wait: Any = monitor.add_metric("shop", Histogram("wait", buckets=[1, 2]))
    orders.inc(2, exemplar={"trace_id": trace, "span_id": span, "user": "x"})
    wait.observe_exemplar(0.5, {"trace_id": trace, "span_id": span})
    wait.observe_exemplar(5, {"trace_id": "not one"})
    exporter = setup_otlp_exporter(monitor, receiver.url)
    assert exporter.flush(10)
    assert exporter.flush(10)
    first, second = receiver.posts
    (exemplar,) = points(first, "orders")[0].exemplars
    assert (exemplar.as_double, exemplar.trace_id.hex(), exemplar.span_id.hex()) == (2, trace, span)
    assert [(pair.key, pair.value.string_value) for pair in exemplar.filtered_attributes] == [("user", "x")]
    assert 0 <= time.time_ns() - exemplar.time_unix_nano < 60 * 10**9
    one, other = points(first, "wait")[0].exemplars
    assert (one.as_double, one.trace_id.hex()) == (0.5, trace)
    assert (other.as_double, other.trace_id, other.filtered_attributes[0].value.string_value) == (
        5,
        b"",
        "not one",
    )
    assert not points(second, "orders")[0].exemplars
    assert not points(second, "wait")[0].exemplars


@pytest.mark.skipif(not hasattr(CounterCell(), "created"), reason="cells do not know when they were made")
def test_a_series_starts_when_it_was_made(monitor: ResourceMonitor, receiver: Receiver) -> None:
    time.sleep(0.05)
    before = time.time_ns()
    monitor.add_metric("shop", Counter("orders")).inc()
    monitor.add_metric("shop", Histogram("wait")).observe(1)
    after = time.time_ns()
    assert setup_otlp_exporter(monitor, receiver.url).flush(10)
    for name in ("orders", "wait"):
        assert before - 10**6 <= points(receiver.posts[0], name)[0].start_time_unix_nano <= after + 10**6


# -- temporality ---------------------------------------------------------------------------------------


def test_delta_is_exact_whatever_the_receiver_answers(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted adds up to what was counted, and the intervals of a series follow one on the other."""
    fast(monkeypatch)
    chance = random.Random(5)
    orders = monitor.add_metric("shop", Counter("orders", labels=["n"]))
    wait = monitor.add_metric("shop", Histogram("wait", labels=["n"]))
    make = snapshot.Requests.make
    monkeypatch.setattr(
        snapshot.Requests, "make", lambda self, taken, ledger: make(self, taken, ledger, 4_000)
    )
    exporter = setup_otlp_exporter(monitor, receiver.url, temporality="delta", interval=3600)
    counted: Tally[str] = Tally()
    observed: Tally[str] = Tally()
    for _ in range(60):
        for _ in range(chance.randrange(30)):
            n, amount = str(chance.randrange(20)), chance.choice([1, 2, 0.1, 1e-3])
            orders.labels(n).inc(amount)
            counted[n] += amount  # type: ignore[assignment]
            wait.labels(n).observe(amount)
            observed[n] += 1
        receiver.script.extend(
            chance.choices([200, 503, 400, 429, "reset", 500, 413], [6, 1, 1, 1, 1, 1, 1], k=3)
        )
        exporter.flush(chance.choice([0.01, 5]))
    receiver.script.clear()
    assert exporter.flush(20)
    assert exporter.flush(20)
    sent = total_by_labels(receiver.accepted, "orders")
    assert set(sent) == {(("n", n), ("resource", "shop")) for n in counted}
    for n, amount in counted.items():
        assert sent[(("n", n), ("resource", "shop"))] == pytest.approx(amount, rel=1e-12)
    in_histograms: Tally[str] = Tally()
    last: dict[tuple[str, str], int] = {}
    for post in receiver.accepted:
        for name in ("orders", "wait"):
            for point in points(post, name):
                key = name, labels(point)["n"]
                assert point.start_time_unix_nano < point.time_unix_nano
                if key in last:
                    assert point.start_time_unix_nano == last[key]
                last[key] = point.time_unix_nano
                if name == "wait":
                    in_histograms[key[1]] += point.count
                    assert sum(point.bucket_counts) == point.count
    assert in_histograms == observed
    reasons = own(monitor, "failures")
    assert {"unavailable", "refused", "throttled", "network", "error"} <= set(reasons)


def test_what_did_not_change_has_no_delta(monitor: ResourceMonitor, receiver: Receiver) -> None:
    orders = monitor.add_metric("shop", Counter("orders", labels=["n"]))
    orders.labels("a").inc()
    orders.labels("b").inc(0)
    exporter = setup_otlp_exporter(monitor, receiver.url, temporality="delta")
    assert exporter.flush(10)
    orders.labels("b").inc(2)
    assert exporter.flush(10)
    sent = [{labels(p)["n"]: p.as_double for p in points(post, "orders")} for post in receiver.posts]
    assert sent == [{"a": 1, "b": 0}, {"b": 2}]


def test_lowmemory_leaves_totals_of_others_cumulative(monitor: ResourceMonitor, receiver: Receiver) -> None:
    orders = monitor.add_metric("shop", Counter("orders"))
    orders.inc()
    total = monitor.add_metric("shop", Counter("bytes_read"))
    total.labels().set_total(100)
    exporter = setup_otlp_exporter(monitor, receiver.url, temporality="lowmemory")
    for _ in range(2):
        assert exporter.flush(10)
        orders.inc(2)
        total.labels().set_total(150)
    values = {
        name: [points(post, name)[0].as_double for post in receiver.posts]
        for name in ("orders", "bytes_read")
    }
    assert values == {"orders": [1, 2], "bytes_read": [100, 150]}


# -- receivers in trouble ------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [503, 502, 504, 429, "reset", "close"])
def test_it_is_sent_again_as_it_was(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, trouble: Any, caplog: Any
) -> None:
    fast(monkeypatch)
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script.extend([trouble] * 4)
    exporter = setup_otlp_exporter(monitor, receiver.url)
    with caplog.at_level(logging.INFO, "uno"):
        assert exporter.flush(20)
    assert len(receiver.posts) == 5
    assert len({post.body for post in receiver.posts}) == 1
    reason = {429: "throttled", "reset": "network", "close": "network"}.get(trouble, "unavailable")
    assert own(monitor, "failures") == {reason: 4}
    assert own(monitor, "dropped") == {}
    levels = [record.levelname for record in caplog.records if record.name == "uno.exporters.otlp"]
    assert levels == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (400, "refused"),
        (401, "refused"),
        (404, "refused"),
        (408, "refused"),
        (413, "refused"),
        (500, "error"),
        (501, "error"),
    ],
)
def test_it_is_not_sent_again(
    monitor: ResourceMonitor, receiver: Receiver, trouble: int, reason: str
) -> None:
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script.append(trouble)
    exporter = setup_otlp_exporter(monitor, receiver.url)
    assert exporter.flush(10)
    assert len(receiver.posts) == 1
    assert own(monitor, "failures") == {reason: 1}
    assert own(monitor, "dropped") == {reason: count_points(receiver.posts[0])}
    assert own(monitor, "exported") == {}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_even_by_a_flush(
    monitor: ResourceMonitor, receiver: Receiver, form: str
) -> None:
    from email.utils import formatdate

    monitor.add_metric("shop", Counter("orders")).inc()
    wait = "2" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    receiver.script.append((429, {"retry-after": wait}))
    exporter = setup_otlp_exporter(monitor, receiver.url)
    assert not exporter.flush(0.3)
    assert not exporter.flush(0.1)
    assert len(receiver.posts) == 1
    assert exporter.flush(20)
    assert receiver.posts[1].at - receiver.posts[0].at >= (2 if form == "seconds" else 1.9)


@pytest.mark.parametrize("wait", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_of_no_time_is_none(monitor: ResourceMonitor, receiver: Receiver, wait: str) -> None:
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script += [(503, {"retry-after": wait})] * 3
    exporter = setup_otlp_exporter(monitor, receiver.url)
    assert exporter.flush(30)
    pauses = [after.at - before.at for before, after in itertools.pairwise(receiver.posts[:4])]
    assert pauses[0] >= 0.4
    assert pauses[1] >= 0.9
    assert pauses[2] >= 1.9


def test_a_long_retry_after_does_not_hold_the_end(monitor: ResourceMonitor, receiver: Receiver) -> None:
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script.append((503, {"retry-after": "100000"}))
    exporter = setup_otlp_exporter(monitor, receiver.url)
    assert not exporter.flush(0.3)
    assert not exporter.stop(5)
    assert own(monitor, "dropped")["shutdown"] > 0
    assert http.MAX_RETRY_AFTER <= 300


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_partial_success_is_counted_and_not_repeated(
    monitor: ResourceMonitor, receiver: Receiver, protocol: str, caplog: Any
) -> None:
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script.extend([("partial", 2), ("partial", 1)])
    exporter = setup_otlp_exporter(monitor, receiver.url, protocol=protocol)
    assert exporter.flush(10)
    assert exporter.flush(10)
    assert len(receiver.posts) == 2
    assert own(monitor, "dropped") == {"rejected": 3}
    assert own(monitor, "exported") == {"": sum(map(count_points, receiver.posts)) - 3}
    assert len([r for r in caplog.records if "only a part" in r.getMessage()]) == 1
    assert SECRET not in caplog.text  # the receiver's own words are not repeated


def test_redirects_are_not_followed(monitor: ResourceMonitor, receiver: Receiver, caplog: Any) -> None:
    other = Receiver()
    try:
        receiver.default = (307, {"location": other.url + "/v1/metrics"})
        monitor.add_metric("shop", Counter("orders")).inc()
        exporter = setup_otlp_exporter(monitor, receiver.url, headers={"authorization": SECRET})
        assert exporter.flush(10)
        assert own(monitor, "failures") == {"redirect": 1}
        assert other.posts == []
    finally:
        other.close()
    assert "points elsewhere" in caplog.text


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_a_receiver_cannot_hold_a_request_beyond_its_timeout(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    fast(monkeypatch)
    monitor.add_metric("shop", Counter("orders")).inc()
    receiver.script.append(trouble)
    exporter = setup_otlp_exporter(monitor, receiver.url, timeout=0.4)
    assert exporter.flush(20)
    assert own(monitor, "failures") == {"timeout": 1}
    assert len(receiver.posts) == 2


def test_answers_that_are_no_http(monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    monitor.add_metric("shop", Counter("orders")).inc()
    answers = [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
               b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n", b"\x00" * 100_000]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as server:
        exporter = setup_otlp_exporter(monitor, f"http://127.0.0.1:{server.getsockname()[1]}", timeout=5)
        asking = threading.Thread(target=exporter.flush, args=(20,))
        asking.start()
        for answer in answers:
            server.settimeout(15)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(15)
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while True:
                    try:
                        if not connection.recv(65536):
                            break
                    except OSError:
                        break
        until(lambda: sum(own(monitor, "failures").values()) >= 3)
        exporter.stop(0.1)
        asking.join(5)
    assert set(own(monitor, "failures")) <= {"network", "connect", "timeout"}


def test_what_waits_is_bounded_and_the_newest_is_kept(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    fast(monkeypatch)
    monkeypatch.setattr(push, "MAX_WAITING", 5)
    gauge = monitor.add_metric("shop", Gauge("depth"))
    receiver.default = 503
    exporter = setup_otlp_exporter(monitor, receiver.url)
    for n in range(30):
        gauge.set(n)
        exporter.flush(0.01)
        until(lambda: exporter._answered == exporter._asked)
        assert len(exporter._queue) <= 5
    assert own(monitor, "dropped")["queue_full"] > 20
    assert len([r for r in caplog.records if "wait in vain" in r.getMessage()]) == 1
    receiver.default = 200
    assert exporter.flush(20)
    values = [points(post, "depth")[0].as_double for post in receiver.accepted]
    assert len(values) <= 7
    # The request that was begun, and then the newest.
    assert sorted(set(values)) == [0, 26, 27, 28, 29]


def test_a_dead_receiver_does_not_hold_stop(monitor: ResourceMonitor, receiver: Receiver) -> None:
    receiver.default = "hang"
    monitor.add_metric("shop", Counter("orders")).inc()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as full:
        # One that hangs, one that nobody listens at, one that never accepts.
        urls = [receiver.url, f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{full.getsockname()[1]}"]
        exporters = [setup_otlp_exporter(monitor, url, interval=0.05) for url in urls]
        monitor.start()
        until(lambda: receiver.posts)
        ended = threading.Event()

        def stop() -> None:
            monitor.stop()
            ended.set()

        threading.Thread(target=stop, daemon=True).start()
        assert ended.wait(10)
        until(lambda: not [t for t in threading.enumerate() if t.name == "uno-otlp"], 5)
        assert not any(exporter.running for exporter in exporters)


def test_it_ends_and_begins_with_the_monitor(monitor: ResourceMonitor, receiver: Receiver) -> None:
    counter = monitor.add_metric("shop", Counter("orders"))
    exporter = setup_otlp_exporter(monitor, receiver.url, interval=3600)
    monitor.start()
    counter.inc(5)
    monitor.stop()
    assert not exporter.running
    assert points(receiver.posts[-1], "orders")[0].as_double == 5  # counted after the last tick
    monitor.start()
    until(lambda: exporter.running)
    counter.inc(2)
    monitor.stop()
    assert points(receiver.posts[-1], "orders")[0].as_double == 7
    monitor.start()
    until(lambda: exporter.running)
    assert exporter.stop(10)
    seq = monitor.store.frame.seq if monitor.store.frame else 0
    until(lambda: monitor.store.frame and monitor.store.frame.seq > seq + 2)
    assert not exporter.running  # stopped by hand: it stays so
    exporter.start()
    assert exporter.running


def test_disabled_by_the_environment(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = setup_otlp_exporter(monitor, receiver.url, interval=0.02)
    assert not exporter.running
    assert not exporter.flush(1)
    with monitor:
        until(lambda: monitor.store.frame and monitor.store.frame.seq > 3)
    assert receiver.posts == []


def test_misuse_is_told() -> None:
    with pytest.raises(TypeError, match="takes a ResourceMonitor, not dict"):
        setup_otlp_exporter({})  # type: ignore[arg-type]


def test_no_secret_comes_out(
    monitor: ResourceMonitor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    fast(monkeypatch)
    caplog.set_level(logging.DEBUG)
    monitor.add_metric("shop", Counter("orders")).inc()
    url = f"http://user:{SECRET}@127.0.0.1:{receiver.port}/v1/metrics?key={SECRET}"
    texts: list[str] = []
    for answer in (200, 401, 307, 503, "reset", "close", ("partial", 1), 500):
        receiver.script.append((answer, {"location": url}) if answer == 307 else answer)
        exporter = setup_otlp_exporter(monitor, url, headers={"x-key": SECRET}, timeout=2)
        exporter.flush(5)
        texts += [repr(exporter), str(exporter), f"{exporter}", repr(vars(exporter))]
        exporter.stop(1)
    dead = setup_otlp_exporter(monitor, f"http://u:{SECRET}@127.0.0.1:{free_port()}/", headers={"x": SECRET})
    dead.flush(0.2)
    dead.stop(0.5)
    monitor.freeze()
    texts += [repr(reading) for reading in monitor.series()]
    texts += [caplog.text, *capfd.readouterr(), *(post.raw.decode("latin-1") for post in receiver.posts)]
    assert receiver.posts[0].headers["x-key"] == SECRET
    assert receiver.posts[0].path.endswith(SECRET)
    assert not [text for text in texts if SECRET in text]
    assert "127.0.0.1" in caplog.text


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem and client.pem with their keys beside them; each vouches for itself."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = required(lambda: find_program("openssl", "openssl"))
    for name in ("server", "client"):
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return folder


def test_tls_with_a_certificate_of_ones_own(
    monitor: ResourceMonitor, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    receiver = Receiver(tls=context)
    try:
        monitor.add_metric("shop", Counter("orders")).inc()
        stranger = setup_otlp_exporter(monitor, receiver.url)
        assert not stranger.flush(0.3)
        stranger.stop(0.1)
        assert set(own(monitor, "failures")) == {"tls"}
        assert receiver.posts == []
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "server.pem"))
        exporter = setup_otlp_exporter(monitor, receiver.url)
        for _ in range(2):
            assert exporter.flush(10)
        assert len({post.port for post in receiver.posts}) == 1
        exporter.stop(1)
    finally:
        receiver.close()


def test_tls_with_a_client_certificate(monitor: ResourceMonitor, certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    receiver = Receiver(tls=context)
    try:
        monitor.add_metric("shop", Counter("orders")).inc()
        trusted = certificates / "server.pem"
        stranger = setup_otlp_exporter(monitor, receiver.url, certificate=trusted)
        assert not stranger.flush(0.3)
        stranger.stop(0.1)
        assert receiver.posts == []
        known = setup_otlp_exporter(
            monitor,
            receiver.url,
            client_certificate=certificates / "client.pem",
            client_key=certificates / "client.key",
            certificate=trusted,
        )
        assert known.flush(10)
        assert receiver.posts
        known.stop(1)
    finally:
        receiver.close()


# -- programs of their own -----------------------------------------------------------------------------


def program(tmp_path: Path, text: str, **variables: str) -> subprocess.Popen[str]:
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(text))
    source = Path(push.__file__).parents[5]
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(file)],
        env={**os.environ, "PYTHONPATH": str(source), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("started", [True, False])
def test_flush_at_exit(receiver: Receiver, tmp_path: Path, started: bool) -> None:
    child = program(
        tmp_path,
        f"""
        from uno.core.monitoring.integration import setup_otlp_exporter
        from uno.core.monitoring.resources import Counter, ResourceMonitor

        monitor = ResourceMonitor()
        monitor.manager.register(object(), id="shop")
        orders = monitor.add_metric("shop", Counter("orders"))
        setup_otlp_exporter(monitor)
        if {started}:
            monitor.start()
        orders.inc(41)
        orders.inc()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_SERVICE_NAME="short-lived",
        OTEL_EXPORTER_OTLP_HEADERS="x-token=a%20b",
    )
    out, err = child.communicate(timeout=50)
    assert (child.returncode, out, err) == (0, "", "")
    assert points(receiver.posts[-1], "orders")[0].as_double == 42
    assert receiver.posts[-1].resource["service.name"] == "short-lived"
    assert receiver.posts[-1].headers["x-token"] == "a b"


def test_a_program_ends_although_its_receiver_hangs(receiver: Receiver, tmp_path: Path) -> None:
    receiver.default = "hang"
    child = program(
        tmp_path,
        """
        from uno.core.monitoring.integration import setup_otlp_exporter
        from uno.core.monitoring.resources import Counter, ResourceMonitor

        monitor = ResourceMonitor()
        monitor.manager.register(object(), id="shop")
        monitor.add_metric("shop", Counter("orders")).inc()
        setup_otlp_exporter(monitor, timeout=3000, interval=0.05)
        monitor.start()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert receiver.posts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_parent_and_forked_children_add_up(receiver: Receiver, tmp_path: Path, temporality: str) -> None:
    child = program(
        tmp_path,
        f"""
        import os, sys
        from uno.core.monitoring.integration import setup_otlp_exporter
        from uno.core.monitoring.resources import Counter, Histogram, ResourceMonitor

        monitor = ResourceMonitor(interval=0.05)
        monitor.manager.register(object(), id="shop")
        orders = monitor.add_metric("shop", Counter("orders"))
        wait = monitor.add_metric("shop", Histogram("wait"))
        exporter = setup_otlp_exporter(monitor, temporality={temporality!r}, interval=3600)
        monitor.start()
        orders.inc(10)
        wait.observe(1)
        assert exporter.flush(10)
        orders.inc(10)
        wait.observe(1)
        children = []
        for n in range(3):
            pid = os.fork()
            if not pid:
                orders.inc(n + 1)
                wait.observe(5)
                monitor.stop()
                os._exit(0)
            children.append(pid)
        assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
        orders.inc(100)
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    _, err = child.communicate(timeout=50)
    assert child.returncode == 0, err
    by_instance: dict[str, list[Any]] = {}
    for post in receiver.posts:
        by_instance.setdefault(post.resource["service.instance.id"], []).append(post)
    assert len(by_instance) == 4
    totals: list[tuple[float, int, float]] = []
    for posts in by_instance.values():
        used = posts if temporality == "delta" else posts[-1:]
        sent = [p for post in used for p in points(post, "orders")]
        seen = [p for post in used for p in points(post, "wait")]
        totals.append((sum(p.as_double for p in sent), sum(p.count for p in seen), sum(p.sum for p in seen)))
    assert sorted(totals) == [(1, 1, 5), (2, 1, 5), (3, 1, 5), (120, 2, 2)]


def test_the_host_goes_on_while_the_receiver_stands_still(
    monitor: ResourceMonitor, receiver: Receiver
) -> None:
    """A frozen receiver process: ticks, recording and scrapes go on."""
    from uno.core.monitoring.integration import setup_prometheus_exporter

    receiver.default = "hang"
    counter = monitor.add_metric("shop", Counter("orders"))
    exporter = setup_otlp_exporter(monitor, receiver.url, interval=0.02)
    monitor.start()
    until(lambda: receiver.posts)
    frame = monitor.store.frame
    assert frame is not None
    counter.inc()
    until(lambda: b'orders{resource="shop"} 1.0' in setup_prometheus_exporter(monitor).render())
    assert len(receiver.posts) == 1
    assert isinstance(exporter, OtlpExporter)


# -- a real store --------------------------------------------------------------------------------------


def ask(server: VictoriaMetrics, query: str) -> dict[tuple[tuple[str, str], ...], float]:
    form = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{server.url}/api/v1/query?{form}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return {tuple(sorted(item["metric"].items())): float(item["value"][1]) for item in found}


@pytest.mark.server
@pytest.mark.timeout(400)  # it may have to be brought first
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_victoria_metrics_takes_it(
    monitor: ResourceMonitor,
    victoria_metrics: VictoriaMetrics,
    compression: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"orders_{compression}"
    orders = monitor.add_metric("shop", Counter(name, labels=["kind"]))
    hostile = 'a"\\\n\u20ac{}'
    orders.labels(hostile).inc(3)
    orders.labels("b").inc(0.5)
    stock = monitor.add_metric("shop", Gauge(f"stock_{compression}"))
    stock.set(-7.25)
    wait = monitor.add_metric("shop", Histogram(f"wait_{compression}", buckets=[0.1, 1]))
    for value in (0.05, 0.5, 0.7, 4.0):
        wait.observe(value)
    exporter = setup_otlp_exporter(
        monitor, victoria_metrics.url + "/opentelemetry/v1/metrics", compression=compression
    )
    assert exporter.flush(20)
    assert own(monitor, "failures") == {}
    with urllib.request.urlopen(victoria_metrics.url + "/internal/force_flush", timeout=10):
        pass
    until(lambda: ask(victoria_metrics, name))
    found = {dict(key)["kind"]: value for key, value in ask(victoria_metrics, name).items()}
    assert found == {hostile: 3, "b": 0.5}
    (key,) = ask(victoria_metrics, f'{name}{{kind="b"}}')
    assert dict(key)["resource"] == "shop"
    assert dict(key)["service.name"] == "shop"
    assert list(ask(victoria_metrics, f"stock_{compression}").values()) == [-7.25]
    assert list(ask(victoria_metrics, f"wait_{compression}_count").values()) == [4]
    assert list(ask(victoria_metrics, f"wait_{compression}_sum").values()) == [5.25]
    buckets = {dict(key)["le"]: v for key, v in ask(victoria_metrics, f"wait_{compression}_bucket").items()}
    assert buckets == {"0.1": 1, "1": 3, "+Inf": 4}


@pytest.mark.server
@pytest.mark.timeout(400)
def test_victoria_metrics_takes_exponential_histograms(
    monitor: ResourceMonitor, victoria_metrics: VictoriaMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [1.5] * 60 + [3.0] * 40
    native = Native(0, 0.0, 0, {1: 60, 2: 40}, {})
    frozen_as(monitor, monkeypatch, {"now": Distribution(100, sum(values), (), native)})
    monitor.add_metric("shop", Histogram("native_wait")).observe(1)
    exporter = setup_otlp_exporter(monitor, victoria_metrics.url + "/opentelemetry/v1/metrics")
    assert exporter.flush(20)
    with urllib.request.urlopen(victoria_metrics.url + "/internal/force_flush", timeout=10):
        pass
    until(lambda: ask(victoria_metrics, "native_wait_count"))
    assert list(ask(victoria_metrics, "native_wait_count").values()) == [100]
    (median,) = ask(victoria_metrics, "histogram_quantile(0.3, native_wait_bucket)").values()
    assert 1 < median <= 2


@pytest.mark.server
@pytest.mark.timeout(400)
def test_a_store_that_is_killed_and_comes_back_has_it_all(
    monitor: ResourceMonitor, victoria_metrics: VictoriaMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    orders = monitor.add_metric("shop", Counter("orders_after_crash"))
    orders.inc(1)
    exporter = setup_otlp_exporter(monitor, victoria_metrics.url + "/opentelemetry/v1/metrics", timeout=0.5)
    victoria_metrics.kill()
    assert not exporter.flush(0.2)
    orders.inc(1)
    assert not exporter.flush(0.2)
    victoria_metrics.start()
    orders.inc(1)
    assert exporter.flush(20)
    with urllib.request.urlopen(victoria_metrics.url + "/internal/force_flush", timeout=10):
        pass
    until(lambda: list(ask(victoria_metrics, "orders_after_crash").values()) == [3])
    url = f"{victoria_metrics.url}/api/v1/export?match[]=orders_after_crash"
    with urllib.request.urlopen(url, timeout=10) as answer:
        (line,) = answer.read().splitlines()
    assert json.loads(line)["values"] == [1, 2, 3]
    assert "connect" in own(monitor, "failures")


def test_a_flush_in_the_first_instant_tells_whether_anybody_took_it() -> None:
    with ResourceMonitor(workers=False) as monitor:
        monitor.manager.register(object(), id="shop")
        monitor.add_metric("shop", Counter("orders_total")).inc(7)
        exporter = setup_otlp_exporter(monitor, endpoint=f"http://127.0.0.1:{free_port()}")
        assert exporter.flush(timeout=2) is False
