"""Does every format say the same, and do the readers of each agree?"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import re
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from abnf import ParseError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.exposition import (
    OPENMETRICS,
    OPENMETRICS_2,
    PROTOBUF,
    TEXT,
    TEXT_1,
    Samples,
    check_grammar,
    decode,
    read_openmetrics,
    read_protobuf,
    read_text,
)
from uno.core.monitoring.buckets import Distribution, NativeBuckets
from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus import PrometheusExporter, layout, page
from uno.core.monitoring.metrics import CounterCell, GaugeCell, HistogramCell, Spec
from uno.core.monitoring.names import STANDARD, wire_name
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor, Threshold
from uno.core.monitoring.series import Frame

UTF8 = ";escaping=allow-utf-8"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    yield monitor
    monitor.stop()


@pytest.fixture
def exporter(monitor: ResourceMonitor) -> PrometheusExporter:
    return PrometheusExporter(monitor, prometheus_client=False)


def fill(monitor: ResourceMonitor) -> None:
    orders = monitor.add_metric("shop", Counter("orders_total", "Orders\nand \\ more", ["http.route"]))
    for n in range(600):
        orders.labels(f"/{n} %d.0 \"'\\\n é😀").inc(n)
    monitor.add_metric("shop", Gauge("temperature_celsius", "", ["a"])).labels("100%").set(-1.5)
    monitor.add_metric("shop", Gauge("gap", "Nothing to tell")).set(math.nan)
    wait = monitor.add_metric(
        "shop", Histogram("wait_seconds", "Waiting", ["a"], unit="s", buckets=[0.1, 1e6])
    )
    for n in range(40):
        wait.labels(str(n)).observe(n)
    monitor.set_threshold("shop", "temperature_celsius", Threshold(warning=-10))
    monitor.manager.register(None, id="odd", read=lambda: {"pool size": 1, "größe": 2.5, "a.b": 3})
    monitor.tick()


# -- all formats say the same --------------------------------------------------------------------------


@pytest.mark.parametrize("escaping", ["underscores", "values", "dots", "allow-utf-8"])
def test_every_format_has_the_same_samples(
    monitor: ResourceMonitor, exporter: PrometheusExporter, escaping: str
) -> None:
    fill(monitor)
    suffix = f";escaping={escaping}"
    text = read_text(exporter.render(f"text/plain;version=1.0.0{suffix}"))
    assert len(text) > 600 + 40 * 5
    assert sum(value for (name, _), value in text.items() if name.startswith("orders")) == sum(range(600))
    assert read_protobuf(exporter.render(PROTOBUF + suffix)) == text
    assert read_openmetrics(exporter.render(OPENMETRICS + suffix)) == text
    if escaping == "underscores":
        assert read_text(exporter.render(TEXT)) == text
        assert read_openmetrics(exporter.render("application/openmetrics-text;version=0.0.1")) == text


def test_the_grammars_hold(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    fill(monitor)
    wanted = "name[]=wait_seconds&name[]=temperature_celsius&name[]=uno_resource_health&name[]=uno_alert&name[]=größe"
    check_grammar(exporter.render(OPENMETRICS, wanted))
    check_grammar(exporter.render(OPENMETRICS_2 + UTF8, wanted), "openmetrics-2.0-rc0.abnf")
    only = exporter.render(OPENMETRICS, "name[]=temperature_celsius")
    assert only == (
        b"# TYPE temperature_celsius gauge\n# HELP temperature_celsius temperature_celsius\n"
        b'temperature_celsius{resource="shop",a="100%"} -1.5\n# EOF\n'
    )
    for line in ('x{a="b} 1', "x 1 2 3", "# TIP x y", "x 1\r", 'x{a-b="c"} 1'):  # the check itself can fail
        with pytest.raises(ParseError):
            check_grammar(f"{line}\n# EOF\n".encode())


def test_promtool_has_no_remark(
    exporter: PrometheusExporter, monitor: ResourceMonitor, promtool: str
) -> None:
    orders = monitor.add_metric("shop", Counter("orders_total", "Orders", ["route"]))
    orders.labels('/ \\ " \n é').inc()
    monitor.add_metric("shop", Gauge("queue_bytes", "Waiting", unit="By")).set(3)
    monitor.add_metric("shop", Histogram("wait_seconds", "Waiting", unit="s")).observe(0.2)
    with monitor:
        deadline = time.monotonic() + 10
        while not monitor.series("process"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monitor.tick()
        page = exporter.render()
    assert b"process_cpu_time_seconds_total" in page
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    remarks = done.stderr.decode().splitlines()
    # OpenTelemetry's conventions call some gauges "...count", which is their name here, too.
    assert [line for line in remarks if line.split(" ")[0] not in COUNTS] == []
    assert all(line.endswith('should not have "_count" suffix') for line in remarks)


COUNTS = {wire_name(spec) for spec in STANDARD.values() if spec.name.endswith(".count")}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.sampled_from(
    ["a_total", "a", "a_created", "a_info", "a_bucket", "a_sum", "a_count", "uno_resource", "uno_resource_info", "x.y",
     "x_y", "5", "é", "%s", "%", '"', "\\", "\n", "le", "U__a", "__", "a b", "# EOF", "{}", "nan"]
)  # fmt: skip
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["\n", '"', "\\", "\\n", "a\r\nb", "%d.0", " %d.0", "%", "} 1\nx 2", "é😀", "# {}", " # EOF"]
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    families=st.dictionaries(
        NAMES,
        st.tuples(
            st.sampled_from(["counter", "gauge", "histogram"]),
            NAMES.filter(lambda label: label not in ("le", "quantile", "resource")),
            st.dictionaries(VALUES, st.floats(), max_size=4),
            VALUES,
            st.sampled_from(["", "s", "By", "1", "seconds", "{x}", 'a"b']),
        ),
        max_size=6,
    ),
    escaping=st.sampled_from(["underscores", "dots", "values", "allow-utf-8"]),
)
def test_whatever_the_names_the_labels_and_the_numbers_the_readers_agree(
    families: dict[str, tuple[Any, str, dict[str, float], str, str]], escaping: str
) -> None:
    monitor = ResourceMonitor()
    for name, (kind, label, cells, help, unit) in families.items():
        spec = Spec(name, kind, help, unit, (label,))
        for value, number in cells.items():
            if kind == "histogram":
                cell = HistogramCell((0.1, 1.0))
                cell.observe(abs(number) if math.isfinite(number) else 1.0)
                monitor.store.add("r", spec, (value,), cell)
            elif kind == "counter":
                counter = CounterCell()
                counter.set_total(abs(number) if math.isfinite(number) else 1.0)
                monitor.store.add("r", spec, (value,), counter)
            else:
                monitor.store.add("r", spec, (value,), GaugeCell(number))
    exporter = PrometheusExporter(monitor, created=False, prometheus_client=False)
    suffix = f";escaping={escaping}"
    said = exporter.render(OPENMETRICS + suffix)
    if escaping != "allow-utf-8":
        check_grammar(said)
        if escaping == "underscores":
            assert len(read_openmetrics(said)) == len(unparsed(said))
    check_grammar(exporter.render(OPENMETRICS_2 + suffix), "openmetrics-2.0-rc0.abnf")
    binary = read_protobuf(exporter.render(PROTOBUF + suffix))
    plain = unparsed(exporter.render(f"text/plain;version=1.0.0{suffix}"))
    assert plain == binary
    assert unparsed(said) == binary


LINE = re.compile(
    r'(?:([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?|\{"((?:[^"\\]|\\.)*)",?(.*)\}) (\S+)', re.DOTALL
)
PAIR = re.compile(r'(?:([a-zA-Z_][a-zA-Z0-9_]*)|"((?:[^"\\]|\\.)*)")="((?:[^"\\]|\\.)*)"(?:,|$)', re.DOTALL)


def unparsed(page: bytes) -> Samples:
    """A reader of text that knows nothing of types, unlike prometheus_client's, which has rules for names."""

    def plain(text: str) -> str:
        return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)

    found: Samples = {}
    for line in page.decode().split("\n"):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name = match[1] if match[1] is not None else plain(match[3])
        rest = (match[2] if match[1] is not None else match[4]) or ""
        labels: dict[str, str] = {}
        while rest:
            pair = PAIR.match(rest)
            assert pair, line
            key = pair[1] if pair[1] is not None else plain(pair[2])
            assert key not in labels, line
            labels[key] = plain(pair[3])
            rest = rest[pair.end() :]
        key_of = (name, tuple(sorted(labels.items())))
        assert key_of not in found, line
        found[key_of] = float(match[5])
    return found


