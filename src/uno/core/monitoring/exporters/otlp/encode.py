"""How are metrics written as an OTLP ``ExportMetricsServiceRequest``, in protobuf and in JSON?

By hand, from opentelemetry-proto 1.x (metrics/v1/metrics.proto): a point's fields are of fixed size but for its
attributes, which are encoded once for each series. JSON follows the rules of OTLP/JSON: lowerCamelCase, 64-bit
integers as text, enumerations as numbers, trace and span ids in hexadecimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import inf
from struct import Struct
from typing import Literal, Protocol

from uno.core.records import NamedTuple

Pairs = Sequence[tuple[str, str]]
#: Of a resource: a whole number from zero up is sent as such.
Mixed = Sequence[tuple[str, str | int]]
Form = Literal["gauge", "sum", "histogram", "exponential"]

#: Most buckets of a side of an exponential histogram; a wider one is sent at a coarser scale, which is exact.
MAX_BUCKETS = 640
CUMULATIVE, DELTA = 2, 1


class Native(Protocol):
    """Exponential buckets: index i counts what is in (base**(i-1), base**i], base 2**(2**-schema)."""

    @property
    def schema(self) -> int: ...
    @property
    def zero_threshold(self) -> float: ...
    @property
    def zero_count(self) -> int: ...
    @property
    def positive(self) -> Mapping[int, int]: ...
    @property
    def negative(self) -> Mapping[int, int]: ...


class Sample(NamedTuple):
    """An exemplar: one recorded value with the trace that it belongs to. ``time`` in nanoseconds since 1970."""

    value: float
    time: int
    attributes: tuple[tuple[str, str], ...] = ()
    trace_id: bytes = b""
    span_id: bytes = b""


class Dense(NamedTuple):
    """Exponential buckets as OTLP has them: the counts from ``offset`` on without holes."""

    scale: int
    positive_offset: int
    positive: list[int]
    negative_offset: int
    negative: list[int]


def dense(native: Native, most: int = MAX_BUCKETS) -> Dense:
    """The buckets of ``native`` in a row, at a coarser scale where they would be more than ``most`` on a side."""
    scale = native.schema
    sides = [{i: n for i, n in side.items() if n} for side in (native.positive, native.negative)]
    while any(side and max(side) - min(side) >= most for side in sides):
        scale -= 1
        for place, side in enumerate(sides):
            merged: dict[int, int] = {}
            for (
                index,
                count,
            ) in side.items():  # (base**(i-1), base**i] lies in the bucket half as high, rounded up
                merged[(index + 1) >> 1] = merged.get((index + 1) >> 1, 0) + count
            sides[place] = merged
    rows: list[tuple[int, list[int]]] = []
    for side in sides:
        low = min(side, default=1)
        # OTLP's index is of the lower bound, one less.
        rows.append((low - 1, [side.get(i, 0) for i in range(low, max(side, default=0) + 1)]))
    return Dense(scale, *rows[0], *rows[1])


class Encoding(Protocol):
    """What both forms can do. Fragments are bytes that the next call puts together."""

    media_type: str

    def header(self, name: str, description: str, unit: str) -> bytes:
        """What a metric begins with."""

    def attributes(self, pairs: Pairs) -> bytes:
        """The attributes of a number point."""

    def number_head(self, attributes: bytes, start: int) -> bytes:
        """What does not change of a number point; ``start`` 0 leaves the start time out."""

    def numbers(self, heads: Iterable[bytes], values: Iterable[float], time: int) -> list[bytes]:
        """A point for each head and value."""

    def number(
        self, attributes: bytes, start: int, time: int, value: float, samples: Sequence[Sample] = ()
    ) -> bytes:
        """A number point with exemplars."""

    def change_head(self, attributes: bytes) -> bytes:
        """What does not change of a number point whose start does."""

    def changes(
        self, heads: Iterable[bytes], starts: Sequence[int], values: Iterable[float], time: int
    ) -> list[bytes]:
        """A point for each head, start (not 0) and value."""

    def histogram_head(self, attributes: Pairs, bounds: Sequence[float]) -> bytes:
        """What does not change of a histogram point."""

    def histogram_prefix(self, head: bytes, start: int, buckets: int) -> bytes:
        """The same with the start time, for ``histograms``."""

    def histograms(
        self, prefixes: Iterable[bytes], totals: Iterable[tuple[int, float, tuple[int, ...]]], time: int
    ) -> list[bytes]:
        """A point for each prefix and its (count, sum, counts by bucket)."""

    def histogram(
        self,
        head: bytes,
        start: int,
        time: int,
        count: int,
        total: float | None,
        counts: Sequence[int],
        samples: Sequence[Sample] = (),
    ) -> bytes:
        """A histogram point; ``counts`` are by bucket, not cumulative; ``total`` is the sum, None to leave it out."""

    def exponential(
        self,
        attributes: Pairs,
        start: int,
        time: int,
        count: int,
        total: float | None,
        native: Native,
        samples: Sequence[Sample] = (),
    ) -> bytes:
        """A point of an exponential histogram."""

    def metric(self, header: bytes, form: Form, temporality: int, points: Sequence[bytes]) -> bytes:
        """A metric with its points; a sum is monotonic."""

    def sender(self, attributes: Mixed, scope: str, version: str) -> tuple[bytes, bytes]:
        """Who sends (resource and scope), to be handed to ``request``."""

    def request(self, sender: tuple[bytes, bytes], metrics: Sequence[bytes]) -> bytes:
        """The whole body."""


# -- protobuf ------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte."""
    if number < 0x80:
        return _BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def zigzag(number: int) -> bytes:
    """A signed number of 32 bits, small ones of either sign in few bytes."""
    return varint((number << 1) ^ (number >> 31))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def _nested(outer: bytes, before: bytes, inner: bytes, content: list[bytes]) -> bytes:
    """A field of ``before`` and a field of ``content``, which is much: it is copied once."""
    length = sum(map(len, content))
    head = before + inner + varint(length)
    return b"".join([outer, varint(len(head) + length), head, *content])


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "replace")) if text else b""


