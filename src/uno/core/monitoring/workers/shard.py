"""How does a worker write its numbers where the others can read them, even after it was killed?

One file for each worker, mapped into its memory::

    header   magic, version, identity, process; CRC
    segment  kind, length; CRC               of whole pages, one after the other, in the order of need
      index    records: length, CRC, JSON    what there is: each definition is written once, and never changed
      slots    float64                       where the numbers are
      ring     the last four ticks' sketches of histograms: sequence, length, CRC, bytes
      notes    another ring: what is told in words, the last of which counts

A record is visible once its length is written, which is done last. What cannot be read is told and left out, never
raised into the application. The numbers of a scalar are two slots, its state and its value; those of a histogram
are a state, a sequence number and two copies of (sum, counts): the copy that is not shown is written, then the
sequence number is raised, so that whoever reads, and whoever is killed, leaves a whole one.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from uno.core.monitoring.buckets import COARSEST, FINEST, MOST_NATIVE, NativeBuckets
from uno.core.records import NamedTuple

MAGIC, VERSION = b"UNOSHARD", 1
PAGE = max(4096, mmap.ALLOCATIONGRANULARITY)
FIRST, LARGEST = 4 * PAGE, 64 * PAGE
MAX_BYTES = 256 * 2**20
RING, RING_ENTRIES, RING_LARGEST = 4 * PAGE, 4, 256 * PAGE
INDEX, SLOTS, SKETCHES, NOTES = 1, 2, 3, 4

_HEADER = struct.Struct("<8sII16sdIIQ")
_SEGMENT = struct.Struct("<4sIQ")
_RECORD = struct.Struct("<II")
_ENTRY = struct.Struct("<QII")
_CRC = struct.Struct("<I")
_SEGMENT_MAGIC = b"SEG\x01"
START = 64  # bytes of a segment before its content

#: Slots of a histogram's native buckets: schema, threshold, zero count, how many on either side, and all of them.
NATIVE = 5 + 2 * MOST_NATIVE

#: States of a series in its worker.
GONE, KNOWN, GAP = 0.0, 1.0, 2.0


def encode_native(buckets: NativeBuckets | None) -> list[float]:
    """Native buckets as NATIVE numbers; None as empty ones."""
    if buckets is None:
        return [0.0] * NATIVE
    sides = [*buckets.positive.items(), *buckets.negative.items()][:MOST_NATIVE]
    numbers = [float(number) for pair in sides for number in pair]
    head = [buckets.schema, buckets.zero_threshold, buckets.zero_count, len(buckets.positive), len(sides)]
    return [*map(float, head), *numbers, *[0.0] * (2 * MOST_NATIVE - len(numbers))]


def decode_native(numbers: Sequence[float]) -> NativeBuckets | None:
    """What encode_native wrote; None where nothing was written yet. ValueError for what cannot be."""
    if not numbers[1]:
        return None
    schema, positive, both = int(numbers[0]), int(numbers[3]), int(numbers[4])
    if not (COARSEST <= schema <= FINEST and 0 <= positive <= both <= MOST_NATIVE):
        raise ValueError("native buckets are damaged")
    pairs = [(int(i), int(n)) for i, n in zip(numbers[5::2], numbers[6::2], strict=True)]
    return NativeBuckets(
        schema, numbers[1], int(numbers[2]), dict(pairs[:positive]), dict(pairs[positive:both])
    )


class ShardError(ValueError):
    """A shard cannot be read; the message says what is wrong with it."""


class Header(NamedTuple):
    """Whose shard it is. ``number`` is the lowest that no living worker of the group had."""

    id: bytes
    created: float
    pid: int
    number: int


def encode_header(header: Header) -> bytes:
    """The first bytes of a shard."""
    packed = _HEADER.pack(MAGIC, VERSION, PAGE, header.id, header.created, header.pid, header.number, 0)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_header(data: bytes) -> Header:
    """What encode_header wrote; ShardError for anything else."""
    if len(data) < _HEADER.size + _CRC.size:
        raise ShardError("the header is cut off")
    packed = data[: _HEADER.size]
    magic, version, page, id, created, pid, number, _ = _HEADER.unpack(packed)
    if magic != MAGIC:
        raise ShardError("it is no shard")
    if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(packed):
        raise ShardError("the header is damaged")
    if version != VERSION or page != PAGE:
        raise ShardError(f"another version of uno wrote it (format {version})")
    return Header(id, created, pid, number)


def encode_segment(kind: int, length: int) -> bytes:
    """What a segment begins with."""
    packed = _SEGMENT.pack(_SEGMENT_MAGIC, kind, length)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_segment(data: bytes) -> tuple[int, int] | None:
    """Kind and length; None where no segment was begun. ShardError for anything else."""
    if not any(data):
        return None
    packed = data[: _SEGMENT.size]
    if len(data) < _SEGMENT.size + _CRC.size:
        raise ShardError("a segment is cut off")
    magic, kind, length = _SEGMENT.unpack(packed)
    if magic != _SEGMENT_MAGIC or _CRC.unpack_from(data, _SEGMENT.size)[0] != zlib.crc32(packed):
        raise ShardError("a segment is damaged")
    if length < PAGE or length % PAGE or length > MAX_BYTES:
        raise ShardError("a segment has an impossible length")
    return kind, length


def encode_record(record: Any) -> bytes:
    """A record of the index, padded to eight bytes."""
    text = json.dumps(record, separators=(",", ":")).encode("ascii")
    return _RECORD.pack(len(text), zlib.crc32(text)) + text + b"\0" * (-len(text) % 8)


def decode_records(data: bytes, at: int = 0) -> tuple[list[Any], int]:
    """The whole records from ``at`` on, and where the next one will be. ShardError for a damaged one, with what
    came before it as ``.found``."""
    found: list[Any] = []
    while at + _RECORD.size <= len(data):
        length, crc = _RECORD.unpack_from(data, at)
        if not length:
            break
        begin = at + _RECORD.size
        text = data[begin : begin + length]
        try:
            if len(text) != length or zlib.crc32(text) != crc:
                raise ValueError
            record = json.loads(text)
        except (ValueError, RecursionError):
            error = ShardError("a record of the index is damaged")
            error.found, error.at = found, at  # type: ignore[attr-defined]
            raise error from None
        found.append(record)
        at = begin + length + -length % 8
    return found, at


class Place(NamedTuple):
    """Where slots are: in a mapped segment, and in the file (in slots from its beginning)."""

    view: memoryview[float]
    at: int
    slot: int


def _allocate(fd: int, at: int, length: int) -> None:
    """Extend a file by bytes that are really there: a write to a hole of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, at, length)
        return
    zeros = bytes(PAGE)  # macOS
    for offset in range(at, at + length, PAGE):
        if os.pwrite(fd, zeros, offset) != PAGE:
            raise OSError("the file could not be extended")


