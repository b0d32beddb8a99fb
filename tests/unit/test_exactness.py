"""Nothing that was recorded is lost or counted twice: threads, signals, finalisers, forks, scrapes, folds."""

from __future__ import annotations

import dis
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import pytest

from uno.core.monitoring import cells
from uno.core.monitoring.cells import CounterCell, GaugeCell, HistogramCell, at_once
from uno.core.monitoring.exporters.prometheus import PrometheusExporter
from uno.core.monitoring.resources import Counter, Gauge, Histogram, ResourceMonitor

#: `python -m benchmarks races` runs what is here at its full size.
FULL = bool(os.environ.get("UNO_FULL_RACES"))
#: Increments of each of four threads, observations of each, what is recorded while signals come, and forks.
INCREMENTS = 10_000_000 if FULL else 75_000
OBSERVATIONS = 3_000_000 if FULL else 100_000
INTERRUPTED = 3_000_000 if FULL else 120_000
FORKS = 1_000 if FULL else 60
LIMIT = 3_600 if FULL else 60
pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def _restless():
    """Threads are switched as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*works) -> None:
    """Run all at once to their end; what one raises is raised here."""
    gate, errors = threading.Barrier(len(works)), []

    def run(work) -> None:
        try:
            gate.wait(20)
            work()
        except BaseException as error:
            errors.append(error)
            raise

    running = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(LIMIT)
    assert not errors
    assert not any(thread.is_alive() for thread in running)


def sound(distribution) -> bool:
    """Whether sum, count and buckets are of one moment: every observation here is 0.5."""
    native = distribution.native
    return (
        distribution.sum == distribution.count * 0.5
        and (not distribution.counts or sum(distribution.counts) == distribution.count)
        and (native is None or sum(native.positive.values()) == distribution.count)
    )


# -- why it is exact -----------------------------------------------------------------------------------

HANDS_OVER = ("CALL", "RESUME", "JUMP_BACKWARD", "SEND", "FOR_ITER", "YIELD", "IMPORT")


def _between(function, first: str, last: str, name: str) -> list[list[str]]:
    """The instructions between each ``first`` of ``name`` and the next ``last`` of it."""
    code = [i for i in dis.get_instructions(function) if i.opname != "CACHE"]
    found = []
    for at, end in enumerate(code):
        if end.opname == last and end.argval == name:
            begin = max(i for i in range(at) if code[i].opname.startswith(first) and code[i].argval == name)
            found.append([i.opname for i in code[begin:at]])
    assert found, f"{function.__qualname__} does not store {name}"
    return found


@pytest.mark.parametrize(
    ("function", "slot"),
    [
        (CounterCell.inc, "value"),
        (Counter.inc, "value"),
        (GaugeCell.inc, "value"),
        (GaugeCell.dec, "value"),
        (HistogramCell._land, "totals"),
        (HistogramCell._land, "refused"),
        (cells._Ring.take, "spare"),
    ],
    ids=lambda value: getattr(value, "__qualname__", value),
)
def test_nobody_comes_between_load_and_store(function, slot) -> None:
    spans = _between(function, "LOAD_ATTR", "STORE_ATTR", slot)
    if function is cells._Ring.take:
        spans = spans[:1]  # the second store gives back what nobody else can have
    for span in spans:
        assert not [op for op in span if op.startswith(HANDS_OVER)], span


def test_landing_and_leaving_the_list_of_what_flies_is_one_step() -> None:
    code = [i.opname for i in dis.get_instructions(HistogramCell._land) if i.opname != "CACHE"]
    names = [i.argval for i in dis.get_instructions(HistogramCell._land) if i.opname != "CACHE"]
    end = code.index("DELETE_SUBSCR")
    begin = max(i for i in range(end) if code[i] == "STORE_ATTR" and names[i] == "totals")
    assert not [op for op in code[begin:end] if op.startswith(HANDS_OVER)]


def test_the_guard_would_notice_a_call() -> None:
    class Wrong:
        value = 0.0

        def inc(self, amount: float) -> None:
            self.value = self.value + float(amount)

    (span,) = _between(Wrong.inc, "LOAD_ATTR", "STORE_ATTR", "value")
    assert [op for op in span if op.startswith(HANDS_OVER)]


# -- threads -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("_restless")
def test_four_threads_lose_no_increment() -> None:
    counter, labelled, gauge = Counter("a"), Counter("b", labels=["x", "y"]), Gauge("c")
    bound = labelled["1", "2"].inc

    def work() -> None:
        inc, up, down = counter.inc, gauge.inc, gauge.dec
        for _ in range(INCREMENTS):
            inc()
            bound(2.0)
            labelled["1", "2"].inc()
            up(3.0)
            down(2)

    in_threads(*[work] * 4)
    assert counter[()].value == INCREMENTS * 4
    assert labelled["1", "2"].value == INCREMENTS * 12
    assert gauge[()].value == INCREMENTS * 4


@pytest.mark.slow
@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("native", [False, True], ids=["classic", "native"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_observations_with_two_folders_and_a_scraper(warm, native) -> None:
    cell = HistogramCell(native=native)
    if warm:
        cell.warm()
    each = OBSERVATIONS
    done = threading.Event()
    wrong: list = []
    ticked = []

    def observe() -> None:
        observe = cell.observe  # bound early: a cold one stays the Python method
        for _ in range(each):
            observe(0.5)

    def last() -> None:
        in_threads(*[observe] * 4)
        done.set()

    def fold() -> None:
        while not done.is_set():
            cell.fold()

    def scrape() -> None:
        before = 0
        while not done.is_set():
            now = cell.collect()
            if not sound(now) or now.count < before:
                wrong.append(now)
            before = now.count

    def tick() -> None:
        while not done.is_set():
            sketch = cell.freeze()
            if not sound(cell.frozen):
                wrong.append(cell.frozen)
            if sketch is not None:
                ticked.append(sum(sketch.counts.values()))

    in_threads(last, fold, fold, scrape, tick)
    sketch = cell.freeze()
    ticked.append(0 if sketch is None else sum(sketch.counts.values()))
    assert wrong == []
    assert cell.totals.count == 4 * each
    assert sound(cell.totals)
    # The columns came to be before the first fold of freeze(); what others folded before that is in no tick.
    assert 0 < sum(ticked) <= 4 * each
    assert not cells._FLYING


@pytest.mark.slow
def test_pages_that_are_read_meanwhile_are_of_one_moment() -> None:
    monitor = ResourceMonitor(interval=3_600)
    monitor.manager.register(object(), id="shop")
    counter = monitor.add_metric("shop", Counter("orders_total", labels=["n"]))
    wait = monitor.add_metric("shop", Histogram("wait", labels=["n"]))
    exporter = PrometheusExporter(monitor, prometheus_client=False)
    done = threading.Event()
    wrong: list[str] = []

    def record() -> None:
        inc, observe = counter["x"].inc, wait["x"].observe
        for _ in range(OBSERVATIONS):
            inc()
            observe(0.5)

    def last() -> None:
        in_threads(*[record] * 4)
        done.set()

    def tick() -> None:
        while not done.is_set():
            monitor.tick()

    def scrape() -> None:
        before = 0.0
        while not done.is_set():
            page = exporter.render().decode().splitlines()
            found = {
                line.rpartition(" ")[0].replace('resource="shop",n="x"', ""): float(line.rpartition(" ")[2])
                for line in page
                if line.startswith("wait_")
            }
            if found:
                count = found["wait_count{}"]
                whole = found["wait_sum{}"] == count * 0.5 and found['wait_bucket{,le="0.5"}'] == count
                if not whole or count < before or found['wait_bucket{,le="0.25"}']:
                    wrong.append(str(found))
                before = count

    in_threads(last, tick, scrape, scrape)
    monitor.tick()
    assert wrong == []
    assert monitor.read("shop", "wait", stat="count") == monitor.read("shop", "orders_total", stat="total")
    assert monitor.read("shop", "wait", stat="count") == 4 * OBSERVATIONS
    monitor.stop()


@pytest.mark.usefixtures("_restless")
def test_more_threads_than_a_small_ring_has_room_lose_nothing(monkeypatch) -> None:
    monkeypatch.setattr(cells._Ring, "made", cells.LARGE_RINGS)
    cell = HistogramCell()
    cell.warm()
    assert cell._ring is not None
    assert cell._ring.items.maxlen == cells.SMALL_RING

    def work() -> None:
        observe = cell.observe
        for _ in range(10_000):
            observe(0.5)

    in_threads(*[work] * 24)
    assert cell.collect().count == 240_000
    assert sound(cell.totals)


def test_a_single_c_call_that_observes_a_million_times() -> None:
    histogram = Histogram("a")
    for _ in map(histogram.observe, [0.5] * 1_000_000):
        pass
    assert all(value is None for value in map(histogram.observe, [0.5] * 500_000))
    assert histogram[()].collect().count == 1_500_000


def test_what_is_folded_while_another_thread_imports_numpy_is_not_lost() -> None:
    program = """
        import sys, threading
        from uno.core.monitoring.resources import Histogram
        assert "numpy" not in sys.modules
        sys.setswitchinterval(1e-6)
        histogram = Histogram("a")
        cell = histogram[()]
        cell.watched()
        def load():
            import numpy
        thread = threading.Thread(target=load)
        thread.start()
        seen, during = 0, 0
        while thread.is_alive():
            for _ in range(200):
                histogram.observe(0.5)
            seen += 200
            during += "numpy" in sys.modules
            cell.fold()
        thread.join()
        assert during, "numpy was there at once"
        got = cell.collect()
        assert got.count == sum(got.counts) == seen, (got, seen)
        assert sum(sum(part[0].counts.values()) for part in cell.watched().parts) == seen
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- interruptions -------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signal_handlers_may_record_and_scrape() -> None:
    counter, histogram, many = Counter("a"), Histogram("b", native=True), Counter("c", labels=["n"])
    handled = 0
    wrong: list = []

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        counter.inc()
        histogram.observe(0.5)
        many[str(handled % 50)].inc()
        if not sound(histogram[()].collect()):
            wrong.append(histogram)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for i in range(INTERRUPTED):
            counter.inc()
            histogram.observe(0.5)
            many[str(i % 50)].inc()
            if i % 100 == 0:
                histogram[()].fold()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 100
    assert counter[()].value == INTERRUPTED + handled
    assert histogram[()].collect().count == INTERRUPTED + handled
    assert sum(cell.value for cell in many.values()) == INTERRUPTED + handled
    assert wrong == []


