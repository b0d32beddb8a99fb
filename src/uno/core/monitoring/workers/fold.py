"""What becomes of what a worker counted when the worker is gone?

The counters and histograms of the dead are added up in one shard of their own, ``dead.shard``, made anew
each time: written beside, renamed (the moment at which it counts), and only then are the files of the dead removed.
It names whom it holds, so that a crash between the two neither loses nor doubles anything.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from array import array
from collections.abc import Iterable
from math import fsum
from typing import Any

from uno.core.monitoring.buckets import NativeBuckets, native_merge
from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.workers.shard import (
    GONE,
    KNOWN,
    MAX_BYTES,
    NATIVE,
    Header,
    ShardReader,
    ShardWriter,
    decode_native,
    encode_native,
)
from uno.core.records import NamedTuple

DEAD = "dead.shard"
#: How many of the dead are named at most.
MAX_NAMED = 64
_NEW = ".dead-new"


class Shape(NamedTuple):
    """What a histogram has: the bounds of its classic buckets, None for none, and whether it has native ones."""

    bounds: tuple[float, ...] | None = None
    native: bool = False

    @property
    def classic(self) -> int:
        """How many classic buckets."""
        return 0 if self.bounds is None else len(self.bounds) + 1

    @property
    def half(self) -> int:
        """The numbers of one copy: sum, counts, native buckets."""
        return 1 + self.classic + NATIVE * self.native


class Definition(NamedTuple):
    """A series as a shard's index has it. ``slot`` is where its state is, ``shape`` a histogram's."""

    resource: str
    spec: Spec
    labels: tuple[str, ...]
    slot: int
    created: float
    merge: str
    shape: Shape

    @property
    def key(self) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
        """What makes it the same series in all shards."""
        return self.resource, self.spec.name, self.spec.labels, self.labels

    @property
    def width(self) -> int:
        """How many slots it takes."""
        return 2 + 2 * self.shape.half if self.spec.kind == "histogram" else 2


def spec_record(number: int, spec: Spec, merge: str, shape: Shape) -> list[Any]:
    """The record of a metric, which those of its series name by ``number``."""
    bounds, native = shape
    return [
        "m",
        number,
        spec.name,
        spec.kind,
        spec.description,
        spec.unit,
        spec.labels,
        spec.title,
        merge,
        bounds,
        native,
    ]


class Index:
    """Understands the records of one shard. Of the dead's: whom it holds, and which processes left by themselves."""

    def __init__(self) -> None:
        self._specs: dict[int, tuple[Spec, str, Shape]] = {}
        self.folded: tuple[str, ...] = ()
        self.left: tuple[int, ...] = ()
        self.sum: int | None = None

    def read(self, record: Any) -> Definition | None:
        """The series that a record defines, None for another record. ValueError where it makes no sense."""
        try:
            if record[0] == "m":
                _, number, name, kind, description, unit, labels, title, merge, bounds, native = record
                if kind not in ("counter", "gauge", "histogram"):
                    raise ValueError(f"no kind of metric: {kind!r}")
                spec = Spec(str(name), kind, str(description), str(unit), tuple(map(str, labels)), str(title))
                shape = Shape(None if bounds is None else tuple(map(float, bounds)), bool(native))
                self._specs[int(number)] = spec, str(merge), shape
            elif record[0] == "s":
                _, number, resource, labels, slot, created = record
                spec, merge, shape = self._specs[number]
                if len(labels) != len(spec.labels) or not isinstance(slot, int) or not 0 <= slot < MAX_BYTES:
                    raise ValueError("labels do not fit")
                return Definition(
                    str(resource), spec, tuple(map(str, labels)), slot, float(created), merge, shape
                )
            elif record[0] == "f":
                _, folded, sum, left = record
                self.folded, self.sum, self.left = tuple(map(str, folded)), int(sum), tuple(map(int, left))
        except (TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
            raise ValueError(f"a record makes no sense ({type(error).__name__})") from None
        return None


class _Total:
    """What all the dead have counted in one series. ``parts`` add up to the total or a histogram's sum."""

    __slots__ = ("counts", "definition", "native", "parts", "state")

    def __init__(self, definition: Definition) -> None:
        self.definition, self.state = definition, GONE
        self.parts: list[float] = []
        self.counts = [0.0] * definition.shape.classic
        self.native: NativeBuckets | None = None

    def add(self, numbers: list[float], state: float) -> None:
        """Take those of one shard. ValueError where they are damaged."""
        shape = self.definition.shape
        if shape.native:
            native = decode_native(numbers[1 + shape.classic :])
            if native is not None:
                self.native = native if self.native is None else native_merge(self.native, native)
        if self.definition.merge == "max":  # a total of the machine's, which all workers read
            self.parts = [max([numbers[0], *self.parts])]
        else:
            self.parts.append(numbers[0])
        self.counts = [a + b for a, b in zip(self.counts, numbers[1 : 1 + shape.classic], strict=True)]
        if state != GONE:
            self.state = KNOWN

    def blocks(self) -> list[list[float]]:
        """The numbers to be written: the rounded total, and what rounding took away where it did."""
        total = fsum(self.parts)
        rest = fsum((*self.parts, -total))
        native = encode_native(self.native) if self.definition.shape.native else []
        first = [total, *self.counts, *native]
        return [first, [rest, *[0.0] * (len(first) - 1)]] if rest else [first]


def numbers_of(view: memoryview[float], definition: Definition) -> tuple[float, list[float]]:
    """State and numbers of a series: a counter's total, a histogram's sum and counts. IndexError out of bounds."""
    slot = definition.slot
    if slot + definition.width > len(view):
        raise IndexError("a series lies beyond the end")
    state = view[slot]
    if definition.spec.kind != "histogram":
        return state, [view[slot + 1]]
    half = definition.shape.half
    begin = slot + 2 + int(view[slot + 1]) % 2 * half
    numbers: list[float] = view[begin : begin + half].tolist()  # type: ignore[assignment]
    return state, numbers


def checksum(numbers: Iterable[float]) -> int:
    """Of the numbers of a dead shard, in the order of their definition."""
    return zlib.crc32(array("d", numbers).tobytes())


def fold(
    directory: int, dead: ShardReader | None, gone: list[tuple[str, ShardReader]], leaver: int = 0
) -> list[str]:
    """Add up ``dead`` (what was folded before) and the shards of the dead, and remove these. Whoever calls it holds
    the group's lock; ``leaver`` is a process that lives but shares no more. Returns what could not be read; OSError,
    with nothing changed, when the disk is full."""
    totals: dict[tuple[Any, ...], _Total] = {}
    problems: list[str] = []
    before = Index() if dead is None else _add(totals, dead, problems)
    # Those of before stay named for long: a crash, or an error, may have come before the removal.
    folded, left = list(before.folded[-MAX_NAMED:]), [*before.left[-MAX_NAMED:], leaver]
    for name, reader in gone:
        id = reader.header.id.hex()
        if id in before.folded:
            continue
        folded.append(id)
        _add(totals, reader, problems)
        if reader.problem:
            problems.append(f"{name}: {reader.problem}; what came before that was kept")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_NEW, flags, 0o600, dir_fd=directory)
    try:
        _write(fd, totals.values(), folded, left)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(_NEW, dir_fd=directory)
        raise
    os.rename(_NEW, DEAD, src_dir_fd=directory, dst_dir_fd=directory)
    for name, _ in gone:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
    return problems


