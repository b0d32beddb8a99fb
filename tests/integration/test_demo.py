"""Does the demo do what it promises: incidents that uno sees and explains, and an end that leaves nothing behind?"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.servers import HOST, free_port, wait_until

TOKEN = "a-token-of-the-test"
API = "/monitoring/dashboard/api"
SEEN = 3.0  # seconds until an incident has its alert
SLACK = 4.0  # for asking, while others use the machine too
ENDED = 4.0  # seconds until nothing is left: two are promised, on a machine that does nothing else

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Demo:
    """``python -m uno.demo`` as a process, with its temporary files in a folder of its own."""

    def __init__(self, folder: Path, *, stdin: Any = subprocess.DEVNULL) -> None:
        self.folder, self.port = folder / "tmp", free_port()
        self.folder.mkdir()
        self._output = folder / "output.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uno.demo"],
                env={
                    **os.environ,
                    "PORT": str(self.port),
                    "UNO_DASHBOARD_TOKEN": TOKEN,
                    "TMPDIR": str(self.folder),
                },
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: "Incidents  http" in self.output(), 60, "the demo's page")
        except TimeoutError as error:
            self.kill()
            raise RuntimeError(f"{error}\n{self.output()}") from None

    def output(self) -> str:
        return self._output.read_text()

    def ask(self, path: str, method: str = "GET") -> Any:
        request = Request(f"http://{HOST}:{self.port}{path}", method=method)
        request.add_header("authorization", f"Bearer {TOKEN}")
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def alerts(self) -> list[dict[str, Any]]:
        """Those that fire."""
        alerts: list[dict[str, Any]] = self.ask(f"{API}/snapshot")["alerts"]
        return [alert for alert in alerts if alert["state"] == "firing"]

    def open_stream(self) -> Any:
        """The dashboard's live stream, as a browser holds it."""
        request = Request(
            f"http://{HOST}:{self.port}{API}/stream", headers={"authorization": f"Bearer {TOKEN}"}
        )
        stream = urlopen(request, timeout=10)
        assert stream.readline()
        return stream

    def end(self, ask: Callable[[], object]) -> tuple[int, float, list[psutil.Process]]:
        """Ask it to end. Returns the exit code, for how many seconds that took, and which children are left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        began = time.monotonic()
        ask()
        code = self.process.wait(20)
        took = time.monotonic() - began
        return code, took, [child for child in children if _lives(child)]

    def kill(self) -> None:
        """Whatever happens, nothing outlives the test."""
        with suppress(psutil.NoSuchProcess):
            demo = psutil.Process(self.process.pid)
            for process in [*demo.children(recursive=True), demo]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for all that only look at it."""
    running = Demo(tmp_path_factory.mktemp("demo"))
    yield running
    running.kill()


