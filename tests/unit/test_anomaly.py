"""Does the detector find what is unusual, keep quiet otherwise, and say why in true numbers?"""

import math
import re
import subprocess
import sys
import threading
import time
from datetime import timedelta

import numpy as np
import pytest

from uno.core.monitoring.anomaly import Anomaly, AnomalyDetector

START = 1_700_000_000
WEEK = 604_800


def noise(n, seed=0, step=60):
    return START + step * np.arange(n), np.random.default_rng(seed).normal(10, 1, n)


def flagged(times, values, sensitivity=0.8):
    return np.flatnonzero(AnomalyDetector.replay(times, values, sensitivity=sensitivity).flags[0])


def together(times, columns, sensitivity=0.8):
    """Rows where anomalies started, for each of many series stepped together."""
    detector = AnomalyDetector(sensitivity=sensitivity)
    for number in range(columns.shape[1]):
        detector.watch(str(number))
    place = {int(now): row for row, now in enumerate(times)}
    found: list[list[int]] = [[] for _ in range(columns.shape[1])]
    for now, row in zip(times, columns, strict=True):
        for one in detector.step(int(now), row):
            if one.ended is None:
                found[int(one.key)].append(place[int(now)])
    return found


def run(rows, *, step=60, sensitivity=0.8, unit="", title=""):
    """Step one series live; everything that was said."""
    detector = AnomalyDetector(sensitivity=sensitivity)
    detector.watch("x", unit=unit, title=title)
    news: list[Anomaly] = []
    for i, value in enumerate(rows):
        news += detector.step(START + i * step, [value])
    return detector, news


# Settings


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
def test_a_sensitivity_out_of_range_is_refused_with_the_range(bad):
    with pytest.raises(ValueError, match=r"from 0 .* to 1"):
        AnomalyDetector(sensitivity=bad)
    with pytest.raises(ValueError, match=r"from 0 .* to 1"):
        AnomalyDetector().watch("x", sensitivity=bad)


@pytest.mark.parametrize("bad", [timedelta(0), timedelta(days=-7), 7])
def test_a_training_period_must_be_a_positive_time(bad):
    with pytest.raises(ValueError, match=r"such as timedelta\(days=7\)"):
        AnomalyDetector(training_period=bad)
    with pytest.raises(ValueError, match=r"such as timedelta\(days=7\)"):
        AnomalyDetector().watch("x", training_period=bad)