# -- OpenMetrics ---------------------------------------------------------------------------------------


def test_types_units_info_and_stateset(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    monitor.add_metric("shop", Counter("orders_total", "Orders")).inc()
    monitor.add_metric("shop", Counter("visits", "Visits")).inc()
    monitor.add_metric("shop", Counter("busy_seconds_total", "Busy", unit="s")).inc()
    monitor.add_metric("shop", Gauge("size", "No suffix", unit="By")).set(1)
    monitor.tick()
    said = exporter.render(OPENMETRICS).decode()
    for lines in (
        '# TYPE orders counter\n# HELP orders Orders\norders_total{resource="shop"} 1.0\n',
        # Without _total it is no counter in OpenMetrics. Its name stays, so that queries find it in every format.
        '# TYPE visits unknown\n# HELP visits Visits\nvisits{resource="shop"} 1.0\n',
        "# TYPE busy_seconds counter\n# UNIT busy_seconds seconds\n# HELP busy_seconds Busy\n",
        "# TYPE size gauge\n# HELP size No suffix\n",
        "# TYPE uno_resource info\n",
        'uno_resource_info{resource="shop",type="custom",name="shop",endpoint=""} 1.0\n',
        "# TYPE uno_resource_health stateset\n",
        'uno_resource_health{resource="shop",uno_resource_health="unknown"} 1.0\n',
        'uno_resource_health{resource="shop",uno_resource_health="up"} 0.0\n',
    ):
        assert lines in said
    assert said.endswith("\n# EOF\n")
    second = exporter.render(OPENMETRICS_2).decode()
    assert '# TYPE visits counter\n# HELP visits Visits\nvisits{resource="shop"} 1.0 st@' in second
    assert "# TYPE busy_seconds_total counter\n# UNIT busy_seconds_total seconds\n" in second


def test_a_counter_whose_family_is_anothers_name_keeps_its_line(
    monitor: ResourceMonitor, exporter: PrometheusExporter, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.add_metric("shop", Counter("orders_total")).inc(2)
    monitor.add_metric("shop", Gauge("orders")).set(1)
    monitor.add_metric("shop", Gauge("wait_created")).set(5)
    monitor.add_metric("shop", Histogram("wait")).observe(0.1)
    samples = read_openmetrics(exporter.render(OPENMETRICS), created=True)
    shop = (("resource", "shop"),)
    assert samples["orders_total", shop] == 2
    assert samples["orders", shop] == 1
    assert samples["wait_count", shop] == 1
    # That name is reserved for the histogram there, and only there.
    assert samples["wait_created", shop] > 1_000_000_000
    assert read_text(exporter.render())["wait_created", shop] == 5
    assert [
        record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"
    ] == ["wait_created of shop is left out: OpenMetrics takes it for a part of another metric"]


def test_a_sum_that_may_fall_is_no_counter(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    monitor.add_metric("shop", Histogram("change", buckets=[-1, 0, 1])).observe(0.5)
    monitor.add_metric("shop", Histogram("below", buckets=[1])).observe(-3)
    samples = read_openmetrics(exporter.render(OPENMETRICS))
    assert not [
        name for name, _ in samples if name in ("change_sum", "change_count", "below_sum", "below_count")
    ]
    assert samples["below_bucket", (("le", "1.0"), ("resource", "shop"))] == 1
    text = read_text(exporter.render(TEXT))
    assert text["below_sum", (("resource", "shop"),)] == -3


def made_by_hand(monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter and two histograms with everything that they can have."""
    begun, now = 1_700_000_000.25, time.time()
    counter = CounterCell()
    counter.inc(7)
    counter.created = begun
    counter.exemplar = Exemplar((("trace_id", "4bf92f35"),), 2.0, begun + 1)
    monitor.store.add("shop", Spec("jobs_total", "counter", "Jobs"), (), counter)
    for name, bounds in (("both_seconds", (0.1, 1.0)), ("native_seconds", ())):
        cell = HistogramCell(bounds or None, native=True)
        cell.created = begun
        cell.exemplars = {1: Exemplar((("trace_id", "b"),), 0.7, begun + 2)} if bounds else None
        monitor.store.add("shop", Spec(name, "histogram", "Both", "s", ("a",)), ("x%",), cell)
    monitor.tick()
    frame = monitor.store.frame
    assert frame is not None
    assert frame.time >= now
    native = NativeBuckets(3, 1e-9, 2, {-3: 1, -2: 2, 5: 1, 8: 4}, {0: 1})
    for series in monitor.store.select("shop"):
        if series.metric.kind == "histogram":
            counts = (4, 5, 2) if series.metric.name == "both_seconds" else ()
            frame.histograms[series] = Distribution(11, 12.5, counts, native)
    monkeypatch.setattr(monitor, "freeze", lambda: None)


def test_beginnings_and_exemplars(
    monitor: ResourceMonitor, exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_hand(monitor, monkeypatch)
    wanted = "name[]=jobs_total&name[]=both_seconds&name[]=native_seconds"
    said = exporter.render(OPENMETRICS, wanted)
    check_grammar(said)
    assert said.decode() == (
        "# TYPE both_seconds histogram\n# UNIT both_seconds seconds\n# HELP both_seconds Both\n"
        'both_seconds_bucket{resource="shop",a="x%",le="0.1"} 4\n'
        'both_seconds_bucket{resource="shop",a="x%",le="1.0"} 9 # {trace_id="b"} 0.7 1700000002.250\n'
        'both_seconds_bucket{resource="shop",a="x%",le="+Inf"} 11\n'
        'both_seconds_sum{resource="shop",a="x%"} 12.5\n'
        'both_seconds_count{resource="shop",a="x%"} 11\n'
        'both_seconds_created{resource="shop",a="x%"} 1700000000.250\n'
        "# TYPE jobs counter\n# HELP jobs Jobs\n"
        'jobs_total{resource="shop"} 7.0 # {trace_id="4bf92f35"} 2.0 1700000001.250\n'
        'jobs_created{resource="shop"} 1700000000.250\n'
        "# TYPE native_seconds histogram\n# UNIT native_seconds seconds\n# HELP native_seconds Both\n"
        'native_seconds_bucket{resource="shop",a="x%",le="+Inf"} 11\n'
        'native_seconds_sum{resource="shop",a="x%"} 12.5\n'
        'native_seconds_count{resource="shop",a="x%"} 11\n'
        'native_seconds_created{resource="shop",a="x%"} 1700000000.250\n'
        "# EOF\n"
    )
    assert read_openmetrics(said, created=True)["jobs_created", (("resource", "shop"),)] == 1_700_000_000.25
    without = PrometheusExporter(monitor, created=False, prometheus_client=False)
    assert b"_created" not in without.render(OPENMETRICS)
    assert b"#" not in exporter.render(TEXT, "name[]=jobs_total").split(b"\n")[2], "not in the old format"


def test_openmetrics_2_has_native_histograms(
    monitor: ResourceMonitor, exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_hand(monitor, monkeypatch)
    said = exporter.render(OPENMETRICS_2, "name[]=jobs_total&name[]=both_seconds")
    check_grammar(said, "openmetrics-2.0-rc0.abnf")
    assert (
        'both_seconds{resource="shop",a="x%"} {count:11,sum:12.5,schema:3,zero_threshold:1e-09,zero_count:2,'
        "negative_spans:[0:1],negative_buckets:[1],positive_spans:[-3:2,6:4],positive_buckets:[1,2,1,0,0,4],"
        'bucket:[0.1:4,1.0:9,+Inf:11]} st@1700000000.250 # {trace_id="b"} 0.7 1700000002.250\n'
    ) in said.decode()
    assert 'jobs_total{resource="shop"} 7.0 st@1700000000.250 # {trace_id=' in said.decode()


# -- protobuf ------------------------------------------------------------------------------------------


def test_protobuf_has_native_histograms_beginnings_and_exemplars(
    monitor: ResourceMonitor, exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_hand(monitor, monkeypatch)
    families = {family.name: family for family in decode(exporter.render(PROTOBUF))}
    counter = families["jobs_total"].metric[0].counter
    assert (families["jobs_total"].type, counter.value) == (0, 7)
    assert (counter.created_timestamp.seconds, counter.created_timestamp.nanos) == (
        1_700_000_000,
        250_000_000,
    )
    assert (counter.exemplar.value, counter.exemplar.label[0].value) == (2.0, "4bf92f35")
    assert families["both_seconds"].unit == "seconds"
    for name, buckets in (("both_seconds", [(4, 0.1), (9, 1.0), (11, math.inf)]), ("native_seconds", [])):
        h = families[name].metric[0].histogram
        assert [(bucket.cumulative_count, bucket.upper_bound) for bucket in h.bucket] == buckets
        assert (h.sample_count, h.sample_sum) == (11, 12.5)
        assert (h.schema, h.zero_threshold, h.zero_count) == (3, 1e-9, 2)
        assert h.created_timestamp.seconds == 1_700_000_000
        assert unpacked(h.positive_span, h.positive_delta) == {-3: 1, -2: 2, 5: 1, 8: 4}
        assert unpacked(h.negative_span, h.negative_delta) == {0: 1}
    assert [e.value for e in families["both_seconds"].metric[0].histogram.exemplars] == [0.7]
    assert families["both_seconds"].metric[0].histogram.bucket[1].exemplar.timestamp.seconds == 1_700_000_002


def unpacked(spans: Any, deltas: Any) -> dict[int, int]:
    """The buckets of a native histogram, as a reader of metrics.proto finds them."""
    found: dict[int, int] = {}
    index = count = 0
    changes = iter(deltas)
    for span in spans:
        index += span.offset
        for _ in range(span.length):
            count += next(changes)
            if count:
                found[index] = count
            index += 1
    assert next(changes, None) is None
    return found


@settings(deadline=None)
@given(
    buckets=st.dictionaries(st.integers(-2_000, 2_000), st.integers(0, 2**53), max_size=30),
    schema=st.integers(-4, 8),
    counts=st.lists(st.integers(0, 2**40), min_size=3, max_size=3),
    total=st.floats(allow_nan=False),
)
def test_any_histogram_is_decoded_as_it_was(
    buckets: dict[int, int], schema: int, counts: list[int], total: float
) -> None:
    monitor = ResourceMonitor()
    series = monitor.store.add("r", Spec("h", "histogram"), (), HistogramCell((0.1, 1.0)))
    assert series is not None
    frame = monitor.store.tick(1.0)
    native = NativeBuckets(schema, 0.0, 0, buckets, buckets)
    frame.histograms[series] = Distribution(sum(counts), total, tuple(counts), native)
    monitor.freeze = lambda: None  # type: ignore[method-assign]
    (family,) = decode(PrometheusExporter(monitor, prometheus_client=False).render(PROTOBUF, "name[]=h"))
    h = family.metric[0].histogram
    assert unpacked(h.positive_span, h.positive_delta) == {i: n for i, n in buckets.items() if n}
    assert unpacked(h.negative_span, h.negative_delta) == {i: n for i, n in buckets.items() if n}
    assert (h.schema, h.sample_sum, h.bucket[-1].cumulative_count) == (schema, total, sum(counts))
    assert len(h.positive_span) > 0 or not any(buckets.values())
    assert h.HasField("schema")


# -- filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS, PROTOBUF])
def test_filters(monitor: ResourceMonitor, exporter: PrometheusExporter, accept: str) -> None:
    read = {TEXT: read_text, OPENMETRICS: read_openmetrics, PROTOBUF: read_protobuf}[accept]
    fill(monitor)
    everything = read(exporter.render(accept))

    def names(query: str) -> set[str]:
        found = read(exporter.render(accept, query))
        assert found.items() <= everything.items()
        return {name for name, _ in found}

    assert names("name[]=orders_total") == {"orders_total"}
    assert names("name[]=wait_seconds_sum") == {
        "wait_seconds_bucket",
        "wait_seconds_sum",
        "wait_seconds_count",
    }
    assert names("name[]=uno.monitor.series&name[]=uno_alert") == {"uno_monitor_series", "uno_alert"}
    assert names("name[]=nothing") == set()
    assert "pool_size" in names("resource=odd")
    assert "orders_total" not in names("resource=odd")
    assert names("resource=odd&name[]=gr__e") == {"gr__e"}
    assert names("resource=nobody") == set()
    assert names("resource=odd&resource=shop") >= {"pool_size", "orders_total", "uno_resource_info"}


# -- what is kept between two scrapes ------------------------------------------------------------------


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS, PROTOBUF])
def test_a_page_after_changes_is_the_page_of_a_new_exporter(monitor: ResourceMonitor, accept: str) -> None:
    exporter = PrometheusExporter(monitor, prometheus_client=False)
    gauge = monitor.add_metric("shop", Gauge("g", "G", ["n"]))
    wait = monitor.add_metric("shop", Histogram("w", "W", ["n"]))
    store = monitor.store

    def put(numbers: Iterable[int], value: Callable[[int], float]) -> None:
        for n in numbers:
            gauge.labels(str(n)).set(value(n))

    def observe(numbers: Iterable[int]) -> None:
        for n in numbers:
            wait.labels(str(n)).observe(n)

    steps: list[Callable[[], object]] = [
        lambda: put(range(700), float),
        lambda: gauge.labels("300").set(1.25),
        lambda: put(range(0, 700, 3), lambda n: math.nan),
        lambda: put(range(512), lambda n: math.nan),
        lambda: put(range(700), lambda n: math.inf if n % 2 else 1e300),
        lambda: observe(range(40)),
        lambda: None,
        lambda: wait.labels("7").observe(1),
        lambda: gauge.labels("new").set(1),
        lambda: wait.labels("new").observe(1),
        lambda: store.add("other", Spec("g", "gauge", "G", "", ("n",)), ("x",), CounterCell()),
        lambda: store.remove("other"),
        lambda: store.remove("shop"),
    ]
    for step in steps:
        step()
        store.tick(time.time())
        monitor.freeze = lambda: None  # type: ignore[method-assign]
        fresh = PrometheusExporter(monitor, prometheus_client=False)
        assert exporter.render(accept) == fresh.render(accept)


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS, PROTOBUF], ids=["text", "openmetrics", "protobuf"])
def test_a_removed_series_has_no_line(
    monitor: ResourceMonitor, exporter: PrometheusExporter, accept: str
) -> None:
    orders = monitor.add_metric("shop", Counter("orders_total", "Orders", ["route"]))
    wait = monitor.add_metric("shop", Histogram("wait_seconds", "Waiting", ["route"], unit="s"))
    for route in ("/a", "/b"):
        orders[route].inc(3)
        wait[route].observe(0.1)
    monitor.tick()
    assert b"/a" in exporter.render(accept)
    orders.remove("/a")
    wait.remove("/a")
    for _ in range(2):  # at once, and after the next tick
        page = exporter.render(accept)
        assert b"/a" not in page
        assert b"/b" in page
        monitor.tick()
    orders.clear()
    assert b"orders_total" not in exporter.render(accept)
    orders["/a"].inc()
    monitor.tick()
    assert b"/a" in exporter.render(accept)


def test_unchanged_chunks_are_not_made_again(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    gauge = monitor.add_metric("shop", Gauge("g", "G", ["n"]))
    for n in range(1_000):
        gauge.labels(str(n)).set(n)
    exporter.respond("gzip")

    def kept() -> list[tuple[bytes, bytes | None]]:
        ((known, _),) = exporter._layouts.values()
        (family,) = [family for family in known.families if family.name == "g"]
        return [(chunk.last.plain, chunk.last.packed) for chunk in family.chunks]

    before = kept()
    assert len(before) == 4
    gauge.labels("600").set(0.5)
    gauge.labels("new").set(0.5)
    body, _ = exporter.respond("gzip")
    after = kept()
    same = [a[0] is b[0] and a[1] is b[1] for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, False]
    assert gzip.decompress(body) == exporter.render()


def test_what_is_kept_is_bounded(exporter: PrometheusExporter, monitor: ResourceMonitor) -> None:
    monitor.add_metric("shop", Gauge("g")).set(1)
    for accept in (TEXT, OPENMETRICS, OPENMETRICS_2, PROTOBUF, "text/plain;version=1.0.0"):
        for escaping in ("underscores", "dots", "values", "allow-utf-8"):
            exporter.render(f"{accept};escaping={escaping}")
            for n in range(3):
                exporter.render(accept, f"resource=shop&name[]={n}")
    assert len(exporter._layouts) <= 4


def test_compressed_pages_are_one_member(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    fill(monitor)
    for _ in range(2):
        body, headers = exporter.respond("gzip")
        assert headers["content-encoding"] == "gzip"
        reader = zlib.decompressobj(31)  # as httpx and aiohttp read it: what follows the first member is lost
        assert reader.decompress(body) == exporter.render()
        assert reader.eof
        assert reader.unused_data == b""
        assert len(body) < len(exporter.render()) / 4


# -- nobody is held ------------------------------------------------------------------------------------


async def test_a_large_page_is_made_in_many_steps(
    monitor: ResourceMonitor, exporter: PrometheusExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = monitor.add_metric("shop", Gauge("g", "G", ["a", "b"]))
    for n in range(900):
        gauge.labels(str(n), "x").set(n)
    wait = monitor.add_metric("shop", Histogram("w", "W", ["n"]))
    for n in range(100):
        wait.labels(str(n)).observe(n)
    for n in range(200):
        monitor.manager.register(object(), id=f"r{n}")
    monitor.tick()
    steps = exporter.answer("", "gzip", "")
    sizes: list[int] = []
    render = layout.ScalarChunk.render

    def counting(chunk: layout.ScalarChunk, frame: Frame) -> layout.Rendered:
        sizes.append(len(chunk.series))
        return render(chunk, frame)

    monkeypatch.setattr(layout.ScalarChunk, "render", counting)
    taken = sum(1 for _ in steps)
    chunks = math.ceil(900 / layout.SCALARS) + math.ceil(100 / layout.HISTOGRAMS)
    assert max(sizes) <= layout.SCALARS
    assert taken >= 2 * chunks + 200 / 50  # laid out, then rendered; and the state of resources
    monkeypatch.setattr(page, "SLICE", 0.0)
    turns = 0
    done = asyncio.ensure_future(exporter.respond_in_loop("gzip"))
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= chunks, "the loop goes round between two steps"
    parts, _ = done.result()
    assert gzip.decompress(b"".join(parts)) == exporter.render()


async def test_many_scrapes_at_once(monitor: ResourceMonitor, exporter: PrometheusExporter) -> None:
    fill(monitor)
    accepts = [TEXT, OPENMETRICS, PROTOBUF] * 4
    answers = await asyncio.gather(*(exporter.respond_in_loop("", accept) for accept in accepts))
    expected = {accept: exporter.render(accept) for accept in set(accepts)}
    for accept, (parts, _) in zip(accepts, answers, strict=True):
        assert b"".join(parts) == expected[accept]


def test_a_clash_is_said_once_for_all_formats(
    monitor: ResourceMonitor, exporter: PrometheusExporter, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.manager.register(None, id="odd", read=lambda: {"pool size": 1, "pool-size": 2})
    monitor.tick()
    with caplog.at_level(logging.WARNING, "uno.exporters"):
        for _ in range(2):
            for accept in (TEXT, OPENMETRICS, PROTOBUF):
                exporter.render(accept)
    assert [
        record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"
    ] == ["pool_size of odd is left out: another metric of the resource has the same name here"]
    both = exporter.render(TEXT_1).decode()
    assert '{"pool size",resource="odd"} 1.0\n' in both
    assert '{"pool-size",resource="odd"} 2.0\n' in both


def test_dotted_names_are_for_those_who_want_them(monitor: ResourceMonitor) -> None:
    monitor.add_metric("shop", Counter("shop.orders", "Orders", ["http.route"], unit="s")).labels("/").inc()
    plain = PrometheusExporter(monitor, prometheus_client=False)
    dotted = PrometheusExporter(monitor, prometheus_client=False, dotted_names=True)
    line = 'shop_orders_seconds_total{resource="shop",http_route="/"} 1.0\n'
    assert line in plain.render(TEXT_1).decode()
    assert line in plain.render(OPENMETRICS + UTF8).decode()
    assert line in dotted.render(TEXT).decode()
    assert (
        '{"shop.orders_seconds_total",resource="shop","http.route"="/"} 1.0\n'
        in dotted.render(TEXT_1).decode()
    )
    said = dotted.render(OPENMETRICS + UTF8).decode()
    assert '# TYPE "shop.orders_seconds" counter\n# UNIT "shop.orders_seconds" seconds\n' in said


def test_scrapes_while_columns_move_never_mix_series(
    monitor: ResourceMonitor, exporter: PrometheusExporter
) -> None:
    store = monitor.store
    wrong: list[object] = []
    pages = 0
    over = threading.Event()

    def add(number: int) -> None:
        for n in range(30):
            store.add(
                f"r{number}", Spec("g", "gauge", "", "", ("n",)), (str(n),), GaugeCell(number * 100.0 + n)
            )

    def scrape(accept: str, read: Callable[[bytes], Samples]) -> None:
        nonlocal pages
        while not over.is_set():
            for (name, pairs), value in read(exporter.render(accept)).items():
                labels = dict(pairs)
                if name == "g" and value != int(labels["resource"][1:]) * 100 + int(labels["n"]):
                    wrong.append((labels, value))
            pages += 1

    monitor.freeze = lambda: None  # type: ignore[method-assign]
    readers = [(TEXT, unparsed), (TEXT, unparsed), (OPENMETRICS, unparsed), (PROTOBUF, read_protobuf)]
    threads = [threading.Thread(target=scrape, args=reader) for reader in readers]
    for thread in threads:
        thread.start()
    moved = 0
    deadline = time.monotonic() + 30
    number = 0
    while (moved < 3 or pages < 40) and time.monotonic() < deadline:
        add(number)
        if number >= 20:
            store.remove(f"r{number - 20}")
        number += 1
        placed = store.placed
        store.tick(time.time())
        moved += store.placed != placed
    over.set()
    for thread in threads:
        thread.join(10)
    assert moved >= 3, "columns were put closer together"
    assert pages >= 40
    assert wrong == []
