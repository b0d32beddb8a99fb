"""The alert book: which threshold applies, what changes, what is said and who is told."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
import time

import pytest

from uno.core.monitoring import delivery as delivery_module
from uno.core.monitoring.alerts import MAX_HISTORY, Alert, AlertBook, UnknownThresholdError, human
from uno.core.monitoring.delivery import Delivery
from uno.core.monitoring.metrics import CounterCell, GaugeCell, HistogramCell, Spec
from uno.core.monitoring.names import STANDARD
from uno.core.monitoring.series import SeriesStore
from uno.core.monitoring.thresholds import AlertLevel, Threshold

OK, WARNING, CRITICAL = AlertLevel.OK, AlertLevel.WARNING, AlertLevel.CRITICAL
USAGE = STANDARD["uno.resource.utilization"]
QUERIES = STANDARD["db.client.operation.duration"]
DEPTH = Spec("queue_depth", "gauge", labels=("queue",))
START = 1_800_000_000.0


class World:
    """A store, a book and a clock."""

    def __init__(self, **options) -> None:
        self.store = SeriesStore()
        self.book = AlertBook(self.store, **options)
        self.resources = {"shop-db": "database"}
        self.now = START
        self.causes: list[tuple[str, str]] = []

    def gauge(self, spec: Spec = USAGE, resource: str = "shop-db", labels: tuple[str, ...] = ()) -> GaugeCell:
        cell = GaugeCell(math.nan)
        assert self.store.add(resource, spec, labels, cell)
        return cell

    def explain(self, resource: str, metric: str) -> str:
        self.causes.append((resource, metric))
        return f"cause {len(self.causes)}"

    def tick(self, after: float = 1.0) -> list[Alert]:
        self.now += after
        return self.book.evaluate(self.store.tick(self.now), self.resources, self.explain)

    def set(self, threshold: Threshold | None, metric: str = USAGE.name, **where) -> None:
        where = where or {"resource_id": "shop-db"}
        self.book.set(
            where.get("resource_id"),
            where.get("resource_type"),
            metric,
            threshold,
            where.get("default", False),
        )


def brief(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(alert.state, alert.level.label) for alert in alerts]


def test_an_alert_on_durations_ends_when_nothing_takes_time_any_more():
    world = World()
    cell = HistogramCell()
    slow = Spec("wait", "histogram", unit="s")
    assert world.store.add("shop-db", slow, (), cell)
    world.set(Threshold(0.5), metric="wait")
    cell.observe(2.0)
    assert brief(world.tick()) == [("firing", "warning")]
    for _ in range(29):
        assert world.tick() == []
    (resolved,) = world.tick()
    assert resolved.state == "resolved"
    assert resolved.value == pytest.approx(2.0, rel=0.02), "the worst"
    json.dumps(resolved.to_dict(), allow_nan=False)
    cell.observe(3.0)
    assert brief(world.tick()) == [("firing", "warning")]


# --- one threshold, from ok to ok --------------------------------------------------------------------------


def test_a_threshold_fires_escalates_and_resolves():
    world = World()
    usage = world.gauge()
    world.set(Threshold(0.7, 0.9))
    seen = []
    for value in (0.5, 0.75, 0.75, 0.95, 0.75, 0.2, 0.2):
        usage.set(value)
        seen.append(brief(world.tick()))
    assert seen == [
        [],
        [("firing", "warning")],
        [],
        [("firing", "critical")],
        [("firing", "warning")],
        [("resolved", "critical")],  # the worst that it reached
        [],
    ]
    assert world.book.active() == []
    (past,) = world.book.history()
    assert (past.since, past.fired_at, past.resolved_at) == (START + 2, START + 2, START + 6)
    assert past.value == 0.95, "as the level"
    assert past.threshold == 0.7


def test_pending_is_shown_and_a_pending_that_goes_away_leaves_no_trace():
    world = World()
    usage = world.gauge()
    world.set(Threshold(critical=0.9, for_=2))
    usage.set(1.0)
    (pending,) = world.tick()
    assert (pending.state, pending.level, pending.fired_at, pending.cause) == ("pending", OK, None, "")
    assert pending.threshold == 0.9
    assert world.book.level("shop-db") is OK
    usage.set(0.1)
    (gone,) = world.tick()
    assert (gone.state, gone.fired_at) == ("resolved", None)
    assert world.book.history() == []

    usage.set(1.0)
    assert [brief(world.tick()) for _ in range(3)] == [[("pending", "ok")], [], [("firing", "critical")]]
    (alert,) = world.book.active()
    assert (alert.since, alert.fired_at) == (START + 3, START + 5)
    assert world.book.level("shop-db") is CRITICAL
    assert world.book.firing() == {"shop-db": {USAGE.name: CRITICAL}}


def test_no_data_keeps_an_alert_and_says_so():
    world = World()
    usage = world.gauge()
    world.set(Threshold(0.7))
    usage.set(0.8)
    world.tick()
    usage.set(math.nan)
    assert world.tick() == []
    (alert,) = world.book.active()
    assert (alert.state, alert.value) == ("firing", None)
    for _ in range(5):
        world.tick()
    assert "no data" in world.book.active()[0].message
    usage.set(0.1)
    assert brief(world.tick()) == [("resolved", "warning")]


def test_time_that_nobody_watched_does_not_count():
    world = World(interval=1.0)
    world.gauge().set(0.8)
    world.set(Threshold(0.7, for_=5))
    world.tick()
    assert world.tick(after=3600) == []  # suspended for an hour
    assert world.book.active()[0].state == "pending"
    for _ in range(4):
        assert world.tick() == []
    assert brief(world.tick()) == [("firing", "warning")]


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_neither_fires_nor_resolves(jump):
    world = World()
    pending, firing = world.gauge(), world.gauge(DEPTH, labels=("a",))
    world.set(Threshold(0.7, for_=10))
    world.set(Threshold(5, keep_firing_for=10), DEPTH.name)
    pending.set(0.8)
    firing.set(6)
    world.tick()
    firing.set(1)
    world.tick()
    assert world.tick(after=jump) == []
    assert sorted(alert.state for alert in world.book.active()) == ["firing", "pending"]


# --- which threshold ---------------------------------------------------------------------------------------


def test_the_nearest_threshold_wins():
    world = World()
    world.resources = {"a": "database", "b": "database", "c": "redis"}
    cells = {name: world.gauge(resource=name) for name in world.resources}
    for cell in cells.values():
        cell.set(0.5)
    order: list[tuple[dict, float]] = [
        ({"default": True}, 0.1),
        ({"resource_type": "database", "default": True}, 0.2),
        ({"resource_id": None, "resource_type": None, "default": False}, 0.3),
        ({"resource_type": "database"}, 0.4),
        ({"resource_id": "a"}, 0.45),
    ]
    seen = []
    for where, warning in order:
        world.set(Threshold(warning), **where)
        world.tick()
        seen.append({alert.resource: alert.threshold for alert in world.book.active()})
    assert seen == [
        {"a": 0.1, "b": 0.1, "c": 0.1},
        {"a": 0.2, "b": 0.2, "c": 0.1},
        {"a": 0.3, "b": 0.3, "c": 0.3},
        {"a": 0.4, "b": 0.4, "c": 0.3},
        {"a": 0.45, "b": 0.4, "c": 0.3},
    ]
    assert len(world.book.rules()) == 5
    assert world.book.threshold_for("a", "database", USAGE.name) == Threshold(0.45)
    assert world.book.threshold_for("c", "redis", "other") is None
    world.set(None, resource_id="a")  # none here, whatever the type says
    world.tick()
    assert sorted(alert.resource for alert in world.book.active()) == ["b", "c"]


def test_a_threshold_may_be_named_as_prometheus_names_it():
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7), "uno_resource_utilization_ratio")
    assert brief(world.tick()) == [("firing", "warning")]


def test_replacing_and_removing_a_threshold_resolves_its_alert():
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7))
    world.tick()
    world.set(Threshold(0.7))  # the same again is no change
    assert world.tick() == []
    world.set(Threshold(0.75))
    assert [(a.state, a.cause, a.threshold) for a in world.tick()] == [
        ("resolved", "threshold changed", 0.7),
        ("firing", "cause 2", 0.75),
    ]
    world.book.remove("shop-db", None, USAGE.name)
    assert [(a.state, a.cause) for a in world.tick()] == [("resolved", "threshold changed")]
    assert world.book.firing() == {}


def test_misuse_names_the_fix():
    world = World()
    world.set(Threshold(0.7))
    with pytest.raises(UnknownThresholdError, match=r"set are: shop-db: uno\.resource\.utilization"):
        world.book.remove("shop-db", None, "queue_depth")
    with pytest.raises(ValueError, match="resource_id or resource_type"):
        world.book.set("shop-db", "database", USAGE.name, Threshold(0.7))


def test_a_resource_that_goes_takes_its_alerts_along_and_may_come_back():
    world = World()
    usage = world.gauge()
    usage.set(0.8)
    world.set(Threshold(0.7))
    world.book.open("anomaly", "shop-db", USAGE.name, {}, WARNING, "odd", now=world.now)
    world.tick()
    world.store.remove("shop-db")
    world.resources = {}
    assert [(a.source, a.state, a.cause) for a in world.tick()] == [
        ("threshold", "resolved", "resource removed"),
        ("anomaly", "resolved", "resource removed"),
    ]
    world.resources = {"shop-db": "database"}
    world.gauge().set(0.8)
    assert brief(world.tick()) == [("firing", "warning")]


def test_an_alert_follows_its_series_when_others_go():
    world = World()
    world.resources = {"a": "database", "b": "database"}
    world.gauge(resource="a").set(0.1)
    later = world.gauge(resource="b")
    later.set(0.8)
    world.set(Threshold(0.7), resource_type="database")
    world.tick()
    world.store.remove("a")
    del world.resources["a"]
    assert world.tick() == []
    later.set(0.75)
    assert world.tick() == []
    assert [(a.resource, a.value) for a in world.book.active()] == [("b", 0.75)]
    later.set(0.1)
    assert brief(world.tick()) == [("resolved", "warning")]


def test_each_label_set_and_statistic_is_watched():
    world = World()
    for queue, depth in (("mail", 3), ("video", 90)):
        world.gauge(DEPTH, labels=(queue,)).set(depth)
    durations, errors = HistogramCell(), CounterCell()
    world.store.add("shop-db", QUERIES, (), durations)
    world.store.add("shop-db", STANDARD["uno.resource.errors"], (), errors)
    world.set(Threshold(50, 80), DEPTH.name)
    world.set(Threshold(1.0), QUERIES.name)
    world.set(Threshold(1.0, stat="total"), "uno.resource.errors")
    world.tick()
    for _ in range(100):
        durations.observe(2.0)
    errors.inc(3)
    messages = {alert.message for alert in [*world.tick(), *world.book.active()]}
    assert messages == {
        "Queue depth: 90 (critical above 80) on shop-db (queue=video)",
        "Query time (p95): 2 s (warning above 1 s) on shop-db",
        "Errors: 3 errors (warning above 1 error) on shop-db",
    }
    assert {tuple(a.labels.items()) for a in world.book.active()} == {(("queue", "video"),), ()}


def test_a_statistic_that_a_metric_does_not_have_is_said_once(caplog):
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7, stat="p95"))
    for _ in range(3):
        world.set(Threshold(0.7, stat="p95"))
        assert world.tick() == []
    assert [r.message for r in caplog.records] == [
        "a threshold cannot be read: a gauge like 'uno.resource.utilization' has value, not 'p95'"
    ]


# --- words -------------------------------------------------------------------------------------------------


def test_messages():
    world = World()
    usage = world.gauge()
    usage.set(0.95)
    world.set(Threshold(0.7, 0.9, critical_recovery=0.8))
    world.tick()
    assert world.book.active()[0].message == "In use: 95 % (critical above 90 %) on shop-db"
    usage.set(0.85)
    world.tick(), world.tick(2), world.tick(2)
    assert world.book.active()[0].message == "In use: 85 % (critical above 90 %, over at 80 %) on shop-db"
    world.set(Threshold(0.7, alert_message="Database connection pool utilization high"))
    assert world.tick()[-1].message == "Database connection pool utilization high"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.95, "1", "95 %"),
        (0.0123, "1", "1.23 %"),
        (0.012, "s", "12 ms"),
        (0.0000021, "s", "2.1 µs"),
        (0.0, "s", "0 s"),
        (59.94, "s", "59.9 s"),
        (5400, "s", "1.5 h"),
        (2e6, "By", "1.91 MiB"),
        (12, "By", "12 B"),
        (1, "{connection}", "1 connection"),
        (12_345, "{query}", "12,345 queries"),
        (3, "{file_descriptor}", "3 file descriptors"),
        (-1.5, "", "-1.5"),
        (0.00004, "", "4e-05"),
        (math.inf, "", "infinite"),
        (math.nan, "1", "no data"),
        (None, "1", "no data"),
    ],
)
def test_values_as_people_write_them(value, unit, text):
    assert human(value, unit) == text


def test_rates_are_per_second():
    assert human(3, "{error}", per_second=True) == "3 errors/s"


def test_an_alert_is_plain_json():
    world = World()
    world.gauge(DEPTH, labels=("mail",)).set(9)
    world.set(Threshold(5), DEPTH.name)
    (alert,) = world.tick()
    told = json.loads(json.dumps(alert.to_dict()))
    assert told["level"] == "warning"
    assert told["labels"] == {"queue": "mail"}
    assert set(told) == set(Alert._fields)
    assert len(told["id"]) == 16


def test_the_cause_is_asked_when_it_fires_when_it_escalates_and_every_few_seconds():
    world = World()
    usage = world.gauge()
    usage.set(0.5)
    world.set(Threshold(0.7, 0.9))
    world.tick()
    assert world.causes == []
    usage.set(0.8)
    assert world.tick()[0].cause == "cause 1"
    world.tick(), world.tick()
    assert world.causes == [("shop-db", USAGE.name)]
    usage.set(0.95)
    assert world.tick()[0].cause == "cause 2"
    for _ in range(4):
        world.tick()
    assert len(world.causes) == 2
    world.tick()
    assert len(world.causes) == 3
    assert world.tick() == []  # a fresher cause is no change
    assert world.book.active()[0].cause == "cause 3"
    usage.set(0.8)
    assert world.tick()[0].cause == "cause 3"  # what became better needs no other explanation
    for _ in range(12):
        world.tick()
    assert world.book.active()[0].cause == "cause 3"


@pytest.mark.parametrize(
    "threshold", [Threshold(critical=0.7, keep_firing_for=60), Threshold(critical=0.7, critical_recovery=0.2)]
)
def test_an_alert_that_lingers_keeps_the_cause_of_its_breach(threshold: Threshold):
    world = World()
    usage, held_by = world.gauge(), "leak.py:22"
    world.set(threshold)

    def tick(value: float) -> None:
        usage.set(value)
        world.now += 1
        world.book.evaluate(world.store.tick(world.now), world.resources, lambda *asked: held_by)

    for _ in range(20):
        tick(0.9)
    held_by = "innocent.py:7"
    for _ in range(20):
        tick(0.6)
        assert world.book.active()[0].cause == "leak.py:22"
    for _ in range(80):
        tick(0.1)
    assert world.book.active() == []
    assert world.book.history()[0].cause == "leak.py:22"


@pytest.mark.parametrize("after", range(1, 8))
def test_a_cause_found_when_the_breach_is_over_by_now_is_not_told(after: int):
    """A rate tells of the last second: who is met at its end need not be who was there in it."""
    world = World()
    errors, held_by = CounterCell(), "leak.py:22"
    spec = Spec("timeouts", "counter")
    assert world.store.add("shop-db", spec, (), errors)
    world.set(Threshold(critical=0, keep_firing_for=20), spec.name)

    def tick() -> None:
        world.now += 1
        world.book.evaluate(world.store.tick(world.now), world.resources, lambda *asked: held_by)

    tick()
    for _ in range(after):
        errors.inc(5)
        tick()
    errors.inc(3)
    held_by = "innocent.py:7"
    for _ in range(40):
        tick()
    assert world.book.active() == []
    assert world.book.history()[0].cause == "leak.py:22"


def test_a_breach_that_goes_on_is_told_with_its_present_cause():
    world = World()
    usage, told = world.gauge(), "first.py:1"
    world.set(Threshold(0.7))
    usage.set(0.9)
    for held_by in ("first.py:1", "second.py:2", ""):
        told = held_by or told
        for _ in range(8):
            world.now += 1
            world.book.evaluate(world.store.tick(world.now), world.resources, lambda *asked, by=held_by: by)
        assert world.book.active()[0].cause == told


def test_a_failing_explanation_does_not_lose_the_alert(caplog):
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7))

    def explain(resource: str, metric: str) -> str:
        raise RuntimeError("postgres://user:secret@host")

    for _ in range(2):
        changes = world.book.evaluate(world.store.tick(world.now), world.resources, explain)
        world.now += 6
    assert changes == []
    assert world.book.explain_failures == 2
    assert [r.message for r in caplog.records] == [
        "the cause of an alert could not be found: RuntimeError",
        "In use: 80 % (warning above 70 %) on shop-db",
    ]


def test_one_log_line_for_each_change(caplog):
    world = World()
    usage = world.gauge()
    world.set(Threshold(0.7, 0.9))
    with caplog.at_level(logging.INFO, "uno.alerts"):
        for value in (0.1, 0.8, 0.8, 0.95, 0.95, 0.1, 0.1):
            usage.set(value)
            world.tick()
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "In use: 80 % (warning above 70 %) on shop-db (cause 1)"),
        ("CRITICAL", "In use: 95 % (critical above 90 %) on shop-db (cause 2)"),
        ("INFO", "resolved after 4 s: In use: 95 % (critical above 90 %) on shop-db"),
    ]


# --- bounds ------------------------------------------------------------------------------------------------


def test_only_the_worst_are_kept_and_the_rest_come_back_when_there_is_room(caplog):
    world = World(max_alerts=10)
    cells = [world.gauge(DEPTH, labels=(str(i),)) for i in range(30)]
    world.set(Threshold(5, 50), DEPTH.name)
    for cell in cells[:20]:
        cell.set(6)
    assert len(world.tick()) == 10
    assert (len(world.book.active()), world.book.truncated) == (10, 10)
    for cell in cells[20:25]:
        cell.set(60)
    changes = world.tick()
    assert brief(changes) == [("resolved", "warning"), ("firing", "critical")] * 5
    assert changes[0].cause == "no longer followed: more than 10 alerts"
    assert [a.level for a in world.book.active()] == [CRITICAL] * 5 + [WARNING] * 5
    assert world.tick() == []
    for cell in cells[20:25]:
        cell.set(0)
    world.tick()
    world.tick()
    assert [a.level for a in world.book.active()] == [WARNING] * 10
    assert [r.message for r in caplog.records if "at once" in r.message] == [
        "more than 10 alerts at once: only the worst are kept"
    ]
    for cell in cells:
        cell.set(0)
    world.tick()
    assert (world.book.active(), world.book.truncated) == ([], 0)


def test_history_is_bounded():
    world = World()
    usage = world.gauge()
    world.set(Threshold(0.7))
    for _ in range(MAX_HISTORY + 20):
        for value in (0.8, 0.1):
            usage.set(value)
            world.tick()
    history = world.book.history()
    assert len(history) == MAX_HISTORY
    assert history[0].resolved_at == world.now
    assert world.book.history(3) == history[:3]


def test_ten_thousand_quiet_thresholds_cost_under_a_millisecond():
    world = World()
    for i in range(10_000):
        world.gauge(DEPTH, labels=(str(i),)).set(1)
    world.set(Threshold(5, 9), DEPTH.name)
    world.tick()
    frame = world.store.tick(world.now + 1)
    best = math.inf
    for _ in range(20):
        begin = time.thread_time()
        assert world.book.evaluate(frame, world.resources) == []
        best = min(best, time.thread_time() - begin)
    assert best < 0.001


def test_a_frame_older_than_the_newest_series_is_read_as_far_as_it_goes():
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7))
    world.set(Threshold(0.7), DEPTH.name)
    frame = world.store.tick(world.now)
    world.gauge(DEPTH, labels=("late",)).set(9)
    assert [a.metric for a in world.book.evaluate(frame, world.resources)] == [USAGE.name]
    assert [a.metric for a in world.tick()] == [DEPTH.name]


# --- alerts of other engines -------------------------------------------------------------------------------


def test_other_engines_open_and_close():
    world = World()
    book = world.book
    where = ("anomaly", "shop-db", USAGE.name, {"pool": "a"})
    (alert,) = book.open(*where, WARNING, "unusually high", 0.8, now=1.0, cause="deploy")
    assert (alert.state, alert.source, alert.fired_at, alert.threshold) == ("firing", "anomaly", 1.0, None)
    assert book.open(*where, WARNING, "unusually high still", 0.85, now=2.0) == []
    assert [(a.message, a.value) for a in book.active()] == [("unusually high still", 0.85)]
    assert brief(book.open(*where, CRITICAL, "very", 0.9, now=3.0)) == [("firing", "critical")]
    assert book.level("shop-db") is CRITICAL
    assert [(a.state, a.resolved_at) for a in book.close(*where, now=4.0)] == [("resolved", 4.0)]
    assert book.close(*where, now=5.0) == []
    assert book.level("shop-db") is OK
    assert [a.source for a in book.history()] == ["anomaly"]


def test_health_does_not_feed_back_into_health():
    world = World()
    world.book.open("health", "shop-db", "health", {}, CRITICAL, "down", now=1.0)
    assert world.book.firing() == {}
    assert len(world.book.active()) == 1


# --- callbacks ---------------------------------------------------------------------------------------------


def an_alert(message: str = "m", state="firing", fired_at: float | None = 1.0) -> Alert:
    return Alert(
        *("id", "shop-db", "m", {}, "threshold", WARNING, state, 1.0, 0.5, message, "", 1.0),
        fired_at=fired_at,
    )


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "uno-alerts"]


class Inbox:
    """A callback that can be waited for."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self._arrived = threading.Condition()

    def __call__(self, alert: Alert) -> None:
        with self._arrived:
            self.got.append(alert.message)
            self._arrived.notify_all()

    def wait(self, count: int) -> list[str]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.got) >= count, 5), self.got
        return self.got