def _add(totals: dict[tuple[Any, ...], _Total], reader: ShardReader, problems: list[str]) -> Index:
    index = Index()
    fresh = ShardReader(reader.fd)  # from the beginning
    view = fresh.view()
    for record in fresh.poll():
        try:
            definition = index.read(record)
            if definition is None or definition.spec.kind == "gauge" or view is None:
                continue
            state, numbers = numbers_of(view, definition)
        except (ValueError, IndexError) as error:
            reader.problem = str(error)
            continue
        if any(number != number for number in numbers):
            continue
        key = (definition.key, definition.spec.kind, definition.shape)
        total = totals.get(key)
        if total is None:
            total = totals[key] = _Total(definition)
        try:
            total.add(numbers, state)
        except ValueError as error:
            reader.problem = str(error)
        if definition.created < total.definition.created:
            total.definition = total.definition._replace(created=definition.created)
    reader.problem = reader.problem or fresh.problem
    return index


def _write(fd: int, totals: Iterable[_Total], folded: list[str], left: list[int]) -> None:
    try:
        writer = ShardWriter(fd, Header(os.urandom(16), time.time(), 0, 0))
    except BaseException:
        os.close(fd)
        raise
    try:
        specs: dict[tuple[Any, ...], int] = {}
        every: list[float] = []
        for total in totals:
            definition = total.definition
            what = (definition.spec, definition.merge, definition.shape)
            number = specs.get(what)
            if number is None:
                number = specs[what] = len(specs)
                writer.define(spec_record(number, *what))
            series = definition.resource, definition.labels
            for numbers in total.blocks():
                place = writer.allocate(definition.width)
                place.view[place.at] = total.state
                begin = place.at + (2 if definition.spec.kind == "histogram" else 1)
                for at, value in enumerate(numbers, begin):
                    place.view[at] = value
                every += numbers
                writer.define(["s", number, *series, place.slot, definition.created])
        writer.define(["f", folded, checksum(every), left])
    finally:
        writer.close()
