"""What does a scrape of 1,000 series cost, and what if ten resources hang?"""

from __future__ import annotations

import threading
import time

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from benchmarks._measure import interleaved, line
from uno.core.monitoring.integration import setup_prometheus_exporter
from uno.core.monitoring.resources import Gauge as OurGauge
from uno.core.monitoring.resources import Histogram as OurHistogram
from uno.core.monitoring.resources import ResourceMonitor

SERIES = 1_000


def run() -> None:
    """Gauges first; then the same number of lines as histograms have."""
    monitor = ResourceMonitor(interval=1)
    registry = CollectorRegistry()
    gauge, theirs = (
        OurGauge("depth", "Depth", ["a", "b"]),
        Gauge("depth", "Depth", ["a", "b"], registry=registry),
    )
    monitor.manager.register(object(), id="shop")
    monitor.add_metric("shop", gauge)
    for n in range(SERIES):
        gauge.labels(str(n // 40), str(n % 40)).set(n * 1.1)
        theirs.labels(str(n // 40), str(n % 40)).set(n * 1.1)
    exporter = setup_prometheus_exporter(monitor)
    monitor.start()
    time.sleep(0.5)
    ours, peer, packed = interleaved(
        exporter.render, lambda: generate_latest(registry), lambda: exporter.respond("gzip")
    )
    line(f"scrape of {SERIES:,} gauges", f"{ours * 1e3:.2f} ms", "<= 1 ms", _beside(ours, peer))
    line("  the same, compressed for the wire", f"{packed * 1e3:.2f} ms")

    release = threading.Event()
    for n in range(10):
        monitor.manager.register(None, id=f"hung{n}", read=release.wait)
    time.sleep(2.5)  # they are in flight, over their deadline
    hung, peer = interleaved(exporter.render, lambda: generate_latest(registry))
    line("  with 10 hung resources", f"{hung * 1e3:.2f} ms", "<= 1 ms", "prometheus_client: hangs with them")
    release.set()
    monitor.stop()

    registry = CollectorRegistry()
    monitor = ResourceMonitor(interval=1)
    monitor.manager.register(object(), id="shop")
    histogram = monitor.add_metric("shop", OurHistogram("wait", "Waiting", ["a"]))
    theirs_h = Histogram("wait", "Waiting", ["a"], registry=registry, buckets=[*range(14)])
    for n in range(59):  # 17 lines each
        for value in (0.1, 0.5, 3):
            histogram.labels(str(n)).observe(value)
            theirs_h.labels(str(n)).observe(value)
    exporter = setup_prometheus_exporter(monitor)
    with monitor:
        time.sleep(0.5)
        ours, peer = interleaved(exporter.render, lambda: generate_latest(registry))
    line("scrape of 59 histograms (1,003 lines)", f"{ours * 1e3:.2f} ms", "<= 1 ms", _beside(ours, peer))


def _beside(ours: float, peer: float) -> str:
    return f"prometheus_client {peer * 1e3:.2f} ms, {peer / ours:.1f} times as long"
