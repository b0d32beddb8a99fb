"""Which attributes of an instrument are kept, what is it called here, is it recorded at all?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from uno.core.monitoring.metrics import Histogram, MetricError
from uno.core.records import NamedTuple


class Choice(NamedTuple):
    """What one view makes of an instrument."""

    name: str | None = None
    description: str | None = None
    keep: frozenset[str] | None = None
    drop: frozenset[str] = frozenset()
    rename: tuple[tuple[str, str], ...] = ()
    bounds: tuple[float, ...] | None = None


class View:
    """Chooses instruments, and says what is kept of them. Names as in OpenTelemetry's SDK where it has the same.

    An instrument is chosen by all that is given of: ``instrument_name`` (with ``*`` and ``?``),
    ``instrument_type`` (``opentelemetry.metrics.Counter`` ...), ``instrument_unit``, ``meter_name``,
    ``meter_version``, ``meter_schema_url``. Of its attributes those in ``attribute_keys`` are kept (all by default),
    those in ``drop_attributes`` left out, and those in ``rename_attributes`` called otherwise; what is the same then
    is added up. ``name`` and ``description`` replace the instrument's own, ``buckets`` a histogram's bounds;
    ``drop=True`` records nothing. An instrument that several views choose is recorded by each; one that none chooses
    is recorded as it is.

    Raises ValueError for a view that chooses by nothing, or names several instruments alike, and for bad buckets.
    """

    __slots__ = ("_by", "choice", "drop", "pattern")

    def __init__(
        self,
        instrument_name: str | None = None,
        *,
        instrument_type: type | None = None,
        instrument_unit: str | None = None,
        meter_name: str | None = None,
        meter_version: str | None = None,
        meter_schema_url: str | None = None,
        name: str | None = None,
        description: str | None = None,
        attribute_keys: Iterable[str] | None = None,
        drop_attributes: Iterable[str] = (),
        rename_attributes: Mapping[str, str] | None = None,
        buckets: Sequence[float] | None = None,
        drop: bool = False,
    ) -> None:
        self.pattern = None if instrument_name is None else instrument_name.lower()
        self._by = (instrument_type, instrument_unit, meter_name, meter_version, meter_schema_url)
        if instrument_name is None and not any(by is not None for by in self._by):
            raise ValueError(
                "a View chooses instruments by something: View('http.*'), View(meter_name='httpx')"
            )
        if name is not None and (self.pattern is None or set(self.pattern) & set("*?")):
            raise ValueError(
                "a View with name= chooses one instrument by its whole name: all would be called so"
            )
        for what, given in (("attribute_keys", attribute_keys), ("drop_attributes", drop_attributes)):
            if isinstance(given, str):
                raise ValueError(f"{what} is a set of names: {what}={{{given!r}}}")
        try:
            bounds = None if buckets is None else Histogram("view", buckets=buckets)._new().bounds
        except MetricError as error:
            raise ValueError(str(error)) from None
        self.drop = bool(drop)
        self.choice = Choice(
            name,
            description,
            None if attribute_keys is None else frozenset(attribute_keys),
            frozenset(drop_attributes),
            tuple((rename_attributes or {}).items()),
            bounds,
        )

    def takes(
        self, kind: type, name: str, unit: str, meter: str, version: str | None, schema_url: str | None
    ) -> bool:
        """Whether an instrument is chosen. Names of instruments are the same in upper and lower case."""
        wanted, *same = self._by
        if self.pattern is not None and not fnmatchcase(name.lower(), self.pattern):
            return False
        if wanted is not None and not issubclass(kind, wanted):
            return False
        found = (unit, meter, version or "", schema_url or "")
        return all(by is None or by == is_ for by, is_ in zip(same, found, strict=True))
