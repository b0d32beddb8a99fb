"""What does a report hold, and what can be done with it?"""

from __future__ import annotations

import os
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from uno.core.records import NamedTuple

if TYPE_CHECKING:
    from uno.core.monitoring.alerts import Alert

#: Text that begins so is run by spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Row(NamedTuple):
    """One series over the period. None where nothing is known.

    The figures are in ``unit``; those of a counter speak of its rate (``unit`` ends in "/s"), those of a histogram
    of its observations, save ``last``, which is the p95 of the last tick that had any. ``count`` is the number of
    samples, or of observations. ``beyond_warning`` and ``beyond_critical`` are the seconds during which ``levels_of``
    (a statistic such as "value" or "p95") was on the bad side of the levels that apply now; ``below`` says which side
    that is. ``level`` is the present one. ``exact`` is False when five-minute means stand in for samples that are no
    longer kept.
    """

    resource: str
    name: str
    type: str
    metric: str
    title: str
    labels: dict[str, str]
    kind: str
    unit: str
    count: int  # type: ignore[assignment]  # what everybody calls it, though a tuple has a method of that name
    min: float | None
    mean: float | None
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    last: float | None
    warning: float | None
    critical: float | None
    below: bool
    levels_of: str
    beyond_warning: float
    beyond_critical: float
    level: str
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in self._asdict().items()}


class Report:
    """What happened between ``start`` and ``end`` (aware, in the local zone).

    ``verdict`` is one sentence, ``rows`` has one Row for each series (``count`` 0 where there are no samples),
    ``alerts`` are those that fired within the period, ``notes`` say what limits the figures. ``print(report)`` shows a
    table; ``export_csv`` and ``export_json`` write it whole.
    """

    __slots__ = ("alerts", "end", "notes", "rows", "start", "verdict")

    def __init__(
        self,
        start: datetime,
        end: datetime,
        verdict: str,
        rows: list[Row],
        alerts: list[Alert],
        notes: list[str],
    ) -> None:
        self.start, self.end, self.verdict = start, end, verdict
        self.rows, self.alerts, self.notes = rows, alerts, notes

    def __repr__(self) -> str:
        from uno.core.monitoring.alerts import plain
        from uno.core.monitoring.report.show import period

        return f"<Report {period(self.start, self.end)}: {plain(self.verdict)}>"

    def __str__(self) -> str:
        from uno.core.monitoring.report.show import text

        return text(self)

    def _repr_html_(self) -> str:
        from uno.core.monitoring.report.show import html

        return html(self)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain values: what a data frame is made from."""
        return [row.to_dict() for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; times in ISO 8601."""
        alerts = []
        for alert in self.alerts:
            told = alert.to_dict()
            for key in ("since", "fired_at", "resolved_at"):
                told[key] = (
                    None if told[key] is None else datetime.fromtimestamp(told[key]).astimezone().isoformat()
                )
            alerts.append(told)
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "verdict": self.verdict,
            "notes": list(self.notes),
            "rows": self.to_dicts(),
            "alerts": alerts,
        }

    def export_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON and return the path; as export_csv in all else."""
        import json

        from uno.core.monitoring.files import write

        return write(path, lambda file: json.dump(self.to_dict(), file, indent=2, ensure_ascii=False))

    def export_csv(self, path: str | os.PathLike[str], *, escape_formulas: bool = True) -> Path:
        """Write the rows as CSV (RFC 4180, UTF-8) and return the path. Unknown values are empty cells.

        Missing directories are made. The file is replaced at once when all is written: where that fails the OSError is
        raised and an older file stays whole. ``escape_formulas`` puts ``'`` before text that a spreadsheet would run.
        """
        import csv

        from uno.core.monitoring.files import write

        def cell(value: Any) -> Any:
            if isinstance(value, dict):
                value = ", ".join(f"{k}={v}" for k, v in value.items())
            if isinstance(value, str):
                return f"'{value}" if escape_formulas and value.startswith(_FORMULA) else value
            return "" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)

        def rows(file: TextIO) -> None:
            out = csv.writer(file)
            units = {"beyond_warning": "beyond_warning_seconds", "beyond_critical": "beyond_critical_seconds"}
            out.writerow(["start", "end", *(units.get(field, field) for field in Row._fields)])
            times = (self.start.isoformat(), self.end.isoformat())
            out.writerows([*times, *map(cell, row)] for row in self.rows)

        return write(path, rows)
