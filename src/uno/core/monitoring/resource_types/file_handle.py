"""How are the process's files watched? Open descriptors against their limit, bytes and calls of I/O."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping

from uno.core.monitoring.instrumentation import short_path
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

_FDS = "/proc/self/fd"
MAX_EXPLAINED = 1_000


class FileTarget:
    """The open files of this process: descriptors on Unix, handles on Windows."""

    def __init__(self) -> None:
        self.count = _counter()
        self._io = ProcFile("/proc/self/io")

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

    def kinds(self) -> tuple[Counter[str], Counter[str]]:
        """(descriptors by kind, those of regular files by path), of the first 1,000; empty off Linux."""
        kinds: Counter[str] = Counter()
        paths: Counter[str] = Counter()
        try:
            names = os.listdir(_FDS)[:MAX_EXPLAINED]
        except OSError:
            return kinds, paths
        for name in names:
            try:
                leads_to = os.readlink(f"{_FDS}/{name}")
            except OSError:  # closed meanwhile
                continue
            if leads_to.startswith("/") and not leads_to.startswith(("/dev/", "/proc/")):
                kinds["files"] += 1
                paths[short_path(leads_to)] += 1
            else:  # "socket:[12345]", "pipe:[12]", "anon_inode:[eventpoll]", "/dev/null"
                kinds["devices" if leads_to.startswith("/") else leads_to.partition(":")[0] + "s"] += 1
        return kinds, paths


class FileMonitor(ResourceTypeMonitor):
    """Open descriptors, their limit, bytes and calls of I/O."""

    resource_type = "file_handle"
    targets = (f"{__name__}.FileTarget",)
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "process.unix.file_descriptor.count",
        "process.unix.file_descriptor.max",
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
        kinds, paths = target.kinds()
        if not kinds:
            return ""
        text = "open: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5))
        often = [f"{path} ({n})" for path, n in paths.most_common(3) if n > 1]
        folders = Counter(os.path.dirname(path) or "." for path in paths.elements()).most_common(1)
        if often:
            text += f"; the same file many times: {', '.join(often)}"
        elif folders and folders[0][1] > 3:
            text += f"; most files in {folders[0][0]} ({folders[0][1]})"
        return text


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
