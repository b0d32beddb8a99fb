"""What every format has in common: names and labels as they are escaped, and what a format has to be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uno.core.monitoring.buckets import Distribution
from uno.core.monitoring.cells import Exemplar
from uno.core.monitoring.exporters.prometheus.escaping import (
    escape_label_name,
    escape_name,
    is_plain,
    label_key,
    label_value,
    prometheus_label,
    prometheus_name,
)
from uno.core.monitoring.exporters.prometheus.negotiation import Format
from uno.core.monitoring.names import UNIT_WORDS
from uno.core.monitoring.series import Series
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from uno.core.monitoring.exporters.prometheus.layout import Family

#: One series of a chunk: labels as text, created, exemplars by bucket (0 for a counter).
Exemplars = Mapping[int, Exemplar] | None


class Sample(NamedTuple):
    """One line that is made anew each time. ``suffix`` is appended to the family's name."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float
    time: float | None = None
    exemplar: Exemplar | None = None


class Style:
    """A format with its settings: how a family looks in it."""

    #: Whether beginnings and exemplars are shown, for which cells have to be looked at.
    follows_cells = False

    def __init__(self, format: Format, *, created: bool = True, dotted: bool = False) -> None:
        self.format = format
        self.created = created
        self.dotted = dotted and format.escaping == "allow-utf-8"
        self._templates: dict[tuple[str, ...], str] = {}
        self._labels: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = {}

    # -- names -----------------------------------------------------------------------------------------

    def name(self, series: Series) -> str:
        """The name of a series' family before its format's own rules."""
        return self.escaped(prometheus_name(series.metric, self.dotted))

    def escaped(self, name: str) -> str:
        """A name in the alphabet of the format."""
        return escape_name(name, self.format.escaping)

    def pairs(self, series: Series) -> list[tuple[str, str]]:
        """The labels of a series: names escaped, values as they are."""
        found = self._labels.get(series.metric.labels)
        if found is None:
            found = self._labels[series.metric.labels] = self._label_names(series.metric.labels)
        names, distinct = found
        pairs = list(zip(names, (series.resource, *series.labels), strict=True))
        if not distinct:
            joined: dict[str, str] = {}
            for name, value in pairs:
                # "a.b" and "a_b" are one name here; OpenTelemetry's specification joins their values so.
                joined[name] = f"{joined[name]};{value}" if name in joined else value
            pairs = list(joined.items())
        return pairs

    def labels(self, series: Series) -> str:
        """The labels of a series as text, by which two series of a family are told apart, too."""
        names = series.metric.labels
        template = self._templates.get(names)
        if template is None:
            escaped, distinct = self._label_names(names)
            whole = ",".join(label_key(name).replace("%", "%%") + '="%s"' for name in escaped)
            template = self._templates[names] = whole if distinct else ""
        values = (series.resource, *series.labels)
        if template and is_plain("".join(values)):
            return template % values
        return self.text(self.pairs(series))

    def _label_names(self, labels: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
        names = ("resource", *(prometheus_label(label, self.dotted) for label in labels))
        escaped = tuple(escape_label_name(name, self.format.escaping) for name in names)
        return escaped, len(set(escaped)) == len(escaped)

    def text(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Labels as text."""
        return ",".join([f'{label_key(name)}="{label_value(value)}"' for name, value in pairs])

    def unit(self, family: Family) -> str:
        """The unit's word, where the family's name ends in it."""
        unit, name = family.unit, family.names.family.removesuffix("_total")
        for word in (UNIT_WORDS.get(unit, ""), unit):
            if word and word.isascii() and word.isidentifier() and name.endswith("_" + word):
                return word
        return ""

    # -- what a format does ----------------------------------------------------------------------------

    def claim(self, families: Sequence[Family], taken: set[str]) -> set[str]:
        """Give each family its names in this format; ``taken`` are those of all lines.

        Returns the names of families that cannot stand beside the others in this format.
        """
        raise NotImplementedError

    def template(
        self,
        family: Family,
        series: Sequence[Series],
        created: Sequence[float | None],
        exemplars: Sequence[Exemplar | None] | None,
        kind: str,
    ) -> bytes:
        """Everything of some series but their numbers."""
        raise NotImplementedError

    def fill(self, template: bytes, kind: str, values: NDArray[np.float64]) -> bytes:
        """A template with its numbers, none of which is NaN."""
        raise NotImplementedError

    def kind(self, values: NDArray[np.float64]) -> str:
        """Which kind of template suits these numbers."""
        return ""

    def histograms(
        self,
        family: Family,
        series: Sequence[Series],
        found: Sequence[Distribution | None],
        exemplars: Sequence[Exemplars] | None,
        cache: dict[object, bytes],
    ) -> bytes:
        """The lines of some histograms; ``cache`` holds templates from one time to the next."""
        raise NotImplementedError

    def family(self, family: Family, parts: Sequence[bytes]) -> list[bytes]:
        """What comes before the parts of a family, which are not empty."""
        raise NotImplementedError

    def made_anew(
        self, name: str, kind: str, help: str, samples: Sequence[Sample], *, unit: str = ""
    ) -> list[bytes]:
        """A family whose samples are given. ``name`` is the family's, without any suffix; not escaped."""
        raise NotImplementedError

    @property
    def end(self) -> bytes:
        """What ends a page."""
        return b""
