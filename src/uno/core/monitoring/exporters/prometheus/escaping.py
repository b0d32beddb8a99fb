"""How are names, label values and numbers written? All text of a page comes through here.

Source: prometheus.io, "UTF-8 metric and label name escaping schemes"; prometheus/common, model/metric.go, where that
page is silent: with ``values``, a name that needs no escaping stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import inf

from uno.core.monitoring.exporters.prometheus.negotiation import Escaping
from uno.core.monitoring.metrics import Spec
from uno.core.monitoring.names import wire_name

_LEGACY_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*\Z")
_LEGACY_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_:]")
_NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9_]")
_SPECIAL = re.compile(r'[\\\n"]')
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 does not have."""
    return _SURROGATES.sub("?", text)


@lru_cache(maxsize=4096)
def prometheus_name(spec: Spec, dotted: bool) -> str:
    """The metric's name before escaping: OpenTelemetry's translation of a name with dots, others verbatim.

    ``dotted`` keeps the dots, for readers that know UTF-8 names.
    """
    if "." not in spec.name:
        return spec.name or "_"
    wired = wire_name(spec)
    if not dotted:
        return wired
    base = _NOT_IN_NAME.sub("_", spec.name)
    return spec.name + wired[wired.index(base) + len(base) :]


def prometheus_label(label: str, dotted: bool) -> str:
    """The label's name before escaping."""
    return label.replace(".", "_") if not dotted else label


@lru_cache(maxsize=4096)
def escape_name(name: str, scheme: Escaping) -> str:
    """A metric's name in the alphabet that the scheme allows."""
    return _escape(clean(name), scheme, _LEGACY_NAME, _NOT_IN_NAME)


@lru_cache(maxsize=4096)
def escape_label_name(name: str, scheme: Escaping) -> str:
    """A label's name in the alphabet that the scheme allows; unlike a metric's it has no colon."""
    escaped = _escape(clean(name), scheme, _LEGACY_LABEL, _NOT_IN_LABEL)
    if scheme == "underscores" and escaped.startswith("__"):  # reserved by Prometheus for itself
        escaped = "_" + escaped.lstrip("_")
    return escaped


def _escape(name: str, scheme: Escaping, legacy: re.Pattern[str], outside: re.Pattern[str]) -> str:
    name = name or "_"
    if scheme == "allow-utf-8" or (scheme != "dots" and legacy.match(name)):
        return name
    if scheme == "values":
        parts = [
            "__" if c == "_" else f"_{ord(c):x}_" if outside.match(c) or (not i and c.isdigit()) else c
            for i, c in enumerate(name)
        ]
        return "U__" + "".join(parts)
    if scheme == "dots":
        name = name.replace("_", "__").replace(".", "_dot_")
    name = outside.sub("_", name)
    return "_" + name if name[0].isdigit() else name


def is_legacy(name: str) -> bool:
    """Whether a metric's name needs no quotes."""
    return _LEGACY_NAME.match(name) is not None


def label_key(name: str) -> str:
    """An escaped label name as it stands before the equals sign."""
    return name if _LEGACY_LABEL.match(name) else f'"{quote(name)}"'


def quote(text: str) -> str:
    """Clean text between quotes."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def is_plain(text: str) -> bool:
    """Whether ``text`` may stand between quotes as it is."""
    return text.isascii() and _SPECIAL.search(text) is None


def label_value(text: str) -> str:
    """Any text between quotes."""
    return quote(text if text.isascii() else clean(text))


def number(value: float) -> str:
    """A sample's number."""
    return "+Inf" if value == inf else "-Inf" if value == -inf else "NaN" if value != value else repr(value)


def bound(value: float) -> str:
    """A number inside a label (``le``, ``quantile``): OpenMetrics' canonical form, which is Go's ``%g``."""
    text = number(float(value))
    digits = text.removeprefix("-")
    whole, dot, _ = digits.partition(".")
    if "e" in text or not dot or len(whole) <= 6:
        return text
    mantissa = (whole[0] + "." + whole[1:] + digits[len(whole) + 1 :]).rstrip("0").rstrip(".")
    return f"{'-' if value < 0 else ''}{mantissa}e+{len(whole) - 1:02d}"
