"""How does a process take part in its group: how does it come, what does it do each tick, how does it go?"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from array import array
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.metrics import CounterCell, Distribution, HistogramCell, Spec
from uno.core.monitoring.series import Frame, Series, SeriesStore
from uno.core.monitoring.workers import locks
from uno.core.monitoring.workers.cells import Mapping, map_counter, start_anew, unmap_counter
from uno.core.monitoring.workers.fold import DEAD, Shape, fold, spec_record
from uno.core.monitoring.workers.group import Key, open_own, open_shard, siblings, started
from uno.core.monitoring.workers.merge import MergedStore, merge_of, shape_of
from uno.core.monitoring.workers.shard import (
    GAP,
    GONE,
    KNOWN,
    NOTES,
    Header,
    Place,
    ShardReader,
    ShardWriter,
    encode_native,
    encode_sketches,
)
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("uno.workers")

LOCK = "lock"
JOIN_SECONDS, LEAVE_SECONDS = 1.0, 1.0
MAX_NUMBER = 100_000
MAX_SAID = 50


class _Block(NamedTuple):
    """Where a series of this worker is. ``cell`` is kept, so that another one is never taken for it."""

    place: Place
    series: Series
    cell: Any
    private: bool


class _Column(NamedTuple):
    """Numbers that the tick brings over in one go."""

    target: NDArray[np.float64]
    places: NDArray[np.intp]
    columns: NDArray[np.intp]


class LostError(OSError):
    """The shard is not this process' any more: somebody closed its descriptors, or removed the file."""


