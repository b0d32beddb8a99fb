"""Which settings apply, which are refused, and does any secret come out of them?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from uno.core.monitoring.exporters.otlp.config import Config, configure
from uno.core.monitoring.exporters.otlp.http import MAX_RETRY_AFTER, rejected_points, retry_after

SECRET = "Kn4ry001x9Zq"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def test_defaults_are_the_specifications() -> None:
    found = configure()
    assert found.endpoint.shown == "http://localhost:4318/v1/metrics"
    assert (found.timeout, found.interval, found.export_timeout) == (10.0, 60.0, 30.0)
    assert (found.protocol, found.compression, found.temporality) == ("http/protobuf", "none", "cumulative")
    assert found.histograms == "explicit_bucket_histogram"
    assert found.resource == {"service.name": "unknown_service:python"}
    assert found.headers == {}
    assert not found.disabled
    assert found.tls is None


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"ENDPOINT": "http://c:4318"}, "http://c:4318/v1/metrics"),
        ({"ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/metrics"),
        ({"ENDPOINT": "https://c/otlp/"}, "https://c:443/otlp/v1/metrics"),
        ({"METRICS_ENDPOINT": "http://m/x"}, "http://m:80/x"),
        ({"METRICS_ENDPOINT": "http://m"}, "http://m:80/"),
        ({"METRICS_ENDPOINT": "http://m/x", "ENDPOINT": "http://c"}, "http://m:80/x"),
        ({"METRICS_ENDPOINT": " ", "ENDPOINT": "http://[::1]:1"}, "http://[::1]:1/v1/metrics"),
    ],
)
def test_endpoints_of_the_environment(
    variables: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert configure().endpoint.shown == shown
    assert configure("http://a:1").endpoint.shown == "http://a:1/v1/metrics"
    assert configure("http://a:1/here").endpoint.shown == "http://a:1/here"


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500", "timeout", 1.5),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2500", "timeout", 2.5),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000", "interval", 5.0),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "5000", "export_timeout", 5.0),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP", "compression", "gzip"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none", "compression", "none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "protocol", "http/json"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta", "temporality", "delta"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "lowmemory", "temporality", "lowmemory"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram", "histograms", "base2_exponential_bucket_histogram",
        ),
        ("OTEL_SDK_DISABLED", "TRUE", "disabled", True),
        ("OTEL_SERVICE_NAME", "shop", "resource", {"service.name": "shop"}),
        (
            "OTEL_RESOURCE_ATTRIBUTES", "a=b%2Cc, service.name=x", "resource", {"service.name": "x", "a": "b,c"},
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b,x=y=z", "headers", {"api-key": "a b", "x": "y=z"}),
        # Bad values: a warning, and the default.
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "timeout", None),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "timeout", None),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1e3", "interval", None),
        ("OTEL_METRIC_EXPORT_INTERVAL", "9" * 5000, "interval", None),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "compression", None),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "protocol", None),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "low", "temporality", None),
        ("OTEL_SDK_DISABLED", "1", "disabled", None),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "resource", None),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff", "resource", None),
        ("OTEL_EXPORTER_OTLP_HEADERS", "token", "headers", None),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0aEvil: 1", "headers", None),
        ("OTEL_EXPORTER_OTLP_HEADERS", "content-length=5", "headers", None),
    ],
)  # fmt: skip
def test_variables(
    variable: str, value: str, attribute: str, expected: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    default = getattr(configure(), attribute)
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.WARNING, "uno"):
        assert getattr(configure(), attribute) == (default if expected is None else expected)
    assert len(caplog.records) == (expected is None)
    if expected is None and len(value) > 3:
        assert value not in caplog.text


def test_an_argument_wins_and_a_bad_one_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1500")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=env,b=env")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "env")
    found = configure(
        timeout=3, headers={"A": "arg"}, resource_attributes={"service.name": "arg"}, service="monitor"
    )
    assert found.timeout == 3
    assert found.headers == {"a": "arg", "b": "env"}
    assert found.resource["service.name"] == "arg"
    bad: list[dict[str, Any]] = [
        {"endpoint": "collector:4318"}, {"endpoint": "ftp://x"}, {"endpoint": "http://"}, {"endpoint": "http://a b"},
        {"endpoint": "http://a:99999999"}, {"endpoint": f"http://u:{SECRET}@[bad/"}, {"protocol": "grpc"},
        {"endpoint": f"http://u:{SECRET}@h\r\nX: 1/"}, {"endpoint": f"http://h/\x00{SECRET}"},
        {"compression": "br"}, {"temporality": "both"}, {"histograms": "x"}, {"timeout": 0}, {"timeout": float("nan")},
        {"interval": -1}, {"headers": {"a": f"{SECRET}\r\nb: c"}}, {"headers": {f"{SECRET}:": "x"}},
        {"headers": {"Host": "x"}}, {"headers": {"a": f"\u20ac{SECRET}"}}, {"headers": {"a": 5}},
        {"endpoint": "https://x", "certificate": tmp_path / "none.pem"},
        {"endpoint": "https://x", "client_certificate": tmp_path / "none.pem"},
        {"endpoint": "https://x", "client_key": tmp_path / "none.pem"},
    ]  # fmt: skip
    for arguments in bad:
        with pytest.raises(ValueError, match=r".+") as caught:
            configure(**arguments)
        assert SECRET not in str(caught.value), arguments
        assert caught.value.__cause__ is None
    wrong: list[dict[str, Any]] = [
        {"endpoint": 5},
        {"timeout": "5"},
        {"headers": "a=b"},
        {"resource_attributes": {"a": 1}},
    ]
    for arguments in wrong:
        with pytest.raises(TypeError):
            configure(**arguments)


def test_no_secret_in_any_text_of_it(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-token={SECRET}")
    found = configure(f"https://user:{SECRET}@host/path?key={SECRET}", headers={"y": SECRET})
    # user and password become a header, the query is sent
    assert found.headers["authorization"].startswith("Basic ")
    assert found.endpoint.target == f"/path?key={SECRET}"
    texts = [
        repr(found),
        str(found),
        repr(found.endpoint),
        str(found.endpoint),
        repr(found.headers),
        str(found.headers),
    ]
    texts += [f"{found.headers}", caplog.text]
    assert not [text for text in texts if SECRET in text]
    assert "host" in repr(found)
    own = configure(f"https://user:{SECRET}@host", headers={"Authorization": "Bearer t"})
    assert own.headers["authorization"] == "Bearer t"
    assert isinstance(own, Config)


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after(" 0 ") == 0
    assert retry_after("99999999999999") == MAX_RETRY_AFTER
    assert retry_after("Wed, 21 Oct 2015 07:28:30 GMT", now=1445412480) == 30
    assert retry_after("Wed, 21 Oct 2015 07:28:30 GMT", now=1445412600) == 0
    assert retry_after("Wed, 21 Oct 2115 07:28:30 GMT") == MAX_RETRY_AFTER
    for text in ("", "soon", "-5", "1.5", "\u0667", "Wed, 99 Oct 2015 07:28:30 GMT"):
        assert retry_after(text) is None, text


def test_partial_success_is_read_and_rubbish_is_not() -> None:
    from hypothesis import given
    from hypothesis import strategies as st
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    answer = ExportMetricsServiceResponse()
    protobuf, plain = "application/x-protobuf", "application/json"
    assert rejected_points(answer.SerializeToString(), protobuf) == 0
    answer.partial_success.error_message = "no"
    assert rejected_points(answer.SerializeToString(), protobuf) == 0
    answer.partial_success.rejected_data_points = 70_000
    assert rejected_points(answer.SerializeToString(), protobuf) == 70_000
    assert rejected_points(b'{"partialSuccess":{"rejectedDataPoints":"12","errorMessage":"x"}}', plain) == 12
    assert rejected_points(b'{"partialSuccess":{"rejectedDataPoints":12}}', plain) == 12
    for text in (
        b"",
        b"{}",
        b"[]",
        b"{",
        b'{"partialSuccess":null}',
        b'{"partialSuccess":{"rejectedDataPoints":-3}}',
    ):
        assert rejected_points(text, plain) == 0

    @given(st.binary(max_size=60))
    def rubbish(body: bytes) -> None:
        for media_type in (protobuf, plain):
            assert rejected_points(body, media_type) >= 0

    rubbish()


@pytest.mark.parametrize("url", ["http://a\r\nb", "http://a\tb/v1/metrics", "http://a/\x00"])
def test_an_address_with_a_line_break_leads_nowhere(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint="):
        configure(url)
