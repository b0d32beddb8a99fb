"""What causes a value, in words: who holds, what runs, what was slow, failed or lost?"""

from __future__ import annotations

from collections import Counter
from time import monotonic, perf_counter

from uno.core.monitoring.instrumentation import RECENT_SECONDS, Held, Site, Stat, describe_site
from uno.core.monitoring.metrics import CounterCell


def describe_holds(stat: Stat, noun: str, limit: float | None = None, *, most: int = 3) -> str:
    """Who holds the slots, in words: "5 of 5 connections held: shop/orders.py:88 in checkout (5, longest 12 s)"."""
    now = monotonic()
    groups: dict[str, list[float]] = {}
    for site, name, since in list(stat.holds.values()):
        place = describe_site(site) if site is not None else name
        if site is not None and name:
            place += f" for {name}"
        groups.setdefault(place, []).append(now - since)
    total = sum(map(len, groups.values()))
    if not total:
        return ""
    worst = sorted(groups.items(), key=lambda group: (-len(group[1]), -max(group[1])))
    places = "; ".join(f"{place} ({len(ages)}, longest {max(ages):.1f} s)" for place, ages in worst[:most])
    more = f"; and {len(worst) - most} more places" if len(worst) > most else ""
    of = "" if limit is None else f" of {limit:g}"
    return f"{total}{of} {noun}{'' if total == 1 and not of else 's'} held: {places}{more}"


MAX_LOST = 16


class Lost:
    """What was taken and then dropped without being returned: how often, and how often from where and for whom."""

    __slots__ = ("count", "places")

    def __init__(self) -> None:
        self.count = CounterCell()
        self.places: dict[tuple[Site | None, str], int] = {}

    def add(self, hold: Held) -> None:
        """The garbage collector came upon what ``hold`` had."""
        self.count.value += 1
        place = hold[0], hold[1]
        if place in self.places or len(self.places) < MAX_LOST:
            self.places[place] = self.places.get(place, 0) + 1


def lost_of(stat: Stat) -> Lost:
    """What was lost of an instance."""
    lost: Lost | None = stat.extra.get("lost")
    return lost if lost is not None else stat.extra.setdefault("lost", Lost())


def describe_lost(stat: Stat, *, most: int = 3) -> str:
    """Where what was never returned had been taken: "12 never returned, taken at shop/orders.py:40 in search"."""
    places = lost_of(stat).places.copy()
    worst = sorted(places.items(), key=lambda item: -item[1])[:most]
    return "; ".join(f"{n} never returned, taken {_taken(site, name)}" for (site, name), n in worst)


def _taken(site: Site | None, name: str) -> str:
    if site is None:
        return f"by {name}"
    return f"at {describe_site(site)} for {name}" if name else f"at {describe_site(site)}"


def describe_running(stat: Stat, *, most: int = 3) -> str:
    """On whose behalf operations run now: "4 running: GET /cart (3, longest 0.2 s); thread jobs (1, ...)"."""
    now = perf_counter()
    groups: dict[str, list[float]] = {}
    for start, name in list(stat.running.values()):
        groups.setdefault(name, []).append(now - start)
    worst = sorted(groups.items(), key=lambda group: (-len(group[1]), -max(group[1])))[:most]
    places = "; ".join(f"{name} ({len(ages)}, longest {max(ages):.1f} s)" for name, ages in worst)
    return f"{sum(map(len, groups.values()))} running: {places}" if places else ""


def describe_slow(stat: Stat, *, most: int = 3) -> str:
    """Where the slow operations of the last minute were called from: "12 slow from shop/orders.py:40 in search"."""
    since = monotonic() - RECENT_SECONDS
    calls = () if stat.slow_calls is None else stat.slow_calls.copy()
    worst = Counter(site for moment, site in calls if moment >= since).most_common(most)
    return "; ".join(f"{count} slow from {describe_site(site)}" for site, count in worst)


def describe_error(stat: Stat) -> str:
    """The last error by its type and age, when it is the latest thing that happened or under a minute old."""
    age = monotonic() - stat.last_error
    if not stat.last_error or age > RECENT_SECONDS:
        return ""
    return f"last error {stat.last_error_kind} {age:.0f} s ago, {stat.errors.value:g} in all"
