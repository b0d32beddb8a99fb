"""How is the process itself watched? CPU, memory, threads, pauses of the garbage collector, its container."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping

from uno.core.monitoring.metrics import HistogramCell
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._cgroup import Cgroup
from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource


def _weakly(target: ProcessTarget) -> Callable[[str, dict[str, int]], None]:
    """A callback for the garbage collector that does not keep ``target`` alive."""
    reference = weakref.ref(target)

    def on_gc(phase: str, info: dict[str, int]) -> None:
        living = reference()
        if living is not None:
            living.on_gc(phase)

    return on_gc


class ProcessTarget:
    """This process. It follows a fork: then it speaks of the child."""

    def __init__(self) -> None:
        self.gc_pauses = HistogramCell()
        self.group = Cgroup()
        self.memory_limit = self.group.memory().limit
        self.cpu_limit = _cpu_limit(self.group.cpu_limit)
        self._throttled: tuple[float, float] | None = None  # periods, throttled ones
        self._stat = ProcFile("/proc/self/stat")
        self._last: tuple[int, float, float] | None = None  # pid, time, CPU time
        self._paused_at = 0.0
        self._callback = _weakly(self)

    def start(self) -> None:
        """Begin to time the garbage collector."""
        if self._callback not in gc.callbacks:
            gc.callbacks.append(self._callback)

    def stop(self) -> None:
        """Undo start() and give the descriptors back; a later reading opens them again."""
        if self._callback in gc.callbacks:
            gc.callbacks.remove(self._callback)
        self._stat.close()
        self.group.close()

    def __del__(self) -> None:
        self.stop()

    def on_gc(self, phase: str) -> None:
        """A collection begins ("start") or ends."""
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

    def throttled_ratio(self, periods: float, throttled: float) -> float | None:
        """Share of the periods since the last call in which the container was stopped at its CPU quota."""
        last, self._throttled = self._throttled, (periods, throttled)
        if last is None or periods < last[0] or throttled < last[1]:
            return None
        return 0.0 if periods == last[0] else min(1.0, (throttled - last[1]) / (periods - last[0]))

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
    """CPU, memory, threads, uptime and GC pauses of this process, and what its container may use.

    Only Linux tells of containers (control groups v1 and v2) and their pressure, which v1 has none of. Version 1 is
    tested on a real group, memory and quota of version 2 with recorded files. Windows has no context switches and page
    faults. `uno.resource.utilization` is the container's memory, where it has a limit.
    """

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
        "process.context_switches",
        "process.paging.faults",
        "cpython.gc.pauses",
        "cpython.gc.collections",
        "cpython.gc.uncollectable_objects",
        "container.memory.usage",
        "container.memory.limit",
        "container.memory.oom_kills",
        "container.cpu.limit",
        "container.cpu.throttled_time",
        "container.cpu.throttled_ratio",
        "container.pressure.stall_time",
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
        (
            "container.cpu.throttled_ratio",
            Threshold(0.25, None, "The container is stopped at its CPU quota", for_=30),
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
        target.start()  # another monitor with the same manager may have stopped it
        used, cores = target.cpu()
        memory, threads, uptime = target.memory_threads_uptime()
        update = self.update_metric
        update("process.cpu.time", used)
        update("process.cpu.utilization", cores)
        update("process.memory.usage", memory)
        update("process.thread.count", threads)
        update("process.uptime", uptime)
        update("cpython.gc.pauses", target.gc_pauses)
        for generation, stats in enumerate(gc.get_stats()):
            update("cpython.gc.collections", stats["collections"], {"cpython.gc.generation": generation})
            update(
                "cpython.gc.uncollectable_objects",
                stats["uncollectable"],
                {"cpython.gc.generation": generation},
            )
        for name, label, values in _rusage():
            for kind, value in values.items():
                update(name, value, {label: kind})
        self._collect_container(target)

    def _collect_container(self, target: ProcessTarget) -> None:
        group, update = target.group, self.update_metric
        used, limit = group.memory()
        update("container.memory.usage", used)
        if limit is not None:
            update("container.memory.limit", limit)
            update("uno.resource.utilization", None if used is None else used / limit)
        update("container.memory.oom_kills", group.oom_kills())
        update("container.cpu.limit", group.cpu_limit)
        throttled = group.throttling()
        if throttled is not None:
            update("container.cpu.throttled_time", throttled.seconds)
            ratio = target.throttled_ratio(throttled.periods, throttled.throttled)
            update("container.cpu.throttled_ratio", ratio)
        for (what, kind), seconds in group.pressure().items():
            labels = {"pressure.resource": what, "pressure.kind": kind}
            update("container.pressure.stall_time", seconds, labels)

    def capacity(self, target: ProcessTarget) -> tuple[float, float | None] | None:
        used, limit = target.group.memory()
        if limit is None or used is None:
            used, limit = target.memory_threads_uptime()[0], None
        return None if used is None else (used, limit)

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


def _rusage() -> list[tuple[str, str, dict[str, int]]]:
    """Context switches and page faults by kind; empty where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    used = resource.getrusage(resource.RUSAGE_SELF)
    return [
        (
            "process.context_switches",
            "process.context_switch.type",
            {"voluntary": used.ru_nvcsw, "involuntary": used.ru_nivcsw},
        ),
        (
            "process.paging.faults",
            "system.paging.fault.type",
            {"major": used.ru_majflt, "minor": used.ru_minflt},
        ),
    ]


def _cpu_limit(quota: float | None) -> float | None:
    """Cores that may be used: the container's quota or the allowed processors."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed: float | None = len(affinity(0)) if affinity is not None else os.cpu_count()
    return min((limit for limit in (quota, allowed) if limit is not None), default=None)
