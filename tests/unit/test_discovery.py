"""Is everything found that the process holds, under a name that stays, without touching anything?"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import queue
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from uno.core.monitoring.exporters.prometheus import PrometheusExporter
from uno.core.monitoring.resources import ResourceMonitor, UnknownResourceTypeError
from uno.core.resources import Resource


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    monitor = ResourceMonitor(interval=0.05)
    yield monitor
    monitor.stop()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes a package ``shopapp`` and imports one of its modules."""
    folder = tmp_path / "shopapp"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(module: str = "main", **files: str) -> Any:
        for name, code in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()
        return importlib.import_module(f"shopapp.{module}")

    yield load
    for name in [name for name in sys.modules if name.split(".")[0] == "shopapp"]:
        vars(sys.modules.pop(name)).clear()
    gc.collect()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def ours(found: list[Resource]) -> list[str]:
    """The ids of what the test's own package holds."""
    return sorted(r.id for r in found if r.id.startswith("shopapp"))


def run(folder: Path, *arguments: str, timeout: float = 60) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- names ---------------------------------------------------------------------------------------------


def test_named_by_the_global_that_holds_it(monitor: ResourceMonitor, package: Any) -> None:
    package(
        db="""
            import sqlalchemy
            engine = sqlalchemy.create_engine("sqlite://")
        """,
        views="""
            from shopapp.db import engine
        """,
        main="""
            from shopapp.views import engine as database
            from shopapp.db import engine
        """,
    )
    found = monitor.discover_resources("database")
    assert ours(found) == ["shopapp.db.engine"], "by the module that made it, not by those that import it"
    (resource,) = [r for r in found if r.id == "shopapp.db.engine"]
    assert resource.type == "database"
    assert resource.discovered
    assert ours(monitor.discover_resources("database")) == [], "what is known is not found again"


def test_named_inside_containers_attributes_and_applications(monitor: ResourceMonitor, package: Any) -> None:
    package(
        main="""
            import asyncio, queue
            from concurrent.futures import ThreadPoolExecutor as Pool
            from fastapi import FastAPI
            from starlette.applications import Starlette

            class Service:
                def __init__(self):
                    self.pool = Pool(1)
                    self._own = Pool(1)

            class Slotted:
                __slots__ = ("pool",)

            app = FastAPI()
            app.state.pool = Pool(1)
            plain = Starlette()
            plain.state.jobs = queue.Queue()
            pools = {"mail": Pool(1), "thumb nails": Pool(1), 3: Pool(1)}
            listed = [Pool(1), {"deep": Pool(1)}]
            service = Service()
            slotted = Slotted()
            slotted.pool = Pool(1)
            loop_queue = asyncio.Queue()
        """
    )
    found = monitor.discover_all_resources()
    assert [id for id in ours(found) if "3" not in id] == [
        "shopapp.main.app.state.pool",
        "shopapp.main.listed.0",
        "shopapp.main.listed.1.deep",
        "shopapp.main.loop_queue",
        "shopapp.main.plain.state.jobs",
        "shopapp.main.pools.mail",
        "shopapp.main.pools.thumb-nails",
        "shopapp.main.service._own",
        "shopapp.main.service.pool",
        "shopapp.main.slotted.pool",
    ]
    assert len([r for r in found if r.id.startswith("thread-pool")]) >= 1, "others without a name"


PROGRAM = """
    import multiprocessing  # which gives the main module a second name
    import json, sys
    from shopapp import db
    import queue
    from concurrent.futures import ThreadPoolExecutor
    from uno.core.monitoring.resources import ResourceMonitor

    jobs = queue.Queue()

    def hold():
        return [ThreadPoolExecutor(1), ThreadPoolExecutor(1, thread_name_prefix="mail")]

    held = (lambda pools: lambda: pools)(hold())   # where no name leads to
    monitor = ResourceMonitor()
    print(json.dumps([r.id for r in monitor.discover_all_resources()]))
"""


