"""What the instruments offer besides counting: families, native buckets, exemplars, with blocks and decorators."""

from __future__ import annotations

import asyncio
import copy
import enum
import math
import sys
import time
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring import names
from uno.core.monitoring.buckets import (
    FINEST,
    MOST_NATIVE,
    ZERO_THRESHOLD,
    NativeBuckets,
    native_bound,
    native_index,
    native_merge,
    native_of,
)
from uno.core.monitoring.metrics import CounterCell, HistogramCell, MetricError, Spec
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor

finite = st.floats(allow_nan=False, allow_infinity=False)


# -- families ------------------------------------------------------------------------------------------


def test_only_plain_text_is_kept_as_a_key() -> None:
    counter = Counter("a", labels=["n"])
    for value in (True, 1, 1.0, "1", "True", False, 0, np.str_("1")):
        counter[value].inc()
    assert {labels: cell.value for labels, cell in counter.cells()} == {
        ("True",): 2, ("1",): 3, ("1.0",): 1, ("False",): 1, ("0",): 1,
    }  # fmt: skip
    assert {type(key) for key in counter} == {str}


def test_text_with_a_mind_of_its_own_is_taken_as_its_characters() -> None:
    class Shout(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "HA"

        def __hash__(self) -> int:
            return 7

    class Colour(str, enum.Enum):  # noqa: UP042 - as applications have them
        RED = "red"

    counter = Counter("a", labels=["n", "m"])
    counter[Shout("x"), Colour.RED].inc()
    counter.labels(m=Colour.RED, n=Shout("x")).inc()
    assert [labels for labels, _ in counter.cells()] == [("x", "red")]
    assert all(type(text) is str for labels, _ in counter.cells() for text in labels)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.one_of(st.text(), st.integers(), st.booleans(), finite)),
        max_size=30,
    )
)
def test_any_labels_lead_to_the_same_cell_in_every_way(pairs) -> None:
    counter = Counter("a", labels=["b", "class"]), Counter("a", labels=["b", "c"])
    for one, two in pairs:
        for family, name in zip(counter, ("class", "c"), strict=True):
            cell = family[one, two]
            assert family.labels(one, two) is cell
            assert family.labels(**{"b": one, name: two}) is cell
            cell.inc()
    for family in counter:
        assert sum(cell.value for cell in family.values()) == len(pairs)
        assert all(len(text) <= 200 for labels, _ in family.cells() for text in labels)


def test_a_family_is_no_dict_to_write_to() -> None:
    counter = Counter("a", labels=["n"])
    counter["x"].inc()
    for misuse in (
        lambda: counter.__setitem__("y", CounterCell()), counter.popitem, lambda: counter.pop("x"),
        lambda: counter.update(y=1), lambda: counter.setdefault("y", 1), lambda: copy.copy(counter),
        lambda: copy.deepcopy(counter), lambda: counter.__delitem__("x"), lambda: counter | {},
    ):  # fmt: skip
        with pytest.raises(TypeError, match="series come from"):
            misuse()
    assert list(counter) == ["x"]
    assert counter
    assert counter != Counter("a", labels=["n"])
    assert len({counter, Counter("a", labels=["n"])}) == 2
    assert repr(counter) == "Counter('a')"


@pytest.mark.parametrize("labels", [["n"], ["n", "m"]], ids=["one label", "two"])
def test_the_cap_of_a_family_is_a_parameter(labels, caplog) -> None:
    counter = Counter("a", labels=labels, max_children=3)
    for i in range(10):
        counter.labels(*[str(i)] * len(labels)).inc()
    found = {key: cell.value for key, cell in counter.cells()}
    assert len(found) == 4
    assert found[("_overflow",) * len(labels)] == counter.overflowed == 7
    assert len(caplog.records) == 1
    assert "further ones share" in caplog.text
    wrongs: list = [0, -1, 1.5, None]
    for wrong in wrongs:
        with pytest.raises(MetricError, match="max_children"):
            Counter("b", labels=labels, max_children=wrong)


