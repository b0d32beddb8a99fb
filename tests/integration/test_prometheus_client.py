"""Do uno and prometheus_client live in one process, each in the other's page?"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client import Counter as TheirCounter
from prometheus_client import Enum as TheirEnum
from prometheus_client import Gauge as TheirGauge
from prometheus_client import Histogram as TheirHistogram
from prometheus_client import Info as TheirInfo
from prometheus_client import Summary as TheirSummary
from prometheus_client.openmetrics.exposition import generate_latest as their_openmetrics

from tests.exposition import (
    OPENMETRICS,
    OPENMETRICS_2,
    PROTOBUF,
    TEXT,
    check_grammar,
    decode,
    read_openmetrics,
    read_protobuf,
    read_text,
)
from tests.web import until
from uno.core.monitoring.exporters.prometheus import PrometheusExporter, bridge
from uno.core.monitoring.integration import as_collector, setup_prometheus_exporter
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    monitor.add_metric("shop", Gauge("ours", "Ours")).set(1)
    yield monitor
    monitor.stop()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(target_info={"env": "test"})


def fill(registry: CollectorRegistry) -> None:
    TheirCounter("jobs", "Jobs\nof \\ theirs", ["a"], registry=registry).labels('x"\n').inc(
        3, {"trace_id": "t1"}
    )
    TheirGauge("heat_celsius", "Heat", registry=registry).set(-1.5)
    TheirHistogram("wait_seconds", "Wait", ["a"], registry=registry, buckets=[0.1, 1]).labels("y").observe(
        0.5, {"t": "2"}
    )
    TheirSummary("size_bytes", "Size", registry=registry, unit="bytes").observe(3)
    TheirInfo("build", "Build", registry=registry).info({"version": "1"})
    TheirEnum("mode", "Mode", states=["on", "off"], registry=registry).state("off")


def test_what_they_have_is_on_our_page_in_every_format(
    monitor: ResourceMonitor, registry: CollectorRegistry
) -> None:
    fill(registry)
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    mine = read_openmetrics(
        PrometheusExporter(monitor, prometheus_client=False).render(OPENMETRICS), created=True
    )
    theirs = read_openmetrics(their_openmetrics(registry), created=True)
    said = exporter.render(OPENMETRICS)
    check_grammar(said)
    assert {key for key in read_openmetrics(said, created=True) if key[0] != "target_info"} == {
        key for key in mine | theirs if key[0] != "target_info"
    }
    assert read_openmetrics(said, created=True).items() >= theirs.items() - {
        item for item in theirs.items() if item[0][0] == "target_info"
    }
    assert b'jobs_total{a="x\\"\\n"} 3.0 # {trace_id="t1"} 3.0 ' in said
    text = read_text(exporter.render(TEXT))
    assert text.items() >= read_text(prometheus_client.generate_latest(registry)).items() - {
        item for item in theirs.items() if item[0][0] == "target_info"
    }
    binary = read_protobuf(exporter.render(PROTOBUF))
    assert {key: value for key, value in text.items() if not key[0].endswith("_created")} == binary
    (jobs,) = [family for family in decode(exporter.render(PROTOBUF)) if family.name == "jobs_total"]
    assert jobs.metric[0].counter.exemplar.label[0].value == "t1"
    assert jobs.metric[0].counter.created_timestamp.seconds > 1_700_000_000
    check_grammar(exporter.render(OPENMETRICS_2), "openmetrics-2.0-rc0.abnf")
    assert b"jobs_total" in exporter.render(query="name[]=jobs_total")
    assert b"jobs_total" not in exporter.render(query="name[]=ours")
    assert b"jobs_total" not in exporter.render(query="resource=shop")


def test_the_registry_of_the_library_is_found_when_it_is_loaded(monitor: ResourceMonitor) -> None:
    assert b"\npython_info{" in PrometheusExporter(monitor).render()
    assert b"\npython_info{" in setup_prometheus_exporter(monitor).render()
    assert b"\npython_info{" not in setup_prometheus_exporter(monitor, prometheus_client=False).render()


def test_the_library_is_never_loaded_by_us() -> None:
    program = (
        "import sys\n"
        "from uno.core.monitoring.resources import ResourceMonitor\n"
        "from uno.core.monitoring.integration import as_collector, setup_prometheus_exporter\n"
        "m = ResourceMonitor()\n"
        "setup_prometheus_exporter(m).render(); collector = as_collector(m)\n"
        "try: list(collector.collect())\n"
        "except RuntimeError as error: print(error)\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "prometheus_client is not loaded: as_collector() is for its registries\nFalse\n"


class Custom:
    """A collector of the application's."""

    def __init__(
        self, *metrics: Any, error: BaseException | None = None, gate: threading.Event | None = None
    ) -> None:
        self.metrics, self.error, self.gate = metrics, error, gate

    def collect(self) -> Iterator[Any]:
        yield from self.metrics
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            self.gate.wait()


