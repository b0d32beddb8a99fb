"""The history in memory: against a naive model, and within its bounds."""

from __future__ import annotations

import math
import random
import statistics
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.history import Levels
from uno.core.monitoring.history.memory import MemoryHistory
from uno.core.monitoring.metrics import CounterCell, GaugeCell, HistogramCell, Spec, cell_for
from uno.core.monitoring.series import SeriesStore

START = 1_800_000_000.0  # on the border of a minute, five minutes and half an hour
NO_LEVELS = Levels()


class World:
    """A store whose frames go to a history."""

    def __init__(self, **options) -> None:
        self.store = SeriesStore()
        self.history = MemoryHistory(**options)
        self.now = START

    def add(self, name: str, kind: str = "gauge", resource: str = "db") -> Any:
        spec = Spec(name, kind)  # type: ignore[arg-type]
        series = self.store.add(resource, spec, (), cell_for(spec))
        assert series is not None
        return series

    def tick(self, after: float = 1.0) -> float:
        self.now += after
        self.history.append(self.store.tick(self.now))
        return self.now

    def gauge(self, values, name: str = "depth") -> Any:
        series = self.add(name)
        for value in values:
            series.cell.value = math.nan if value is None else value
            self.tick()
        return series


def nearest_rank(values: list[float], q: float) -> float:
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]


# -- against a naive model -------------------------------------------------------------------------------

numbers = st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-5, 5).map(float))


@settings(deadline=None, max_examples=150)
@given(st.lists(numbers, min_size=1, max_size=60), st.data())
def test_a_gauge_is_summed_up_as_by_hand(values, data) -> None:
    world = World()
    series = world.gauge(values)
    first = data.draw(st.integers(0, len(values)))
    last = data.draw(st.integers(first, len(values)))
    level = data.draw(st.floats(-1e9, 1e9))
    below = data.draw(st.booleans())
    start, end = START + 1 + first - 0.5, START + 1 + last - 0.5  # ticks first .. last-1

    told = world.history.summary(series, start, end, Levels(level, None, below))

    inside = [v for v in values[first:last] if v is not None]
    assert told.samples == len(inside)
    assert told.exact
    if not inside:
        assert told[1:8] == (None,) * 7
        return
    assert (told.min, told.max, told.last) == (min(inside), max(inside), inside[-1])
    assert told.mean == pytest.approx(statistics.fmean(inside), abs=1e-3, rel=1e-9)
    for q, mark in ((0.5, told.p50), (0.95, told.p95), (0.99, told.p99)):
        assert mark == nearest_rank(inside, q)
    assert told.above_warning == sum(v < level if below else v > level for v in inside)
    assert told.above_critical == 0

    points = world.history.range(series, None, start, end)
    assert [None if v != v else v for v in points.values.tolist()] == values[first:last]
    assert points.times.tolist() == [START + 1 + i for i in range(first, last)]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=60), st.data())
