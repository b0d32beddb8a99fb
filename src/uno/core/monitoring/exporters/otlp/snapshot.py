"""What is sent of a frame, and what has a receiver got already?

A Layout holds the parts of points that do not change, made anew only when series come or go. A Snapshot is one
frame with its layout: small, so that a queue of them can wait for a receiver. Requests are made of it when it is
sent; under delta temporality the Ledger knows then what was accepted last, so that what a failed or dropped
request held is in the next one, and nothing twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, compress, repeat
from math import nan
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from uno.core.monitoring.exporters.otlp.encode import CUMULATIVE, DELTA, Encoding, Form, Native, Sample
from uno.core.monitoring.metrics import Cell, CounterCell, HistogramCell
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.exporters.otlp.config import Histograms, Temporality
    from uno.core.monitoring.monitor import ResourceMonitor
    from uno.core.monitoring.series import Frame, Series, SeriesStore

#: Bytes of one request before compression. Receivers take 20 MiB by default, some only 4.
MAX_REQUEST = 3 * 1024 * 1024
_TRACE, _SPAN = re.compile(r"[0-9a-fA-F]{32}\Z"), re.compile(r"[0-9a-fA-F]{16}\Z")
NANO = 1_000_000_000
_CELL = attrgetter("cell")


class Row:
    """One series with what does not change of its points. ``start`` is in nanoseconds."""

    __slots__ = ("attributes", "buckets", "cell", "column", "fragment", "head", "series", "start")

    def __init__(self, series: Series, start: int) -> None:
        self.series, self.cell, self.column, self.start = series, series.cell, series.column, start
        self.attributes = (
            ("resource", series.resource),
            *zip(series.metric.labels, series.labels, strict=True),
        )
        self.head = self.fragment = b""
        self.buckets = 0

    def change_head(self, encoding: Encoding) -> bytes:
        """The head of a point whose start changes; made when it is first needed."""
        if not self.fragment:
            self.fragment = encoding.change_head(encoding.attributes(self.attributes))
        return self.fragment

    def prefix(self, encoding: Encoding) -> bytes:
        """A histogram's head with its start; made when it is first needed."""
        if not self.fragment:
            self.fragment = encoding.histogram_prefix(self.head, self.start, self.buckets)
        return self.fragment


class Family:
    """All series of one name, kind and unit."""

    __slots__ = ("_change_heads", "cells", "columns", "form", "header", "heads", "last", "rows", "series")

    def __init__(self, form: Form, header: bytes, rows: list[Row]) -> None:
        self.form, self.header, self.rows = form, header, rows
        self.heads = [row.head for row in rows]
        self.series = [row.series for row in rows]
        self.cells: list[Cell] = [row.cell for row in rows]
        self._change_heads: list[bytes] = []
        self.columns: Any = None
        self.last = max(row.column for row in rows)

    def change_heads(self, encoding: Encoding) -> list[bytes]:
        """The heads of points whose start changes; made when they are first needed."""
        if not self._change_heads:
            self._change_heads = [row.change_head(encoding) for row in self.rows]
        return self._change_heads

    def has_none_of(self, some: dict[Cell, Any]) -> bool:
        """Whether no cell of the family is among ``some``."""
        return not some or some.keys().isdisjoint(self.cells)


