"""How do others read our pages? Each reader returns the samples as {(name, labels): value}."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

DATA = Path(__file__).parent / "data"
TEXT = "text/plain;version=0.0.4"
TEXT_1 = "text/plain;version=1.0.0;escaping=allow-utf-8"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
OPENMETRICS_2 = "application/openmetrics-text;version=2.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def add(samples: Samples, name: str, labels: dict[str, str], value: float) -> None:
    key = (name, tuple(sorted(labels.items())))
    assert key not in samples, f"twice: {key}"
    samples[key] = value


def read_text(page: bytes) -> Samples:
    """prometheus_client's parser of the text format."""
    found: Samples = {}
    for family in parse_text(page.decode()):
        for sample in family.samples:
            add(found, sample.name, sample.labels, sample.value)
    return found


def read_openmetrics(page: bytes, *, created: bool = False) -> Samples:
    """prometheus_client's parser of OpenMetrics; ``_created`` only where it is wanted."""
    found: Samples = {}
    for family in parse_openmetrics(page.decode()):
        for sample in family.samples:
            if created or sample.name != f"{family.name}_created":
                add(found, sample.name, sample.labels, sample.value)
    return found


@cache
def grammar(name: str) -> Any:
    """The rule ``exposition`` of a grammar in tests/data."""
    from abnf import Rule

    made: Any = type(f"Grammar{len(name)}", (Rule,), {})
    text = (DATA / name).read_text().replace("\r\n", "\n").replace("\n", "\r\n")
    made.load_grammar(text, strict=True)
    return made("exposition")


def check_grammar(page: bytes, name: str = "openmetrics-1.0.abnf") -> None:
    """Each line of ``page`` follows the grammar: abnf's parser takes minutes for a page as a whole."""
    rule = grammar(name)
    *lines, end, last = page.decode().split("\n")
    assert (end, last) == ("# EOF", "")
    for line in lines:
        rule.parse_all(f"{line}\n# EOF\n")


# -- protobuf ------------------------------------------------------------------------------------------

_MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    # The fields of metrics.proto of prometheus/client_model: name, number, type, repeated.
    "LabelPair": [("name", 1, "string", False), ("value", 2, "string", False)],
    "Exemplar": [
        ("label", 1, "LabelPair", True), ("value", 2, "double", False), ("timestamp", 3, "Timestamp", False),
    ],
    "Gauge": [("value", 1, "double", False)],
    "Counter": [
        ("value", 1, "double", False), ("exemplar", 2, "Exemplar", False),
        ("created_timestamp", 3, "Timestamp", False),
    ],
    "Quantile": [("quantile", 1, "double", False), ("value", 2, "double", False)],
    "Summary": [
        ("sample_count", 1, "uint64", False), ("sample_sum", 2, "double", False), ("quantile", 3, "Quantile", True),
        ("created_timestamp", 4, "Timestamp", False),
    ],
    "Untyped": [("value", 1, "double", False)],
    "Bucket": [
        ("cumulative_count", 1, "uint64", False), ("upper_bound", 2, "double", False),
        ("exemplar", 3, "Exemplar", False),
    ],
    "BucketSpan": [("offset", 1, "sint32", False), ("length", 2, "uint32", False)],
    "Histogram": [
        ("sample_count", 1, "uint64", False), ("sample_sum", 2, "double", False), ("bucket", 3, "Bucket", True),
        ("schema", 5, "sint32", False), ("zero_threshold", 6, "double", False), ("zero_count", 7, "uint64", False),
        ("negative_span", 9, "BucketSpan", True), ("negative_delta", 10, "sint64", True),
        ("positive_span", 12, "BucketSpan", True), ("positive_delta", 13, "sint64", True),
        ("created_timestamp", 15, "Timestamp", False), ("exemplars", 16, "Exemplar", True),
    ],
    "Metric": [
        ("label", 1, "LabelPair", True), ("gauge", 2, "Gauge", False), ("counter", 3, "Counter", False),
        ("summary", 4, "Summary", False), ("untyped", 5, "Untyped", False), ("histogram", 7, "Histogram", False),
        ("timestamp_ms", 6, "int64", False),
    ],
    "MetricFamily": [
        ("name", 1, "string", False), ("help", 2, "string", False), ("type", 3, "int32", False),
        ("metric", 4, "Metric", True), ("unit", 5, "string", False),
    ],
}  # fmt: skip


@cache
def _family_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="uno_test_metrics.proto",
        package="t",
        syntax="proto2",
        dependency=["google/protobuf/timestamp.proto"],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            added = message.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
            )
            if kind == "Timestamp" or kind in _MESSAGES:
                added.type = field.TYPE_MESSAGE
                added.type_name = ".google.protobuf.Timestamp" if kind == "Timestamp" else f".t.{kind}"
            else:
                added.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.MetricFamily"))


def decode(page: bytes) -> list[Any]:
    """The MetricFamily messages of a page, decoded by Google's library; nothing may be unknown in them."""
    found = []
    at = 0
    while at < len(page):
        length = shift = 0
        while True:
            byte = page[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        family = _family_class()()
        assert family.ParseFromString(page[at : at + length]) == length
        at += length
        assert family.ByteSize() <= length
        found.append(family)
    assert at == len(page)
    return found


def read_protobuf(page: bytes) -> Samples:
    """The samples as the text format would have them."""
    from uno.core.monitoring.exporters.prometheus.escaping import bound

    found: Samples = {}
    for family in decode(page):
        for metric in family.metric:
            labels = {pair.name: pair.value for pair in metric.label}
            for kind in ("gauge", "counter", "untyped"):
                if metric.HasField(kind):
                    add(found, family.name, labels, getattr(metric, kind).value)
            if metric.HasField("histogram"):
                h = metric.histogram
                for bucket in h.bucket:
                    le = {"le": bound(bucket.upper_bound)}
                    add(found, f"{family.name}_bucket", labels | le, bucket.cumulative_count)
                add(found, f"{family.name}_count", labels, h.sample_count)
                add(found, f"{family.name}_sum", labels, h.sample_sum)
            if metric.HasField("summary"):
                add(found, f"{family.name}_count", labels, metric.summary.sample_count)
                add(found, f"{family.name}_sum", labels, metric.summary.sample_sum)
    return found
