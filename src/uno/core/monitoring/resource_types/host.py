"""How is the machine watched? Processors, load, memory, disks, and where work stands still for want of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._cgroup import WAITED_FOR, pressure, read
from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple
from uno.core.resources import Identity, Resource

SECTOR = 512
MAX_DISKS = 16
#: Which disks and file systems there are is looked up that often.
LOOK_SECONDS = 60.0
#: File systems of other machines may hang, and those of the kernel have no size.
LOCAL = frozenset(("apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs", "ntfs3",
                   "overlay", "ufs", "vfat", "xfs", "zfs"))  # fmt: skip
_VIRTUAL = ("loop", "ram", "zram", "fd", "sr")


class Memory(NamedTuple):
    """Shares in use of memory and of swap space, and bytes of memory."""

    used: float | None
    swap_used: float | None
    total: float | None


class Disk(NamedTuple):
    """What a disk has done since the machine started: bytes and operations by direction, seconds that it was busy."""

    read: float
    written: float
    reads: float
    writes: float
    busy: float | None


class HostTarget:
    """The machine, or what a container sees of it. ``proc`` and ``sys`` are other places in tests."""

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self._proc, self._sys = proc, sys
        self.processors = os.cpu_count()
        self._linux = os.path.exists(f"{proc}/meminfo")
        self._stat, self._meminfo = ProcFile(f"{proc}/stat"), ProcFile(f"{proc}/meminfo")
        self._diskstats = ProcFile(f"{proc}/diskstats", 65_536)
        self._pressure = {
            what: ProcFile(path) for what in WAITED_FOR if os.path.exists(path := f"{proc}/pressure/{what}")
        }
        self._last: tuple[float, float] | None = None  # busy, all
        self._looked_at = -LOOK_SECONDS
        self._disks: frozenset[str] = frozenset()
        self._mounts: list[str] = []

    def stop(self) -> None:
        """Give the kept descriptors back."""
        for file in (self._stat, self._meminfo, self._diskstats, *self._pressure.values()):
            file.close()

    def cpu(self) -> float | None:
        """Share of all processors that was busy since the last call; None the first time."""
        times = cpu_times(self._stat.text()) if self._linux else _psutil_cpu()
        last, self._last = self._last, times
        if times is None or last is None or times[1] <= last[1]:
            return None
        return min(1.0, max(0.0, (times[0] - last[0]) / (times[1] - last[1])))

    def load(self) -> float | None:
        """The load average over a minute."""
        try:
            return os.getloadavg()[0]
        except (AttributeError, OSError):  # Windows
            return None

    def memory(self) -> Memory:
        """Memory and swap space."""
        return memory(self._meminfo.text()) if self._linux else _psutil_memory()

    def pressure(self) -> dict[tuple[str, str], float]:
        """Seconds in which work of the machine stood still; empty where the system does not tell."""
        return pressure({what: file.text() for what, file in self._pressure.items()})

    def disks(self) -> dict[str, Disk]:
        """Whole disks by name."""
        self._look()
        if not self._linux:
            return _psutil_disks()
        return disks(self._diskstats.text(), self._disks)

    def file_systems(self) -> dict[str, tuple[float, float]]:
        """(share in use, bytes) of each local file system. The share is that of what users may have."""
        self._look()
        found = {}
        for place in self._mounts:
            try:
                told = os.statvfs(place)
            except OSError:  # unmounted meanwhile
                continue
            used = told.f_blocks - told.f_bfree
            if used + told.f_bavail > 0:
                found[place] = used / (used + told.f_bavail), float(told.f_blocks * told.f_frsize)
        return found

    def _look(self) -> None:
        if monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = monotonic()
        try:
            names = os.listdir(f"{self._sys}/block")
        except OSError:
            names = []
        self._disks = frozenset(sorted(n for n in names if not n.startswith(_VIRTUAL))[:MAX_DISKS])
        places = mounts(read(f"{self._proc}/self/mounts")) if self._linux else _psutil_mounts()
        self._mounts = _distinct(places)


class HostMonitor(ResourceTypeMonitor):
    """Processors, load, memory, local file systems and disks of the machine, on Linux its pressure as well.

    `uno.resource.utilization` is the memory's. Inside of a container the figures are those of the whole machine, except
    for what the container's own limits say (type `process`).
    """

    resource_type = "host"
    targets = (f"{__name__}.HostTarget",)
    blocking = True  # a disk that fails may make a call wait
    metrics = pick(
        "uno.resource.utilization",
        "system.cpu.utilization",
        "system.cpu.load_average.1m",
        "system.cpu.logical.count",
        "system.memory.utilization",
        "system.memory.limit",
        "system.paging.utilization",
        "system.filesystem.utilization",
        "system.filesystem.limit",
        "system.disk.io",
        "system.disk.operations",
        "system.disk.io_time",
        "system.pressure.stall_time",
    )
    headline = (
        "system.cpu.utilization",
        "system.memory.utilization",
        "system.cpu.load_average.1m",
        "system.filesystem.utilization",
    )
    thresholds = (
        ("system.memory.utilization", Threshold(0.95, 0.98, "The machine runs out of memory", for_=10)),
        ("system.filesystem.utilization", Threshold(0.95, 0.98, "The disk is nearly full")),
    )

    def identify(self, target: HostTarget) -> Identity:
        return Identity("host")

    def detach(self, target: HostTarget) -> None:
        target.stop()

    def collect_metrics(self, resource: Resource) -> None:
        target: HostTarget = resource.target
        used, swap, total = target.memory()
        update = self.update_metric
        update("uno.resource.utilization", used)
        update("system.cpu.utilization", target.cpu())
        update("system.cpu.load_average.1m", target.load())
        update("system.cpu.logical.count", target.processors)
        update("system.memory.utilization", used)
        update("system.memory.limit", total)
        update("system.paging.utilization", swap)
        for place, (share, size) in target.file_systems().items():
            update("system.filesystem.utilization", share, {"system.filesystem.mountpoint": place})
            update("system.filesystem.limit", size, {"system.filesystem.mountpoint": place})
        for name, disk in target.disks().items():
            device = {"system.device": name}
            for way, moved, times in (("read", disk.read, disk.reads), ("write", disk.written, disk.writes)):
                update("system.disk.io", moved, {**device, "disk.io.direction": way})
                update("system.disk.operations", times, {**device, "disk.io.direction": way})
            update("system.disk.io_time", disk.busy, device)
        for (what, kind), seconds in target.pressure().items():
            labels = {"pressure.resource": what, "pressure.kind": kind}
            update("system.pressure.stall_time", seconds, labels)

    def statistics(self, target: HostTarget) -> Mapping[str, float | None]:
        used, swap, total = target.memory()
        return {"load": target.load(), "memory_used": used, "swap_used": swap, "memory_total": total}

    def ping(self, target: HostTarget) -> bool:
        return True

    def explain(self, target: HostTarget, metric: str) -> str:
        if metric.startswith("system.filesystem"):
            fullest = sorted(target.file_systems().items(), key=lambda item: -item[1][0])[:3]
            return ", ".join(
                f"{place} {share:.0%} of {size / 1e9:.0f} GB" for place, (share, size) in fullest
            )
        load = target.load()
        return "" if load is None else f"load {load:.1f} on {os.cpu_count()} processors"


# -- what the files of Linux say -----------------------------------------------------------------------


def cpu_times(text: str) -> tuple[float, float] | None:
    """``/proc/stat``: (busy, all) since the start, in ticks. Waiting for a disk is idle."""
    words = text.partition("\n")[0].split()
    if (
        len(words) < 5
        or words[0] != "cpu"
        or not all(word.isascii() and word.isdigit() for word in words[1:])
    ):
        return None
    ticks = [int(word) for word in words[1:9]]  # what guests used is part of "user" already
    idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
    return float(sum(ticks) - idle), float(sum(ticks))


def memory(text: str) -> Memory:
    """``/proc/meminfo``."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isascii() and number[0].isdigit():
            found[name] = int(number[0]) * 1024
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    swap, free = found.get("SwapTotal"), found.get("SwapFree")
    used = None if not total or available is None else max(0.0, 1 - available / total)
    return Memory(
        used,
        None if not swap or free is None else max(0.0, 1 - free / swap),
        None if not total else float(total),
    )


