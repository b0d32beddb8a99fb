"""How is a number, a time or a comparison said?"""

from __future__ import annotations

import math

from uno.core.records import NamedTuple


def number(value: float) -> str:
    """Three figures and no exponent, below a million."""
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float, unit: str) -> str:
    """A value with its UCUM unit as people write it: 0.128 s is `128 ms`."""
    base, slash, per = unit.partition("/")
    scales: tuple[tuple[float, str], ...] = ()
    if base == "s" and not slash:
        scales = ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    elif base == "By":
        scales = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1, "B"))
    elif base == "1" and not slash:
        return f"{number(value * 100)} %"
    for factor, name in scales:
        if abs(value) >= factor or (value and factor == scales[-1][0]):
            return f"{number(value / factor)} {name}{slash}{per}"
    name = "" if base.startswith("{") or base == "1" else base
    return f"{number(value)} {name}".rstrip() + slash + per


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {name}"
    return f"{seconds // 1:.0f} s"


def _times(observed: float, usual: float) -> str:
    ratio = observed / usual if usual else math.inf
    return f"{number(round(ratio, 1))} times" if ratio < 1000 else "more than 1000 times"


def _against(observed: float, usual: float) -> str:
    if usual > 0 and observed >= 1.5 * usual:
        return f"is {_times(observed, usual)} its usual"
    if usual > 0 and 0 <= observed <= usual / 1.5:
        return f"is down to {number(100 * observed / usual)} % of its usual"
    return "is above its usual" if observed > usual else "is below its usual"


class Finding(NamedTuple):
    """What the strangest answer about a sample was."""

    scorer: str
    observed: float
    usual: float
    of_day: bool  # `usual` is that of this time of day
    spans: float  # seconds that a mean covers
    knows: float  # seconds of history
    enough: bool  # ... which needs no excuse
    samples: int  # that it is compared with
    one_in: float | None  # one in so many samples is like this; None: never


def sentence(title: str, unit: str, finding: Finding, lasts: float) -> str:
    """What, compared with what, since when (`lasts`: seconds), how rare."""
    scorer, observed, usual = finding.scorer, finding.observed, finding.usual
    now, was, known = quantity(observed, unit), quantity(usual, unit), duration(finding.knows)
    excuse = "" if finding.enough else f" (only {known} of history)"
    if scorer == "still":
        before = f"the longest time before was {max(usual, 1):.0f}"
        return f"{title} has not changed for {observed:.0f} samples; {before}{excuse}"
    if scorer in ("level", "shift", "season"):
        where = "at this time of day" if finding.of_day else f"in the last {duration(finding.spans)}"
        count = 24 if scorer == "shift" else 6
        said = f"{_against(observed, usual)} (usual {where} {was}; now {now}, mean of {count} samples)"
    elif scorer == "jump":
        said = f"jumped from about {was} to {now}"
    elif scorer == "spread" and observed < 1.2 * usual:
        said = f"swings more widely than usual, by about {now}"
    elif scorer == "spread":
        said = f"swings {_times(observed, usual)} as widely as usual (by about {now}; usual {was})"
    else:
        near = "its recent mean" if scorer == "local" else "its mean"
        near = "its usual at this time of day" if scorer == "residual" and finding.of_day else near
        said = f"is {now}, far from {near} {was} for how little it moves otherwise"
    since = f", for {duration(lasts)}" if lasts >= 1 and scorer != "jump" else ""
    one_in = finding.one_in
    rare = f"never so in {finding.samples} samples before"
    if one_in is not None:
        rare = f"1 in {one_in:.0f} samples is like this"
    return f"{title} {said}{since}; {rare}{excuse}"