class ShardWriter:
    """The shard of this process. OSError where the disk is full.

    Nothing that was mapped is unmapped before close(): that would close a descriptor, and release the lock.
    """

    def __init__(self, fd: int, header: Header) -> None:
        self.fd, self.header = fd, header
        self._lock = threading.RLock()
        self._maps: list[mmap.mmap] = []
        self._size = PAGE
        self._index: memoryview = memoryview(b"")
        self._index_at = 0
        self._slots: memoryview[float] = memoryview(b"").cast("d")
        self._slots_at = self._slots_base = 0
        self._rings: dict[int, memoryview] = {}
        self._ring_seq = {SKETCHES: 0, NOTES: 0}
        self._next = {INDEX: FIRST, SLOTS: FIRST, SKETCHES: RING, NOTES: RING}
        _allocate(fd, 0, PAGE)
        if os.pwrite(fd, encode_header(header), 0) != _HEADER.size + _CRC.size:
            raise OSError("the header could not be written")
        self._grow(INDEX, 0)
        self._grow(SLOTS, 0)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def _grow(self, kind: int, content: int) -> memoryview:
        length = max(self._next[kind], -(-(content + START) // PAGE) * PAGE)
        if self._size + length > MAX_BYTES:
            raise OSError(f"a shard has at most {MAX_BYTES >> 20} MiB")
        at = self._size
        _allocate(self.fd, at, length)
        mapped = mmap.mmap(self.fd, length, offset=at)
        self._maps.append(mapped)
        view = memoryview(mapped)
        begin = encode_segment(kind, length)
        view[: len(begin)] = begin
        self._size = at + length
        self._next[kind] = min(2 * length, RING_LARGEST if kind in self._ring_seq else LARGEST)
        if kind == INDEX:
            self._index, self._index_at = view, START
        elif kind == SLOTS:
            self._slots, self._slots_at, self._slots_base = view.cast("d"), START // 8, at // 8
        else:
            self._rings[kind] = view
        return view

    def define(self, record: Any) -> None:
        """Append a record to the index."""
        data = encode_record(record)
        with self._lock:
            if self._index_at + len(data) > len(self._index):
                self._grow(INDEX, len(data))
            at, view = self._index_at, self._index
            self._index_at = at + len(data)
            view[at + 4 : at + len(data)] = data[4:]
            view[at : at + 4] = data[:4]

    def allocate(self, width: int) -> Place:
        """``width`` slots side by side, all zero."""
        with self._lock:
            if self._slots_at + width > len(self._slots):
                self._grow(SLOTS, width * 8)
            at = self._slots_at
            self._slots_at = at + width
            return Place(self._slots, at, self._slots_base + at)

    def write_ring(self, content: bytes, kind: int = SKETCHES) -> bool:
        """Add what one tick has to say; False when it is too long."""
        with self._lock:
            ring = self._rings.get(kind, memoryview(b""))
            room = (len(ring) - START) // RING_ENTRIES // 8 * 8 - _ENTRY.size
            if len(content) > room:
                needed = (len(content) + _ENTRY.size + 8) * RING_ENTRIES
                if needed + START > RING_LARGEST:
                    return False
                ring = self._grow(kind, needed)
                room = (len(ring) - START) // RING_ENTRIES // 8 * 8 - _ENTRY.size
            seq = self._ring_seq[kind] = self._ring_seq[kind] + 1
            at = START + seq % RING_ENTRIES * (room + _ENTRY.size)
            ring[at + _ENTRY.size : at + _ENTRY.size + len(content)] = content
            ring[at : at + _ENTRY.size] = _ENTRY.pack(seq, len(content), zlib.crc32(content))
            return True

    def reinit_after_fork(self) -> None:
        """In a forked child, before it lets go of its parent's shard."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file, which releases the lock. What cells still map stays mapped until they let go."""
        self._maps.clear()
        self._rings.clear()
        self._index = memoryview(b"")
        self._slots = memoryview(b"").cast("d")
        os.close(self.fd)


class ShardReader:
    """Reads a shard that may grow meanwhile. Raises ShardError where it begins with no header."""

    def __init__(self, fd: int, *, keep: bool = False) -> None:
        self.fd = fd
        self.header = decode_header(os.pread(fd, _HEADER.size + _CRC.size, 0))
        self.problem = ""  # what is wrong with it, once something is
        self._keep: list[memoryview[float]] | None = [] if keep else None
        self._size = 0
        self._view: memoryview[float] = memoryview(b"").cast("d")
        self._end = PAGE
        self._segments: list[tuple[int, int, int]] = []  # kind, offset, length
        self._reading = 0  # which of them the next record is in
        self._at = START
        self._ring_seq = {SKETCHES: 0, NOTES: 0}

    def view(self) -> memoryview[float] | None:
        """All of the file as float64, None when it has become shorter than it was: not to be touched then."""
        size = os.fstat(self.fd).st_size
        whole = size - size % PAGE
        if size < self._size or not whole:
            self.problem = "it was cut off"
            return None
        if size > self._size:
            if self._keep is not None:
                self._keep.append(self._view)
            mapped = mmap.mmap(self.fd, whole, prot=mmap.PROT_READ)
            self._view = memoryview(mapped).cast("d")
            self._size = size
        return self._view

    def _find_segments(self) -> None:
        size = os.fstat(self.fd).st_size
        while self._end + PAGE <= size:
            begun = decode_segment(os.pread(self.fd, _SEGMENT.size + _CRC.size, self._end))
            if begun is None:
                return
            kind, length = begun
            if self._end + length > size:
                raise ShardError("a segment is cut off")
            self._segments.append((kind, self._end, length))
            self._end += length

    def poll(self) -> list[Any]:
        """The records that were added since the last time; none from where the index is damaged."""
        found: list[Any] = []
        try:
            self._find_segments()  # before the records: what has a successor is written no more
            if not self._segments:
                raise ShardError("it was cut off")
            while self._reading < len(self._segments):
                kind, offset, length = self._segments[self._reading]
                if kind == INDEX:
                    if self._at + _RECORD.size <= length:
                        begin = os.pread(self.fd, _RECORD.size, offset + self._at)
                        if len(begin) == _RECORD.size and any(begin[:4]):
                            records, at = decode_records(
                                os.pread(self.fd, length - self._at, offset + self._at)
                            )
                            found += records
                            self._at += at
                    if not any(kind == INDEX for kind, _, _ in self._segments[self._reading + 1 :]):
                        break
                    self._at = START
                self._reading += 1
            self.problem = "" if self.problem != "it was cut off" else self.problem
        except ShardError as error:
            found += getattr(error, "found", ())
            self._at += getattr(error, "at", 0)
            self.problem = str(error)
        return found

    def ring(self, kind: int = SKETCHES) -> Iterator[bytes]:
        """What the ticks since the last time have to say, as far as it is still there."""
        last = next(((o, n) for k, o, n in reversed(self._segments) if k == kind), None)
        if last is None:
            return
        offset, length = last
        room = (length - START) // RING_ENTRIES // 8 * 8
        entries = []
        for n in range(RING_ENTRIES):
            head = os.pread(self.fd, _ENTRY.size, offset + START + n * room)
            if len(head) == _ENTRY.size:
                seq, size, crc = _ENTRY.unpack(head)
                if seq > self._ring_seq[kind] and size <= room - _ENTRY.size:
                    entries.append((seq, size, crc, offset + START + n * room + _ENTRY.size))
        for seq, size, crc, at in sorted(entries):
            content = os.pread(self.fd, size, at)
            if len(content) == size and zlib.crc32(content) == crc:
                self._ring_seq[kind] = seq
                yield content


def encode_sketches(sketches: Sequence[tuple[int, float, dict[int, int]]]) -> bytes:
    """What histograms (by their first slot) observed in a tick: the largest value, and counts by magnitude."""
    parts = []
    for slot, top, counts in sketches:
        pairs = [number for pair in counts.items() for number in pair]
        parts.append(struct.pack(f"<QdI{len(pairs)}i", slot, top, len(counts), *pairs))
    return b"".join(parts)


def decode_sketches(data: bytes) -> list[tuple[int, float, dict[int, int]]]:
    """What encode_sketches wrote; what is cut off is left out."""
    found, at = [], 0
    head = struct.Struct("<QdI")
    while at + head.size <= len(data):
        slot, top, n = head.unpack_from(data, at)
        at += head.size
        if at + 8 * n > len(data):
            break
        pairs = struct.unpack_from(f"<{2 * n}i", data, at)
        found.append((slot, top, dict(zip(pairs[::2], pairs[1::2], strict=True))))
        at += 8 * n
    return found
