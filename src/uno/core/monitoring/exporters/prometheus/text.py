"""How does a family look as text: Prometheus 0.0.4 and 1.0.0, OpenMetrics 1.0 and 2.0?

The lines of a chunk are one bytes template, ``b"name{labels} %d.0\\n..." % numbers``: formatting runs in C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf, isfinite
from typing import TYPE_CHECKING

from uno.core.monitoring.buckets import Distribution, NativeBuckets
from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus import recorded
from uno.core.monitoring.exporters.prometheus.escaping import (
    bound,
    clean,
    escape_label_name,
    is_legacy,
    number,
    prometheus_label,
    quote,
)
from uno.core.monitoring.exporters.prometheus.layout import Family, Names
from uno.core.monitoring.exporters.prometheus.negotiation import Format
from uno.core.monitoring.exporters.prometheus.recorded import bounds
from uno.core.monitoring.exporters.prometheus.spans import spans
from uno.core.monitoring.exporters.prometheus.style import Exemplars, Sample, Style
from uno.core.monitoring.series import Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The place of a number, by what the numbers of a chunk are: whole, any finite ones, or text.
_SLOTS = {"d": " %d.0", "a": " %a", "b": " %b"}
_LARGEST_WHOLE = 1e15
_GAUGES = ("stateset", "info")
_SUFFIXES = {"counter": "_total", "info": "_info"}


class TextStyle(Style):
    """Text 0.0.4 and 1.0.0."""

    # -- names -----------------------------------------------------------------------------------------

    def claim(self, families: Sequence[Family], taken: set[str]) -> set[str]:
        return set()  # a family has the name of its lines

    def sample(self, name: str, labels: str) -> str:
        """A line up to its number."""
        if is_legacy(name):
            return f"{name}{{{labels}}}" if labels else name
        return f'{{"{quote(name)}"{"," if labels else ""}{labels}}}'

    def fixed(self, name: str, labels: str) -> str:
        """The same in a template, where a per cent sign is written twice."""
        return self.sample(name, labels).replace("%", "%%")

    def quoted(self, name: str) -> str:
        """A name in a line of HELP or TYPE."""
        return name if is_legacy(name) else f'"{quote(name)}"'

    def head(self, names: Names, help: str, unit: str) -> bytes:
        """The lines before a family's samples."""
        name = self.quoted(names.family)
        escaped = clean(help).replace("\\", r"\\").replace("\n", r"\n")
        return f"# HELP {name} {escaped}\n# TYPE {name} {names.type}\n".encode()

    def family(self, family: Family, parts: Sequence[bytes]) -> list[bytes]:
        return [self.head(family.names, family.help, self.unit(family))]

    # -- counters and gauges ---------------------------------------------------------------------------

    def kind(self, values: NDArray[np.float64]) -> str:
        largest = max(float(values.max()), -float(values.min()))
        if largest < _LARGEST_WHOLE:
            return "d" if (values == values.astype("i8")).all() else "a"
        return "a" if largest < inf else "b"

    def template(
        self,
        family: Family,
        series: Sequence[Series],
        created: Sequence[float | None],
        exemplars: Sequence[Exemplar | None] | None,
        kind: str,
    ) -> bytes:
        slot = _SLOTS[kind]
        lines: list[str] = []
        for place, one in enumerate(series):
            labels = self.labels(one)
            exemplar = exemplars[place] if exemplars is not None else None
            lines += self.line(family.names, labels, slot, created[place], exemplar)
        return "".join(lines).encode()

    def line(
        self, names: Names, labels: str, slot: str, created: float | None, exemplar: Exemplar | None
    ) -> list[str]:
        """The lines of one series, for a template."""
        return [f"{self.fixed(names.line, labels)}{slot}\n"]

    def fill(self, template: bytes, kind: str, values: NDArray[np.float64]) -> bytes:
        if kind == "d":
            return template % tuple(values.astype("i8").tolist())
        if kind == "a":
            return template % tuple(values.tolist())
        return template % tuple(number(value).encode() for value in values.tolist())

    # -- histograms ------------------------------------------------------------------------------------

    def histograms(
        self,
        family: Family,
        series: Sequence[Series],
        found: Sequence[Distribution | None],
        exemplars: Sequence[Exemplars] | None,
        cache: dict[object, bytes],
    ) -> bytes:
        created = tuple(map(self.beginning, series)) if family.names.created else None
        shapes = tuple(self.shape(one, d) for one, d in zip(series, found, strict=True))
        key = (shapes, created, None if exemplars is None else tuple(map(_frozen, exemplars)))
        template = cache.get(key)
        if template is None:
            lines: list[str] = []
            for place, one in enumerate(series):
                shape = shapes[place]
                if shape is not None:
                    begun = created[place] if created else None
                    seen = exemplars[place] if exemplars else None
                    lines += self.histogram(family.names, one, shape, begun, seen or {})
            template = cache[key] = "".join(lines).encode()
        numbers: list[float] = []
        for d, shape in zip(found, shapes, strict=True):
            if d is not None and shape is not None:
                if d.counts:
                    numbers += accumulate(d.counts)
                else:
                    numbers.append(d.count)
                if shape[1] == "":
                    numbers += (float(d.sum), d.count)
                elif shape[1] is not None:
                    numbers.append(d.count)
        return template % tuple(numbers)

    def beginning(self, series: Series) -> float | None:
        """When the cell of a series began to count, where that is shown."""
        return None

    def shape(self, series: Series, found: Distribution | None) -> tuple[bool, str | None] | None:
        """Which lines a histogram has: whether buckets, and the sum ("" for a number, None for none)."""
        if found is None:
            return None
        return (bool(found.counts), "" if isfinite(found.sum) else number(found.sum))

    def histogram(
        self,
        names: Names,
        series: Series,
        shape: tuple[bool, str | None],
        created: float | None,
        exemplars: Mapping[int, Exemplar],
    ) -> list[str]:
        """The lines of one histogram."""
        les = ["+Inf"]
        if shape[0]:
            les = [*map(bound, bounds(series) or ()), "+Inf"]
        elif exemplars:
            exemplars = {0: max(exemplars.values(), key=lambda e: e.value)}
        plain = self.labels(series)
        bucket = self.fixed(f"{names.line}_bucket", f'{plain},le="').removesuffix("}")
        lines = [f'{bucket}{le}"}} %d{self.exemplar(exemplars.get(place))}\n' for place, le in enumerate(les)]
        if shape[1] is not None:
            lines.append(f"{self.fixed(f'{names.line}_sum', plain)} {shape[1] or '%a'}\n")
            lines.append(f"{self.fixed(f'{names.line}_count', plain)} %d\n")
        return lines

    def exemplar(self, exemplar: Exemplar | None) -> str:
        """What follows a number."""
        return ""

    # -- families whose samples are given --------------------------------------------------------------

    def made_anew(
        self, name: str, kind: str, help: str, samples: Sequence[Sample], *, unit: str = ""
    ) -> list[bytes]:
        out: list[bytes] = []
        kinds = {"info": "gauge", "stateset": "gauge", "unknown": "untyped", "gaugehistogram": "histogram"}
        own, strays = _strays(kind, samples)
        line = self.escaped(name + _SUFFIXES.get(kind, ""))
        if own:
            out.append(self.head(Names(line, line, kinds.get(kind, kind)), help, ""))
            out += self.given(name, own, milliseconds=True)
        for suffix, lines in strays.items():
            stray = self.escaped(name + suffix)
            out.append(self.head(Names(stray, stray, "gauge"), help, ""))
            out += self.given(name, lines, milliseconds=True)
        return out

    def given(self, name: str, samples: Sequence[Sample], *, milliseconds: bool = False) -> Iterator[bytes]:
        """The lines of given samples."""
        for s in samples:
            pairs = {escape_label_name(k, self.format.escaping): v for k, v in s.labels}
            line = (
                f"{self.sample(self.escaped(name + s.suffix), self.text([*pairs.items()]))} {number(s.value)}"
            )
            if s.time is not None:
                line += f" {int(s.time * 1000)}" if milliseconds else f" {s.time!r}"
            yield f"{line}{self.exemplar(s.exemplar).replace('%%', '%')}\n".encode()


