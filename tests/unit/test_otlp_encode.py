"""Are the bytes of an OTLP request what OpenTelemetry's own library reads, field for field?"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2

from uno.core.monitoring.exporters.otlp.encode import CUMULATIVE, DELTA, Json, Protobuf, Sample, dense

SENDER = [("service.name", "shop"), ("process.pid", 300), ("empty", "")]


class Native(NamedTuple):
    schema: int
    zero_threshold: float
    zero_count: int
    positive: Mapping[int, int]
    negative: Mapping[int, int]


def decode(encoding: Any, *metrics: bytes) -> Any:
    """The request as the library reads it."""
    body = encoding.request(encoding.sender(SENDER, "uno", "1.0"), metrics)
    request = ExportMetricsServiceRequest()
    if isinstance(encoding, Json):
        data = json.loads(body)
        to_base64(data)  # OTLP/JSON has hexadecimal ids where protobuf's own JSON has base64
        json_format.ParseDict(data, request)
    else:
        assert request.ParseFromString(body) == len(body)
        assert not list(unknown(request))
    return request


def unknown(message: Any) -> Any:
    yield from UnknownFieldSet(message)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from unknown(inner)


def to_base64(data: Any) -> None:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if key in ("traceId", "spanId"):
            data[key] = base64.b64encode(bytes.fromhex(value)).decode()
        elif isinstance(value, (dict, list)):
            to_base64(value)


def attributes(point: Any, field: str = "attributes") -> list[tuple[str, str]]:
    found = []
    for pair in getattr(point, field):
        assert pair.value.WhichOneof("value") == "string_value"
        found.append((pair.key, pair.value.string_value))
    return found


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def one(request: Any) -> Any:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("uno", "1.0")
    sent = {pair.key: pair.value for pair in resource.resource.attributes}
    assert sent["service.name"].string_value == "shop"
    assert sent["process.pid"].int_value == 300
    assert sent["empty"].WhichOneof("value") == "string_value"
    (metric,) = scope.metrics
    return metric


encodings = pytest.mark.parametrize("encoding", [Protobuf(), Json()], ids=["protobuf", "json"])

# Text as it comes: quotes, control characters, emoji, lone surrogates (which UTF-8 cannot hold).
texts = st.text(st.characters(codec=None), max_size=30)
names = texts.filter(bool)
pairs = st.lists(st.tuples(names, texts), max_size=4)
# JSON has one NaN only; a number point with NaN is never sent.
floats = st.floats(allow_nan=False)
times = st.integers(1, (1 << 64) - 1)
counts = st.integers(0, (1 << 63) - 1)
samples = st.lists(
    st.builds(
        Sample,
        floats,
        times,
        pairs.map(tuple),
        st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
        st.one_of(st.just(b""), st.binary(min_size=8, max_size=8)),
    ),
    max_size=3,
)


def clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def cleaned(given_: Any) -> list[tuple[str, str]]:
    return [(clean(k), clean(v)) for k, v in given_]


def check_samples(point: Any, sent: list[Sample]) -> None:
    assert [
        (bits(e.as_double), e.time_unix_nano, attributes(e, "filtered_attributes"), e.trace_id, e.span_id)
        for e in point.exemplars
    ] == [(bits(s.value), s.time, cleaned(s.attributes), s.trace_id, s.span_id) for s in sent]
    assert all(e.WhichOneof("value") == "as_double" for e in point.exemplars)


@encodings
@settings(deadline=None)
@given(name=names, description=texts, unit=texts, labels=pairs, start=times, time=times, value=floats)
@pytest.mark.parametrize("form", ["gauge", "sum"])
def test_numbers(
    encoding: Any,
    form: Any,
    name: str,
    description: str,
    unit: str,
    labels: Any,
    start: int,
    time: int,
    value: float,
) -> None:
    head = encoding.number_head(encoding.attributes(labels), start)
    points = encoding.numbers([head, head], [value, -value], time)
    changing = encoding.change_head(encoding.attributes(labels))
    points += encoding.changes([changing], [start], [value], time)
    metric = one(
        decode(encoding, encoding.metric(encoding.header(name, description, unit), form, DELTA, points))
    )
    assert (metric.name, metric.description, metric.unit) == (clean(name), clean(description), clean(unit))
    assert metric.WhichOneof("data") == form
    data = getattr(metric, form)
    if form == "sum":
        assert data.is_monotonic
        assert data.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
    assert [bits(p.as_double) for p in data.data_points] == [bits(value), bits(-value), bits(value)]
    for point in data.data_points:
        assert point.WhichOneof("value") == "as_double"
        assert (point.start_time_unix_nano, point.time_unix_nano) == (start, time)
        assert attributes(point) == cleaned(labels)


@encodings
@settings(deadline=None)
@given(labels=pairs, start=st.one_of(st.just(0), times), time=times, value=floats, sent=samples)
def test_numbers_with_exemplars(
    encoding: Any, labels: Any, start: int, time: int, value: float, sent: list[Sample]
) -> None:
    point = encoding.number(encoding.attributes(labels), start, time, value, sent)
    metric = one(decode(encoding, encoding.metric(encoding.header("m", "", ""), "sum", CUMULATIVE, [point])))
    (read,) = metric.sum.data_points
    assert bits(read.as_double) == bits(value)
    assert (read.start_time_unix_nano, read.time_unix_nano) == (start, time)
    assert attributes(read) == cleaned(labels)
    check_samples(read, sent)


@encodings
@settings(deadline=None)
@given(
    labels=pairs,
    start=times,
    time=times,
    bounds=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20, unique=True).map(sorted),
    total=st.one_of(st.none(), floats),
    sent=samples,
    data=st.data(),
)
def test_histograms(
    encoding: Any, labels: Any, start: int, time: int, bounds: Any, total: Any, sent: Any, data: st.DataObject
) -> None:
    by_bucket = data.draw(st.lists(counts, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    count = min(sum(by_bucket), (1 << 64) - 1)
    head = encoding.histogram_head(labels, bounds)
    points = [
        encoding.histogram(head, start, time, count, total, by_bucket, sent),
        encoding.histogram(head, start, time, 0, total, by_bucket),
    ]
    if total is not None:
        prefix = encoding.histogram_prefix(head, start, len(by_bucket))
        points[1:] = encoding.histograms([prefix], [(0, total, tuple(by_bucket))], time)
    metric = one(
        decode(encoding, encoding.metric(encoding.header("m", "d", "s"), "histogram", CUMULATIVE, points))
    )
    assert metric.histogram.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    first, second = metric.histogram.data_points
    assert (first.count, second.count) == (count, 0)
    check_samples(first, sent)
    check_samples(second, [])
    for point in (first, second):
        assert (point.start_time_unix_nano, point.time_unix_nano) == (start, time)
        assert attributes(point) == cleaned(labels)
        assert list(map(bits, point.explicit_bounds)) == list(map(bits, bounds))
        assert list(point.bucket_counts) == by_bucket
        assert point.HasField("sum") == (total is not None)
        assert total is None or bits(point.sum) == bits(total)


sides = st.dictionaries(st.integers(-300, 300), st.integers(0, 1 << 40), max_size=8)


@encodings
@settings(deadline=None)
@given(
    labels=pairs,
    start=times,
    time=times,
    count=counts,
    total=st.one_of(st.none(), floats),
    native=st.builds(
        Native, st.integers(-4, 8), st.floats(0, 1), st.integers(0, 1 << 62), positive=sides, negative=sides
    ),
    sent=samples,
)
def test_exponential_histograms(
    encoding: Any, labels: Any, start: int, time: int, count: int, total: Any, native: Native, sent: Any
) -> None:
    made = encoding.exponential(labels, start, time, count, total, native, sent)
    metric = one(
        decode(encoding, encoding.metric(encoding.header("m", "", ""), "exponential", DELTA, [made]))
    )
    assert metric.exponential_histogram.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
    (point,) = metric.exponential_histogram.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (start, time)
    assert (point.count, point.scale, point.zero_count) == (count, native.schema, native.zero_count)
    assert bits(point.zero_threshold) == bits(native.zero_threshold)
    assert point.HasField("sum") == (total is not None)
    assert total is None or bits(point.sum) == bits(total)
    assert attributes(point) == cleaned(labels)
    check_samples(point, sent)
    for side, buckets in ((native.positive, point.positive), (native.negative, point.negative)):
        # OTLP: index i holds (base**i, base**(i+1)].
        read = {buckets.offset + at + 1: n for at, n in enumerate(buckets.bucket_counts) if n}
        assert read == {index: n for index, n in side.items() if n}


@settings(deadline=None)
@given(
    values=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=30),
    schema=st.integers(-4, 8),
    most=st.integers(2, 200),
)
def test_a_wide_histogram_is_sent_coarser_and_every_value_stays_in_its_bucket(
    values: list[float], schema: int, most: int
) -> None:
    positive: dict[int, int] = {}
    for value in values:
        index = math.ceil(math.log2(value) * 2.0**schema)
        positive[index] = positive.get(index, 0) + 1
    row = dense(Native(schema, 0.0, 0, positive, {}), most)
    assert len(row.positive) <= most
    assert sum(row.positive) == len(values)
    assert row.scale <= schema
    for index, count in positive.items():
        # The upper bound of the fine bucket lies in (base**i, base**(i+1)] of the coarse one.
        exponent = index * 2.0**-schema * 2.0**row.scale
        assume(abs(exponent) < 2**50)
        assert row.positive[math.ceil(exponent) - 1 - row.positive_offset] >= count
    if row.scale < schema:  # no coarser than it has to be
        finer = {
            (index + (1 << (schema - row.scale - 1)) - 1) >> (schema - row.scale - 1) for index in positive
        }
        assert max(finer) - min(finer) >= most


def test_json_follows_otlps_rules() -> None:
    encoding = Json()
    sample = Sample(0.5, 7, (), bytes(range(16)), bytes(range(8)))
    point = encoding.number(encoding.attributes([("a", "b")]), 5, 6, math.inf, [sample])
    metric = encoding.metric(encoding.header("m", "", "s"), "sum", DELTA, [point])
    body = json.loads(encoding.request(encoding.sender([("n", 1)], "uno", "2"), [metric]))
    assert body == {
        "resourceMetrics": [
            {
                "resource": {"attributes": [{"key": "n", "value": {"intValue": "1"}}]},
                "scopeMetrics": [
                    {
                        "scope": {"name": "uno", "version": "2"},
                        "metrics": [
                            {
                                "name": "m",
                                "unit": "s",
                                "sum": {
                                    "dataPoints": [
                                        {
                                            "attributes": [{"key": "a", "value": {"stringValue": "b"}}],
                                            "startTimeUnixNano": "5",
                                            "timeUnixNano": "6",
                                            "asDouble": "Infinity",
                                            "exemplars": [
                                                {
                                                    "timeUnixNano": "7",
                                                    "asDouble": 0.5,
                                                    "spanId": "0001020304050607",
                                                    "traceId": "000102030405060708090a0b0c0d0e0f",
                                                }
                                            ],
                                        }
                                    ],
                                    "aggregationTemporality": 1,
                                    "isMonotonic": True,
                                },
                            }
                        ],
                    }
                ],
            }
        ]
    }
