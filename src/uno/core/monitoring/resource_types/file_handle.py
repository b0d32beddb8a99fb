"""How are the process's files watched? Open descriptors by what they lead to, their limit, bytes and calls of I/O."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from uno.core.monitoring.instrumentation import short_path
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Identity, Resource

_FDS = "/proc/self/fd"
MAX_EXPLAINED = 1_000
#: Peers at once, and in all: whoever talks to ever new ones gets no ever new series.
MAX_PEERS, MAX_KNOWN = 20, 100
#: Looking at every descriptor costs some microseconds each: 0.1 % of one thread at most, and not more often than that.
LOOK_SECONDS, LOOK_SHARE = 2.0, 1_000
#: In a process that is busy with Python each call may take 5 ms; a look that takes so long is given up.
LOOK_AT_MOST, EXPLAIN_AT_MOST = 0.05, 0.5
OTHER = "other"


class Seen(NamedTuple):
    """Descriptors by kind, those of regular files by path, sockets by who is at the other end."""

    kinds: Counter[str]
    paths: Counter[str]
    peers: Counter[str]


class FileTarget:
    """The open files of this process: descriptors on Unix, handles on Windows."""

    def __init__(self) -> None:
        self.count = _counter()
        self._io = ProcFile("/proc/self/io")
        self._seen: Seen | None = None
        self._look_after = 0.0
        self._known: set[str] = set()

    def stop(self) -> None:
        """Give the kept descriptor back."""
        self._io.close()

    def limit(self) -> int | None:
        """How many may be open at present; None where there is no limit or none is known."""
        try:
            import resource
        except ImportError:  # Windows
            return None
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if soft == resource.RLIM_INFINITY else soft

    def io(self) -> tuple[float, float, float, float] | None:
        """(bytes read, bytes written, reads, writes) since the start; None where the system does not tell.

        On Linux rchar, wchar, syscr, syscw of proc(5): what read and write calls moved, to any kind of file.
        """
        try:
            read, written, reads, writes = (int(line.split()[1]) for line in self._io.read().splitlines()[:4])
        except (OSError, ValueError, IndexError):
            return _io_by_psutil()
        return read, written, reads, writes

    def seen(self) -> Seen | None:
        """What descriptors lead to, looked up once in a while. None off Linux, and when there was no time for it."""
        now = monotonic()
        if now >= self._look_after:
            self._seen = self.look(LOOK_AT_MOST)
            peers = self._seen.peers if self._seen else Counter()
            for peer in [peer for peer in peers if peer not in self._known and peer != OTHER]:
                if len(self._known) < MAX_KNOWN:
                    self._known.add(peer)
                else:
                    peers[OTHER] += peers.pop(peer)
            self._look_after = now + max(LOOK_SECONDS, LOOK_SHARE * (monotonic() - now))
        return self._seen

    def look(self, at_most: float = EXPLAIN_AT_MOST) -> Seen | None:
        """What the first 1,000 descriptors lead to now; None when that cannot be told in ``at_most`` seconds."""
        until = monotonic() + at_most
        kinds: Counter[str] = Counter()
        paths: Counter[str] = Counter()
        sockets = []
        try:
            names = os.listdir(_FDS)[:MAX_EXPLAINED]
        except OSError:
            return None
        for name in names:
            if monotonic() > until:
                return None
            try:
                leads_to = os.readlink(f"{_FDS}/{name}")
            except OSError:  # closed meanwhile
                continue
            if leads_to.startswith("/") and not leads_to.startswith(("/dev/", "/proc/", "/memfd:", "/sys/")):
                kinds["files"] += 1
                paths[short_path(leads_to)] += 1
            elif leads_to.startswith("socket:"):
                kinds["sockets"] += 1
                sockets.append(int(name))
            else:  # "pipe:[12]", "anon_inode:[eventpoll]", "/dev/null"
                kinds["devices" if leads_to.startswith("/") else leads_to.partition(":")[0] + "s"] += 1
        peers = _peers(sockets, until)
        return None if peers is None else Seen(kinds, paths, peers)


class FileMonitor(ResourceTypeMonitor):
    """Open descriptors, their limit, what they lead to, bytes and calls of I/O.

    What descriptors lead to is told on Linux only, of the first 1,000 and at most every 2 s. Sockets are counted by the
    server that they are connected to, those of clients by our own port; beyond 20 such peers the rest is `other`.
    """

    resource_type = "file_handle"
    targets = (f"{__name__}.FileTarget",)
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "process.unix.file_descriptor.count",
        "process.unix.file_descriptor.max",
        "file.descriptors",
        "file.sockets",
        "file.io",
        "file.operations",
    )
    headline = (
        "process.unix.file_descriptor.count",
        "uno.resource.utilization",
        "file.io",
        "file.operations",
    )
    thresholds = (
        ("uno.resource.utilization", Threshold(0.8, 0.95, "The process runs out of file descriptors")),
    )

    def identify(self, target: FileTarget) -> Identity:
        return Identity("files")

    def detach(self, target: FileTarget) -> None:
        target.stop()

    def collect_metrics(self, resource: Resource) -> None:
        target: FileTarget = resource.target
        in_use, limit = target.count(), target.limit()
        update = self.update_metric
        update("process.unix.file_descriptor.count", in_use)
        if limit is not None:
            update("process.unix.file_descriptor.max", limit)
            update("uno.resource.utilization", None if in_use is None else in_use / limit)
        seen = target.seen()
        if seen is not None:
            for kind, number in seen.kinds.items():
                update("file.descriptors", number, {"kind": kind})
            for peer, number in seen.peers.items():
                update("file.sockets", number, {"peer": peer})
        read, written, reads, writes = target.io() or (None, None, None, None)
        update("file.io", read, {"direction": "read"})
        update("file.io", written, {"direction": "write"})
        update("file.operations", reads, {"direction": "read"})
        update("file.operations", writes, {"direction": "write"})

    def capacity(self, target: FileTarget) -> tuple[float, float | None] | None:
        in_use = target.count()
        return None if in_use is None else (in_use, target.limit())

    def statistics(self, target: FileTarget) -> Mapping[str, float | None]:
        read, written, reads, writes = target.io() or (None, None, None, None)
        return {
            "open_files": target.count(),
            "max_files": target.limit(),
            "bytes_read": read,
            "bytes_written": written,
            "reads": reads,
            "writes": writes,
        }

    def ping(self, target: FileTarget) -> bool:
        return True

    def explain(self, target: FileTarget, metric: str) -> str:
        seen = target.look()
        if seen is None:
            return ""
        kinds, paths, peers = seen
        text = "open: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5))
        often = [f"{path} ({n})" for path, n in paths.most_common(3) if n > 1]
        folders = Counter(os.path.dirname(path) or "." for path in paths.elements()).most_common(1)
        if often:
            text += f"; the same file many times: {', '.join(often)}"
        elif folders and folders[0][1] > 3:
            text += f"; most files in {folders[0][0]} ({folders[0][1]})"
        if peers:
            text += "; sockets: " + ", ".join(f"{n} to {peer}" for peer, n in peers.most_common(3))
        return text


def _peers(fds: list[int], until: float) -> Counter[str] | None:
    """Sockets by who is at the other end: a server's host:port, "clients of :8000", "listening :8000", "unix"."""
    found = []
    for fd in fds:
        if monotonic() > until:
            return None
        end = _ends(fd)
        if end is not None:
            found.append(end)
    listening = {port for port, peer in found if peer is None and port}
    peers: Counter[str] = Counter()
    for port, peer in found:
        if peer is None:
            peers[f"listening :{port}" if port else "unconnected"] += 1
        elif port in listening:
            peers[f"clients of :{port}"] += 1
        else:
            peers[peer] += 1
    if len(peers) > MAX_PEERS:
        kept = Counter(dict(sorted(peers.items(), key=lambda item: (-item[1], item[0]))[:MAX_PEERS]))
        kept[OTHER] += peers.total() - kept.total()
        return kept
    return peers


