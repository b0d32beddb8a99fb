"""Is the reader given what it asked for, and never what it wrote?"""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.core.monitoring.exporters.prometheus.escaping import bound, escape_label_name, escape_name
from uno.core.monitoring.exporters.prometheus.negotiation import Filter, Format, accepts_gzip, negotiate

PROTO = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
#: What Prometheus 3.5 sends, with native histograms and without; 2.42 sends the last one.
PROMETHEUS_3_NATIVE = (
    f"{PROTO};q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_3 = PROMETHEUS_3_NATIVE.partition(",")[2]
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
TEXT = Format()
OM = Format("openmetrics", "1.0.0")


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        (PROMETHEUS_2, OM),
        (PROMETHEUS_3, OM._replace(escaping="allow-utf-8")),
        (PROMETHEUS_3_NATIVE, Format("protobuf", "0.0.4")),
        ("text/plain", TEXT),
        ("text/plain;version=1.0.0", Format("text", "1.0.0")),
        ("TEXT/PLAIN ; Version = 1.0.0 ; Escaping = VALUES", Format("text", "1.0.0", "values")),
        ("text/plain;version=0.0.4;escaping=allow-utf-8", TEXT),
        ("application/openmetrics-text", OM),
        ('application/openmetrics-text;version="1.0.0"', OM),
        ("application/openmetrics-text;version=0.0.1;escaping=dots", Format("openmetrics", "0.0.1")),
        ("application/openmetrics-text;version=2.0.0", Format("openmetrics", "2.0.0")),
        ("application/openmetrics-text;version=3.0.0", TEXT),
        ("application/openmetrics-text;version=1.0.0;escaping=evil", TEXT),
        ("application/openmetrics-text;version=1.0.0;escaping=dots", OM._replace(escaping="dots")),
        (f"{PROTO};escaping=allow-utf-8", Format("protobuf", "0.0.4", "allow-utf-8")),
        ("application/vnd.google.protobuf", TEXT),
        (PROTO.replace("delimited", "text"), TEXT),
        (PROTO.replace("MetricFamily", "Metric"), TEXT),
        # the highest q, the first of equals, none with q=0
        ("text/plain;version=1.0.0;q=0.5, application/openmetrics-text;q=0.9", OM),
        ("text/plain;version=1.0.0;q=0.5, application/openmetrics-text;q=0.5", Format("text", "1.0.0")),
        ("application/openmetrics-text;q=0, text/plain;version=1.0.0;q=0.001", Format("text", "1.0.0")),
        ("application/openmetrics-text;q=1e9, text/plain;version=1.0.0;q=0.1", Format("text", "1.0.0")),
        ("application/openmetrics-text;q=nan", TEXT),
        (", ,;;=,;q=1,/", TEXT),
    ],
)
def test_the_best_that_can_be_written(accept: str, format: Format) -> None:
    assert negotiate(accept) == format


@given(st.text() | st.lists(st.sampled_from([PROTO, "text/plain", ";", ",", "q=", "1", "\r\n", "version=", "0.0.4",
       "application/openmetrics-text", "escaping=", "dots", "x-evil"])).map("".join))  # fmt: skip
def test_nothing_is_echoed(accept: str) -> None:
    content_type = negotiate(accept).content_type
    assert re.fullmatch(
        r"text/plain; version=(0\.0\.4; charset=utf-8"
        r"|1\.0\.0; charset=utf-8; escaping=(underscores|dots|values|allow-utf-8))"
        r"|application/openmetrics-text; version=(0\.0\.1; charset=utf-8"
        r"|[12]\.0\.0; charset=utf-8; escaping=(underscores|dots|values|allow-utf-8))"
        r"|application/vnd\.google\.protobuf; proto=io\.prometheus\.client\.MetricFamily; encoding=delimited; "
        r"escaping=(underscores|dots|values|allow-utf-8)",
        content_type,
    )


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True), ("br, GZip", True), ("gzip;q=0, identity", False), ("gzip; q=0.5", True), ("*", True),
        ("*;q=0", False), ("*;q=0, gzip", True), ("gzip;q=0, *", False), ("", False), ("identity", False),
        ("x-gzip", True), ("gzip;q=x", False),
    ],
)  # fmt: skip
def test_compression_is_asked_for(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


def test_filters() -> None:
    assert Filter.parse("name[]=a&name%5B%5D=b%20c&resource=db&x=1") == (
        frozenset(("a", "b c")),
        frozenset(("db",)),
    )
    assert Filter.parse("") == Filter.parse("page=2") == (frozenset(), frozenset())
    with pytest.raises(ValueError, match="fields"):
        Filter.parse("&".join(["name[]=a"] * 200))


@pytest.mark.parametrize(
    ("name", "underscores", "dots", "values"),
    [
        # the examples of the documentation first
        ("metric.name/with/slashes", "metric_name_with_slashes", "metric_dot_name_with_slashes",
         "U__metric_2e_name_2f_with_2f_slashes"),
        ("metric.name.with.dots", "metric_name_with_dots", "metric_dot_name_dot_with_dot_dots",
         "U__metric_2e_name_2e_with_2e_dots"),
        ("plain_name:x", "plain_name:x", "plain__name:x", "plain_name:x"),
        ("a_b.c", "a_b_c", "a__b_dot_c", "U__a__b_2e_c"),
        ("5xx", "_5xx", "_5xx", "U___35_xx"),
        ("größe", "gr__e", "gr__e", "U__gr_f6__df_e"),
        ("😀", "_", "_", "U___1f600_"),
        ("", "_", "__", "_"),
    ],
)  # fmt: skip
def test_names_are_escaped(name: str, underscores: str, dots: str, values: str) -> None:
    assert escape_name(name, "underscores") == underscores
    assert escape_name(name, "dots") == dots
    assert escape_name(name, "values") == values
    assert escape_name(name, "allow-utf-8") == (name or "_")


def unescape(name: str) -> str:
    """Back from ``values``, as Prometheus does it."""
    if not name.startswith("U__"):
        return name
    return re.sub(r"__|_([0-9a-f]+)_", lambda m: chr(int(m[1], 16)) if m[1] else "_", name[3:])


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_name_fits_the_alphabet_and_values_can_be_undone(name: str) -> None:
    for scheme in ("underscores", "dots", "values"):
        assert re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", escape_name(name, scheme))
        assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", escape_label_name(name, scheme))
    if not name.startswith("U__"):
        assert unescape(escape_name(name, "values")) == name
        assert unescape(escape_label_name(name, "values")) == name


@pytest.mark.parametrize(
    "text",
    ["0.0", "0.001", "0.002", "0.01", "0.1", "0.9", "0.95", "0.99", "0.999", "1.0", "1.7", "10.0", "1e-10", "1e-09",
     "1e-05", "0.0001", "100000.0", "1e+06", "1e+10", "1e+23", "1.1e+23", "1.234567e+06", "1.2345678912e+10", "-1e+06",
     "+Inf", "-Inf", "1e+15", "1e+16", "123456.5"],
)  # fmt: skip
def test_bounds_are_canonical(text: str) -> None:
    assert bound(float(text)) == text


@given(st.floats(allow_nan=False))
def test_bounds_keep_their_value(value: float) -> None:
    assert float(bound(value)) == value
    assert math.copysign(1, float(bound(value))) == math.copysign(1, value)