class Member:
    """One worker's part. OSError where it cannot be.

    ``seed`` is what was shown before: its series keep their columns. ``keep_for`` is the process that will want what
    was counted even when nobody else is there any more, as long as it lives; 0 when there is none.
    """

    def __init__(self, key: Key, store: SeriesStore, seed: SeriesStore, *, keep_for: int = 0) -> None:
        self._keep_for = keep_for
        self.key, self._store = key, store
        self._lock = threading.RLock()
        self._said: set[str] = set()
        self._blocks: dict[tuple[Any, ...], _Block] = {}
        self._counters: dict[int, _Block] = {}  # by the identity of their cell
        self._specs: dict[tuple[Any, ...], int] = {}
        self._histograms: dict[Series, _Block] = {}
        self._written: dict[int, int] = {}  # the count that a histogram's block has, by its slot
        self._columns: list[_Column] = []
        self._version = -1
        self._words = b""
        self._rest: ShardWriter | None = None
        self._closed = False
        self._pid = os.getpid()
        self._base = self._directory = -1
        self._enter()
        self.merged = MergedStore(self._directory, (self._name, self._writer.fd), seed, self.say)
        Mapping.begin(self)
        store.joined = self.add
        for series in store.all():
            self.add(series)

    def say(self, what: str, message: str) -> None:
        """Log a warning, once for each ``what``."""
        if what not in self._said and len(self._said) < MAX_SAID:
            self._said.add(what)
            log.warning("%s", message)

    # -- coming ----------------------------------------------------------------------------------------

    def _enter(self) -> None:
        for _ in range(10):
            self._base = open_own(self.key.base)
            try:
                with locks.held(self._base, LOCK, JOIN_SECONDS):
                    if not _is_there(self.key.base, self._base):
                        continue
                    self._directory = open_own(self.key.name, at=self._base)
                    _sweep(self._base, self.key.name)
                    self._create()
                    return
            except FileNotFoundError:  # the last one to leave has removed the directory this moment
                pass
            except BaseException:
                self._close_directories()
                raise
            self._close_directories()
        raise OSError(f"{self.key.base} comes and goes")

    def _create(self) -> None:
        directory = self._directory
        names = set(os.listdir(directory))
        number = next(n for n in range(MAX_NUMBER) if f"{n}.shard" not in names)
        new = f".new-{self._pid}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=directory)
        try:
            locks.take(fd)
            self.header = Header(os.urandom(16), time.time(), self._pid, number)
            self._writer = ShardWriter(fd, self.header)
            found = os.fstat(fd)
            self._is = (found.st_dev, found.st_ino)
            _MINE.add(self)
            self._name = f"{number}.shard"
            os.rename(new, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=directory)
            raise

    def holds(self, device: int, inode: int) -> bool:
        """Whether a file is this member's shard."""
        return not self._closed and self._is == (device, inode)

    def _close_directories(self) -> None:
        for fd in (self._directory, self._base):
            if fd >= 0:
                os.close(fd)
        self._base = self._directory = -1

    # -- series ----------------------------------------------------------------------------------------

    def add(self, series: Series) -> None:
        """Give a series its place; called whenever the store takes one, or another cell for it. Never raises."""
        if self._closed:
            return
        with self._lock:
            try:
                self._add(series)
            except OSError as error:
                reason = error.strerror or error
                self.say("full", f"the shard cannot grow ({reason}): the other workers do not see new series")
                with contextlib.suppress(OSError):
                    self._go_private()
                    self._add(series)

    def _go_private(self) -> None:
        """The disk is full: keep what comes from here on where this worker alone sees it."""
        if self._rest is not None or not hasattr(os, "memfd_create"):
            raise OSError("there is no more room")
        self._rest = ShardWriter(os.memfd_create("uno-worker", os.MFD_CLOEXEC), self.header)
        self._specs = {}
        self.merged.add_private(self._rest.fd)

    def _add(self, series: Series) -> None:
        spec, cell = series.metric, series.cell
        key = (series.resource, spec.name, spec.labels, series.labels)
        known = self._blocks.get(key)
        if known is not None and (known.cell is cell or spec.kind == "gauge"):
            self._blocks[key] = known._replace(series=series, cell=cell)
            known.place.view[known.place.at] = KNOWN
            return
        if known is not None:  # what the former cell counted stays in the total
            known.place.view[known.place.at] = GONE
        shared = self._counters.get(id(cell)) if isinstance(cell, CounterCell) else None
        if shared is not None and shared.private != (self._rest is not None):
            shared = None
        writer = self._rest or self._writer
        shape, merge = shape_of(cell), merge_of(spec)
        if shared is not None:  # a cell that goes by two names
            place = shared.place
        else:
            place = writer.allocate(2 + 2 * shape.half if spec.kind == "histogram" else 2)
        number = self._number_of(writer, spec, merge, shape)
        created = float(getattr(cell, "created", 0.0)) or self.header.created
        writer.define(["s", number, series.resource, series.labels, place.slot, created])
        block = self._blocks[key] = _Block(place, series, cell, self._rest is not None)
        if isinstance(cell, CounterCell):
            self._counters[id(cell)] = block
            map_counter(cell, place.view, place.at + 1)
            place.view[place.at] = KNOWN if cell.value == cell.value else GAP
        else:
            place.view[place.at] = KNOWN

    def _number_of(self, writer: ShardWriter, spec: Spec, merge: str, shape: Shape) -> int:
        what = (spec, merge, shape)
        number = self._specs.get(what)
        if number is None:
            number = len(self._specs)
            writer.define(spec_record(number, spec, merge, shape))
            self._specs[what] = number
        return number

    # -- each tick -------------------------------------------------------------------------------------

    def tick(self, frame: Frame) -> Frame:
        """Write what this worker has, fold what dead ones left, and return the frame of all.

        LostError when the shard is lost: then make a new member, with cells that start anew.
        """
        with self._lock:
            self._still_ours()
            self._publish(frame)
        merged = self.merged.tick(frame.time)
        if self._fold_gone():
            merged = self.merged.frame or merged
        return merged

    def _still_ours(self) -> None:
        try:
            if os.fstat(self._writer.fd).st_nlink and locks.take(self._writer.fd):
                return
        except OSError:
            pass
        raise LostError("the shard of this worker was taken away")

    def _publish(self, frame: Frame) -> None:
        version = frame.version
        if self._version != version:
            self._arrange()
            self._version = version
        for block in self._counters.values():
            cell = block.cell
            if not cell.given:
                cell._map[cell._at] = cell.value
            elif cell.value == cell.value:
                cell._map[cell._at] = cell.value
                cell._map[cell._at - 1] = KNOWN
            else:
                cell._map[cell._at - 1] = GAP
        row = frame.row
        for target, places, columns in self._columns:
            target[places] = row[columns]
        written = self._written
        for series, distribution in frame.histograms.items():
            found = self._histograms.get(series)
            if found is not None and written.get(found.place.slot) != distribution[0]:
                _write_histogram(found.place, distribution)
                written[found.place.slot] = distribution[0]
        sketches = []
        for series, sketch in frame.sketches:
            found = self._histograms.get(series)
            if found is not None and isinstance(found.cell, HistogramCell):
                sketches.append((found.place.slot, float(found.cell.max.value), sketch.counts))
        if sketches:
            try:
                content = encode_sketches(sketches)
                if not self._writer.write_ring(content):
                    self.say(
                        "ring", "too many observations in a tick: quantiles of all workers leave some out"
                    )
            except OSError as error:
                self.say("ring", f"quantiles are not told to the other workers: {error.strerror or error}")

    def tell(self, words: bytes) -> bool:
        """Let the others read ``words`` from now on; False when they are too many. Never raises."""
        with self._lock:
            if self._closed or words == self._words:
                return True
            try:
                told = self._writer.write_ring(words, NOTES)
            except OSError as error:
                reason = error.strerror or error
                self.say("words", f"the other workers do not hear of alerts, health and holders: {reason}")
                return True
            if told:
                self._words = words
            return told

    def _publish_totals(self) -> None:
        """What needs no frame: a process may end before its first tick does."""
        for block in self._blocks.values():
            cell, place = block.cell, block.place
            if isinstance(cell, HistogramCell):
                totals = cell.collect()
                if totals.count != self._written.get(place.slot, 0):
                    _write_histogram(place, totals)
                    self._written[place.slot] = totals.count
            elif isinstance(cell, CounterCell) and cell.value == cell.value:
                cell._map[cell._at] = cell.value

    def _arrange(self) -> None:
        """Series came or went."""
        import numpy as np

        living = {}
        for series in self._store.all():
            key = (series.resource, series.metric.name, series.metric.labels, series.labels)
            block = self._blocks.get(key)
            if block is None or (block.cell is not series.cell and series.metric.kind != "gauge"):
                self.add(series)
                block = self._blocks.get(key)
            if block is not None:
                living[key] = series
        groups: dict[int, tuple[memoryview[float], list[int], list[int]]] = {}
        self._histograms = {}
        shown = {id(self._blocks[key].place.view): set[int]() for key in living}
        for key in living:
            place = self._blocks[key].place
            shown[id(place.view)].add(place.at)
        for key, block in self._blocks.items():
            place = block.place
            living_series = living.get(key)
            if living_series is None:
                if place.at not in shown.get(id(place.view), ()):
                    place.view[place.at] = GONE
                continue
            kind = living_series.metric.kind
            if kind == "histogram":
                self._histograms[living_series] = block
            elif not isinstance(block.cell, CounterCell):
                _, places, columns = groups.setdefault(id(place.view), (place.view, [], []))
                places.append(place.at + 1)
                columns.append(living_series.column)
        self._columns = [
            _Column(np.asarray(view), np.array(places, np.intp), np.array(columns, np.intp))
            for view, places, columns in groups.values()
        ]

    def _fold_gone(self) -> bool:
        if not self.merged.find_gone():
            return False
        try:
            with self.merged.lock, locks.held(self._base, LOCK, 0.0):
                self.merged.look()  # another worker may have folded them, and a new one have taken the name
                gone = self.merged.find_gone()
                if gone:
                    self._fold(gone)
        except locks.BusyError:  # somebody else does it, or the next tick
            pass
        except OSError as error:
            self.say("fold", f"dead workers' shards cannot be folded: {error.strerror or error}")
        return True

    def _fold(self, gone: list[tuple[str, ShardReader]], leaver: int = 0) -> None:
        for problem in fold(self._directory, self.merged.dead_reader(), gone, leaver):
            self.say(problem, problem)
        for name in os.listdir(self._directory):
            if name.startswith(".new-"):  # its maker died, for makers hold this lock
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)

    # -- going -----------------------------------------------------------------------------------------

    def leave(self, frame: Frame | None) -> None:
        """Hand what was counted to those that stay; the last one removes the directory. Never raises."""
        if self._closed:
            return
        self._store.joined = None
        self._closed = True
        with self._lock:
            try:
                self._publish_totals()
                if frame is not None:
                    self._publish(frame)
                    self.merged.tick(frame.time)
                with self.merged.lock, locks.held(self._base, LOCK, LEAVE_SECONDS):
                    self._seal()
                    self._hand_over()
            except OSError as error:  # the others will find the shard of a dead worker
                log.warning("this worker could not leave its group cleanly: %s", error.strerror or error)
            finally:
                self._let_go()

    def _seal(self) -> None:
        """What threads of this process count from here on is told to nobody: it would be seen, and then be missing."""
        for block in self._counters.values():
            cell, place = block.cell, block.place
            unmap_counter(cell)
            if cell.value == cell.value:
                place.view[place.at + 1] = cell.value

    def _hand_over(self) -> None:
        merged = self.merged
        merged.look()
        gone = merged.find_gone()
        names = {n for n in os.listdir(self._directory) if n.endswith(".shard") and n != DEAD}
        if os.fstat(self._writer.fd).st_nlink == 0:
            return
        if names <= {self._name, *(name for name, _ in gone)} and not self._waited_for():
            _remove(self._base, self.key.name, self._directory)
            _remove_base(self.key.base, self._base)
            return
        self._fold([*gone, (self._name, ShardReader(self._writer.fd))], self._pid)

    def _waited_for(self) -> bool:
        """Whether somebody will join who is not here: a parent that monitors too, a worker that starts just now."""
        if self._keep_for > 1 and os.getppid() == self._keep_for:
            return True
        root = self.key.root
        return root > 0 and not self.merged.left.issuperset(siblings(root))

    def _let_go(self) -> None:
        for block in self._counters.values():
            unmap_counter(block.cell)
        Mapping.end(self)
        self.merged.close()
        self._columns.clear()
        for writer in (self._writer, self._rest):
            if writer is not None:
                with contextlib.suppress(OSError):
                    writer.close()
        with contextlib.suppress(OSError):
            self._close_directories()

    def abandon(self) -> None:
        """Let go of a shard that is not ours: in a forked child the parent's, else one that was lost."""
        self._store.joined = None
        self._closed = True
        self._lock = threading.RLock()
        self._writer.reinit_after_fork()
        if self._rest is not None:
            self._rest.reinit_after_fork()
        self.merged.reinit_after_fork()
        self._let_go()