def test_numpy_is_not_imported_before_the_first_series():
    code = (
        "import sys; from uno.core.monitoring.anomaly import AnomalyDetector as A;"
        "a = A(); a.watch('x'); a.state('x'); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


# Watching


def test_series_come_and_go_and_keep_what_they_learnt():
    detector = AnomalyDetector()
    assert detector.watched() == ()
    assert detector.step(START, []) == []
    detector.watch("a")
    detector.watch("b")
    assert detector.watched() == ("a", "b")
    for i in range(50):
        detector.step(START + 60 * i, [i, 2 * i])
    detector.unwatch("a")
    detector.unwatch("never seen")
    detector.watch("c")
    detector.watch("b", sensitivity=0.9)
    assert detector.watched() == ("b", "c")
    detector.unwatch("c")
    detector.watch("c")
    detector.step(START + 3000, [100, 1])
    assert detector.state("b")["samples"] == 51
    assert detector.state("c")["samples"] == 1
    detector.unwatch("c")  # forgotten, even when it comes back at once
    detector.watch("c")
    assert detector.state("c")["samples"] == 0
    assert detector.watched() == ("b", "c")
    assert detector.state("c")["samples"] == 0
    with pytest.raises(KeyError, match="'a' is not watched"):
        detector.state("a")
    with pytest.raises(ValueError, match="2 series are watched, but 3 values"):
        detector.step(START + 3060, [1, 2, 3])


def test_a_change_between_reading_and_stepping_is_harmless():
    detector = AnomalyDetector()
    for key in "abc":
        detector.watch(key)
    keys = detector.watched()
    detector.unwatch("a")
    detector.watch("d")
    detector.step(START, [1, 2, 3], keys)
    assert [detector.state(key)["observed"] for key in "bcd"] == [2, 3, None]


def test_watching_from_other_threads_while_stepping():
    detector = AnomalyDetector()
    stop = threading.Event()

    def churn(name):
        i = 0
        while not stop.is_set():
            detector.watch(f"{name}{i % 7}")
            detector.unwatch(f"{name}{(i + 3) % 7}")
            i += 1

    threads = [threading.Thread(target=churn, args=(name,)) for name in "pq"]
    for thread in threads:
        thread.start()
    try:
        for i in range(300):
            keys = detector.watched()
            detector.step(START + 60 * i, [1.0] * len(keys), keys)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# Live and replayed, alone and among others


def awkward(n=1500):
    """Steps back, gaps, holes, a spike, a flat piece."""
    times, values = noise(n, 3)
    times = times.copy()
    times[400:] += 90_000
    times[700:] -= 3600
    times[800] = times[799]
    values[100:104] = np.nan
    values[900] = 40
    values[1200:1260] = 9.5
    values[1000] = np.inf
    return times, values


def test_stepping_is_replaying_to_the_bit_alone_and_among_others():
    times, values = awkward()
    replay = AnomalyDetector.replay(times, values, sensitivity=(0.5, 0.9))
    assert replay.scores.shape == (1500,)
    assert replay.flags.shape == (2, 1500)
    others = np.random.default_rng(9).normal(0, 5, (1500, 40))
    others[::3, 7] = np.nan
    detector = AnomalyDetector()
    for number in range(41):
        detector.watch(str(number))
    for i, now in enumerate(times):
        detector.step(float(now), np.insert(others[i], 20, values[i]))
        if np.isfinite(values[i]):
            assert detector.state("20")["score"] == replay.scores[i], i
        else:
            assert replay.scores[i] == 0


@pytest.mark.parametrize("step", [60, 1])
def test_the_future_does_not_change_the_past(step):
    times, values = awkward()
    times = START + step * np.arange(1500)
    wild = values.copy()
    wild[1000:] *= 1e6
    whole = AnomalyDetector.replay(times, values, sensitivity=0.9)
    for other in (
        AnomalyDetector.replay(times[:1000], values[:1000], sensitivity=0.9),
        AnomalyDetector.replay(times, wild, sensitivity=0.9),
    ):
        assert np.array_equal(whole.scores[:1000], other.scores[:1000])
        assert np.array_equal(whole.flags[:, :1000], other.flags[:, :1000])


def test_what_is_missing_teaches_nothing():
    times, values = noise(600)
    more_times = np.sort(np.append(times, times + 30))
    more_values = np.full(1200, np.nan)
    more_values[::2] = values
    more_values[1::4] = np.inf
    plain = AnomalyDetector.replay(times, values)
    holes = AnomalyDetector.replay(more_times, more_values)
    assert np.array_equal(plain.scores, holes.scores[::2])
    assert not holes.scores[1::2].any()


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**40])
def test_the_unit_does_not_matter(factor):
    times, values = awkward()
    plain = AnomalyDetector.replay(times, values, sensitivity=0.8)
    scaled = AnomalyDetector.replay(times, values * factor, sensitivity=0.8)
    assert np.array_equal(plain.scores, scaled.scores)


@pytest.mark.parametrize("factor", [1e-9, 1e12])
def test_the_unit_does_not_matter_up_to_rounding(factor):
    times, values = noise(800)
    values[600] = 22
    assert list(flagged(times, values * factor)) == list(flagged(times, values))
    assert 600 in flagged(times, values * factor)


# What must be found, and what must not


@pytest.mark.parametrize("value", [0.0, 7.0, -1e-300, 1e300])
def test_a_constant_is_never_strange(value):
    times, _ = noise(1000)
    replay = AnomalyDetector.replay(times, np.full(1000, value), sensitivity=1.0)
    assert not replay.flags.any()


@pytest.mark.parametrize(("before", "after"), [(7.0, 8.0), (0.0, 3.0), (5.0, 0.0)])
def test_a_constant_that_changes_is_found_at_once(before, after):
    times, _ = noise(1200)
    values = np.where(np.arange(1200) < 1000, before, after)
    assert flagged(times, values, 0.5)[0] == 1000


def test_spikes_shifts_and_turbulence_are_found_and_learnt():
    times = START + 60 * np.arange(4500)
    values = np.random.default_rng(8).normal(10, 1, (4500, 30))
    values[3000, :10] += 12
    values[3000:, 10:20] += 5
    values[3000:3100, 20:] = 10 + 4 * (values[3000:3100, 20:] - 10)
    found = together(times, values)
    assert all(3000 in rows for rows in found[:10])
    # After an alarm (false: up to 0.5 a series and day) a series rests for 80 samples: one may miss the start.
    assert sum(any(3000 <= row < 3010 for row in rows) for rows in found[10:20]) >= 9
    assert sum(any(3000 <= row < 3020 for row in rows) for rows in found[20:]) >= 9
    # The new normal is learnt: fifteen hours later all is quiet but for the false alarms.
    assert sum(row >= 3900 for rows in found[10:20] for row in rows) <= 4


