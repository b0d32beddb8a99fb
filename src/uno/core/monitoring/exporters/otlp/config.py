"""What was asked for: arguments first, then the ``OTEL_*`` variables, then the specification's defaults.

A bad argument raises; a bad variable is told in the log, without its value (it may hold a password), and its
default is taken. Sources: OpenTelemetry specification, "OTLP Exporter Configuration", "SDK Environment Variables".
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("uno.exporters.otlp")

Protocol = Literal["http/protobuf", "http/json"]
Compression = Literal["none", "gzip"]
Temporality = Literal["cumulative", "delta", "lowmemory"]
Histograms = Literal["explicit_bucket_histogram", "base2_exponential_bucket_histogram"]

PROTOCOLS = ("http/protobuf", "http/json")
COMPRESSIONS = ("none", "gzip")
TEMPORALITIES = ("cumulative", "delta", "lowmemory")
HISTOGRAMS = ("explicit_bucket_histogram", "base2_exponential_bucket_histogram")
LONGEST = 3_600.0
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_OURS = frozenset(
    ("content-type", "content-encoding", "content-length", "transfer-encoding", "connection", "host")
)

T = TypeVar("T")


class Headers(dict[str, str]):
    """Headers of a request. They hold tokens: no text of this object shows a value."""

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"

    __str__ = __repr__


class Endpoint:
    """Where to send. ``shown`` is what may be printed: without user, password and query."""

    __slots__ = ("host", "port", "shown", "target", "tls", "user")

    def __init__(self, url: str, path: str = "") -> None:
        """``path`` is appended to the URL's own. ValueError, which does not hold the URL, for a bad one."""
        try:
            parts = urlsplit(url.strip())
            port, host = parts.port, parts.hostname
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("begins with http:// or https:// and names a host, as in http://localhost:4318")
        if not re.fullmatch(r"[\x21-\x7e]*", parts.path + parts.query) or not re.fullmatch(
            r"[^\s\x00-\x20]+", host
        ):
            raise ValueError("has characters that a URL cannot have")
        self.tls = parts.scheme == "https"
        self.host, self.port = host, port or (443 if self.tls else 80)
        where = (parts.path.rstrip("/") + path if path else parts.path) or "/"
        self.target = where + (f"?{parts.query}" if parts.query else "")
        self.user = (
            None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        )
        name = f"[{host}]" if ":" in host else host
        self.shown = f"{parts.scheme}://{name}:{self.port}{where}"

    def __repr__(self) -> str:
        return f"Endpoint({self.shown!r})"


class Config:
    """All that the exporter needs to know. Times in seconds."""

    __slots__ = (
        "compression", "disabled", "endpoint", "export_timeout", "headers", "histograms", "interval", "protocol",
        "resource", "temporality", "timeout", "tls",
    )  # fmt: skip

    endpoint: Endpoint
    headers: Headers
    protocol: Protocol
    compression: Compression
    temporality: Temporality
    histograms: Histograms
    timeout: float
    interval: float
    export_timeout: float
    resource: dict[str, str]
    tls: ssl.SSLContext | None
    disabled: bool

    def __repr__(self) -> str:
        return f"<{self.protocol} to {self.endpoint.shown} every {self.interval:g} s>"


