"""Which series stand in which family, and which bytes can be used again?

A family's series are cut into chunks. A chunk knows everything of its lines but the numbers, and keeps its bytes as
long as those stay the same: a scrape costs what changed since the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus import recorded
from uno.core.monitoring.exporters.prometheus.style import Style
from uno.core.monitoring.metrics import Kind
from uno.core.monitoring.series import Frame, Series
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Series of a chunk: some 0.2 ms of work, so that a slice of it can end in time.
SCALARS = 256
HISTOGRAMS = 16
#: Names of families that every page has beside the store's, with their lines.
STATE = ("uno_resource_info", "uno_resource_health", "uno_alert")


class Rendered:
    """The bytes of a chunk, and what they were made from; ``packed`` is filled when they are compressed."""

    __slots__ = ("key", "packed", "plain")

    def __init__(self, key: object, plain: bytes) -> None:
        self.key, self.plain = key, plain
        self.packed: bytes | None = None


class Names(NamedTuple):
    """What a family is called in a format: its own name, that of its lines, its type, whether beginnings are shown."""

    family: str
    line: str
    type: str
    created: bool = False


class Family:
    """All series of one name."""

    __slots__ = ("chunks", "help", "kind", "name", "names", "series", "unit")

    def __init__(self, name: str, series: list[Series]) -> None:
        first = series[0].metric
        self.name, self.kind, self.unit = name, first.kind, first.unit
        self.help = first.description or first.name
        self.series = series
        self.names = Names(name, name, first.kind)
        self.chunks: list[Chunk] = []


class Chunk:
    """Some series of a family, in the order of their lines."""

    __slots__ = ("family", "hashes", "last", "offered", "series", "style")

    def __init__(
        self, style: Style, family: Family, offered: list[Series], series: list[Series], hashes: list[int]
    ):
        self.style, self.family, self.offered, self.series = style, family, offered, series
        self.hashes = hashes
        self.last = Rendered(None, b"")

    def place(self) -> None:
        """Note the columns of the series, as they are now."""

    def render(self, frame: Frame) -> Rendered:
        """The lines at the frame's moment."""
        raise NotImplementedError


class ScalarChunk(Chunk):
    """Counters or gauges: one number each."""

    __slots__ = ("_columns", "_template", "_widest")

    def __init__(
        self, style: Style, family: Family, offered: list[Series], series: list[Series], hashes: list[int]
    ):
        super().__init__(style, family, offered, series, hashes)
        self._template: tuple[object, bytes] = (None, b"")

    def place(self) -> None:
        import numpy as np

        self._columns = np.array([series.column for series in self.series], dtype=np.int64)
        self._widest = int(self._columns.max())

    def _values(self, frame: Frame) -> NDArray[np.float64]:
        row = frame.row
        if self._widest < len(row):
            return row[self._columns]
        import numpy as np

        if not len(row):
            return np.full(len(self._columns), np.nan)
        known = row.take(self._columns, mode="clip")
        return np.where(self._columns < len(row), known, np.nan)  # newer than the frame: a gap so far

    def render(self, frame: Frame) -> Rendered:
        values = self._values(frame)
        created = exemplars = None
        if self.style.follows_cells and self.family.kind == "counter":
            if self.family.names.created:
                created = tuple(map(recorded.created, self.series))
            found = [recorded.exemplar(series) for series in self.series]
            if any(found):
                exemplars = tuple(e if e is not None and e.time <= frame.time else None for e in found)
        key = (values.tobytes(), created, exemplars)
        if self.last.key == key:
            return self.last
        self.last = rendered = Rendered(key, self._lines(values, created, exemplars))
        return rendered

    def _lines(
        self,
        values: NDArray[np.float64],
        created: tuple[float | None, ...] | None,
        exemplars: tuple[Exemplar | None, ...] | None,
    ) -> bytes:
        series: Sequence[Series] = self.series
        begun: Sequence[float | None] = created or (None,) * len(series)
        known = values == values
        gaps = b""
        if not known.all():  # NaN is a gap: no line
            gaps = known.tobytes()
            values = values[known]
            if not len(values):
                return b""
        kind = self.style.kind(values)
        key = (gaps, kind, created, exemplars)
        present, template = self._template
        if present != key:
            if gaps:
                places = known.nonzero()[0].tolist()
                series, begun = [series[i] for i in places], [begun[i] for i in places]
                exemplars = tuple(exemplars[i] for i in places) if exemplars else None
            template = self.style.template(self.family, series, begun, exemplars, kind)
            self._template = (key, template)
        return self.style.fill(template, kind, values)


class HistogramChunk(Chunk):
    """Histograms: many lines each."""

    __slots__ = ("_cache",)

    def __init__(
        self, style: Style, family: Family, offered: list[Series], series: list[Series], hashes: list[int]
    ):
        super().__init__(style, family, offered, series, hashes)
        self._cache: dict[object, bytes] = {}

    def render(self, frame: Frame) -> Rendered:
        found = [recorded.distribution(frame, series) for series in self.series]
        created = exemplars = None
        if self.style.follows_cells:
            if self.family.names.created:
                created = tuple(map(recorded.created, self.series))
            seen = [recorded.exemplars(series) for series in self.series]
            if any(seen):
                exemplars = tuple(
                    {place: e for place, e in sorted(by_bucket.items()) if e.time <= frame.time}
                    if by_bucket
                    else None
                    for by_bucket in seen
                )
        key = (found, created, exemplars)
        if self.last.key == key:
            return self.last
        if len(self._cache) > 2 * HISTOGRAMS:
            self._cache = {}
        plain = self.style.histograms(self.family, self.series, found, exemplars, self._cache)
        self.last = rendered = Rendered(key, plain)
        return rendered


