"""How does every open page hear of a tick at once, and what when it does not listen?

The tick is encoded once, on the monitor's thread, for all viewers; without viewers nothing is done. A stream lives
10 s and the browser comes back by itself: servers that are told to stop wait for open answers, and most tell
nobody. What uvicorn notes is looked at a few times a second, so there the end comes at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.dashboard.cards import Cards
from uno.core.monitoring.dashboard.web import (
    HEADERS,
    HTTPError,
    Message,
    Receive,
    Request,
    Send,
    dumps,
    encoded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("uno.dashboard")

MAX_VIEWERS = 100
LIFE = 10.0  # seconds of one stream
BEAT = 0.2  # seconds between two looks at whether a stream has to end
BEHIND = 4  # ticks that may wait for a slow viewer
RETRY = 250  # ms until a browser comes back
KEPT = 30  # ticks whose comings and goings are remembered for viewers that come back

_HEADERS = {
    **HEADERS,
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class Viewer:
    """One open stream. Touched on its own event loop only; ``loop.call_soon_threadsafe`` brings the ticks there."""

    __slots__ = ("deadline", "ended", "exchange", "loop", "sender", "waiting", "wake")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.wake = asyncio.Event()
        self.waiting: deque[bytes] = deque()
        self.deadline = monotonic() + LIFE
        self.ended = False
        self.exchange: Any = None
        self.sender: asyncio.Task[None] | None = None

    @property
    def unwanted(self) -> bool:
        """Whether the server that kept the connection alive does so no longer, since it stops."""
        return getattr(self.exchange, "keep_alive", None) is False

    def put(self, event: bytes) -> None:
        """Hand over an event; one who is too far behind is dropped."""
        if len(self.waiting) >= BEHIND:
            self.end()
            if self.sender is not None:
                self.sender.cancel()
            return
        self.waiting.append(event)
        self.wake.set()

    def end(self) -> None:
        """Finish after what is being sent."""
        self.ended = True
        self.wake.set()


class Stream:
    """The viewers of one dashboard."""

    def __init__(self, cards: Cards) -> None:
        self._cards = cards
        self._viewers: list[Viewer] = []
        self._beating: set[asyncio.AbstractEventLoop] = set()
        self._unsubscribe: Callable[[], None] | None = None
        self._seq, self._body = -1, b""
        self._ids: set[str] | None = None
        self._changes: deque[tuple[int, set[str], set[str]]] = deque(maxlen=KEPT)
        self._lock = threading.RLock()
        #: how many ticks were encoded so far
        self.encoded = 0

    def __len__(self) -> int:
        return len(self._viewers)

    async def __call__(self, request: Request, receive: Receive, send: Send) -> None:
        """Answer a request with events. HTTPError 503 when there are too many viewers."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise HTTPError(503, f"{MAX_VIEWERS} pages listen already", {"retry-after": "10"})
        begin = {"type": "http.response.start", "status": 200, "headers": encoded(_HEADERS)}
        if request.method == "HEAD":
            await send(begin)
            await send({"type": "http.response.body"})
            return
        loop = asyncio.get_running_loop()
        viewer = Viewer(loop)
        first = self._enter(viewer, request.headers.get("last-event-id", ""))
        tasks: set[asyncio.Task[Any]] = set()
        try:
            await send(begin)
            viewer.exchange = _kept_alive(receive)
            viewer.sender = loop.create_task(_send(viewer, first, send))
            tasks = {viewer.sender, loop.create_task(_until_gone(receive))}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(viewer)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                log.debug("a stream ended: %s", type(result).__name__)

    def close(self) -> None:
        """End every stream at once, from any thread."""
        with self._lock:
            for viewer in self._viewers:
                _call(viewer, viewer.end)

    # -- viewers come and go ---------------------------------------------------------------------------

    def _enter(self, viewer: Viewer, last_id: str) -> bytes:
        """Add a viewer; returns what it is sent at once."""
        with self._lock:
            self._viewers.append(viewer)
            if self._unsubscribe is None:
                self._unsubscribe = self._cards.monitor.subscribe(self._ticked)
            if viewer.loop not in self._beating:
                self._beating.add(viewer.loop)
                viewer.loop.call_later(BEAT, self._beat, viewer.loop)
            begin = b"retry: %d\n\n" % RETRY
            if self._cards.monitor.view.frame is None:
                return begin
            seq = self._encode()
            last = int(last_id) if last_id.isdecimal() and len(last_id) < 18 else None
            if last == seq:
                return begin
            added, removed = set[str](), set[str]()
            for at, came, went in self._changes:
                if last is not None and last < at <= seq:
                    added, removed = (added | came) - went, (removed | went) - came
            return begin + self._event(added, removed)

    def _leave(self, viewer: Viewer) -> None:
        with self._lock:
            self._viewers.remove(viewer)
            if not self._viewers and self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the streams of one loop that are old, or all when the server wants to stop."""
        now, stopping = monotonic(), server_is_stopping()
        with self._lock:
            here = [viewer for viewer in self._viewers if viewer.loop is loop]
            if not here:
                self._beating.discard(loop)
                return
        for viewer in here:
            if stopping or viewer.unwanted or now >= viewer.deadline:
                viewer.end()
            if now >= viewer.deadline + LIFE and viewer.sender is not None:
                viewer.sender.cancel()  # its last bytes do not go out
        loop.call_later(BEAT, self._beat, loop)

    # -- ticks -----------------------------------------------------------------------------------------

    def _ticked(self) -> None:
        """After each tick, on the monitor's thread."""
        with self._lock:
            before = self._seq
            if not self._viewers or self._encode() == before:
                return
            last = self._changes[-1] if self._changes and self._changes[-1][0] == self._seq else None
            event = self._event(*(last[1:] if last is not None else (set(), set())))
            for viewer in list(self._viewers):
                _call(viewer, viewer.put, event)

    def _encode(self) -> int:
        """Encode the present tick unless that was done; returns its number."""
        frame = self._cards.monitor.view.frame
        seq = 0 if frame is None else frame.seq
        if seq != self._seq:
            tick = self._cards.tick()
            ids = set(tick["resources"])
            if self._ids is not None and ids != self._ids:
                self._changes.append((seq, ids - self._ids, self._ids - ids))
            self._ids, self._seq = ids, seq
            self._body = dumps(tick)
            self.encoded += 1
        return seq

    def _event(self, added: set[str], removed: set[str]) -> bytes:
        head = dumps({"added": sorted(added), "removed": sorted(removed)})
        return b"event: tick\nid: %d\ndata: %s,%s\n\n" % (self._seq, head[:-1], self._body[1:])


