"""What do all workers of a service say together?

The merged store has the reading side of SeriesStore, and its frames are made from all shards: counters and
histograms add up, the living and the dead alike, so that no total ever falls; gauges are those of the living, joined
as their metric says. Whoever reads it sees the same numbers in every worker, since all read the same memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from math import nan
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.buckets import FINEST, ZERO_THRESHOLD, NativeBuckets, native_merge
from uno.core.monitoring.metrics import CounterCell, Distribution, GaugeCell, HistogramCell, Sketch, Spec
from uno.core.monitoring.series import HISTOGRAM_COLUMNS, Frame, Series, SeriesStore
from uno.core.monitoring.workers import locks
from uno.core.monitoring.workers.fold import DEAD, Definition, Index, Shape, checksum, numbers_of
from uno.core.monitoring.workers.group import RefusedError, open_shard
from uno.core.monitoring.workers.shard import (
    GONE,
    KNOWN,
    NATIVE,
    NOTES,
    ShardError,
    ShardReader,
    decode_native,
    decode_sketches,
)
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

log = logging.getLogger("uno.workers")

MAX_MERGED = 200_000
WORKER = "worker"
#: How series become one; "machine" is a counter of which all workers read the same total.
_MODES = ("counter", "machine", "sum", "max", "min")
_TRIES = 20
#: How often and how long a reader waits for the monitor's thread. More than once: the process may have been stopped.
REFRESH_TRIES, REFRESH_SECONDS = 4, 0.25
#: Why a file cannot be opened that is none of ours: a link, a socket, or not for us.
_REFUSED = (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENODEV)

_EMPTY = NativeBuckets(FINEST, ZERO_THRESHOLD, 0, {}, {})


class _Kind(NamedTuple):
    """Histograms that have as many numbers: classic buckets, and whether native ones too."""

    classic: int
    native: bool


class _Histograms(NamedTuple):
    """Those of one kind: sum and counts of each, and native buckets by place."""

    numbers: Floats
    natives: dict[int, NativeBuckets]


class _Entry:
    """One merged series: its place among the numbers, and the columns of frames."""

    __slots__ = ("at", "mode", "series", "shape", "shown")

    def __init__(self, series: Series, mode: str, at: int, shape: Shape) -> None:
        self.series, self.mode, self.at, self.shape = series, mode, at, shape
        self.shown = False


class _Shard:
    """One file: what its index said so far, as arrays that take its numbers in one go."""

    def __init__(self, name: str, fd: int, reader: ShardReader, inode: int, *, living: bool) -> None:
        self.name, self.fd, self.reader, self.inode = name, fd, reader, inode
        self.living = living
        self.index = Index()
        self.view: Any = None
        self.blocks: dict[int, _Entry] = {}  # histograms by their slot
        self.lists: dict[Any, tuple[list[int], list[int]]] = {}
        self.arrays: dict[Any, list[tuple[Any, Any]]] = {}  # each without a place twice
        self.grown = False
        self.damaged = False
        self.words = b""  # what its worker said last

    @property
    def id(self) -> str:
        return self.reader.header.id.hex()


class MergedStore(SeriesStore):
    """All series of all workers. ``directory`` is the group's, open; ``own`` this worker's shard, by its open file.

    tick() is called by the monitor's thread, refresh() by whoever is about to show numbers.
    """

    def __init__(
        self, directory: int, own: tuple[str, int], seed: SeriesStore, say: Callable[[str, str], None]
    ) -> None:
        super().__init__(max_series=MAX_MERGED)
        self._directory, self._own, self._say = directory, own, say
        self._shards: dict[str, _Shard] = {}
        self._dead: _Shard | None = None
        self._private: _Shard | None = None
        self._dead_is: tuple[int, ...] | None = None
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._scalars: list[_Entry] = []
        self._scalar_columns: list[int] = []
        self._grouped: dict[_Kind, list[_Entry]] = {}  # histograms by the numbers that they have
        self._width = 0
        self._counting_columns: list[tuple[int, int]] = []
        self._shown: list[Series] = []
        self._present: dict[Any, Any] = {}
        self._last_tick: Frame | None = None
        self._closed = False
        self.version = self.placed = seed.version + 1  # what was made for the seed is made anew
        # A reader that changes over to this store in mid-life finds the columns where they were.
        for series in sorted(seed.all(), key=lambda s: s.column):
            self._width = max(self._width, series.column)
            self._enter(_definition_of(series), None)
        last = seed.frame
        self._first = 1
        if last is not None:
            self._width = max(self._width, len(last.values))
            self._first = last.seq + 1

    # -- reading ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._shown)

    def all(self) -> list[Series]:
        """Every series that some worker has."""
        return list(self._shown)

    def select(self, resource: str | None = None, metric: str | None = None) -> list[Series]:
        """As SeriesStore.select."""
        found = self.all() if resource is None else list(self._by_resource.get(resource, ()))
        if metric is not None:
            found = [s for s in found if s.metric.name == metric or s.wire == metric]
        return found

    def find(
        self, resource: str, metric: str, names: tuple[str, ...], labels: tuple[str, ...]
    ) -> Series | None:
        """As SeriesStore.find."""
        entry = self._entries.get((resource, metric, names, labels))
        return None if entry is None else entry.series

    @property
    def workers(self) -> int:
        """How many workers live."""
        return sum(shard.living for shard in list(self._shards.values()))

    @property
    def words(self) -> list[tuple[int, bytes]]:
        """What the other living workers said up to the last tick, by their numbers."""
        found = [
            shard for shard in list(self._shards.values()) if shard.living and shard.name != self._own[0]
        ]
        return sorted((shard.reader.header.number, shard.words) for shard in found if shard.words)

    def add_private(self, fd: int) -> None:
        """Read another shard of this worker, which the others do not see."""
        self._private = _Shard("memory", fd, ShardReader(fd, keep=True), 0, living=True)

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever changes the files."""
        return self._lock

    def look(self) -> None:
        """See what there is now."""
        self._look_at_dead()
        self.scan()

    # -- which files -----------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look which shards there are. OSError when the directory cannot be read."""
        names = [n for n in os.listdir(self._directory) if n.endswith(".shard") and n != DEAD]
        for name in [name for name in self._shards if name not in names]:
            self._drop(self._shards.pop(name))
        for name in names:
            known = self._shards.get(name)
            if name == self._own[0]:
                if known is None:
                    fd = self._own[1]
                    self._shards[name] = _Shard(name, fd, ShardReader(fd, keep=True), 0, living=True)
                continue
            try:
                inode = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_ino
                if known is not None and known.inode == inode:
                    continue
                if known is not None:
                    self._drop(self._shards.pop(name))
                shard = self._open(name)
                if shard is not None:
                    self._shards[name] = shard
            except FileNotFoundError:  # it was folded this moment
                continue

    def _open(self, name: str) -> _Shard | None:
        try:
            fd = open_shard(name, self._directory)
        except OSError as error:
            # Without a file that others can read, the total would be less than theirs: nothing is shown then.
            if error.errno not in _REFUSED and not isinstance(error, RefusedError):
                raise
            reason = str(error) if isinstance(error, RefusedError) else f"{name}: {error.strerror}"
            self._say(f"refused {name}", f"{reason}; it is left out")
            return None
        try:
            return _Shard(name, fd, ShardReader(fd), os.fstat(fd).st_ino, living=True)
        except ShardError as error:
            os.close(fd)
            self._say(f"unreadable {name}", f"{name} cannot be read: {error}; it is left out")
            return None

    def _drop(self, shard: _Shard) -> None:
        shard.view = None
        shard.arrays.clear()
        if shard.name != self._own[0]:
            os.close(shard.fd)

    def _look_at_dead(self) -> bool:
        """Open what was folded, when it is another file than before. True when it is."""
        try:
            found = os.stat(DEAD, dir_fd=self._directory, follow_symlinks=False)
            identity: tuple[int, ...] | None = (
                found.st_ino,
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
        except FileNotFoundError:
            identity = None
        if identity == self._dead_is:
            return False
        self._dead_is = None  # until all of it is read
        if self._dead is not None:
            self._drop(self._dead)
            self._dead = None
        if identity is not None:
            with contextlib.suppress(FileNotFoundError):
                self._dead = self._open(DEAD)
            if self._dead is not None:
                self._dead.living = False
                self._poll(self._dead)
                self._check_dead(self._dead)
        self._dead_is = identity
        return True

    def _check_dead(self, shard: _Shard) -> None:
        """A dead shard is written once, hence it has a checksum over its numbers too."""
        problem = shard.reader.problem
        if not problem:
            view = shard.reader.view()
            index, numbers = Index(), list[float]()
            try:
                for record in ShardReader(shard.fd).poll():
                    definition = index.read(record)
                    if definition is not None and view is not None:
                        numbers += numbers_of(view, definition)[1]
            except (ValueError, IndexError) as error:
                problem = str(error)
            if not problem and index.sum != checksum(numbers):
                problem = "its numbers are damaged"
        if problem:
            self._say(
                f"dead {problem}", f"what dead workers counted cannot be read: {problem}; it is left out"
            )
            shard.damaged = True
            shard.lists.clear()
            shard.arrays.clear()
            shard.blocks.clear()

    def dead_reader(self) -> ShardReader | None:
        """What was folded so far, None where nothing was or it cannot be read."""
        return None if self._dead is None or self._dead.damaged else self._dead.reader

    @property
    def left(self) -> frozenset[int]:
        """Processes that shared, and have left by themselves."""
        return frozenset() if self._dead is None else frozenset(self._dead.index.left)

    def find_gone(self) -> list[tuple[str, ShardReader]]:
        """The shards whose workers live no more; their gauges are shown no more from here on."""
        gone = []
        with self._lock:
            for name, shard in self._shards.items():
                if name != self._own[0] and locks.is_free(shard.fd):
                    shard.living = False
                    gone.append((name, shard.reader))
        return gone

    # -- what they hold --------------------------------------------------------------------------------

    def _poll(self, shard: _Shard) -> None:
        reader = shard.reader
        before = reader.problem
        for record in reader.poll():
            try:
                definition = shard.index.read(record)
            except ValueError as error:
                reader.problem = str(error)
                continue
            if definition is not None:
                self._take(shard, definition)
        if shard.lists and shard.grown:
            shard.arrays = {what: _layers(*lists) for what, lists in shard.lists.items()}
            shard.grown = False
        view = reader.view()
        if view is None:
            shard.view = None
        elif shard.view is None or len(shard.view) != len(view):
            import numpy as np

            shard.view = np.asarray(view)
        if reader.problem and reader.problem == before:  # twice: it was not just being written
            self._say(
                f"{shard.name} {reader.problem}",
                f"{shard.name} (process {reader.header.pid}) cannot be read whole: {reader.problem}; "
                "the rest is left out",
            )

    def _take(self, shard: _Shard, definition: Definition) -> None:
        spec = definition.spec
        if spec.kind == "gauge" and not shard.living:
            return
        number = shard.reader.header.number if spec.kind == "gauge" and definition.merge == WORKER else None
        entry = self._enter(definition, number)
        if entry is None:
            return
        what: Any = entry.mode
        if spec.kind == "histogram":
            what = _kind_of(entry.shape)
            shard.blocks[definition.slot] = entry
        slots, places = shard.lists.setdefault(what, ([], []))
        slots.append(definition.slot)
        places.append(entry.at)
        shard.grown = True

    def _enter(self, definition: Definition, number: int | None) -> _Entry | None:
        """The merged series of a definition; None when another worker means something else by its name."""
        spec, labels = definition.spec, definition.labels
        kind = spec.kind
        if number is not None:
            spec = spec._replace(labels=(*spec.labels, WORKER))
            labels = (*labels, str(number))
        key = (definition.resource, spec.name, spec.labels, labels)
        mode = "histogram" if kind == "histogram" else definition.merge
        if kind == "counter":
            mode = "machine" if definition.merge == "max" else "counter"
        if mode == WORKER:
            mode = "sum"
        entry = self._entries.get(key)
        if entry is not None:
            if entry.series.metric.kind != kind or entry.shape != definition.shape:
                self._say(
                    f"differs {spec.name}",
                    f"{spec.name!r} of {definition.resource!r} is not the same metric in all workers: "
                    "one of them is left out",
                )
                return None
            cell = entry.series.cell
            if getattr(cell, "created", 0.0) > definition.created:
                cell.created = definition.created  # type: ignore[union-attr]
            return entry
        if len(self._entries) >= MAX_MERGED:
            self._say("many", f"more than {MAX_MERGED} series of all workers: further ones are left out")
            return None
        return self._new(key, spec, labels, mode, definition)

    def _new(
        self, key: tuple[Any, ...], spec: Spec, labels: tuple[str, ...], mode: str, definition: Definition
    ) -> _Entry:
        cell: Any
        if spec.kind == "histogram":
            cell = HistogramCell(definition.shape.bounds, definition.shape.native)
            among = self._grouped.setdefault(_kind_of(definition.shape), [])
        else:
            cell = CounterCell() if spec.kind == "counter" else GaugeCell(nan)
            among = self._scalars
            if mode not in _MODES:
                mode = "sum"
        if hasattr(cell, "created"):
            cell.created = definition.created
        series = Series(definition.resource, spec, labels, cell, self._width)
        series.live = False
        entry = self._entries[key] = _Entry(series, mode, len(among), definition.shape)
        among.append(entry)
        if spec.kind == "histogram":
            self._counting_columns.append((self._width, 2))
        else:
            self._scalar_columns.append(self._width)
            if spec.kind == "counter":
                self._counting_columns.append((self._width, 1))
        self._width += series.width
        return entry

    # -- adding up -------------------------------------------------------------------------------------

    def _consistent(self) -> Iterator[None]:
        """Once for each try at a moment in which nobody folded."""
        for _ in range(_TRIES):
            self._look_at_dead()
            self.scan()
            yield
            if not self._look_at_dead():
                return

    def _counted(self) -> list[_Shard]:
        folded = self._dead.index.folded if self._dead is not None else ()
        shards = [shard for shard in self._shards.values() if shard.id not in folded]
        if self._private is not None:
            shards.append(self._private)
        if self._dead is not None:
            shards.append(self._dead)
        return shards

    def _read(self) -> tuple[Floats, dict[_Kind, _Histograms]]:
        """The scalars, and the histograms by what they have."""
        scalars: Any = None
        histograms: dict[_Kind, _Histograms] = {}
        for _ in self._consistent():
            shards = self._counted()
            for shard in shards:
                if shard is not self._dead:
                    self._poll(shard)
            scalars, present = self._read_scalars(shards)
            histograms = {}
            shown: dict[Any, Any] = {"scalars": present}
            for kind in self._grouped:
                histograms[kind], shown[kind] = self._read_histograms(shards, kind)
            self._show(shown)
        return scalars, histograms

    def _read_scalars(self, shards: Iterable[_Shard]) -> tuple[Floats, Any]:
        import numpy as np

        n = len(self._scalars)
        total, rest = np.zeros(n), np.zeros(n)
        known, present = np.zeros(n, bool), np.zeros(n, bool)
        highest, lowest = np.full(n, np.nan), np.full(n, np.nan)
        for shard in shards:
            for mode in _MODES:
                if mode not in ("counter", "machine") and not shard.living:
                    continue
                for slots, places in _inside(shard, mode, 2):
                    view = shard.view
                    values, states = view[slots + 1], view[slots]
                    number = values == values
                    present[places[states != GONE]] = True
                    current = (states == KNOWN) & number
                    known[places[current]] = True
                    if mode == "counter":  # of one that nobody can read now, the last total
                        _add_exactly(total, rest, places[number], values[number])
                        continue
                    if mode == "machine":
                        total[places[number]] = np.fmax(total[places[number]], values[number])
                        continue
                    places, values = places[current], values[current]
                    if mode == "sum":
                        total[places] += values
                    else:
                        target, function = (highest, np.fmax) if mode == "max" else (lowest, np.fmin)
                        target[places] = function(target[places], values)
        found = np.where(known, total + rest, np.nan)
        for extreme in (highest, lowest):
            there = extreme == extreme
            found[there] = extreme[there]
        return found, present

    def _read_histograms(self, shards: Iterable[_Shard], kind: _Kind) -> tuple[_Histograms, Any]:
        import numpy as np

        n, classic = len(self._grouped[kind]), 1 + kind.classic
        half = classic + NATIVE * kind.native
        total, rest, present = np.zeros((n, classic)), np.zeros((n, classic)), np.zeros(n, bool)
        natives: dict[int, NativeBuckets] = {}
        parts = np.arange(half)
        for shard in shards:
            for slots, places in _inside(shard, kind, 2 + 2 * half):
                view = shard.view
                sequence = view[slots + 1]
                begin = slots + 2 + (sequence.astype(np.int64) & 1) * half
                numbers = view[begin[:, None] + parts]
                for _ in range(_TRIES):
                    again = view[slots + 1]
                    changed = np.flatnonzero(again != sequence)  # written meanwhile
                    if not len(changed):
                        break
                    sequence = again
                    begin = slots[changed] + 2 + (again[changed].astype(np.int64) & 1) * half
                    numbers[changed] = view[begin[:, None] + parts]
                _add_exactly(total, rest, places, numbers[:, :classic])
                present[places[view[slots] != GONE]] = True
                if kind.native:
                    self._add_native(natives, shard, places.tolist(), numbers[:, classic:].tolist())
        return _Histograms(total + rest, natives), present

    def _add_native(
        self, natives: dict[int, NativeBuckets], shard: _Shard, places: list[int], rows: list[list[float]]
    ) -> None:
        for place, row in zip(places, rows, strict=True):
            try:
                found = decode_native(row)
            except ValueError as error:
                shard.reader.problem = str(error)
                continue
            if found is not None:
                known = natives.get(place)
                natives[place] = found if known is None else native_merge(known, found)

    def _show(self, present: dict[Any, Any]) -> None:
        """Show the series that some worker has, and no others."""
        import numpy as np

        changed = False
        for what, now in present.items():
            before = self._present.get(what)
            if before is not None and len(before) == len(now) and np.array_equal(before, now):
                continue
            entries = self._scalars if what == "scalars" else self._grouped[what]
            for entry, here in zip(entries, now.tolist(), strict=True):
                if entry.shown != here:
                    entry.shown = entry.series.live = here
                    changed = True
            self._present[what] = now
        if changed:
            self._shown = [entry.series for entry in self._entries.values() if entry.shown]
            by_resource: dict[str, list[Series]] = {}
            for series in self._shown:
                by_resource.setdefault(series.resource, []).append(series)
            self._by_resource = by_resource
            self.version += 1

    def _frame(
        self, time: float, sketches: list[tuple[Series, Sketch]], tops: dict[Series, float], *, tick: bool
    ) -> Frame:
        import numpy as np

        scalars, histograms = self._read()
        last = self._last_tick
        row = np.full(self._width, nan)
        if last is not None and not tick:  # what speaks of a tick stays as it was
            n = min(len(last.row), self._width)
            row[:n] = last.row[:n]
        row[np.array(self._scalar_columns, np.intp)] = scalars
        counting = np.zeros(self._width, bool)
        for column, width in self._counting_columns:
            counting[column : column + width] = True
        distributions: dict[Series, Distribution] = {}
        for kind, (numbers, natives) in histograms.items():
            entries = self._grouped[kind]
            columns = np.array([entry.series.column for entry in entries], np.intp)
            counts = numbers[:, 1:].sum(axis=1)
            if not kind.classic:
                for place, buckets in natives.items():
                    counts[place] = _count_of(buckets)
            row[columns], row[columns + 1] = counts, numbers[:, 0]
            if tick and last is not None:
                inside = columns + 1 < len(last.row)
                at = columns[inside]
                seen = counts[inside] - last.row[at]
                with np.errstate(invalid="ignore", divide="ignore"):
                    mean = (numbers[inside, 0] - last.row[at + 1]) / seen
                row[at + 2] = np.where(seen > 0, mean, nan)
            for entry, count, (weight, *each) in zip(entries, counts.tolist(), numbers.tolist(), strict=True):
                if entry.shown:
                    native = natives.get(entry.at, _EMPTY) if kind.native else None
                    distributions[entry.series] = Distribution(
                        int(count), weight, tuple(map(int, each)), native
                    )
        for series, sketch in sketches:
            top = tops[series]
            row[series.column + _P95] = min(sketch.quantiles((0.95,))[0], top)
            row[series.column + _MAX] = top
        rates = np.full(self._width, nan)
        if last is not None and tick and time > last.time:
            n = min(len(last.row), self._width)
            with np.errstate(invalid="ignore", over="ignore"):
                change = row[:n] - last.row[:n]
            change[change < 0] = nan
            rates[:n] = change / (time - last.time)
            rates[~counting] = nan
        elif last is not None:
            n = min(len(last.rates), self._width)
            rates[:n] = last.rates[:n]
        seq = self._first if last is None else last.seq + tick
        return Frame(
            time, seq, self.version, row.tolist(), row, rates, counting, distributions, sketches, None
        )

    def tick(self, time: float) -> Frame:
        """Freeze all workers' series at ``time`` (Unix seconds)."""
        with self._lock:
            found: dict[Series, Sketch] = {}
            tops: dict[Series, float] = {}
            self.look()
            for shard in self._shards.values():
                self._poll(shard)
                for words in shard.reader.ring(NOTES):
                    shard.words = words
                for content in shard.reader.ring():
                    for slot, top, counts in decode_sketches(content):
                        entry = shard.blocks.get(slot)
                        if entry is not None:
                            found.setdefault(entry.series, Sketch()).merge(Sketch(counts))
                            tops[entry.series] = max(top, tops.get(entry.series, top))
            self.frame = self._last_tick = self._frame(time, list(found.items()), tops, tick=True)
            return self.frame

    def refresh(self, time: float) -> None:
        """Bring the totals of the present frame to this moment; rates and quantiles stay those of the tick. Where
        they cannot be read there is no frame until they can: an older total would be less than what others tell."""
        if self._last_tick is None and "numpy" not in sys.modules:  # the monitor's thread loads it
            return
        if self._closed:
            return
        if not any(self._lock.acquire(timeout=REFRESH_SECONDS) for _ in range(REFRESH_TRIES)):
            self.frame = None
            return
        try:
            if not self._closed:
                self.frame = self._frame(time, [], {}, tick=False)
        except OSError as error:
            self.frame = None
            self._say("refresh", f"the numbers of all workers cannot be read: {error.strerror or error}")
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of the others' files."""
        with self._lock:
            self._closed = True
            for shard in (*self._shards.values(), *([self._dead] if self._dead is not None else [])):
                self._drop(shard)
            self._shards.clear()
            self._dead = None


_P95, _MAX = HISTOGRAM_COLUMNS.index("p95"), HISTOGRAM_COLUMNS.index("max")


def _layers(slots: list[int], places: list[int]) -> list[tuple[Any, Any]]:
    """As arrays, so that no place is in one of them twice."""
    import numpy as np

    seen: dict[int, int] = {}
    layers: list[tuple[list[int], list[int]]] = []
    for slot, place in zip(slots, places, strict=True):
        layer = seen.get(place, 0)
        seen[place] = layer + 1
        if layer == len(layers):
            layers.append(([], []))
        layers[layer][0].append(slot)
        layers[layer][1].append(place)
    return [(np.array(slots, np.intp), np.array(places, np.intp)) for slots, places in layers]


def _inside(shard: _Shard, what: Any, width: int) -> Iterator[tuple[Any, Any]]:
    """The arrays of a shard, without what lies beyond its end."""
    if shard.view is None:
        return
    end = len(shard.view) - width
    for slots, places in shard.arrays.get(what, ()):
        if len(slots) and int(slots.max()) > end:
            shard.reader.problem = "a series lies beyond the end"
            yield slots[slots <= end], places[slots <= end]
        else:
            yield slots, places


def _add_exactly(total: Floats, rest: Floats, places: Any, values: Floats) -> None:
    """Add, and keep what rounding takes away: the sum must not depend on the order, for each worker has another one,
    and a total that falls by the last digit is a reset to Prometheus. Source: Knuth's TwoSum."""
    before = total[places]
    after = before + values
    part = after - before
    rest[places] += (before - (after - part)) + (values - part)
    total[places] = after


def merge_of(spec: Spec) -> str:
    """How a gauge of several workers becomes one."""
    merge = getattr(spec, "merge", "sum")
    return merge if merge in ("sum", "max", "min", WORKER) else "sum"


def shape_of(cell: Any) -> Shape:
    """What a histogram's cell has; nothing for other cells."""
    if not isinstance(cell, HistogramCell):
        return Shape()
    return Shape(cell.bounds if cell.totals.counts else None, cell.totals.native is not None)


def _kind_of(shape: Shape) -> _Kind:
    return _Kind(shape.classic, shape.native)


def _count_of(buckets: NativeBuckets) -> int:
    return buckets.zero_count + sum(buckets.positive.values()) + sum(buckets.negative.values())


def _definition_of(series: Series) -> Definition:
    return Definition(
        series.resource,
        series.metric,
        series.labels,
        0,
        getattr(series.cell, "created", 0.0),
        merge_of(series.metric),
        shape_of(series.cell),
    )
