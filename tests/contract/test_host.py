"""Is the machine seen as it is: processors, load, memory, disks, file systems, pressure?"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.kit import names_without_series
from tests.servers import wait_until
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import host
from uno.core.monitoring.resource_types.host import HostTarget
from uno.core.resources import Resource, ResourceManager


@pytest.fixture(scope="module")
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        wait_until(lambda: monitor.read("host", "cpu") is not None, 10, "the second reading")
        yield monitor


@pytest.fixture(scope="module")
def resource(monitor: ResourceMonitor) -> Resource:
    return monitor.manager.get("host")


def test_figures_agree_with_psutil(monitor: ResourceMonitor) -> None:
    memory = psutil.virtual_memory()
    assert monitor.read("host", "memory") == pytest.approx(1 - memory.available / memory.total, abs=0.05)
    assert monitor.read("host", "system.memory.limit") == memory.total
    assert monitor.read("host", "load") == pytest.approx(os.getloadavg()[0], abs=1)
    assert monitor.read("host", "system.cpu.logical.count") == os.cpu_count()
    used = psutil.disk_usage("/")
    labels = {"system.filesystem.mountpoint": "/"}
    assert monitor.read("host", "disk_usage", labels) == pytest.approx(used.percent / 100, abs=0.01)
    assert monitor.read("host", "system.filesystem.limit", labels) == used.total


def test_disks(monitor: ResourceMonitor, resource: Resource) -> None:
    truth = psutil.disk_io_counters(perdisk=True)
    seen = resource.target.disks()
    assert seen
    for name, disk in seen.items():
        assert disk.reads == pytest.approx(truth[name].read_count, rel=0.05)
        assert disk.written == pytest.approx(truth[name].write_bytes, rel=0.05)
        labels = {"system.device": name, "disk.io.direction": "write"}
        assert (monitor.read("host", "system.disk.io", labels, stat="total") or 0) <= disk.written


def test_busy_processors(monitor: ResourceMonitor) -> None:
    deadline = time.monotonic() + 10
    while (monitor.read("host", "cpu") or 0) < 0.8 / (os.cpu_count() or 1):
        assert time.monotonic() < deadline
        sum(range(10_000))


def test_everything_declared_is_there_on_linux(monitor: ResourceMonitor, resource: Resource) -> None:
    class It:
        pass

    it = It()
    it.monitor, it.resource, it.driver = monitor, resource, resource.driver  # type: ignore[attr-defined]
    assert names_without_series(it) <= {"system.pressure.stall_time"}  # type: ignore[arg-type]
    if Path("/proc/pressure/cpu").exists():
        labels = {"pressure.resource": "cpu", "pressure.kind": "some"}
        assert monitor.read("host", "system.pressure.stall_time", labels, stat="total") is not None
    assert asyncio.run(resource.ping()) is True
    assert "/ " in resource.driver.explain(resource.target, "system.filesystem.utilization")  # type: ignore[union-attr]


def test_elsewhere_psutil_tells_and_pressure_is_unknown(tmp_path: Path) -> None:
    target = HostTarget(str(tmp_path), str(tmp_path))  # a system without /proc
    target.cpu()
    time.sleep(0.05)
    assert 0 <= (target.cpu() or 0) <= 1
    assert target.memory().total == psutil.virtual_memory().total
    assert target.pressure() == {}
    assert all(disk.busy is None for disk in target.disks().values())


def test_recorded_files() -> None:
    stat = "cpu  271000 4000 37000 600000 8000 0 1200 300 50 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"
    assert host.cpu_times(stat) == (313500, 921500)
    meminfo = "MemTotal:       24684084 kB\nMemFree: 1 kB\nMemAvailable:   12342042 kB\n"
    meminfo += "SwapTotal: 100 kB\nSwapFree: 75 kB\n"
    assert host.memory(meminfo) == (0.5, 0.25, 24684084 * 1024)
    assert host.memory(meminfo.replace("SwapTotal: 100", "SwapTotal: 0")).swap_used is None
    disks = (
        "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        " 254       0 vda 195424 32984 10331306 169352 51399 56885 7824328 36360 0 27208 209253 18235 41 962360 2190\n"
        " 254       1 vda1 1 1 1 1 1 1 1 1 1 1 1\n"
    )
    assert host.disks(disks, {"vda"}) == {"vda": (10331306 * 512, 7824328 * 512, 195424, 51399, 27.208)}
    mounts = (
        "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n/dev/sda1 /data\\040disk ext4 rw 0 0\n"
        "server:/x /mnt nfs4 rw 0 0\n//host/share /smb cifs rw 0 0\n"
    )
    assert host.mounts(mounts) == ["/", "/data disk"]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_odd_files_never_raise(text: str) -> None:
    host.cpu_times("cpu " + text)
    host.memory(f"MemTotal: {text}\nMemAvailable: {text}")
    host.disks(f"1 2 vda {text}", {"vda"})
    host.mounts(text)
