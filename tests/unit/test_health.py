"""Health: what the evidence amounts to, and what an endpoint answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
import time

import pytest

from uno.core.monitoring.health import (
    MAX_HISTORY,
    Check,
    Evidence,
    Group,
    Health,
    HealthBook,
    HealthRegistry,
    HealthStatus,
    ResourceHealthAdapter,
    judge,
)
from uno.core.monitoring.thresholds import AlertLevel

UP, DEGRADED, SATURATED = HealthStatus.UP, HealthStatus.DEGRADED, HealthStatus.SATURATED
UNKNOWN, DOWN = HealthStatus.UNKNOWN, HealthStatus.DOWN
WARNING, CRITICAL = AlertLevel.WARNING, AlertLevel.CRITICAL
FULL = {"uno.resource.utilization": CRITICAL}


def until(condition, timeout: float = 30):
    """Poll for a condition with a deadline."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


# --- one resource ------------------------------------------------------------------------------------------


def test_unknown_ranks_worse_than_up():
    assert sorted(HealthStatus) == [UP, DEGRADED, SATURATED, UNKNOWN, DOWN]
    assert max(UP, UNKNOWN, DEGRADED) is UNKNOWN
    assert UNKNOWN >= UP
    assert [s.rank for s in HealthStatus] == [0, 1, 2, 3, 4]


OK = Evidence(pinged=True, ping=True, collected=True, collect=True)
FAILED = OK._replace(ping=False, ping_failures=2, ping_reason="TimeoutError")


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        (Evidence(), UNKNOWN, "not checked yet"),
        (OK, UP, ""),
        (Evidence(pinged=True, ping=True), UP, ""),
        (Evidence(collected=True, collect=True), UP, ""),
        (FAILED, DOWN, "TimeoutError"),
        (FAILED._replace(ping_failures=1), DEGRADED, "a ping failed: TimeoutError"),
        (FAILED._replace(levels=FULL), SATURATED, "critical: uno.resource.utilization"),
        (OK._replace(levels=FULL), SATURATED, "critical: uno.resource.utilization"),
        (
            OK._replace(levels={"connection_pool_usage": CRITICAL}),
            SATURATED,
            "critical: connection_pool_usage",
        ),
        (
            OK._replace(levels={"uno.resource.utilization": WARNING}),
            DEGRADED,
            "warning: uno.resource.utilization",
        ),
        (OK._replace(levels={"queue_depth": WARNING, "lag": CRITICAL}), DEGRADED, "critical: lag"),
        (
            OK._replace(ping=None, ping_reason="overloaded"),
            UNKNOWN,
            "no recent answer to a ping: overloaded",
        ),
        (
            OK._replace(ping=None, ping_reason="event loop blocked"),
            UNKNOWN,
            "event loop blocked",
        ),
        (OK._replace(hung=True), DEGRADED, "a call hangs, and no connection is free to ask the server"),
        (OK._replace(hung=True, ping=None), UNKNOWN, "no recent answer to a ping"),
        (OK._replace(hung=True, ping=None, levels=FULL), SATURATED, "critical: uno.resource.utilization"),
        (FAILED._replace(hung=True), DOWN, "TimeoutError"),
        (OK._replace(collect=False, collect_reason="timeout"), DEGRADED, "numbers cannot be read: timeout"),
        (Evidence(collected=True, collect_reason="timeout"), UNKNOWN, "no recent reading: timeout"),
        (Evidence(collected=True, collect=True, unused=True), UNKNOWN, "no answer yet"),
        (Evidence(collected=True, collect=True, unused=True, levels={"x": WARNING}), DEGRADED, "warning: x"),
        (Evidence(collected=True, levels=FULL), UNKNOWN, "no recent reading"),  # the level is as old as that
    ],
)
def test_what_the_evidence_amounts_to(seen, status, reason):
    assert judge(seen) == (status, reason)


def test_every_combination_has_a_verdict_and_only_evidence_makes_up():
    flags = (False, True)
    for pinged, ping, fails, collected, collect, levels in itertools.product(
        flags, (None, False, True), (0, 1, 2), flags, flags, ({}, FULL, {"x": WARNING})
    ):
        seen = Evidence(pinged, ping if pinged else None, fails, "r", collected, collect, "r", levels)
        status, reason = judge(seen)
        assert (status is UP) == (reason == "")
        if status is UP:
            assert seen.ping or (collect and not pinged)
            assert not levels


# --- the book ----------------------------------------------------------------------------------------------