def test_callbacks_are_told_on_another_thread_in_order():
    book = AlertBook(SeriesStore())
    inbox = Inbox()
    assert book.on_alert(inbox) is inbox
    assert threads() == []  # nothing runs until there is something to tell
    book.deliver([an_alert("1"), an_alert("2", "resolved")])
    book.deliver([an_alert("3", "pending", None), an_alert("4", "resolved", None), an_alert("5")])
    assert inbox.wait(3) == ["1", "2", "5"]  # what never fired is not told
    book.shutdown()
    assert threads() == []
    book.deliver([an_alert("again")])  # start, stop, start
    inbox.wait(4)
    book.shutdown()
    assert threads() == []


def test_closing_tells_what_is_queued_first():
    delivery = Delivery()
    got: list[str] = []
    delivery.add(lambda alert: got.append(alert.message))
    delivery.put(an_alert(str(i)) for i in range(500))
    delivery.close(5)
    assert got == [str(i) for i in range(500)]


def test_an_async_callback_is_awaited():
    delivery = Delivery()
    inbox = Inbox()

    @delivery.add
    async def notify(alert: Alert) -> None:
        inbox(alert)

    delivery.put([an_alert("async")])
    assert inbox.wait(1) == ["async"]
    delivery.close()


@pytest.mark.parametrize("error", [RuntimeError("secret"), SystemExit(1), KeyboardInterrupt()])
def test_a_failing_callback_is_counted_and_named_once(caplog, error):
    delivery = Delivery()

    def broken(alert: Alert) -> None:
        raise error

    inbox = Inbox()
    delivery.add(broken)
    delivery.add(inbox)
    delivery.put([an_alert("1"), an_alert("2")])
    assert inbox.wait(2) == ["1", "2"]
    delivery.close()
    assert delivery.failures == 2
    (line,) = [r.message for r in caplog.records]
    assert line.endswith(f"broken failed: {type(error).__name__}")


