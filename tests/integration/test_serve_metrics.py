"""Does the port of its own stand slow, rude and many clients, and end when it should?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.exporters.prometheus import serve
from uno.core.monitoring.integration import setup_prometheus_exporter
from uno.core.monitoring.resources import Gauge, ResourceMonitor


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(interval=0.1)
    monitor.manager.register(object(), id="shop")
    gauge = monitor.add_metric("shop", Gauge("in_stock", "Articles", ["n"]))
    for n in range(100):
        gauge.labels(str(n)).set(n)
    yield monitor
    monitor.stop()


def ask(
    port: int, method: str = "GET", path: str = "/metrics", host: str = "127.0.0.1", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(
            method, path, headers={key.replace("_", "-"): value for key, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def raw(port: int, request: bytes) -> bytes:
    """What comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                found += data
        return found


def test_requests_and_answers(monitor: ResourceMonitor) -> None:
    port = monitor.serve_metrics(0)
    assert monitor.running
    deadline = time.monotonic() + 10
    while monitor.store.frame is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status, headers, body = ask(port)
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["content-length"]) == len(body)
    assert b'in_stock{resource="shop",n="99"} 99.0\n' in body
    status, headers, packed = ask(port, accept_encoding="gzip", accept="application/openmetrics-text")
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(packed).endswith(b"# EOF\n")
    status, headers, body = ask(port, "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 1_000
    assert ask(port, path="/metrics/?name[]=in_stock")[2].count(b"\n") >= 102
    for method, path, expected in (
        ("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405), ("DELETE", "/metrics", 405),
        ("HEAD", "/x", 404), ("GET", "/metrics?" + "name[]=a&" * 200, 400), ("GET", "/" + "x" * 20_000, 431),
    ):  # fmt: skip
        assert ask(port, method, path)[0] == expected, (method, path)
    assert ask(port, "PUT")[1]["allow"] == "GET, HEAD"
    assert raw(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(port, b"POST /metrics HTTP/1.1\r\ncontent-length: 9\r\n\r\n" + b"x" * 100_000).startswith(
        b"HTTP/1.1 405 "
    )


def test_it_ends_with_the_monitor_and_may_come_again(monitor: ResourceMonitor) -> None:
    first, second = monitor.serve_metrics(0), monitor.serve_metrics(0)
    assert first != second
    with pytest.raises(
        OSError, match=f"port {first} of 127.0.0.1 is in use; choose another one, or 0"
    ) as raised:
        monitor.serve_metrics(first)
    assert raised.value.errno == errno.EADDRINUSE
    assert ask(first)[0] == ask(second)[0] == 200
    idle = socket.create_connection(("127.0.0.1", first))
    monitor.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "uno-metrics"]
    for port in (first, second):
        with pytest.raises(ConnectionRefusedError):
            ask(port)
    idle.close()
    assert monitor.serve_metrics(first) == first, "the port is free again at once"
    assert ask(first)[0] == 200


def test_misuse(monitor: ResourceMonitor) -> None:
    for port in (-1, 65_536, "9000", None, True, 1.5):
        with pytest.raises(ValueError, match="port is 0 to 65535, not"):
            monitor.serve_metrics(port)  # type: ignore[arg-type]
    with pytest.raises(OSError):  # noqa: PT011 - the system's own words
        monitor.serve_metrics(0, host="203.0.113.7")
    assert not monitor.running


def test_only_this_machine_by_default_and_others_where_it_is_said(monitor: ResourceMonitor) -> None:
    monitor.serve_metrics(0)
    monitor.serve_metrics(0, host="0.0.0.0")
    loopback, everywhere = (server._socket.getsockname()[0] for server in monitor._servers)
    assert (loopback, everywhere) == ("127.0.0.1", "0.0.0.0")
    if socket.has_ipv6:
        with contextlib.suppress(OSError):
            port = monitor.serve_metrics(0, host="::1")
            assert ask(port, host="::1")[0] == 200


def test_slow_clients_keep_nobody_out(monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REQUEST_SECONDS", 0.5)
    port = monitor.serve_metrics(0)
    (server,) = monitor._servers
    slow = []
    for _ in range(3 * serve.MAX_CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nx: ")
        slow.append(connection)
    assert ask(port)[0] == 200
    assert len(server.connections) <= serve.MAX_CONNECTIONS
    deadline = time.monotonic() + 10
    while server.connections:  # each is sent away when its time is over, though it goes on sending
        assert time.monotonic() < deadline
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.send(b"y")
        time.sleep(0.05)
    for connection in slow:
        connection.close()


def test_clients_that_do_not_take_their_answer(
    monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "ANSWER_SECONDS", 0.5)
    port = monitor.serve_metrics(0)
    (server,) = monitor._servers
    slow = []
    for _ in range(2 * serve.MAX_CONNECTIONS):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        slow.append(connection)
    assert ask(port)[0] == 200
    deadline = time.monotonic() + 10
    while server.connections:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for connection in slow:
        connection.close()


@settings(deadline=None, max_examples=60)
@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"accept: ", b"\0", b"?"]))
    .map(b"".join)
)  # fmt: skip
def test_whatever_is_sent(request: bytes) -> None:
    port = _PORT or _serve()
    found = raw(port, request)
    assert found == b"" or found.startswith(b"HTTP/1.1 ")
    assert not found.startswith(b"HTTP/1.1 500")
    assert ask(port, "HEAD")[0] == 200


