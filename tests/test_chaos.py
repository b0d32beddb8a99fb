"""Does the proxy that stands between clients and servers do to them what a broken network does?"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos import Chaos
from tests.servers import HOST


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(1_000):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def chaos(echo: int) -> Iterator[Chaos]:
    chaos = Chaos(echo)
    yield chaos
    chaos.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "chaos"]


def connect(chaos: Chaos) -> socket.socket:
    return socket.create_connection((HOST, chaos.port), timeout=10)


def ask(connection: socket.socket, what: bytes = b"hello!") -> bytes:
    connection.sendall(what)
    return connection.recv(100)


def test_what_the_network_does(chaos: Chaos) -> None:
    with connect(chaos) as one:
        assert ask(one) == b"hello!"
        chaos.delay(0.1)
        begun = time.monotonic()
        assert ask(one) == b"hello!"
        assert time.monotonic() - begun > 0.19
        chaos.heal()
        chaos.drop()
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(one, b"held")
        with connect(chaos) as other:  # a new one is silent as well
            other.settimeout(0.2)
            with pytest.raises(TimeoutError):
                ask(other)
        one.settimeout(10)
        chaos.heal()
        assert one.recv(100) == b"held", "TCP sends it again"
    with connect(chaos) as one:
        assert ask(one) == b"hello!"
        chaos.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(chaos)
        assert ask(one) == b"hello!", "those that there are go on"
        chaos.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(100)
        chaos.heal()
    with connect(chaos) as one:
        chaos.cut()
        assert ask(one) == b"hel"
        with pytest.raises(ConnectionResetError):
            one.recv(100)
    chaos.heal()
    with connect(chaos) as one:
        assert ask(one) == b"hello!"
