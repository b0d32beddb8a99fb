"""How is the process itself watched? CPU, memory, threads, pauses of the garbage collector."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping

from uno.core.monitoring.metrics import HistogramCell
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

_CGROUP = "/sys/fs/cgroup"
#: cgroup v1 writes "no limit" as the largest number of whole pages
_NO_LIMIT = 1 << 62


class ProcessTarget:
    """This process. It follows a fork: then it speaks of the child."""

    def __init__(self) -> None:
        self.gc_pauses = HistogramCell()
        self.memory_limit = _memory_limit()
        self.cpu_limit = _cpu_limit()
        self._stat = ProcFile("/proc/self/stat")
        self._last: tuple[int, float, float] | None = None  # pid, time, CPU time
        self._paused_at = 0.0

    def start(self) -> None:
        """Begin to time the garbage collector."""
        if self._on_gc not in gc.callbacks:
            gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        """Undo start() and give the descriptor back."""
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
        self._stat.close()

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        # Runs inside of every collection, in whichever thread caused it.
        if phase == "start":
            self._paused_at = time.perf_counter()
        elif self._paused_at:
            self.gc_pauses.observe(time.perf_counter() - self._paused_at)

    def cpu(self) -> tuple[float, float | None]:
        """(CPU seconds of the process, cores in use since the last call or None)."""
        pid, now, used = os.getpid(), time.monotonic(), time.process_time()
        last, self._last = self._last, (pid, now, used)
        if last is None or last[0] != pid or now - last[1] < 0.01:
            return used, None
        return used, max(0.0, used - last[2]) / (now - last[1])

    def memory_threads_uptime(self) -> tuple[float | None, float | None, float | None]:
        """(resident bytes, threads, seconds since the start), each None where the system does not tell."""
        try:
            # The name in parentheses may hold spaces; what follows is fixed: state is field 3 of proc(5).
            fields = self._stat.read().rpartition(b")")[2].split()
            started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            uptime = time.clock_gettime(time.CLOCK_BOOTTIME) - started
            return int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), int(fields[17]), max(0.0, uptime)
        except (OSError, AttributeError, ValueError, IndexError):
            return _by_psutil()


class ProcessMonitor(ResourceTypeMonitor):
    """CPU, memory, threads, uptime and GC pauses of this process."""

    resource_type = "process"
    targets = (f"{__name__}.ProcessTarget",)
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "process.cpu.time",
        "process.cpu.utilization",
        "process.memory.usage",
        "process.thread.count",
        "process.uptime",
        "cpython.gc.pauses",
    )
    headline = (
        "process.cpu.utilization",
        "process.memory.usage",
        "process.thread.count",
        "cpython.gc.pauses",
    )
    thresholds = (
        ("uno.resource.utilization", Threshold(0.85, 0.95, "Memory is nearly at the limit of the container")),
        (
            "process.cpu.utilization",
            Threshold(0.95, None, "A whole core is in use; Python code cannot use more", for_=30),
        ),
        ("cpython.gc.pauses", Threshold(0.2, 1.0, "The garbage collector stops everything", stat="max")),
    )

    def identify(self, target: ProcessTarget) -> Identity:
        return Identity("process", labels={"python": ".".join(map(str, sys.version_info[:3]))})

    def attach(self, target: ProcessTarget) -> None:
        target.start()

    def detach(self, target: ProcessTarget) -> None:
        target.stop()

    def collect_metrics(self, resource: Resource) -> None:
        target: ProcessTarget = resource.target
        used, cores = target.cpu()
        memory, threads, uptime = target.memory_threads_uptime()
        update = self.update_metric
        update("process.cpu.time", used)
        update("process.cpu.utilization", cores)
        update("process.memory.usage", memory)
        update("process.thread.count", threads)
        update("process.uptime", uptime)
        update("cpython.gc.pauses", target.gc_pauses)
        if target.memory_limit is not None:
            update("uno.resource.utilization", None if memory is None else memory / target.memory_limit)

    def capacity(self, target: ProcessTarget) -> tuple[float, float | None] | None:
        memory = target.memory_threads_uptime()[0]
        return None if memory is None else (memory, target.memory_limit)

    def statistics(self, target: ProcessTarget) -> Mapping[str, float | None]:
        memory, threads, uptime = target.memory_threads_uptime()
        return {
            "cpu_seconds": time.process_time(),
            "cpu_limit": target.cpu_limit,
            "memory_bytes": memory,
            "memory_limit": target.memory_limit,
            "threads": threads,
            "uptime": uptime,
        }

    def ping(self, target: ProcessTarget) -> bool:
        return True

    def explain(self, target: ProcessTarget, metric: str) -> str:
        if metric == "process.thread.count":
            names = Counter(t.name.rstrip("0123456789").rstrip("-_ ") for t in threading.enumerate())
            return "Python threads: " + ", ".join(f"{name} ({n})" for name, n in names.most_common(6))
        if metric == "cpython.gc.pauses":
            return f"{gc.get_stats()[2]['collections']} full collections so far"
        if metric == "process.cpu.utilization" and target.cpu_limit is not None:
            return f"{target.cpu_limit:g} cores may be used"
        return ""


def _by_psutil() -> tuple[float | None, float | None, float | None]:
    try:
        import psutil

        process = psutil.Process()
        with process.oneshot():
            return process.memory_info().rss, process.num_threads(), time.time() - process.create_time()
    except (ImportError, OSError, psutil.Error):
        return None, threading.active_count(), None


def _memory_limit() -> float | None:
    """Bytes that the container may use: cgroup v2, else v1, else None."""
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(path)
        if words and words[0].isdigit() and int(words[0]) < _NO_LIMIT:
            return int(words[0])
    return None


def _cpu_limit() -> float | None:
    """Cores that may be used: the container's quota (cgroup v2, v1) or the allowed processors."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores: float | None = len(affinity(0)) if affinity is not None else os.cpu_count()
    quota = _words("cpu.max") or (_words("cpu/cpu.cfs_quota_us") + _words("cpu/cpu.cfs_period_us"))
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
        limit = int(quota[0]) / int(quota[1])
        cores = limit if cores is None else min(cores, limit)
    return cores


def _words(path: str) -> list[str]:
    try:
        with open(f"{_CGROUP}/{path}") as file:
            return file.read().split()
    except (OSError, ValueError):
        return []
