"""How are two things measured fairly on a machine that others use?"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable


def interleaved(*calls: Callable[[], object], rounds: int = 30, warm: int = 3) -> list[float]:
    """The median seconds of each call, taken in turns so that noise hits all alike."""
    for _ in range(warm):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, kept in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            kept.append(time.perf_counter() - begun)
    return [statistics.median(kept) for kept in times]


def cpu(call: Callable[[], object], rounds: int = 30, warm: int = 3) -> float:
    """The median CPU seconds of this thread for one call."""
    for _ in range(warm):
        call()
    kept = []
    for _ in range(rounds):
        begun = time.thread_time()
        call()
        kept.append(time.thread_time() - begun)
    return statistics.median(kept)


def python(program: str) -> str:
    """What a program prints that runs in a process of its own, with its modules compiled once for all of them."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = os.path.join(tempfile.gettempdir(), "uno-benchmarks-bytecode")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def yardstick() -> float:
    """The seconds of a thing that no change of ours moves: a counter of prometheus_client counts. What is measured in
    times rather than ratios is read beside it, for a machine may be twice as slow as an hour ago."""
    from prometheus_client import CollectorRegistry, Counter

    count = Counter("yardstick", "", registry=CollectorRegistry()).inc

    def calls() -> None:
        for _ in range(20_000):
            count()

    return cpu(calls, rounds=9) / 20_000


def line(what: str, figure: str, limit: str = "", peer: str = "") -> None:
    """One line of the table."""
    print(f"{what:<58} {figure:>12}   {limit:<12} {peer}")
