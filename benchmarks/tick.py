"""What does a tick of 10,000 series cost?"""

from __future__ import annotations

import time

from benchmarks._measure import cpu, interleaved, line
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor, ResourceTypeMonitor

SERIES = 10_000


class Wide(ResourceTypeMonitor):
    """A hundred resources of a hundred series each, read anew by each tick."""

    blocking = False

    def __init__(self) -> None:
        super().__init__(None, "wide")
        for n in range(100):
            self.add_metric(f"m{n}")

    def collect_metrics(self, resource: object) -> None:
        for n in range(100):
            self.update_metric(f"m{n}", n)


def run() -> None:
    """What the application records; then the same with thresholds; then what collectors read."""
    monitor = ResourceMonitor(interval=1)
    monitor.manager.register(object(), id="shop")
    for n in range(SERIES // 2):
        if n % 500 == 0:
            gauge = monitor.add_metric("shop", Gauge(f"depth{n}", labels=["a"]))
            counter = monitor.add_metric("shop", Counter(f"orders{n}", labels=["a"]))
        gauge.labels(str(n % 500)).set(n * 1.1)
        counter.labels(str(n % 500)).inc(n)
    monitor.tick()
    assert len(monitor.store) > SERIES
    seconds = cpu(monitor.tick)
    line(f"tick of {SERIES:,} series (5,000 gauges, 5,000 counters)", f"{seconds * 1e3:.2f} ms", "<= 3 ms")
    store, _ = interleaved(lambda: monitor.store.tick(time.time()), lambda: None)
    line("  of that, freezing them at one time", f"{store * 1e3:.2f} ms")
    monitor.stop()

    monitor = ResourceMonitor(interval=1)
    monitor.manager.register(object(), id="shop")
    histogram = monitor.add_metric("shop", Histogram("wait", labels=["a"]))
    for n in range(900):
        histogram.labels(str(n)).observe(n)
    monitor.tick()
    quiet = cpu(monitor.tick)

    def observed() -> None:
        for _, cell in histogram.cells():
            for value in (0.1, 0.2, 0.3, 0.4):
                cell.observe(value)
        monitor.tick()

    busy = cpu(observed)
    line("tick of 900 histograms (5 columns each), nothing observed", f"{quiet * 1e3:.2f} ms")
    line("  with 4 observations each, recording counted in", f"{busy * 1e3:.2f} ms")
    monitor.stop()

    monitor = ResourceMonitor(interval=1)
    for n in range(100):
        monitor.manager.register(object(), id=f"r{n}", type="wide")
    monitor.register_type_monitor(Wide())
    monitor.tick()
    seconds = cpu(monitor.tick)
    line("tick that collects 10,000 values of 100 resources", f"{seconds * 1e3:.2f} ms")
    monitor.stop()
