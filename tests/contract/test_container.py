"""Is what a container may use read as it is, from control groups of both versions?

The trees are recorded: v1 from Linux 6.18, with a group that ran at a fifth of a processor; v2's processor times and
pressure from the same kernel, its memory and quota files in the form of the kernel's documentation, for no machine with
that controller was at hand.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.kit import Watched
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import _cgroup
from uno.core.monitoring.resource_types._cgroup import Cgroup, Throttling
from uno.core.monitoring.resource_types.process import ProcessTarget
from uno.core.resources import ResourceManager

MB = 1 << 20
STALLED = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=30865\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=30849\n"
)
CALM = STALLED.replace("30865", "0").replace("30849", "0")
OWN_V1 = """9:name=systemd:/
8:pids:/
4:memory:/process_api/057282da
3:cpuset:/
2:cpuacct,cpu:/unorec
0::/
"""
V1 = {
    "memory/process_api/057282da/memory.limit_in_bytes": f"{512 * MB}\n",
    "memory/process_api/057282da/memory.usage_in_bytes": f"{300 * MB}\n",
    "memory/process_api/057282da/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/process_api/057282da/memory.stat": f"cache 2154496\nrss 1884160\ninactive_file 577536\n"
    f"total_rss 1884160\ntotal_inactive_file {100 * MB}\n",
    "memory/process_api/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.usage_in_bytes": "5672960\n",
    "cpu,cpuacct/unorec/cpu.cfs_quota_us": "20000\n",
    "cpu,cpuacct/unorec/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/unorec/cpu.stat": "nr_periods 10\nnr_throttled 10\nthrottled_time 760276901\n"
    "nr_bursts 0\nburst_time 0\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
OWN_V2 = "0::/kubepods/pod7/main\n"
MAIN = "kubepods/pod7/main"
V2 = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
    "cgroup.procs": "1\n",
    f"{MAIN}/cgroup.controllers": "cpu io memory pids\n",
    f"{MAIN}/cgroup.events": "populated 1\nfrozen 0\n",
    f"{MAIN}/memory.max": "max\n",
    f"{MAIN}/memory.current": f"{120 * MB}\n",
    f"{MAIN}/memory.stat": f"anon {90 * MB}\nfile {30 * MB}\ninactive_file {20 * MB}\nactive_file {10 * MB}\n",
    f"{MAIN}/memory.events": "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n",
    f"{MAIN}/cpu.max": "150000 100000\n",
    f"{MAIN}/cpu.stat": "usage_usec 424470\nuser_usec 420714\nsystem_usec 3756\nnice_usec 0\nnr_periods 40\n"
    "nr_throttled 10\nthrottled_usec 2500000\nnr_bursts 0\nburst_usec 0\n",
    f"{MAIN}/cpu.pressure": STALLED,
    f"{MAIN}/memory.pressure": CALM,
    f"{MAIN}/io.pressure": CALM,
    "kubepods/pod7/memory.max": f"{256 * MB}\n",
    "kubepods/pod7/memory.current": f"{200 * MB}\n",
    "kubepods/pod7/memory.stat": f"anon {150 * MB}\ninactive_file {50 * MB}\n",
    "kubepods/pod7/memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 4\n",
    "kubepods/pod7/cpu.max": "max 100000\n",
    "kubepods/memory.max": "max\n",
    "kubepods/cpu.max": "max 100000\n",
}


def grown(tmp_path: Path, own: str, files: dict[str, str]) -> Cgroup:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return Cgroup(f"{tmp_path}/cgroup", f"{tmp_path}/own")


def test_version_1(tmp_path: Path) -> None:
    group = grown(tmp_path, OWN_V1, V1)
    assert group.memory() == (200 * MB, 512 * MB)
    assert group.oom_kills() == 3
    assert group.cpu_limit == 0.2
    assert group.throttling() == Throttling(10, 10, 0.760276901)
    assert group.pressure() == {}  # version 1 has none


def test_version_2_where_the_limit_is_that_of_the_pod(tmp_path: Path) -> None:
    group = grown(tmp_path, OWN_V2, V2)
    assert group.memory() == (150 * MB, 256 * MB)
    assert group.oom_kills() == 4
    assert group.cpu_limit == 1.5
    assert group.throttling() == Throttling(40, 10, 2.5)
    assert group.pressure() == {
        ("cpu", "some"): 0.030865, ("cpu", "full"): 0.030849,
        ("memory", "some"): 0, ("memory", "full"): 0, ("io", "some"): 0, ("io", "full"): 0,
    }  # fmt: skip


def test_inside_of_a_container_only_the_own_group_is_visible(tmp_path: Path) -> None:
    inside = {name.removeprefix(f"{MAIN}/"): text for name, text in V2.items() if name.startswith(MAIN)}
    group = grown(tmp_path, "0::/\n", {**inside, "cgroup.procs": "1\n", "memory.max": f"{200 * MB}\n"})
    assert group.memory() == (100 * MB, 200 * MB)
    assert group.cpu_limit == 1.5
    assert group.pressure()[("cpu", "some")] == 0.030865
    moved = grown(tmp_path, "4:memory:/docker/not-visible-here\n2:cpu:/docker/x\n", {
        "memory/memory.limit_in_bytes": f"{64 * MB}\n", "memory/memory.usage_in_bytes": f"{MB}\n",
        "cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert moved.memory() == (MB, 64 * MB)
    assert moved.cpu_limit == 0.5
    assert moved.throttling() is None  # there is no cpu.stat


def test_a_machine_without_groups_and_the_group_of_the_whole_machine(tmp_path: Path) -> None:
    nothing = Cgroup(f"{tmp_path}/none", f"{tmp_path}/none")
    assert nothing.memory() == (None, None)
    assert (nothing.oom_kills(), nothing.cpu_limit, nothing.throttling()) == (None, None, None)
    assert nothing.pressure() == {}
    whole = grown(
        tmp_path,
        "0::/\n",
        {"cgroup.controllers": "cpu memory\n", "cgroup.procs": "1\n", "cpu.pressure": STALLED},
    )
    assert whole.memory() == (None, None)
    assert whole.pressure() == {}  # that is the machine's, which the host tells


def test_what_grows_is_seen_and_becomes_series(tmp_path: Path) -> None:
    target = ProcessTarget()
    target.group = grown(tmp_path, OWN_V2, V2)
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        it = Watched(monitor, target)
        it.until(150 / 256, "uno.resource.utilization")
        it.until(256 * MB, "container.memory.limit")
        it.until(4, "container.memory.oom_kills", "total")
        it.until(2.5, "container.cpu.throttled_time", "total")
        it.until(0, "container.cpu.throttled_ratio")
        (tmp_path / "cgroup" / MAIN / "cpu.stat").write_text(
            "nr_periods 60\nnr_throttled 15\nthrottled_usec 3000000\n"
        )
        it.until(3.0, "container.cpu.throttled_time", "total")
        labels = {"pressure.resource": "cpu", "pressure.kind": "some"}
        assert monitor.read("it", "container.pressure.stall_time", labels, stat="total") == 0.030865
        assert it.driver.capacity(target) == (150 * MB, 256 * MB)
    assert target.throttled_ratio(80, 20) == 0.25


@pytest.fixture
def real_group() -> Iterator[str]:
    """A group of the real kernel with a fifth of a processor, where this machine lets us make one."""
    folder = f"/sys/fs/cgroup/cpu/uno-test-{os.getpid()}"
    try:
        os.mkdir(folder)
        Path(folder, "cpu.cfs_quota_us").write_text("20000")
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
        pytest.skip("no control group can be made here (that takes root and version 1)")
    yield folder
    os.rmdir(folder)


def test_a_real_group_that_is_throttled(real_group: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(f"2:cpu:/{Path(real_group).name}\n")
    group = Cgroup(own=f"{tmp_path}/own")
    assert group.cpu_limit == 0.2
    busy = f"echo $$ > {real_group}/cgroup.procs; i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
    subprocess.run(["sh", "-c", busy], check=True, timeout=30)
    told = group.throttling()
    assert told is not None
    assert told.throttled > 0
    assert told.seconds > 0


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
NUMBER = st.one_of(
    st.integers(-5, 1 << 70).map(str), st.sampled_from(["max", "", "-1", "1e5", "²", "٣", "nan", "0"])
)
NAME = st.sampled_from(["nr_periods", "nr_throttled", "throttled_usec", "throttled_time", "oom_kill", "inactive_file",
                        "some", "full", "avg10=0.00 total=", "total="])  # fmt: skip
FILE = st.lists(st.one_of(LINE, st.tuples(NAME, NUMBER).map(" ".join), NUMBER, st.tuples(NAME, NUMBER).map("".join)),
                max_size=6).map("\n".join)  # fmt: skip


@settings(deadline=None)
@given(FILE)
def test_whatever_a_file_says_is_a_number_or_unknown(text: str) -> None:
    for value in (_cgroup.amount(text), _cgroup.cores(text)):
        assert value is None or value >= 0
    assert all(value >= 0 for value in _cgroup.table(text).values())
    assert set(_cgroup.stalls(text)) <= {"some", "full"}
    told = _cgroup.throttling(text)
    assert told is None or min(told) >= 0
    _cgroup.own_groups(text)


@given(
    st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 50), st.sampled_from(["v1", "v2"])
)
def test_what_is_written_is_read(periods: int, throttled: int, time: int, version: str) -> None:
    unit, scale = ("throttled_usec", 1e6) if version == "v2" else ("throttled_time", 1e9)
    text = f"usage_usec 1\nnr_periods {periods}\nnr_throttled {throttled}\n{unit} {time}\n"
    assert _cgroup.throttling(text) == (periods, throttled, time / scale)
    assert _cgroup.amount(f"{time}\n") == time
    assert _cgroup.cores(f"{periods} {periods}\n") == 1
    assert _cgroup.stalls(f"some avg10=1.00 avg60=0.50 avg300=0.00 total={time}\n") == {"some": time / 1e6}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(V2)), FILE), FILE)
def test_a_tree_with_odd_files_never_raises(tmp_path: Path, odd: dict[str, str], own: str) -> None:
    for text in (OWN_V2, own):
        group = grown(tmp_path, text, {**V2, **odd})
        group.memory(), group.oom_kills(), group.throttling(), group.pressure()
