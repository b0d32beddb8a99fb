"""Does every open page hear of a tick at once, and does none of them hold anything up?"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.servers import HOST, free_port
from tests.web import BEARER, PATH, TOKEN, ask, mismatches, opened, served, stream, until
from uno.core.monitoring.dashboard import Dashboard
from uno.core.monitoring.dashboard import stream as stream_module
from uno.core.monitoring.dashboard.stream import LIFE, MAX_VIEWERS
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import ResourceManager


def test_the_first_event_comes_at_once() -> None:
    with opened(interval=20, token=TOKEN) as (url, monitor):
        until(lambda: monitor.store.frame is not None, what="the first tick")
        begun = time.monotonic()
        with stream(url) as events:
            event = next(events)
        assert time.monotonic() - begun < 2
        assert mismatches(event, "Tick") == []
        assert set(event["resources"]) == {resource.id for resource in monitor.manager}


def test_one_event_for_each_tick() -> None:
    with opened(interval=0.1, token=TOKEN) as (url, monitor), stream(url) as events:
        seen = [next(events) for _ in range(10)]
        assert [event["seq"] for event in seen] == list(range(seen[0]["seq"], seen[0]["seq"] + 10))
        times = [event["now"] for event in seen]
        assert times == sorted(set(times))
        assert all(mismatches(event, "Tick") == [] for event in seen)
        monitor.manager.register(object(), id="late", read=lambda: {"depth": 1})
        assert "late" in next(event for event in events if event["added"])["added"]
        monitor.manager.unregister("late")
        assert "late" in next(event for event in events if event["removed"])["removed"]


def test_who_comes_back_hears_what_came_and_went_meanwhile() -> None:
    with opened(interval=0.1, token=TOKEN) as (url, monitor), stream(url) as others:
        first = next(others)
        monitor.manager.register(object(), id="late", read=lambda: {"depth": 1})
        next(event for event in others if event["added"])
        with stream(url, {**BEARER, "last-event-id": str(first["seq"])}) as events:
            assert next(events)["added"] == ["late"]
        for odd in (b"x", b"-1", b"9" * 30, b"\xb2", b""):
            headers = {b"authorization": BEARER["authorization"].encode(), b"last-event-id": odd}
            with stream(url, headers) as events:
                assert next(events)["seq"] > first["seq"]


def dashboard_app(interval: float, resources: int = 0) -> tuple[Starlette, Dashboard, ResourceMonitor]:
    manager = ResourceManager()
    for n in range(resources):
        manager.register(ThreadPoolExecutor(1), id=f"pool-{n:04}")
    monitor = ResourceMonitor(manager, interval=interval)
    dashboard = Dashboard(monitor, token=TOKEN)
    return Starlette(routes=[Mount("/d", dashboard.app)]), dashboard, monitor


def test_without_viewers_no_tick_is_encoded() -> None:
    app, dashboard, monitor = dashboard_app(0.02)
    with served(app) as address, monitor:

        def ticks(n: int) -> None:
            begun = monitor.store.frame.seq if monitor.store.frame else 0
            until(lambda: monitor.store.frame and monitor.store.frame.seq >= begun + n, what="ticks")

        ticks(10)
        assert dashboard.stream.encoded == 0
        with stream(f"{address}/d") as events:
            for _ in range(10):
                next(events)
            assert len(dashboard.stream) == 1
            with stream(f"{address}/d") as others:
                before = dashboard.stream.encoded
                seen = [next(others)["seq"] for _ in range(10)]
                assert dashboard.stream.encoded - before <= seen[-1] - seen[0] + 2, "once for all viewers"
        until(lambda: len(dashboard.stream) == 0, 2, "the viewers to be gone")
        before = dashboard.stream.encoded
        assert before >= 10
        ticks(20)
        assert dashboard.stream.encoded == before


def raw_stream(address: str, buffer: int | None = None) -> socket.socket:
    """A client that has asked for the stream and reads nothing yet."""
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(15)
    client.connect((HOST, urlsplit(address).port or 80))
    head = f"GET /d/api/stream HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    client.sendall(head.encode())
    return client


def test_streams_are_bounded_in_number() -> None:
    app, dashboard, monitor = dashboard_app(20)
    with served(app, backlog=512) as address, monitor, ExitStack() as ends:
        until(lambda: monitor.store.frame is not None)
        clients = [ends.enter_context(raw_stream(address)) for _ in range(MAX_VIEWERS + 20)]
        answers = [client.recv(12)[9:12] for client in clients]
        assert answers.count(b"200") == MAX_VIEWERS
        assert answers.count(b"503") == 20
        full = ask("GET", f"{address}/d/api/stream", headers=BEARER)
        assert (full.status_code, full.headers["retry-after"]) == (503, "10")
        assert ask("GET", f"{address}/d/api/alerts", headers=BEARER).status_code == 200
        ends.close()
        until(lambda: len(dashboard.stream) == 0, 5, "the viewers to be gone")
        with stream(f"{address}/d") as events:
            assert next(events)["seq"] >= 1


def test_a_slow_viewer_is_dropped_before_its_time() -> None:
    app, dashboard, monitor = dashboard_app(0.02, resources=300)
    with served(app) as address, monitor, raw_stream(address, 4_096) as client:
        until(lambda: len(dashboard.stream) == 1)
        begun = time.monotonic()
        until(lambda: len(dashboard.stream) == 0, LIFE - 2, "the slow viewer to be dropped")
        assert time.monotonic() - begun < LIFE - 2, "not by its age"
        assert client.recv(12) == b"HTTP/1.1 200"
        with stream(f"{address}/d") as events:
            assert len(next(events)["resources"]) >= 300


def test_a_stream_ends_by_its_age_and_at_once_with_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIFE == 10
    monkeypatch.setattr(stream_module, "LIFE", 2.0)  # ten would be to wait for
    app, dashboard, monitor = dashboard_app(0.5)
    with served(app) as address, monitor:
        begun = time.monotonic()
        with stream(f"{address}/d") as events:
            last = [event["seq"] for event in events][-1]
        assert 1.9 < time.monotonic() - begun < 4
        with stream(f"{address}/d", {**BEARER, "last-event-id": str(last)}) as events:
            assert next(events)["seq"] >= last
            begun = time.monotonic()
            dashboard.close()
            list(events)
            assert time.monotonic() - begun < 1


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_server_in_a_thread_ends_though_its_page_is_open(http: str) -> None:
    pytest.importorskip(http)
    app, _, monitor = dashboard_app(0.5)
    with monitor, ExitStack() as ends:
        with served(app, http=http) as address:
            events = [ends.enter_context(stream(f"{address}/d")) for _ in range(3)]
            assert all(next(each)["seq"] >= 1 for each in events)
            begun = time.monotonic()
        assert time.monotonic() - begun < 2
        for each in events:
            list(each)  # each comes to a proper end


PROGRAM = """
from fastapi import FastAPI
from uno.core.monitoring.integration import setup_monitoring

app = FastAPI()
setup_monitoring(app, token={token!r})
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_a_server_whose_page_is_open(workers: int, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM.format(token=TOKEN))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--workers", str(workers)]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        url = f"http://{HOST}:{port}{PATH}"

        def answers() -> bool:
            try:
                return ask("GET", f"{url}/api/alerts", headers=BEARER).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, 20, "the server's start")
        with ExitStack() as ends:
            streams = [ends.enter_context(stream(url)) for _ in range(3)]
            for events in streams:
                assert next(events)["seq"] >= 1
            begun = time.monotonic()
            server.send_signal(signal.SIGINT)
            for events in streams:
                list(events)  # each comes to a proper end
            output, _ = server.communicate(timeout=10)
            assert time.monotonic() - begun < (2 if workers == 1 else 4)
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in output
    assert "Cancel" not in output