def metric(name: str, kind: str, *samples: tuple[str, float]) -> Metric:
    made = Metric(name, "Help", kind)
    for suffix, value in samples:
        made.add_sample(name + suffix, {}, value)
    return made


def test_a_clash_drops_theirs_and_says_so_once(
    monitor: ResourceMonitor, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.add_metric("shop", Counter("orders_total")).inc()
    monitor.add_metric("shop", Histogram("wait")).observe(1)
    TheirGauge("ours", "Theirs", registry=registry).set(5)
    TheirCounter("orders", "Theirs", registry=registry).inc(5)
    TheirGauge("wait_count", "Theirs", registry=registry).set(5)
    TheirGauge("uno_alert", "Theirs", registry=registry).set(5)
    TheirGauge("fine", "Theirs", registry=registry).set(5)
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    for accept, read in ((TEXT, read_text), (OPENMETRICS, read_openmetrics), (PROTOBUF, read_protobuf)) * 2:
        samples = read(exporter.render(accept))
        assert [key for key, value in samples.items() if value == 5] == [("fine", ())]
        assert samples["ours", (("resource", "shop"),)] == 1
    said = [record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"]
    assert sorted(said) == [
        f"{name} of prometheus_client is left out: uno has a metric of that name"
        for name in ("orders", "ours", "uno_alert", "wait_count")
    ]


def test_a_collector_that_raises_loses_its_own_lines(
    monitor: ResourceMonitor, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register(Custom(metric("before", "gauge", ("", 1)), error=ValueError("password=hunter2")))
    registry.register(Custom(metric("after", "gauge", ("", 2))))
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    for _ in range(3):
        page = exporter.render()
        assert b"\nours{" in page
        assert b"\nbefore 1.0\n" in page
        assert b"\nafter 2.0\n" in page
    said = [record for record in caplog.records if record.name == "uno.exporters.prometheus"]
    assert [record.getMessage() for record in said] == [
        "prometheus_client's Custom is left out: it raised ValueError"
    ]
    assert "hunter2" not in caplog.text


def test_a_collector_that_hangs_is_waited_for_once(
    monitor: ResourceMonitor,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", 0.2)
    gate = threading.Event()
    registry.register(Custom(metric("first", "gauge", ("", 1)), gate=gate))
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    assert b"\nfirst 1.0\n" in exporter.render(), "what came in time is shown"
    monkeypatch.setattr(bridge, "PATIENCE", 3_600.0)  # nobody waits again
    for accept in (TEXT, OPENMETRICS, PROTOBUF, TEXT):
        assert b"ours" in exporter.render(accept)
    assert len([thread for thread in threading.enumerate() if thread.name == "uno-prometheus-client"]) == 1
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "uno-prometheus-client":
            thread.join(5)
    assert b"\nfirst 1.0\n" in exporter.render(), "it is asked again when it is back"
    said = [record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"]
    assert said == ["prometheus_client's Custom is left out: it has not answered within 0.2 s"]


class SlowOnce(Custom):
    """Does not answer the first time before its gate opens."""

    def collect(self) -> Iterator[Any]:
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.wait()
        yield from self.metrics


class Stuck(Custom):
    """Never answers while the test runs."""

    def collect(self) -> Iterator[Any]:
        assert self.gate is not None
        self.gate.wait()
        yield from self.metrics


def test_collectors_that_hang_take_nobody_elses_lines(
    monitor: ResourceMonitor,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", 0.5)
    back, never = threading.Event(), threading.Event()
    registry.register(Custom(metric("first", "gauge", ("", 1))))
    registry.register(SlowOnce(metric("slow", "gauge", ("", 2)), gate=back))
    registry.register(Custom(metric("between", "gauge", ("", 3))))
    registry.register(Stuck(metric("stuck", "gauge", ("", 4)), gate=never))
    registry.register(Custom(metric("last", "gauge", ("", 5))))
    exporter = PrometheusExporter(monitor, prometheus_client=registry)

    def theirs(accept: str, read: Any) -> dict[str, float]:
        return {name: value for (name, labels), value in read(exporter.render(accept)).items() if not labels}

    formats = ((TEXT, read_text), (OPENMETRICS, read_openmetrics), (PROTOBUF, read_protobuf)) * 2
    try:
        for accept, read in formats:
            assert theirs(accept, read) == {"first": 1, "between": 3, "last": 5}
        assert len(asking()) == 2, "one thread for each that hangs"
        back.set()
        until(lambda: len(asking()) == 1)
        for accept, read in formats:
            assert theirs(accept, read) == {"first": 1, "slow": 2, "between": 3, "last": 5}
        assert len(asking()) == 1
    finally:
        back.set()
        never.set()
    until(lambda: not asking())
    assert theirs(TEXT, read_text) == {"first": 1, "slow": 2, "between": 3, "stuck": 4, "last": 5}
    said = [record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"]
    assert sorted(said) == [
        f"prometheus_client's {name} is left out: it has not answered within 0.5 s"
        for name in ("SlowOnce", "Stuck")
    ]


def test_all_collectors_together_have_a_time(
    monitor: ResourceMonitor, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "PATIENCE", 3_600.0)
    monkeypatch.setattr(bridge, "LONGEST", 0.5)
    gate = threading.Event()
    registry.register(Stuck(metric("stuck", "gauge", ("", 1)), gate=gate))
    registry.register(Custom(metric("fine", "gauge", ("", 2))))
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    try:
        for _ in range(3):
            page = exporter.render()
            assert b"\nours{" in page
            assert b"\nfine 2.0\n" in page
    finally:
        gate.set()
    until(lambda: not asking())
    assert b"\nstuck 1.0\n" in exporter.render()


def test_a_collector_that_would_end_its_thread_loses_its_own_lines(
    monitor: ResourceMonitor, registry: CollectorRegistry
) -> None:
    registry.register(Custom(error=SystemExit()))
    registry.register(Custom(metric("after", "gauge", ("", 2))))
    exporter = PrometheusExporter(monitor, prometheus_client=registry)
    for _ in range(3):
        assert b"\nafter 2.0\n" in exporter.render()


def asking() -> list[threading.Thread]:
    """The threads that ask collectors, or hang in one."""
    return [thread for thread in threading.enumerate() if thread.name == "uno-prometheus-client"]


def test_the_other_way_round(monitor: ResourceMonitor) -> None:
    registry = CollectorRegistry()
    monitor.add_metric("shop", Counter("orders_total", "Orders", ["a"])).labels("x").inc(2)
    monitor.add_metric("shop", Counter("visits", "Visits")).inc(3)
    monitor.add_metric("shop", Histogram("wait_seconds", "Wait", unit="s")).observe(0.2)
    monitor.add_metric("shop", Gauge("gap")).set(float("nan"))
    registry.register(as_collector(monitor))
    TheirGauge("fine", "Theirs", registry=registry).set(5)
    ours = read_openmetrics(PrometheusExporter(monitor, prometheus_client=False).render(OPENMETRICS))
    expected = {
        key: value for key, value in ours.items() if not key[0].startswith(("uno_resource", "uno_alert"))
    }
    expected["fine", ()] = 5
    assert read_openmetrics(their_openmetrics(registry)) == expected
    assert expected["orders_total", (("a", "x"), ("resource", "shop"))] == 2
    # Registered there and appended here: our own do not come back to us.
    page = PrometheusExporter(monitor, prometheus_client=registry).render()
    assert page.count(b"\n# TYPE orders_total ") == 1
    assert b"\nfine 5.0\n" in page


def test_the_other_way_round_with_a_clash(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    TheirGauge("ours", "Theirs", registry=registry).set(5)
    registry.register(as_collector(monitor, registry=registry))
    for _ in range(2):
        assert read_text(prometheus_client.generate_latest(registry)) == {("ours", ()): 5}
    said = [record.getMessage() for record in caplog.records if record.name == "uno.exporters.prometheus"]
    assert said == ["ours of prometheus_client is left out: a collector there has that name"]