def _attributes(tag: bytes, pairs: Iterable[tuple[str, str | int]]) -> bytes:
    return b"".join(
        _field(tag, _text(b"\x0a", key) + _field(b"\x12", _any_value(value))) for key, value in pairs
    )


def _any_value(value: str | int) -> bytes:
    if isinstance(value, int):
        return b"\x18" + varint(value)
    # Present even when it is empty: AnyValue without any member would mean "no value".
    return _field(b"\x0a", value.encode("utf-8", "replace"))


def _fixed(tag: bytes, number: int) -> bytes:
    return tag + _FIXED(number) if number else b""


def _samples(tag: bytes, samples: Sequence[Sample]) -> bytes:
    return b"".join(
        _field(
            tag,
            _fixed(b"\x11", s.time)
            + b"\x19"
            + _DOUBLE(s.value)
            + (_field(b"\x22", s.span_id) if s.span_id else b"")
            + (_field(b"\x2a", s.trace_id) if s.trace_id else b"")
            + _attributes(b"\x3a", s.attributes),
        )
        for s in samples
    )


_BYTE = [bytes((n,)) for n in range(0x80)]
_DOUBLE, _FIXED = Struct("<d").pack, Struct("<Q").pack
_DATA: dict[Form, bytes] = {"gauge": b"\x2a", "sum": b"\x3a", "histogram": b"\x4a", "exponential": b"\x52"}


@lru_cache(256)
def _counted(buckets: int) -> tuple[Struct, bytes]:
    """Time, count, sum and the counts of so many buckets in one go; and the tag and length before the counts."""
    tag = b"\x32" + varint(8 * buckets) if buckets else b""
    return Struct(f"<10sQcd{len(tag)}s{buckets}Q"), tag


