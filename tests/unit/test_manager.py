"""Does the manager know what exists, and say what is wrong in words that help?"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from uno.core.monitoring.resources import Counter, ResourceMonitor
from uno.core.resources import (
    DuplicateResourceError,
    GoneError,
    Resource,
    ResourceError,
    ResourceManager,
    UnknownResourceError,
)
from uno.core.resources.resource import ID
from uno.core.resources.workers import OverloadedError, Workers


class Thing:
    """A custom resource without anything."""


def _same(value: Any) -> Any:
    return value


class Counted:
    def __init__(self) -> None:
        self.threads: list[str] = []

    def get_statistics(self) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        return {"open": 3, "ratio": 0.5, "unknown": None, "text": "secret"}

    def ping(self) -> bool:
        return True


@pytest.fixture
def manager() -> ResourceManager:
    return ResourceManager()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.005)


# -- what is there -------------------------------------------------------------------------------------


def test_register_get_iterate_unregister(manager: ResourceManager) -> None:
    one, two = Thing(), Thing()
    first = manager.register(
        one, id="first", name="The First", labels={"team": "orders"}, depends_on=["later"]
    )
    second = manager.register(two, id="second", depends_on=[first])
    assert isinstance(first, Resource)
    assert (first.id, first.name, first.type, first.endpoint) == ("first", "The First", "custom", None)
    assert (first.labels, first.depends_on, second.depends_on) == ({"team": "orders"}, ("later",), ("first",))
    assert first.target is one
    assert [r.id for r in manager] == ["first", "second"]
    assert len(manager) == 2
    assert "first" in manager
    assert first in manager
    assert "third" not in manager
    assert one not in manager  # an object is no id; of() finds it
    assert manager.get("first") is first
    assert manager.of(one) is first
    assert manager.of(Thing()) is None
    assert manager.by_type("custom") == [first, second]
    assert manager.unregister("first") is first
    assert manager.unregister(second) is second
    assert len(manager) == 0
    assert first not in manager


def test_what_was_unregistered_may_return_and_an_old_resource_removes_no_new_one(
    manager: ResourceManager,
) -> None:
    thing = Thing()
    old = manager.register(thing, id="x")
    manager.unregister("x")
    new = manager.register(thing, id="x")
    with pytest.raises(UnknownResourceError):
        manager.unregister(old)
    assert manager.get("x") is new


@pytest.mark.parametrize(
    ("make", "type", "endpoint"),
    [
        (lambda: sqlalchemy.create_engine("sqlite://"), "database", ""),
        (lambda: ThreadPoolExecutor(1), "thread_pool", None),
        (lambda: asyncio.Queue(), "task_queue", None),
        (lambda: httpx.Client(base_url="http://user:hunter2@upstream.example:8080/v1"), "http_client", ""),
        (Thing, "custom", None),
        (lambda: {"a": 1}, "custom", None),
    ],
)
def test_types_are_recognised(
    manager: ResourceManager, make: Callable[[], Any], type: str, endpoint: str | None
) -> None:
    obj = make()
    resource = manager.register(obj)
    assert resource.type == type
    assert ID.match(resource.id)
    assert "0x" not in resource.id, "readable, no address"
    if endpoint is None:
        assert resource.endpoint is None
    assert "hunter2" not in repr(resource) + (resource.endpoint or "") + resource.name + repr(resource.labels)
    close = getattr(obj, "close", None) or getattr(obj, "dispose", None)
    if close is not None:
        close()


def test_a_subclass_is_what_its_base_is(manager: ResourceManager) -> None:
    class Pool(ThreadPoolExecutor):
        pass

    with Pool(1) as pool:
        assert manager.register(pool).type == "thread_pool"
    with ThreadPoolExecutor(1) as other:
        assert manager.register(other, type="workers").type == "workers", "the application's word wins"


def test_ids_are_made_readable_and_unique(manager: ResourceManager) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mail sender") as one, ThreadPoolExecutor(1) as two:
        ids = [manager.register(one).id, manager.register(two).id]
    ids += [manager.register(Thing()).id for _ in range(3)]
    ids += [manager.register(None, read=lambda: 1).id, manager.register(Thing(), name="Orders").id]
    ids += [manager.register(Thing(), name="has a space").id, manager.register(Thing(), type="cache").id]
    assert ids == [
        "mail-sender", "thread-pool", "thing", "thing-2", "thing-3", "custom", "Orders", "thing-4", "cache",
    ]  # fmt: skip
    assert manager.get("thing-4").name == "has a space"


# -- misuse --------------------------------------------------------------------------------------------


def test_duplicates(manager: ResourceManager) -> None:
    thing = Thing()
    manager.register(thing, id="main-db")
    with pytest.raises(
        DuplicateResourceError, match=r"'main-db' is registered already.*unregister"
    ) as caught:
        manager.register(Thing(), id="main-db")
    assert caught.value.id == "main-db"
    with pytest.raises(
        DuplicateResourceError, match=r"registered already, as 'main-db'.*before 'other'"
    ) as caught:
        manager.register(thing, id="other")
    assert caught.value.id == "main-db", "the object is known under another id"
    assert [r.id for r in manager] == ["main-db"]
    assert isinstance(caught.value, ValueError)


SECRET = "postgresql://uno:c4n4ry@db/shop"


@pytest.mark.parametrize(
    "words",
    [{"id": SECRET}, {"name": SECRET}, {"type": SECRET}, {"labels": {"dsn": SECRET}}, {"labels": {SECRET: "x"}},
     {"depends_on": [SECRET]}, {"depends_on": SECRET}],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_wherever_it_is_shown(
    manager: ResourceManager, words: dict[str, Any]
) -> None:
    with pytest.raises(ResourceError) as caught:
        manager.register(Thing(), **words)
    assert "c4n4ry" not in str(caught.value)
    assert len(manager) == 0
    with pytest.raises(UnknownResourceError) as unknown:
        manager.get(SECRET)
    assert "c4n4ry" not in str(unknown.value)


async def test_what_names_itself_by_an_address_shows_no_password(manager: ResourceManager) -> None:
    resource = manager.register(None, id="odd", read=lambda: {SECRET: 1})
    assert await resource.get_statistics() == {"postgresql://***@db/shop": 1}
    counter = Counter("queries", labels=["dsn"])
    counter.labels(SECRET).inc()
    counter[SECRET].inc()
    assert [(labels, cell.value) for labels, cell in counter.cells()] == [(("postgresql://***@db/shop",), 2)]


async def test_statistics_without_any_number_are_told(manager: ResourceManager) -> None:
    resource = manager.register(None, id="odd", read=lambda: {"pool": {"used": 1}})
    with pytest.raises(ResourceError, match="'odd': none of its statistics is a number by name: 'pool'"):
        await resource.get_statistics()


def test_unknown_ids_name_near_ones(manager: ResourceManager) -> None:
    with pytest.raises(UnknownResourceError, match="no resource 'x' is registered"):
        manager.get("x")
    for id in ("main-db", "main-cache", "orders"):
        manager.register(Thing(), id=id)
    with pytest.raises(UnknownResourceError, match="Did you mean 'main-db'") as caught:
        manager.get("maindb")
    assert caught.value.id == "maindb"
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownResourceError, match="Known: main-cache, main-db, orders"):
        manager.unregister("zzz")
    for wrong in (None, 5, ["main-db"]):
        with pytest.raises(UnknownResourceError):
            manager.get(wrong)  # type: ignore[arg-type]


@given(st.text(max_size=140) | st.integers() | st.binary(max_size=3) | st.tuples(st.text()))
def test_an_id_is_good_or_refused(id: Any) -> None:
    manager = ResourceManager()
    good = isinstance(id, str) and ID.match(id) is not None
    if good:
        assert manager.register(Thing(), id=id) is manager.get(id)
        return
    with pytest.raises(ResourceError, match="bad resource id"):
        manager.register(Thing(), id=id)
    assert len(manager) == 0


@pytest.mark.parametrize("id", ["", " ", "a b", "-a", "a\n", "ä", "a" * 121, "a\0"])
def test_bad_ids(manager: ResourceManager, id: str) -> None:
    with pytest.raises(ResourceError, match="for example 'main-db'"):
        manager.register(Thing(), id=id)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"labels": {"a": 1}}, "str to str"),
        ({"labels": {1: "a"}}, "str to str"),
        ({"labels": ["a"]}, "labels="),
        ({"labels": {"__name__": "a"}}, "the label '__name__' .*choose another name"),
        ({"labels": {"resource": "a"}}, "the label 'resource' .*choose another name"),
        ({"labels": {"le": "a"}}, "the label 'le'"),
        ({"labels": {"": "a"}}, "the label ''"),
        ({"depends_on": "main-db"}, r"depends_on=\['main-db'\]"),
        ({"depends_on": [5]}, "ids"),
        ({"depends_on": ["not an id"]}, "ids"),
        ({"depends_on": 5}, "ids"),
        ({"type": ""}, "bad resource type"),
        ({"type": "two words"}, "bad resource type"),
        ({"type": 5}, "bad resource type"),
        ({"read": 5}, "read= is a function"),
    ],
)
def test_bad_arguments_change_nothing(manager: ResourceManager, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        manager.register(Thing(), id="x", **wrong)
    assert len(manager) == 0
    with pytest.raises(ResourceError, match="read="):
        manager.register(None)


def test_one_resource_as_dependency(manager: ResourceManager) -> None:
    database = manager.register(Thing(), id="db")
    with pytest.raises(ResourceError, match="sequence"):
        manager.register(Thing(), depends_on=database)  # type: ignore[arg-type]


# -- numbers and pings ---------------------------------------------------------------------------------


async def test_statistics_of_custom_resources(manager: ResourceManager) -> None:
    class Async:
        async def get_statistics(self) -> dict[str, float]:
            return {"value": 4}

        async def ping(self) -> bool:
            return False

    counted = Counted()
    plain = manager.register(counted)
    assert await plain.get_statistics() == {"open": 3.0, "ratio": 0.5, "unknown": None}
    assert counted.threads == ["uno-worker"], "it may block, so it must not run on the application's loop"
    assert await plain.ping() is True
    other = manager.register(Async())
    assert await other.get_statistics() == {"value": 4.0}
    assert await other.ping() is False
    nothing = manager.register(Thing())
    assert await nothing.get_statistics() == {}
    assert await nothing.ping() is None


async def test_read_functions(manager: ResourceManager) -> None:
    async def of_loop() -> int:
        return 7

    numbers: dict[str, Any] = {
        "d": Decimal("1.5"),
        "n": np.int64(3),
        "f": np.float32(0.5),
        "a": np.zeros(3),
        "b": True,
    }
    cases: list[tuple[Any, dict[str, float]]] = [
        (lambda: 5, {"value": 5.0}),
        (of_loop, {"value": 7.0}),
        (lambda: of_loop(), {"value": 7.0}),  # a plain function that gives a coroutine
        (lambda: numbers, {"d": 1.5, "n": 3.0, "f": 0.5, "b": 1.0}),
        (lambda: Decimal(2), {"value": 2.0}),
        (dict, {}),
    ]
    for read, expected in cases:
        resource = manager.register(None, read=read)
        assert await resource.get_statistics() == expected
    for nonsense in ("text", None, [1], object(), True):
        resource = manager.register(None, read=partial(_same, nonsense))
        with pytest.raises(ResourceError, match="mapping of names to numbers"):
            await resource.get_statistics()


async def test_what_the_application_raises_arrives(manager: ResourceManager) -> None:
    class Broken:
        def get_statistics(self) -> dict[str, float]:
            raise LookupError("statistics")

        async def ping(self) -> bool:
            raise ConnectionError("ping")

    resource = manager.register(Broken())
    with pytest.raises(LookupError, match="statistics"):
        await resource.get_statistics()
    with pytest.raises(ConnectionError, match="ping"):
        await resource.ping()


async def test_a_database_has_its_totals(manager: ResourceManager, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/shop.sqlite")
    resource = manager.register(engine)
    found = await resource.get_statistics()
    assert {"total_queries", "slow_queries"} <= found.keys()
    assert await resource.ping() is True
    engine.dispose()


def test_a_discovered_object_that_is_gone(manager: ResourceManager) -> None:
    pool = ThreadPoolExecutor(1)
    driver = manager.kinds.driver_of(pool)
    assert driver is not None
    resource = manager.discovered(pool, driver, id="pool", how="found")
    assert resource is not None
    assert manager.discovered(pool, driver, id="pool", how="found") is None, "known already"
    pool.shutdown()
    del pool
    with pytest.raises(GoneError, match="'pool'"):
        asyncio.run(resource.get_statistics())
    manager.sweep()
    assert len(manager) == 0


def test_registered_by_name_after_it_was_discovered(manager: ResourceManager) -> None:
    with ThreadPoolExecutor(1) as pool:
        driver = manager.kinds.driver_of(pool)
        assert driver is not None
        manager.discovered(pool, driver, id="app.pool", how="found")
        same = manager.register(pool, id="app.pool", labels={"team": "mail"})
        assert list(manager) == [same]
        manager.unregister(same)
        manager.discovered(pool, driver, id="app.pool", how="found")
        named = manager.register(pool, id="mail")
        assert list(manager) == [named], "one object is one resource; the application's word wins"


# -- many at a time ------------------------------------------------------------------------------------


def test_readers_and_writers_at_once(manager: ResourceManager) -> None:
    stop = threading.Event()
    wrong: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                for resource in manager:
                    assert resource.type == "custom"
                assert len(manager) >= 0
                "w0-3" in manager  # noqa: B015
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            wrong.append(error)

    def write(number: int) -> None:
        try:
            for n in range(100):
                manager.register(Thing(), id=f"w{number}-{n}")
            for n in range(100):
                manager.unregister(f"w{number}-{n}")
            for _ in range(50):
                manager.register(Thing())  # made ids never clash
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert len(manager) == 200


def test_an_iteration_is_of_one_moment(manager: ResourceManager) -> None:
    for n in range(5):
        manager.register(Thing(), id=f"r{n}")
    seen = [manager.unregister(resource).id for resource in manager]
    assert seen == ["r0", "r1", "r2", "r3", "r4"]


def test_listeners_hear_of_everything_in_order(manager: ResourceManager) -> None:
    heard: list[tuple[str, str]] = []
    stop = manager.listen(lambda event, resource: heard.append((event, resource.id)))
    thing = Thing()
    manager.register(thing, id="a")
    manager.unregister("a")
    stop()
    manager.register(thing, id="b")
    assert heard == [("added", "a"), ("removed", "a")]


def test_an_empty_manager_is_used_all_the_same() -> None:
    manager = ResourceManager()
    assert len(manager) == 0
    monitor = ResourceMonitor(manager)
    assert monitor.manager is manager
    with pytest.raises(TypeError, match="ResourceManager"):
        ResourceMonitor({})  # type: ignore[arg-type]


# -- workers -------------------------------------------------------------------------------------------


def test_workers_are_few_and_go_when_idle() -> None:
    workers = Workers(max_threads=2, idle=0.1)
    before = threading.active_count()
    assert [workers.submit(lambda: 5).result(5) for _ in range(20)] == [5] * 20
    assert threading.active_count() <= before + 2
    until(lambda: threading.active_count() == before)
    assert workers.submit(lambda: 6).result(5) == 6, "and come again"
    workers.close()
    until(lambda: threading.active_count() == before)


def test_hung_workers_are_bounded_and_said() -> None:
    workers = Workers(max_threads=2, idle=0.1)
    release = threading.Event()
    hung = [workers.submit(release.wait) for _ in range(2)]
    with pytest.raises(OverloadedError, match="all 2 worker threads are busy"):
        workers.submit(lambda: 1).result(5)
    release.set()
    assert [future.result(5) for future in hung] == [True, True]

    def again() -> bool:
        try:
            return workers.submit(lambda: True).result(5)
        except OverloadedError:
            return False

    until(again)
    workers.close()


def test_workers_run_in_the_callers_context_and_pass_errors_on() -> None:
    import contextvars

    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("caller")
    workers = Workers(max_threads=1)
    assert workers.submit(name.get).result(5) == "caller"

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        workers.submit(leave).result(5)
    assert workers.submit(lambda: 1).result(5) == 1, "the thread lives on"
    workers.close()


def test_many_submitters() -> None:
    workers = Workers(max_threads=4, idle=0.05)
    done: list[int] = []

    def submit(n: int) -> None:
        for k in range(50):
            try:
                done.append(workers.submit(partial(_same, k)).result(5))
            except OverloadedError:
                done.append(-1)
            if k % 10 == 0:
                time.sleep(0.06)  # beyond the idle time, while others submit

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 200, "no job is lost when a thread leaves"
    assert -1 not in done
    workers.close()
