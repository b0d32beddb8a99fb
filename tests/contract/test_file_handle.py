"""Are the process's files seen as they are: open descriptors, limit, input and output?"""

from __future__ import annotations

import asyncio
import os
import resource as limits
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import file_handle
from uno.core.monitoring.resource_types.file_handle import FileTarget
from uno.core.resources import Resource, ResourceManager

COUNT = "process.unix.file_descriptor.count"


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        yield monitor


@pytest.fixture
def files(monitor: ResourceMonitor) -> Resource:
    [resource] = monitor.manager.by_type("file_handle")
    wait_until(lambda: monitor.read(resource.id, COUNT) is not None, 5, "the first reading")
    return resource


def test_open_descriptors_and_their_limit(monitor: ResourceMonitor, files: Resource) -> None:
    # psutil counts the descriptor with which it lists the others.
    wait_until(
        lambda: monitor.read(files.id, "open_handles") == psutil.Process().num_fds() - 1, 5, "the same count"
    )
    before = monitor.read(files.id, "open_handles")
    assert before is not None
    opened = [socket.socket() for _ in range(20)]
    wait_until(lambda: monitor.read(files.id, "open_handles") == before + 20, 5, "20 more")
    for file in opened:
        file.close()
    wait_until(lambda: monitor.read(files.id, "open_handles") == before, 5, "20 less")
    limit = limits.getrlimit(limits.RLIMIT_NOFILE)[0]
    assert monitor.read(files.id, "process.unix.file_descriptor.max") == limit
    assert monitor.read(files.id, "uno.resource.utilization") == pytest.approx(before / limit)


def test_bytes_and_calls(monitor: ResourceMonitor, files: Resource, tmp_path: Path) -> None:
    def total(metric: str, direction: str) -> float:
        value = monitor.read(files.id, metric, {"direction": direction}, stat="total")
        assert value is not None
        return value

    written, calls, read = (
        total("throughput", "write"),
        total("io_operations", "write"),
        total("throughput", "read"),
    )
    with open(tmp_path / "data", "wb", buffering=0) as file:
        for _ in range(10):
            file.write(bytes(1_000_000))
    (tmp_path / "data").read_bytes()
    wait_until(lambda: total("throughput", "write") >= written + 10_000_000, 5, "10 MB written")
    wait_until(lambda: total("io_operations", "write") >= calls + 10, 5, "10 calls")
    wait_until(lambda: total("throughput", "read") >= read + 10_000_000, 5, "10 MB read")


def test_what_is_open_is_explained(files: Resource, tmp_path: Path) -> None:
    path = tmp_path / "leak.log"
    path.touch()
    opened = [os.open(path, os.O_RDONLY) for _ in range(12)]
    pairs = [socket.socketpair() for _ in range(5)]
    text = files.driver.explain(files.target, COUNT)  # type: ignore[union-attr]
    for fd in opened:
        os.close(fd)
    for pair in pairs:
        for end in pair:
            end.close()
    assert " sockets" in text
    assert f"the same file many times: {path} (12)" in text


def test_descriptors_by_kind_and_sockets_by_peer(
    monitor: ResourceMonitor, files: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_handle, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(file_handle, "LOOK_SHARE", 0)
    files.target._look_after = 0.0

    def seen(metric: str, **labels: str) -> float:
        return monitor.read(files.id, metric, labels) or 0

    wait_until(lambda: seen("file.descriptors", kind="files") > 0, 5, "a look")
    before = seen("file.descriptors", kind="sockets"), seen("file.descriptors", kind="pipes")
    reader, writer = os.pipe()
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    clients = [socket.create_connection(("127.0.0.1", port), timeout=None) for _ in range(4)]
    accepted = [server.accept()[0] for _ in range(4)]
    six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    other = socket.create_connection(("::1", six.getsockname()[1]))
    everything = [server, *clients, *accepted, six, other]
    modes = [s.getblocking() for s in everything]
    try:
        wait_until(lambda: seen("file.sockets", peer=f"127.0.0.1:{port}") == 4, 5, "the server")
        wait_until(lambda: seen("file.sockets", peer=f"clients of :{port}") == 4, 5, "the clients")
        wait_until(lambda: seen("file.sockets", peer=f"listening :{port}") == 1, 5, "it listens")
        wait_until(lambda: seen("file.sockets", peer=f"[::1]:{six.getsockname()[1]}") == 1, 5, "IPv6")
        wait_until(lambda: seen("file.descriptors", kind="sockets") == before[0] + 11, 5, "sockets")
        wait_until(lambda: seen("file.descriptors", kind="pipes") == before[1] + 2, 5, "pipes")
        assert f"4 to 127.0.0.1:{port}" in files.driver.explain(files.target, COUNT)  # type: ignore[union-attr]
    finally:
        assert [s.getblocking() for s in everything] == modes
        clients[0].sendall(b"it works")
        assert accepted[0].recv(99) == b"it works"
        for end in everything:
            end.close()
        os.close(reader)
        os.close(writer)
    wait_until(lambda: not seen("file.sockets", peer=f"127.0.0.1:{port}"), 5, "it is gone")


def test_looking_leaves_the_timeout_of_sockets_alone() -> None:
    """Python applies its default timeout to a descriptor that it is given, which would change the application's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        target, before = FileTarget(), os.get_blocking(client.fileno())
        socket.setdefaulttimeout(3)
        try:
            seen = target.look()
            assert seen is not None
            assert seen.peers[f"127.0.0.1:{server.getsockname()[1]}"] == 1
        finally:
            socket.setdefaulttimeout(None)
            target.stop()
        assert before is os.get_blocking(client.fileno()) is True


def peers_of(target: FileTarget) -> Counter[str]:
    seen = target.seen()
    assert seen is not None
    return seen.peers


def test_a_look_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_handle, "LOOK_AT_MOST", 0.0)
    target = FileTarget()
    assert target.seen() is None
    assert target.look() is not None
    target.stop()


def test_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_handle, "MAX_PEERS", 3)
    monkeypatch.setattr(file_handle, "MAX_KNOWN", 4)
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(8)]
    target = FileTarget()
    try:
        peers = peers_of(target)
        assert len(peers) <= 4
        assert peers[file_handle.OTHER] >= 5
        for n in range(8):  # ever new ones
            servers[n].close()
            servers[n] = socket.create_server(("127.0.0.1", 0))
            target._look_after = 0.0
            assert len(target._known | set(peers_of(target))) <= 5
    finally:
        target.stop()
        for server in servers:
            server.close()


def test_a_forked_child_counts_its_own() -> None:
    target = FileTarget()
    manager = ResourceManager()
    resource = manager.register(target)
    before = asyncio.run(resource.get_statistics())["bytes_written"]
    with open(os.devnull, "wb", buffering=0) as null:
        null.write(bytes(50_000_000))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        io = target.io()
        os.write(writer, str(io[1] if io else -1).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = float(pipe.read())
    os.waitpid(child, 0)
    after = asyncio.run(resource.get_statistics())["bytes_written"]
    assert before is not None
    assert after is not None
    assert after >= before + 50_000_000
    assert 0 <= told < 1_000_000  # the child's own, not the parent's
    manager.unregister(resource)


def test_nothing_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        manager = ResourceManager()
        resource = manager.register(FileTarget())
        asyncio.run(resource.get_statistics())
        manager.unregister(resource)
    assert len(os.listdir("/proc/self/fd")) == before