def test_a_life():
    book = HealthBook(interval=1.0, ping_interval=10.0)
    book.watch("db")
    assert book.update(0.0, {}) == []
    assert book.health("db", 0.0)[:2] == (UNKNOWN, "not checked yet")
    assert book.health("db", 0.0).checked is None
    assert not book.health("db", 0.0).known

    changes = []
    for now, event in enumerate(
        [
            lambda t: book.record_collect("db", True, "", t),
            lambda t: book.record_ping("db", True, "", t),
            lambda t: book.record_ping("db", False, "ConnectionRefusedError", t),
            lambda t: book.record_ping("db", False, "ConnectionRefusedError", t),
            lambda t: book.record_ping("db", True, "", t),
        ],
        start=1,
    ):
        event(float(now))
        book.record_collect("db", True, "", float(now))
        changes += [(c[2].since, c[1].status, c[2].status) for c in book.update(float(now), {})]
    assert changes == [(1, UNKNOWN, UP), (3, UP, DEGRADED), (4, DEGRADED, DOWN), (5, DOWN, UP)]
    assert [h.status for h in book.history("db")] == [UP, DOWN, DEGRADED, UP]
    assert book.health("db", 5.0) == Health(UP, "", since=5.0, checked=5.0, known=True)
    book.forget("db")
    assert book.health("db", 5.0).status is UNKNOWN
    assert book.history("db") == []


def test_three_intervals_without_a_reading_are_unknown():
    book = HealthBook(interval=1.0)
    book.record_collect("db", True, "", 0.0)
    seen = []
    for now in range(6):
        if now:
            book.record_collect("db", False, "timeout", float(now))
        book.update(float(now), {})
        seen.append(book.health("db", float(now)).status)
    assert seen == [UP, UP, UP, UP, UNKNOWN, UNKNOWN]
    health = book.health("db", 5.0)
    assert health.reason == "no recent reading: timeout"
    assert health.known
    book.watch("db", interval=5.0)  # read less often: older is still recent
    book.update(6.0, {})
    assert book.health("db", 6.0).status is UP


def test_a_ping_that_could_not_be_tried_is_no_evidence_until_it_lasts():
    book = HealthBook(ping_interval=10.0)
    book.record_ping("db", True, "", 0.0)
    for now, expected in ((10.0, UP), (20.0, UP), (30.0, UP), (40.0, UNKNOWN)):
        if now:
            book.record_ping("db", None, "overloaded", now)
        book.update(now, {})
        assert book.health("db", now).status is expected


@pytest.mark.parametrize("reason", ["event loop blocked", "event loop closed", "event loop not running"])
def test_what_an_event_loop_cannot_ask_twice_is_unknown_until_it_can(reason: str):
    book = HealthBook(ping_interval=10.0)
    book.record_ping("db", True, "", 0.0)
    for now, expected in ((1.0, UP), (2.0, UNKNOWN), (3.0, UNKNOWN)):
        book.record_ping("db", None, reason, now)
        book.rejudge("db", now)
        book.update(now, {})
        assert book.health("db", now).status is expected
    assert book.health("db", 3.0).reason == reason
    book.record_untold("db", 4.0)  # the loop goes on; all connections are in use
    book.update(4.0, {})
    assert book.health("db", 4.0).status is UP
    book.record_ping("db", None, reason, 5.0)
    book.record_ping("db", True, "", 6.0)
    book.record_ping("db", None, reason, 7.0)
    book.update(7.0, {})
    assert book.health("db", 7.0).status is UP


def test_what_is_idle_or_used_up_keeps_its_last_answer():
    book = HealthBook(interval=1.0, ping_interval=10.0)
    book.record_ping("client", True, "", 0.0)
    for now in range(0, 600, 10):
        book.record_collect("client", True, "", float(now))
        book.record_untold("client", float(now), unused=True)
        book.update(float(now), {})
        assert book.health("client", float(now)).status is UP
        book.update(float(now), {"client": FULL})
        assert book.health("client", float(now)).status is SATURATED


def test_a_good_answer_grows_old_while_a_call_hangs_and_a_bad_one_stands():
    book = HealthBook(interval=1.0, ping_interval=10.0)
    book.record_ping("hangs", True, "", 0.0)
    book.record_ping("down", False, "TimeoutError", 0.0, confirmed=True)
    seen = []
    for now in (10.0, 30.0, 40.0):
        for name in ("hangs", "down"):
            book.record_collect(name, True, "", now)
            book.record_untold(name, now, hung=True)
        book.update(now, {})
        seen.append((book.health("hangs", now).status, book.health("down", now).status))
    assert seen == [(DEGRADED, DOWN), (DEGRADED, DOWN), (UNKNOWN, DOWN)]
    book.record_ping("hangs", True, "", 41.0)
    book.update(41.0, {})
    assert book.health("hangs", 41.0).status is UP