def restart(store: SeriesStore) -> None:
    """Start all series of a store anew, see cells.start_anew."""
    for series in store.all():
        if merge_of(series.metric) != "max":  # a total of the machine's is nobody's own
            start_anew(series.cell)


def _write_histogram(place: Place, distribution: Distribution) -> None:
    """Write the copy that is not shown, then show it."""
    native = [] if distribution.native is None else encode_native(distribution.native)
    numbers = array("d", (distribution.sum, *distribution.counts, *native))
    view, at = place.view, place.at
    sequence = int(view[at + 1]) + 1
    begin = at + 2 + (sequence & 1) * len(numbers)
    view[begin : begin + len(numbers)] = memoryview(numbers)
    view[at + 1] = sequence


def _is_there(name: str, fd: int) -> bool:
    """Whether an open directory still has its name."""
    found = os.stat(name, follow_symlinks=False)
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _remove(base: int, name: str, directory: int) -> None:
    for file in os.listdir(directory):
        with contextlib.suppress(OSError):
            os.unlink(file, dir_fd=directory)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=base)


def _remove_base(name: str, base: int) -> None:
    """When no group is left; the lock goes first, whose next holder sees that it has."""
    with contextlib.suppress(OSError):
        if os.listdir(base) == [LOCK]:
            os.unlink(LOCK, dir_fd=base)
            os.rmdir(name)


def _sweep(base: int, own: str) -> None:
    """Remove groups in which nobody lives and whose parent is gone: they were all killed."""
    for name in os.listdir(base):
        root, since = Key("", name).root, name.rpartition("-")[2]
        if name in (own, LOCK) or not root or started(root) == since:
            continue
        with contextlib.suppress(OSError):
            directory = open_own(name, at=base, create=False)
            try:
                if all(_is_dead(directory, file) for file in os.listdir(directory)):
                    _remove(base, name, directory)
            finally:
                os.close(directory)


def _is_dead(directory: int, name: str) -> bool:
    if name == DEAD or not name.endswith(".shard"):
        return True
    if _held_here(directory, name):
        return False
    fd = open_shard(name, directory)
    try:
        return locks.is_free(fd)
    finally:
        os.close(fd)


#: The shards of this process, by device and inode: opening and closing one again would drop its lock.
_MINE: weakref.WeakSet[Member] = weakref.WeakSet()


def _held_here(directory: int, name: str) -> bool:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return any(member.holds(found.st_dev, found.st_ino) for member in list(_MINE))
