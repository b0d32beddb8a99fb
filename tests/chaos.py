"""What is the network between a client and its server like? A TCP proxy that a test makes slow, silent or broken.

It stands on a port of its own before the server's. Threads of the standard library do the work: it knows no protocol.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from tests.servers import HOST, free_port


class Chaos:
    """Passes everything, until it is told otherwise; :meth:`heal` makes it pass again."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.port = free_port()
        #: how many threads hold back what was sent
        self.holding = 0
        self._seconds = 0.0
        self._cutting = False
        self._lock = threading.Lock()
        self._passing = threading.Event()
        self._passing.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._listen()

    # -- what the network does ---------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Everything that is sent arrives so much later."""
        self._seconds = seconds

    def drop(self) -> None:
        """Nothing arrives and nobody is told: a black hole. What was sent meanwhile arrives after :meth:`heal`."""
        self._passing.clear()

    def reset(self) -> None:
        """Every connection that there is breaks, at once and for both (RST). New ones are possible."""
        while self._pairs:
            with contextlib.suppress(KeyError):
                _break(*self._pairs.pop())

    def refuse(self) -> None:
        """Nobody gets a new connection. Those that there are go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):  # wakes the thread that accepts
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def cut(self) -> None:
        """The next answer of each connection breaks off half-way (RST)."""
        self._cutting = True

    def heal(self) -> None:
        """Pass everything again, at once."""
        self._seconds, self._cutting = 0.0, False
        self._passing.set()
        if self._listener is None:
            self._listen()

    def close(self) -> None:
        """End everything."""
        self.refuse()
        self._passing.set()
        self.reset()
        for thread in self._threads:
            thread.join(10)

    # -- how ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._listener = listener = socket.create_server((HOST, self.port), backlog=128)
        self._start(self._accept, listener)

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name="chaos", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._hold()
        try:
            server = socket.create_connection((HOST, self.server_port), timeout=5)
        except OSError:
            _break(client)
            return
        server.settimeout(None)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add((client, server))
        answers = self._start(self._pump, server, client, True)
        self._pump(client, server, False)
        answers.join()
        self._pairs.discard((client, server))
        client.close()
        server.close()

    def _hold(self) -> None:
        with self._lock:
            self.holding += 1
        self._passing.wait()
        with self._lock:
            self.holding -= 1

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65_536):
                self._hold()
                if self._seconds:
                    time.sleep(self._seconds)
                if answers and self._cutting:
                    sink.sendall(data[: len(data) // 2])
                    _break(source, sink)
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)  # an orderly end is passed on
        except OSError:
            _break(source, sink)


def _break(*connections: socket.socket) -> None:
    for one in connections:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RD)  # wakes the thread that reads
        one.close()