def test_the_monitor_tells_what_went_over_and_what_was_refused() -> None:
    monitor = ResourceMonitor()
    for id in ("shop", "bar"):
        monitor.manager.register(object(), id=id)
        counter = monitor.add_metric(id, Counter("orders", labels=["user"], max_children=2))
        for i in range(5):
            counter[str(i)].inc()
        histogram = monitor.add_metric(id, Histogram("wait"))
        histogram.observe(math.nan)
        histogram.observe(1)
    monitor.tick()
    monitor.tick()
    found = [s for s in monitor.store.select("uno") if s.metric.name.startswith("uno.metric.")]
    told = {s.metric.name: monitor.store.value(s, "total") for s in found}
    assert told == {"uno.metric.overflow": 6, "uno.metric.refused": 2}
    monitor.stop()


def test_a_series_without_labels_is_there_from_its_first_use() -> None:
    counter, gauge, histogram = Counter("a"), Gauge("b"), Histogram("c")
    early = histogram.observe
    assert [list(metric.cells()) for metric in (counter, gauge, histogram)] == [[], [], []]
    counter.inc(0)
    gauge.set(2)
    early(0.5)
    early(0.5)
    histogram.observe(0.5)
    assert counter[()].value == 0
    counter.inc()
    counter.inc(2.5)
    gauge.inc()
    gauge.dec(0.5)
    assert (counter[()].value, gauge[()].value, histogram[()].collect()[:2]) == (3.5, 2.5, (3, 1.5))


@pytest.mark.parametrize(
    "use",
    [
        lambda: Counter("a", labels=["b"]).inc(), lambda: Counter("a", labels=["b"]).count_exceptions(),
        lambda: Gauge("a", labels=["b"]).set(1), lambda: Gauge("a", labels=["b"]).track(),
        lambda: Histogram("a", labels=["b"]).observe(1), lambda: Histogram("a", labels=["b"]).time(),
    ],
    ids=count(),
)  # fmt: skip
def test_a_metric_with_labels_asks_for_them(use: Any) -> None:
    with pytest.raises(MetricError, match=r"\.labels\(b=\.\.\.\) first"):
        use()


@pytest.mark.parametrize("amount", [1, True, np.float64(1), np.int64(1), 1.0], ids=count())
def test_amounts_of_any_kind_leave_a_plain_float(amount) -> None:
    counter, gauge = Counter("a"), Gauge("b")
    counter.inc(amount)
    gauge.set(amount)
    gauge.inc(amount)
    assert type(counter[()].value) is type(gauge[()].value) is float
    assert (counter[()].value, gauge[()].value) == (1, 2)


@pytest.mark.parametrize("amount", ["1", None, object(), 10**400, [1], math.nan], ids=count())
def test_a_gauge_refuses_before_anything_changes(amount) -> None:
    gauge = Gauge("a")
    gauge.set(5)
    uses: list[Any] = [gauge.inc, gauge.dec, *([gauge.set] if amount == amount else [])]
    for use in uses:
        with pytest.raises(MetricError):
            use(amount)
    assert gauge[()].value == 5


@given(st.lists(st.floats(), max_size=20))
def test_a_counter_takes_what_is_right_and_nothing_else(amounts) -> None:
    cell, expected = CounterCell(), 0.0
    for amount in amounts:
        if 0 <= amount < math.inf:
            cell.inc(amount)
            expected += amount
        else:
            with pytest.raises(MetricError):
                cell.inc(amount)
        assert cell.value == expected