def test_named_by_classes_and_slots(monitor: ResourceMonitor, package: Any) -> None:
    package(
        jobs="""
            import queue
            import sqlalchemy
            from dataclasses import dataclass, field

            touched = []

            class Repo:
                engine = sqlalchemy.create_engine("sqlite://")

                @property
                def lazy(self):
                    touched.append("lazy")

            class Worker:
                jobs = queue.Queue()

            @dataclass(slots=True)
            class Deps:
                mails: queue.Queue = field(default_factory=queue.Queue)
                later: queue.Queue = field(init=False)

                @property
                def lazy(self):
                    touched.append("lazy")

            deps = Deps()
            repo = Repo()
            Outside = queue.Queue
        """,
        main="from shopapp.jobs import Repo, Worker, deps",
    )
    ids = {r.id for r in monitor.discover_all_resources() if "shopapp" in r.id}
    assert ids == {"shopapp.jobs.Repo.engine", "shopapp.jobs.Worker.jobs", "shopapp.jobs.deps.mails"}
    assert sys.modules["shopapp.jobs"].touched == []


def test_a_key_that_may_be_a_secret_is_no_name(monitor: ResourceMonitor, package: Any) -> None:
    package(
        main="""
            from concurrent.futures import ThreadPoolExecutor as Pool
            pools = {
                "eu-west-1": Pool(1),
                "postgresql://shop:hunter2@db/shop": Pool(1),
                "shop:hunter2@db": Pool(1),
                "sk-live-hunter2hunter2hunter2": Pool(1),
                "db.example:5432/shop": Pool(1),
            }
        """
    )
    found = monitor.discover_resources("thread_pool")
    assert ours(found) == [
        "shopapp.main.pools.1",
        "shopapp.main.pools.2",
        "shopapp.main.pools.3",
        "shopapp.main.pools.db.example:5432/shop",
        "shopapp.main.pools.eu-west-1",
    ]
    assert all("hunter2" not in f"{r.how} {r.name} {r.endpoint}" for r in found)


@pytest.mark.parametrize("how", ["script", "module"])
def test_ids_are_the_same_after_a_restart(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "shopapp"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "db.py").write_text('import sqlalchemy\nengine = sqlalchemy.create_engine("sqlite://")\n')
    target = tmp_path / "worker.py" if how == "script" else folder / "__main__.py"
    target.write_text(textwrap.dedent(PROGRAM))
    arguments = ["worker.py"] if how == "script" else ["-m", "shopapp"]
    first, second = run(tmp_path, *arguments), run(tmp_path, *arguments)
    assert first == second
    main = "worker" if how == "script" else "shopapp"
    assert {"shopapp.db.engine", f"{main}.jobs", "thread-pool", "thread_pool-mail"} <= set(first)
    assert not any("0x" in id for id in first)


def test_queues_are_taken_only_where_a_name_holds_them(monitor: ResourceMonitor, package: Any) -> None:
    module = package(main="import queue\nmail = queue.Queue()\n")
    unnamed = queue.Queue[int]()
    monitor.discover_resources("task_queue")
    assert monitor.manager.of(module.mail) is not None
    assert monitor.manager.of(unnamed) is None, "libraries have many of their own"


def test_unknown_types(monitor: ResourceMonitor) -> None:
    with pytest.raises(
        UnknownResourceTypeError, match=r"known are .*database.*Did you mean 'database'"
    ) as caught:
        monitor.discover_resources("databse")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(UnknownResourceTypeError) as caught:
        monitor.discover_resources("custom")
    assert str(caught.value).count("thread_pool") == 1
    for wrong in ("", 5, "custom"):
        with pytest.raises(UnknownResourceTypeError):
            monitor.discover_resources(resource_type=wrong)  # type: ignore[arg-type]


def test_only_the_type_that_was_asked_for(monitor: ResourceMonitor, package: Any) -> None:
    package(
        main="""
            import sqlalchemy
            from concurrent.futures import ThreadPoolExecutor
            engine = sqlalchemy.create_engine("sqlite://")
            pool = ThreadPoolExecutor(1)
        """
    )
    assert ours(monitor.discover_resources("thread_pool")) == ["shopapp.main.pool"]
    assert {r.type for r in monitor.manager} == {"thread_pool"}


# -- later ---------------------------------------------------------------------------------------------