def test_a_daily_wave_is_not_strange_but_missing_it_is():
    times = START + 300 * np.arange(288 * 14)
    random = np.random.default_rng(2)
    values = 100 + 40 * np.sin(2 * np.pi * times / 86400) + random.normal(0, 3, len(times))
    assert len(flagged(times[288 * 2 :], values[288 * 2 :], 0.5)) == 0
    quiet = values.copy()
    high = 288 * 12 + int(np.argmax(values[288 * 12 : 288 * 13]))
    quiet[high : high + 12] -= 30  # the usual of another hour
    alarms = flagged(times, quiet)
    assert ((alarms >= high) & (alarms < high + 6)).any()


def test_a_gap_is_not_strange():
    times, values = noise(4000)
    times = times + np.where(np.arange(4000) < 2000, 0, 86_400)
    assert len(flagged(times, values, 0.5)) == 0


def test_one_absurd_value_does_not_poison_what_is_known():
    times, values = noise(3000)
    values[1500] = 1e300
    values[2500] = 25
    replay = AnomalyDetector.replay(times, values, sensitivity=0.8)
    assert np.isfinite(replay.scores).all()
    assert replay.flags[0, 1500]
    assert replay.scores[2500] > 2 * np.median(replay.scores[2400:2500])
    assert np.median(replay.scores[2000:]) == pytest.approx(np.median(replay.scores[:1500]), rel=0.5)


def test_it_judges_after_a_start_unlike_all_that_follows():
    times, values = noise(4000)
    values[:60] = 5 + 1e-6 * values[:60]
    values[3500] = 25
    assert 3500 in flagged(times, values, 0.9)


def test_little_data_cannot_shout():
    times, values = noise(32)
    values[-1] = 1e6
    assert not AnomalyDetector.replay(times, values, sensitivity=1.0).scores.any()


