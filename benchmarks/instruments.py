"""What does recording cost, beside prometheus_client and the OpenTelemetry SDK?

All three are called in one process, block by block in turns; our own block is made twice, and how far the two differ
is the control, and the slower one counts. Times are CPU time of the thread. The cost of the loop is taken off each.
After the last block everybody's totals are compared with the number of calls.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Gauge as PrometheusGauge
from prometheus_client import Histogram as PrometheusHistogram

from benchmarks._measure import line, python
from uno.core.monitoring.cells import DEFAULT_BUCKETS
from uno.core.monitoring.resources import Counter, Gauge, Histogram

ROUNDS = 200
CALLS = 2_000
CHILDREN = 20_000

#: what; ours, prometheus_client's and OpenTelemetry's statement; the ratios to reach
SUBJECTS: tuple[tuple[str, str, str, str, tuple[float, float]], ...] = (
    ("bound inc", "inc()", "p_inc()", "o_add(1)", (6, 70)),
    ("inc of a counter without labels", "plain.inc()", "p_plain.inc()", "o_plain.add(1)", (6, 70)),
    (
        'labelled inc: c["GET", "/x"].inc()', 'c["GET", "/x"].inc()', 'p_c.labels("GET", "/x").inc()',
        'o_c.add(1, {"a": "GET", "b": "/x"})', (9, 45),
    ),
    (
        "labelled inc: c.labels(a=, b=).inc()", 'c.labels(a="GET", b="/x").inc()',
        'p_c.labels(a="GET", b="/x").inc()', 'o_c.add(1, {"a": "GET", "b": "/x"})', (9, 45),
    ),
    ("bound gauge set", "gset(1.5)", "p_gset(1.5)", "o_set(1.5)", (11, 100)),
    ("observe, hot path (folded outside of the time)", "observe(v)", "p_observe(v)", "o_record(v)", (25, 100)),
    ("observe, all in (folded within the time)", "observe(v)", "p_observe(v)", "o_record(v)", (8, 30)),
    ("  the same where numpy is loaded, as a monitor does", "observe(v)", "p_observe(v)", "o_record(v)", (8, 30)),
    ("  and as a monitor's tick does it (a sketch for p95 too)", "observe(v)", "p_observe(v)", "o_record(v)", (8, 30)),
    ("with h.time()", "with time(): pass", "with p_time(): pass", "", (0, 0)),
)  # fmt: skip


def _block(statement: str, names: dict[str, Any]) -> Callable[[list[float]], float]:
    """A function that makes the calls once for each value and returns the seconds."""
    source = (
        "def block(values):\n    begun = clock()\n    for v in values:\n"
        f"        {statement}\n    return clock() - begun\n"
    )
    space = {**names, "clock": time.thread_time}
    exec(source, space)
    made: Callable[[list[float]], float] = space["block"]
    return made


def _measure(
    what: str,
    statements: list[str],
    names: dict[str, Any],
    goals: tuple[float, float],
    folding: str,
    cell: Any,
) -> int:
    monitored = "tick" in folding
    all_in = monitored or "all in" in folding or "numpy" in folding
    if "numpy" in folding:
        import numpy  # noqa: F401 - a monitor loads it for its tick
    else:
        assert monitored or "all in" not in folding or "numpy" not in sys.modules
    bodies = ["pass", statements[0], *statements]
    blocks = [_block(body, names) for body in bodies]
    times: list[list[float]] = [[] for _ in blocks]
    luck = random.Random(1)
    for number in range(ROUNDS):
        order = [(number + i) % len(blocks) for i in range(len(blocks))]
        for place in order:
            values = [luck.lognormvariate(-3, 1.5) for _ in range(CALLS)]  # no two blocks sort the same
            seconds = blocks[place](values)
            ours = bodies[place] == statements[0]
            begun = time.thread_time()
            if ours:
                cell.freeze() if monitored else cell.fold()
            if ours and all_in:
                seconds += time.thread_time() - begun
            times[place].append(seconds / CALLS * 1e9)
    empty, control, *rest = (statistics.median(kept) for kept in times)
    ours, *peers = (figure - empty for figure in rest)
    ours = max(ours, control - empty, 1.0)  # the slower one counts
    ratios = [
        f"{name} {peer:,.0f} ns, {peer / ours:.1f} times{f' (>= {goal:g})' if goal else ''}"
        for name, peer, goal in zip(("prometheus_client", "OpenTelemetry SDK"), peers, goals, strict=False)
    ]
    line(what, f"{ours:.0f} ns", "", f"control {control - empty:.0f} ns; " + "; ".join(ratios))
    return ROUNDS * CALLS


def _recording() -> None:
    registry = CollectorRegistry()
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("benchmark")
    labels = ["a", "b"]
    bounds = DEFAULT_BUCKETS
    c, plain, g = Counter("c", labels=labels), Counter("plain"), Gauge("g", labels=labels)
    h = Histogram("h", labels=labels, buckets=bounds)
    p_c = PrometheusCounter("c", "c", labels, registry=registry)
    p_plain = PrometheusCounter("plain", "plain", registry=registry)
    p_g = PrometheusGauge("g", "g", labels, registry=registry)
    p_h = PrometheusHistogram("h", "h", labels, registry=registry, buckets=bounds)
    o_c, o_plain = meter.create_counter("c"), meter.create_counter("plain")
    o_g, o_h = (
        meter.create_gauge("g"),
        meter.create_histogram("h", explicit_bucket_boundaries_advisory=bounds),
    )
    key = "GET", "/x"
    cell = h[key]
    cell.warm()
    names = {
        "c": c, "plain": plain, "inc": c[key].inc, "gset": g[key].set, "observe": cell.observe, "time": cell.time,
        "p_c": p_c, "p_plain": p_plain, "p_inc": p_c.labels(*key).inc, "p_gset": p_g.labels(*key).set,
        "p_observe": p_h.labels(*key).observe, "p_time": p_h.labels(*key).time,
        "o_c": o_c, "o_plain": o_plain, "o_add": o_c.add, "o_set": o_g.set, "o_record": o_h.record,
    }  # fmt: skip
    made = [
        _measure(what, [s for s in (ours, theirs, otel) if s], names, goals, what, cell)
        for what, ours, theirs, otel, goals in SUBJECTS
    ]
    # Both sides did the work; ours twice, for the control.
    assert c[key].value == 2 * sum(made[i] for i in (0, 2, 3))
    assert plain[()].value == 2 * made[1]
    assert cell.collect().count == 2 * sum(made[5:10])
    assert sum(cell.totals.counts) == cell.totals.count
    assert registry.get_sample_value("c_total", dict(zip(labels, key, strict=True))) == sum(
        made[i] for i in (0, 2, 3)
    )
    assert registry.get_sample_value("h_count", dict(zip(labels, key, strict=True))) == sum(made[5:10])
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        m.name: m.data.data_points for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics
    }
    assert sum(p.value for p in points["c"]) == sum(made[i] for i in (0, 2, 3))
    assert sum(p.count for p in points["h"]) == sum(made[5:9])
    print(f"  checked: {sum(made):,} calls of each were counted by each; values differ from call to call")


def _bytes(make: Callable[[], Any], fill: Callable[[Any, str, str, str], object]) -> tuple[float, Any]:
    texts = [str(i) for i in range(200)]
    family = make()
    gc.collect()
    tracemalloc.start()
    begun = tracemalloc.get_traced_memory()[0]
    for i in range(CHILDREN):
        fill(family, texts[i % 200], texts[i // 200], "GET")
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - begun
    tracemalloc.stop()
    return used / CHILDREN, family


def _memory() -> None:
    labels = ["a", "b", "method"]

    def observed(family: Any, *key: str) -> None:
        cell = family[key]
        cell.observe(0.3)
        cell.fold()

    def warm(family: Any, *key: str) -> None:
        family[key].warm()
        observed(family, *key)

    rows: tuple[tuple[str, Callable[[], Any], Any, Callable[[], Any], Any, str], ...] = (
        (
            "memory of a counter child, 3 labels", lambda: Counter("c", labels=labels, max_children=CHILDREN),
            lambda f, *key: f[key].inc(),
            lambda: PrometheusCounter("c", "c", labels, registry=None), lambda f, *key: f.labels(*key).inc(),
            "<= 280 B",
        ),
        (
            "memory of a histogram child, observed and folded",
            lambda: Histogram("h", labels=labels, max_children=CHILDREN), observed,
            lambda: PrometheusHistogram("h", "h", labels, registry=None, buckets=DEFAULT_BUCKETS),
            lambda f, *key: f.labels(*key).observe(0.3), "<= 600 B",
        ),
        (
            "  one of which 64 observations waited (it has a ring)",
            lambda: Histogram("h", labels=labels, max_children=CHILDREN), warm,
            lambda: PrometheusHistogram("h", "h", labels, registry=None, buckets=DEFAULT_BUCKETS),
            lambda f, *key: f.labels(*key).observe(0.3), "",
        ),
    )  # fmt: skip
    for what, make, fill, make_theirs, fill_theirs, goal in rows:
        ours, family = _bytes(make, fill)
        assert len(family) == CHILDREN
        theirs, _ = _bytes(make_theirs, fill_theirs)
        line(what, f"{ours:.0f} B", goal, f"prometheus_client {theirs:,.0f} B, {theirs / ours:.1f} times")


def _imports() -> None:
    program = "import time; a = time.process_time(); import {}; print(time.process_time() - a)"
    names = ("uno.core.monitoring.metrics", "prometheus_client", "opentelemetry.sdk.metrics")
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        python(program.format(name))  # compiles
    for _ in range(11):
        for name in names:
            times[name].append(float(python(program.format(name))))
    ours, *peers = (statistics.median(times[name]) * 1e3 for name in names)
    line(
        "import of the instruments (CPU)", f"{ours:.1f} ms", "<= 15 ms",
        f"prometheus_client {peers[0]:.1f} ms; OpenTelemetry SDK {peers[1]:.1f} ms",
    )  # fmt: skip


def run() -> None:
    """Recording, then memory, then import."""
    _recording()
    _memory()
    _imports()


if __name__ == "__main__":
    run()