def test_what_is_made_later_is_found_by_its_use(monitor: ResourceMonitor) -> None:
    monitor.discover_all_resources()
    monitor.start()
    pool = ThreadPoolExecutor(1, thread_name_prefix="made-later")
    engine = sqlalchemy.create_engine("sqlite://")
    before = len(monitor.manager)
    assert before < 1_000
    pool.submit(int).result()
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    seq = monitor.store.frame.seq if monitor.store.frame else 0
    until(lambda: monitor.manager.of(pool) is not None and monitor.manager.of(engine) is not None)
    assert monitor.store.frame is not None
    assert monitor.store.frame.seq - seq < 20, "within a few ticks"
    resource = monitor.manager.of(pool)
    assert resource is not None
    until(lambda: monitor.read(resource.id, "tasks", {"outcome": "completed"}, stat="total") == 1)
    pool.shutdown()
    engine.dispose()


def test_what_a_name_holds_later_is_found(monitor: ResourceMonitor, package: Any) -> None:
    module = package(main="from fastapi import FastAPI\napp = FastAPI()\n")
    monitor.discover_resources("task_queue")
    monitor.start()
    until(lambda: monitor.store.frame is not None)
    module.app.state.mail = queue.Queue()
    until(lambda: "shopapp.main.app.state.mail" in monitor.manager, 8)


def test_two_monitors_of_a_process_find_the_same(monitor: ResourceMonitor) -> None:
    with ResourceMonitor(interval=0.05, discover=True) as other:
        monitor.discover_all_resources()
        monitor.start()
        until(lambda: other.store.frame is not None and monitor.store.frame is not None)
        with ThreadPoolExecutor(1, thread_name_prefix="for-both") as pool:
            pool.submit(int).result()
            until(lambda: monitor.manager.of(pool) is not None and other.manager.of(pool) is not None)


MANY = """
    import gc, json, threading, time
    from collections import Counter
    import psutil, sqlalchemy
    from uno.core.monitoring.history.memory import MemoryHistory
    from uno.core.monitoring.resources import ResourceMonitor

    def engine():
        made = sqlalchemy.create_engine("sqlite://")
        made.connect().close()
        return made

    # Ticks by hand. The history takes the memory that it is given: here it is little.
    monitor = ResourceMonitor(interval=3_600, history=MemoryHistory(max_bytes=2**20))
    monitor.discover_all_resources()
    monitor.start()
    ids, watched = set(), set()

    def serve(requests):
        made = [engine() for _ in range(requests)]
        del made[50:]  # most are gone before they are seen
        monitor.tick()
        for resource in [r for r in monitor.manager if r.target in made]:
            ids.add(resource.id)
            watched.add(resource)

    def state():
        gc.collect()
        monitor.tick()
        ours = Counter(type(obj).__name__ for obj in gc.get_objects() if str(type(obj).__module__).startswith("uno."))
        return len(monitor.manager), len(monitor.store), ours

    serve(200)  # what is made once is there
    before, memory = state(), psutil.Process().memory_info().rss
    for _ in range(50):
        serve(200)
    seen, watched = len(watched), None
    begun = time.monotonic()
    while time.monotonic() - begun < 60:  # what was in flight is given up within seconds
        after = state()
        more = after[2] - before[2]
        if after[:2] == before[:2] and max(more.values(), default=0) < 1_000:
            break
    monitor.stop()
    for thread in threading.enumerate()[1:]:
        thread.join(5)
    print(json.dumps({
        "watched": seen, "ids": len(ids), "before": before[:2], "after": after[:2], "more": more,
        "megabytes": (psutil.Process().memory_info().rss - memory) / 1e6,
        "shown": sum(bool(monitor.store.select(id)) for id in ids),
        "threads": threading.active_count(),
    }))
"""


@pytest.mark.slow
def test_ten_thousand_resources_leave_nothing_behind(tmp_path: Path) -> None:
    """What was dropped frees its id, its series and its memory. In a process of its own: others' remains count too."""
    (tmp_path / "many.py").write_text(textwrap.dedent(MANY))
    seen = run(tmp_path, "many.py", timeout=240)
    assert seen["watched"] == 51 * 50
    assert seen["ids"] < 1_000, "ids are used again"
    assert seen["shown"] == 0
    assert seen["after"] == seen["before"], seen
    assert seen["threads"] == 1
    assert max(seen["more"].values(), default=0) < 1_000, "some of what there is for each was left"
    assert seen["megabytes"] < 40, seen