def _frozen(exemplars: Exemplars) -> tuple[tuple[int, Exemplar], ...]:
    return tuple(exemplars.items()) if exemplars else ()


def _strays(kind: str, samples: Sequence[Sample]) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """Samples that the old format has no place for in their family: they become families of their own."""
    stray = {"gaugehistogram": ("_created", "_gsum", "_gcount")}.get(kind, ("_created",))
    own: list[Sample] = []
    strays: dict[str, list[Sample]] = {}
    for s in samples:
        if s.suffix in stray and kind not in ("gauge", "unknown"):
            strays.setdefault(s.suffix, []).append(s)
        else:
            own.append(s)
    return own, strays


class OpenMetricsStyle(TextStyle):
    """OpenMetrics 1.0: a counter's family has no ``_total``; beginnings, units, exemplars, info and stateset."""

    follows_cells = True

    def claim(self, families: Sequence[Family], taken: set[str]) -> set[str]:
        # A histogram's _created is its own, even where it is not shown.
        parts = {f"{family.name}_created" for family in families if family.kind == "histogram"}
        apart = {family.name for family in families if family.name in parts}
        families = [family for family in families if family.name not in apart]
        names = {family.name for family in families} | taken | {self.escaped("uno_resource")}
        for family in families:
            name = family.name
            if family.kind == "histogram":
                family.names = Names(name, name, "histogram", self.created)
            elif family.kind == "counter":
                trimmed = name.removesuffix("_total")
                if (
                    not trimmed
                    or trimmed == name
                    or trimmed in names
                    or f"{trimmed}_created" in names | parts
                ):
                    # Without _total, or where the rest is another's name, it is none of OpenMetrics' counters: the
                    # line keeps its name, which is what queries know.
                    family.names = Names(name, name, "unknown")
                else:
                    family.names = Names(trimmed, name, "counter", self.created)
                    names.add(trimmed)
        taken.update(family.names.family for family in families)
        taken.update(f"{family.names.family}_created" for family in families if family.names.created)
        return apart

    def head(self, names: Names, help: str, unit: str) -> bytes:
        name = self.quoted(names.family)
        escaped = quote(clean(help))
        middle = f"# UNIT {name} {unit}\n" if unit else ""
        return f"# TYPE {name} {names.type}\n{middle}# HELP {name} {escaped}\n".encode()

    def line(
        self, names: Names, labels: str, slot: str, created: float | None, exemplar: Exemplar | None
    ) -> list[str]:
        shown = self.exemplar(exemplar) if names.type == "counter" else ""
        lines = [f"{self.fixed(names.line, labels)}{slot}{shown}\n"]
        if created is not None and names.created:
            lines.append(f"{self.fixed(f'{names.family}_created', labels)} {created:.3f}\n")
        return lines

    def beginning(self, series: Series) -> float | None:
        return recorded.created(series)

    def shape(self, series: Series, found: Distribution | None) -> tuple[bool, str | None] | None:
        if found is None:
            return None
        # A sum is a counter here: none where values may be negative, or where it is no number.
        lowest = (bounds(series) or (0.0,))[0] if found.counts else 0.0
        return (bool(found.counts), "" if 0 <= found.sum < inf and lowest >= 0 else None)

    def histogram(
        self,
        names: Names,
        series: Series,
        shape: tuple[bool, str | None],
        created: float | None,
        exemplars: Mapping[int, Exemplar],
    ) -> list[str]:
        lines = super().histogram(names, series, shape, created, exemplars)
        if created is not None and names.created:
            labels = self.labels(series)
            lines.append(f"{self.fixed(f'{names.line}_created', labels)} {created:.3f}\n")
        return lines

    def exemplar(self, exemplar: Exemplar | None) -> str:
        if exemplar is None:
            return ""
        pairs = [
            (escape_label_name(prometheus_label(name, self.dotted), self.format.escaping), value)
            for name, value in exemplar.labels
        ]
        labels = self.text(list(dict(pairs).items())).replace("%", "%%")
        stamp = (
            f" {exemplar.time:.3f}" if exemplar.time is not None else ""
        )  # another library's may have none
        return f" # {{{labels}}} {number(exemplar.value)}{stamp}"

    def made_anew(
        self, name: str, kind: str, help: str, samples: Sequence[Sample], *, unit: str = ""
    ) -> list[bytes]:
        family = self.escaped(name)
        ends = unit and family.endswith("_" + unit) and kind not in _GAUGES
        head = self.head(Names(family, family, kind), help, unit if ends else "")
        return [head, *self.given(name, samples)] if samples else []

    @property
    def end(self) -> bytes:
        return b"# EOF\n"


