"""Counter, Gauge and Histogram, as an application uses them."""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_left
from decimal import Decimal
from fractions import Fraction
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.metrics import (
    DEFAULT_BUCKETS,
    MAX_CHILDREN,
    OVERFLOW,
    CounterCell,
    HistogramCell,
    MetricError,
    Sketch,
)
from uno.core.monitoring.names import wire_name
from uno.core.monitoring.resources import Counter, Gauge, Histogram

finite = st.floats(allow_nan=False, allow_infinity=False)


def in_threads(work, threads: int = 4) -> None:
    """Run ``work`` in several threads that are switched as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gate = threading.Barrier(threads)

    def run() -> None:
        gate.wait(10)
        work()

    running = [threading.Thread(target=run) for _ in range(threads)]
    try:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(50)
    finally:
        sys.setswitchinterval(before)


def values(metric) -> dict:
    return {labels: cell.value for labels, cell in metric.cells()}


def plain_and_labelled() -> list:
    """A histogram without labels and one with: their cells record in two ways."""
    plain, labelled = Histogram("wait"), Histogram("wait", labels=["a"])
    return [(plain, plain[()]), (labelled, labelled["x"])]


# -- exact under threads -------------------------------------------------------------------------------


def test_a_counter_loses_nothing_between_threads() -> None:
    counter = Counter("orders")

    def work() -> None:
        for _ in range(50_000):
            counter.inc()

    in_threads(work)
    assert values(counter) == {(): 200_000}


def test_a_gauge_loses_nothing_between_threads() -> None:
    gauge = Gauge("active")

    def work() -> None:
        for _ in range(20_000):
            with gauge.track():
                gauge.inc(2)
            gauge.dec(2)

    in_threads(work)
    assert values(gauge) == {(): 0}


def test_a_histogram_loses_nothing_while_it_is_folded() -> None:
    cell = HistogramCell()
    done = threading.Event()
    seen = []

    def tick() -> None:
        while not done.is_set():
            seen.append(cell.freeze())

    ticker = threading.Thread(target=tick)
    ticker.start()

    def work() -> None:
        for _ in range(25_000):
            cell.observe(0.003)

    in_threads(work)
    done.set()
    ticker.join(10)
    seen.append(cell.freeze())
    assert cell.frozen[0] == 100_000
    assert sum(cell.frozen[2]) == 100_000
    assert sum(sum(sketch.counts.values()) for sketch in seen if sketch is not None) == 100_000
    assert cell.frozen[1] == pytest.approx(300)


def test_a_series_is_made_once_for_all_threads() -> None:
    counter = Counter("orders", labels=["shop"])
    told: list[tuple] = []
    counter.watch(lambda labels, cell: told.append((labels, cell)))

    def work() -> None:
        for i in range(5_000):
            counter.labels(str(i % 500)).inc()

    in_threads(work)
    assert sum(values(counter).values()) == 20_000
    assert len({labels for labels, _ in told}) == 500
    assert len({id(cell) for _, cell in told}) == 500


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [False, True])
def test_a_counter_never_becomes_infinite(labelled) -> None:
    largest = sys.float_info.max
    family = Counter("orders", labels=["a"] if labelled else [])
    counter = family["x"] if labelled else family
    (cell,) = family.values() if labelled else [family[()]]
    counter.inc(largest)
    counter.inc()  # nothing that a float of this size could show
    with pytest.raises(
        MetricError, match=r"1\.7976931348623157e\+308 cannot take 1e\+308: no float is that large"
    ):
        counter.inc(1e308, {"trace_id": "a"})
    assert cell.value == largest
    assert cell.exemplar is None  # nothing was changed


@pytest.mark.parametrize("amount", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_a_counter_only_grows(amount) -> None:
    counter = Counter("orders")
    counter.inc(3)
    with pytest.raises(MetricError, match="only grows"):
        counter.inc(amount)
    assert values(counter) == {(): 3}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "3", None, 10**400, object(), Decimal("NaN"), [1.0]]
)
def test_what_is_not_a_finite_number_is_left_out_of_a_histogram_and_counted(value) -> None:
    for histogram, cell in plain_and_labelled():
        cell.observe(0.5)
        cell.observe(value)
        cell.observe(1)
        assert cell.collect()[:2] == (2, 1.5)
        assert sum(cell.totals.counts) == 2
        assert histogram.refused == 1
        with pytest.raises(MetricError):
            cell.observe_exemplar(value, {"trace_id": "a"})
        assert cell.collect().count == 2
        assert cell.exemplars is None


@pytest.mark.parametrize("value", [1, True, Decimal("0.5"), Fraction(1, 3), 0.25])
def test_a_histogram_takes_any_kind_of_number(value) -> None:
    histogram = Histogram("wait")
    histogram.observe(value)
    (cell,) = (cell for _, cell in histogram.cells())
    cell.freeze()
    assert cell.frozen[:2] == (1, float(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1])
def test_a_total_is_a_number_from_zero_up(value) -> None:
    cell = CounterCell()
    cell.set_total(5)
    with pytest.raises(MetricError, match="total"):
        cell.set_total(value)
    assert cell.value == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Counter("2fast"), "bad metric name"),
        (lambda: Counter("a b"), "bad metric name"),
        (lambda: Counter("a\n"), "bad metric name"),
        (lambda: Counter(3), "bad metric name"),  # type: ignore[arg-type]
        (lambda: Counter("a", labels=["b", "b"]), "twice"),
        (lambda: Counter("a", labels="b"), r"labels=\['b'\]"),
        (lambda: Counter("a", labels=["__b"]), "bad label name"),
        (lambda: Counter("a", labels=["b-c"]), "bad label name"),
        (lambda: Counter("a", labels=["resource"]), "set by uno"),
        (lambda: Histogram("a", labels=["le"]), "set by uno"),
        (lambda: Histogram("a", buckets=[]), "ascending"),
        (lambda: Histogram("a", buckets=[1, 1]), "ascending"),
        (lambda: Histogram("a", buckets=[2, 1]), "ascending"),
        (lambda: Histogram("a", buckets=[1, math.nan]), "ascending"),
        (lambda: Histogram("a", buckets=[math.nan]), "finite"),
        (lambda: Histogram("a", buckets=[-math.inf, 1]), "finite"),
        (lambda: Histogram("a", buckets=[1, math.inf, 2]), "finite"),
        (lambda: Histogram("a", buckets=[math.inf]), "finite"),
        (lambda: Histogram("a", buckets=["1"]), "takes a number, not str"),  # type: ignore[list-item]
        (lambda: Histogram("a", buckets="123"), "takes a number, not str"),  # type: ignore[arg-type]
        (lambda: Histogram("a", buckets=5), "sequence of numbers, not int"),  # type: ignore[arg-type]
        (lambda: Histogram("a", buckets=range(501)), "more than 500 buckets: choose fewer"),
        (lambda: Histogram("a", buckets=count(1)), "more than 500 buckets"),  # type: ignore[arg-type]
    ],
    ids=count(),
)
def test_a_bad_definition_says_what_is_wrong(make, words) -> None:
    with pytest.raises(MetricError, match=words):
        make()


def test_as_many_buckets_as_there_may_be() -> None:
    histogram = Histogram("a", buckets=[*range(500), math.inf])
    histogram.observe(499)
    histogram.observe(500)
    assert histogram[()].collect().counts[-2:] == (1, 1)


# -- labels --------------------------------------------------------------------------------------------


def test_labels_by_position_by_name_and_by_item_are_the_same_series() -> None:
    counter = Counter("requests", labels=["method", "code"])
    counter.labels("GET", 200).inc()
    counter.labels(code=200, method="GET").inc()
    counter["GET", "200"].inc()
    assert values(counter) == {("GET", "200"): 3}


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda c: c.inc(), r"\.labels\(method=\.\.\., code=\.\.\.\)"),
        (lambda c: c.labels("GET"), "has 2 labels"),
        (lambda c: c.labels("GET", 1, 2), r"'requests' has the labels \(method, code\).*2 positional"),
        (lambda c: c.labels(method="GET"), "has 2 labels"),
        (lambda c: c.labels(method="GET", kode=1), r"'requests' has the labels \(method, code\).*'kode'"),
        (
            lambda c: c.labels("GET", 1, code=1),
            r"'requests' has the labels .* once, by position or by name.*'code'",
        ),
        (lambda c: c.labels("GET", method="GET"), r"'requests' has the labels .* once.*'method'"),
        (lambda c: c["GET"], "has 2 labels"),
        (lambda c: c.labels("GET", object()), "not object"),
        (lambda c: c.labels("GET", None), "not NoneType"),
        (lambda c: c.labels(["GET"], 1), "'requests': label values are str, int, float or bool, not list"),
        (lambda c: c.labels(method={}, code=1), "str, int, float or bool, not dict"),
    ],
    ids=count(),
)
def test_wrong_labels_say_which_are_right(use, words) -> None:
    counter = Counter("requests", labels=["method", "code"])
    with pytest.raises((MetricError, TypeError), match=words):
        use(counter)
    assert values(counter) == {}


def test_labels_that_are_no_parameters_say_the_same() -> None:
    counter = Counter("requests", labels=["http.route", "class"])
    for use in (
        lambda: counter.labels("GET", ["x"]),
        lambda: counter.labels(**{"http.route": ["x"], "class": 1}),
        lambda: counter.labels("a", **{"class": 1}),
        lambda: counter.labels("a", "b", "c"),
        lambda: counter.labels(kind=1),
    ):
        with pytest.raises(MetricError, match=r"'requests'.* label"):
            use()
    assert values(counter) == {}


def test_an_error_of_a_watcher_is_not_taken_for_one_of_the_labels() -> None:
    def watcher(labels, cell) -> None:
        raise TypeError("its own")

    counter = Counter("requests", labels=["a"])
    counter.watch(watcher)
    with pytest.raises(TypeError, match="its own"):
        counter.labels("x")


def test_a_label_value_that_is_no_text_is_not_looked_into() -> None:
    class Secret:
        def __str__(self) -> str:
            return "hunter2"

        __repr__ = __str__

    with pytest.raises(MetricError) as told:
        Counter("a", labels=["who"]).labels(Secret())
    assert "hunter2" not in str(told.value)


def test_a_long_label_value_is_shortened() -> None:
    counter = Counter("a", labels=["path"])
    counter.labels("x" * 5_000).inc()
    counter.labels("x" * 5_000).inc()
    ((labels, cell),) = counter.cells()
    assert len(labels[0]) == 200
    assert labels[0].endswith("…")
    assert cell.value == 2


def test_unbounded_label_values_share_one_series_beyond_the_cap() -> None:
    counter = Counter("requests", labels=["user"])
    for i in range(MAX_CHILDREN + 500):
        counter.labels(str(i)).inc()
    found = values(counter)
    assert len(found) == MAX_CHILDREN + 1
    assert found[OVERFLOW,] == 500
    assert sum(found.values()) == MAX_CHILDREN + 500  # kept, though not told apart
    assert counter.overflowed == 500
    counter.labels("0").inc()
    assert values(counter)["0",] == 2


# -- series that will not come again -------------------------------------------------------------------


def test_a_removed_series_is_gone_and_begins_anew() -> None:
    counter = Counter("requests", labels=["method", "code"])
    kept = counter["GET", "200"]
    kept.inc(5)
    counter.labels("GET", 500).inc()
    counter.remove("GET", 200)
    counter.remove("GET", 200)  # nothing is there any more
    counter.remove("POST", 200)
    kept.inc()  # to nobody
    assert values(counter) == {("GET", "500"): 1}
    counter["GET", "200"].inc()
    assert values(counter) == {("GET", "500"): 1, ("GET", "200"): 1}


def test_series_are_removed_by_some_of_their_labels_or_all_at_once() -> None:
    gauge = Gauge("level", labels=["tank", "side"])
    for tank in "abc":
        for side in ("left", "right"):
            gauge[tank, side].set(1)
    gauge.remove_by_labels({"side": "left"})
    assert sorted(values(gauge)) == [(tank, "right") for tank in "abc"]
    gauge.remove_by_labels({"tank": "a", "side": "right"})
    gauge.remove_by_labels({"tank": "nowhere"})
    gauge.remove_by_labels({})
    assert sorted(values(gauge)) == [("b", "right"), ("c", "right")]
    gauge.clear()
    assert values(gauge) == {}
    gauge["b", "left"].set(2)
    assert values(gauge) == {("b", "left"): 2}


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda c: c.remove("GET"), "'requests' has 2 labels .*, got 1 values"),
        (lambda c: c.remove("GET", "200", "x"), "got 3 values"),
        (lambda c: c.remove("GET", None), "not NoneType"),
        (lambda c: c.remove(["GET"], 1), "not list"),
        (lambda c: c.remove_by_labels({"kind": "x"}), r"has the labels \['method', 'code'\], got \['kind'\]"),
        (lambda c: c.remove_by_labels(["method"]), "by name"),
        (lambda c: c.remove_by_labels({"method": None}), "not NoneType"),
        (lambda c: Counter("plain").remove(), "'plain' has no labels"),
        (lambda c: Counter("plain").remove_by_labels({}), "'plain' has no labels"),
    ],
    ids=count(),
)
def test_what_cannot_be_removed_is_told(use, words) -> None:
    counter = Counter("requests", labels=["method", "code"])
    counter["GET", "200"].inc()
    with pytest.raises(MetricError, match=words):
        use(counter)
    assert values(counter) == {("GET", "200"): 1}


def test_a_metric_without_labels_keeps_its_series() -> None:
    counter, histogram = Counter("a"), Histogram("b")
    counter.inc()
    histogram.observe(1)
    counter.clear()
    histogram.clear()
    counter.inc()
    histogram.observe(1)
    assert values(counter) == {(): 2}
    assert histogram[()].collect().count == 2


def test_removing_makes_room_below_the_cap() -> None:
    counter = Counter("a", labels=["n"], max_children=2)
    for n in "abc":
        counter[n].inc()
    assert values(counter) == {("a",): 1, ("b",): 1, (OVERFLOW,): 1}
    counter.remove("a")
    counter.remove(OVERFLOW)
    counter["d"].inc()
    assert values(counter) == {("b",): 1, ("d",): 1}


def test_who_watches_is_told_of_all_that_leaves_whatever_threads_do() -> None:
    counter = Counter("orders", labels=["shop"])
    lock = threading.Lock()
    known: dict = {}

    def come(labels, cell) -> None:
        with lock:
            known[labels] = cell

    def go(removed) -> None:
        with lock:
            for labels, cell in removed.items():
                if known.get(labels) is cell:
                    del known[labels]

    counter.watch(come, go)

    def work() -> None:
        for i in range(4_000):
            counter[str(i % 7)].inc()
            counter.remove(str(i % 5))

    in_threads(work)
    assert known == dict(counter.cells())


# -- totals that are given -----------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.integers(0, 1_000)), max_size=30))
def test_given_totals_never_fall(totals) -> None:
    cell = CounterCell()
    base, last, shown = 0, 0, 0.0
    for total in totals:
        if total is None:
            cell.gap()
            assert math.isnan(cell.value)
            continue
        cell.set_total(total)
        if total < last:
            base += last
        last = total
        assert cell.value == base + total
        assert cell.value >= shown
        shown = cell.value


# -- histograms ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.sampled_from(DEFAULT_BUCKETS)), max_size=80),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8, unique=True),
    st.data(),
)
def test_buckets_are_those_of_a_naive_count(observed, bounds, data) -> None:
    bounds.sort()
    histogram = Histogram("wait", buckets=bounds)
    expected = [0] * (len(bounds) + 1)
    for value in observed:
        histogram.observe(value)
        expected[bisect_left(bounds, value)] += 1  # up to and including the bound
        if data.draw(st.booleans()):
            for _, cell in histogram.cells():
                cell.freeze()
    for _, cell in histogram.cells():
        cell.freeze()
        assert list(cell.frozen[2]) == expected
        assert cell.frozen[0] == len(observed)
        assert cell.frozen[1] == pytest.approx(math.fsum(observed), abs=1e-6)


def test_what_a_tick_says_is_of_that_tick() -> None:
    cell = HistogramCell()
    for value in (0.1, 0.2, 0.3):
        cell.observe(value)
    cell.freeze()
    assert cell.mean.value == pytest.approx(0.2)
    assert (cell.max.value, cell.count.value) == (0.3, 3)
    cell.freeze()
    assert [math.isnan(slot.value) for slot in (cell.mean, cell.p95, cell.max)] == [True] * 3
    assert cell.count.value == 3
    cell.observe(0.5)
    cell.freeze()
    assert [cell.mean.value, cell.max.value] == pytest.approx([0.5, 0.5])


def test_without_a_tick_the_memory_stays_bounded() -> None:
    cell = HistogramCell()
    for _ in range(20_000):
        cell.observe(1.0)
    assert len(cell.pending) < 5_000
    assert cell.collect().count == 20_000


def test_a_timer_observes_seconds_also_when_the_block_fails() -> None:
    histogram = Histogram("wait")
    with pytest.raises(KeyError), histogram.time():
        raise KeyError
    (cell,) = (cell for _, cell in histogram.cells())
    cell.freeze()
    assert cell.frozen[0] == 1
    assert 0 <= cell.frozen[1] < 1


# -- sketches ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(1e-15, sys.float_info.max), min_size=1, max_size=200), st.integers(0, 100))
def test_any_quantile_is_within_a_hundredth(observed, percent) -> None:
    sketch = Sketch()
    sketch.add(sorted(observed))
    (found,) = sketch.quantiles((percent / 100,))
    at = percent / 100 * (len(observed) - 1)
    expected = sorted(observed)[math.ceil(at - 1e-9)]
    assert found == pytest.approx(expected, rel=0.0101)


@given(st.lists(finite, max_size=50), st.lists(finite, max_size=50))
def test_sketches_add_up(first, second) -> None:
    together, one, two = Sketch(), Sketch(), Sketch()
    together.add(sorted(first + second))
    one.add(sorted(first))
    two.add(sorted(second))
    one.merge(two)
    assert one.counts == together.counts


@settings(deadline=None)
@given(st.floats(0, 700), st.floats(0, 9), st.integers(101, 600))
def test_many_values_at_once_are_counted_as_one_by_one(at, width, many) -> None:
    observed = sorted(math.exp(min(709.78, at + width * i / many)) for i in range(many))
    together, single = Sketch(), Sketch()
    together.add(observed)
    for value in observed:
        single.add([value])
    ranks = [i / 20 for i in range(21)]
    assert together.quantiles(ranks) == pytest.approx(single.quantiles(ranks), rel=0.021)
    assert sum(together.counts.values()) == many


def test_an_empty_sketch_knows_nothing() -> None:
    assert all(math.isnan(value) for value in Sketch().quantiles((0.5, 0.95)))


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [("shop.wait", "ms", "shop_wait_milliseconds"), ("shop.wait", "s", "shop_wait_seconds"),
     ("shop.size", "MiBy", "shop_size_mebibytes"), ("shop.orders", "{order}", "shop_orders"),
     ("shop.wait_milliseconds", "ms", "shop_wait_milliseconds"), ("wait", "ms", "wait")],
)  # fmt: skip
def test_units_end_prometheus_names_as_opentelemetry_has_them(name: str, unit: str, expected: str) -> None:
    assert wire_name(Gauge(name, unit=unit).spec) == expected