def test_nothing_is_looked_for_that_was_not_asked_for(monitor: ResourceMonitor) -> None:
    monitor.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > 5)
        assert monitor.manager.of(pool) is None


# -- an AsyncEngine and its engine ---------------------------------------------------------------------


def test_an_async_engine_stands_for_its_engine(monitor: ResourceMonitor) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    found = monitor.discover_resources("database")
    assert [r for r in found if r.target is engine.sync_engine] == []
    assert len([r for r in found if r.target is engine]) == 1
    asyncio.run(engine.dispose())


# -- the application's word ----------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["mail", "shopapp.main.pool"])
def test_registered_by_name_after_it_was_discovered(monitor: ResourceMonitor, package: Any, id: str) -> None:
    module = package(main="from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n")
    monitor.discover_resources("thread_pool")
    monitor.start()
    module.pool.submit(int).result()
    until(lambda: monitor.read("shopapp.main.pool", "tasks", {"outcome": "completed"}, stat="total") == 1)
    resource = monitor.manager.register(module.pool, id=id, name="Mail")
    assert not resource.discovered
    assert [r.id for r in monitor.manager if r.target is module.pool] == [id]
    module.pool.submit(int).result()
    until(lambda: monitor.read(id, "tasks", {"outcome": "completed"}, stat="total") == 2)
    if id == "mail":
        assert monitor.store.select("shopapp.main.pool") == []
    assert ours(monitor.discover_all_resources()) == []
    module.pool.shutdown()


# -- it touches and keeps nothing ----------------------------------------------------------------------


def test_nothing_is_kept_alive(monitor: ResourceMonitor) -> None:
    monitor.start()
    engine = sqlalchemy.create_engine("sqlite://")
    pool = ThreadPoolExecutor(1, thread_name_prefix="to-be-dropped")
    monitor.discover_all_resources()
    ids = [r.id for obj in (engine, pool) if (r := monitor.manager.of(obj)) is not None]
    assert len(ids) == 2
    until(lambda: all(monitor.store.select(id) for id in ids))
    exporter = PrometheusExporter(monitor)
    assert f'resource="{ids[1]}"' in exporter.render().decode()
    pool.submit(int).result()
    pool.shutdown()
    gone: list[weakref.ref[Any]] = [weakref.ref(engine), weakref.ref(pool)]
    del engine, pool
    until(lambda: gc.collect() is not None and not any(ref() for ref in gone))
    until(lambda: not any(id in monitor.manager for id in ids))
    assert not any(monitor.store.select(id) for id in ids)
    assert f'resource="{ids[1]}"' not in exporter.render().decode()


def test_a_registered_object_is_kept_until_it_is_unregistered(monitor: ResourceMonitor) -> None:
    pool = ThreadPoolExecutor(1)
    monitor.manager.register(pool, id="kept")
    monitor.start()
    pool.shutdown()
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is not None
    monitor.manager.unregister("kept")
    until(lambda: gc.collect() is not None and reference() is None)


class Lazy:
    """As django's and werkzeug's proxies: whoever looks wakes it."""

    woken = 0

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        type(self).woken += 1
        return sqlalchemy.Engine

    def __getattr__(self, name: str) -> Any:
        type(self).woken += 1
        raise RuntimeError("woken")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("woken")

    def __bool__(self) -> bool:
        raise RuntimeError("woken")

    def __repr__(self) -> str:
        raise RuntimeError("woken")

    __hash__ = None  # type: ignore[assignment]


lazy = Lazy()  # held by a first-party global: here


def test_lazy_proxies_sleep_on(monitor: ResourceMonitor) -> None:
    here = [Lazy(), {"inside": Lazy()}]
    Lazy.woken = 0  # pytest looks at each global of a test's module
    monitor.discover_all_resources()
    monitor.start()
    until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > 3)
    monitor.discover_all_resources()
    assert Lazy.woken == 0
    assert len(here) == 2