def test_false_alarms_stay_within_the_budget():
    times = START + 300 * np.arange(2 * WEEK // 300)
    random = np.random.default_rng(11)
    rows = np.hstack([random.normal(10, 1, (len(times), 20)), random.poisson(3, (len(times), 20))])
    for sensitivity, budget in ((0.5, 0.5), (0.8, 3.5)):
        late = [row for rows in together(times, rows, sensitivity) for row in rows if row > 2 * 288]
        assert len(late) / 40 / (2 - 2 / 7) <= 1.5 * budget


def test_more_sensitive_means_more_alarms():
    times, values = noise(3000)
    values[2000::100] += np.random.default_rng(1).normal(0, 4, 10)
    counts = AnomalyDetector.replay(times, values, sensitivity=np.linspace(0, 1, 21)).flags.sum(1)
    assert (np.diff(counts) >= 0).all()
    assert counts[-1] > counts[0]


def test_something_much_stranger_is_told_while_the_last_alarm_rests():
    times, values = noise(1000)
    values[800] += 7
    values[830] += 1000
    assert {800, 830} <= set(flagged(times, values).tolist())


# Fast ticks


def test_ticks_of_a_second_are_folded_and_a_catastrophe_is_seen_in_half_a_minute():
    random = np.random.default_rng(4)
    detector = AnomalyDetector(sensitivity=0.5)
    detector.watch("x")
    seen = None
    for second in range(3700):
        value = random.normal(0.05, 0.005) if second < 3600 else 2.0
        news = detector.step(START + second + random.uniform(0, 0.02), [value])
        if second < 3600:
            assert not news
        elif news and seen is None:
            seen = second - 3600
    assert seen is not None
    assert seen <= 30
    assert 230 <= detector.state("x")["samples"] <= 250


def test_slow_ticks_are_each_judged_at_once():
    for step in (15, 20, 60, 3600):
        detector, _ = run(range(20), step=step)
        assert detector.state("x")["samples"] == 20


# News


def test_an_anomaly_starts_once_and_ends_once():
    values = np.random.default_rng(1).normal(10, 1, 1000)
    values[600:620] += 30
    detector, news = run(values)
    mine = [one for one in news if one.started >= START + 600 * 60]
    assert mine[0].started == START + 600 * 60
    assert mine[0].ended is None
    ended = [one for one in mine if one.ended is not None and one.started == mine[0].started]
    assert len(ended) == 1
    assert ended[0].ended is not None
    assert START + 620 * 60 < ended[0].ended < START + 700 * 60
    assert ended[0].score == max(one.score for one in mine if one.started == mine[0].started)
    assert detector.active() == []


def test_it_ends_when_the_series_falls_silent_or_is_unwatched():
    values = np.random.default_rng(1).normal(10, 1, 601)
    values[600] = 60
    detector, news = run(values)
    assert detector.active() == news[-1:]
    assert detector.state("x")["active"]
    said = [one for i in range(30) for one in detector.step(START + (601 + i) * 60, [math.nan])]
    assert [one.ended is not None for one in said] == [True]
    detector, _ = run(values)
    detector.unwatch("x")
    (one,) = detector.step(START + 700 * 60, [])
    assert one.ended == START + 700 * 60
    assert detector.active() == []


def test_two_series_do_not_mix():
    random = np.random.default_rng(1)
    detector = AnomalyDetector()
    detector.watch("calm")
    detector.watch("wild")
    news = []
    for i in range(700):
        news += detector.step(START + 60 * i, [random.normal(5, 1), random.normal(5, 1) + 50 * (i == 650)])
    assert {one.key for one in news} == {"wild"}


# Words


def test_a_jump_is_told_in_numbers_that_are_true():
    values = list(0.040 + 0.002 * np.random.default_rng(1).normal(size=700))
    values[650] = 0.128
    _, news = run(values, unit="s", title="main-db query_duration")
    said = next(one for one in news if one.started == START + 650 * 60)
    recent = values[
        0
    ]  # the exponentially weighted mean of 12, of what is left when the long mean is taken away
    mean, rest = values[0], 0.0
    for i, x in enumerate(values[:650], 1):
        rest += (x - mean - rest) / min(i, 12)
        mean += (x - mean) / i
    recent = mean + rest
    assert said.observed == 0.128
    assert said.usual == pytest.approx(recent, rel=1e-9)
    assert said.explanation == (
        f"main-db query_duration jumped from about {recent * 1000:.3g} ms to 128 ms;"
        " never so in 628 samples before (only 10 h of history)"
    )


def test_a_new_level_is_told_against_the_usual_with_its_duration():
    random = np.random.default_rng(5)
    values = 100 + 10 * random.normal(size=3000)
    values[2500:] += 19
    _, news = run(values, unit="{request}/s", title="rate", sensitivity=0.7)
    told = [
        one
        for one in news
        if one.started >= START + 2490 * 60 and "usual in the last 41 h" in one.explanation
    ]
    assert told
    at = told[0]
    mean6, mean = values[0], values[0]
    found = []
    for i, x in enumerate(values):
        mean6 += (x - mean6) / min(i + 1, 6)
        found.append((mean6, mean))
        mean += (x - mean) / min(i + 1, 5040)
    assert any(
        abs(a - at.observed) < 1e-9 and b == pytest.approx(at.usual, rel=1e-9) for a, b in found[2500:]
    )
    assert f"now {at.observed:.0f}/s, mean of 6 samples" in at.explanation


def test_rarity_is_a_number_of_samples_and_never_a_probability():
    random = np.random.default_rng(6)
    values = random.standard_t(3, 6000)
    _, news = run(values, sensitivity=1.0)
    words = " ".join(one.explanation for one in news)
    assert re.search(r"1 in \d+ samples is like this", words)
    assert "nan" not in words
    assert "inf" not in words
    assert "e-" not in words


def test_learning_is_told_in_words():
    detector = AnomalyDetector()
    detector.watch("x", training_period=timedelta(hours=2))
    assert detector.state("x")["learning"] == "learning, nothing seen yet of 2 h"
    for i in range(200):
        detector.step(START + 60 * i, [i % 5])
        if i == 3:
            expected = "learning, 3 min of 2 h; judges from sample 33 on, now 4"
            assert detector.state("x")["learning"] == expected
        if i == 60:
            assert detector.state("x")["learning"] == "learning, 60 min of 2 h"
    state = detector.state("x")
    assert state["learning"] == "knows the last 2 h"
    assert state["observed"] == 4
    assert state["usual"] == pytest.approx(2, abs=0.05)
    assert state["budget"] == pytest.approx(0.5, rel=0.01)


# Cost


def test_a_thousand_series_cost_little():
    rows = np.random.default_rng(1).normal(10, 1, (160, 1000))
    detector = AnomalyDetector()
    for number in range(1000):
        detector.watch(str(number))
    detector.step(START, rows[0])
    begin = time.thread_time()
    for i in range(1, 160):
        detector.step(START + 60 * i, rows[i])
    assert (time.thread_time() - begin) / 159 < 0.005