def _ends(fd: int) -> tuple[int, str | None] | None:
    """(own port, the other end or None) of a socket. The descriptor is the application's: it is only asked, and given
    back in any case. SOCK_NONBLOCK keeps Python from applying its default timeout to it; a socket of this family has
    room for addresses of every other."""
    try:
        borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fileno=fd)
    except (OSError, AttributeError):
        return None
    try:
        own = borrowed.getsockname()
        port = _port(own)
        try:
            other = borrowed.getpeername()
        except OSError:  # it listens, or is not connected
            accepts = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return (port if accepts and port else 0), None
        if port is None or not isinstance(other, tuple):
            return 0, "unix" if not isinstance(own, tuple) and not isinstance(other, tuple) else OTHER
        host = str(other[0]).removeprefix("::ffff:")
        return port, f"[{host}]:{other[1]}" if ":" in host else f"{host}:{other[1]}"
    except (OSError, ValueError):  # closed meanwhile, or another kind of socket
        return None
    finally:
        borrowed.detach()


def _port(address: Any) -> int | None:
    """The port of an internet address; None for others."""
    is_internet = isinstance(address, tuple) and len(address) in (2, 4) and isinstance(address[0], str)
    return address[1] if is_internet and isinstance(address[1], int) else None


def _counter() -> Callable[[], int | None]:
    """The cheapest way to count that works here."""
    try:
        if os.stat(_FDS).st_size > 0:  # Linux 6.2 and later; earlier kernels say 0
            return lambda: os.stat(_FDS).st_size
        os.listdir(_FDS)
        return lambda: len(os.listdir(_FDS)) - 1  # the one that reads the folder is not there afterwards
    except OSError:
        return _count_by_psutil


def _count_by_psutil() -> int | None:
    try:
        import psutil

        process = psutil.Process()
        return int(getattr(process, "num_fds" if os.name == "posix" else "num_handles")())
    except (ImportError, OSError, psutil.Error):
        return None


def _io_by_psutil() -> tuple[float, float, float, float] | None:
    try:
        import psutil

        io = psutil.Process().io_counters()
    except (ImportError, AttributeError, OSError, psutil.Error):  # macOS has none
        return None
    # What all reads moved where that is known (Linux), else what went to disks.
    return (
        getattr(io, "read_chars", io.read_bytes),
        getattr(io, "write_chars", io.write_bytes),
        io.read_count,
        io.write_count,
    )
