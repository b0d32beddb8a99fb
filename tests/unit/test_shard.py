"""Does a shard say what was written into it, and nothing but that whatever became of its bytes?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.workers import shard
from uno.core.monitoring.workers.fold import Index, Shape, numbers_of, spec_record
from uno.core.monitoring.workers.shard import Header, ShardError, ShardReader, ShardWriter

texts = st.text(max_size=30)  # hostile ones included: surrogates, quotes, NUL
records = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
headers = st.builds(
    Header,
    st.binary(min_size=16, max_size=16),
    st.floats(0, 1e11),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
sketches = st.lists(
    st.tuples(
        st.integers(0, 2**40),
        st.floats(allow_nan=False),
        st.dictionaries(st.integers(-2_000, 40_000), st.integers(1, 2**31 - 1), max_size=8),
    ),
    max_size=5,
)


def a_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


@given(headers)
def test_a_header_is_read_as_it_was_written(header: Header) -> None:
    assert shard.decode_header(shard.encode_header(header)) == header


@given(headers, st.data())
def test_a_damaged_header_is_refused(header: Header, data: st.DataObject) -> None:
    whole = bytearray(shard.encode_header(header))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ShardError):
        shard.decode_header(bytes(whole))
    with pytest.raises(ShardError):
        shard.decode_header(shard.encode_header(header)[:at])


@given(st.lists(records, max_size=6))
def test_records_are_read_as_they_were_written(written: list[object]) -> None:
    data = b"".join(map(shard.encode_record, written))
    assert shard.decode_records(data + bytes(16)) == (written, len(data))


@given(st.lists(records, min_size=1, max_size=6), st.data())
def test_of_damaged_records_those_before_the_damage_are_read(
    written: list[object], data: st.DataObject
) -> None:
    parts = [shard.encode_record(record) for record in written]
    whole = bytearray(b"".join(parts))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        found, _ = shard.decode_records(bytes(whole))
    except ShardError as error:
        found = error.found  # type: ignore[attr-defined]
    before = 0
    while sum(map(len, parts[: before + 1])) <= at:
        before += 1
    assert found[:before] == written[:before]
    assert found[before:] in ([], written[before:])  # padding carries nothing


@given(st.binary(max_size=200))
def test_any_bytes_give_records_or_a_shard_error(data: bytes) -> None:
    for decode in (shard.decode_records, shard.decode_segment, shard.decode_header):
        with contextlib.suppress(ShardError):
            decode(data)
    shard.decode_sketches(data)


@given(sketches)
def test_sketches_are_read_as_they_were_written(written: list[tuple[int, float, dict[int, int]]]) -> None:
    assert shard.decode_sketches(shard.encode_sketches(written)) == written


def test_a_reader_sees_what_a_writer_adds_meanwhile(tmp_path: Path) -> None:
    fd = a_file(tmp_path / "0.shard")
    writer = ShardWriter(fd, Header(bytes(16), 1.0, 1, 0))
    reader = ShardReader(fd, keep=True)
    seen = []
    for n in range(4_000):  # several segments of each kind
        place = writer.allocate(3)
        place.view[place.at] = n
        writer.define([n, place.slot, "x" * (n % 50)])
        if n % 700 == 0:
            seen += reader.poll()
    seen += reader.poll()
    view = reader.view()
    assert view is not None
    assert [record[0] for record in seen] == list(range(4_000))
    assert [view[record[1]] for record in seen] == list(range(4_000))
    assert reader.poll() == []
    assert reader.problem == ""
    assert os.fstat(fd).st_size == writer.size
    writer.close()


def test_a_ring_keeps_the_last_ticks_and_grows(tmp_path: Path) -> None:
    fd = a_file(tmp_path / "0.shard")
    writer = ShardWriter(fd, Header(bytes(16), 1.0, 1, 0))
    reader = ShardReader(fd, keep=True)
    assert writer.write_ring(b"one")
    reader.poll()
    assert list(reader.ring()) == [b"one"]
    assert list(reader.ring()) == []
    for n in range(10):
        assert writer.write_ring(b"%d" % n)
    assert list(reader.ring()) == [b"6", b"7", b"8", b"9"]
    assert writer.write_ring(bytes(30_000))
    reader.poll()
    assert list(reader.ring()) == [bytes(30_000)]
    assert not writer.write_ring(bytes(2 * shard.RING_LARGEST))
    writer.close()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_told_and_never_raises(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("shard") / "0.shard"
    fd = a_file(path)
    writer = ShardWriter(fd, Header(bytes(16), 1.0, 1, 0))
    spec = Spec("orders", "counter", "", "", ("a",))
    writer.define(spec_record(0, spec, "sum", Shape()))
    for n in range(20):
        place = writer.allocate(2)
        place.view[place.at], place.view[place.at + 1] = shard.KNOWN, n
        writer.define(["s", 0, "shop", [str(n)], place.slot, 1.0])
    writer.close()
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, 2_500) | st.integers(0, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(whole[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))])
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            reader = ShardReader(fd)
        except ShardError:
            return
        index, view = Index(), reader.view()
        for record in reader.poll():
            try:
                definition = index.read(record)
                if definition is not None and view is not None:
                    numbers_of(view, definition)
            except (ValueError, IndexError):
                pass
        list(reader.ring())
    finally:
        os.close(fd)


def test_a_file_that_became_shorter_is_not_touched(tmp_path: Path) -> None:
    fd = a_file(tmp_path / "0.shard")
    writer = ShardWriter(fd, Header(bytes(16), 1.0, 1, 0))
    other = os.open(tmp_path / "0.shard", os.O_RDWR)
    reader = ShardReader(other)
    assert reader.view() is not None
    os.ftruncate(other, shard.PAGE)
    assert reader.view() is None
    assert reader.problem == "it was cut off"
    os.close(other)
    writer.close()