def test_what_was_never_asked_is_not_up_and_not_known():
    book = HealthBook(interval=1.0, ping_interval=10.0)
    book.record_collect("database", True, "", 0.0)
    book.update(0.0, {})
    book.record_untold("database", 1.0, unused=True)
    book.record_collect("database", True, "", 1.0)
    book.update(1.0, {})
    health = book.health("database", 1.0)
    assert (health.status, health.reason, health.known) == (UNKNOWN, "no answer yet", False)
    book.record_ping("database", True, "", 2.0)
    book.update(2.0, {})
    assert book.health("database", 2.0).status is UP


def test_thresholds_count_and_status_keeps_its_beginning():
    book = HealthBook()
    for now, levels, expected in (
        (1.0, {}, (UP, 1.0)),
        (2.0, {"db": FULL}, (SATURATED, 2.0)),
        (3.0, {"db": FULL}, (SATURATED, 2.0)),
        (4.0, {"other": FULL}, (UP, 4.0)),
    ):
        book.record_collect("db", True, "", now)
        book.update(now, levels)
        health = book.health("db", now)
        assert (health.status, health.since) == expected


def test_a_stopped_monitor_is_noticed_by_the_reader():
    book = HealthBook(interval=1.0)
    book.record_collect("db", True, "", 1.0)
    book.update(1.0, {})
    assert book.health("db", 4.0).status is UP
    health = book.health("db", 5.0)
    assert health[:2] == (UNKNOWN, "the monitor does not run")
    assert health.known


def test_history_of_health_is_bounded():
    book = HealthBook()
    for now in range(200):
        book.record_collect("db", True, "", float(now))
        book.update(float(now), {"db": FULL} if now % 2 else {})
    assert len(book.history("db")) == MAX_HISTORY
    assert book.history("db")[0].since == 199


# --- the registry ------------------------------------------------------------------------------------------


class Thing:
    def __init__(self, id: str, type: str) -> None:
        self.id, self.type = id, type


class Monitor:
    """What the adapter needs of a ResourceMonitor."""

    def __init__(self, **healths: Health) -> None:
        self.healths = healths
        self.asked = 0

    def health_of(self, resource_id: str) -> Health:
        self.asked += 1
        return self.healths[resource_id]


def a_registry(**options) -> tuple[HealthRegistry, Monitor]:
    monitor = Monitor(db=Health(UP, "", 1.0, 1.5, True), cache=Health(UP, "", 1.0, 1.5, True))
    registry = HealthRegistry()
    things = [Thing("db", "database"), Thing("cache", "redis")]
    registry.register_adapter(ResourceHealthAdapter(things, monitor, **options))
    return registry, monitor


def test_nothing_registered_passes():
    report = HealthRegistry().report()
    assert (report.status, report.http_status, report.to_dict()) == (
        "pass",
        200,
        {"status": "pass", "checks": {}},
    )


@pytest.mark.parametrize(
    ("health", "everything", "startup"),
    [
        (Health(UP, "", 1.0, 1.0, True), ("pass", 200), ("pass", 200)),
        (Health(DEGRADED, "r", 1.0, 1.0, True), ("warn", 200), ("warn", 200)),
        (Health(SATURATED, "r", 1.0, 1.0, True), ("warn", 200), ("warn", 200)),
        (Health(DOWN, "r", 1.0, 1.0, True), ("fail", 503), ("warn", 200)),
        (Health(UNKNOWN, "starting", 1.0, None, False), ("warn", 200), ("fail", 503)),
        (Health(UNKNOWN, "never readable", 1.0, 1.0, False), ("warn", 200), ("warn", 200)),
        (Health(UNKNOWN, "gone silent", 1.0, 1.0, True), ("fail", 503), ("warn", 200)),
        (Health(UNKNOWN, "event loop blocked", 1.0, 1.0, True), ("warn", 200), ("warn", 200)),
    ],
)
def test_what_a_status_does_to_the_endpoint(health, everything, startup):
    registry, monitor = a_registry()
    monitor.healths["cache"] = health
    answers: list[tuple[Group | None, tuple[str, int]]] = [
        (None, everything),
        ("ready", everything),
        ("startup", startup),
        ("live", ("pass", 200)),
    ]
    for group, expected in answers:
        report = registry.report(group)
        assert (report.status, report.http_status) == expected, group