def test_odd_globals_do_no_harm(
    monitor: ResourceMonitor, package: Any, caplog: pytest.LogCaptureFixture
) -> None:
    package(
        main="""
            import sys
            from concurrent.futures import ThreadPoolExecutor

            class Raises:
                def __getattribute__(self, name):
                    raise SystemExit(name)

            class Endless(dict):
                pass

            odd = Raises()
            cycle = []
            cycle.append(cycle)
            me = sys.modules[__name__]
            half = ThreadPoolExecutor.__new__(ThreadPoolExecutor)   # whose __init__ never ran
            pool = ThreadPoolExecutor(1)
        """
    )
    with caplog.at_level(logging.WARNING, "uno"):
        assert ours(monitor.discover_all_resources()) == ["shopapp.main.pool"]
        monitor.start()
        until(lambda: monitor.store.frame is not None and monitor.store.frame.seq > 3)


def test_a_scan_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "scan.py").write_text(
        textwrap.dedent(
            """
            import json, sys
            from uno.core.monitoring.resources import ResourceMonitor
            monitor = ResourceMonitor()
            before = set(sys.modules)
            monitor.discover_all_resources()
            print(json.dumps(sorted(m for m in set(sys.modules) - before if not m.startswith("uno."))))
            """
        )
    )
    loaded = run(tmp_path, "scan.py")
    known = {*sys.stdlib_module_names, *(name for name in loaded if name.startswith("_sysconfigdata"))}
    assert [name for name in loaded if name.split(".")[0] not in known] == []


def test_after_gc_freeze_names_and_use_still_find(tmp_path: Path) -> None:
    """What is frozen is not among the collector's objects any more (gunicorn --preload does so)."""
    (tmp_path / "frozen.py").write_text(
        textwrap.dedent(
            """
            import gc, json, time
            from concurrent.futures import ThreadPoolExecutor
            from uno.core.monitoring.resources import ResourceMonitor
            pool = ThreadPoolExecutor(1)
            held = (lambda pool: lambda: pool)(ThreadPoolExecutor(1, thread_name_prefix="unnamed"))
            gc.freeze()
            with ResourceMonitor(interval=0.02) as monitor:
                monitor.discover_all_resources()
                first = [r.id for r in monitor.manager if r.type == "thread_pool"]
                held().submit(int).result()
                deadline = time.monotonic() + 10
                while monitor.manager.of(held()) is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                print(json.dumps([first, [r.id for r in monitor.manager if r.type == "thread_pool"]]))
            """
        )
    )
    first, then = run(tmp_path, "frozen.py")
    assert first == ["frozen.pool"]
    assert then == ["frozen.pool", "thread_pool-unnamed"]


def test_large_data_hides_no_resource_and_takes_no_time(monitor: ResourceMonitor, package: Any) -> None:
    package(
        main="""
            from concurrent.futures import ThreadPoolExecutor
            first = {i: {j: {k: [k] for k in range(60)} for j in "abcdefgh" * 20} for i in map(str, range(60))}
            rows = {f"k{i}": {f"j{j}": {f"m{k}": [k] for k in range(60)} for j in range(60)} for i in range(60)}
            held = {"pool": ThreadPoolExecutor(1)}
        """
    )
    begun = time.thread_time()
    assert "shopapp.main.held.pool" in ours(monitor.discover_all_resources())
    scanned = time.thread_time()
    monitor.discovery.follow(names=True)
    assert time.thread_time() - scanned < scanned - begun, "it is repeated every few seconds"


def test_thousands_of_objects_are_bounded(monitor: ResourceMonitor, caplog: pytest.LogCaptureFixture) -> None:
    pools = [ThreadPoolExecutor(1) for _ in range(1_200)]
    with caplog.at_level(logging.WARNING, "uno.discovery"):
        monitor.discover_resources("thread_pool")
        monitor.discover_resources("thread_pool")
    assert len(monitor.manager) == 1_000
    assert caplog.text.count("more than 1000 resources") == 1
    assert len(pools) == 1_200
