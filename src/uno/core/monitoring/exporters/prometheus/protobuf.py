"""How does a family look as protobuf: io.prometheus.client.MetricFamily messages, each after its length?

The only format that carries native histograms to a Prometheus of today. A counter or gauge has a fixed length, so a
chunk of them is bytes with holes for the numbers. Source: prometheus/client_model, metrics.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import inf
from struct import Struct
from typing import TYPE_CHECKING

from uno.core.monitoring.buckets import Distribution, NativeBuckets
from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus import recorded
from uno.core.monitoring.exporters.prometheus.escaping import clean, escape_label_name, prometheus_label
from uno.core.monitoring.exporters.prometheus.layout import Family
from uno.core.monitoring.exporters.prometheus.spans import spans
from uno.core.monitoring.exporters.prometheus.style import Exemplars, Sample, Style
from uno.core.monitoring.series import Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TYPES = {"counter": 0, "gauge": 1, "summary": 2, "unknown": 3, "histogram": 4, "gaugehistogram": 5}
#: Field of a Metric that holds the value.
_FIELDS = {"gauge": 2, "counter": 3, "summary": 4, "unknown": 5, "histogram": 7, "gaugehistogram": 7}
_DOUBLE = Struct("<d").pack
_LENGTH = 2  # wire type: length and bytes


def varint(n: int) -> bytes:
    """An unsigned number in base 128, low digits first."""
    if n < 128:
        return _SMALL[n]
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


_SMALL = [bytes((n,)) for n in range(128)]


def zigzag(n: int) -> int:
    """A signed number as an unsigned one: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return n << 1 if n >= 0 else (-n << 1) - 1


def sized(field: int, body: bytes) -> bytes:
    """A field that holds bytes, text or another message."""
    return varint(field << 3 | _LENGTH) + varint(len(body)) + body


def whole(field: int, n: int) -> bytes:
    """A field with an unsigned number."""
    return varint(field << 3) + varint(n)


def double(field: int, value: float) -> bytes:
    """A field with a float."""
    return varint(field << 3 | 1) + _DOUBLE(value)