def disks(text: str, names: Iterable[str]) -> dict[str, Disk]:
    """``/proc/diskstats`` of the disks with these names."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 14 or words[2] not in names:
            continue
        try:
            n = [int(word) for word in words[3:14]]
        except ValueError:
            continue
        found[words[2]] = Disk(n[2] * SECTOR, n[6] * SECTOR, n[0], n[4], n[9] / 1000)
    return found


def mounts(text: str) -> list[str]:
    """``/proc/self/mounts``: the folders of local file systems."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[2] in LOCAL:
            place = words[1]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                place = place.replace(code, char)
            found.append(place)
    return found


def _distinct(places: list[str]) -> list[str]:
    """One folder for each file system, the shortest; files that are mounted one by one are left out."""
    by_device: dict[int, str] = {}
    for place in sorted(places, key=lambda place: (len(place), place)):
        try:
            if os.path.isdir(place):
                by_device.setdefault(os.stat(place).st_dev, place)
        except OSError:
            continue
    return list(by_device.values())[:MAX_DISKS]


# -- elsewhere -----------------------------------------------------------------------------------------


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _psutil_cpu() -> tuple[float, float] | None:
    psutil = _psutil()
    if psutil is None:
        return None
    times = psutil.cpu_times()
    return sum(times) - times.idle, sum(times)


def _psutil_memory() -> Memory:
    psutil = _psutil()
    if psutil is None:
        return Memory(None, None, None)
    told, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Memory(
        1 - told.available / told.total, swap.used / swap.total if swap.total else None, float(told.total)
    )


def _psutil_disks() -> dict[str, Disk]:
    psutil = _psutil()
    told = None if psutil is None else psutil.disk_io_counters(perdisk=True)
    return {
        name: Disk(io.read_bytes, io.write_bytes, io.read_count, io.write_count, None)
        for name, io in sorted((told or {}).items())[:MAX_DISKS]
    }


def _psutil_mounts() -> list[str]:
    psutil = _psutil()
    if psutil is None or not hasattr(os, "statvfs"):
        return []
    return [part.mountpoint for part in psutil.disk_partitions() if part.fstype.lower() in LOCAL]