_PORT = 0
_SERVING: list[ResourceMonitor] = []


def _serve() -> int:
    global _PORT
    _SERVING.append(ResourceMonitor())
    _PORT = _SERVING[0].serve_metrics(0)
    return _PORT


@pytest.fixture(scope="module", autouse=True)
def _stop_serving() -> Iterator[None]:
    yield
    for monitor in _SERVING:
        monitor.stop()


def test_a_forked_child_does_not_serve() -> None:
    program = """
import os, socket, sys, time
from uno.core.monitoring.resources import ResourceMonitor
monitor = ResourceMonitor(interval=0.1)
port = monitor.serve_metrics(0)
client = socket.create_connection(("127.0.0.1", port))  # a connection that is open while the process forks
client.sendall(b"GET /metrics HTTP/1.1\\r\\n")
time.sleep(0.3)
pid = os.fork()
if pid == 0:
    assert monitor._servers == []
    time.sleep(0.2)
    sys.stdin.readline()
    os._exit(0)
client.sendall(b"\\r\\n")
assert client.recv(100).startswith(b"HTTP/1.1 200 "), "the parent's connections live on"
client.close()
with socket.create_connection(("127.0.0.1", port)) as again:
    again.sendall(b"HEAD /metrics HTTP/1.1\\r\\n\\r\\n")
    assert again.recv(100).startswith(b"HTTP/1.1 200 ")
monitor.stop()
try:
    socket.create_connection(("127.0.0.1", port))
except ConnectionRefusedError:
    print("closed while the child lives")
assert monitor.serve_metrics(port) == port
monitor.stop()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input="\n",
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed while the child lives\n", "")


def test_nothing_is_left_open(monitor: ResourceMonitor) -> None:
    def serve(times: int) -> int:
        for _ in range(times):
            port = monitor.serve_metrics(0)
            assert ask(port)[0] == 200
            monitor.stop()
        return len(os.listdir("/proc/self/fd"))

    before = serve(3)  # what the monitor keeps open for itself is there then
    assert serve(20) <= before + 5


# -- the ASGI application ------------------------------------------------------------------------------


async def test_any_asgi_server_can_ask(monitor: ResourceMonitor) -> None:
    app = setup_prometheus_exporter(monitor, prometheus_client=False).app
    monitor.tick()

    async def call(
        method: str, query: bytes = b"", **headers: str
    ) -> tuple[int, dict[bytes, bytes], list[bytes]]:
        sent: list[dict[str, object]] = []

        async def send(message: object) -> None:
            sent.append(message)  # type: ignore[arg-type]
            await asyncio.sleep(0)

        pairs = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "method": method, "path": "/", "query_string": query, "headers": pairs}
        await app(scope, None, send)  # type: ignore[arg-type]
        assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
        bodies = [message["body"] for message in sent[1:]]
        return sent[0]["status"], dict(sent[0]["headers"]), bodies  # type: ignore[return-value, call-overload]

    status, headers, bodies = await call("GET")
    assert (status, headers[b"content-length"]) == (200, str(sum(map(len, bodies))).encode())
    assert (await call("HEAD"))[1:] == (headers, [b""])
    assert (await call("POST"))[0] == 405
    assert (await call("GET", b"&".join([b"name[]=x"] * 200)))[0] == 400
    gauge = monitor.add_metric("shop", Gauge("many", "Many", ["n"]))
    for n in range(1_000):
        gauge.labels("x" * 190 + str(n)).set(n)
    monitor.tick()
    _, headers, bodies = await call("GET")
    assert len(bodies) > 1, "a large page is handed over in parts"
    assert sum(map(len, bodies)) == int(headers[b"content-length"])