def test_what_is_optional_only_warns():
    for optional in (["cache"], {"redis"}):
        registry, monitor = a_registry(optional=optional)
        monitor.healths["cache"] = Health(DOWN, "TimeoutError", 1.0, 1.0, True)
        assert registry.report().status == "warn"
        monitor.healths["db"] = Health(DOWN, "TimeoutError", 1.0, 1.0, True)
        assert registry.report().http_status == 503
    with pytest.raises(ValueError, match=r"optional=\['cache'\]"):
        a_registry(optional="cache")


def test_the_body_is_health_json():
    registry, monitor = a_registry()
    monitor.healths["db"] = Health(
        SATURATED, "critical: uno.resource.utilization", 1.0, 1_800_000_000.25, True
    )
    body = json.loads(json.dumps(registry.check()))
    assert body == {
        "status": "warn",
        "checks": {
            "db:database": [
                {
                    "componentId": "db",
                    "componentType": "database",
                    "status": "warn",
                    "observedValue": "saturated",
                    "time": "2027-01-15T08:00:00.250Z",
                    "output": "critical: uno.resource.utilization",
                }
            ],
            "cache:redis": [
                {
                    "componentId": "cache",
                    "componentType": "redis",
                    "status": "pass",
                    "observedValue": "up",
                    "time": "1970-01-01T00:00:01.500Z",
                }
            ],
        },
    }


def test_live_refuses_dependencies():
    registry, monitor = a_registry()
    monitor.healths["db"] = Health(DOWN, "r", 1.0, 1.0, True)
    with pytest.raises(ValueError, match="'live' takes no checks of dependencies"):
        registry.register("db", lambda: True, groups=["live"])
    with pytest.raises(ValueError, match="'live'"):
        registry.register_adapter(ResourceHealthAdapter([], monitor), groups=("live",))
    registry.register("workers", lambda: False, groups=["live"], dependency=False)
    until(lambda: registry.report("live").status == "fail")
    assert [check.id for check, _ in registry.report("live").checks] == ["workers"]
    registry.close()


def test_a_broken_adapter_is_itself_a_finding():
    class Broken:
        def checks(self) -> list[Check]:
            raise RuntimeError("secret")

    registry, _ = a_registry()
    registry.register_adapter(Broken())
    report = registry.report()
    assert report.http_status == 200
    assert report.status == "warn"
    assert "secret" not in json.dumps(report.to_dict())
    assert report.to_dict()["checks"]["Broken:adapter"][0]["output"] == "RuntimeError"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": ""}, "needs a name"),
        ({"check": True}, "must be a function without arguments, not bool"),
        ({"groups": "ready"}, r"groups=\['ready'\]"),
        ({"groups": ["readiness"]}, "no health group 'readiness': there are live, ready, startup"),
        ({"interval": 0}, "more than 0 seconds"),
        ({"name": "taken"}, "registered already"),
    ],
)
def test_misuse_names_the_fix(arguments, says):
    registry = HealthRegistry()
    registry.register("taken", lambda: True)
    try:
        with pytest.raises(ValueError, match=says):
            registry.register(**{"name": "new", "check": lambda: True, **arguments})
        with pytest.raises(ValueError, match="no health group"):
            registry.report("alive")  # type: ignore[arg-type]
        with pytest.raises(KeyError, match="no health check 'new'; there are: taken"):
            registry.unregister("new")
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("manager", "monitor", "optional", "says"),
    [
        (5, Monitor(), (), "takes a ResourceManager first, not int"),
        ([], 6, (), "takes a ResourceMonitor second, not int"),
        ([], Monitor(), 7, "optional is a collection of ids or types, not int"),
    ],
)
def test_an_adapter_of_something_else_is_refused(manager, monitor, optional, says):
    with pytest.raises(TypeError, match=says):
        ResourceHealthAdapter(manager, monitor, optional=optional)


# --- the application's own checks --------------------------------------------------------------------------


def the_check(registry: HealthRegistry, name: str) -> Health:
    return next(check.health for check, _ in registry.report().checks if check.id == name)


def settled(registry: HealthRegistry, name: str) -> Health:
    until(lambda: the_check(registry, name).checked is not None)
    return the_check(registry, name)


def raising(error: BaseException):
    def check():
        raise error

    return check


async def an_async_check():
    await asyncio.sleep(0)
    return DEGRADED, "slow today"


@pytest.mark.parametrize(
    ("check", "status", "reason"),
    [
        pytest.param(lambda: None, UP, "", id="None"),
        pytest.param(lambda: True, UP, "", id="True"),
        (lambda: False, DOWN, "the check said no"),
        (lambda: (False, "no licence"), DOWN, "no licence"),
        (lambda: SATURATED, SATURATED, ""),
        (lambda: Health(DEGRADED, "half"), DEGRADED, "half"),
        (lambda: {"a": 1}, UNKNOWN, "the check returned dict instead of True or False"),
        (raising(ValueError("password=secret")), DOWN, "ValueError"),
        (raising(SystemExit(3)), DOWN, "SystemExit"),
        (an_async_check, DEGRADED, "slow today"),
    ],
)
def test_what_a_check_may_return(check, status, reason):
    registry = HealthRegistry()
    registry.register("own", check)
    health = settled(registry, "own")
    registry.close()
    assert health[:2] == (status, reason)