@pytest.fixture
def own_demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that the test may end."""
    running = Demo(tmp_path)
    yield running
    running.kill()


@pytest.mark.parametrize(
    ("incident", "resource", "metric", "cause"),
    [
        ("leak", "orders_db", "uno.resource.utilization", r"5 of 5 .*{faults} in refund for POST /refunds"),
        ("slow-queries", "orders_db", "db.client.operation.duration", r"slow from .*{faults} in report_sales"),
        ("dry-pool", "catalog_db", "db.client.connection.pending_requests", r"{faults} in check_out"),
        ("blocked-loop", "event-loop", "uno.asyncio.loop.", r"{faults} in thumbnail \(time\.sleep\)"),
        ("upstream", "price_service", "uno.http.client.error_ratio", r"ConnectError .*127\.0\.0\.1:\d+"),
    ],
)  # fmt: skip
def test_incident_is_seen_explained_and_over(
    demo: Demo, incident: str, resource: str, metric: str, cause: str
) -> None:
    cause = cause.replace("{faults}", r"uno/demo/faults\.py:\d+")
    wait_until(lambda: not demo.alerts(), 60, "calm before the incident")

    def explained() -> bool:
        return any(
            alert["resource"].endswith(resource)
            and alert["metric"].startswith(metric)
            and re.search(cause, alert["cause"])
            for alert in demo.alerts()
        )

    demo.ask(f"/incidents/{incident}", "POST")
    try:
        wait_until(explained, SEEN + SLACK, f"the alert of {incident}, instead of {demo.alerts()},")
    finally:
        demo.ask(f"/incidents/{incident}", "DELETE")
    wait_until(lambda: not demo.alerts(), 20, f"the end of {incident}")
    wait_until(
        lambda: demo.ask(f"{API}/snapshot")["verdict"]["level"] == "ok", 60, "the verdict that all is well"
    )


def test_everything_that_the_shop_uses_is_found(demo: Demo) -> None:
    expected = {
        "uno.demo.shop.orders_db": "database",
        "uno.demo.shop.catalog_db": "database",
        "uno.demo.shop.price_service": "http_client",
        "uno.demo.shop.receipt_queue": "task_queue",
        "uno.demo.shop.printers": "thread_pool",
    }
    if shutil.which("redis-server"):
        expected["uno.demo.shop.cache"] = "redis"

    def found() -> dict[str, str]:
        return {
            r["id"]: r["type"]
            for r in demo.ask(f"{API}/snapshot")["resources"]
            if r["health"]["status"] == "up"
        }

    wait_until(lambda: expected.items() <= found().items(), 10, f"{expected}, not only {found()},")
    if Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
        wait_until(lambda: "message_broker" in found().values(), 30, "RabbitMQ among the resources")
    # The demo's own parts (customers, price service) are not the shop's.
    assert set(found().values()) <= {
        *expected.values(),
        "event_loop",
        "process",
        "file_handle",
        "host",
        "limiter",  # the threads of the web framework
        "http_server",
        "message_broker",
    }


def test_the_page_is_served_without_anything_from_elsewhere(demo: Demo) -> None:
    for path in ("/", "/demo/page.css", "/demo/page.js"):
        with urlopen(f"http://{HOST}:{demo.port}{path}", timeout=10) as answer:
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            text = answer.read().decode()
        assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg|// .*", "", text)


def test_prometheus_reads_the_shop_too(demo: Demo) -> None:
    with urlopen(f"http://{HOST}:{demo.port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    assert re.search(
        r'^db_client_connection_max\{resource="uno\.demo\.shop\.orders_db".*\} 5\.0$', page, re.M
    )


@pytest.mark.parametrize(
    ("number", "incident"),
    [(signal.SIGINT, "blocked-loop"), (signal.SIGTERM, "leak"), (signal.SIGINT, "dry-pool")],
)
def test_a_signal_ends_everything(own_demo: Demo, number: signal.Signals, incident: str) -> None:
    own_demo.ask(f"/incidents/{incident}", "POST")
    stream = own_demo.open_stream()
    reader = threading.Thread(target=_drain, args=(stream,), daemon=True)
    reader.start()
    wait_until(own_demo.alerts, 6, "the incident")
    code, took, left = own_demo.end(lambda: own_demo.process.send_signal(number))
    assert (code, left) == (0, [])
    assert took < ENDED
    assert list(own_demo.folder.iterdir()) == []
    assert "Traceback" not in own_demo.output()
    reader.join(5)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _drain(stream: Any) -> None:
    """Read a stream until it ends, or is cut off."""
    with suppress(OSError, HTTPException):
        stream.read()


def test_keys_start_incidents_and_quit(tmp_path: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    keyboard, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    running = Demo(tmp_path, stdin=terminal)
    try:
        os.write(keyboard, b"1x")
        wait_until(
            lambda: running.ask("/incidents")["incidents"][0]["remaining"] > 0, 60, "the first incident"
        )
        os.write(keyboard, b"1")
        wait_until(lambda: running.ask("/incidents")["incidents"][0]["remaining"] == 0, 60, "its end")
        assert re.findall(r"Connection leak: (\w+)", running.output()) == ["started", "stopped"]
        assert running.end(lambda: os.write(keyboard, b"q"))[0] == 0
        assert termios.tcgetattr(terminal) == before
    finally:
        running.kill()
        os.close(keyboard)
        os.close(terminal)


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "uno.demo", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"Port {port} is in use; choose another one: PORT={port + 1} make demo\n"


def test_a_port_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uno.demo"],
        env={**os.environ, "PORT": "http"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "the port is a number from 1 to 65535, not 'http'" in done.stderr
