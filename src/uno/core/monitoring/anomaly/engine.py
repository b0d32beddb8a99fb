"""How strange is each sample of each series, judged by that series' own past?

Numbers only: no names, no clock, no alarms. Arrays have one column for each series, and every step is a fixed
number of array operations, so a series is judged to the same bit alone and among thousands. Imported with the
first sample, in the monitor's thread, because it needs numpy.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from uno.core.monitoring.anomaly.words import Finding, duration

Floats = NDArray[np.float64]

DAY = 86400.0
WARM = 32  # samples before anything is said
SETTLE = 24  # the same after a gap
REBUILD = 32  # samples between two looks at how often each answer was given

# The scorers, and what is added to the rarity of each: a wide window has fewer independent chances.
SCORERS = ("level", "shift", "season", "jump", "spread", "residual", "local", "still")
_WIDTH = tuple(0.4 * math.log10(window) for window in (6, 24, 6, 1, 12, 1, 1, 1))
_WEIGHT = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.85, 1.0)
_PLAINEST = (3, 0, 2, 1, 5, 6, 4, 7)  # of scorers that say the same, the one that is easiest to understand
_BINS, _TYPICAL_BIN, _BIN_WIDTH = 128, 72, math.log(1.15)
_TURN = 4  # samples between the rebuilding of one scorer's table and the next one's
_SLOTS, _VISITS = 48, 30
_LOG10_E = np.float32(math.log10(math.e))


class State:
    """What is kept, a column for each series. `r` is the value less the usual at this time of day."""

    n: Floats  # samples so far
    first: Floats  # time of the first and of the last sample, and the usual time between two
    last: Floats
    every: Floats
    fresh: Floats  # samples since a gap
    low: Floats  # range of the values
    high: Floats
    mean: Floats  # long means: of x, of its distance to that, of |r|, of local deviations, of squared jumps
    around: Floats
    off: Floats
    rough: Floats
    swing: Floats
    x6: Floats  # exponentially weighted means over so many samples
    r6: Floats
    x12: Floats
    r12: Floats
    jump12: Floats
    r60: Floats
    local60: Floats
    x24: Floats  # the last 24
    r24: Floats
    slots: Floats  # the usual in each half hour of the day, on how many days it was seen, and the running one
    visits: Floats
    slot: Floats
    slot_sum: Floats
    slot_n: Floats
    same: Floats  # runs of equal values: the value, how long, the longest before, was there another
    run: Floats
    longest: Floats
    moved: Floats
    typical: Floats  # of each scorer: the usual answer, from how many, the largest ever
    known: Floats
    largest: Floats
    recent: Floats  # ... since the table was built
    share: (
        Floats  # of each scorer at the last sample: rarity by counting, rarity, what was compared with what
    )
    rarity: Floats
    observed: Floats
    expected: Floats
    x: Floats  # the last sample, and the usual it was compared with
    usual: Floats
    trust: Floats  # how much better the time of day predicts than the mean does, 0 to 1

    ROWS: ClassVar = (
        {"x24": (24,), "r24": (24,), "slots": (_SLOTS,), "visits": (_SLOTS,)}
        | dict.fromkeys(("typical", "known", "largest", "recent"), (7,))
        | dict.fromkeys(("share", "rarity", "observed", "expected"), (8,))
    )

    def __init__(self) -> None:
        for name in State.__annotations__.keys() - {"ROWS"}:
            setattr(self, name, np.zeros((*self.ROWS.get(name, ()), 0)))

    def part(self, here: NDArray[np.intp]) -> State:
        out = State()
        for name, array in vars(self).items():
            setattr(out, name, array[..., here])
        return out


class Engine:
    """The state of all series, and one step of all of them."""

    def __init__(self) -> None:
        self.v = State()
        self.counts = np.zeros((0, 7, _BINS), np.float32)  # how often each answer was in each bin
        self.table = np.zeros((0, 7, _BINS), np.float16)  # rarity of each bin
        self.judged = np.zeros(0, bool)  # which series the last step was about

    def resize(self, keep: NDArray[np.intp], add: int) -> None:
        """Keep these columns, in this order, and add new ones."""
        for name, old in vars(self.v).items():
            setattr(self.v, name, np.concatenate([old[..., keep], np.zeros((*old.shape[:-1], add))], axis=-1))
        for name in ("counts", "table"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old[keep], np.zeros((add, *old.shape[1:]), old.dtype)]))

    def step(self, now: float | Floats, values: Floats, period: Floats) -> Floats:
        """Judge one sample of each series, then learn it. NaN: no sample, no score."""
        score = np.full(len(values), np.nan)
        self.judged = np.isfinite(values)
        here = np.flatnonzero(self.judged)
        times = np.broadcast_to(np.asarray(now, float), values.shape)
        if len(here) == len(values):
            score[:] = self._step(self.v, here, times, values, period)
        elif len(here):
            part = self.v.part(here)
            score[here] = self._step(part, here, times[here], values[here], period[here])
            for name, array in vars(self.v).items():
                array[..., here] = getattr(part, name)
        return score

    def finding(self, at: int, period: float) -> Finding:
        """The strangest answer about the last sample of a series."""
        v = self.v
        rarity = v.rarity[:, at]
        top = next(k for k in _PLAINEST if rarity[k] >= rarity.max() - 0.3)
        age = float(v.last[at] - v.first[at])
        seasonal = SCORERS[top] in ("season", "residual") or v.trust[at] >= 0.5
        return Finding(
            SCORERS[top],
            float(v.observed[top, at]),
            float(v.expected[top, at]),
            of_day=bool(seasonal and age > DAY),
            spans=min(age, period / 2),
            knows=min(age, period),
            enough=age >= min(DAY, period),
            samples=(int(v.n[at]) - 1 + _TURN * top) // REBUILD * REBUILD - _TURN * top,
            one_in=None if v.rarity[top, at] > v.share[top, at] else float(10 ** v.share[top, at]),
        )

    def learning(self, at: int, period: float) -> str:
        """How far a series is known, in words."""
        age, n = float(self.v.last[at] - self.v.first[at]), int(self.v.n[at])
        if age >= period:
            return f"knows the last {duration(period)}"
        wait = f"; judges from sample {WARM + 1} on, now {n}" if n <= WARM else ""
        return f"learning, {duration(age)} of {duration(period)}{wait}"

    def _step(self, v: State, here: NDArray[np.intp], now: Floats, raw: Floats, period: Floats) -> Floats:
        with np.errstate(all="ignore"):
            new = v.n == 0
            for name in ("first", "last"):
                getattr(v, name)[new] = now[new]
            for name in ("low", "high", "mean", "x6", "x12", "same"):
                getattr(v, name)[new] = np.clip(raw[new], -1e150, 1e150)

            # Time. A gap lets all that is short begin anew.
            passed = now - v.last
            forward = passed > 0
            bound = np.where(v.every > 0, np.clip(passed, v.every / 2, v.every * 2), passed)
            v.every = np.where(forward, v.every + (bound - v.every) / np.clip(v.n, 1, 64), v.every)
            v.fresh[passed > 24 * v.every] = 0
            v.last = now.copy()
            step = np.maximum(v.every, 1e-3)

            # What is learnt of a value far outside of all seen so far is that it is outside, not how far.
            width = v.high - v.low
            room = 10 * np.where(width > 0, width, np.maximum(np.abs(v.high), np.abs(v.low)))
            room[room == 0] = 1e150
            far = np.clip(raw, np.maximum(v.low - 100 * room, -1e150), np.minimum(v.high + 100 * room, 1e150))
            x = np.clip(far, v.low - room, v.high + room)
            v.low, v.high = np.minimum(v.low, x), np.maximum(v.high, x)

            # The usual at this time of day, between the middles of half hours.
            at = now % DAY / (DAY / _SLOTS)
            slot = at.astype(np.intp)
            columns = np.arange(len(x))
            side = np.where(at - slot < 0.5, -1, 1)
            beside = (slot + side) % _SLOTS
            share = np.where(v.visits[beside, columns] > 0, np.abs(at - slot - 0.5), 0.0)
            usual = v.slots[slot, columns] * (1 - share) + v.slots[beside, columns] * share
            usual = np.where(v.visits[slot, columns] > 0, usual, v.mean)
            r, far_r = x - usual, far - usual
            trust = np.clip(1.5 * (1 - v.off / v.around), 0, 1)
            trust = np.where((now - v.first > 2 * DAY) & (v.around > 0), trust, 0.0)

            # Answers.
            v.fresh += 1
            v.n += 1
            v.x6 = _ew(v.x6, x, 6, v.fresh)
            v.r6 = _ew(v.r6, r, 6, v.fresh)
            v.x24 = np.where(v.fresh == 1, x, np.concatenate([v.x24[1:], x[None]]))
            v.r24 = np.where(v.fresh == 1, r, np.concatenate([v.r24[1:], r[None]]))
            jump = np.where(v.fresh == 1, 0.0, r - v.r12)
            v.jump12 = _ew(v.jump12, jump * jump, 12, v.fresh)
            local = np.where(v.fresh == 1, 0.0, np.abs(x - v.x12))
            far_jump = np.where(v.fresh == 1, 0.0, np.abs(far_r - v.r12))
            far_local = np.where(v.fresh == 1, 0.0, np.abs(far - v.x12))
            level = (v.x6 - v.mean) * (1 - trust) + v.r6 * trust
            mean24 = _mean24(v.x24)
            shift = (mean24 - v.mean) * (1 - trust) + _mean24(v.r24) * trust
            answers = np.stack([
                np.abs(level),
                np.abs(shift),
                np.abs(v.r6),
                far_jump,
                np.sqrt(v.jump12),
                np.abs(far_r) / (v.r60 + 0.2 * v.off),
                far_local / (v.local60 + 0.2 * v.rough),
            ])  # fmt: skip
            floor = 1e-9 * np.maximum(np.abs(v.low), np.abs(v.high))
            answers[:5][answers[:5] <= floor] = 0.0
            answers[5:][~np.isfinite(answers[5:])] = 0.0
            answers[5][np.abs(r) <= floor] = 0.0
            answers[6][local <= floor] = 0.0

            # Rarities.
            learn = v.n > 1
            longest, still = self._still(v, raw)
            v.share, v.rarity = self._rarity(v, here, answers, learn)
            v.share, v.rarity = np.vstack([v.share, still]), np.vstack([v.rarity, still])
            total = np.zeros(len(x))
            for rare, wide, weight in zip(v.rarity, _WIDTH, _WEIGHT, strict=True):
                worth = (rare + wide * (rare > 0)) * weight
                total += worth * worth * worth
            score: Floats = np.where((v.n > WARM) & (v.fresh >= SETTLE), np.cbrt(total), 0.0)

            # Only now the sample is learnt.
            spread, swing = np.sqrt(v.jump12), np.sqrt(v.swing)
            v.observed = np.stack([v.x6, mean24, v.x6, raw, spread, raw, raw, v.run])
            v.expected = np.stack([
                v.x6 - level, mean24 - shift, v.x6 - v.r6, x - jump, swing, usual, v.x12, longest
            ])  # fmt: skip
            v.x, v.usual, v.trust = raw, v.mean * (1 - trust) + usual * trust, trust
            size = np.maximum(period / 2 / step, 1000)
            v.around = _ew(v.around, np.abs(x - v.mean), size, v.n)
            v.mean = _ew(v.mean, x, size, v.n)
            v.off = _ew(v.off, np.abs(r), size, v.n)
            v.rough = _ew(v.rough, local, size, v.n)
            v.swing = _ew(v.swing, jump * jump, size, v.n)
            v.r60 = _ew(v.r60, np.abs(r), 60, v.n)
            v.local60 = _ew(v.local60, local, 60, v.n)
            v.x12 = _ew(v.x12, x, 12, v.fresh)
            v.r12 = _ew(v.r12, r, 12, v.fresh)
            self._season(v, slot, x, columns)
            self._rebuild(v, here, np.maximum(period / step, 5000))
        return score

    def _rarity(
        self, v: State, here: NDArray[np.intp], answers: Floats, learn: NDArray[np.bool_]
    ) -> tuple[Floats, Floats]:
        """-log10 of the share of earlier samples with an answer at least as large; and the same with up to 3
        more for an answer larger than all before, by how much: little is known at first, but a catastrophe is one.
        """
        some = answers > 0
        early = some & (v.known < WARM)
        v.known += early
        v.typical += np.where(early, (answers - v.typical) / np.maximum(v.known, 1), 0.0)
        bins = np.where(
            some, np.log(np.where(some, answers / v.typical, 1.0)) / _BIN_WIDTH + _TYPICAL_BIN, 0.0
        )
        bins = np.where(some, np.clip(bins, 1, _BINS - 1), 0.0).astype(np.intp)
        place = (here * (7 * _BINS) + np.arange(7)[:, None] * _BINS) + bins
        share = self.table.reshape(-1)[place].astype(float)
        beyond = some & (answers > v.largest)
        more = np.where(
            v.largest > 0, np.log10(np.where(beyond, answers, 1.0) / np.maximum(v.largest, 1e-300)), 1.0
        )
        rarity = share + np.where(beyond, np.clip(more, 0.0, 3.0), 0.0)
        self.counts.reshape(-1)[place] += learn
        v.recent = np.maximum(v.recent, answers)
        return share, rarity

    def _rebuild(self, v: State, here: NDArray[np.intp], memory: Floats) -> None:
        """Let the counts fade, and look up the rarity of each bin anew; the scorers take turns."""
        for scorer in range(7):
            due = np.flatnonzero((v.n + _TURN * scorer) % REBUILD == 0)
            if not len(due):
                continue
            rows = here[due]
            v.largest[scorer, due] = np.maximum(v.largest[scorer, due], v.recent[scorer, due])
            v.recent[scorer, due] = 0
            counts = self.counts[rows, scorer] * np.exp(-REBUILD / memory[due]).astype(np.float32)[:, None]
            top = counts[:, -8:].sum(1)
            for row in np.flatnonzero((top > 32) & (top > counts[:, 1:].sum(1) / 4)):
                # What was typical at the start is so no more: make room above.
                bins = counts[row]
                bins[1] += bins[2:41].sum()
                bins[2:-39], bins[-39:] = bins[41:].copy(), 0
                v.typical[scorer, due[row]] *= math.exp(39 * _BIN_WIDTH)
            self.counts[rows, scorer] = counts
            above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] + 1
            self.table[rows, scorer] = np.log(above[:, :1] / above) * _LOG10_E

    def _still(self, v: State, raw: Floats) -> tuple[Floats, Floats]:
        """The longest run of equal values before this one, and the rarity of one twice as long."""
        same = raw == v.same
        v.longest = np.where(same, v.longest, np.maximum(v.longest, v.run))
        v.moved = np.maximum(v.moved, ~same & (v.n > 1))
        v.run = np.where(same, v.run + 1, 1.0)
        v.same = raw.copy()
        odd = (v.moved > 0) & (v.run > 2 * v.longest)
        return v.longest, np.where(odd, np.log10(v.n * v.run / np.maximum(v.longest, 1)), 0.0)

    def _season(self, v: State, slot: NDArray[np.intp], x: Floats, columns: NDArray[np.intp]) -> None:
        """At the end of each half hour its mean moves the slot, by at most 4 usual residuals."""
        over = np.flatnonzero((v.slot != slot) & (v.slot_n > 0))
        if len(over):
            old = v.slot[over].astype(np.intp)
            mean, visits = v.slot_sum[over] / v.slot_n[over], v.visits[old, over]
            move = mean - v.slots[old, over]
            bound = 4 * v.off[over]
            move = np.where(visits > 0, np.clip(move, -bound, bound), move)
            v.slots[old, over] += move / np.minimum(visits + 1, _VISITS)
            v.visits[old, over] += 1
            v.slot_sum[over] = v.slot_n[over] = 0
        v.slot = slot.astype(float)
        v.slot_sum += x
        v.slot_n += 1


def _ew(mean: Floats, x: Floats, size: float | Floats, n: Floats) -> Floats:
    """The next exponentially weighted mean over about `size` samples; a plain mean of the first ones."""
    out: Floats = mean + (x - mean) / np.minimum(n, size)
    return out


def _mean24(last: Floats) -> Floats:
    """Added pair by pair: the same bits for one series as for thousands."""
    last = last[:12] + last[12:]
    last = last[:6] + last[6:]
    last = last[:3] + last[3:]
    out: Floats = (last[0] + last[1] + last[2]) / 24
    return out
