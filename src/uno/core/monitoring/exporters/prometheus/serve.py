"""How does a program without a web server serve the page? On a port of its own, from a thread of its own.

One small HTTP server: one request a connection, each with a deadline; a new connection pushes out the one that has
been silent longest, so that slow clients keep nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading

from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter

log = logging.getLogger("uno.exporters.prometheus")

PATH = "/metrics"
MAX_CONNECTIONS = 32
#: Seconds for a client to send its request, and to take its answer.
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 30.0
_MAX_HEAD = 16_384
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


class MetricsServer:
    """Serves ``/metrics``. OSError when it cannot listen; ``port`` is the one that it got."""

    def __init__(self, exporter: PrometheusExporter, host: str, port: int) -> None:
        self.exporter = exporter
        self.connections: dict[_Connection, None] = {}  # the oldest first
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        # Not the application's kind of loop: a forked child has to know what it is made of.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="uno-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), sock=self._socket, backlog=64)
        )
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        for _ in range(3):  # what was accepted this instant becomes a connection first
            await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for _ in range(2):
            await asyncio.sleep(0)

    def close(self) -> None:
        """Stop listening and end the thread, within a second."""
        with contextlib.suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets, and touch nothing else that it shares."""
        _ABANDONED.append(self)  # their loop must not be finalised here: it would speak to the parent's
        null = os.open(os.devnull, os.O_RDWR)
        sockets = [connection.socket for connection in self.connections]
        for fd in (self._socket.fileno(), *(s.fileno() for s in sockets if s is not None)):
            if fd >= 0:
                # The number stays taken: whoever holds the parent's objects here may close it later.
                os.dup2(null, fd, inheritable=False)
        os.close(null)


_ABANDONED: list[MetricsServer] = []


def _listen(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} of {host} is in use; choose another one, or 0 for any that is free"
            raise OSError(errno.EADDRINUSE, text) from None
        if error.errno == errno.EACCES:
            text = f"port {port} of {host} is not for this user; choose one from 1024 up"
            raise PermissionError(errno.EACCES, text) from None
        raise
    return listening


class _Connection(asyncio.Protocol):
    """A request and its answer."""

    def __init__(self, server: MetricsServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self.socket: socket.socket | None = None

    @property
    def silent(self) -> bool:
        """Whether nothing is done for it at present."""
        return self._task is None or self._task.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.socket = transport.get_extra_info("socket")
        known = self._server.connections
        if len(known) >= MAX_CONNECTIONS:
            next((one for one in known if one.silent), next(iter(known))).abort()
        known[self] = None
        self._until(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """End it now."""
        self._server.connections.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def _until(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            return  # a body, or a second request: one answer a connection
        self._buffer += data
        head, end, _ = self._buffer.partition(b"\r\n\r\n")
        if not end and len(self._buffer) <= _MAX_HEAD:
            return
        self._until(ANSWER_SECONDS)
        text = bytes(head).decode("latin-1") if end and len(head) <= _MAX_HEAD else None
        self._buffer = bytearray()
        self._task = asyncio.get_running_loop().create_task(self._answer(text))

    def eof_received(self) -> bool:
        self._ended = True
        return not self.silent  # an answer that is under way is still sent

    async def _answer(self, request: str | None) -> None:
        head = False
        try:
            status, parts, headers, head = await self._found(request)
        except Exception as error:
            log.warning("a scrape failed: %s", type(error).__name__)
            status, parts, headers = 500, [b"the page could not be made\n"], {}
        headers.setdefault("content-type", "text/plain; charset=utf-8")
        headers |= {"content-length": str(sum(map(len, parts))), "connection": "close"}
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if not head:
            transport.write(b"".join(parts))
        try:
            if not self._ended and transport.can_write_eof():
                transport.write_eof()  # and not close(): what the client still sends would take the answer away
            else:
                transport.close()
        except OSError:  # it is gone already
            self.abort()

    async def _found(self, request: str | None) -> tuple[int, list[bytes], dict[str, str], bool]:
        if request is None:
            return 431, [b"the request is too long\n"], {}, False
        first, *lines = request.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, [b"not HTTP\n"], {}, False
        method, target, _ = words
        head = method == "HEAD"
        path, _, query = target.partition("?")
        if path.rstrip("/") != PATH:
            return 404, [b"metrics are at /metrics\n"], {}, head
        if method not in ("GET", "HEAD"):
            return 405, [], {"allow": "GET, HEAD"}, False
        wanted = {"accept": "", "accept-encoding": ""}
        for line in lines:
            key, _, value = line.partition(":")
            key = key.lower()
            if key in wanted:
                wanted[key] += ("," if wanted[key] else "") + value.strip()
        try:
            parts, headers = await self._server.exporter.respond_in_loop(
                wanted["accept-encoding"], wanted["accept"], query
            )
        except ValueError:
            return 400, [b"too many parameters\n"], {}, head
        return 200, parts, headers, head