class Layout:
    """The families of a page. Never changed once it is built: a page that is being made keeps its own."""

    __slots__ = ("families", "placed", "taken", "version")

    def __init__(self, version: int, placed: int) -> None:
        self.version, self.placed = version, placed
        self.families: list[Family] = []
        #: The names of all lines, and of families where they differ.
        self.taken: set[str] = set()


def lines_of(name: str, kind: str) -> tuple[str, ...]:
    """The names of the lines of a family."""
    if kind == "histogram":
        return (f"{name}_bucket", f"{name}_sum", f"{name}_count")
    return (name,)


def build(
    layout: Layout,
    style: Style,
    found: Iterable[Series],
    before: Layout | None,
    leave_out: Callable[[str, Series, str], None],
) -> Generator[float, None, None]:
    """Fill ``layout``, in steps of less than a millisecond; chunks of the one ``before`` are used again."""
    groups: dict[str, list[Series]] = {}
    names: dict[int, str] = {}
    for n, series in enumerate(found):
        name = names.get(id(series.metric))
        if name is None:
            name = names[id(series.metric)] = style.name(series)
        groups.setdefault(name, []).append(series)
        if not n % 1_000:
            yield 0.0
    taken = {style.escaped(name) for name in STATE}
    for name in sorted(groups):
        members = groups[name]
        kind: Kind = members[0].metric.kind
        lines = set(lines_of(name, kind))
        if lines & taken:
            for series in members[:1]:
                leave_out(name, series, "its lines have the names of another metric")
            continue
        other = next((series for series in members if series.metric.kind != kind), None)
        if other is not None:
            leave_out(name, other, f"it is a {other.metric.kind} there and a {kind} of another resource")
            members = [series for series in members if series.metric.kind == kind]
        taken |= lines
        layout.families.append(Family(name, members))
    yield 0.0
    apart = style.claim(layout.families, taken)
    if apart:
        for family in layout.families:
            if family.name in apart:
                leave_out(family.name, family.series[0], "OpenMetrics takes it for a part of another metric")
        layout.families = [family for family in layout.families if family.name not in apart]
    layout.taken = taken | {family.name for family in layout.families}
    known = {family.name: family for family in before.families} if before is not None else {}
    for family in layout.families:
        yield from _cut(layout, style, family, known.get(family.name), leave_out)
    layout.families = [family for family in layout.families if family.chunks]


def _cut(
    layout: Layout,
    style: Style,
    family: Family,
    before: Family | None,
    leave_out: Callable[[str, Series, str], None],
) -> Generator[float, None, None]:
    size, make = (HISTOGRAMS, HistogramChunk) if family.kind == "histogram" else (SCALARS, ScalarChunk)
    reusable: list[Chunk] = []
    if before is not None and (before.names, before.kind) == (family.names, family.kind):
        reusable = before.chunks
    seen: set[int] = set()
    for at in range(0, len(family.series), size):
        offered = family.series[at : at + size]
        chunk = reusable[at // size] if at // size < len(reusable) else None
        if chunk is None or chunk.offered != offered or not seen.isdisjoint(chunk.hashes):
            taken: list[Series] = []
            hashes: list[int] = []
            for series in offered:
                labels = hash(style.labels(series))
                if labels in seen and _is_there(style, series, [*family.chunks], taken):
                    leave_out(family.name, series, "another metric of the resource has the same name here")
                elif family.kind != "histogram" or recorded.bounds(series) is not None:
                    seen.add(labels)
                    taken.append(series)
                    hashes.append(labels)
            if not taken:
                continue
            if len(taken) == len(offered):
                taken = offered
            chunk = make(style, family, offered, taken, hashes)
        else:
            chunk = _renewed(chunk, family)
            seen.update(chunk.hashes)
        chunk.place()
        family.chunks.append(chunk)
        yield 0.0
    family.series = []


def _renewed(chunk: Chunk, family: Family) -> Chunk:
    """The chunk for a new layout: pages that are being made keep the columns of the old one."""
    new = type(chunk)(chunk.style, family, chunk.offered, chunk.series, chunk.hashes)
    new.last = chunk.last
    if isinstance(new, ScalarChunk) and isinstance(chunk, ScalarChunk):
        new._template = chunk._template
    elif isinstance(new, HistogramChunk) and isinstance(chunk, HistogramChunk):
        new._cache = chunk._cache
    return new


def _is_there(style: Style, series: Series, chunks: list[Chunk], last: list[Series]) -> bool:
    """Whether a series with the same labels is there already; equal hashes say so almost for certain."""
    labels = style.labels(series)
    everything = [*(s for chunk in chunks for s in chunk.series), *last]
    return any(labels == style.labels(other) for other in everything)