def test_a_counter_is_told_by_its_rate(totals, data) -> None:
    world = World()
    series = world.add("sold", "counter")
    for total in totals:
        series.cell.value = math.nan if total is None else float(total)
        world.tick()
    first = data.draw(st.integers(0, len(totals)))
    start = START + 1 + first - 0.5

    rates, spans = [], []
    before: tuple[int, int] | None = None
    for i, total in enumerate(totals):
        if total is None:
            continue
        # a sample from before the period counts as the one before when it is at most some seconds old
        if before is not None and i >= first and before[0] >= first - 8 and total >= before[1]:
            rates.append((total - before[1]) / (i - before[0]))
            spans.append(i - before[0])
        before = (i, total)

    told = world.history.summary(series, start, world.now)

    assert told.samples == len(rates)
    if rates:
        assert told.max == pytest.approx(max(rates))
        assert told.min == pytest.approx(min(rates))
        # growth over time, not a mean of means
        grown = sum(rate * span for rate, span in zip(rates, spans, strict=True))
        assert told.mean == pytest.approx(grown / sum(spans))
        assert told.p95 == pytest.approx(nearest_rank(rates, 0.95))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.floats(1e-6, 1e6), max_size=5), min_size=1, max_size=40),
    st.data(),
)
def test_a_histogram_counts_exactly_and_its_percentiles_are_within_a_hundredth(ticks, data) -> None:
    world = World()
    series = world.add("wait", "histogram")
    for observed in ticks:
        for value in observed:
            series.cell.observe(value)
        world.tick()
    first = data.draw(st.integers(0, len(ticks) - 1))

    told = world.history.summary(series, START + 1 + first - 0.5, world.now)

    inside = [v for tick in ticks[first:] for v in tick]
    assert told.samples == len(inside)
    assert told.exact
    if inside:
        assert told.mean == pytest.approx(statistics.fmean(inside), rel=1e-6, abs=1e-6)
        assert told.max == max(inside)
        around = [v for tick in ticks for v in tick]  # one minute: all of it is touched
        for q, mark in ((0.5, told.p50), (0.95, told.p95), (0.99, told.p99)):
            ordered = sorted(around)
            expected = min(ordered[math.ceil(q * (len(ordered) - 1) + 1 - 1e-9) - 1], told.max)
            assert mark == pytest.approx(expected, rel=0.011)


def test_many_series_at_once_are_the_same_as_one_by_one() -> None:
    world = World()
    chance = random.Random(7)
    series = [world.add(f"m{i}", ("gauge", "counter", "histogram")[i % 3]) for i in range(200)]
    for _ in range(40):
        for one in series:
            cell = one.cell
            if isinstance(cell, GaugeCell):
                cell.value = chance.choice((math.nan, chance.random()))
            elif isinstance(cell, CounterCell):
                cell.inc(chance.random())
            else:
                cell.observe(chance.random())
        world.tick()
    levels = [Levels(0.5, 0.9, i % 2 == 0) for i in range(200)]
    together = world.history.summaries(list(zip(series, levels, strict=True)), START, world.now)
    alone = [
        world.history.summary(one, START, world.now, level) for one, level in zip(series, levels, strict=True)
    ]
    assert together == alone


# -- gaps, resets, pauses ------------------------------------------------------------------------------


def test_a_gap_is_no_sample_and_no_zero() -> None:
    world = World()
    series = world.gauge([4, None, None, 8])
    told = world.history.summary(series, START, world.now)
    assert (told.samples, told.min, told.mean) == (2, 4, 6)
    values = world.history.range(series, None, START, world.now).values
    assert np.isnan(values).tolist() == [False, True, True, False]


def test_the_fall_of_a_total_is_no_negative_rate() -> None:
    world = World()
    series = world.add("sold", "counter")
    for total in (10, 20, 5, 15):
        series.cell.value = total
        world.tick()
    rates = world.history.range(series, "rate", START, world.now).values
    assert [r for r in rates.tolist() if r == r] == [10, 10]
    assert world.history.summary(series, START, world.now).min == 10


def test_a_pause_of_the_monitor_is_not_time_above_a_level() -> None:
    world = World()
    series = world.gauge([1, 1, 1])
    world.tick(after=3_000)
    world.tick()
    told = world.history.summary(series, START, world.now, Levels(0.5))
    assert told.above_warning <= 6


def test_time_above_is_of_the_statistic_that_the_level_speaks_of() -> None:
    world = World()
    series = world.add("wait", "histogram")
    for _ in range(10):
        for value in (0.1, 0.1, 0.9):
            series.cell.observe(value)
        world.tick()
    told = world.history.summary(series, START, world.now, Levels(0.5, None, False, "mean"))
    assert told.above_warning == 0
    assert (
        world.history.summary(series, START, world.now, Levels(0.3, None, False, "mean")).above_warning == 10
    )
    assert world.history.summary(series, START, world.now, Levels(0.5)).above_warning == 10