def test_a_hanging_callback_loses_the_oldest_and_nobody_waits_for_it():
    delivery = Delivery(max_queue=10)
    entered, release = threading.Event(), threading.Event()

    def hang(alert: Alert) -> None:
        entered.set()
        release.wait(10)

    delivery.add(hang)
    delivery.put([an_alert("0")])
    assert entered.wait(5)
    begin = time.monotonic()
    delivery.put(an_alert(str(i)) for i in range(1, 26))
    delivery.close(0.01)
    assert time.monotonic() - begin < 1
    assert delivery.dropped == 15
    release.set()


def test_a_hanging_callback_stops_no_other_one(caplog, monkeypatch):
    monkeypatch.setattr(delivery_module, "DEADLINE", 0.01)
    delivery = Delivery(max_queue=10)
    entered, release = threading.Event(), threading.Event()
    inbox = Inbox()

    def hang(alert: Alert) -> None:
        entered.set()
        release.wait(10)

    @delivery.add
    async def hang_too(alert: Alert) -> None:
        await asyncio.Event().wait()

    delivery.add(hang)
    delivery.add(inbox)
    for i in range(30):
        delivery.put([an_alert(str(i))])
        assert inbox.wait(i + 1)[-1] == str(i)
    assert entered.wait(5)
    begin = time.monotonic()
    while "hang hangs" not in caplog.text:
        assert time.monotonic() - begin < 5
        delivery.put([an_alert("more")])
    delivery.close(0.1)
    assert time.monotonic() - begin < 5
    assert delivery.failures > 0  # the deadline of the async one
    assert (
        sum(r.message.endswith("hang hangs: its alerts wait, those of others do not") for r in caplog.records)
        == 1
    )
    release.set()
    while threads():
        assert time.monotonic() - begin < 10
        time.sleep(0.01)


