"""What do the hooks add to a call of the application?

Each call is made in three processes, two without uno (the second one is the control: how far two equal things
differ here) and one with it, in turns, block by block. Folding what was observed, which the tick does, is counted
in. What each process counted proves that the calls were made and that uno saw them all.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks._measure import line

ROUNDS = 60


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
SUBJECTS: dict[str, tuple[str, Callable[[], tuple[Any, Callable[[int], None]]], int, float]] = {
    "checkout": ("SQLAlchemy: check out a connection and return it", _checkout, 2_000, 1.5),
    "command": ("redis: a command on a stub connection", _command, 1_000, 1.5),
    "task": ("executor: a task", _task, 1_000, 1.0),
    "request": ("httpx: a request on a stub connection", _request, 200, 3.0),
}
#: Who instruments the same for OpenTelemetry.
PEERS = {
    "checkout": ("opentelemetry.instrumentation.sqlalchemy", "SQLAlchemyInstrumentor"),
    "command": ("opentelemetry.instrumentation.redis", "RedisInstrumentor"),
    "request": ("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor"),
}
#: uno adds at most this share of what OpenTelemetry's instrumentation adds.
SHARE = 1 / 20


def _peer(subject: str) -> tuple[Any, str]:
    """OpenTelemetry's instrumentor; None, and why, where it measures nothing of the kind."""
    if subject not in PEERS:
        return None, "OpenTelemetry has nothing for it"
    module, name = PEERS[subject]
    instrumentor = getattr(importlib.import_module(module), name)()
    conflict = instrumentor._check_dependency_conflicts()
    if conflict is not None:
        return None, f"OpenTelemetry's refuses {conflict.found}, it wants {conflict.required}"
    return instrumentor, ""


def _instrumented(subject: str) -> Callable[[], float]:
    """Let OpenTelemetry instrument the library; returns how to ask for the number of spans so far."""
    from opentelemetry.trace import NoOpTracer, NoOpTracerProvider, Span

    class Tracer(NoOpTracer):
        spans = 0

        def start_span(self, *args: Any, **kwargs: Any) -> Span:
            self.spans += 1
            return super().start_span(*args, **kwargs)

    class Provider(NoOpTracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
            return tracer

    tracer = Tracer()
    _peer(subject)[0].instrument(tracer_provider=Provider())
    return lambda: tracer.spans


def _watched(target: Any, calls: Callable[[int], None]) -> tuple[Callable[[], float], Callable[[], None]]:
    """Let uno watch; returns how to ask for the number of observations so far, and how to fold them."""
    from uno.core.monitoring.resources import ResourceMonitor

    monitor = ResourceMonitor(interval=3_600)
    resource = monitor.manager.register(target, id="it")
    calls(1)
    monitor.tick()  # installs the hooks; its clock does not run here
    stat = monitor.stat_of(resource)
    assert stat is not None
    histograms = [stat.wait, stat.use, stat.duration, stat.connects]

    def fold() -> None:
        monitor.stat_of(resource)  # what hooks only wrote down is counted when it is looked at
        for histogram in histograms:
            histogram.freeze()

    return lambda: sum(histogram.totals.count for histogram in histograms), fold


def _serve(subject: str, how: str) -> None:
    """A process that makes a block of calls for each line of its input and prints the CPU seconds of each call."""
    _, make, n, _ = SUBJECTS[subject]
    seen: Callable[[], float] = float
    fold: Callable[[], object] = float
    if how == "otel":
        seen = _instrumented(subject)
    target, calls = make()
    if how == "uno":
        seen, fold = _watched(target, calls)
    calls(n)
    fold()
    before, blocks = seen(), 0
    for _ in sys.stdin:
        begun = time.process_time()
        calls(n)
        fold()
        print((time.process_time() - begun) / n, flush=True)
        blocks += 1
    print(json.dumps({"calls": blocks * n, "observed": seen() - before}), flush=True)


def _measure(subject: str) -> None:
    what, _, _, limit = SUBJECTS[subject]
    program = [
        sys.executable, "-c", "import sys; from benchmarks.hooks import _serve; _serve(*sys.argv[1:])", subject,
    ]  # fmt: skip
    peer, why = _peer(subject)
    ways = ("without", "control", "uno", "otel") if peer is not None else ("without", "control", "uno")
    processes = [
        subprocess.Popen([*program, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for how in ways
    ]
    rounds: list[list[float]] = []
    for number in range(ROUNDS):
        times = [0.0] * len(ways)
        for turn in range(len(ways)):
            place = (turn + number) % len(ways)
            process = processes[place]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            times[place] = float(process.stdout.readline())
        rounds.append(times)
    counts = [json.loads(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len({count["calls"] for count in counts}) == 1
    assert counts[0]["observed"] == 0
    assert all(count["observed"] >= count["calls"] for count in counts[2:]), "not all calls were seen"
    base = statistics.median(times[0] for times in rounds)
    control, added, *others = (
        statistics.median(times[place] - times[0] for times in rounds) for place in range(1, len(ways))
    )
    line(
        what,
        f"+{added * 1e6:.2f} us",
        f"<= {limit:g} us",
        f"on {base * 1e6:.1f} us ({added / base:+.1%}), control {control * 1e6:+.2f} us, {counts[0]['calls']:,} calls",
    )
    if others:
        why = (
            f"OpenTelemetry +{others[0] * 1e6:.1f} us ({others[0] / base:+.0%}),"
            f" {counts[3]['observed']:,.0f} spans that do nothing"
        )
    ratio = f"1/{others[0] / added:.0f}" if others and added > 0 else "-"
    line(
        "  of what OpenTelemetry's instrumentation adds", ratio, f"<= 1/{1 / SHARE:g}" if others else "", why
    )


def run() -> None:
    """Each kind of call in turn."""
    for subject in SUBJECTS:
        _measure(subject)


if __name__ == "__main__":
    run()