class OpenMetrics2Style(OpenMetricsStyle):
    """OpenMetrics 2.0-rc0: a family has the name of its lines, and a histogram is one line."""

    def claim(self, families: Sequence[Family], taken: set[str]) -> set[str]:
        for family in families:
            family.names = Names(family.name, family.name, family.kind, self.created)
        return set()

    def line(
        self, names: Names, labels: str, slot: str, created: float | None, exemplar: Exemplar | None
    ) -> list[str]:
        begun = f" st@{created:.3f}" if created is not None and names.created else ""
        return [f"{self.fixed(names.line, labels)}{slot}{begun}{self.exemplar(exemplar)}\n"]

    def histograms(
        self,
        family: Family,
        series: Sequence[Series],
        found: Sequence[Distribution | None],
        exemplars: Sequence[Exemplars] | None,
        cache: dict[object, bytes],
    ) -> bytes:
        lines: list[str] = []
        for place, one in enumerate(series):
            d = found[place]
            if d is None:
                continue
            parts = [f"count:{d.count},sum:{number(float(d.sum))}"]
            if d.native is not None:
                parts += _native(d.native)
            if d.counts or d.native is None:
                totals = [*accumulate(d.counts)] or [d.count]
                les = [*map(bound, bounds(one) or ()), "+Inf"] if d.counts else ["+Inf"]
                pairs = zip(les, totals, strict=True)
                parts.append(f"bucket:[{','.join(f'{le}:{n}' for le, n in pairs)}]")
            begun = self.beginning(one) if family.names.created else None
            start = f" st@{begun:.3f}" if begun is not None else ""
            shown = (exemplars[place] if exemplars else None) or {}
            marks = "".join(map(self.exemplar, shown.values())).replace("%%", "%")
            name = self.sample(family.names.line, self.labels(one))
            lines.append(f"{name} {{{','.join(parts)}}}{start}{marks}\n")
        return "".join(lines).encode()

    def made_anew(
        self, name: str, kind: str, help: str, samples: Sequence[Sample], *, unit: str = ""
    ) -> list[bytes]:
        if kind in ("histogram", "gaugehistogram", "summary"):
            # Composite values of others are shown as what they were made of.
            out: list[bytes] = []
            for suffix in dict.fromkeys(s.suffix for s in samples):
                line = self.escaped(name + suffix)
                out.append(self.head(Names(line, line, "unknown"), help, ""))
                out += self.given(name, [s._replace(exemplar=None) for s in samples if s.suffix == suffix])
            return out
        line = self.escaped(name + _SUFFIXES.get(kind, ""))
        begun = {s.labels: s.value for s in samples if s.suffix == "_created"}
        own = [s for s in samples if s.suffix != "_created" or kind != "counter"]
        if not own:
            return []
        ends = unit and line.removesuffix("_total").endswith("_" + unit) and kind not in _GAUGES
        out = [self.head(Names(line, line, kind), help, unit if ends else "")]
        for s, text in zip(own, self.given(name, [s._replace(exemplar=None) for s in own]), strict=True):
            start = f" st@{begun[s.labels]:.3f}" if s.labels in begun else ""
            mark = self.exemplar(s.exemplar).replace("%%", "%") if s.exemplar and s.exemplar.time else ""
            out.append(text[:-1] + f"{start}{mark}\n".encode())
        return out


def _native(native: NativeBuckets) -> Iterator[str]:
    yield f"schema:{native.schema},zero_threshold:{native.zero_threshold!r},zero_count:{native.zero_count}"
    for side, buckets in (("negative", native.negative), ("positive", native.positive)):
        found, counts = spans(buckets)
        if found:
            yield f"{side}_spans:[{','.join(f'{offset}:{length}' for offset, length in found)}]"
            yield f"{side}_buckets:[{','.join(map(str, counts))}]"


def text_style(format: Format, *, created: bool, dotted: bool) -> TextStyle:
    """The style of a text format."""
    make = TextStyle
    if format.syntax == "openmetrics":
        make = OpenMetrics2Style if format.version == "2.0.0" else OpenMetricsStyle
    return make(format, created=created, dotted=dotted)