def test_a_callback_may_set_thresholds_and_read_the_book():
    world = World()
    world.gauge().set(0.8)
    world.set(Threshold(0.7))
    inbox = Inbox()

    @world.book.on_alert
    def louder(alert: Alert) -> None:
        if alert.state == "firing":
            world.book.set("shop-db", None, USAGE.name, Threshold(0.9))
            assert world.book.active()
        inbox(alert)

    world.book.deliver(world.tick())
    inbox.wait(1)
    assert brief(world.tick()) == [("resolved", "warning")]
    world.book.shutdown()


def test_a_callback_can_be_taken_out_and_must_be_callable():
    delivery = Delivery()
    inbox = Inbox()
    delivery.add(inbox)
    delivery.remove(inbox)
    delivery.remove(inbox)
    delivery.put([an_alert()])
    assert threads() == []
    with pytest.raises(TypeError, match="takes a callable, not str"):
        delivery.add("print")  # type: ignore[type-var]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_tells_its_own_alerts():
    book = AlertBook(SeriesStore())
    inbox = Inbox()
    book.on_alert(inbox)
    book.deliver([an_alert("parent")])
    inbox.wait(1)
    (receiver,) = book.delivery._receivers
    with book._lock, receiver._wake:  # the worst moment
        child = os.fork()
        if child == 0:
            try:
                book.reinit_after_fork()
                book.deliver([an_alert("child")])
                book.set(None, None, "m", Threshold(1))
                ok = inbox.wait(2)[-1] == "child"
                os._exit(0 if ok else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    book.shutdown()