def configure(
    endpoint: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    protocol: str | None = None,
    compression: str | None = None,
    timeout: float | None = None,
    interval: float | None = None,
    temporality: str | None = None,
    histograms: str | None = None,
    certificate: str | os.PathLike[str] | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    resource_attributes: Mapping[str, str] | None = None,
    service: str = "",
) -> Config:
    """Everything checked. Raises TypeError and ValueError for bad arguments; no message holds a header or a URL."""
    made = Config()
    made.disabled = _flag("OTEL_SDK_DISABLED")
    made.endpoint = _endpoint(endpoint)
    made.headers = _headers(headers)
    if made.endpoint.user is not None and "authorization" not in made.headers:
        from base64 import b64encode

        made.headers["authorization"] = "Basic " + b64encode(made.endpoint.user.encode()).decode()
    made.endpoint.user = None
    made.protocol = _choice("protocol", protocol, _variables("PROTOCOL"), PROTOCOLS)  # type: ignore[assignment]
    made.compression = _choice("compression", compression, _variables("COMPRESSION"), COMPRESSIONS)  # type: ignore[assignment]
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    made.temporality = _choice("temporality", temporality, (name,), TEMPORALITIES)  # type: ignore[assignment]
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    made.histograms = _choice("histograms", histograms, (name,), HISTOGRAMS)  # type: ignore[assignment]
    made.timeout = _seconds("timeout", timeout, _variables("TIMEOUT"), 10.0)
    made.interval = _seconds("interval", interval, ("OTEL_METRIC_EXPORT_INTERVAL",), 60.0)
    made.export_timeout = _seconds("timeout", None, ("OTEL_METRIC_EXPORT_TIMEOUT",), 30.0)
    made.resource = _resource(resource_attributes, service)
    made.tls = None
    if made.endpoint.tls:
        made.tls = _tls(certificate, client_certificate, client_key)
    return made


def _variables(name: str) -> tuple[str, str]:
    """The variables of an option: the one for metrics wins."""
    return f"OTEL_EXPORTER_OTLP_METRICS_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def _from_environment(names: tuple[str, ...], read: Callable[[str], T], default: T) -> T:
    """The first variable that is set; its default, with a warning, when it is bad. Empty is not set."""
    for name in names:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        try:
            return read(text)
        except ValueError as error:  # of our own making: it does not hold the value
            log.warning("%s %s; the default is used", name, error)
            return default
    return default


