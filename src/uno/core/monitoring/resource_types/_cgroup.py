"""What may the container use, what does it use, and how often was it held back? Linux control groups, v1 and v2.

A limit may sit on any group above the process; the smallest counts, and use is that of the group which has it.
Whatever the system does not tell is None.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from time import monotonic

from uno.core.monitoring.resource_types._procfs import ProcFile
from uno.core.records import NamedTuple

ROOT = "/sys/fs/cgroup"
#: cgroup v1 writes "no limit" as the largest number of whole pages.
NO_LIMIT = 1 << 62
#: Reading memory.stat makes the kernel sum over all processors, so it and the limit are read that rarely.
STAT_SECONDS = 5.0
MAX_DEPTH = 16
WAITED_FOR, STALLS = ("cpu", "memory", "io"), ("some", "full")


class Throttling(NamedTuple):
    """Periods in which the group ran, those in which it was stopped at its quota, and for how many seconds."""

    periods: float
    throttled: float
    seconds: float


class Memory(NamedTuple):
    """Bytes in use without what can be dropped at once, and at most."""

    used: float | None
    limit: float | None


class Cgroup:
    """The control group of this process. ``root`` and ``own`` are other places in tests."""

    def __init__(self, root: str = ROOT, own: str = "/proc/self/cgroup") -> None:
        groups = own_groups(read(own))
        self._v2 = list(_upwards(_first_dir(root, f"{root}/unified", file="cgroup.procs"), groups.get("")))
        if not any(os.path.exists(f"{folder}/cgroup.controllers") for folder in self._v2):
            self._v2 = []
        self._memory_v1 = _v1(root, groups, "memory")
        self._cpu_v1 = _v1(root, groups, "cpu")
        self.memory_folder = self._find_memory()
        self.cpu_limit, self._cpu_folder = self._find_cpu()
        # Only the group of the whole machine has no events; its pressure is that of the host.
        self._has_pressure = bool(self._v2) and os.path.exists(f"{self._v2[0]}/cgroup.events")
        self._limit: float | None = None
        self._inactive = 0.0
        self._looked_at = -STAT_SECONDS
        self._files: dict[str, ProcFile | None] = {}

    def _find_memory(self) -> str | None:
        """The group whose limit is the smallest; without any limit, the innermost that tells its use."""
        limits = [(limit, folder) for folder in self._v2 if (limit := amount(read(f"{folder}/memory.max")))]
        limits += [
            (limit, folder)
            for folder in self._memory_v1
            if (limit := amount(read(f"{folder}/memory.limit_in_bytes")))
        ]
        if limits:
            return min(limits)[1]
        folders = [f for f in self._v2 if os.path.exists(f"{f}/memory.current")]
        folders += [f for f in self._memory_v1 if os.path.exists(f"{f}/memory.usage_in_bytes")]
        return folders[0] if folders else None

    def _find_cpu(self) -> tuple[float | None, str | None]:
        quotas = [(quota, folder) for folder in self._v2 if (quota := cores(read(f"{folder}/cpu.max")))]
        for folder in self._cpu_v1:
            text = f"{read(f'{folder}/cpu.cfs_quota_us')} {read(f'{folder}/cpu.cfs_period_us')}"
            if quota := cores(text):
                quotas.append((quota, folder))
        return min(quotas) if quotas else (None, next(iter(self._v2 + self._cpu_v1), None))

    def memory(self) -> Memory:
        """Use and limit. What the page cache has not used lately is left out: it goes when memory is needed."""
        folder = self.memory_folder
        if folder is None:
            return Memory(None, None)
        now = monotonic()
        if now - self._looked_at >= STAT_SECONDS:
            self._looked_at = now
            self._limit = amount(read(f"{folder}/memory.max") or read(f"{folder}/memory.limit_in_bytes"))
            stat = table(read(f"{folder}/memory.stat"))
            self._inactive = stat.get("total_inactive_file", stat.get("inactive_file", 0.0))
        used = amount(self._text(folder, "memory.current", "memory.usage_in_bytes"))
        return Memory(None if used is None else max(0.0, used - self._inactive), self._limit)

    def oom_kills(self) -> float | None:
        """Processes of the group that were killed for want of memory."""
        if self.memory_folder is None:
            return None
        return table(self._text(self.memory_folder, "memory.events", "memory.oom_control")).get("oom_kill")

    def throttling(self) -> Throttling | None:
        """How often the group was stopped since it had used up its processor time; None without a quota."""
        if self._cpu_folder is None or self.cpu_limit is None:
            return None
        return throttling(self._text(self._cpu_folder, "cpu.stat"))

    def pressure(self) -> dict[tuple[str, str], float]:
        """Seconds in which work of the group stood still, by what it waited for and whether some or all of it did."""
        if not self._has_pressure:
            return {}
        return pressure({what: self._text(self._v2[0], f"{what}.pressure") for what in WAITED_FOR})

    def close(self) -> None:
        """Give the kept descriptors back."""
        for file in list(self._files.values()):  # a collection may be opening one
            if file is not None:
                file.close()

    def _text(self, folder: str, *names: str) -> str:
        """What the first of these files that exists says."""
        key = names[0]
        if key not in self._files:
            path = next((f"{folder}/{name}" for name in names if os.path.exists(f"{folder}/{name}")), None)
            self._files[key] = None if path is None else ProcFile(path)
        file = self._files[key]
        return "" if file is None else file.text()


# -- what the files say --------------------------------------------------------------------------------


def read(path: str) -> str:
    """A small file's text; "" where there is none or it may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        return os.read(fd, 16_384).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def own_groups(text: str) -> dict[str, str]:
    """``/proc/self/cgroup``: the group by controller; that of v2 has no controller."""
    groups = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                groups[controller] = parts[2].removesuffix(" (deleted)")
    return groups


