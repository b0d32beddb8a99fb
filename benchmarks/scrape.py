"""What does a scrape cost, who is held by it, and what if ten resources hang?"""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app
from prometheus_client import Counter as TheirCounter
from prometheus_client import Gauge as TheirGauge
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.openmetrics.exposition import generate_latest as their_openmetrics

from benchmarks._measure import line
from uno.core.monitoring.integration import RoutedExporter, setup_prometheus_exporter
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor

COUNTERS = 10_000
HISTOGRAMS = 3_000  # of 17 lines
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"


def run() -> None:
    """Counters, histograms, the event loop, hung resources."""
    _counters()
    _histograms()
    _hung()


class Still(ResourceMonitor):
    """A monitor that ticks when the benchmark says so: a scrape is measured without it."""

    def freeze(self) -> None:
        """Nothing: see tick_now."""

    def tick_now(self) -> None:
        """Freeze all series."""
        self.store.tick(time.time())


def _timed(steps: list[tuple[Callable[[], object], Callable[[], object]]], rounds: int = 7) -> list[float]:
    """The median CPU seconds of each second call, each after its first one, in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 1):
        for (prepare, call), kept in zip(steps, times, strict=True):
            prepare()
            begun = time.thread_time()
            call()
            if turn:
                kept.append(time.thread_time() - begun)
    return [sorted(kept)[len(kept) // 2] for kept in times]


def _nothing() -> None:
    pass


def _counters() -> None:
    monitor = Still()
    monitor.manager.register(object(), id="shop")
    registry = CollectorRegistry()
    counter = monitor.add_metric(
        "shop", Counter("orders_total", "Orders", ["method", "route", "status"], max_children=COUNTERS)
    )
    theirs = TheirCounter("orders", "Orders", ["resource", "method", "route", "status"], registry=registry)
    labels = [("GET", f"/items/{n}", str(200 + n % 300)) for n in range(COUNTERS)]
    cells = [counter.labels(*one) for one in labels]
    children = [theirs.labels("shop", *one) for one in labels]
    exporter = setup_prometheus_exporter(monitor, prometheus_client=False, created=False)

    def count(amount: float = 1) -> Callable[[], None]:
        def add() -> None:
            for cell in cells:
                cell.inc(amount)
            monitor.tick_now()

        return add

    def count_theirs() -> None:
        for child in children:
            child.inc()

    for _ in range(3):
        count()()
        count_theirs()
    _same(exporter.render(), generate_latest(registry), b"orders_total{", COUNTERS)
    ours, openmetrics, binary, packed, same, same_packed, peer, peer_om, peer_packed = _timed(
        [
            (count(), exporter.render),
            (count(), lambda: exporter.render(OPENMETRICS)),
            (count(), lambda: exporter.render(PROTOBUF)),
            (count(), lambda: exporter.respond("gzip")),
            (_nothing, exporter.render),
            (_nothing, lambda: exporter.respond("gzip")),
            (count_theirs, lambda: generate_latest(registry)),
            (count_theirs, lambda: their_openmetrics(registry)),
            (count_theirs, lambda: gzip.compress(generate_latest(registry))),
        ]
    )
    (ours_held, ours_all, slices), (peer_held, peer_all, _) = asyncio.run(_held(exporter, count(), registry))
    (long,) = _timed([(count(0.1), exporter.render)])  # last: whole numbers would not come back
    print(
        f"{COUNTERS:,} counters with 3 labels and a resource, all changed since the last scrape; same sum, same lines"
    )
    line("  text 0.0.4", _ms(ours), ">= 80 times", _beside(ours, peer))
    line("  text 0.0.4, values of 17 digits", _ms(long), "", _beside(long, peer))
    line("  OpenMetrics 1.0", _ms(openmetrics), "", _beside(openmetrics, peer_om))
    line("  protobuf", _ms(binary), "", _beside(binary, peer))
    line("  text, gzip", _ms(packed), "", _beside(packed, peer_packed))
    line("  text, nothing changed", _ms(same), "", _beside(same, peer))
    line("  text, gzip, nothing changed", _ms(same_packed), "", _beside(same_packed, peer_packed))
    line(
        "  event loop held by a gzip scrape, at a stretch",
        _ms(ours_held),
        "<= 2 ms",
        _beside(ours_held, peer_held),
    )
    line(f"  the same in all, in {slices} slices", _ms(ours_all), "<= 6 ms", _beside(ours_all, peer_all))


async def _held(
    exporter: RoutedExporter, change: Callable[[], None], registry: CollectorRegistry
) -> list[tuple[float, float, int]]:
    """How long the loop does not go round while a page is asked for through ASGI: at most, in all, how often."""
    rows = []
    for app in (exporter.app, make_asgi_app(registry)):
        worst, total, steps = [], [], []
        for _ in range(7):
            change()
            gaps: list[float] = []
            answer: list[bytes] = []
            over = asyncio.Event()

            async def send(message: dict[str, object], answer: list[bytes] = answer) -> None:
                answer.append(message.get("body", b""))  # type: ignore[arg-type]

            async def receive() -> dict[str, object]:
                return {"type": "http.request", "body": b""}

            async def beat(gaps: list[float] = gaps, over: asyncio.Event = over) -> None:
                last = time.thread_time()  # what others on the machine take is not the page's doing
                while not over.is_set():
                    await asyncio.sleep(0)
                    now = time.thread_time()
                    gaps.append(now - last)
                    last = now

            heart = asyncio.ensure_future(beat())
            await asyncio.sleep(0.005)
            usual = sorted(gaps)[len(gaps) // 2]
            gaps.clear()
            headers = [(b"accept-encoding", b"gzip")]
            scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
            await app(scope, receive, send)  # type: ignore[arg-type]
            await asyncio.sleep(0)
            over.set()
            await heart
            assert gzip.decompress(b"".join(answer)).count(b"orders_total{") == COUNTERS
            held = [gap for gap in gaps if gap > 10 * usual]
            worst.append(max(gaps))
            total.append(sum(held))
            steps.append(len(held))
        middle = len(worst) // 2
        rows.append((sorted(worst)[middle], sorted(total)[middle], sorted(steps)[middle]))
    return rows


def _histograms() -> None:
    monitor = Still()
    monitor.manager.register(object(), id="shop")
    registry = CollectorRegistry()
    histogram = monitor.add_metric(
        "shop",
        Histogram("wait_seconds", "Waiting", ["route"], unit="s", buckets=BUCKETS, max_children=HISTOGRAMS),
    )
    theirs = TheirHistogram(
        "wait_seconds", "Waiting", ["resource", "route"], registry=registry, buckets=BUCKETS
    )
    cells = [histogram.labels(str(n)) for n in range(HISTOGRAMS)]
    children = [theirs.labels("shop", str(n)) for n in range(HISTOGRAMS)]
    exporter = setup_prometheus_exporter(monitor, prometheus_client=False, created=False)
    draw = random.Random(7).random

    def both() -> None:
        for cell, child in zip(cells, children, strict=True):
            value = draw() * 40
            cell.observe(value)
            child.observe(value)
        monitor.tick_now()

    both()
    _same(exporter.render(), generate_latest(registry), b"wait_seconds_", HISTOGRAMS * 17)
    ours, same, openmetrics, binary, peer = _timed(
        [
            (both, exporter.render),
            (_nothing, exporter.render),
            (both, lambda: exporter.render(OPENMETRICS)),
            (both, lambda: exporter.render(PROTOBUF)),
            (both, lambda: generate_latest(registry)),
        ],
        rounds=5,
    )
    print(f"{HISTOGRAMS:,} histograms, {HISTOGRAMS * 17:,} lines, all changed; same sum, same lines")
    line("  text 0.0.4", _ms(ours), ">= 35 times", _beside(ours, peer))
    line("  text 0.0.4, nothing changed", _ms(same), "", _beside(same, peer))
    line("  OpenMetrics 1.0", _ms(openmetrics), "", _beside(openmetrics, peer))
    line("  protobuf", _ms(binary), "", _beside(binary, peer))


def _hung() -> None:
    """A thousand gauges that change, without resources that hang and with them."""
    monitor = Still()
    monitor.manager.register(object(), id="shop")
    gauge = monitor.add_metric("shop", Gauge("in_stock", "Items", ["item"]))
    registry = CollectorRegistry()
    theirs = TheirGauge("in_stock", "Items", ["resource", "item"], registry=registry)
    cells = [gauge.labels(str(n)) for n in range(1_000)]
    children = [theirs.labels("shop", str(n)) for n in range(1_000)]
    exporter = setup_prometheus_exporter(monitor, prometheus_client=False)

    def change() -> None:
        for n, cell in enumerate(cells):
            cell.set(cell.value + n if cell.value == cell.value else 0.5)
        monitor.tick_now()

    def change_theirs() -> None:
        for n, child in enumerate(children):
            child.inc(n + 0.5)

    ours, peer = _timed([(change, exporter.render), (change_theirs, lambda: generate_latest(registry))])
    line("1,000 gauges, all changed since the last scrape", _ms(ours), "<= 1 ms", _beside(ours, peer))
    release = threading.Event()
    for n in range(10):
        monitor.manager.register(None, id=f"hung{n}", read=release.wait)
    with monitor:
        time.sleep(2.5)  # they are in flight, over their deadline
        (hung,) = _timed([(change, exporter.render)])
        line("  while 10 resources hang", _ms(hung), "<= 1 ms", "prometheus_client: hangs with them")
        release.set()


def _same(ours: bytes, theirs: bytes, prefix: bytes, lines: int) -> None:
    """Both sides did the work: as many lines, and their numbers add up to the same."""

    def numbers(page: bytes) -> list[float]:
        found = (text for text in page.splitlines() if text.startswith(prefix) and b"_created" not in text)
        return [float(text.rpartition(b" ")[2]) for text in found]

    mine, other = numbers(ours), numbers(theirs)
    assert len(mine) == len(other) == lines, (len(mine), len(other), lines)
    assert abs(sum(mine) - sum(other)) <= 1e-9 * abs(sum(other)), (sum(mine), sum(other))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _beside(ours: float, peer: float) -> str:
    return f"prometheus_client {peer * 1e3:.2f} ms, {peer / ours:.0f} times as long"
