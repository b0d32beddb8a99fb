"""Thresholds: what may be said, and when a level is pending, fires and ends."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.core.monitoring.thresholds import AlertLevel, Threshold, ThresholdError, ThresholdState

OK, WARNING, CRITICAL = AlertLevel.OK, AlertLevel.WARNING, AlertLevel.CRITICAL


# --- definition --------------------------------------------------------------------------------------------


def test_the_sample_of_the_specification():
    threshold = Threshold(
        warning=0.7, critical=0.9, alert_message="Database connection pool utilization high"
    )
    assert (threshold.warning, threshold.critical, threshold.above) == (0.7, 0.9, True)
    assert threshold.alert_message == "Database connection pool utilization high"
    assert [threshold.level_of(v) for v in (0.7, 0.71, 0.9, 0.91, None, math.nan)] == [
        *(OK, WARNING, WARNING, CRITICAL, OK, OK)
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "needs a level"),
        ({"warning": math.nan}, "warning is NaN"),
        ({"critical": "0.9"}, "critical must be a number, not str"),
        ({"critical": True}, "critical must be a number, not bool"),
        ({"warning": 1, "direction": "up"}, "'above' or 'below', not 'up'"),
        ({"warning": 0.9, "critical": 0.7, "direction": "above"}, "swap the levels"),
        ({"warning": 0.7, "critical": 0.9, "direction": "below"}, "swap the levels"),
        ({"warning": 0.7, "warning_recovery": 0.8}, "must be at or below it"),
        ({"warning": 0.9, "critical": 0.7, "critical_recovery": 0.6}, "must be at or above it"),
        ({"warning": 0.7, "critical_recovery": 0.6}, "critical_recovery needs critical="),
        ({"warning": 0.7, "for_": -1}, "for_ must be a finite duration"),
        ({"warning": 0.7, "keep_firing_for": timedelta(seconds=-1)}, "keep_firing_for must be a finite"),
        ({"warning": 0.7, "for_": math.inf}, "for_ must be a finite"),
        ({"warning": 0.7, "for_": "5m"}, "for_ must be seconds or a timedelta, not str"),
    ],
)
def test_a_contradiction_is_refused_with_its_fix(arguments, says):
    with pytest.raises(ThresholdError, match=re.escape(says)) as caught:
        Threshold(**arguments)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("arguments", "above"),
    [
        ({"warning": 1, "critical": 2}, True),
        ({"warning": 2, "critical": 1}, False),
        ({"warning": 1, "critical": 1}, True),
        ({"critical": 1}, True),
        ({"warning": 1}, True),
        ({"warning": 1, "direction": "below"}, False),
        ({"warning": 1, "critical": 1, "direction": "below"}, False),
    ],
)
def test_direction(arguments, above):
    assert Threshold(**arguments).above is above


def test_a_threshold_is_a_value():
    threshold = Threshold(0.7, 0.9, "high", for_=timedelta(minutes=1), warning_recovery=0.6, stat="p95")
    same = Threshold(0.7, 0.9, "high", for_=60, warning_recovery=0.6, stat="p95")
    assert threshold == same
    assert hash(threshold) == hash(same)
    assert threshold != Threshold(0.7, 0.9, "high", for_=61, warning_recovery=0.6, stat="p95")
    assert (
        pickle.loads(pickle.dumps(threshold)) == copy.deepcopy(threshold) == copy.copy(threshold) == threshold
    )
    assert repr(threshold) == (
        "Threshold(warning=0.7, critical=0.9, alert_message='high', "
        "warning_recovery=0.6, for_=60.0, stat='p95')"
    )
    assert eval(repr(threshold), {"Threshold": Threshold}) == threshold
    with pytest.raises(AttributeError, match="cannot be changed"):
        threshold.warning = 0.8
    with pytest.raises(AttributeError):
        del threshold.warning


# --- states ------------------------------------------------------------------------------------------------


def run(threshold: Threshold, values: list[float | None], step: float = 1.0, start: float = 1e9):
    """The state and level after each value."""
    state = ThresholdState(threshold)
    out = []
    for i, value in enumerate(values):
        state.step(start + i * step, value)
        out.append((state.state, state.level.label))
    return out


def test_without_durations_every_crossing_is_a_change_at_once():
    state = ThresholdState(Threshold(0.7, 0.9))
    changes = [state.step(t, v) for t, v in enumerate([0.5, 0.8, 0.8, 0.95, 0.8, 0.1])]
    assert [c and (c.time, c.old_level, c.level, c.state) for c in changes] == [
        None,
        (1, OK, WARNING, "firing"),
        None,
        (3, WARNING, CRITICAL, "firing"),
        (4, CRITICAL, WARNING, "firing"),
        (5, WARNING, OK, "ok"),
    ]


def test_each_level_has_its_own_timer():
    # Warning from 2 s on, critical from 4 s on: the time above critical counts for both.
    got = run(Threshold(0.7, 0.9, for_=2), [0.5, 0.8, 0.8, 0.95, 0.95, 0.95, 0.8, 0.5])
    assert got == [
        ("ok", "ok"),
        ("pending", "ok"),
        ("pending", "ok"),
        ("firing", "warning"),
        ("firing", "warning"),
        ("firing", "critical"),
        ("firing", "warning"),
        ("ok", "ok"),
    ]


def test_a_pending_level_forgets_at_the_first_miss():
    assert run(Threshold(1, for_=2), [2, 2, 0, 2, 2]) == [
        *[("pending", "ok")] * 2,
        ("ok", "ok"),
        *[("pending", "ok")] * 2,
    ]


def test_recovery_applies_to_what_fires_only():
    threshold = Threshold(0.9, warning_recovery=0.7, for_=1)
    assert [s for s, _ in run(threshold, [0.8, 0.95, 0.8, 0.95, 0.95, 0.8, 0.71, 0.7, 0.8])] == [
        *("ok", "pending", "ok", "pending", "firing", "firing", "firing", "ok", "ok")
    ]


def test_keep_firing_for_begins_anew_with_each_breach():
    threshold = Threshold(1, keep_firing_for=2)
    assert [s for s, _ in run(threshold, [2, 0, 2, 0, 0, 0, 0])] == ["firing"] * 5 + ["ok"] * 2


def test_below():
    threshold = Threshold(warning=10, critical=5, warning_recovery=12)
    assert [lv for _, lv in run(threshold, [11, 10, 9, 4, 11, 12])] == [
        *("ok", "ok", "warning", "critical", "warning", "ok")
    ]


def test_a_gap_neither_breaches_nor_clears():
    state = ThresholdState(Threshold(1, for_=2))
    assert state.step(0, None) is None
    assert state.value is None
    for t in range(3):
        state.step(t, 5)
    assert state.state == "firing"
    assert state.step(3, math.nan) is None
    assert state.step(4, None) is None
    assert (state.state, state.level, state.value, state.since) == ("firing", WARNING, None, 0)


def test_time_in_a_gap_does_not_count_toward_for():
    state = ThresholdState(Threshold(1, for_=2))
    state.step(0, 5)
    state.step(1, 5)
    state.step(2, None)
    state.step(100, 5)  # 1 s was seen, 99 s were not
    assert state.state == "pending"
    state.step(101, 5)
    assert (state.state, state.since) == ("firing", 0)


def test_a_clock_set_back_neither_fires_nor_clears():
    state = ThresholdState(Threshold(1, for_=2, keep_firing_for=2))
    readings = [(1000, 5), (1001, 5), (50, 5), (51, 5), (52, 0), (53, 0), (-4000, 0), (-3999, 0)]
    seen = []
    for now, value in readings:
        state.step(now, value)
        seen.append(state.state)
    assert seen == ["pending", "pending", "pending", "firing", "firing", "firing", "firing", "ok"]


def test_ten_hertz_ticks_fire_on_time():
    state = ThresholdState(Threshold(1, for_=60))
    fired = [i for i in range(700) if (c := state.step(1.7e9 + i * 0.1, 2)) and c.state == "firing"]
    assert fired == [600]


def test_infinity_is_a_value():
    assert run(Threshold(1, 2), [math.inf, -math.inf]) == [("firing", "critical"), ("ok", "ok")]


# --- properties --------------------------------------------------------------------------------------------

GRID = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@st.composite
def thresholds(draw) -> Threshold:
    below = draw(st.booleans())
    warning = draw(st.none() | st.sampled_from(GRID[2:]))
    critical = draw((st.none() if warning is not None else st.nothing()) | st.sampled_from(GRID[2:]))
    if warning is not None and critical is not None:
        warning, critical = sorted((warning, critical))
    sign = -1.0 if below else 1.0

    def recovery(limit: float | None) -> float | None:
        back = None if limit is None else draw(st.none() | st.sampled_from([g for g in GRID if g <= limit]))
        return None if back is None else sign * back

    return Threshold(
        None if warning is None else sign * warning,
        None if critical is None else sign * critical,
        direction="below" if below else "above",
        warning_recovery=recovery(warning),
        critical_recovery=recovery(critical),
        for_=draw(st.integers(0, 4)),
        keep_firing_for=draw(st.integers(0, 4)),
    )


values = st.lists(st.sampled_from([*GRID, *(-g for g in GRID)]), max_size=40)
gappy = st.lists(st.none() | st.just(math.nan) | st.sampled_from([*GRID, *(-g for g in GRID)]), max_size=40)


@given(thresholds(), gappy)
def test_changes_describe_the_state_completely(threshold, series):
    state = ThresholdState(threshold)
    seen: tuple[str, AlertLevel] = ("ok", OK)
    for now, value in enumerate(series):
        change = state.step(now, value)
        if change is not None:
            assert (change.old_state, change.old_level) == seen
            seen = (change.state, change.level)
            assert seen != (change.old_state, change.old_level)
        assert (state.state, state.level) == seen
        assert (state.state == "firing") == (state.level > OK)
        assert (state.since is None) == (state.state == "ok")


@given(thresholds(), gappy)
def test_a_series_with_gaps_is_the_series_without_them_on_a_clock_that_stands_still(threshold, series):
    gapped, plain = ThresholdState(threshold), ThresholdState(threshold)
    clock, after_gap, begun = 0.0, False, False
    for now, value in enumerate(series):
        gapped.step(now, value)
        if value is None or math.isnan(value):
            after_gap = True
            continue
        if begun and not after_gap:
            clock += 1
        begun, after_gap = True, False
        plain.step(clock, value)
        assert (gapped.state, gapped.level) == (plain.state, plain.level)


@given(thresholds(), values)
def test_without_durations_and_recovery_the_state_is_the_level_of_the_value(threshold, series):
    bare = Threshold(threshold.warning, threshold.critical, direction=threshold.direction)
    assert [lv for _, lv in run(bare, series)] == [bare.level_of(v).label for v in series]


@given(thresholds(), values)
def test_what_is_bad_above_is_as_bad_below_when_mirrored(threshold, series):
    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    mirrored = Threshold(
        minus(threshold.warning),
        minus(threshold.critical),
        direction="below" if threshold.above else "above",
        warning_recovery=minus(threshold.warning_recovery),
        critical_recovery=minus(threshold.critical_recovery),
        for_=threshold.for_,
        keep_firing_for=threshold.keep_firing_for,
    )
    assert run(threshold, series) == run(mirrored, [-v for v in series])


# --- beside Prometheus -------------------------------------------------------------------------------------

PROMTOOL = shutil.which("promtool")
CASES, STEPS, INTERVAL = 300, 40, 15


def random_case(rng: random.Random) -> tuple[Threshold, list[float]]:
    sign = rng.choice((1.0, -1.0))
    critical = rng.choice((3.0, 4.0, 5.0))
    warning = rng.choice((1.0, 2.0, critical))

    def recovery(limit: float) -> float | None:
        return None if rng.random() < 0.5 else sign * rng.choice([g for g in GRID if g <= limit])

    threshold = Threshold(
        sign * warning,
        sign * critical,
        direction="above" if sign > 0 else "below",
        warning_recovery=recovery(warning),
        critical_recovery=recovery(critical),
        for_=rng.choice((0, 15, 20, 45, 90)),
        keep_firing_for=rng.choice((0, 15, 20, 45, 90)),
    )
    # Walks and runs, so that the long timers come to their end as well.
    series: list[float] = []
    while len(series) < STEPS:
        series += [sign * rng.choice(GRID)] * rng.choice((1, 1, 2, 5, 8))
    return threshold, series[:STEPS]


def as_rules(name: str, threshold: Threshold) -> list[dict[str, object]]:
    op = ">" if threshold.above else "<"
    rules: list[dict[str, object]] = []
    for level in (WARNING, CRITICAL):
        limit, recovery = threshold.limit(level), threshold.recovery(level)
        alert = f"{name}_{level.label}"
        on = "ignoring(alertname, alertstate, severity, __name__)"
        expr = f"{name} {op} {limit}"
        if recovery != limit:
            expr += f' or ({name} {op} {recovery} and {on} ALERTS{{alertname="{alert}",alertstate="firing"}})'
        rules.append(
            {
                "alert": alert,
                "expr": expr,
                "for": f"{threshold.for_:.0f}s",
                "keep_firing_for": f"{threshold.keep_firing_for:.0f}s",
                "labels": {"severity": level.label},
            }
        )
    return rules


def our_timeline(name: str, threshold: Threshold, series: list[float]) -> list[set[str]]:
    """The ALERTS series of each step; each level alone, as the two rules are."""
    timeline: list[set[str]] = [set() for _ in series]
    both = ThresholdState(threshold)
    alone = {
        level: ThresholdState(
            Threshold(
                warning=threshold.limit(level),
                direction=threshold.direction,
                warning_recovery=threshold.recovery(level),
                for_=threshold.for_,
                keep_firing_for=threshold.keep_firing_for,
            )
        )
        for level in (WARNING, CRITICAL)
    }
    for i, value in enumerate(series):
        both.step(i * INTERVAL, value)
        for level, state in alone.items():
            state.step(i * INTERVAL, value)
            if state.state != "ok":
                timeline[i].add(
                    f'ALERTS{{alertname="{name}_{level.label}",alertstate="{state.state}",severity="{level.label}"}}'
                )
        # And both levels together are nothing but the worst of the two.
        firing = [level for level, state in alone.items() if state.state == "firing"]
        assert both.level == max(firing, default=OK)
        pending = any(state.state == "pending" for state in alone.values())
        assert both.state == ("firing" if firing else "pending" if pending else "ok")
    return timeline


@pytest.mark.skipif(
    PROMTOOL is None and os.environ.get("CI") != "true",
    reason="promtool is not installed (apt install prometheus)",
)
def test_every_state_is_the_one_of_prometheus(tmp_path: Path):
    assert PROMTOOL is not None, "promtool is missing: apt install prometheus"
    seed = int(os.environ.get("UNO_TEST_SEED", "3"))
    rng = random.Random(seed)
    cases = {f"case{i}": random_case(rng) for i in range(CASES)}
    expected: list[set[str]] = [set() for _ in range(STEPS)]
    for name, (threshold, series) in cases.items():
        for i, alerts in enumerate(our_timeline(name, threshold, series)):
            expected[i] |= alerts
    assert sum("firing" in a for step in expected for a in step) > CASES  # the cases do exercise something
    assert sum("pending" in a for step in expected for a in step) > CASES

    rules = [rule for name, (threshold, _) in cases.items() for rule in as_rules(name, threshold)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "uno", "rules": rules}]}))
    test = {
        "interval": f"{INTERVAL}s",
        "input_series": [
            {"series": name, "values": " ".join(f"{v:g}" for v in series)}
            for name, (_, series) in cases.items()
        ],
        "promql_expr_test": [
            {
                "expr": "ALERTS",
                "eval_time": f"{i * INTERVAL}s",
                "exp_samples": [{"labels": alert, "value": 1} for alert in sorted(alerts)],
            }
            for i, alerts in enumerate(expected)
        ],
    }
    (tmp_path / "tests.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": f"{INTERVAL}s", "tests": [test]})
    )
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, f"seed {seed}: " + first_difference(done.stdout + done.stderr)


def first_difference(output: str) -> str:
    """promtool prints all samples of both sides; what matters is where they differ."""
    found = re.search(r"time: (\S+),\s+exp:(.*?)\n\s*got:(.*?)(?:\n\s*expr:|\Z)", output, re.S)
    if not found:
        return output[:2000]
    time, ours, theirs = found.groups()
    mine, their = (set(re.findall(r"(?:ALERTS)?\{[^}]*\}", text)) for text in (ours, theirs))
    return f"at {time} only ours: {sorted(mine - their)[:9]}, only Prometheus: {sorted(their - mine)[:9]}"