class Layout:
    """The families of a store at one version."""

    __slots__ = ("cells", "counters", "distributions", "families", "placed", "rows", "series", "version")

    def __init__(
        self, store: SeriesStore, encoding: Encoding, started: int, now: int, before: Layout | None = None
    ) -> None:
        """``started``: of series that do not know it themselves; ``now``: no series starts later. Nanoseconds."""
        import numpy as np

        self.version, self.placed = store.version, store.placed
        self.series = store.all()
        self.cells = list(map(_CELL, self.series))
        self.counters: list[Any] = [cell for cell in self.cells if isinstance(cell, CounterCell)]
        self.distributions: list[Any] = [cell for cell in self.cells if isinstance(cell, HistogramCell)]
        known = {} if before is None else before.rows
        self.rows: dict[Series, Row] = {}
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for series in self.series:
            row = known.get(series)
            if row is None or row.cell is not series.cell or row.column != series.column:
                row = _row(series, encoding, started, now)
            self.rows[series] = row
            spec = series.metric
            groups.setdefault((spec.name, spec.kind, spec.unit), []).append(row)
        self.families: list[Family] = []
        for (name, kind, unit), rows in sorted(groups.items(), key=lambda group: group[0]):
            form = cast(Form, {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[kind])
            family = Family(form, encoding.header(name, rows[0].series.metric.description, unit), rows)
            family.columns = np.array([row.column for row in rows], dtype=np.intp)
            self.families.append(family)

    def fits(self, store: SeriesStore) -> bool:
        """Whether the store still has these series, with these cells."""
        return self.version == store.version and self.cells == list(map(_CELL, self.series))


def _row(series: Series, encoding: Encoding, started: int, now: int) -> Row:
    cell = series.cell
    row = Row(series, 0)
    if series.metric.kind != "gauge":
        created = getattr(cell, "created", None)
        row.start = min(started if created is None else int(created * NANO), now)
    if isinstance(cell, HistogramCell):
        row.head = encoding.histogram_head(row.attributes, cell.bounds)
        row.buckets = len(cell.bounds) + 1
    else:
        row.head = encoding.number_head(encoding.attributes(row.attributes), row.start)
    return row


class Counts(NamedTuple):
    """A histogram's totals at a moment."""

    seen: int = 0
    sum: float = 0.0
    counts: tuple[int, ...] = ()
    native: Any = None

    @classmethod
    def of(cls, totals: Sequence[Any]) -> Counts:
        return cls(*totals[:4])

    def since(self, before: Counts) -> Counts | None:
        """What was added after ``before``; None when the two are not of one run (the count began anew)."""
        if before.seen > self.seen or len(before.counts) not in (0, len(self.counts)):
            return None
        old = before.counts or (0,) * len(self.counts)
        native = self.native
        if native is not None and before.native is not None:
            native = _difference(native, before.native)
        counts = tuple(a - b for a, b in zip(self.counts, old, strict=True))
        if any(n < 0 for n in counts) or (native is None) != (self.native is None):
            return None
        return Counts(self.seen - before.seen, self.sum - before.sum, counts, native)


class Buckets(NamedTuple):
    """Exponential buckets, as the contract of metrics has them."""

    schema: int
    zero_threshold: float
    zero_count: int
    positive: dict[int, int]
    negative: dict[int, int]


def _difference(now: Native, before: Native) -> Buckets | None:
    """``now`` less ``before``, which may be finer and have a narrower zero bucket; None where a count fell."""
    sides = []
    zeros = now.zero_count - before.zero_count
    for new, old in ((now.positive, before.positive), (now.negative, before.negative)):
        left = dict(new)
        for index, count in old.items():
            if before.schema < now.schema:
                return None
            for _ in range(before.schema - now.schema):
                index = (index + 1) >> 1  # the bucket that it lies in at the coarser scale
            if index in left:
                left[index] -= count
            elif now.zero_threshold > before.zero_threshold:
                zeros -= count  # it was taken into the wider zero bucket
            elif count:
                return None
        if any(count < 0 for count in left.values()):
            return None
        sides.append({index: count for index, count in left.items() if count})
    if zeros < 0:
        return None
    return Buckets(now.schema, now.zero_threshold, zeros, *sides)


class Entries(NamedTuple):
    """Cells, and for each its total and the time of that."""

    cells: list[Cell]
    states: list[tuple[Any, int]]


class Ledger:
    """What was accepted last of each cell that is sent as delta, and what a cell held when this process began.

    A forked child inherits its parent's counts, which the parent sends: ``origin`` holds them.
    """

    __slots__ = ("accepted", "origin")

    def __init__(self) -> None:
        self.accepted: dict[Cell, tuple[Any, int]] = {}
        self.origin: dict[Cell, tuple[Any, int]] = {}

    def commit(self, entries: Iterable[Entries]) -> None:
        """A receiver has taken these totals of that time."""
        for cells, states in entries:
            self.accepted.update(zip(cells, states, strict=True))

    def keep(self, layouts: Iterable[Layout]) -> None:
        """Forget the cells that are in none of ``layouts``."""
        living = {cell for layout in layouts for cell in layout.cells}
        for known in (self.accepted, self.origin):
            for cell in [cell for cell in known if cell not in living]:
                del known[cell]

    def begin_anew(self, store: SeriesStore, now: float) -> None:
        """In a forked child: what the cells hold belongs to the parent."""
        time = int(now * NANO)
        self.accepted.clear()
        self.origin.clear()
        for series in store.all():
            cell = series.cell
            if isinstance(cell, CounterCell):
                if cell.value == cell.value and cell.value:
                    self.origin[cell] = (cell.value, time)
            elif isinstance(cell, HistogramCell):
                cell.freeze()
                totals = Counts.of(cell.frozen)
                if totals.seen:
                    self.origin[cell] = (totals, time)


class Snapshot:
    """A frame that is to be sent. ``time`` in nanoseconds of the wall clock."""

    __slots__ = ("histograms", "layout", "points", "row", "samples", "states", "time")

    def __init__(
        self,
        layout: Layout,
        frame: Frame,
        time: int,
        samples: dict[Cell, list[tuple[int, Sample]]],
        states: list[State],
    ) -> None:
        import numpy as np

        self.layout, self.row, self.time = layout, frame.row, time
        self.histograms = frame.histograms
        self.samples, self.states = samples, states
        #: How many points it has at most: what is counted when it is dropped.
        self.points = sum(len(state.rows) for state in states) + len(frame.histograms)
        for family in layout.families:
            if family.form != "histogram":
                found = self.row[family.columns[family.columns < len(self.row)]]
                self.points += int(np.count_nonzero(found == found))

    @property
    def size(self) -> int:
        """About how many bytes waiting costs."""
        return int(self.row.nbytes) + 256 * len(self.histograms)


class State(NamedTuple):
    """A gauge of 1 for each thing that is so: resources, their health, alerts."""

    name: str
    description: str
    rows: list[tuple[tuple[str, str], ...]]


class Batch(NamedTuple):
    """One request: its body, its number of points, and what the ledger notes once it is accepted."""

    body: bytes
    points: int
    entries: list[Entries]


class Piece(NamedTuple):
    """The points of one metric."""

    form: Form
    header: bytes
    temporality: int
    points: list[bytes]
    #: Of each point under delta; none otherwise.
    entries: Entries


def take(
    monitor: ResourceMonitor, encoding: Encoding, last: Layout | None, *, after: int, seq: int
) -> Snapshot | None:
    """The last frame with its layout; None when there is none newer than ``seq``.

    ``after`` (nanoseconds) is the time of the snapshot before: exemplars from then on are new.
    """
    store = monitor.store
    for _ in range(5):
        frame = store.frame
        if frame is None or frame.seq == seq:
            return None
        time = max(int(monitor.clock.wall(frame.time) * NANO), after + 1)
        layout = last
        if layout is None or not layout.fits(store):
            started = int(monitor.clock.wall(monitor.started) * NANO)
            layout = Layout(store, encoding, started, time, last)
        # Columns may be moved at any moment: then the frame is of one order, and the layout of another.
        if store.placed == layout.placed and frame.version >= layout.placed:
            break
    else:
        return None
    return Snapshot(layout, frame, time, _new_samples(layout, after), states(monitor))


def _new_samples(layout: Layout, after: int) -> dict[Cell, list[tuple[int, Sample]]]:
    found: dict[Cell, list[tuple[int, Sample]]] = {}
    held: list[tuple[Cell, dict[int, Any]]] = []
    if hasattr(CounterCell, "exemplar"):
        held = [(c, {0: c.exemplar}) for c in layout.counters if c.exemplar is not None]
    if hasattr(HistogramCell, "exemplars"):
        held += [(c, c.exemplars) for c in layout.distributions if c.exemplars]
    for cell, exemplars in held:
        new = [(at, _sample(e)) for at, e in list(exemplars.items()) if e.time * NANO > after]
        if new:
            found[cell] = new
    return found


def _sample(exemplar: Any) -> Sample:
    """An exemplar with its trace and span apart, where its labels name them."""
    labels = dict(exemplar.labels)
    trace, span = labels.get("trace_id", ""), labels.get("span_id", "")
    if _TRACE.match(trace) and _SPAN.match(span):
        del labels["trace_id"], labels["span_id"]
        ids = (bytes.fromhex(trace), bytes.fromhex(span))
    else:
        ids = (b"", b"")
    return Sample(float(exemplar.value), int(exemplar.time * NANO), tuple(labels.items()), *ids)


def states(monitor: ResourceMonitor) -> list[State]:
    """What the Prometheus page says of resources, their health and alerts, in OpenTelemetry's names."""
    now = monitor.clock.now()
    info: list[tuple[tuple[str, str], ...]] = []
    health: list[tuple[tuple[str, str], ...]] = []
    for r in monitor.manager:
        info.append((("resource", r.id), ("type", r.type), ("name", r.name), ("endpoint", r.endpoint or "")))
        health.append((("resource", r.id), ("status", monitor.health.health(r.id, now).status.value)))
    alerts = [
        (
            ("resource", a.resource), ("metric", a.metric), ("level", a.level.label), ("state", a.state),
            ("source", a.source), *((f"label.{k}", v) for k, v in a.labels.items()),
        )
        for a in monitor.alerts.active()
    ]  # fmt: skip
    return [
        State("uno.resource.info", "What a resource is", info),
        State("uno.resource.health", "The health of a resource: 1 for its present status", health),
        State("uno.alert", "Alerts that are pending or firing", list(dict.fromkeys(alerts))),
    ]


class Requests:
    """Makes requests of snapshots."""

    def __init__(
        self,
        encoding: Encoding,
        sender: tuple[bytes, bytes],
        temporality: Temporality,
        histograms: Histograms,
    ) -> None:
        self._encoding, self._sender = encoding, sender
        self._temporality = temporality
        self._exponential = histograms.startswith("base2")

    def make(self, snapshot: Snapshot, ledger: Ledger, limit: int = MAX_REQUEST) -> Iterator[Batch]:
        """The requests of a snapshot, each of at most ``limit`` bytes (but for a point that is larger alone)."""
        encoding = self._encoding
        metrics: list[bytes] = []
        entries: list[Entries] = []
        size = points = 0
        room = limit - sum(map(len, self._sender)) - 64
        for piece in self._pieces(snapshot, ledger):
            at, fragments = 0, piece.points
            while at < len(fragments):
                free = room - size - len(piece.header) - 64
                if not at and sum(map(len, fragments)) + len(fragments) <= free:
                    fit = len(fragments)
                else:
                    fit = bisect_right(list(accumulate(len(f) + 1 for f in fragments[at:])), free)
                if not fit and metrics:
                    yield Batch(encoding.request(self._sender, metrics), points, entries)
                    metrics, entries, size, points = [], [], 0, 0
                    continue
                fit = fit or 1
                chosen = fragments if fit == len(fragments) else fragments[at : at + fit]
                metrics.append(encoding.metric(piece.header, piece.form, piece.temporality, chosen))
                if piece.entries.cells:
                    cells, states = piece.entries
                    entries.append(Entries(cells[at : at + fit], states[at : at + fit]))
                size += len(metrics[-1])
                points += fit
                at += fit
        if metrics:
            yield Batch(encoding.request(self._sender, metrics), points, entries)

    def _pieces(self, snapshot: Snapshot, ledger: Ledger) -> Iterator[Piece]:
        encoding = self._encoding
        for family in snapshot.layout.families:
            if family.form == "histogram":
                yield from self._histograms(family, snapshot, ledger)
            elif family.form == "gauge":
                yield Piece("gauge", family.header, 0, self._plain(family, snapshot), Entries([], []))
            else:
                yield from self._counters(family, snapshot, ledger)
        for state in snapshot.states:
            heads = [encoding.number_head(encoding.attributes(pairs), 0) for pairs in state.rows]
            header = encoding.header(state.name, state.description, "1")
            yield Piece(
                "gauge",
                header,
                0,
                encoding.numbers(heads, [1.0] * len(heads), snapshot.time),
                Entries([], []),
            )

    def _plain(self, family: Family, snapshot: Snapshot) -> list[bytes]:
        """The points of all rows that have a value."""
        heads, values = family.heads, _values(snapshot.row, family)
        present = values == values
        found = values.tolist()
        if not present.all():  # NaN is a gap: no point
            heads = [head for head, value in zip(heads, found, strict=True) if value == value]
            found = values[present].tolist()
        return self._encoding.numbers(heads, found, snapshot.time)

    def _counters(self, family: Family, snapshot: Snapshot, ledger: Ledger) -> Iterator[Piece]:
        samples, origin, time = snapshot.samples, ledger.origin, snapshot.time
        if family.has_none_of(samples) and family.has_none_of(origin):
            if self._temporality == "cumulative":
                yield Piece("sum", family.header, CUMULATIVE, self._plain(family, snapshot), Entries([], []))
                return
            if self._temporality == "delta":
                yield self._deltas(family, snapshot, ledger)
                return
        encoding = self._encoding
        totals: list[bytes] = []
        deltas: list[bytes] = []
        entries = Entries([], [])
        # Those without an exemplar go together.
        plain: list[tuple[bytes, float]] = []
        changes: list[tuple[bytes, int, float]] = []
        changed = Entries([], [])
        accepted, nothing = ledger.accepted, (0.0, 0)
        for row, total in zip(family.rows, _values(snapshot.row, family).tolist(), strict=True):
            if total != total:
                continue
            cell = row.cell
            found = [sample for _, sample in samples.get(cell, ())] if samples else None
            began, since = origin.get(cell, nothing) if origin else nothing
            if not since or total < began:  # not inherited, or set back after the fork
                began, since = 0.0, row.start
            if not self._is_delta(cell):
                if found or began:
                    fragment = encoding.attributes(row.attributes)
                    totals.append(encoding.number(fragment, since, time, total - began, found or ()))
                else:
                    plain.append((row.head, total))
                continue
            sent = accepted.get(cell)
            before, start = (began, since) if sent is None else sent
            if total < before:
                before = 0.0
            change = total - before
            if found:
                fragment = encoding.attributes(row.attributes)
                deltas.append(encoding.number(fragment, start, time, change, found))
                entries.cells.append(cell)
                entries.states.append((before + change, time))
            elif change or sent is None:
                changes.append((row.fragment or row.change_head(encoding), start, change))
                # The sum of what was sent, not the total: roundings do not add up.
                changed.cells.append(cell)
                changed.states.append((before + change, time))
        if plain:
            heads, values = zip(*plain, strict=True)
            totals += encoding.numbers(heads, values, time)
        if changes:
            heads, starts, values = zip(*changes, strict=True)
            deltas += encoding.changes(heads, starts, values, time)
        yield Piece("sum", family.header, CUMULATIVE, totals, Entries([], []))
        both = Entries(entries.cells + changed.cells, entries.states + changed.states)
        yield Piece("sum", family.header, DELTA, deltas, both)

    def _deltas(self, family: Family, snapshot: Snapshot, ledger: Ledger) -> Piece:
        """What was counted since the last request that was accepted; nothing for what did not change."""
        import numpy as np

        time, cells = snapshot.time, family.cells
        heads = family.change_heads(self._encoding)
        sent = list(map(ledger.accepted.get, cells))
        is_new = np.array([found is None for found in sent]) if None in sent else None
        if is_new is not None:
            sent = [
                (0.0, row.start) if found is None else found
                for row, found in zip(family.rows, sent, strict=True)
            ]
        before, starts = zip(*cast("list[tuple[float, int]]", sent), strict=True)
        totals, earlier = _values(snapshot.row, family), np.array(before)
        earlier[totals < earlier] = 0.0  # its cell was set back
        changes = totals - earlier
        wanted = changes != 0.0 if is_new is None else (changes != 0.0) | is_new
        wanted &= totals == totals
        after = earlier + changes  # the sum of what was sent, not the total: roundings do not add up
        if not wanted.all():
            some = wanted.tolist()
            heads, cells = list(compress(heads, some)), list(compress(cells, some))
            starts, changes, after = tuple(compress(starts, some)), changes[wanted], after[wanted]
        points = self._encoding.changes(heads, starts, changes.tolist(), time)
        states = list(zip(after.tolist(), repeat(time), strict=False))
        return Piece("sum", family.header, DELTA, points, Entries(cells, states))

    def _is_delta(self, cell: Cell) -> bool:
        """ "lowmemory" leaves totals that are counted elsewhere as they are: nothing needs to be remembered."""
        if self._temporality == "lowmemory":
            return not (isinstance(cell, CounterCell) and cell.given)
        return self._temporality == "delta"

    def _histograms(self, family: Family, snapshot: Snapshot, ledger: Ledger) -> Iterator[Piece]:
        """Most are plain and many: those go together. The others one by one."""
        encoding = self._encoding
        delta = self._temporality != "cumulative"
        found: dict[Form, tuple[list[bytes], Entries]]
        found = {"histogram": ([], Entries([], [])), "exponential": ([], Entries([], []))}
        prefixes: list[bytes] = []
        plain: list[tuple[int, float, tuple[int, ...]]] = []
        together = not delta and family.has_none_of(ledger.origin) and family.has_none_of(snapshot.samples)
        for row, frozen in zip(family.rows, map(snapshot.histograms.get, family.series), strict=True):
            if frozen is None:
                continue
            count, total, counts, native = frozen
            buckets = len(counts)
            if together and native is None and buckets == row.buckets and total >= 0:
                prefixes.append(row.fragment or row.prefix(encoding))
                plain.append((count, total, counts))
            elif buckets in (
                0,
                row.buckets,
            ):  # else the cell was replaced by one with other bounds after the frame
                self._histogram(row, Counts(count, total, counts, native), snapshot, ledger, found)
        if plain:
            found["histogram"][0].extend(encoding.histograms(prefixes, plain, snapshot.time))
        for form, (points, entries) in found.items():
            yield Piece(form, family.header, DELTA if delta else CUMULATIVE, points, entries)

    def _histogram(
        self,
        row: Row,
        now: Counts,
        snapshot: Snapshot,
        ledger: Ledger,
        found: dict[Form, tuple[list[bytes], Entries]],
    ) -> None:
        encoding, cell, time = self._encoding, row.cell, snapshot.time
        delta = self._temporality != "cumulative"
        began, start = ledger.origin.get(cell, (Counts(), row.start))
        if delta:
            began, start = ledger.accepted.get(cell, (began, start))
        sent = now.since(began)
        if sent is None:
            sent, start = now, row.start
        samples = snapshot.samples.get(cell, [])
        if delta and not sent.seen and not samples and cell in ledger.accepted:
            return
        native = sent.native
        exponential = native is not None and (self._exponential or not sent.counts)
        # A sum that may fall is no sum by OTLP's rules: left out when something negative was seen.
        total = None if sent.sum < 0 or (native is not None and native.negative) else sent.sum
        extra = [sample for _, sample in sorted(samples, key=_bucket)]
        if exponential:
            point = encoding.exponential(row.attributes, start, time, sent.seen, total, native, extra)
        else:
            point = encoding.histogram(row.head, start, time, sent.seen, total, sent.counts, extra)
        points, entries = found["exponential" if exponential else "histogram"]
        points.append(point)
        if delta:
            entries.cells.append(cell)
            entries.states.append((now, time))


def _bucket(item: tuple[int, Sample]) -> int:
    return item[0]


def _values(row: NDArray[np.float64], family: Family) -> NDArray[np.float64]:
    """The values of a family's rows; NaN for those that the frame does not have yet."""
    import numpy as np

    if family.last < len(row):
        return cast("NDArray[np.float64]", row[family.columns])
    inside = family.columns < len(row)
    values = np.full(len(family.columns), nan)
    values[inside] = row[family.columns[inside]]
    return values
