"""What does the dashboard need of ASGI? A request, an answer, and files that never change while it runs."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from uno.core.records import NamedTuple

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

GZIP_FROM = 1_000  # bytes
SLICE = 0.002  # seconds of work after which the application's event loop gets its turn
MAX_BODY = 4_096
MAX_FIELDS = 50
FOLDER = Path(__file__).parent / "static"
FILES = {"static/app.js": "text/javascript; charset=utf-8", "static/app.css": "text/css; charset=utf-8"}

#: On every answer. Nothing inline, nothing from elsewhere, in nobody's frame; markup only through the page's policy.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types uno-map"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class HTTPError(Exception):
    """An answer other than success; ``message`` is for whoever asked."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


class Request:
    """What the routes look at. ``path`` is that inside the dashboard: "" for the address without a slash, "/", ..."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope, self._receive = scope, receive
        self.method: str = scope["method"]
        self.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope.get("headers", ())}
        root, path = scope.get("root_path", ""), scope["path"]
        self.path: str = path[len(root) :] if root and path.startswith(root) else path
        self.base: str = root

    @property
    def gzip(self) -> bool:
        """Whether the answer may be compressed."""
        return "gzip" in self.headers.get("accept-encoding", "").lower()

    def query(self) -> dict[str, str]:
        """The query's fields; of a repeated one the last. HTTPError 400 when there are too many."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        try:
            return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError:
            raise HTTPError(400, f"a question has at most {MAX_FIELDS} fields") from None

    def cookies(self, name: str) -> list[str]:
        """All values sent for a cookie: one name may stand for several paths."""
        found = []
        for part in self.headers.get("cookie", "").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                found.append(value)
        return found

    async def body(self) -> bytes:
        """The whole body. HTTPError 413 beyond 4 KiB."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise HTTPError(400, "the request ended too early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY:
                raise HTTPError(413, "the body is too long")
            more = message.get("more_body", False)
        return b"".join(parts)


class Answer(NamedTuple):
    """A whole answer; the security headers are added to it."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}

    async def __call__(self, request: Request, send: Send) -> None:
        headers = {**HEADERS, "cache-control": "no-store", **self.headers}
        if self.status not in (204, 304):
            headers["content-length"] = str(len(self.body))
        await send({"type": "http.response.start", "status": self.status, "headers": encoded(headers)})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else self.body})


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them; a line break in a value parts two cookies."""
    return [
        (key.encode("latin-1"), part.encode("latin-1"))
        for key, text in headers.items()
        for part in text.split("\n")
    ]


def json_answer(request: Request, body: bytes, status: int = 200) -> Answer:
    """JSON, compressed where that is worth it and accepted."""
    headers = {"content-type": "application/json", "vary": "accept-encoding, cookie"}
    if len(body) >= GZIP_FROM and request.gzip:
        body = gzip.compress(body, 1, mtime=0)
        headers["content-encoding"] = "gzip"
    return Answer(body, status, headers)


def error_answer(request: Request, error: HTTPError) -> Answer:
    """``{"error": ...}``."""
    answer = json_answer(request, dumps({"error": error.message}), error.status)
    return answer._replace(headers={**answer.headers, **error.headers})


def dumps(value: Any) -> bytes:
    """Compact ASCII JSON; what JSON cannot say (NaN, infinity) becomes null."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def whole(steps: Generator[None, None, T]) -> T:
    """Run a builder to its end at once."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


async def sliced(steps: Generator[None, None, T]) -> T:
    """Run a builder to its end, letting the event loop do other work every 2 ms."""
    end = perf_counter() + SLICE
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if perf_counter() >= end:
            await asyncio.sleep(0)
            end = perf_counter() + SLICE


class Static:
    """The page and its two files, read once."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, bytes, str]] = {}
        for name in FILES:
            data = (FOLDER / name.removeprefix("static/")).read_bytes()
            self._files[name] = data, gzip.compress(data, 9, mtime=0), hashlib.sha256(data).hexdigest()[:16]
        #: changes with the files, so that ``?v=`` refreshes caches
        self.version = hashlib.sha256(
            "".join(tag for _, _, tag in self._files.values()).encode()
        ).hexdigest()[:12]
        self.page = (FOLDER / "index.html").read_bytes().replace(b"{{version}}", self.version.encode())

    def file(self, name: str, request: Request, *, public: bool) -> Answer:
        """One of FILES: for ever under the present ``?v=``, else to be asked for again."""
        plain, small, tag = self._files[name]
        fresh = request.query().get("v") == self.version
        headers = {
            "content-type": FILES[name],
            "etag": f'"{tag}"',
            "vary": "accept-encoding",
            "cache-control": ("public" if public else "private")
            + (", max-age=31536000, immutable" if fresh else ", no-cache"),
        }
        known = {
            part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")
        }
        if headers["etag"] in known or "*" in known:
            return Answer(b"", 304, headers)
        if request.gzip:
            return Answer(small, 200, {**headers, "content-encoding": "gzip"})
        return Answer(plain, 200, headers)
