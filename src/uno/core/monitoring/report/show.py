"""How does a report read on a terminal, and in a notebook?"""

from __future__ import annotations

from datetime import datetime
from textwrap import shorten, wrap
from typing import TYPE_CHECKING

from uno.core.monitoring.alerts import human, plain

if TYPE_CHECKING:
    from uno.core.monitoring.alerts import Alert
    from uno.core.monitoring.report.model import Report, Row

WIDTH = 110
MAX_ROWS = 200
MAX_ALERTS = 20
FIGURES = ("min", "mean", "p50", "p95", "p99", "max", "last")


def period(start: datetime, end: datetime) -> str:
    """Both times, the zone (each its own, where the clocks were changed in between) and the length."""
    length = human(end.timestamp() - start.timestamp(), "s")
    zone = "" if start.utcoffset() == end.utcoffset() else f" {start:%z}"
    return f"{start:%Y-%m-%d %H:%M:%S}{zone} to {clock_time(end, start)} {end:%z} ({length})"


def clock_time(moment: datetime, beside: datetime) -> str:
    """The time of day; with its date where that is not the day of ``beside``."""
    return f"{moment:%H:%M:%S}" if moment.date() == beside.date() else f"{moment:%Y-%m-%d %H:%M:%S}"


def text(report: Report) -> str:
    """A table for each resource, at most 110 characters wide wherever the figures allow."""
    lines = [
        f"Report {period(report.start, report.end)}",
        *wrap(plain(report.verdict), WIDTH),
        *report.notes,
    ]
    shown = [row for row in report.rows if row.count][:MAX_ROWS]
    cells = [
        [f"{'' if row.exact else '~'}{row.count:,}", *(_cell(row, name) for name in FIGURES)] for row in shown
    ]
    header = ["count", *FIGURES]
    widths = [max(map(len, column)) + 2 for column in zip(header, *cells, strict=True)]
    first = max(24, WIDTH - sum(widths))

    resource = None
    if shown:
        lines += ["", _line("", header, first, widths).rstrip()]
    for row, figures in zip(shown, cells, strict=True):
        if row.resource != resource:
            resource = row.resource
            lines.append(shorten(_named(row), WIDTH, placeholder="…"))
        lines.append(_line("  " + _subject(row), figures, first, widths))
        if beyond := _beyond(row):
            lines.append(f"      {beyond}")
    lines += ["", *_left_out(report)] if _left_out(report) else []
    lines += ["", "Alerts"] if report.alerts else []
    for alert in report.alerts[-MAX_ALERTS:]:
        lines += wrap(_alert(alert, report.start), WIDTH, initial_indent="  ", subsequent_indent="      ")
    if len(report.alerts) > MAX_ALERTS:
        lines.append(f"  and {len(report.alerts) - MAX_ALERTS} earlier ones")
    return "\n".join(lines)


def html(report: Report) -> str:
    """The same as HTML without style or script."""
    from html import escape

    def row_of(cells: list[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    shown = [row for row in report.rows if row.count][:MAX_ROWS]
    table = [row_of(["resource", "metric", "count", *FIGURES, "beyond the levels"], "th")]
    for row in shown:
        figures = [f"{'' if row.exact else '~'}{row.count:,}", *(_cell(row, name) for name in FIGURES)]
        table.append(row_of([_named(row), _subject(row), *figures, _beyond(row)]))
    head = [f"Report {period(report.start, report.end)}", report.verdict, *report.notes]
    alerts = [_alert(alert, report.start) for alert in report.alerts[-MAX_ALERTS:]]
    return "\n".join(
        [
            *(f"<p>{escape(plain(line))}</p>" for line in head),
            f"<table>{''.join(table)}</table>",
            *(f"<p>{escape(plain(line))}</p>" for line in _left_out(report)),
            f"<ul>{''.join(f'<li>{escape(alert)}</li>' for alert in alerts)}</ul>" if alerts else "",
        ]
    )


def _line(name: str, cells: list[str], first: int, widths: list[int]) -> str:
    name = name if len(name) <= first else name[: first - 1] + "…"
    return name.ljust(first) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _named(row: Row) -> str:
    name = row.resource if row.name == row.resource else f"{row.name} [{row.resource}]"
    return plain(f"{name} ({row.type.replace('_', ' ')})")


def _subject(row: Row) -> str:
    labels = ", ".join(row.labels.values())
    return plain(f"{row.title} ({labels})" if labels else row.title)


def _cell(row: Row, figure: str) -> str:
    value = getattr(row, figure)
    return "" if value is None else _human(value, row.unit)


def _human(value: float, unit: str) -> str:
    per_second = unit.endswith("/s")
    base = unit.removesuffix("/s")
    if base.startswith("{"):  # the title says of what
        base = ""
    if not base and abs(value) >= 1e8:  # all its digits would break the table
        return f"{value:.4g}{'/s' if per_second else ''}"
    return human(value, base, per_second)


def _beyond(row: Row) -> str:
    """How long it was beyond its levels, where it was."""
    told = []
    for level, seconds in ((row.warning, row.beyond_warning), (row.critical, row.beyond_critical)):
        if level is not None and seconds:
            unit = "" if row.kind == "histogram" and row.levels_of in ("count", "rate") else row.unit
            told.append(
                f"{'below' if row.below else 'above'} {_human(level, unit)} for {human(seconds, 's')}"
            )
    if row.level != "ok":
        told.append(f"{row.level} now")
    return ", ".join(told)


def _alert(alert: Alert, start: datetime) -> str:
    fired = datetime.fromtimestamp(alert.fired_at or alert.since).astimezone()
    if alert.resolved_at is None:
        lasted = "still firing"
    else:
        lasted = f"for {human(alert.resolved_at - (alert.fired_at or alert.since), 's')}"
    words = f"{clock_time(fired, start)} {alert.level.label}, {lasted}: {alert.resource}: {alert.message}"
    return plain(shorten(f"{words}; {alert.cause}" if alert.cause else words, 400, placeholder=" …"))


def _left_out(report: Report) -> list[str]:
    known = sum(1 for row in report.rows if row.count)
    lines = []
    if known > MAX_ROWS:
        lines.append(f"{known - MAX_ROWS:,} more series are not shown here; export_csv(path) has them.")
    silent = len(report.rows) - known
    if silent and known:
        lines.append(f"{silent:,} series {'has' if silent == 1 else 'have'} no samples in this time.")
    return lines
