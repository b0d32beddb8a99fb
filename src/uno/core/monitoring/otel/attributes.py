"""What becomes of OpenTelemetry's attributes? Labels: names and texts of bounded length.

Values that are not text are written as the specification of OpenTelemetry's AnyValue says (JSON), so that equal
numbers are equal texts: 200 and 200.0 are one series, 1 and True are two.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from uno.core.monitoring.metrics import MAX_LABEL_LENGTH, clean_label

RESERVED = frozenset(("resource", "le", "quantile"))
MAX_ITEMS = 128
_DEEP = 4


def cacheable(attributes: Mapping[str, Any]) -> bool:
    """Whether these may be remembered: they are small, and equal ones are the same for certain (1 is equal to True, and
    hashes alike)."""
    return len(attributes) <= MAX_ITEMS and all(
        type(name) is str
        and len(name) <= MAX_LABEL_LENGTH
        and (
            (type(value) is str and len(value) <= MAX_LABEL_LENGTH)
            or (type(value) is int and value not in (0, 1) and abs(value) < 2**64)
        )
        for name, value in attributes.items()
    )


def label_name(name: str) -> str:
    """An attribute's name as a label's, of bounded length; what uno or Prometheus set themselves gets a prefix."""
    name = str.__str__(name)
    if name in RESERVED or name.startswith("__"):
        name = f"otel.{name}"
    return name[:MAX_LABEL_LENGTH]


def text_of(value: object) -> str | None:
    """A value as text of bounded length; None for what is no attribute value: its text might hold a password."""
    try:
        plain = _plain(value, 0)
    except (TypeError, ValueError):
        return None
    return clean_label(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if isfinite(value):
            return int(value) if value.is_integer() and abs(value) < 1e15 else float(value)
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value[:MAX_LABEL_LENGTH]).decode()
    if depth < _DEEP:
        if isinstance(value, Mapping):
            pairs = list(value.items())[:MAX_ITEMS]
            return {str.__str__(key): _plain(item, depth + 1) for key, item in pairs}
        if isinstance(value, Sequence):
            return [None if item is None else _plain(item, depth + 1) for item in value[:MAX_ITEMS]]
    raise TypeError(type(value).__name__)
