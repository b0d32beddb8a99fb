"""A receiver of OTLP for tests: a real HTTP server that answers as it is told and keeps what it got."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)


class Post(NamedTuple):
    """One request that came in."""

    path: str
    headers: Message
    body: bytes
    port: int  # of the other side: the same for requests of one connection
    at: float

    @property
    def raw(self) -> bytes:
        return gzip.decompress(self.body) if self.headers["content-encoding"] == "gzip" else self.body

    @property
    def request(self) -> Any:
        found = ExportMetricsServiceRequest()
        if self.headers["content-type"] == "application/json":
            json_format.Parse(self.raw, found)
        else:
            found.ParseFromString(self.raw)
        return found

    @property
    def metrics(self) -> list[Any]:
        return [m for r in self.request.resource_metrics for s in r.scope_metrics for m in s.metrics]

    @property
    def resource(self) -> dict[str, str]:
        (one,) = self.request.resource_metrics
        return {pair.key: pair.value.string_value for pair in one.resource.attributes}


class Receiver:
    """``script`` holds how the next requests are answered; ``default`` how those after them are.

    An answer is a status, (status, headers), "hang", "reset", "drip" (a byte now and then), "close" (taken, then the
    connection ends without an answer), or ("partial", points).
    """

    def __init__(self, default: Any = 200, tls: ssl.SSLContext | None = None) -> None:
        self.default = default
        self.script: deque[Any] = deque()
        self.posts: list[Post] = []
        self.accepted: list[Post] = []
        self.released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                post = Post(self.path, self.headers, body, self.client_address[1], time.monotonic())
                answer = receiver.script.popleft() if receiver.script else receiver.default
                taken = (
                    answer == 200
                    or answer == "close"
                    or (isinstance(answer, tuple) and answer[0] == "partial")
                )
                if taken:
                    receiver.accepted.append(post)
                receiver.posts.append(post)
                receiver.answer(self, answer)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self.server.server_port
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, answer: Any) -> None:
        headers: dict[str, str] = {}
        body = b""
        if answer == "hang":
            self.released.wait(60)
            handler.close_connection = True
            return
        if answer == "close":
            handler.close_connection = True
            return
        if answer == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return
        if answer == "drip":
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x-slow: 1\r\n" * 10_000:
                if self.released.wait(0.05):
                    return
                handler.wfile.write(bytes((byte,)))
            return
        if isinstance(answer, tuple) and answer[0] == "partial":
            response = ExportMetricsServiceResponse()
            response.partial_success.rejected_data_points = answer[1]
            response.partial_success.error_message = "the token Kn4ry001x9Zq is too long"
            headers["content-type"] = handler.headers["content-type"]
            if headers["content-type"] == "application/json":
                body = json_format.MessageToJson(response).encode()
            else:
                body = response.SerializeToString()
            answer = 200
        if isinstance(answer, tuple):
            answer, extra = answer
            headers.update(extra)
        handler.send_response(answer)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def points(post: Post, name: str) -> list[Any]:
    """The points of a metric of one request."""
    return [p for m in post.metrics if m.name == name for p in getattr(m, m.WhichOneof("data")).data_points]


def labels(point: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


def count_points(post: Post) -> int:
    return sum(len(getattr(m, m.WhichOneof("data")).data_points) for m in post.metrics)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def total_by_labels(posts: list[Post], name: str) -> Counter[tuple[tuple[str, str], ...]]:
    """The sum of a metric's points over several requests, by labels."""
    found: Counter[Any] = Counter()
    for post in posts:
        for point in points(post, name):
            found[tuple(sorted(labels(point).items()))] += point.as_double
    return found