def test_finalisers_and_collector_callbacks_may_record() -> None:
    counter, histogram, many = Counter("a"), Histogram("b"), Counter("c", labels=["n"])
    ended = 0

    def record() -> None:
        nonlocal ended
        ended += 1
        counter.inc()
        histogram.observe(0.5)
        histogram[()].fold()
        many[str(ended % 100)].inc()

    class Ends:
        def __init__(self) -> None:
            self.me = self  # only the collector ends it

        def __del__(self) -> None:
            record()

    def callback(phase: str, info: object) -> None:
        record()

    thresholds = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(3)
    try:
        for i in range(20_000):
            Ends()
            counter.inc()
            histogram.observe(0.5)
            many[str(i % 100)].inc()
            if i % 10 == 0:
                histogram[()].fold()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)
    gc.collect()
    assert ended > 20_000
    assert counter[()].value == 20_000 + ended
    assert histogram[()].collect()[:2] == (20_000 + ended, (20_000 + ended) * 0.5)
    assert sum(cell.value for cell in many.values()) == 20_000 + ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_in_the_middle_of_recording_loses_nothing() -> None:
    """In the parent; and each child has as much as it could see, of one moment, and goes on counting."""
    program = """
        import os, sys, threading
        from uno.core.monitoring.resources import Counter, Histogram
        sys.setswitchinterval(1e-6)
        counter, histogram, done = Counter("a"), Histogram("b", native=True), threading.Event()
        cell = histogram[()]
        counts = [0, 0]
        def work(me):
            while not done.is_set():
                histogram.observe(0.5)
                counts[me] += 1
                counter.inc()
        def fold():
            while not done.is_set():
                cell.fold()
        threads = [threading.Thread(target=t, args=a) for t, a in ((work, (0,)), (work, (1,)), (fold, ()))]
        for thread in threads:
            thread.start()
        failed = 0
        for _ in range(int(sys.argv[1])):
            before = sum(counts)
            child = os.fork()
            if child == 0:
                after = sum(counts)  # no other thread runs here: at most two observed and did not count it yet
                for _ in range(5_000):
                    histogram.observe(0.5)
                got = cell.collect()
                good = after + 5_000 <= got.count <= after + 5_002 and got.sum == got.count * 0.5
                good = good and sum(got.counts) == got.count == sum(got.native.positive.values())
                if not good:
                    print("child", after, got, flush=True)
                os._exit(0 if good else 1)
            failed += os.waitpid(child, 0)[1] != 0
        done.set()
        for thread in threads:
            thread.join()
        got = cell.collect()
        assert failed == 0, failed
        assert got.count == sum(counts) == counter[()].value, (got, counts)
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(FORKS)],
        capture_output=True,
        text=True,
        timeout=LIMIT - 10,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- bounded -------------------------------------------------------------------------------------------


def grown(work) -> int:
    """Bytes that ``work`` leaves allocated at its worst."""
    tracemalloc.start()
    try:
        begun = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - begun
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched, and nobody ticks"])
@pytest.mark.parametrize("bound", ["early", "late"])
def test_what_waits_is_bounded_whoever_ticks_or_not(bound, watched) -> None:
    cell = HistogramCell()
    if watched:
        cell.watched()
    observe = cell.observe  # as a method bound when the cell was new
    if bound == "late":
        cell.warm()
        observe = cell.observe
    values = [0.001 * i for i in range(1, 1_000)]

    def work() -> None:
        for i in range(200_000):
            observe(values[i % 999] * 1.0000001)

    assert grown(work) < 700_000
    assert cell.collect().count == 200_000


def test_a_method_kept_beyond_its_histogram_is_harmless() -> None:
    observe = Histogram("a").observe
    gc.collect()
    assert grown(lambda: [observe(i * 1.5) for i in range(50_000)] and None) < 1_500_000


def test_many_busy_series_stay_small_together() -> None:
    histogram = Histogram("a", labels=["n"])

    def work() -> None:
        for n in range(1_000):
            observe = histogram[str(n)].observe
            for i in range(200):
                observe(i * 0.001)
            observe = histogram[str(n)].observe
            for i in range(400):
                observe(i * 0.001)

    assert grown(work) < 30_000_000
    assert sum(cell.collect().count for cell in histogram.values()) == 600_000


def test_a_dropped_histogram_leaves_at_once() -> None:
    import weakref

    gc.disable()
    try:
        cell = HistogramCell()
        cell.warm()
        for i in range(10_000):
            cell.observe(i)
        gone = weakref.ref(cell)
        del cell
        assert gone() is None  # no cycle: also where the collector is off
    finally:
        gc.enable()


# -- without the GIL -----------------------------------------------------------------------------------


def test_without_the_gil_the_same_methods_hold_a_lock() -> None:
    """The interpreter is told to have none; that the classes are exact there can only be tested on one that has."""
    program = """
        import sys, threading
        sys._is_gil_enabled = lambda: False
        from uno.core.monitoring import cells
        from uno.core.monitoring.resources import Counter, Gauge, Histogram
        assert not cells.HAS_GIL
        for method in (cells.CounterCell.inc, cells.GaugeCell.set, cells.HistogramCell.observe):
            assert "lock" in method.__code__.co_freevars, method
        sys.setswitchinterval(1e-6)
        counter, gauge, histogram = Counter("a"), Gauge("b"), Histogram("c", labels=["x"], native=True)
        def work():
            for _ in range(5_000):
                counter.inc()
                with gauge.track():
                    histogram["1"].observe(0.5)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = histogram["1"].collect()
        assert counter[()].value == got.count == sum(got.counts) == 20_000 and gauge[()].value == 0
        assert type(histogram["1"]) is cells.HistogramCell
        histogram["1"].warm()
        assert type(histogram["1"]) is cells.HistogramCell
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr


def test_calls_made_at_once_give_what_each_gave() -> None:
    items = [1, 2]
    assert at_once(items.copy, items.clear) == ([1, 2], None)
    assert items == []