def test_checks_run_again_and_not_in_the_request():
    runs = itertools.count()
    registry = HealthRegistry()
    registry.register("own", lambda: next(runs) >= 3, interval=0.01)
    until(lambda: registry.report().status == "pass")
    registry.close()
    begin = next(runs)
    for _ in range(100):
        registry.report()
    assert next(runs) == begin + 1


def test_a_hung_check_is_abandoned_and_started_no_second_time():
    release, runs = threading.Event(), itertools.count()

    def hang():
        next(runs)
        release.wait(10)

    registry = HealthRegistry()
    registry.register("hung", hang, interval=0.01, timeout=0.02)
    registry.register("fine", lambda: True, interval=0.01)
    assert settled(registry, "hung")[:2] == (DOWN, "timeout")
    begin = time.perf_counter()
    assert registry.report().http_status == 503
    assert time.perf_counter() - begin < 0.05
    fine = settled(registry, "fine").checked
    until(lambda: the_check(registry, "fine").checked != fine)  # the others go on
    assert next(runs) == 1
    release.set()
    until(lambda: the_check(registry, "hung").status is UP)  # it recovers by itself
    registry.close()


def test_an_uncancellable_coroutine_harms_only_itself():
    release = threading.Event()

    async def stubborn():
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    registry = HealthRegistry()
    registry.register("stubborn", stubborn, timeout=0.02)
    registry.register("fine", an_async_check)
    assert settled(registry, "stubborn")[:2] == (DOWN, "timeout")
    assert settled(registry, "fine").status is DEGRADED
    release.set()
    until(lambda: not [t for t in threading.enumerate() if t.name == "uno-health-stubborn"])
    registry.close()


async def test_an_async_check_runs_on_the_loop_of_its_registration():
    loop = asyncio.get_running_loop()
    seen = []

    async def check():
        seen.append(asyncio.get_running_loop())

    registry = HealthRegistry()
    registry.register("own", check)
    for _ in range(500):
        if registry.report().status == "pass":
            break
        await asyncio.sleep(0.005)
    registry.close()
    assert seen == [loop]


def test_a_closed_loop_is_down_not_an_error():
    loop = asyncio.new_event_loop()
    loop.close()
    registry = HealthRegistry()
    registry.register("own", an_async_check, loop=loop)
    assert settled(registry, "own")[:2] == (DOWN, "RuntimeError")
    registry.close()


def test_a_result_grows_old():
    now = [100.0]
    registry = HealthRegistry(clock=lambda: now[0], wall=lambda: 1_800_000_000.0)
    registry.register("own", lambda: True, max_age=30)
    assert settled(registry, "own").status is UP
    registry.close()
    now[0] += 31
    assert the_check(registry, "own")[:2] == (UNKNOWN, "no recent result")
    assert registry.report().http_status == 503


def test_a_hundred_checks_of_which_fifteen_are_bad():
    release = threading.Event()
    registry = HealthRegistry()
    for i in range(85):
        registry.register(f"good-{i}", lambda: True)
    for i in range(10):
        registry.register(f"hung-{i}", release.wait, timeout=0.1)
    for i in range(5):
        registry.register(f"raising-{i}", raising(OSError()))
    until(lambda: all(check.health.checked is not None for check, _ in registry.report().checks))
    verdicts = [verdict for _, verdict in registry.report().checks]
    assert (verdicts.count("pass"), verdicts.count("fail")) == (85, 15)
    release.set()
    registry.close()


def test_start_and_stop_leave_no_thread():
    before = threading.active_count()
    registry = HealthRegistry()
    for i in range(100):
        registry.register(f"own-{i}", lambda: True)
        registry.close()
    until(lambda: threading.active_count() <= before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_checks_go_on_in_a_forked_child():
    registry = HealthRegistry()
    registry.register("own", os.getpid, interval=0.01)
    registry.register("pid", lambda: (True, str(os.getpid())), interval=0.01)
    settled(registry, "pid")
    with registry._wake:  # the worst moment
        child = os.fork()
        if child == 0:
            try:
                until(lambda: the_check(registry, "pid").reason == str(os.getpid()), 3)
                os._exit(0)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    registry.close()