def amount(text: str) -> float | None:
    """A number of bytes; None for "max", for v1's way to say the same, and for anything else."""
    words = text.split()
    if len(words) != 1 or not (words[0].isascii() and words[0].isdigit()):
        return None
    value = int(words[0])
    return float(value) if value < NO_LIMIT else None


def cores(text: str) -> float | None:
    """``cpu.max``, or quota and period of v1: processors that may be used. None without a limit."""
    words = text.split()
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return None
    quota, period = map(int, words)
    return quota / period if quota and period else None


def table(text: str) -> dict[str, float]:
    """Lines of a name and a number; others are passed over."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isascii() and words[1].isdigit():
            found[words[0]] = float(words[1])
    return found


def throttling(text: str) -> Throttling | None:
    """``cpu.stat``: microseconds in v2, nanoseconds in v1."""
    stat = table(text)
    if "nr_periods" not in stat or "nr_throttled" not in stat:
        return None
    seconds = (
        stat["throttled_usec"] / 1e6 if "throttled_usec" in stat else stat.get("throttled_time", 0.0) / 1e9
    )
    return Throttling(stat["nr_periods"], stat["nr_throttled"], seconds)


def stalls(text: str) -> dict[str, float]:
    """A pressure file: total seconds by "some" and "full"."""
    found = {}
    for line in text.splitlines():
        kind, *fields = line.split() or [""]
        total = next((field[6:] for field in fields if field.startswith("total=")), "")
        if kind in STALLS and total.isascii() and total.isdigit():
            found[kind] = int(total) / 1e6
    return found


def pressure(texts: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Stalls by what was waited for, from the texts of pressure files."""
    return {(what, kind): seconds for what, text in texts.items() for kind, seconds in stalls(text).items()}


# -- where the files are -------------------------------------------------------------------------------


def _v1(root: str, groups: Mapping[str, str], controller: str) -> list[str]:
    """The folders of one controller from the process's own group up; it may be mounted together with another."""
    try:
        mounted = [name for name in os.listdir(root) if controller in name.split(",")]
    except OSError:
        return []
    return list(_upwards(f"{root}/{mounted[0]}", groups.get(controller))) if mounted else []


def _first_dir(*folders: str, file: str) -> str | None:
    return next((folder for folder in folders if os.path.exists(f"{folder}/{file}")), None)


def _upwards(top: str | None, group: str | None) -> Iterator[str]:
    """The group's folder and those above it; inside of a container only the last may be visible."""
    if top is None or group is None:
        return
    parts = [part for part in group.split("/") if part and part != ".."][-MAX_DEPTH:]
    while parts:
        folder = "/".join((top, *parts))
        if os.path.isdir(folder):
            yield folder
        parts.pop()
    yield top
