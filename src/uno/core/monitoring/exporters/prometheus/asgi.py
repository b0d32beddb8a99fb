"""How does any ASGI framework serve the page? ``app.mount("/metrics", exporter.app)``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Bytes handed to the server at once.
_PART = 131_072


def application(exporter: PrometheusExporter) -> ASGIApp:
    """An ASGI application that answers every path with the page."""

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _send(send, 405, [], {"allow": "GET, HEAD"})
            return
        wanted = {b"accept": b"", b"accept-encoding": b""}
        for key, value in scope.get("headers", ()):
            if key in wanted:
                wanted[key] += (b"," if wanted[key] else b"") + value
        accept, accept_encoding = (value.decode("latin-1") for value in wanted.values())
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            parts, headers = await exporter.respond_in_loop(accept_encoding, accept, query)
        except ValueError:  # more parameters than anybody means
            await _send(send, 400, [b"too many parameters\n"], {"content-type": "text/plain"})
            return
        await _send(send, 200, parts, headers, head=scope["method"] == "HEAD")

    return metrics


async def _send(
    send: Send, status: int, parts: list[bytes], headers: dict[str, str], *, head: bool = False
) -> None:
    pairs = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    pairs.append((b"content-length", str(sum(map(len, parts))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    if not head:
        waiting: list[bytes] = []
        size = 0
        for part in parts:
            waiting.append(part)
            size += len(part)
            if size >= _PART:
                await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": True})
                waiting, size = [], 0
        await send({"type": "http.response.body", "body": b"".join(waiting)})
    else:
        await send({"type": "http.response.body", "body": b""})
