"""Is a library that nobody tested, or of an unknown shape, only read; do failing hooks take themselves off?

The libraries are real modules, written into a temporary package.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from uno.core.monitoring import instrumentation
from uno.core.monitoring.dashboard.cards import Cards
from uno.core.monitoring.hooks import fits
from uno.core.monitoring.instrumentation import failures, install, stat_of
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types import Recogniser
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Resource, ResourceManager

LIBRARY = """
__version__ = {version!r}

class Pool:
    size = 4

    def get(self, n):
        return n + 1
{more}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Writes a version of the library ``poollib`` and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(version: str, more: str = "    def put(self, n):\n        return n - 1\n") -> ModuleType:
        folder = tmp_path / "poollib"
        folder.mkdir()
        (folder / "__init__.py").write_text(LIBRARY.format(version=version, more=more))
        return importlib.import_module("poollib")

    yield make
    sys.modules.pop("poollib", None)


class PoolMonitor(ResourceTypeMonitor):
    """As an adapter does: two hooks of which each may fail."""

    resource_type = "pool"
    targets = ("poollib.Pool",)
    library, tested = "poollib", ">=1.4,<3"
    blocking = False
    metrics = pick("uno.resource.errors", "db.client.operation.duration", "db.client.connection.max")
    broken: str = ""

    def install(self) -> list[Callable[[], None]]:
        pool = sys.modules["poollib"].Pool
        return [install(pool, name, self._wrap) for name in ("get", "put")]

    def _wrap(self, original: Any) -> Any:
        kind = self

        def call(self: Any, n: int) -> int:
            try:
                if kind.broken == original.__name__:
                    raise KeyError("the shape has changed")
                stat_of(self).done(0.0)
            except Exception as error:  # noqa: BLE001
                failures("Pool.call", error)
            found: int = original(self, n)
            return found

        return call

    def collect_metrics(self, resource: Resource) -> None:
        stat = stat_of(resource.target)
        self.update_metric("uno.resource.errors", stat.errors)
        self.update_metric("db.client.operation.duration", stat.duration)
        self.update_metric("db.client.connection.max", resource.target.size)

    def ping(self, target: Any) -> bool:
        raise AssertionError("a library that is only read is not pinged")


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(ResourceManager(Recogniser([PoolMonitor()])), interval=60)
    yield monitor
    monitor.stop()


def off(monitor: ResourceMonitor) -> dict[tuple[str, ...], float | None]:
    """The self-metric."""
    store = monitor.store
    return {tuple(s.labels): store.value(s) for s in store.select("uno", "uno.hook.off")}


def note(monitor: ResourceMonitor, id: str) -> str:
    snapshot = Cards(monitor).snapshot()
    try:
        while True:
            next(snapshot)
    except StopIteration as done:
        (card,) = [card for card in done.value["resources"] if card["id"] == id]
    return str(card["note"])


@pytest.mark.parametrize("version", ["1.4", "1.4.0", "2.9.9", "2.0b1", "v2", "odd", "1.4.0.post1"])
def test_a_tested_version_is_hooked(library: Any, monitor: ResourceMonitor, version: str) -> None:
    poollib = library(version)
    pool = poollib.Pool()
    monitor.manager.register(pool, id="it")
    monitor.tick()
    assert (pool.get(1), pool.put(1)) == (2, 0)
    monitor.tick()
    assert monitor.read("it", "db.client.operation.duration", stat="count") == 2
    assert monitor.read("it", "errors", stat="total") == 0
    assert note(monitor, "it") == ""


@pytest.mark.parametrize("version", ["1.3.99", "3.0", "3.0.0rc1", "10"])
def test_another_version_is_only_read(library: Any, monitor: ResourceMonitor, version: str) -> None:
    poollib = library(version)
    before = dict(vars(poollib.Pool))
    pool = poollib.Pool()
    monitor.manager.register(pool, id="it")
    monitor.tick()
    assert pool.get(1) == 2
    monitor.tick()
    assert dict(vars(poollib.Pool)) == before
    assert monitor.read("it", "db.client.connection.max") == 4, "what can be read is read"
    assert monitor.read("it", "errors", stat="total") is None, "unknown is not 0"
    assert monitor.store.select("it", "db.client.operation.duration") == []
    assert f"poollib {version} is not among the versions that were tested (>=1.4,<3)" in note(monitor, "it")
    assert off(monitor) == {("PoolMonitor", "version"): 1}
    assert monitor.holders("it") == []


def test_an_unknown_shape_leaves_no_hook_behind(library: Any, monitor: ResourceMonitor) -> None:
    poollib = library("2.0", more="")  # get() is hooked before put() is missed
    before = dict(vars(poollib.Pool))
    pool = poollib.Pool()
    monitor.manager.register(pool, id="it")
    monitor.tick()
    assert pool.get(1) == 2
    assert dict(vars(poollib.Pool)) == before
    assert "poollib 2.0 has another shape than those that were tested (AttributeError)" in note(monitor, "it")
    assert off(monitor) == {("PoolMonitor", "shape"): 1}