async def _send(viewer: Viewer, first: bytes, send: Send) -> None:
    await send(_part(first))
    while True:
        while viewer.waiting and not viewer.ended:
            await send(_part(viewer.waiting.popleft()))
        if viewer.ended:
            break
        viewer.wake.clear()
        await viewer.wake.wait()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _call(viewer: Viewer, function: Callable[..., None], *args: Any) -> None:
    try:
        viewer.loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # its loop is closed: nobody is there
        viewer.ended = True


def _kept_alive(receive: Receive) -> object | None:
    """uvicorn's own side of a request, whose method ``receive`` is; None where it closes the connection anyway.

    A uvicorn that stops sets ``keep_alive`` to False there, in a thread too, where it handles no signal.
    """
    exchange = getattr(receive, "__self__", None)
    return exchange if getattr(exchange, "keep_alive", None) is True else None


def server_is_stopping() -> bool:
    """Whether the uvicorn that runs here was told to stop. Its signal handler is a method of the server."""
    return bool(getattr(_server(), "should_exit", False))


def server_address() -> str | None:
    """ "http://127.0.0.1:8000" of the uvicorn that runs here; None where that cannot be told."""
    config: Any = getattr(_server(), "config", None)
    host, port = getattr(config, "host", None), getattr(config, "port", None)
    if not (isinstance(host, str) and host and isinstance(port, int) and port):
        return None
    if getattr(config, "uds", None) or getattr(config, "fd", None) is not None:
        return None
    if "gunicorn.arbiter" in sys.modules:  # which hands its sockets over: uvicorn's own address is not used
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if getattr(config, 'is_ssl', False) else 'http'}://{host}:{port}"


def _server() -> object:
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
