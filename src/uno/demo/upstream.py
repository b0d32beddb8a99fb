"""Where does the shop get its prices? From this small server, which can refuse to work."""

from __future__ import annotations

import asyncio
import json
import random

from uno.demo.background import LoopThread

HOST = "127.0.0.1"


class PriceService:
    """An HTTP server on a free port, in a thread of its own."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = LoopThread("demo-upstream")
        self.accept()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    def accept(self) -> None:
        """Listen, as at the start."""
        self._thread.call(self._accept())

    def refuse(self) -> None:
        """Go away: open connections are closed, new ones are refused."""
        self._thread.call(self._refuse())

    def close(self) -> None:
        """End it."""
        self._thread.close()

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(random.expovariate(1 / 0.015))
                sku = request.split(b" ", 2)[1].rpartition(b"/")[2].decode("latin-1")
                body = json.dumps(
                    {"price": 400 + sum(sku.encode()) * 7 % 3_000 + random.randint(0, 99)}
                ).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass  # the client is gone
        finally:
            self._open.discard(writer)
            writer.close()