def test_a_cell_says_when_it_began() -> None:
    before = time.time()
    for created in (Counter("a")[()].created, Histogram("a")[()].created):
        assert before <= created <= time.time()


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Histogram("orders"), Counter("orders_count")),
        (Counter("orders_sum"), Histogram("orders")),
        (Gauge("a.b"), Gauge("a_b")),
        (Counter("a.b"), Gauge("a_b_total")),
        (None, Gauge("uno_resource_health")),
        (None, Counter("process_uptime_seconds")),
    ],
    ids=count(),
)
def test_names_that_would_meet_in_prometheus_clash_at_registration(first: Any, second: Any) -> None:
    monitor = ResourceMonitor()
    monitor.manager.register(object(), id="shop")
    monitor.manager.register(object(), id="bar")
    if first is not None:
        monitor.add_metric("shop", type(first)(first.name))
    with pytest.raises(MetricError, match="choose another"):
        monitor.add_metric("bar", type(second)(second.name))
    assert monitor.store.select("bar") == []
    monitor.add_metric("bar", type(second)("something_else"))
    monitor.stop()


def test_two_label_sets_of_one_name_are_two_series() -> None:
    monitor = ResourceMonitor()
    one, two = Spec("hits", "counter", labels=("a",)), Spec("hits", "counter", labels=("b",))
    cells = [CounterCell(), CounterCell()]
    series = [monitor.store.add("shop", spec, ("x",), c) for spec, c in zip((one, two), cells, strict=True)]
    assert series[0] is not series[1]
    cells[0].inc(1)
    cells[1].inc(2)
    frame = monitor.store.tick(time.time())
    assert [monitor.store.value(s, "total", frame) for s in series] == [1, 2]  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="counter already"):
        monitor.store.add("shop", Spec("hits", "gauge", labels=("c",)), ("x",), CounterCell())
    monitor.store.remove("shop")
    assert monitor.store.add("shop", Spec("hits", "gauge"), (), CounterCell()) is not None


def test_the_page_of_names_is_that_of_the_table() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text()
    assert page.endswith("\n\n" + names.as_table() + "\n"), "write names.as_table() to docs/names.md"
    assert all(spec.description for spec in names.STANDARD.values())
    assert all(spec.title for spec in names.STANDARD.values())
    wires = [line for spec in names.STANDARD.values() for line in names.line_names(spec)]
    assert len(wires) == len(set(wires))


# -- native buckets ------------------------------------------------------------------------------------


@given(st.floats(ZERO_THRESHOLD, sys.float_info.max), st.integers(-4, 8))
def test_a_native_bucket_holds_what_it_says(value, schema) -> None:
    index = native_index(value, schema)
    assert native_bound(index - 1, schema) < value <= native_bound(index, schema)


@given(st.integers(-1000, 1000), st.integers(-4, 8))
def test_a_bound_belongs_to_the_bucket_below_it(index, schema) -> None:
    bound = native_bound(index, schema)
    if 0 < bound < math.inf and native_bound(index - 1, schema) < bound:
        assert native_index(bound, schema) == index


@settings(deadline=None)
@given(st.lists(st.lists(finite, max_size=40), max_size=8))
def test_native_buckets_are_those_of_a_naive_count(rounds) -> None:
    histogram = Histogram("a", buckets=None, native=True)
    cell = histogram[()]
    observed: list[float] = []
    for values in rounds:
        for value in values:
            histogram.observe(value)
            observed.append(value)
        cell.fold()
    count, _, counts, native = cell.collect()
    assert counts == ()
    assert native is not None
    expected = NativeBuckets(native.schema, ZERO_THRESHOLD, 0, {}, {})
    for value in observed:
        if abs(value) <= ZERO_THRESHOLD:
            expected = expected._replace(zero_count=expected.zero_count + 1)
            continue
        side = expected.positive if value > 0 else expected.negative
        index = native_index(abs(value), native.schema)
        side[index] = side.get(index, 0) + 1  # type: ignore[index]
    assert native == expected
    assert count == len(observed)
    assert len(native.positive) + len(native.negative) <= MOST_NATIVE
    assert -4 <= native.schema <= FINEST


