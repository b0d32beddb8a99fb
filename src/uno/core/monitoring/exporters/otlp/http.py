"""How is one request sent, so that no receiver can hold us longer than its deadline?

The standard library's client with a deadline over the whole exchange: a socket's own timeout begins anew with
every byte. Redirects are never followed: the headers may hold a token for this receiver alone.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from uno.core.monitoring.exporters.otlp.config import Config
from uno.core.records import NamedTuple

MAX_ANSWER = 65_536
MAX_RETRY_AFTER = 300.0
PIECE = 65_536
_RETRYABLE = {429: "throttled", 502: "unavailable", 503: "unavailable", 504: "unavailable"}


class Outcome(NamedTuple):
    """How a request went. ``reason`` is a category, "" for success; never a text of the receiver's.

    ``again``: it may be sent again; ``after``: seconds that the receiver asks us to wait, None when it does not say;
    ``rejected``: data points that it did not take although it took the request.
    """

    reason: str
    again: bool = False
    after: float | None = None
    rejected: int = 0


class _Timed(io.RawIOBase):
    """A socket to read from until a moment."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Reader:
    """What http.client asks a file of."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._raw = _Timed(connection, deadline)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


def _response(deadline: float, sock: socket.socket, *args: Any, **named: Any) -> http.client.HTTPResponse:
    reader: Any = _Reader(sock, deadline)
    return http.client.HTTPResponse(reader, *args, **named)


def _readable(sock: socket.socket) -> bool:
    """Whether there is something to read, or the end."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


class Transport:
    """A connection that is kept. Used by one thread; ``abort`` may be called by another."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes, media_type: str, encoding: str, seconds: float) -> Outcome:
        """POST ``body`` within ``seconds``. Never raises for what a network or a receiver does."""
        deadline = time.monotonic() + seconds
        reason = "connect"
        try:
            connection = self._connected(seconds)
            reason = "network"
            status, after, answer = self._exchange(connection, body, media_type, encoding, deadline)
        except ssl.SSLError as error:
            self.close()
            timed_out = isinstance(error, TimeoutError) or "timed out" in str(error.args)
            return Outcome("timeout" if timed_out else "tls", again=True)
        except TimeoutError:
            self.close()
            return Outcome("timeout", again=True)
        except (OSError, http.client.HTTPException, ValueError):
            # ValueError: what the receiver says is no HTTP at all, or abort() closed the socket just now.
            self.close()
            return Outcome(reason, again=True)
        if 200 <= status < 300:
            return Outcome("", rejected=rejected_points(answer, media_type))
        if status in _RETRYABLE:
            return Outcome(_RETRYABLE[status], again=True, after=retry_after(after))
        if status < 400:
            return Outcome("redirect")
        return Outcome("refused" if status < 500 else "error")

    def _connected(self, seconds: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is not None:
            sock = connection.sock
            # What can be read between two requests is the end, or a receiver that speaks out of turn.
            if sock is not None and not _readable(sock):
                return connection
            self.close()
        config = self._config
        host, port = config.endpoint.host, config.endpoint.port
        if config.tls is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=config.tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
        self._connection = connection
        connection.connect()
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        body: bytes,
        media_type: str,
        encoding: str,
        deadline: float,
    ) -> tuple[int, str, bytes]:
        from uno import __version__

        sock = connection.sock
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        connection.putrequest("POST", self._config.endpoint.target)
        headers = {
            "content-type": media_type,
            "content-length": str(len(body)),
            "user-agent": f"uno-monitor/{__version__}",
            **self._config.headers,
        }
        if encoding:
            headers["content-encoding"] = encoding
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        view = memoryview(body)
        for at in range(0, len(body), PIECE):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            sock.sendall(view[at : at + PIECE])
        connection.response_class = partial(_response, deadline)  # type: ignore[assignment]
        response = connection.getresponse()
        try:
            answer = response.read(MAX_ANSWER)
            matches = response.headers.get_content_type() == media_type and not response.getheader(
                "content-encoding"
            )
            return response.status, response.getheader("retry-after") or "", answer if matches else b""
        finally:
            whole = response.isclosed()
            response.close()
            if not whole:  # the rest of a long answer would be taken for the next one
                self.close()

    def close(self) -> None:
        """Let the connection go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """End whatever waits on the connection, from another thread."""
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # it is gone already
                sock.shutdown(socket.SHUT_RDWR)


def retry_after(text: str, now: float | None = None) -> float | None:
    """Seconds to wait by a Retry-After header (seconds, or an HTTP date), at most MAX_RETRY_AFTER; None without."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, moment - (time.time() if now is None else now)), MAX_RETRY_AFTER)


def rejected_points(answer: bytes, media_type: str) -> int:
    """How many data points the answer says were rejected; 0 when it cannot be read."""
    try:
        if media_type == "application/json":
            import json

            found = json.loads(answer or b"{}")
            return max(0, int(found.get("partialSuccess", {}).get("rejectedDataPoints", 0)))
        count = 0
        for number, content in _fields(answer):
            if number == 1 and isinstance(content, bytes):
                count = next((v for n, v in _fields(content) if n == 1 and isinstance(v, int)), 0)
        return count if count < 1 << 63 else 0
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return 0


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message; ValueError or IndexError when it is none."""
    found: list[tuple[int, int | bytes]] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while shift < 70:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number of more than 64 bits")

    while at < len(message):
        key = number()
        kind = key & 7
        if kind == 0:
            found.append((key >> 3, number()))
            continue
        length = number() if kind == 2 else 8 if kind == 1 else 4 if kind == 5 else -1
        if length < 0 or at + length > len(message):
            raise ValueError("a field of an unknown or broken kind")
        found.append((key >> 3, message[at : at + length]))
        at += length
    return found
