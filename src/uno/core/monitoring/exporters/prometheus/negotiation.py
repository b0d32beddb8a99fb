"""Which format does the reader want? Nothing of what it sent is echoed: a header chooses among our own constants.

Source: prometheus.io, "Scrape protocol content negotiation".
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl

from uno.core.records import NamedTuple

Syntax = Literal["text", "openmetrics", "protobuf"]
Escaping = Literal["underscores", "dots", "values", "allow-utf-8"]

_ESCAPINGS: dict[str, Escaping] = {
    "underscores": "underscores",
    "dots": "dots",
    "values": "values",
    "allow-utf-8": "allow-utf-8",
}
_PROTO = "io.prometheus.client.MetricFamily"
_MAX_HEADER = 4_096
_MAX_FILTERS = 100
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


class Format(NamedTuple):
    """A format in which a page can be written."""

    syntax: Syntax = "text"
    version: str = "0.0.4"
    escaping: Escaping = "underscores"

    @property
    def content_type(self) -> str:
        """The Content-Type of the answer."""
        if self.syntax == "protobuf":
            return f"application/vnd.google.protobuf; proto={_PROTO}; encoding=delimited; escaping={self.escaping}"
        if self.syntax == "openmetrics":
            plain = f"application/openmetrics-text; version={self.version}; charset=utf-8"
        else:
            plain = f"text/plain; version={self.version}; charset=utf-8"
        return plain if self.version in _WITHOUT_ESCAPING else f"{plain}; escaping={self.escaping}"


#: Older than UTF-8 names: always with underscores.
_WITHOUT_ESCAPING = ("0.0.4", "0.0.1")
DEFAULT = Format()
_VERSIONS: dict[str, dict[str, Format]] = {
    "text/plain": {"": DEFAULT, "0.0.4": DEFAULT, "1.0.0": Format("text", "1.0.0")},
    "application/openmetrics-text": {
        # Without a version, the oldest of the standard.
        "": Format("openmetrics", "1.0.0"),
        "0.0.1": Format("openmetrics", "0.0.1"),
        "1.0.0": Format("openmetrics", "1.0.0"),
        "2.0.0": Format("openmetrics", "2.0.0"),
    },
    "*/*": {"": DEFAULT},
    "text/*": {"": DEFAULT},
    "application/*": {"": Format("openmetrics", "1.0.0")},
}


def negotiate(accept: str) -> Format:
    """The format with the highest ``q`` that can be written, the first of equals; text 0.0.4 without any."""
    best, chosen = 0.0, DEFAULT
    for item in accept[:_MAX_HEADER].split(","):
        media, *rest = item.split(";")
        parameters: dict[str, str] = {}
        for part in rest:
            key, _, value = part.partition("=")
            parameters.setdefault(key.strip().lower(), value.strip().strip('"'))
        quality = _quality(parameters.get("q"))
        if quality > best:
            found = _offered(media.strip().lower(), parameters)
            if found is not None:
                best, chosen = quality, found
    return chosen


def _offered(media: str, parameters: dict[str, str]) -> Format | None:
    escaping = _ESCAPINGS.get(parameters.get("escaping", "underscores").lower())
    if media == "application/vnd.google.protobuf":
        if parameters.get("proto") != _PROTO or parameters.get("encoding") != "delimited":
            return None
        found: Format | None = Format("protobuf", "0.0.4")
    else:
        found = _VERSIONS.get(media, {}).get(parameters.get("version", ""))
        if found is None or found.version in _WITHOUT_ESCAPING:
            return found
    # An escaping that nobody has heard of is an offer that cannot be met.
    return found._replace(escaping=escaping) if found is not None and escaping is not None else None


def _quality(text: str | None) -> float:
    if text is None:
        return 1.0
    return float(text) if _QUALITY.match(text) else 0.0


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether the answer may be compressed by gzip (RFC 9110, 12.5.3)."""
    found: dict[str, float] = {}
    for offer in accept_encoding[:_MAX_HEADER].lower().split(","):
        coding, *rest = offer.replace(" ", "").split(";")
        quality = next((part[2:] for part in rest if part.startswith("q=")), None)
        found.setdefault(coding, _quality(quality))
    return found.get("gzip", found.get("x-gzip", found.get("*", 0.0))) > 0


class Filter(NamedTuple):
    """What of the page is wanted: metrics by name, resources by id; all where nothing is said."""

    names: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, query: str) -> Filter:
        """From ``name[]=a&name[]=b&resource=c``; other parameters are none of ours. ValueError for too many."""
        if not query:
            return _ALL
        names, resources = [], []
        for key, value in parse_qsl(
            query, keep_blank_values=True, errors="replace", max_num_fields=_MAX_FILTERS
        ):
            if key == "name[]":
                names.append(value)
            elif key == "resource":
                resources.append(value)
        return cls(frozenset(names), frozenset(resources))


_ALL = Filter()