def test_an_empty_period_knows_nothing() -> None:
    world = World()
    series = world.gauge([1, 2])
    assert world.history.summary(series, START - 100, START - 50).samples == 0
    assert world.history.summary(series, world.now + 1, world.now + 9).samples == 0
    assert len(world.history.range(series, None, START - 100, START - 50).times) == 0
    assert MemoryHistory().summary(series, START, world.now).samples == 0


def test_numbers_beyond_measure_do_no_harm() -> None:
    world = World()
    series = world.add("wait", "histogram")
    for value in (1.7e308, 5e-324, -3.0, 0.0, 1.0):
        series.cell.observe(value)
    world.tick()
    world.tick(after=60)
    world.tick(after=1_800)
    told = world.history.summary(series, START, world.now)
    assert told.samples == 5
    assert told.max == 1.7e308


def test_thinning_keeps_the_peaks_of_what_is_worst() -> None:
    world = World()
    series = world.add("wait", "histogram")
    gauge = world.add("depth")
    for i in range(200):
        series.cell.observe(9.0 if i == 77 else 0.1)
        gauge.cell.value = i % 2
        world.tick()
    thinned = world.history.range(series, "max", START, world.now, points=20)
    assert len(thinned.times) <= 20
    assert max(thinned.values) == 9.0
    assert world.history.range(gauge, None, START, world.now, points=20).values == pytest.approx(0.5)


# -- tiers ---------------------------------------------------------------------------------------------


def test_what_is_no_longer_exact_is_told_in_five_minutes_without_a_hole() -> None:
    world = World(hour=600.0)
    series = world.gauge([float(i) for i in range(3_000)])
    stats = world.history.stats()
    assert stats.oldest_exact is not None
    assert stats.oldest is not None
    assert world.now - 600 - 256 <= stats.oldest_exact <= world.now - 600
    assert stats.oldest <= START + 1

    told = world.history.summary(series, START, world.now, Levels(1_499.5))
    assert not told.exact
    assert told.samples == 3_000  # each tick once, whichever tier tells of it
    assert (told.min, told.max, told.last) == (0, 2_999, 2_999)
    assert told.mean == pytest.approx(1_499.5)
    assert told.p50 == pytest.approx(1_500, abs=150)
    assert told.above_warning == pytest.approx(1_500, abs=301)

    points = world.history.range(series, None, START, world.now)
    assert not points.exact
    assert np.diff(points.times).max() <= 300
    assert np.diff(points.times).min() > 0
    assert world.history.summary(series, world.now - 500, world.now).exact


def test_totals_and_histograms_live_on_in_the_coarse_tier() -> None:
    world = World(hour=600.0)
    sold, wait = world.add("sold", "counter"), world.add("wait", "histogram")
    for _ in range(9_000):
        sold.cell.inc(3)
        wait.cell.observe(0.2)
        world.tick()
    told = world.history.summary(sold, START, world.now)
    assert [told.mean, told.p95] == pytest.approx([3, 3])
    assert not told.exact
    totals = world.history.range(sold, "total", START, world.now).values
    assert (np.diff(totals) > 0).all()
    assert totals[-1] == 27_000
    told = world.history.summary(wait, START, world.now)
    assert told.samples == 9_000
    assert told.p99 == pytest.approx(0.2, rel=0.01)
    assert told.mean == pytest.approx(0.2, rel=0.01)


def test_five_minutes_survive_series_that_come_in_the_middle() -> None:
    world = World(hour=300.0)
    first = world.gauge([1.0] * 100, "first")
    late = [world.add(f"late{i}") for i in range(500)]
    for series in late:
        series.cell.value = 5.0
    for _ in range(1_000):
        world.tick()
    told = world.history.summaries([(first, NO_LEVELS), (late[-1], NO_LEVELS)], START, world.now)
    assert [t.samples for t in told] == [1_100, 1_000]
    assert [t.mean for t in told] == [1, 5]


def test_a_process_that_is_young_knows_everything_exactly() -> None:
    world = World()
    series = world.gauge([1.0] * 10)
    assert world.history.summary(series, START - 3_600, world.now).exact


