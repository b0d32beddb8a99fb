"""How long does a scan of a million objects take?"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

from benchmarks._measure import interleaved, line
from uno.core.monitoring.resources import ResourceMonitor

MILLION = 1_000_000


def run() -> None:
    """Lists and dicts, as programs hold them, and one resource among them."""
    held = [[n] if n % 2 else {"n": [n]} for n in range(MILLION * 2 // 3)]
    pool = ThreadPoolExecutor(1)
    monitor = ResourceMonitor()
    count = len(gc.get_objects())
    scan, peer = interleaved(
        monitor.discover_all_resources,
        lambda: [obj for obj in gc.get_objects() if isinstance(obj, ThreadPoolExecutor)],
        rounds=5,
        warm=1,
    )
    per_million = scan / count * MILLION
    line(
        "discovery, a million objects", f"{per_million * 1e3:.0f} ms", "<= 60 ms",
        f"isinstance on each of them {peer / count * MILLION * 1e3:.0f} ms",
    )  # fmt: skip
    assert monitor.manager.of(pool) is not None
    assert held