def test_too_many_buckets_make_them_wider_and_lose_nothing() -> None:
    cell = HistogramCell(None, native=True)
    for i in range(-300, 300):
        cell.observe(10.0**i)
        cell.observe(-(10.0**i))
    native = cell.collect().native
    assert native is not None
    assert len(native.positive) + len(native.negative) <= MOST_NATIVE
    assert native.schema < FINEST
    assert sum(native.positive.values()) + sum(native.negative.values()) + native.zero_count == 1_200


@settings(deadline=None)
@given(st.lists(finite, max_size=60), st.lists(finite, max_size=60), st.integers(-4, 5), st.integers(-4, 5))
def test_native_buckets_of_different_width_add_up(one, two, first, second) -> None:
    merged = native_merge(native_of(sorted(one), first), native_of(sorted(two), second))
    assert merged == native_of(sorted(one + two), merged.schema)


@settings(deadline=None)
@given(
    st.lists(st.one_of(finite, st.floats(-1, 40), st.just(0.5)), min_size=1, max_size=20), st.integers(1, 50)
)
def test_very_many_at_once_are_counted_as_one_by_one(values, times) -> None:
    together, single = HistogramCell((-1.0, 0.0, 0.5, 10.0)), HistogramCell((-1.0, 0.0, 0.5, 10.0))
    for cell in (together, single):
        cell.watched()
        cell.warm()
    for value in values * times:
        together.observe(value)
        single.observe(value)
        single.fold()
    assert together.collect().counts == single.collect().counts
    assert together.totals.count == len(values) * times
    whole, parts = together.freeze(), single.freeze()
    assert whole is not None
    assert parts is not None
    ranks = [i / 10 for i in range(11)]
    assert whole.quantiles(ranks) == pytest.approx(parts.quantiles(ranks), rel=0.021)
    assert together.max.value == single.max.value == max(values)


def test_classic_and_native_stand_side_by_side() -> None:
    histogram = Histogram("a", buckets=[1, 2], native=True)
    for value in (0.5, 1, 1.5, 3):
        histogram.observe(value)
    found = histogram[()].collect()
    assert found[:3] == (4, 6.0, (2, 1, 1))
    assert found.native is not None
    assert sum(found.native.positive.values()) == 4
    assert Histogram("b")[()].collect().native is None
    with pytest.raises(MetricError, match="native=True"):
        Histogram("c", buckets=None)


# -- exemplars -----------------------------------------------------------------------------------------


def test_exemplars_are_kept_by_bucket() -> None:
    counter, histogram = Counter("a"), Histogram("b", buckets=[1, 2])
    assert counter[()].exemplar is None
    counter.inc(2, exemplar={"trace_id": "abc"})
    counter.inc()
    exemplar = counter[()].exemplar
    assert exemplar is not None
    assert exemplar[:2] == ((("trace_id", "abc"),), 2)
    assert abs(exemplar.time - time.time()) < 60
    histogram.observe_exemplar(1, {"trace_id": "low"})
    histogram.observe_exemplar(9, {"trace_id": "high"})
    with histogram.time(exemplar={"trace_id": "timed"}):
        pass
    found = histogram[()].exemplars
    assert found is not None
    assert {place: e.labels[0][1] for place, e in found.items()} == {0: "timed", 2: "high"}
    assert histogram[()].collect().count == 3


@pytest.mark.parametrize("labels", [{"trace_id": "x" * 121}, {"a": 1}, {1: "a"}, "abc"], ids=count())
def test_an_exemplar_that_cannot_be_is_refused_before_anything_changes(labels) -> None:
    counter, histogram = Counter("a"), Histogram("b")
    with pytest.raises(MetricError, match="exemplar"):
        counter.inc(1, labels)
    with pytest.raises(MetricError, match="exemplar"):
        histogram.observe_exemplar(1, labels)
    assert counter[()].value == histogram[()].collect().count == 0
    counter.inc(1, {"trace_id": "x" * 120})