# -- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gauge", "histogram"])
def test_memory_stays_within_its_bound(kind) -> None:
    bound = 4 * 2**20
    world = World(max_bytes=bound)
    series = [world.add(f"m{i}", kind) for i in range(100)]
    worst = 0
    for i in range(1_500):
        for j, one in enumerate(series):
            if isinstance(one.cell, HistogramCell):
                one.cell.observe(1.02 ** ((i * j) % 300))
            elif isinstance(one.cell, GaugeCell):
                one.cell.value = i
        world.tick(after=60)
        worst = max(worst, world.history.stats().bytes)
    assert worst <= bound
    told = world.history.summary(series[3], START, world.now)
    assert told.samples > 0
    assert world.history.summary(series[3], world.now - 600, world.now).exact


def test_the_least_bound_is_said() -> None:
    with pytest.raises(ValueError, match="1 MiB"):
        MemoryHistory(max_bytes=1_000)


def test_columns_that_the_store_moves_keep_their_history() -> None:
    world = World()
    gone = [
        world.add(f"m{i}", "histogram" if i % 2 else "gauge", resource=f"gone{i % 10}") for i in range(1_200)
    ]
    kept = world.add("depth", resource="kept")
    waits = world.add("wait", "histogram", resource="kept")
    for i in range(50):
        kept.cell.value = i
        waits.cell.observe(0.1)
        for one in gone[:50]:
            if isinstance(one.cell, HistogramCell):
                one.cell.observe(1)
        world.tick()
    before = kept.column
    for i in range(10):
        world.store.remove(f"gone{i}")
    for i in range(50, 100):
        kept.cell.value = i
        waits.cell.observe(0.3)
        world.tick()
    assert kept.column < before
    told = world.history.summary(kept, START, world.now)
    assert (told.samples, told.min, told.max, told.mean) == (100, 0, 99, 49.5)
    assert world.history.summary(waits, START, world.now).samples == 100
    assert world.history.range(waits, "max", START, world.now).values.tolist() == [0.1] * 50 + [0.3] * 50
    # what was forgotten takes no memory: a new series of that name begins empty
    anew = world.add("m1", "histogram", resource="gone1")
    anew.cell.observe(5.0)
    world.tick()
    assert world.history.summary(anew, START, world.now).samples == 1


def test_a_resource_that_comes_back_keeps_its_history() -> None:
    world = World()
    series = world.gauge([1.0, 1.0])
    world.store.remove("db")
    world.tick()
    back = world.store.add("db", series.metric, (), GaugeCell(3.0))
    assert back is not None
    assert back is series
    world.tick()
    values = world.history.range(back, None, START, world.now).values.tolist()
    assert [v if v == v else None for v in values] == [1, 1, None, 3]


def test_reading_while_the_monitor_writes() -> None:
    world = World(hour=300.0)
    series = [world.add(f"m{i}", ("gauge", "counter", "histogram")[i % 3]) for i in range(30)]
    done = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                told = world.history.summaries([(s, NO_LEVELS) for s in series], START, world.now + 1)
                world.history.range(series[0], None, START, world.now + 1)
                assert all(t.samples == 0 or t.min is not None for t in told)
            except BaseException as error:  # noqa: BLE001
                failed.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(1_200):
        for one in series:
            if isinstance(one.cell, GaugeCell):
                one.cell.value = 1.0
            elif isinstance(one.cell, CounterCell):
                one.cell.inc()
            else:
                one.cell.observe(0.5)
        if i == 600:
            series.append(world.add("late"))
        world.tick()
    done.set()
    for reader in readers:
        reader.join(10)
    assert not failed


def test_closing_gives_the_memory_back() -> None:
    world = World()
    series = world.gauge([1.0] * 10)
    world.history.close()
    assert world.history.stats() == (0, None, None)
    world.tick()
    assert world.history.summary(series, START, world.now).samples == 1