class ProtobufStyle(Style):
    """MetricFamily messages."""

    follows_cells = True

    def claim(self, families: Sequence[Family], taken: set[str]) -> set[str]:
        for family in families:
            family.names = family.names._replace(created=self.created)
        return set()

    def message(self, pairs: Sequence[tuple[str, str]]) -> bytes:
        """The labels of a Metric."""
        return b"".join(
            [sized(1, sized(1, name.encode()) + sized(2, clean(value).encode())) for name, value in pairs]
        )

    def family(self, family: Family, parts: Sequence[bytes]) -> list[bytes]:
        return [
            self._head(family.names.line, family.help, family.kind, self.unit(family), sum(map(len, parts)))
        ]

    def _head(self, name: str, help: str, kind: str, unit: str, length: int) -> bytes:
        head = sized(1, name.encode()) + sized(2, clean(help).encode()) + whole(3, _TYPES[kind])
        if unit:
            head += sized(5, unit.encode())
        return varint(len(head) + length) + head

    # -- counters and gauges ---------------------------------------------------------------------------

    def template(
        self,
        family: Family,
        series: Sequence[Series],
        created: Sequence[float | None],
        exemplars: Sequence[Exemplar | None] | None,
        kind: str,
    ) -> bytes:
        field = _FIELDS[family.kind]
        parts: list[bytes] = []
        places: list[int] = []
        at = 0
        for place, one in enumerate(series):
            rest = b""
            exemplar = exemplars[place] if exemplars is not None else None
            if exemplar is not None:
                rest = sized(2, self.exemplar(exemplar))
            begun = created[place]
            if begun is not None and family.names.created:
                rest += sized(3, timestamp(begun))
            labels = self.message(self.pairs(one))
            value = varint(field << 3 | _LENGTH) + varint(9 + len(rest)) + b"\x09" + bytes(8) + rest
            metric = varint(4 << 3 | _LENGTH) + varint(len(labels) + len(value)) + labels + value
            places.append(at + len(metric) - len(rest) - 8)
            at += len(metric)
            parts.append(metric)
        import numpy as np

        # The places of the holes come first, so that one bytes object is all that is kept.
        return np.array([len(places), *places], dtype="<i8").tobytes() + b"".join(parts)

    def fill(self, template: bytes, kind: str, values: NDArray[np.float64]) -> bytes:
        import numpy as np

        whole = np.frombuffer(template, dtype=np.uint8)
        n = len(values)
        places = whole[8 : 8 * (n + 1)].view("<i8")
        out = whole[8 * (n + 1) :].copy()
        holes = places[:, None] + np.arange(8)
        out[holes] = values.astype("<f8").view(np.uint8).reshape(n, 8)
        return out.tobytes()

    # -- histograms ------------------------------------------------------------------------------------

    def histograms(
        self,
        family: Family,
        series: Sequence[Series],
        found: Sequence[Distribution | None],
        exemplars: Sequence[Exemplars] | None,
        cache: dict[object, bytes],
    ) -> bytes:
        parts: list[bytes] = []
        for place, one in enumerate(series):
            d = found[place]
            if d is None:
                continue
            fixed = cache.get(one)
            if fixed is None:
                fixed = cache[one] = self.message(self.pairs(one))
            seen = (exemplars[place] if exemplars is not None else None) or {}
            body = self._histogram(d, recorded.bounds(one) or (), seen)
            begun = recorded.created(one)
            if begun is not None and family.names.created:
                body += sized(15, timestamp(begun))
            parts.append(sized(4, fixed + sized(7, body)))
        return b"".join(parts)

    def _histogram(self, d: Distribution, bounds: Sequence[float], seen: Mapping[int, Exemplar]) -> bytes:
        parts = [whole(1, d.count), double(2, d.sum)]
        for place, total in enumerate(accumulate(d.counts)):
            upper = bounds[place] if place < len(bounds) else inf
            bucket = b"\x08" + varint(total) + b"\x11" + _DOUBLE(upper)
            mark = seen.get(place)
            if mark is not None:
                bucket += sized(3, self.exemplar(mark))
            parts.append(b"\x1a" + varint(len(bucket)) + bucket)
        if d.native is not None:
            parts += self._native(d.native)
            parts += [sized(16, self.exemplar(mark)) for mark in sorted(seen.values(), key=_value)]
        return b"".join(parts)

    def _native(self, native: NativeBuckets) -> list[bytes]:
        parts = [
            whole(5, zigzag(native.schema)),
            double(6, native.zero_threshold),
            whole(7, native.zero_count),
        ]
        empty = True
        for span_field, delta_field, buckets in ((9, 10, native.negative), (12, 13, native.positive)):
            runs, counts = spans(buckets)
            for offset, length in runs:
                parts.append(sized(span_field, whole(1, zigzag(offset)) + whole(2, length)))
                empty = False
            deltas = [b - a for a, b in pairwise([0, *counts])]
            parts += [whole(delta_field, zigzag(delta)) for delta in deltas]
        if empty and not native.zero_threshold:
            parts.append(sized(12, whole(1, 0) + whole(2, 0)))  # else it would look like a classic histogram
        return parts

    def exemplar(self, exemplar: Exemplar) -> bytes:
        """An Exemplar message."""
        pairs = {
            escape_label_name(prometheus_label(name, self.dotted), self.format.escaping): value
            for name, value in exemplar.labels
        }
        body = self.message(list(pairs.items())) + double(2, exemplar.value)
        return body + sized(3, timestamp(exemplar.time)) if exemplar.time is not None else body

    # -- families whose samples are given --------------------------------------------------------------

    def made_anew(
        self, name: str, kind: str, help: str, samples: Sequence[Sample], *, unit: str = ""
    ) -> list[bytes]:
        suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        shown = "gauge" if kind in ("info", "stateset") else kind
        groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
        for s in samples:
            apart = {"le": "histogram", "quantile": "summary"}
            labels = tuple(pair for pair in s.labels if apart.get(pair[0], "-") not in shown)
            groups.setdefault(labels, []).append(s)
        body = b"".join(sized(4, self._metric(shown, labels, group)) for labels, group in groups.items())
        if not body:
            return []
        return [self._head(self.escaped(name + suffix), help, shown, unit, len(body)), body]

    def _metric(self, kind: str, labels: Sequence[tuple[str, str]], samples: Sequence[Sample]) -> bytes:
        pairs = [(escape_label_name(k, self.format.escaping), v) for k, v in labels]
        head = self.message(pairs)
        stamp = b""
        by_suffix = {s.suffix: s for s in samples}
        parts: list[bytes] = []
        if kind in ("histogram", "gaugehistogram", "summary"):
            g = "g" if kind == "gaugehistogram" else ""
            count, total = by_suffix.get(f"_{g}count"), by_suffix.get(f"_{g}sum")
            if count is not None:
                parts.append(whole(1, int(count.value)))
            if total is not None:
                parts.append(double(2, total.value))
            for s in samples:
                edge = dict(s.labels).get("quantile" if kind == "summary" else "le")
                if edge is not None and kind == "summary":
                    parts.append(sized(4, double(1, float(edge)) + double(2, s.value)))
                elif edge is not None:
                    bucket = whole(1, int(s.value)) + double(2, float(edge))
                    parts.append(
                        sized(3, bucket + (sized(3, self.exemplar(s.exemplar)) if s.exemplar else b""))
                    )
        else:
            main = next((s for s in samples if s.suffix != "_created"), samples[0])
            parts.append(double(1, main.value))
            if main.exemplar is not None and kind == "counter":
                parts.append(sized(2, self.exemplar(main.exemplar)))
            if main.time is not None:
                stamp = whole(6, int(main.time * 1000) & (1 << 64) - 1)
        begun = by_suffix.get("_created")
        field = {"counter": 3, "summary": 4, "histogram": 15}.get(kind)
        if begun is not None and field is not None:
            parts.append(sized(field, timestamp(begun.value)))
        return head + sized(_FIELDS[kind], b"".join(parts)) + stamp


def timestamp(seconds: float) -> bytes:
    """A google.protobuf.Timestamp."""
    whole_seconds = int(seconds // 1)
    return whole(1, whole_seconds & (1 << 64) - 1) + whole(2, int((seconds - whole_seconds) * 1e9))


def _value(exemplar: Exemplar) -> float:
    return exemplar.value
