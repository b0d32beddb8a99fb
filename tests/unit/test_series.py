"""The store of series: one instant for all, gaps that stay gaps, batches whole or not at all."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.metrics import CounterCell, GaugeCell, HistogramCell, MetricError, Spec, cell_for
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor, ResourceTypeMonitor
from uno.core.monitoring.series import Batch, SeriesStore
from uno.core.resources import Resource, ResourceManager

DEPTH = Spec("depth", "gauge")
SOLD = Spec("sold", "counter")
WAIT = Spec("wait", "histogram")
QUERIES = Spec("queries", "counter", labels=("kind",))
START = 1_800_000_000.0


def add(store: SeriesStore, spec: Spec, resource: str = "db", labels: tuple[str, ...] = ()) -> Any:
    series = store.add(resource, spec, labels, cell_for(spec))
    assert series is not None
    return series


def commit(store: SeriesStore, *numbers: tuple, resource: str = "db", source: str = "") -> None:
    batch = Batch(resource, source)
    for spec, value, *labels in numbers:
        batch.put(spec, value, *labels)
    store.commit(batch)


def value(store: SeriesStore, metric: str, stat: str | None = None, resource: str = "db") -> float | None:
    (series,) = store.select(resource, metric)
    return store.value(series, stat)


# -- frames --------------------------------------------------------------------------------------------


def test_a_frame_holds_all_series_at_one_instant_and_never_changes() -> None:
    store = SeriesStore()
    depth, sold, wait = add(store, DEPTH), add(store, SOLD), add(store, WAIT)
    depth.cell.value, sold.cell.value = 4.0, 10.0
    wait.cell.observe(0.5)
    frame = store.tick(START)
    depth.cell.value, sold.cell.value = 9.0, 90.0

    assert (frame.time, frame.seq, frame.version) == (START, 1, store.version)
    assert store.value(depth) == 4
    assert store.stats(sold) == {"rate": None, "total": 10}
    assert store.stats(wait) == {
        "p95": pytest.approx(0.5, rel=0.01),
        "mean": 0.5,
        "max": 0.5,
        "rate": None,
        "count": 1,
        "sum": 0.5,
    }
    assert frame.row.tolist()[:2] == frame.values[:2] == [4, 10]

    later = store.tick(START + 2)
    assert later.seq == 2
    assert store.value(sold) == 40  # (90 - 10) / 2 s
    assert store.value(wait, "rate") == 0
    assert store.value(wait, "p95") is None  # nothing was observed in this tick
    assert frame.values[0] == 4


def test_what_was_never_read_is_a_gap() -> None:
    store = SeriesStore()
    add(store, DEPTH)
    assert value(store, "depth") is None  # before the first tick
    store.tick(START)
    assert value(store, "depth") is None
    late = add(store, Spec("late", "gauge"))
    assert store.value(late) is None  # its column is not in the last frame


def test_an_unknown_statistic_names_those_there_are() -> None:
    store = SeriesStore()
    with pytest.raises(MetricError, match="rate, total, not 'p95'"):
        store.value(add(store, SOLD), "p95", store.tick(START))


def test_gather_reads_many_at_once_with_gaps() -> None:
    store = SeriesStore()
    depth, sold = add(store, DEPTH), add(store, SOLD)
    frame = store.tick(START)
    sold.cell.value, depth.cell.value = 6.0, 2.0
    frame = store.tick(START + 3)
    late = add(store, Spec("late", "gauge"))
    selectors = [store.selector(s) for s in (depth, sold, late)] + [store.selector(sold, "total")]
    assert store.gather(frame, []).tolist() == []
    found = store.gather(frame, selectors)
    assert found[[0, 1, 3]].tolist() == [2, 2, 6]
    assert np.isnan(found[2])


def test_nonsense_in_a_cell_is_a_gap_for_that_series_alone() -> None:
    store = SeriesStore()
    bad, good = add(store, DEPTH), add(store, Spec("good", "gauge"))
    bad.cell.value, good.cell.value = "many", 1.0
    store.tick(START)
    assert (store.value(bad), store.value(good), store.bad_values) == (None, 1, 1)


def test_the_version_changes_when_series_come_and_go_and_not_otherwise() -> None:
    store = SeriesStore()
    seen = [store.version]
    add(store, DEPTH)
    seen.append(store.version)
    add(store, SOLD)
    seen.append(store.version)
    store.remove("db")
    seen.append(store.version)
    assert seen == sorted(set(seen))
    commit(store, (DEPTH, 1))
    before = store.version
    commit(store, (DEPTH, 2))
    store.tick(START)
    assert store.version == before


def test_series_are_found_by_resource_model_name_and_prometheus_name() -> None:
    store = SeriesStore()
    store.add("db", Spec("db.client.wait", "counter", unit="s"), (), CounterCell())
    store.add("cache", DEPTH, (), GaugeCell())
    assert [s.key for s in store.select("db")] == ["db|db.client.wait|"]
    assert store.select(metric="db_client_wait_seconds_total") == store.select("db", "db.client.wait")
    assert store.select("nobody") == []
    assert len(store.all()) == len(store) == 2


def test_one_name_is_one_kind() -> None:
    store = SeriesStore()
    add(store, DEPTH)
    with pytest.raises(MetricError, match="is a gauge already, not a counter"):
        add(store, Spec("depth", "counter"))


def test_beyond_the_bound_series_are_refused_and_counted(caplog) -> None:
    store = SeriesStore(max_series=3)
    for i in range(10):
        store.add("db", QUERIES, (str(i),), CounterCell())
    commit(store, (DEPTH, 1))
    assert (len(store), store.refused) == (3, 8)
    assert len(caplog.records) == 1


# -- totals --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=20))
def test_given_totals_grow_through_resets_and_gaps(totals) -> None:
    store = SeriesStore()
    grown, last = 0, 0
    before: float | None = None
    for i, total in enumerate(totals):
        commit(store, (SOLD, total))
        store.tick(START + i)
        if total is None:
            assert value(store, "sold", "total") is None
            assert value(store, "sold", "rate") is None
            before = None
            continue
        grown += total - last if total >= last else total
        last = total
        assert value(store, "sold", "total") == grown
        assert value(store, "sold", "rate") == (None if before is None else grown - before)
        before = grown


# -- batches -------------------------------------------------------------------------------------------


def test_what_a_batch_no_longer_names_becomes_a_gap() -> None:
    store = SeriesStore()
    commit(store, (DEPTH, 1), (QUERIES, 5, {"kind": "read"}), (QUERIES, 6, {"kind": "write"}))
    commit(store, (QUERIES, 7, {"kind": "read"}))
    store.tick(START)
    found = {s.labels: store.value(s, "total") for s in store.select("db", "queries")}
    assert found == {("read",): 7, ("write",): None}
    assert value(store, "depth") is None
    commit(store, (DEPTH, 3), (QUERIES, 8, {"kind": "read"}), (QUERIES, 9, {"kind": "write"}))
    store.tick(START + 1)
    found = {s.labels: store.value(s, "total") for s in store.select("db", "queries")}
    assert found == {("read",): 8, ("write",): 9}


def test_a_failed_collection_blanks_what_it_read_and_nothing_else() -> None:
    store = SeriesStore()
    hooked = CounterCell()
    hooked.inc(7)
    commit(store, (DEPTH, 1), (SOLD, 5), source="a")
    commit(store, (Spec("hooked", "counter"), hooked), (Spec("other", "gauge"), 2), source="b")
    store.blank("db", "a")
    store.tick(START)
    assert (value(store, "depth"), value(store, "sold", "total"), value(store, "other")) == (None, None, 2)
    store.blank("db", "b")
    hooked.inc()
    store.tick(START + 1)
    assert value(store, "other") is None
    assert value(store, "hooked", "total") == 8  # hooks go on counting although nobody could read
    commit(store, (DEPTH, 1), (SOLD, 6), source="a")
    store.tick(START + 2)
    assert value(store, "sold", "total") == 6


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (SOLD, -1),
        (SOLD, math.inf),
        (WAIT, math.inf),
        (DEPTH, "3"),
        (DEPTH, object()),
        (DEPTH, [1]),
        (DEPTH, 10**400),
    ],
    ids=["negative", "inf", "wait-inf", "text", "object", "list", "huge"],
)
def test_a_bad_number_is_refused_where_it_is_given(spec, wrong) -> None:
    batch = Batch("db")
    with pytest.raises(MetricError, match=spec.name):
        batch.put(spec, wrong)
    assert batch.values == {}


@pytest.mark.parametrize(
    ("spec", "labels", "words"),
    [
        (QUERIES, None, "needs the labels"),
        (QUERIES, {"sort": "read"}, "sort"),
        (DEPTH, {"kind": "read"}, "kind"),
        (QUERIES, {"kind": object()}, "not object"),
    ],
    ids=["none", "another", "too many", "no text"],
)
def test_wrong_labels_are_refused_where_they_are_given(spec, labels, words) -> None:
    with pytest.raises(MetricError, match=words):
        Batch("db").put(spec, 1, labels)


def test_a_batch_that_clashes_changes_no_number() -> None:
    store = SeriesStore()
    commit(store, (DEPTH, 1), (SOLD, 5))
    add(store, Spec("clash", "counter"))
    with pytest.raises(MetricError, match="clash"):
        commit(store, (DEPTH, 2), (SOLD, 9), (Spec("new", "counter"), 3), (Spec("clash", "gauge"), 1))
    store.tick(START)
    assert (value(store, "depth"), value(store, "sold", "total")) == (1, 5)
    assert value(store, "new", "total") is None


@pytest.mark.parametrize(
    ("given_value", "kept"), [(None, None), (math.nan, None), (True, 1), (Decimal("1.5"), 1.5)]
)
def test_numbers_of_any_kind(given_value, kept) -> None:
    store = SeriesStore()
    commit(store, (DEPTH, given_value))
    store.tick(START)
    assert value(store, "depth") == kept


def test_a_shared_cell_is_read_and_never_copied() -> None:
    store = SeriesStore()
    cell = HistogramCell()
    commit(store, (WAIT, cell))
    cell.observe(0.1)
    commit(store, (WAIT, cell))
    store.tick(START)
    assert value(store, "wait", "count") == 1
    other = HistogramCell()
    commit(store, (WAIT, other))  # the library replaced it
    other.observe(0.1)
    other.observe(0.1)
    store.tick(START + 1)
    assert value(store, "wait", "count") == 2


# -- coming and going ----------------------------------------------------------------------------------


def test_a_removed_resource_leaves_and_may_come_back() -> None:
    store = SeriesStore()
    first = add(store, DEPTH)
    add(store, WAIT)
    store.remove("db")
    assert store.all() == store.select("db") == []
    assert not first.live
    store.tick(START)
    again = add(store, DEPTH)
    assert again is first
    assert again.live


def test_a_column_is_not_lost_when_a_metric_changes_its_definition() -> None:
    store = SeriesStore()
    keep = add(store, Spec("keep", "gauge"), resource="keep")
    keep.cell.value = 5.0
    for i in range(3_000):
        add(store, Spec("depth", "gauge", description=str(i)))
        store.remove("db")
        if i % 100 == 0:
            store.tick(START + i)
    frame = store.tick(START + 9_000)
    assert len(frame.row) < 1_500
    assert store.value(keep) == 5


def test_many_series_are_added_in_little_time() -> None:
    store = SeriesStore()
    counter = Counter("requests", labels=["user"])
    store.attach("db", counter)
    began = time.process_time()
    for resource in range(20):
        for i in range(500):
            store.add(f"r{resource}", QUERIES, (str(i),), CounterCell())
    assert time.process_time() - began < 2  # it was quadratic once: 5 s
    for i in range(900):
        counter.labels(str(i)).inc()
    assert len(store) == 10_900


def test_series_appear_while_the_clock_ticks() -> None:
    store = SeriesStore()
    counter = Counter("requests", labels=["user"])
    store.attach("db", counter)
    done = threading.Event()

    def work() -> None:
        for i in range(900):
            counter.labels(str(i)).inc()
            if i % 50 == 0:
                commit(store, (QUERIES, i, {"kind": str(i)}), resource=f"r{i}")
            if i % 90 == 0:
                store.remove(f"r{i - 50}")
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    now = START
    while not done.is_set():
        now += 1
        frame = store.tick(now)
        assert len(frame.row) == len(frame.rates) == len(frame.counting)
    worker.join(10)
    store.tick(now + 1)
    assert sum(store.value(s, "total") or 0 for s in store.select("db", "requests")) == 900


# -- through the monitor: whose value is it? -----------------------------------------------------------


class Queue:
    def __init__(self, number: int) -> None:
        self.number = number


class QueueMonitor(ResourceTypeMonitor):
    """Yields to others in the middle of its reading, as every real collector does."""

    def __init__(self, manager: ResourceManager, *, wait: bool) -> None:
        super().__init__(manager, resource_type="shelf")
        self.wait = wait
        self.overlapping = self.most = 0

    def setup_metrics(self) -> None:
        self.add_metric("number", "What it is", metric_type="gauge")
        self.add_metric("number_again", "The same, read later", metric_type="counter", labels=["shelf"])

    async def collect_metrics(self, resource: Resource) -> None:
        self.overlapping += 1
        self.most = max(self.most, self.overlapping)
        number = resource.target.number
        self.update_metric("number", number)
        await asyncio.sleep(0.01)
        self.update_metric("number_again", number, labels={"shelf": resource.name})
        if number == 13:
            raise RuntimeError("unlucky")
        self.overlapping -= 1


class BlockingQueueMonitor(QueueMonitor):
    def collect_metrics(self, resource: Resource) -> None:  # type: ignore[override]
        number = resource.target.number
        self.update_metric("number", number)
        time.sleep(0.005)
        self.update_metric("number_again", number, labels={"shelf": resource.name})


@pytest.mark.parametrize("kind", [QueueMonitor, BlockingQueueMonitor])
def test_two_resources_read_at_once_never_mix(kind) -> None:
    manager = ResourceManager()
    for i in range(20, 40):
        manager.register(Queue(i), id=f"shelf-{i}", type="shelf")
    monitor = ResourceMonitor(manager, interval=1.0)
    type_monitor = kind(manager, wait=True)
    monitor.register_type_monitor(type_monitor)
    try:
        for _ in range(3):
            monitor.tick()
        for i in range(20, 40):
            assert monitor.read(f"shelf-{i}", "number") == i
            assert monitor.read(f"shelf-{i}", "number_again", stat="total") == i
            (reading,) = monitor.series(f"shelf-{i}", "number_again")
            assert reading.labels == {"shelf": f"shelf-{i}"}
        if kind is QueueMonitor:
            assert type_monitor.most > 1  # they really were read at once
    finally:
        monitor.stop()


def test_a_collector_that_fails_half_way_gives_nothing() -> None:
    manager = ResourceManager()
    manager.register(Queue(13), id="shelf", type="shelf")
    monitor = ResourceMonitor(manager)
    monitor.register_type_monitor(QueueMonitor(manager, wait=True))
    try:
        monitor.tick()
        assert monitor.read("shelf", "number") is None
        assert monitor.series("shelf", "number") == []
    finally:
        monitor.stop()


READ = (
    Spec("plain", "gauge"),
    Spec("asked", "gauge", merge="max"),
    Spec("labelled", "gauge", labels=("a",)),
    Spec("total", "counter"),
    Spec("totals", "counter", labels=("a",)),
    Spec("seconds", "histogram"),
)
_given = st.sampled_from(
    [None, 0, 3, 2.5, -1, math.inf, math.nan, True, Decimal("1.5"), "cell", "other cell"]
)
_label = st.sampled_from(["1", 1, True, "True"])
_reading = st.dictionaries(st.tuples(st.sampled_from(READ), _label), _given, min_size=3, max_size=12)
#: What each tick reads, None where that fails; how often; whether series are withdrawn while it does.
_readings = st.lists(
    st.tuples(st.one_of(st.none(), _reading, _reading), st.integers(1, 3), st.booleans()), max_size=6
)


class Told(ResourceTypeMonitor):
    """Reads what the test says."""

    blocking = False
    metrics = READ

    def __init__(self) -> None:
        super().__init__(None, "told")
        self.reading: list[tuple[Spec, object, dict[str, Any] | None]] | None = []
        self.meanwhile: Callable[[], None] = lambda: None

    def collect_metrics(self, resource: Resource) -> None:
        for spec, number, labels in self.reading or ():
            self.update_metric(spec.name, number, labels, at_server=spec.merge == "max")
        self.meanwhile()
        if self.reading is None:
            raise RuntimeError("nothing was read")


def withdraw(store: SeriesStore, source: str) -> None:
    store.withdraw("db", source, lambda spec, labels: spec.name in ("labelled", "plain"))


@settings(max_examples=50, deadline=None)
@given(_readings)
def test_what_is_read_again_and_again_is_what_is_read_once(readings: list[Any]) -> None:
    """A series that is found by its words gets what it would get by its definition."""
    monitor, plain, told = ResourceMonitor(), SeriesStore(), Told()
    monitor.manager.register(object(), id="db", type="told")
    monitor.register_type_monitor(told)
    kinds = {"counter": CounterCell, "gauge": GaugeCell, "histogram": HistogramCell}
    cells: dict[object, tuple[Any, Any]] = {}  # for the monitor, for the plain store
    failed = False
    try:
        for reading, withdrawn in [(r, gone) for r, times, gone in readings for _ in range(times)]:
            told.meanwhile = partial(withdraw, monitor.store, "Told-0") if withdrawn else lambda: None
            if reading is None and failed:  # it would not be asked again at once
                reading = {}
            failed = reading is None
            told.reading, batch, seen = (None if failed else []), Batch("db"), set()
            for (spec, label), number in (reading or {}).items():
                labels = {"a": label} if spec.labels else None
                if (spec, str(label) if labels else "") in seen:
                    continue
                seen.add((spec, str(label) if labels else ""))
                if isinstance(number, str):
                    make = kinds[spec.kind]
                    pair = cells.setdefault((spec, str(label), number), (make(), make()))
                else:
                    pair = number, number
                try:
                    batch.put(spec, pair[1], labels)
                except MetricError:
                    continue  # a counter that falls, for one
                assert told.reading is not None
                told.reading.append((spec, pair[0], labels))
            if withdrawn:
                withdraw(plain, "")
            if failed:
                plain.blank("db")
            else:
                plain.commit(batch)
            monitor.tick()
            frame = plain.tick(START)
            assert monitor.store.frame is not None
            columns = (
                {(s.key, i): repr(f.values[s.column + i]) for s in store.select("db") for i in range(s.width)}
                for store, f in ((monitor.store, monitor.store.frame), (plain, frame))
            )
            assert next(columns) == next(columns)
    finally:
        monitor.stop()


def test_a_value_without_a_resource_is_refused() -> None:
    type_monitor = QueueMonitor(ResourceManager(), wait=False)
    type_monitor.ensure_set_up()
    with pytest.raises(RuntimeError, match="inside collect_metrics only"):
        type_monitor.update_metric("number", 1)


def test_the_applications_metric_is_a_series_of_its_resource() -> None:
    manager = ResourceManager()
    manager.register(Queue(1), id="shelf", type="shelf")
    monitor = ResourceMonitor(manager)
    gauge = monitor.add_metric("shelf", Gauge("in_stock", labels=["size"]))
    gauge.labels("L").set(3)
    monitor.tick()
    assert monitor.read("shelf", "in_stock") == 3
    gauge.labels("M").set(4)
    monitor.tick()
    assert monitor.read("shelf", "in_stock", {"size": "M"}) == 4
    monitor.stop()


def test_a_removed_series_leaves_all_readers_and_comes_back_with_its_history() -> None:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    gauge = monitor.add_metric("shop", Gauge("in_stock", labels=["size"]))
    wait = monitor.add_metric("shop", Histogram("wait", labels=["size"]))
    for size in "LM":
        gauge[size].set(3)
        wait[size].observe(1)
    monitor.tick()
    version = monitor.store.version
    gauge.remove("L")
    wait.remove_by_labels({"size": "L"})
    assert monitor.store.version > version
    for _ in range(2):
        assert [s.labels for s in monitor.store.select("shop", "in_stock")] == [("M",)]
        assert [s.labels for s in monitor.store.select("shop", "wait")] == [("M",)]
        assert monitor.read("shop", "in_stock", {"size": "M"}) == 3
        monitor.tick()
    gauge["L"].set(4)
    wait["L"].observe(1)
    monitor.tick()
    assert monitor.read("shop", "in_stock", {"size": "L"}) == 4
    assert monitor.read("shop", "wait", {"size": "L"}, stat="count") == 1
    gauge.clear()
    wait.clear()
    monitor.tick()
    assert monitor.store.select("shop", "in_stock") == monitor.store.select("shop", "wait") == []
    monitor.stop()


def test_series_that_come_and_go_stay_bounded_while_the_monitor_ticks() -> None:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    counter = monitor.add_metric("shop", Counter("orders", labels=["customer"]))
    for n in range(6_000):
        counter[str(n)].inc()
        counter.remove(str(n))
        if n % 200 == 0:
            monitor.tick()
    monitor.tick()
    assert monitor.store.frame is not None
    assert len(monitor.store.frame.values) < 2_500
    assert monitor.store.select("shop", "orders") == []
    monitor.stop()
