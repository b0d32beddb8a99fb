"""Does UnoMeterProvider do what OpenTelemetry's specification asks of a MeterProvider, and record into the monitor?"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, IntEnum
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from uno.core.monitoring.otel import UnoMeterProvider, View
from uno.core.monitoring.resources import ResourceMonitor


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(interval=3_600, collect_timeout=0.5) as monitor:
        yield monitor


@pytest.fixture
def provider(monitor: ResourceMonitor) -> UnoMeterProvider:
    return UnoMeterProvider(monitor)


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged of OpenTelemetry; a slow machine may log of something else meanwhile."""
    return [record for record in caplog.records if record.name == "uno.otel"]


def read(monitor: ResourceMonitor, metric: str, resource: str = "shop", stat: str = "") -> dict[str, Any]:
    """The values of a metric by "name=value,..." of its labels."""
    monitor.tick()
    found = {}
    for reading in monitor.series(resource):
        if reading.metric == metric:
            default = {"counter": "total", "gauge": "value", "histogram": "count"}[reading.kind]
            labels = ",".join(f"{name}={value}" for name, value in reading.labels.items())
            found[labels] = reading.stats[stat or default]
    return found


# -- instruments ---------------------------------------------------------------------------------------


def test_synchronous_instruments(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    meter = provider.get_meter("shop", "1.2")
    counter = meter.create_counter("orders", "{order}", "Orders taken")
    counter.add(1)
    counter.add(2.5, {"kind": "web"})
    counter.add(0, {"kind": "none"})
    queue = meter.create_up_down_counter("queue")
    queue.add(5)
    queue.add(-2)
    temperature = meter.create_gauge("temperature", "Cel")
    temperature.set(20, {"room": "a"})
    temperature.set(-3.5, {"room": "a"})
    wait = meter.create_histogram("wait", "s", explicit_bucket_boundaries_advisory=[0.1, 1])
    for value in (0.05, 0.5, 5, 0):
        wait.record(value)
    assert read(monitor, "orders") == {"": 1, "kind=web": 2.5, "kind=none": 0}
    assert read(monitor, "queue") == {"": 3}
    assert read(monitor, "temperature") == {"room=a": -3.5}
    assert read(monitor, "wait") == {"": 4}
    (series,) = monitor.store.select("shop", "wait")
    assert monitor.store.frame is not None
    assert monitor.store.frame.histograms[series][2] == (2, 1, 1)
    resource = monitor.manager.get("shop")
    assert (resource.type, resource.labels) == ("opentelemetry", {"version": "1.2"})
    (orders,) = monitor.store.select("shop", "orders")[:1]
    assert (orders.metric.unit, orders.metric.description) == ("{order}", "Orders taken")


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "1", None, [], 10**400])
def test_bad_amounts_are_dropped_and_said_once(
    monitor: ResourceMonitor, provider: UnoMeterProvider, bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    meter = provider.get_meter("shop")
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    up_down, gauge = meter.create_up_down_counter("u"), meter.create_gauge("g")
    with caplog.at_level(logging.WARNING, "uno"):
        for _ in range(3):
            for attributes in (None, {"a": "b"}, {"a": ["x"]}):
                counter.add(bad, attributes)
                histogram.record(bad, attributes)
                if bad != -1:
                    up_down.add(bad, attributes)
                    gauge.set(bad, attributes)
    assert len(said(caplog)) == (2 if bad == -1 else 4)
    for instrument, method in ((counter, "add"), (histogram, "record"), (up_down, "add"), (gauge, "set")):
        getattr(instrument, method)(2)
    assert [read(monitor, name).get("") for name in "chug"] == [2, 1, 2, 2]


def test_attributes_of_every_kind(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    class Kind(str, Enum):  # noqa: UP042 - as many programs have it
        WEB = "web"

    class Code(IntEnum):
        OK = 200

    counter = provider.get_meter("shop").create_counter("c")
    cases: list[tuple[Any, str]] = [
        ("x", "x"), ("", ""), (True, "true"), (False, "false"), (1, "1"), (0, "0"), (1.5, "1.5"), (200, "200"),
        (200.0, "200"), (Code.OK, "200"), (Kind.WEB, "web"), ("web", "web"), (["a", "b"], '["a", "b"]'),
        (("a", "b"), '["a", "b"]'), ([True, False], "[true, false]"), ([1, 2.5], "[1, 2.5]"), ([], "[]"),
        (b"\x00\xff", "AP8="), (float("nan"), "NaN"), (-(2**70), str(-(2**70))), ({"a": [1]}, '{"a": [1]}'),
    ]  # fmt: skip
    for value, text in cases:
        before = read(monitor, "c").get(f"v={text}", 0)
        for _ in range(2):  # found anew, and remembered
            counter.add(1, {"v": value})
        assert read(monitor, "c")[f"v={text}"] == before + 2, value
    found = read(monitor, "c")
    assert found["v=true"] == found["v=1"] == 2
    assert found["v=200"] == 6


def test_what_is_no_attribute_is_left_out(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    counter = provider.get_meter("shop").create_counter("c")
    with caplog.at_level(logging.WARNING, "uno"):
        odd: Any = {"ok": "yes", "bad": Secret(), "none": None, "": "x", 5: "x", "deep": [[[[[[1]]]]]]}
        counter.add(1, odd)
        counter.add(1, odd)
    assert read(monitor, "c") == {"ok=yes": 2}
    assert "hunter2" not in caplog.text
    assert len(said(caplog)) == 1


def test_attribute_sets(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    """The order does not matter; names do; what uno sets itself is called otherwise; text is bounded."""
    counter = provider.get_meter("shop").create_counter("c")
    counter.add(1, {"a": "1", "b": "2"})
    counter.add(1, {"b": "2", "a": "1"})
    counter.add(1, {"a": "2", "b": "1"})
    counter.add(1, {"c": "1", "d": "2"})
    counter.add(1, {"le": "x", "resource": "y", "__name__": "z"})
    counter.add(1, {"long": "x" * 10_000})
    attributes = {"a": "mutable"}
    counter.add(1, attributes)
    attributes["a"] = "changed"
    counter.add(1, attributes)
    found = read(monitor, "c")
    (long,) = [key for key in found if key.startswith("long=")]
    assert len(found.pop(long) and long) < 300
    assert found == {
        "a=1,b=2": 2,
        "a=2,b=1": 1,
        "c=1,d=2": 1,
        "otel.__name__=z,otel.le=x,otel.resource=y": 1,
        "a=mutable": 1,
        "a=changed": 1,
    }


def test_attributes_without_bounds_are_cut_and_not_remembered(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    counter = provider.get_meter("shop").create_counter("c")
    with caplog.at_level(logging.WARNING, "uno"):
        counter.add(1, {"k" * 10_000: "x"})
        counter.add(1, {"__" + "k" * 10_000: "x"})
        for _ in range(2):
            counter.add(1, {f"a{n:04}": n for n in range(500)})
    found = read(monitor, "c")
    assert sorted(map(len, found)) == [202, 202, sum(len(f"a{n:04}={n},") for n in range(128)) - 1]
    assert sorted(found.values()) == [1, 1, 2]
    assert "more than 128 attributes" in caplog.text

    def work() -> None:
        for n in range(300):
            counter.add(1, {"body": f"{n}" + "x" * 100_000})

    tracemalloc.start()
    try:
        work()
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()


def test_too_many_attribute_sets_share_one_series(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    counter = provider.get_meter("shop").create_counter("c")
    with caplog.at_level(logging.WARNING, "uno"):
        for n in range(2_500):
            counter.add(1, {"user": f"u{n}"})
        counter.add(1, {"user": "u0"})
    found = read(monitor, "c")
    assert len(found) == 2_001
    assert found["otel.metric.overflow=true"] == 500
    assert found["user=u0"] == 2
    assert sum(found.values()) == 2_501
    assert len(said(caplog)) == 1


# -- callbacks -----------------------------------------------------------------------------------------


def test_observable_instruments(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    given: list[Any] = []
    value = 10.0

    def total(options: CallbackOptions) -> list[Observation]:
        given.append((options.timeout_millis, threading.current_thread().name))
        return [Observation(value, {"kind": "a"}), Observation(1)]

    def generator() -> Iterator[list[Observation]]:
        options = yield []
        while True:
            assert isinstance(options, CallbackOptions)
            options = yield [Observation(7)]

    def lazily(options: CallbackOptions) -> Iterator[Observation]:
        yield Observation(1.5)

    meter = provider.get_meter("shop")
    meter.create_observable_counter("total", [total])
    meter.create_observable_up_down_counter("level", [generator()])  # type: ignore[list-item]
    meter.create_observable_gauge("now", [lazily, lambda options: [Observation(2, {"second": True})]])
    assert given == [], "not before a tick"
    assert read(monitor, "total") == {"kind=a": 10, "": 1}
    value = 15
    assert read(monitor, "total") == {"kind=a": 15, "": 1}
    value = 3  # the library began to count anew
    assert read(monitor, "total") == {"kind=a": 18, "": 1}
    assert read(monitor, "level") == {"": 7}
    assert read(monitor, "now") == {"": 1.5, "second=true": 2}
    assert {options for options, _ in given} == {500.0}
    assert {thread for _, thread in given} == {"uno-worker"}


def test_what_a_callback_tells_no_more_is_a_gap_and_ids_that_come_and_go_are_forgotten(
    monitor: ResourceMonitor, provider: UnoMeterProvider
) -> None:
    ids = ["a", "b"]
    meter = provider.get_meter("shop")
    meter.create_observable_gauge("jobs", [lambda options: [Observation(1, {"id": id}) for id in ids]])
    assert read(monitor, "jobs") == {"id=a": 1, "id=b": 1}
    del ids[0]
    assert read(monitor, "jobs") == {"id=a": None, "id=b": 1}
    for n in range(500):
        ids[:] = [f"job{n}"]
        monitor.tick()
    assert len(read(monitor, "jobs")) <= 102
    ids[:] = [f"many{n}" for n in range(3_000)]
    found = read(monitor, "jobs")
    assert found["otel.metric.overflow=true"] == 1
    assert len(found) < 1_200


def test_callbacks_that_raise_hang_or_give_nonsense_harm_nobody(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    asked: list[int] = []

    def raising(options: CallbackOptions) -> list[Observation]:
        raise ValueError("hunter2")

    def hanging(options: CallbackOptions) -> list[Observation]:
        asked.append(1)
        release.wait(20)
        return [Observation(1)]

    def endless(options: CallbackOptions) -> Iterator[Observation]:
        while True:
            yield Observation(1)

    async def coroutine(options: CallbackOptions) -> list[Observation]:
        return []

    meter = provider.get_meter("shop")
    with caplog.at_level(logging.WARNING, "uno"):
        meter.create_observable_gauge("raising", [raising])
        meter.create_observable_gauge("hanging", [hanging])
        meter.create_observable_gauge("nonsense", [lambda options: [5]])  # type: ignore[list-item]
        meter.create_observable_gauge("nothing", [lambda options: None])  # type: ignore[list-item,return-value]
        meter.create_observable_gauge("text", [lambda options: [Observation("5")]])  # type: ignore[arg-type]
        meter.create_observable_gauge("nan", [lambda options: [Observation(float("nan")), Observation(4)]])
        meter.create_observable_gauge("coroutine", [coroutine])  # type: ignore[list-item]
        meter.create_observable_gauge("endless", [endless])
        meter.create_observable_gauge("no function", [5])  # type: ignore[list-item]
        meter.create_observable_gauge("no_function", [5])  # type: ignore[list-item]
        meter.create_observable_gauge("fine", [lambda options: [Observation(3)]])
        begun = time.monotonic()
        try:
            assert read(monitor, "fine") == {"": 3}
            assert read(monitor, "fine") == {"": 3}
            assert time.monotonic() - begun < 5
            assert read(monitor, "nan") == {"": 4}
            assert read(monitor, "endless") == {"": 1}
            for name in ("raising", "hanging", "nonsense", "nothing", "text", "coroutine"):
                assert read(monitor, name) == {}, name
            assert len(asked) == 1, "one call hangs, and not one more each tick"
        finally:
            release.set()
    assert "hunter2" not in caplog.text


def test_a_request_asks_no_callback(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    """A scrape, which is a request, reads the last tick."""
    from uno.core.monitoring.integration import setup_prometheus_exporter

    asked: list[int] = []
    meter = provider.get_meter("shop")
    meter.create_observable_gauge("level", [lambda options: asked.append(1) or [Observation(1)]])  # type: ignore[func-returns-value]
    exporter = setup_prometheus_exporter(monitor)
    before = len(asked)
    for _ in range(3):
        exporter.render()
    assert len(asked) == before
    monitor.tick()
    assert b'level{resource="shop"} 1' in exporter.render()


# -- meters, names, conflicts: the specification's cases ---------------------------------------------


def test_meters(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    assert provider.get_meter("shop", "1") is provider.get_meter("shop", "1")
    assert provider.get_meter("shop", "1") is not provider.get_meter("shop", "2")
    assert provider.get_meter("shop", "1", attributes={"a": 1}) is not provider.get_meter("shop", "1")
    meter = provider.get_meter("shop", "1", "https://example.org/schema")
    assert (meter.name, meter.version, meter.schema_url) == ("shop", "1", "https://example.org/schema")
    with caplog.at_level(logging.WARNING, "uno"):
        nameless = provider.get_meter("")
        provider.get_meter(None)  # type: ignore[arg-type]
    assert len(said(caplog)) == 2
    nameless.create_counter("c").add(1)
    assert read(monitor, "c", "opentelemetry") == {"": 1}
    for version in ("1", "2"):  # the same name in two meters is two metrics
        provider.get_meter("shop", version).create_counter("c").add(int(version))
    assert (read(monitor, "c", "shop"), read(monitor, "c", "shop-2")) == ({"": 1}, {"": 2})


def test_a_meter_that_made_nothing_is_no_resource(
    monitor: ResourceMonitor, provider: UnoMeterProvider
) -> None:
    provider.get_meter("idle")
    assert "idle" not in monitor.manager


@pytest.mark.parametrize("name", ["", "1a", "a b", "é", "a" * 256, "_a", "-a", None, 5])
def test_bad_names_record_nothing(
    provider: UnoMeterProvider, name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    meter = provider.get_meter("shop")
    with caplog.at_level(logging.WARNING, "uno"):
        meter.create_counter(name).add(1)
        meter.create_histogram(name).record(1)
        meter.create_up_down_counter(name).add(1)
        meter.create_gauge(name).set(1)
        for make in (
            meter.create_observable_counter,
            meter.create_observable_gauge,
            meter.create_observable_up_down_counter,
        ):
            make(name, [lambda options: []])
    assert len(said(caplog)) == 7
    assert "shop" not in provider.resource_monitor.manager


@pytest.mark.parametrize("name", ["a", "a" * 255, "a.b_c-d/e1", "A"])
def test_good_names(monitor: ResourceMonitor, provider: UnoMeterProvider, name: str) -> None:
    provider.get_meter("shop").create_counter(name).add(1)
    assert read(monitor, name) == {"": 1}


def test_the_same_instrument_twice(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    meter = provider.get_meter("shop")
    with caplog.at_level(logging.WARNING, "uno"):
        first = meter.create_counter("requests", "1", "Requests")
        assert meter.create_counter("requests", "1", "Requests") is first
        assert meter.create_counter("ReQuests", "1", "Requests") is first, "names have no case"
        meter.create_observable_gauge("g", [lambda options: [Observation(1, {"of": "first"})]])
        meter.create_observable_gauge("g", [lambda options: [Observation(2, {"of": "second"})]])
    assert said(caplog) == []
    first.add(2)
    assert read(monitor, "requests") == {"": 2}
    assert read(monitor, "g") == {"of=first": 1, "of=second": 2}


@pytest.mark.parametrize("conflict", ["kind", "unit", "description", "additive"])
def test_conflicts_are_warned_of_and_still_recorded(
    monitor: ResourceMonitor,
    provider: UnoMeterProvider,
    conflict: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = provider.get_meter("shop")
    with caplog.at_level(logging.WARNING, "uno"):
        first: Any = meter.create_up_down_counter("jobs", "1", "Jobs")
        second: Any
        if conflict == "kind":
            second = meter.create_counter("jobs", "1", "Jobs")
        elif conflict == "unit":
            second = meter.create_up_down_counter("jobs", "{job}", "Jobs")
        elif conflict == "additive":
            second = meter.create_gauge("jobs", "1", "Jobs")
        else:
            second = meter.create_up_down_counter("jobs", "1", "Other words")
    assert len(said(caplog)) == 1
    first.add(3)
    (second.set if conflict == "additive" else second.add)(4)
    if conflict == "description":
        assert read(monitor, "jobs") == {"": 7}
    else:
        assert (read(monitor, "jobs"), read(monitor, "jobs.2")) == ({"": 3}, {"": 4})
        assert "jobs.2" in caplog.text


def test_advice_on_buckets(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    meter = provider.get_meter("shop")

    def bounds(name: str) -> tuple[float, ...]:
        monitor.tick()
        (series,) = monitor.store.select("shop", name)
        found: tuple[float, ...] = series.cell.bounds  # type: ignore[union-attr]
        return found

    with caplog.at_level(logging.WARNING, "uno"):
        meter.create_histogram("a", explicit_bucket_boundaries_advisory=[1, 2]).record(1)
        meter.create_histogram("b", "ms").record(1)
        meter.create_histogram("c", "s").record(1)
    assert said(caplog) == []
    assert bounds("a") == (1, 2)
    assert bounds("b")[:3] == (0, 5, 10)
    assert bounds("c")[0] == 0.001
    with caplog.at_level(logging.WARNING, "uno"):
        meter.create_histogram("d", explicit_bucket_boundaries_advisory=[2, 1]).record(1)
        meter.create_histogram("a", explicit_bucket_boundaries_advisory=[5]).record(1)
    assert len(said(caplog)) == 2
    assert (bounds("a"), bounds("d")[:2]) == ((1, 2), (0, 5))


# -- views ---------------------------------------------------------------------------------------------


def test_views(monitor: ResourceMonitor) -> None:
    provider = UnoMeterProvider(
        monitor,
        views=[
            View("http.*", attribute_keys={"http.route"}),
            View("noise*", drop=True),
            View("wait", name="waiting", description="Other words", buckets=[1, 2]),
            View("users", drop_attributes=["id"], rename_attributes={"plan": "tier"}),
            View("both", attribute_keys=["a"], name="by_a"),
            View("both", attribute_keys=[], name="all"),
            View(instrument_type=metrics.ObservableGauge, attribute_keys=[]),
            View(instrument_type=metrics.ObservableCounter, attribute_keys=[]),
            View(meter_name="other", drop=True),
            View("unit?", instrument_unit="By", drop=True),
        ],
    )
    meter = provider.get_meter("shop")
    requests = meter.create_counter("http.requests")
    for n in range(5):
        requests.add(1, {"http.route": "/a", "user.id": n})
    meter.create_counter("noise.level").add(1)
    meter.create_histogram("wait").record(1.5)
    users = meter.create_counter("users")
    users.add(1, {"id": 7, "plan": "free"})
    users.add(1, {"id": 8, "plan": "free"})
    meter.create_counter("both").add(3, {"a": "x", "b": "y"})
    several = [Observation(1, {"x": "1"}), Observation(5, {"x": "2"})]
    meter.create_observable_gauge("last", [lambda options: several])
    meter.create_observable_counter("sum", [lambda options: several])
    provider.get_meter("other").create_counter("c").add(1)
    meter.create_counter("unit1", "By").add(1)
    meter.create_counter("unit2", "s").add(1)
    assert read(monitor, "http.requests") == {"http.route=/a": 5}
    assert read(monitor, "noise.level") == read(monitor, "wait") == read(monitor, "unit1") == {}
    assert read(monitor, "unit2") == {"": 1}
    assert read(monitor, "waiting") == {"": 1}
    (waiting,) = monitor.store.select("shop", "waiting")
    assert waiting.metric.description == "Other words"
    assert waiting.cell.bounds == (1, 2)  # type: ignore[union-attr]
    assert read(monitor, "users") == {"tier=free": 2}
    assert (read(monitor, "by_a"), read(monitor, "all"), read(monitor, "both")) == ({"a=x": 3}, {"": 3}, {})
    assert (read(monitor, "last"), read(monitor, "sum")) == ({"": 5}, {"": 6})
    assert "other" not in monitor.manager


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"instrument_name": "*", "name": "all"},
        {"meter_name": "m", "name": "all"},
        {"instrument_name": "a", "attribute_keys": "abc"},
        {"instrument_name": "a", "buckets": [2, 1]},
        {"instrument_name": "a", "buckets": "12"},
    ],
    ids=str,
)
def test_views_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        View(**options)


def test_misuse(monitor: ResourceMonitor) -> None:
    with pytest.raises(TypeError, match="ResourceMonitor"):
        UnoMeterProvider(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="View"):
        UnoMeterProvider(monitor, views=["http.*"])  # type: ignore[list-item]


# -- life ----------------------------------------------------------------------------------------------


def test_force_flush_and_shutdown(
    monitor: ResourceMonitor, provider: UnoMeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    meter = provider.get_meter("shop")
    counter, gauge = meter.create_counter("c"), meter.create_gauge("g")
    asked: list[int] = []
    meter.create_observable_gauge("o", [lambda options: asked.append(1) or [Observation(1)]])  # type: ignore[func-returns-value]
    counter.add(1)
    counter.add(1, {"a": "b"})
    monitor.stop()
    assert provider.force_flush() is True
    assert monitor.read("shop", "c", {"a": "b"}, stat="total") == 1
    asked_before = len(asked)
    provider.shutdown()
    assert provider.force_flush() is False
    counter.add(1)
    counter.add(1, {"a": "b"})
    counter.add(1, {"a": "new"})
    gauge.set(1)
    assert isinstance(provider.get_meter("x"), metrics.NoOpMeter)
    meter.create_counter("later").add(1)
    assert read(monitor, "c") == {"": 1, "a=b": 1}
    assert read(monitor, "o") == {"": None}
    assert len(asked) == asked_before
    with caplog.at_level(logging.WARNING, "uno"):
        provider.shutdown()
    assert "already" in caplog.text


def test_force_flush_waits_for_a_tick_of_a_running_monitor() -> None:
    with ResourceMonitor(interval=0.05) as monitor:
        provider = UnoMeterProvider(monitor)
        counter = provider.get_meter("shop").create_counter("c")
        for n in range(1, 4):
            counter.add(1)
            assert provider.force_flush() is True
            assert monitor.read("shop", "c", stat="total") == n
    with ResourceMonitor(interval=3_600) as monitor:
        provider = UnoMeterProvider(monitor)
        monitor.tick()
        assert provider.force_flush(1) is False


def test_disabled_by_the_standard_variable(monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    assert isinstance(UnoMeterProvider(monitor).get_meter("shop"), metrics.NoOpMeter)


def test_threads_lose_nothing(monitor: ResourceMonitor, provider: UnoMeterProvider) -> None:
    meter = provider.get_meter("shop")
    counter, level, wait = (
        meter.create_counter("c"),
        meter.create_up_down_counter("u"),
        meter.create_histogram("h"),
    )
    each = 20_000

    def record(n: int) -> None:
        for i in range(each):
            counter.add(1, {"k": f"v{i % 50}", "code": 200 + i % 3})
            level.add(1 if i % 2 else -1)
            wait.record(0.5, {"on": i % 2 == 0})

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for job in [pool.submit(record, n) for n in range(4)]:
                while not job.done():
                    monitor.tick()
                job.result()
    finally:
        sys.setswitchinterval(before)
    assert sum(read(monitor, "c").values()) == 4 * each
    assert read(monitor, "u") == {"": 0}
    assert read(monitor, "h") == {"on=true": 2 * each, "on=false": 2 * each}


def test_uno_imports_opentelemetry_only_when_asked() -> None:
    program = (
        "import sys\n"
        "import uno.core.resources, uno.core.monitoring.resources, uno.core.monitoring.http_server\n"
        "import uno.core.monitoring.resource_types.opentelemetry\n"
        "from uno.core.monitoring.resources import ResourceMonitor\n"
        "with ResourceMonitor(interval=0.05) as monitor: monitor.tick()\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "import uno.core.monitoring.otel\n"
        "assert 'opentelemetry.metrics' in sys.modules\n"
        "assert not any(name.startswith('opentelemetry.sdk') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_as_the_global_provider() -> None:
    """Instruments that were made before the provider was set record from then on."""
    program = """
from opentelemetry import metrics
from uno.core.monitoring.otel import UnoMeterProvider
from uno.core.monitoring.resources import ResourceMonitor

early = metrics.get_meter("shop").create_counter("early")
observed = metrics.get_meter("shop").create_observable_gauge("o", [lambda options: [metrics.Observation(3)]])
early.add(1)
monitor = ResourceMonitor()
metrics.set_meter_provider(UnoMeterProvider(monitor))
early.add(2)
metrics.get_meter("shop").create_counter("early").add(4)
metrics.get_meter("late").create_histogram("h").record(1)
monitor.tick()
assert monitor.read("shop", "early", stat="total") == 6, monitor.series("shop")
assert monitor.read("shop", "o") == 3
assert monitor.read("late", "h", stat="count") == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_recording_in_an_event_loop_does_not_wait(provider: UnoMeterProvider) -> None:
    async def main() -> None:
        counter = provider.get_meter("shop").create_counter("c")
        await asyncio.gather(*(asyncio.to_thread(counter.add, 1, {"n": n}) for n in range(20)))

    asyncio.run(main())
    assert sum(read(provider.resource_monitor, "c").values()) == 20