def _flag(name: str) -> bool:
    def read(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("is true or false")
        return text.lower() == "true"

    return _from_environment((name,), read, False)


def _endpoint(url: str | None) -> Endpoint:
    if url is not None:
        if not isinstance(url, str):
            raise TypeError(f"endpoint= is a URL, not {type(url).__name__}")
        if not url.isprintable():  # urlsplit drops line breaks, and would lead elsewhere
            raise ValueError("endpoint= has a character that no URL has, a line break perhaps")
        try:
            given = Endpoint(url)
            return Endpoint(url, "/v1/metrics") if given.target.partition("?")[0] == "/" else given
        except ValueError as error:
            raise ValueError(f"endpoint= {error}") from None
    default = Endpoint("http://localhost:4318/v1/metrics")
    own, base = _variables("ENDPOINT")
    if os.environ.get(own, "").strip():
        return _from_environment((own,), Endpoint, default)
    return _from_environment((base,), lambda text: Endpoint(text, "/v1/metrics"), default)


def _headers(given: Mapping[str, str] | None) -> Headers:
    found = Headers()
    for name, value in _from_environment(_variables("HEADERS"), _pairs, _none()).items():
        problem = _bad_header(name, value)
        if problem:
            log.warning("a header of OTEL_EXPORTER_OTLP_HEADERS is left out: %s", problem)
        else:
            found[name.lower()] = value
    if given is not None:
        if not isinstance(given, Mapping):
            raise TypeError(f"headers= is a mapping of names to values, not {type(given).__name__}")
        for name, value in given.items():
            problem = _bad_header(name, value)
            if problem:
                raise ValueError(f"headers=: {problem}")
            found[name.lower()] = value.strip()
    return found


def _bad_header(name: object, value: object) -> str:
    """What is wrong with a header; neither its name nor its value is told: people mix them up."""
    if not isinstance(name, str) or not isinstance(value, str):
        return "names and values are str"
    if not _TOKEN.match(name):
        return "a name has characters that a header's name cannot have"
    if name.lower() in _OURS:
        return f"{name.lower()} is set by uno itself"
    if not _HEADER_VALUE.match(value):
        return "a value has control characters, or others that no header may have"
    return ""


def _pairs(text: str) -> dict[str, str]:
    """``a=1,b=2`` with %-escapes, as W3C baggage without properties."""
    found = {}
    for item in text.split(","):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ValueError("is a list as in name=value,other=value")
        found[unquote(key.strip(), errors="strict")] = unquote(value.strip(), errors="strict")
    return found


def _none() -> dict[str, str]:
    return {}


def _choice(option: str, given: str | None, names: tuple[str, ...], known: tuple[str, ...]) -> str:
    if given is not None:
        if not isinstance(given, str) or given.lower() not in known:
            raise ValueError(f"{option}= is one of {', '.join(known)}")
        return given.lower()

    def read(text: str) -> str:
        if text.lower() not in known:
            raise ValueError(f"is one of {', '.join(known)} here")
        return text.lower()

    return _from_environment(names, read, known[0])


def _seconds(option: str, given: float | None, names: tuple[str, ...], default: float) -> float:
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise TypeError(f"{option}= is a number of seconds, not {type(given).__name__}")
        if not 0.01 <= given <= LONGEST:
            raise ValueError(f"{option}= is 0.01 to {LONGEST:g} seconds, not {given!r}")
        return float(given)

    def read(text: str) -> float:
        if not text.isascii() or not text.isdigit() or not 10 <= int(text[:20]) <= LONGEST * 1_000:
            raise ValueError(f"is a whole number of milliseconds, 10 to {LONGEST * 1_000:.0f}")
        return int(text) / 1_000

    return _from_environment(names, read, default)


def _resource(given: Mapping[str, str] | None, service: str) -> dict[str, str]:
    """Attributes of who sends: OTEL_RESOURCE_ATTRIBUTES, then OTEL_SERVICE_NAME, then what was given."""
    if given is not None and (
        not isinstance(given, Mapping)
        or not all(isinstance(k, str) and k and isinstance(v, str) for k, v in given.items())
    ):
        raise TypeError("resource_attributes= is a mapping of str to str")
    found = {"service.name": service or "unknown_service:python"}
    found.update(_from_environment(("OTEL_RESOURCE_ATTRIBUTES",), _pairs, _none()))
    name = os.environ.get("OTEL_SERVICE_NAME", "").strip()
    if name:
        found["service.name"] = name
    found.update(given or {})
    return found


def _tls(
    certificate: str | os.PathLike[str] | None,
    client_certificate: str | os.PathLike[str] | None,
    client_key: str | os.PathLike[str] | None,
) -> ssl.SSLContext:
    import ssl

    def trust(path: str | os.PathLike[str]) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=path)
        except (OSError, ValueError):
            raise ValueError("is no readable file of certificates (PEM)") from None

    if certificate is not None:
        try:
            context = trust(certificate)
        except ValueError as error:
            raise ValueError(f"certificate= {error}") from None
    else:
        found = _from_environment(_variables("CERTIFICATE"), trust, None)
        context = ssl.create_default_context() if found is None else found

    def identify(chain: str | os.PathLike[str], key: str | os.PathLike[str] | None) -> None:
        try:
            # A key with a pass phrase would be asked for at the terminal: it is refused instead.
            context.load_cert_chain(chain, key, password=lambda: b"")
        except (OSError, ValueError):
            raise ValueError("and its key are no readable files (PEM, key without a pass phrase)") from None

    if client_certificate is not None:
        try:
            identify(client_certificate, client_key)
        except ValueError as error:
            raise ValueError(f"client_certificate= {error}") from None
    else:
        if client_key is not None:
            raise ValueError("client_key= needs client_certificate=")
        key = _from_environment(_variables("CLIENT_KEY"), str, "")
        _from_environment(_variables("CLIENT_CERTIFICATE"), lambda chain: identify(chain, key or None), None)
    return context