def test_a_library_that_another_thread_is_importing_is_waited_for(
    library: Any, monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = ModuleType("poollib_gate")
    gate.reached, gate.go = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "poollib_gate", gate)
    halfway = "\nimport poollib_gate\npoollib_gate.reached.set()\npoollib_gate.go.wait(30)\n"
    more = "    put = None\n" + halfway + "Pool.put = lambda self, n: n - 1\n"
    importing = threading.Thread(target=library, args=("2.0", more))
    importing.start()
    try:
        assert gate.reached.wait(30)
        monitor.tick()
        assert monitor.hooks.off() == []
    finally:
        gate.go.set()
        importing.join(30)
    pool = sys.modules["poollib"].Pool()
    monitor.manager.register(pool, id="it")
    monitor.tick()
    assert (pool.get(1), pool.put(1)) == (2, 0)
    monitor.tick()
    assert monitor.read("it", "db.client.operation.duration", stat="count") == 2
    assert "shape" not in caplog.text


def test_hooks_that_go_on_failing_come_off_together(library: Any, monitor: ResourceMonitor) -> None:
    poollib = library("2.0")
    before = dict(vars(poollib.Pool))
    pool, kind = poollib.Pool(), monitor.kinds.kinds[0]
    assert isinstance(kind, PoolMonitor)
    other = ResourceMonitor(ResourceManager(Recogniser([PoolMonitor()])), interval=60)  # shares the hooks
    for one in (monitor, other):
        one.manager.register(pool, id="it")
        one.tick()
    hooks = dict(instrumentation._hooks)
    kind.broken = "get"
    count = failures.cell.value
    for n in range(instrumentation.MAX_FAILURES - 1):
        assert pool.get(n) == n + 1
        assert pool.put(n) == n - 1
    assert hasattr(poollib.Pool.get, "__uno_hook__")
    assert pool.get(1) == 2
    assert dict(vars(poollib.Pool)) == before, "put() as well: half of them would count wrong"
    assert [pool.get(n) for n in range(5)] == [1, 2, 3, 4, 5]
    assert failures.cell.value == count + instrumentation.MAX_FAILURES
    assert len(instrumentation._hooks) < len(hooks)
    for one in (monitor, other):
        one.tick()
        one.tick()
        assert "the hook Pool.call failed 20 times (KeyError)" in note(one, "it")
        assert off(one) == {("PoolMonitor", "failures"): 1}
        assert one.read("it", "errors", stat="total") is None
        assert one.read("it", "db.client.connection.max") == 4
        one.stop()
    kind.broken = ""
    monitor.tick()  # stop() gave them another chance
    assert note(monitor, "it") == ""
    pool.get(1)
    monitor.tick()
    assert monitor.read("it", "db.client.operation.duration", stat="count")


def test_failures_far_apart_do_not_add_up(
    library: Any, monitor: ResourceMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    poollib = library("2.0")
    pool, kind = poollib.Pool(), monitor.kinds.kinds[0]
    monitor.manager.register(pool, id="it")
    monitor.tick()
    kind.broken = "get"  # type: ignore[attr-defined]
    now = [1_000.0]
    monkeypatch.setattr(instrumentation, "monotonic", lambda: now[0])
    for n in range(3 * instrumentation.MAX_FAILURES):
        now[0] += instrumentation.FORGET_SECONDS + 1
        assert pool.get(n) == n + 1
    assert hasattr(poollib.Pool.get, "__uno_hook__")


def test_ranges() -> None:
    assert fits("9.0.0", ">=9") is True
    assert fits("8.2", ">=8,!=8.2") is False
    assert fits("2.9.9 (dt dec pq3 ext lo64)", ">=2.9,<3") is True
    assert fits("unknown", ">=2") is None
    assert fits("2", "about 2") is None
    assert fits("2", "") is None


REDIS = """
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager
import redis, redis.client
with ResourceMonitor(ResourceManager(), interval=0.02) as monitor:
    client = redis.client.Redis()
    resource = monitor.manager.register(client, id="cache")
    assert resource.type == "redis"
    assert client.execute_command("GET") == "GET"
    monitor.tick()
    (off,) = [o for o in monitor.hooks.off() if o.adapter == "RedisClient"]
    print(off.reason)
    assert not hasattr(redis.client.Redis.execute_command, "__uno_hook__")
    assert monitor.holders("cache") == []
"""


@pytest.mark.parametrize(("version", "reason"), [("99.1", "version"), ("5.0.0", "shape")])
def test_a_redis_of_an_unknown_shape(tmp_path: Path, version: str, reason: str) -> None:
    """The application goes on as without uno when the next redis-py looks altogether different."""
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"__version__ = {version!r}\nfrom redis.client import Redis\n")
    (folder / "client.py").write_text(
        "class Redis:\n    def execute_command(self, name):\n        return name\n"
    )
    program = tmp_path / "app.py"
    program.write_text(REDIS)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{reason}\n"
