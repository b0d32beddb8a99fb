"""How is a page made without holding anybody? As a generator of small steps.

A step is one chunk, some 0.2 ms of work. Whoever drives it decides what happens between two steps: an event loop gets
its turn, a thread lets go of the interpreter. The steps' own yields say how many seconds there is nothing to do.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Generator, Sequence
from typing import TypeVar

from uno.core.monitoring.exporters.prometheus.layout import Rendered

T = TypeVar("T")

#: Seconds of work after which others get their turn.
SLICE = 0.0005
#: Compressed one by one, and kept: chunks of at least this many bytes. Smaller ones are put together.
_ALONE = 8_192
_TOGETHER = 32_768
_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"


def drive(steps: Generator[float, None, T]) -> T:
    """Take the steps on this thread; other threads get the interpreter in between."""
    begun = time.perf_counter()
    while True:
        try:
            pause = next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if pause or time.perf_counter() - begun >= SLICE:
            time.sleep(pause)
            begun = time.perf_counter()


async def drive_in_loop(steps: Generator[float, None, T]) -> T:
    """Take the steps on an event loop, which goes round in between."""
    begun = time.perf_counter()
    while True:
        try:
            pause = next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if pause or time.perf_counter() - begun >= SLICE:
            await asyncio.sleep(pause)
            begun = time.perf_counter()


def compress(pieces: Sequence[Rendered]) -> Generator[float, None, list[bytes]]:
    """One gzip member, made of blocks that do not look back: those of unchanged chunks are used again.

    Several members would do for Prometheus, but other readers (httpx, aiohttp) stop after the first. Level 1 takes
    a third of the default level's time for nearly its size.
    """
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = [_GZIP_HEAD]
    checksum = length = waiting = 0
    small: list[bytes] = []

    def flush() -> None:
        nonlocal waiting
        if small:
            out.append(packer.compress(b"".join(small)) + packer.flush(zlib.Z_FULL_FLUSH))
            small.clear()
            waiting = 0

    for piece in pieces:
        plain = piece.plain
        for at in range(0, len(plain), _TOGETHER):
            part = plain if len(plain) <= _TOGETHER else plain[at : at + _TOGETHER]
            checksum = zlib.crc32(part, checksum)
            length += len(part)
            if len(part) < _ALONE or part is not plain:
                small.append(part)
                waiting += len(part)
                if waiting >= _TOGETHER:
                    flush()
                    yield 0.0
                continue
            flush()
            packed = piece.packed
            if packed is None:
                packed = piece.packed = packer.compress(plain) + packer.flush(zlib.Z_FULL_FLUSH)
                yield 0.0
            out.append(packed)
    flush()
    out.append(b"\x03\x00" + checksum.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little"))
    return out
