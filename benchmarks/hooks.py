"""What do the hooks add to a call of the application?

Each call is made in three processes, two without uno (the second one is the control: how far two equal things
differ here) and one with it, in turns, block by block. Folding what was observed, which the tick does, is counted
in. What each process counted proves that the calls were made and that uno saw them all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks._measure import line

ROUNDS = 40


def _checkout() -> tuple[Any, Callable[[int], None]]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{os.devnull}", poolclass=sqlalchemy.QueuePool)

    def calls(n: int) -> None:
        connect = engine.raw_connection
        for _ in range(n):
            connect().close()

    return engine, calls


def _command() -> tuple[Any, Callable[[int], None]]:
    import redis

    class Stub(redis.Connection):
        """A connection to nowhere that answers at once."""

        def connect(self) -> None: ...

        def can_read(self, timeout: float = 0) -> bool:
            return False

        def send_command(self, *args: object, **kwargs: object) -> None: ...

        def read_response(self, *args: object, **kwargs: object) -> bytes:
            return b"1"

    client = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Stub))

    def calls(n: int) -> None:
        for _ in range(n):
            client.get("a")

    return client, calls


def _task() -> tuple[Any, Callable[[int], None]]:
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(1)

    def calls(n: int) -> None:
        for future in [executor.submit(int) for _ in range(n)]:
            future.result()

    return executor, calls


def _request() -> tuple[Any, Callable[[int], None]]:
    import httpcore
    import httpx

    class Stream(httpcore.NetworkStream):
        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

        def write(self, buffer: bytes, timeout: float | None = None) -> None: ...

        def close(self) -> None: ...

        def get_extra_info(self, info: str) -> object:
            return False if info == "is_readable" else None

    class Backend(httpcore.NetworkBackend):
        def connect_tcp(self, *args: object, **kwargs: object) -> httpcore.NetworkStream:
            return Stream()

    transport = httpx.HTTPTransport()
    transport._pool = httpcore.ConnectionPool(network_backend=Backend())
    client = httpx.Client(transport=transport)

    def calls(n: int) -> None:
        for _ in range(n):
            client.get("http://shop/")

    return client, calls


#: what it is, how it is made, calls in a block, the figure that it must stay below (in us)
SUBJECTS: dict[str, tuple[str, Callable[[], tuple[Any, Callable[[int], None]]], int, float | None]] = {
    "checkout": ("SQLAlchemy: check out a connection and return it", _checkout, 2_000, 2.0),
    "command": ("redis: a command on a stub connection", _command, 1_000, 2.0),
    "task": ("executor: a task", _task, 1_000, 2.0),
    "request": ("httpx: a request on a stub connection", _request, 1_000, 3.0),
}


def _serve(subject: str, watched: bool) -> None:
    """A process that makes a block of calls for each line of its input and prints the CPU seconds of each call."""
    _, make, n, _ = SUBJECTS[subject]
    if watched:
        from uno.core.monitoring.resources import ResourceMonitor

        monitor = ResourceMonitor(interval=3_600)
        target, calls = make()
        resource = monitor.manager.register(target, id="it")
        calls(1)
        monitor.tick()  # installs the hooks; its clock does not run here
        stat = monitor.stat_of(resource)
        assert stat is not None
        histograms = [stat.wait, stat.use, stat.duration, stat.connects]
    else:
        _, calls = make()
        histograms = []
    calls(n)
    for histogram in histograms:
        histogram.freeze()
    before = sum(histogram.totals.count for histogram in histograms)
    blocks = 0
    for _ in sys.stdin:
        begun = time.process_time()
        calls(n)
        if watched:
            monitor.stat_of(resource)  # what hooks only wrote down is counted when it is looked at
        for histogram in histograms:
            histogram.freeze()
        print((time.process_time() - begun) / n, flush=True)
        blocks += 1
    seen = sum(histogram.totals.count for histogram in histograms) - before
    print(json.dumps({"calls": blocks * n, "observed": seen}), flush=True)


def _measure(subject: str) -> None:
    what, _, _, limit = SUBJECTS[subject]
    program = [sys.executable, "-c", "import sys; from benchmarks.hooks import _serve; "
               "_serve(sys.argv[1], sys.argv[2] == 'with')", subject]  # fmt: skip
    processes = [
        subprocess.Popen([*program, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for how in ("without", "control", "with")
    ]
    rounds: list[tuple[float, ...]] = []
    for number in range(ROUNDS):
        times = [0.0] * 3
        for place in ((0, 1, 2), (2, 0, 1), (1, 2, 0))[number % 3]:
            process = processes[place]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            times[place] = float(process.stdout.readline())
        rounds.append(tuple(times))
    counts = [json.loads(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert counts[0]["calls"] == counts[2]["calls"] > 0
    assert counts[0]["observed"] == 0
    assert counts[2]["observed"] >= counts[2]["calls"], "uno did not see all calls"
    base = statistics.median(times[0] for times in rounds)
    added = statistics.median(times[2] - times[0] for times in rounds)
    control = statistics.median(times[1] - times[0] for times in rounds)
    line(
        what,
        f"+{added * 1e6:.2f} us",
        "" if limit is None else f"<= {limit:g} us",
        f"on {base * 1e6:.1f} us ({added / base:+.0%}), control {control * 1e6:+.2f} us,"
        f" {counts[2]['calls']:,} calls, {counts[2]['observed']:,} times observed",
    )


def run() -> None:
    """Each kind of call in turn."""
    for subject in SUBJECTS:
        _measure(subject)


if __name__ == "__main__":
    run()
