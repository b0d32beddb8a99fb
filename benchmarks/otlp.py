"""What does it cost to push 10,000 series by OTLP, beside OpenTelemetry's own SDK?

Every value is changed, then both sides make the bytes of their requests: uno from its last tick (which the monitor
makes anyway; see tick.py), the SDK by collecting. The bytes are decoded by OpenTelemetry's library afterwards, and
have to hold the same points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import Counter as TheirCounter
from opentelemetry.sdk.metrics import Histogram as TheirHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View

from benchmarks._measure import line
from uno.core.monitoring.exporters.otlp.config import configure
from uno.core.monitoring.exporters.otlp.push import OtlpExporter
from uno.core.monitoring.exporters.otlp.snapshot import Layout, take
from uno.core.monitoring.resources import Counter, Histogram, ResourceMonitor

SERIES = 10_000
HISTOGRAMS = 1_000
FAMILIES = 20  # several families: one alone is bounded
BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]


def run() -> None:
    """Counters in each form, then histograms."""
    for form, protocol, temporality in (
        ("protobuf", "http/protobuf", "cumulative"),
        ("protobuf, delta", "http/protobuf", "delta"),
        ("JSON", "http/json", "cumulative"),
    ):
        ours, bump_ours = our_counters(protocol, temporality)
        theirs, bump_theirs = their_counters(temporality)
        goal = ">= 20 times" if form == "protobuf" else ""
        compare(
            f"OTLP of {SERIES:,} counters: {form}",
            goal,
            ours,
            bump_ours,
            theirs,
            bump_theirs,
            protocol,
            SERIES,
        )
    ours, bump_ours = our_histograms()
    theirs, bump_theirs = their_histograms()
    compare(
        f"OTLP of {HISTOGRAMS:,} histograms of 15 buckets", "", ours, bump_ours, theirs, bump_theirs,
        "http/protobuf", HISTOGRAMS,
    )  # fmt: skip


Make = Callable[[], list[bytes]]


def compare(
    what: str,
    goal: str,
    ours: Make,
    bump_ours: Callable[[], None],
    theirs: Make,
    bump_theirs: Callable[[], None],
    protocol: str,
    expected: int,
) -> None:
    """One line, and the proof that both sides did the work."""
    mine: list[float] = []
    other: list[float] = []
    ours()  # what is made once
    theirs()
    for _ in range(3):  # in turns
        mine += times(ours, bump_ours, rounds=6)
        other += times(theirs, bump_theirs, rounds=2)
    bump_ours()
    bump_theirs()
    counted = [points(ours(), protocol), points(theirs(), "http/protobuf")]
    if counted != [expected, expected]:
        raise AssertionError(f"{what}: {counted} points instead of {expected} each")
    one, two = median(mine), median(other)
    line(what, f"{one * 1e3:.2f} ms", goal, f"OpenTelemetry SDK {two * 1e3:.1f} ms: {two / one:.0f} times")


def times(call: Make, between: Callable[[], None], rounds: int) -> list[float]:
    """CPU seconds of calls, every value changed before each."""
    found = []
    for _ in range(rounds):
        between()
        begun = time.thread_time()
        call()
        found.append(time.thread_time() - begun)
    return found


def points(bodies: Iterable[bytes], protocol: str) -> int:
    """The data points of our families, as OpenTelemetry's library decodes them."""
    found = 0
    for body in bodies:
        request = ExportMetricsServiceRequest()
        if protocol == "http/json":
            from google.protobuf import json_format

            json_format.Parse(body, request)
        else:
            request.ParseFromString(body)
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name.startswith("bench_"):
                        found += len(getattr(metric, metric.WhichOneof("data")).data_points)
    return found


def exporter_of(monitor: ResourceMonitor, protocol: str, temporality: str) -> Make:
    """What pushing does but for the network: take, encode, note what was accepted."""
    exporter = OtlpExporter(
        monitor, configure("http://localhost", protocol=protocol, temporality=temporality)
    )
    requests = exporter._make_requests()
    state: dict[str, int] = {"after": 0}
    layouts: list[Layout | None] = [None]

    def make() -> list[bytes]:
        found = take(monitor, exporter._encoding, layouts[0], after=state["after"], seq=-1)
        assert found is not None
        layouts[0], state["after"] = found.layout, found.time
        bodies = []
        for batch in requests.make(found, exporter._ledger):
            exporter._ledger.commit(batch.entries)
            bodies.append(batch.body)
        return bodies

    return make


def our_counters(protocol: str, temporality: str) -> tuple[Make, Callable[[], None]]:
    """20 families of 500 series with three labels."""
    monitor = ResourceMonitor(interval=1)
    monitor.manager.register(object(), id="shop")
    cells = []
    for family in range(FAMILIES):
        counter = monitor.add_metric("shop", Counter(f"bench_{family}", labels=["method", "route", "status"]))
        cells += [counter.labels("GET", f"/r/{n}", "200") for n in range(SERIES // FAMILIES)]

    def bump() -> None:
        for cell in cells:
            cell.inc(1.5)
        monitor.freeze()

    bump()
    return exporter_of(monitor, protocol, temporality), bump


def our_histograms() -> tuple[Make, Callable[[], None]]:
    """As our_counters."""
    monitor = ResourceMonitor(interval=1)
    monitor.manager.register(object(), id="shop")
    cells = []
    for family in range(FAMILIES):
        histogram = monitor.add_metric("shop", Histogram(f"bench_{family}", labels=["route"], buckets=BOUNDS))
        cells += [histogram.labels(f"/r/{n}") for n in range(HISTOGRAMS // FAMILIES)]

    def bump() -> None:
        for cell in cells:
            cell.observe(0.3)
        monitor.freeze()

    bump()
    return exporter_of(monitor, "http/protobuf", "cumulative"), bump


def their_provider(temporality: str) -> tuple[MeterProvider, Make]:
    """Their SDK with a reader that collects when it is asked."""
    chosen = AggregationTemporality.DELTA if temporality == "delta" else AggregationTemporality.CUMULATIVE
    reader = InMemoryMetricReader(preferred_temporality={TheirCounter: chosen, TheirHistogram: chosen})
    provider = MeterProvider([reader], views=[View(instrument_name="*")])

    def make() -> list[bytes]:
        found = reader.get_metrics_data()
        assert found is not None
        return [encode_metrics(found).SerializeToString()]

    return provider, make


def their_counters(temporality: str) -> tuple[Make, Callable[[], None]]:
    """The same with their SDK."""
    provider, make = their_provider(temporality)
    meter = provider.get_meter("benchmark")
    counters = [meter.create_counter(f"bench_{family}") for family in range(FAMILIES)]
    attributes = [
        {"resource": "shop", "method": "GET", "route": f"/r/{n}", "status": "200"}
        for n in range(SERIES // FAMILIES)
    ]

    def bump() -> None:
        for counter in counters:
            for those in attributes:
                counter.add(1.5, those)

    bump()
    return make, bump


def their_histograms() -> tuple[Make, Callable[[], None]]:
    """The same with their SDK."""
    provider, make = their_provider("cumulative")
    meter = provider.get_meter("benchmark")
    histograms = [
        meter.create_histogram(f"bench_{family}", explicit_bucket_boundaries_advisory=BOUNDS)
        for family in range(FAMILIES)
    ]
    attributes = [{"resource": "shop", "route": f"/r/{n}"} for n in range(HISTOGRAMS // FAMILIES)]

    def bump() -> None:
        for histogram in histograms:
            for those in attributes:
                histogram.record(0.3, those)

    bump()
    return make, bump