class Protobuf:
    """Binary protobuf."""

    media_type = "application/x-protobuf"

    def header(self, name: str, description: str, unit: str) -> bytes:
        return _text(b"\x0a", name) + _text(b"\x12", description) + _text(b"\x1a", unit)

    def attributes(self, pairs: Pairs) -> bytes:
        return _attributes(b"\x3a", pairs)

    def number_head(self, attributes: bytes, start: int) -> bytes:
        head = attributes + _fixed(b"\x11", start)
        return b"\x0a" + varint(len(head) + 18) + head  # 18: the time and the value are still to come

    def numbers(self, heads: Iterable[bytes], values: Iterable[float], time: int) -> list[bytes]:
        between, double = b"\x19" + _FIXED(time) + b"\x21", _DOUBLE
        return [head + between + double(value) for head, value in zip(heads, values, strict=False)]

    def number(
        self, attributes: bytes, start: int, time: int, value: float, samples: Sequence[Sample] = ()
    ) -> bytes:
        return _field(
            b"\x0a",
            attributes
            + _fixed(b"\x11", start)
            + b"\x19"
            + _FIXED(time)
            + b"\x21"
            + _DOUBLE(value)
            + _samples(b"\x2a", samples),
        )

    def change_head(self, attributes: bytes) -> bytes:
        return b"\x0a" + varint(len(attributes) + 27) + attributes + b"\x11"

    def changes(
        self, heads: Iterable[bytes], starts: Sequence[int], values: Iterable[float], time: int
    ) -> list[bytes]:
        between, double = b"\x19" + _FIXED(time) + b"\x21", _DOUBLE
        begun = {start: _FIXED(start) + between for start in set(starts)}  # few: those of the last export
        return [
            head + begun[start] + double(value)
            for head, start, value in zip(heads, starts, values, strict=True)
        ]

    def histogram_head(self, attributes: Pairs, bounds: Sequence[float]) -> bytes:
        packed = _field(b"\x3a", Struct(f"<{len(bounds)}d").pack(*bounds)) if bounds else b""
        return _attributes(b"\x4a", attributes) + packed

    def histogram_prefix(self, head: bytes, start: int, buckets: int) -> bytes:
        whole = head + _fixed(b"\x11", start)
        return b"\x0a" + varint(len(whole) + _counted(buckets)[0].size) + whole

    def histograms(
        self, prefixes: Iterable[bytes], totals: Iterable[tuple[int, float, tuple[int, ...]]], time: int
    ) -> list[bytes]:
        moment = b"\x19" + _FIXED(time) + b"\x21"
        out = []
        size, pack, tag = -1, _counted(0)[0].pack, b""
        for prefix, (count, total, counts) in zip(prefixes, totals, strict=True):
            if len(counts) != size:
                size = len(counts)
                shape, tag = _counted(size)
                pack = shape.pack
            # One tuple from two, not piece by piece: that takes a third less.
            out.append(prefix + pack(*(moment, count, b"\x29", total, tag) + counts))  # noqa: RUF005
        return out

    def histogram(
        self,
        head: bytes,
        start: int,
        time: int,
        count: int,
        total: float | None,
        counts: Sequence[int],
        samples: Sequence[Sample] = (),
    ) -> bytes:
        shape, tag = _counted(len(counts))
        moment = b"\x19" + _FIXED(time) + b"\x21"
        if total is None:
            numbers = moment + _FIXED(count) + tag + Struct(f"<{len(counts)}Q").pack(*counts)
        else:
            numbers = shape.pack(moment, count, b"\x29", total, tag, *counts)
        return _field(b"\x0a", head + _fixed(b"\x11", start) + numbers + _samples(b"\x42", samples))

    def exponential(
        self,
        attributes: Pairs,
        start: int,
        time: int,
        count: int,
        total: float | None,
        native: Native,
        samples: Sequence[Sample] = (),
    ) -> bytes:
        row = dense(native)
        parts = [
            _attributes(b"\x0a", attributes), _fixed(b"\x11", start), b"\x19", _FIXED(time), b"\x21", _FIXED(count),
        ]  # fmt: skip
        if total is not None:
            parts += (b"\x29", _DOUBLE(total))
        if row.scale:
            parts += (b"\x30", zigzag(row.scale))
        parts.append(_fixed(b"\x39", native.zero_count))
        for tag, offset, counts in (
            (b"\x42", row.positive_offset, row.positive),
            (b"\x4a", row.negative_offset, row.negative),
        ):
            if counts:
                packed = _field(b"\x12", b"".join(map(varint, counts)))
                parts.append(_field(tag, (b"\x08" + zigzag(offset) if offset else b"") + packed))
        parts.append(_samples(b"\x5a", samples))
        if native.zero_threshold:
            parts += (b"\x71", _DOUBLE(native.zero_threshold))
        return _field(b"\x0a", b"".join(parts))

    def metric(self, header: bytes, form: Form, temporality: int, points: Sequence[bytes]) -> bytes:
        end = b"" if form == "gauge" else b"\x10" + _BYTE[temporality]
        if form == "sum":
            end += b"\x18\x01"
        return _nested(b"\x12", header, _DATA[form], [*points, end])

    def sender(self, attributes: Mixed, scope: str, version: str) -> tuple[bytes, bytes]:
        inner = _text(b"\x0a", scope) + _text(b"\x12", version)
        return _field(b"\x0a", _attributes(b"\x0a", attributes)), _field(b"\x0a", inner)

    def request(self, sender: tuple[bytes, bytes], metrics: Sequence[bytes]) -> bytes:
        resource, scope = sender
        return _nested(b"\x0a", resource, b"\x12", [scope, *metrics])


