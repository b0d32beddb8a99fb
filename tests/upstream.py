"""Which HTTP server do the tests of HTTP clients talk to? One that does as it is told, in this process or its own.

``/404`` answers with that status, ``/gate`` when the gate is open, ``/slow`` after 0.2 s, ``/moved`` leads to
``/200``, ``/large`` has a body of 4 MB, ``/reset`` drops the connection, ``/close`` answers and closes it.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.servers import HOST, Server, _exchange


class Handler(BaseHTTPRequestHandler):
    """Answers by path."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    gate = threading.Event()

    def do_GET(self) -> None:
        what = self.path.partition("?")[0][1:]
        if what == "gate":
            self.gate.wait(10)
        if what == "slow":
            time.sleep(0.2)
        if what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if what == "moved":
            self.send_response(302)
            self.send_header("Location", "/200")
        else:
            self.send_response(int(what) if what.isdigit() else 200)
        if what == "close":
            self.send_header("Connection", "close")
        body = b"x" * 4_000_000 if what == "large" else b"ok"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nothing to report."""


class Upstream:
    """In this process, so that a test opens the gate with ``Upstream.gate.set()``."""

    gate = Handler.gate

    def __init__(self) -> None:
        self._server = _Server((HOST, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="upstream")
        self._thread.start()
        self.place = f"{HOST}:{self._server.server_port}"
        self.url = f"http://{self.place}"

    def close(self) -> None:
        """End it."""
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class HttpServer(Server):
    """In a process of its own, to be frozen, killed and restarted."""

    name = "http"
    scheme = "http"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.upstream", str(self.port)]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[1])}

    def answers(self) -> bool:
        return b" 200 " in _exchange(self.port, b"GET /200 HTTP/1.0\r\n\r\n")


if __name__ == "__main__":
    _Server((HOST, int(sys.argv[1])), Handler).serve_forever()