def test_no_labels_are_no_exemplar() -> None:
    """As with prometheus_client: code that has no trace at the moment passes none."""
    counter, histogram = Counter("a"), Histogram("b")
    counter.inc(1, {})
    histogram.observe_exemplar(1, {})
    assert counter[()].value == histogram[()].collect().count == 1
    assert counter[()].exemplar is None
    assert histogram[()].exemplars is None


# -- with blocks and decorators ------------------------------------------------------------------------


async def test_every_kind_of_function_can_be_decorated() -> None:
    timed, active, failed = Histogram("t"), Gauge("g"), Counter("f")
    seen = []

    def around(function):
        return timed.time()(active.track()(failed.count_exceptions(KeyError)(function)))

    @around
    def plain(x):
        """Words."""
        seen.append(active[()].value)
        return x

    @around
    async def coroutine(x):
        seen.append(active[()].value)
        await asyncio.sleep(0)
        return x

    @around
    def generator(x):
        seen.append(active[()].value)
        got = yield x
        try:
            yield got
        except ValueError:
            yield "caught"
        return "end"

    @around
    async def async_generator(x):
        seen.append(active[()].value)
        got = yield x
        try:
            yield got
        except ValueError:
            yield "caught"

    assert plain.__doc__ == "Words."
    assert plain(1) == 1
    assert asyncio.iscoroutinefunction(coroutine)
    assert await coroutine(2) == 2
    steps = generator(3)
    assert (next(steps), steps.send(4), steps.throw(ValueError)) == (3, 4, "caught")
    with pytest.raises(StopIteration, match="end"):
        next(steps)
    asteps = async_generator(5)
    assert [await anext(asteps), await asteps.asend(6), await asteps.athrow(ValueError)] == [5, 6, "caught"]
    assert [x async for x in asteps] == []
    closed = async_generator(7)
    assert await anext(closed) == 7
    assert active[()].value == 1
    await closed.aclose()
    assert seen == [1] * 5
    assert active[()].value == 0
    assert timed[()].collect().count == 5
    assert failed[()].value == 0 if failed else True


async def test_what_fails_is_counted_and_goes_on() -> None:
    failed, timed = Counter("f"), Histogram("t")

    @failed.count_exceptions(KeyError, ValueError)
    @timed.time()
    async def fails(error):
        raise error

    for error in (KeyError(), ValueError(), TypeError()):
        with pytest.raises(type(error)):
            await fails(error)
    with pytest.raises(IndexError), failed.count_exceptions():
        raise IndexError
    assert failed[()].value == 3
    assert timed[()].collect().count == 3


async def test_calls_that_overlap_are_timed_each() -> None:
    timed, active = Histogram("t"), Gauge("g")
    most = 0.0

    @timed.time()
    @active.track()
    async def wait(seconds):
        nonlocal most
        most = max(most, active[()].value)
        await asyncio.sleep(seconds)

    await asyncio.gather(*(wait(0.01 * i) for i in range(4)))
    assert most == 4
    count, total, *_ = timed[()].collect()
    assert count == 4
    assert total >= 0.05


def test_a_gauge_can_hold_a_time() -> None:
    gauge = Gauge("g")
    gauge.set_to_current_time()
    assert abs(gauge[()].value - time.time()) < 60
    with gauge.time():
        pass
    assert 0 <= gauge[()].value < 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": 5},
        {"unit": b"s"},
        {"description": 5},
        {"title": None},
        {"labels": None},
        {"labels": ["worker"], "merge": "worker"},
    ],
)
def test_what_no_page_could_show_is_refused_at_the_definition(wrong: dict[str, Any]) -> None:
    with pytest.raises(MetricError):
        Gauge("wrong", **wrong)


def test_objects_that_are_called_like_coroutine_functions_are_timed_to_their_end() -> None:
    class Job:
        async def __call__(self) -> None:
            await asyncio.sleep(0.05)

    histogram = Histogram("jobs")
    asyncio.run(histogram.time()(Job())())
    cell = histogram[()]
    cell.fold()
    assert cell.totals.sum >= 0.05
