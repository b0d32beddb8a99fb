"""What do several workers cost? Beside prometheus_client's multiprocess mode, in programs of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks._measure import line

INCS, SERIES = 200_000, 5_000

_OURS = """
import json, os, sys, time
from uno.core.monitoring.integration import setup_prometheus_exporter
from uno.core.monitoring.resources import Counter, ResourceMonitor
monitor = ResourceMonitor(interval=3600, workers=os.environ["PLACE"])
monitor.manager.register(object(), id="shop")
hits = monitor.add_metric("shop", Counter("hits", "Hits", ["n"]))
bare = monitor.add_metric("shop", Counter("bare", "Bare", ["n"]))
def scrape():
    return exporter.render()
exporter = setup_prometheus_exporter(monitor)
monitor.start()
monitor.tick()
tick = monitor.tick
"""

_THEIRS = """
import json, os, sys, time
os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ["PLACE"]
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
hits = Counter("hits", "Hits", ["n"])
bare = Counter("bare", "Bare", ["n"])
registry = CollectorRegistry()
MultiProcessCollector(registry)
def scrape():
    return generate_latest(registry)
def tick(): pass
"""

_BOTH = """
def value(page, name):
    lines = [line for line in page.decode().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines), len(lines)
def bound(n):
    inc = bare.labels("x").inc
    begun = time.perf_counter()
    for _ in range(n):
        inc()
    full = time.perf_counter() - begun
    begun = time.perf_counter()
    for _ in range(n):
        pass
    return full - (time.perf_counter() - begun)
def record(n):
    for i in range(n):
        hits.labels(str(i)).inc(i)
    tick()
def timed():
    begun = time.perf_counter()
    scrape()
    return time.perf_counter() - begun
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class _Worker:
    def __init__(self, program: str, place: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program + _BOTH],
            env={**os.environ, "PLACE": place},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, expression: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def run() -> None:
    """inc, a scrape of four workers, and one after a hundred more have died."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        sides = []
        for name, program in (("ours", _OURS), ("theirs", _THEIRS)):
            os.mkdir(os.path.join(place, name))
            sides.append([_Worker(program, os.path.join(place, name)) for _ in range(4)])
        try:
            _compare(sides, place)
        finally:
            for workers in sides:
                for worker in workers:
                    worker.kill()


def _compare(sides: list[list[_Worker]], place: str) -> None:
    rounds = [[side[0].do(f"bound({INCS})") / INCS for side in sides] for _ in range(5)]
    ours, theirs = (sorted(times)[2] for times in zip(*rounds, strict=True))
    for name, side, prefix in (("uno", sides[0], "bare{"), ("prometheus_client", sides[1], "bare_total")):
        counted, _ = side[1].do(f"value(scrape(), {prefix!r})")
        assert counted == 5 * INCS, f"{name} counted {counted} of {5 * INCS}"
    line("inc in one of four workers", f"{ours * 1e9:.0f} ns", ">= 8 x", _beside(ours, theirs, 1e9, "ns"))

    # 1,000 is the bound on one metric's series: five of ours make what one of theirs does
    many = (
        "[[monitor.add_metric('shop', Counter(f'many{m}', 'Many', ['n'])) for m in range(5)], "
        "[monitor._metrics['shop', f'many{i % 5}'].labels(str(i)).inc(i) for i in range(SERIES)], tick()][2]"
    )
    for worker in sides[0]:
        worker.do(many.replace("SERIES", str(SERIES)))
    for worker in sides[1]:
        worker.do(f"record({SERIES})")
    sides[0][0].do("tick()")
    expected = 4 * sum(range(SERIES))
    assert sides[0][0].do("value(scrape(), 'many')") == [expected, SERIES]
    assert sides[1][0].do("value(scrape(), 'hits_total')") == [expected, SERIES]
    ours, theirs = _scrapes(sides)
    line(
        f"scrape of 4 workers x {SERIES:,} series",
        f"{ours * 1e3:.1f} ms",
        ">= 15 x",
        _beside(ours, theirs, 1e3, "ms"),
    )

    dead = 100
    few = many.replace("SERIES", "1000")
    for _ in range(dead):
        other = _Worker(_OURS, os.path.join(place, "ours"))
        other.do(few)
        other.kill()
        other = _Worker(_THEIRS, os.path.join(place, "theirs"))
        other.do("record(1000)")
        other.kill()
    sides[0][0].do("tick()")
    expected += dead * sum(range(1000))
    assert sides[0][1].do("value(scrape(), 'many')")[0] == expected
    assert sides[1][1].do("value(scrape(), 'hits_total')")[0] == expected
    ours, theirs = _scrapes(sides)
    line(
        f"  the same with {dead} x 1,000 of dead workers",
        f"{ours * 1e3:.1f} ms",
        "",
        _beside(ours, theirs, 1e3, "ms"),
    )
    files = [
        sum(len(names) for _, _, names in os.walk(os.path.join(place, name))) for name in ("ours", "theirs")
    ]
    line("  files", str(files[0] - 1), "<= 5", f"prometheus_client {files[1]}")  # without the lock


def _scrapes(sides: list[list[_Worker]]) -> tuple[float, float]:
    rounds = [[side[0].do("timed()") for side in sides] for _ in range(11)]
    ours, theirs = (sorted(times)[5] for times in zip(*rounds, strict=True))
    return ours, theirs


def _beside(ours: float, theirs: float, scale: float, unit: str) -> str:
    return f"prometheus_client {theirs * scale:.0f} {unit}, {theirs / ours:.1f} times as long"