# -- JSON ----------------------------------------------------------------------------------------------------


def _quoted(text: str) -> bytes:
    import json

    return json.dumps(text.encode("utf-8", "replace").decode()).encode()


def _double(value: float) -> bytes:
    if -inf < value < inf:
        return repr(float(value)).encode()
    return b'"Infinity"' if value == inf else b'"-Infinity"' if value == -inf else b'"NaN"'


def _object(*members: tuple[str, bytes | None]) -> bytes:
    """The members that are there."""
    return b"{" + b",".join(b'"%b":%b' % (k.encode(), v) for k, v in members if v is not None) + b"}"


def _array(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _wide(number: int) -> bytes:
    """64 bits as text."""
    return b'"%d"' % number


def _json_attributes(pairs: Iterable[tuple[str, str | int]]) -> bytes:
    return _array(
        _object(
            ("key", _quoted(key)),
            (
                "value",
                _object(
                    ("intValue", _wide(value)) if isinstance(value, int) else ("stringValue", _quoted(value))
                ),
            ),
        )
        for key, value in pairs
    )


def _json_samples(samples: Sequence[Sample]) -> bytes | None:
    if not samples:
        return None
    return _array(
        _object(
            ("filteredAttributes", _json_attributes(s.attributes) if s.attributes else None),
            ("timeUnixNano", _wide(s.time)),
            ("asDouble", _double(s.value)),
            ("spanId", b'"%b"' % s.span_id.hex().encode() if s.span_id else None),
            ("traceId", b'"%b"' % s.trace_id.hex().encode() if s.trace_id else None),
        )
        for s in samples
    )


_MEMBER: dict[Form, str] = {
    "gauge": "gauge", "sum": "sum", "histogram": "histogram", "exponential": "exponentialHistogram",
}  # fmt: skip


class Json:
    """OTLP/JSON."""

    media_type = "application/json"

    def header(self, name: str, description: str, unit: str) -> bytes:
        text = {"name": name, "description": description, "unit": unit}
        return b",".join(b'"%b":%b' % (k.encode(), _quoted(v)) for k, v in text.items() if v)

    def attributes(self, pairs: Pairs) -> bytes:
        return b'{"attributes":' + _json_attributes(pairs)

    def number_head(self, attributes: bytes, start: int) -> bytes:
        return attributes + (b',"startTimeUnixNano":"%d"' % start if start else b"")

    def numbers(self, heads: Iterable[bytes], values: Iterable[float], time: int) -> list[bytes]:
        between = b',"timeUnixNano":"%d","asDouble":' % time
        return [head + between + _double(value) + b"}" for head, value in zip(heads, values, strict=False)]

    def number(
        self, attributes: bytes, start: int, time: int, value: float, samples: Sequence[Sample] = ()
    ) -> bytes:
        (point,) = self.numbers([self.number_head(attributes, start)], [value], time)
        found = _json_samples(samples)
        return point if found is None else point[:-1] + b',"exemplars":' + found + b"}"

    def change_head(self, attributes: bytes) -> bytes:
        return attributes

    def changes(
        self, heads: Iterable[bytes], starts: Sequence[int], values: Iterable[float], time: int
    ) -> list[bytes]:
        return [
            self.number(head, start, time, value)
            for head, start, value in zip(heads, starts, values, strict=True)
        ]

    def histogram_head(self, attributes: Pairs, bounds: Sequence[float]) -> bytes:
        head = self.attributes(attributes)
        return head + (b',"explicitBounds":' + _array(map(_double, bounds)) if bounds else b"")

    def histogram_prefix(self, head: bytes, start: int, buckets: int) -> bytes:
        return head + (b',"startTimeUnixNano":"%d"' % start if start else b"")

    def histograms(
        self, prefixes: Iterable[bytes], totals: Iterable[tuple[int, float, tuple[int, ...]]], time: int
    ) -> list[bytes]:
        return [
            self.histogram(prefix, 0, time, count, total, counts)
            for prefix, (count, total, counts) in zip(prefixes, totals, strict=True)
        ]

    def histogram(
        self,
        head: bytes,
        start: int,
        time: int,
        count: int,
        total: float | None,
        counts: Sequence[int],
        samples: Sequence[Sample] = (),
    ) -> bytes:
        rest = _object(
            ("startTimeUnixNano", _wide(start) if start else None),
            ("timeUnixNano", _wide(time)),
            ("count", _wide(count)),
            ("sum", None if total is None else _double(total)),
            ("bucketCounts", _array(map(_wide, counts)) if counts else None),
            ("exemplars", _json_samples(samples)),
        )
        return head + b"," + rest[1:]

    def exponential(
        self,
        attributes: Pairs,
        start: int,
        time: int,
        count: int,
        total: float | None,
        native: Native,
        samples: Sequence[Sample] = (),
    ) -> bytes:
        row = dense(native)

        def side(offset: int, counts: list[int]) -> bytes | None:
            if not counts:
                return None
            return _object(("offset", b"%d" % offset), ("bucketCounts", _array(map(_wide, counts))))

        return _object(
            ("attributes", _json_attributes(attributes)),
            ("startTimeUnixNano", _wide(start) if start else None),
            ("timeUnixNano", _wide(time)),
            ("count", _wide(count)),
            ("sum", None if total is None else _double(total)),
            ("scale", b"%d" % row.scale),
            ("zeroCount", _wide(native.zero_count)),
            ("positive", side(row.positive_offset, row.positive)),
            ("negative", side(row.negative_offset, row.negative)),
            ("exemplars", _json_samples(samples)),
            ("zeroThreshold", _double(native.zero_threshold) if native.zero_threshold else None),
        )

    def metric(self, header: bytes, form: Form, temporality: int, points: Sequence[bytes]) -> bytes:
        data = _object(
            ("dataPoints", _array(points)),
            ("aggregationTemporality", None if form == "gauge" else b"%d" % temporality),
            ("isMonotonic", b"true" if form == "sum" else None),
        )
        return b'{%b,"%b":%b}' % (header, _MEMBER[form].encode(), data)

    def sender(self, attributes: Mixed, scope: str, version: str) -> tuple[bytes, bytes]:
        inner = _object(("name", _quoted(scope)), ("version", _quoted(version) if version else None))
        return _object(("attributes", _json_attributes(attributes))), inner

    def request(self, sender: tuple[bytes, bytes], metrics: Sequence[bytes]) -> bytes:
        resource, scope = sender
        scoped = _object(("scope", scope), ("metrics", _array(metrics)))
        return _object(
            ("resourceMetrics", _array([_object(("resource", resource), ("scopeMetrics", _array([scoped])))]))
        )
