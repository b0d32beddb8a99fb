"""What does the import add to a process that has FastAPI?"""

from __future__ import annotations

import statistics

from benchmarks._measure import line, python

PROGRAM = """
import time, fastapi
begun = time.process_time()
import {module}
print(time.process_time() - begun)
"""


def run() -> None:
    """Median of nine processes each, in turns."""
    modules = ("uno.core.monitoring.resources", "uno.core.monitoring.integration", "prometheus_client")
    times: dict[str, list[float]] = {module: [] for module in modules}
    for module in modules:
        python(PROGRAM.format(module=module))  # compiles
    for _ in range(9):
        for module in modules:
            times[module].append(float(python(PROGRAM.format(module=module))))
    ours, web, peer = (statistics.median(times[module]) * 1e3 for module in modules)
    line(
        f"import {modules[0]} beside FastAPI",
        f"{ours:.1f} ms",
        "<= 15 ms",
        f"prometheus_client {peer:.1f} ms",
    )
    line(f"import {modules[1]} beside FastAPI", f"{web:.1f} ms")
