"""What does a scrape get? The last tick, of the series and in the format that it asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.exporters.prometheus import page, recorded, state
from uno.core.monitoring.exporters.prometheus.bridge import Bridge
from uno.core.monitoring.exporters.prometheus.layout import (
    STATE,
    Family,
    Layout,
    Rendered,
    build,
    lines_of,
)
from uno.core.monitoring.exporters.prometheus.negotiation import Filter, Format, accepts_gzip, negotiate
from uno.core.monitoring.exporters.prometheus.protobuf import ProtobufStyle
from uno.core.monitoring.exporters.prometheus.style import Style
from uno.core.monitoring.exporters.prometheus.text import text_style
from uno.core.monitoring.series import Frame, Series

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor

log = logging.getLogger("uno.exporters.prometheus")

GZIP_FROM = 1_024
#: Formats for which bytes are kept; a reader that asks for others each time costs time, not memory.
_KEPT = 4
#: Seconds after which what was kept for a format that nobody asks for goes.
_IDLE = 900.0
_TRIES = 50

Pieces = Generator[float, None, list[Rendered]]
Answer = tuple[list[bytes], dict[str, str]]


class PrometheusExporter:
    """Renders the last tick of a monitor. A series that has no value at present has no line.

    ``created`` shows in OpenMetrics when a counter or histogram began (``_created``). ``dotted_names`` keeps
    the dots of standard names for readers that take UTF-8 names; without it, a metric has one name in every format.
    ``prometheus_client`` appends that library's registry where the application has loaded it; a registry of yours may
    be given instead, or False.
    """

    def __init__(
        self,
        resource_monitor: ResourceMonitor,
        *,
        created: bool = True,
        dotted_names: bool = False,
        prometheus_client: Any = True,
    ) -> None:
        self.resource_monitor = resource_monitor
        self._created, self._dotted = created, dotted_names
        self._bridge: Bridge | None = None
        if prometheus_client is not False and prometheus_client is not None:
            self._bridge = Bridge(None if prometheus_client is True else prometheus_client)
        self._styles: dict[Format, Style] = {}
        self._layouts: dict[Format, tuple[Layout, float]] = {}
        self._clashes: set[str] = set()

    # -- answers ---------------------------------------------------------------------------------------

    def render(self, accept: str = "", query: str = "") -> bytes:
        """The page in the format that an Accept header asks for, by default text 0.0.4; never compressed."""
        return b"".join(self._answered(accept, "", query)[0])

    def respond(
        self, accept_encoding: str = "", accept: str = "", query: str = ""
    ) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the answer to a scrape, for a thread of yours. ValueError for a senseless query."""
        parts, headers = self._answered(accept, accept_encoding, query)
        return b"".join(parts), headers

    def _answered(self, accept: str, accept_encoding: str, query: str) -> Answer:
        self.resource_monitor.freeze()  # of a monitor that does not run, and of other workers
        return page.drive(self.answer(accept, accept_encoding, query))

    async def respond_in_loop(self, accept_encoding: str = "", accept: str = "", query: str = "") -> Answer:
        """As respond(), on an event loop that is never held for 2 ms; the body comes in parts."""
        monitor = self.resource_monitor
        if not monitor.running or monitor.view is not monitor.store:
            await asyncio.to_thread(monitor.freeze)
        return await page.drive_in_loop(self.answer(accept, accept_encoding, query))

    def answer(self, accept: str, accept_encoding: str, query: str) -> Generator[float, None, Answer]:
        """The same in steps. See page.drive."""
        wanted = Filter.parse(query)
        format = negotiate(accept)
        headers = {
            "content-type": format.content_type,
            "cache-control": "no-store",
            "vary": "accept, accept-encoding",
        }
        pieces = yield from self._pieces(format, wanted)
        if accepts_gzip(accept_encoding) and sum(len(piece.plain) for piece in pieces) >= GZIP_FROM:
            parts = yield from page.compress(pieces)
            headers["content-encoding"] = "gzip"
        else:
            parts = [piece.plain for piece in pieces]
        return parts, headers

    # -- what is in it ---------------------------------------------------------------------------------

    def _pieces(self, format: Format, wanted: Filter) -> Pieces:
        names, resources = wanted
        style, layout, frame = yield from self._current(format, resources)
        pieces: list[Rendered] = []
        if layout is not None and frame is not None:
            for family in layout.families:
                if names and names.isdisjoint(_names_of(family)):
                    continue
                parts = []
                for chunk in family.chunks:
                    rendered = chunk.render(frame)
                    if rendered.plain:
                        parts.append(rendered)
                    yield 0.0
                if parts:
                    head = style.family(family, [part.plain for part in parts])
                    pieces += [Rendered(None, b"".join(head)), *parts]
        given = yield from state.families(self.resource_monitor, resources)
        for name, kind, help, samples in given:
            if not names or not names.isdisjoint((name, name + "_info" * (kind == "info"))):
                pieces += [Rendered(None, part) for part in style.made_anew(name, kind, help, samples)]
                yield 0.0
        if self._bridge is not None and not resources:
            taken = layout.taken if layout is not None else set(map(style.escaped, STATE))
            for foreign in (yield from self._bridge.read(style)):
                if foreign.lines & taken:
                    self.leave_out(foreign.name, "prometheus_client", "uno has a metric of that name")
                elif not names or not names.isdisjoint((foreign.name, *foreign.lines)):
                    taken = taken | foreign.lines
                    pieces += [Rendered(None, part) for part in foreign.parts]
                    yield 0.0
        pieces.append(Rendered(None, style.end))
        return pieces

    def snapshot(self, format: Format) -> tuple[Style, Layout | None, Frame | None]:
        """How a page of ``format`` is laid out, with the frame that goes with it."""
        self.resource_monitor.freeze()
        return page.drive(self._current(format, frozenset()))

    def _current(
        self, format: Format, resources: frozenset[str]
    ) -> Generator[float, None, tuple[Style, Layout | None, Frame | None]]:
        """A layout and a frame whose columns are the same ones."""
        style = self._style(format)
        store = recorded.view(self.resource_monitor)
        for _ in range(_TRIES):
            placed, version = store.placed, store.version
            before, _used = self._layouts.get(format, (None, 0.0))
            layout = before
            if layout is None or layout.version != version or layout.placed != placed or resources:
                layout = Layout(version, placed)
                found: Iterable[Series] = store.all()
                if resources:
                    found = [series for id in sorted(resources) for series in store.select(id)]
                yield from build(layout, style, found, None if resources else before, self._leave_out)
            frame = store.frame
            if frame is None or frame.version < placed or store.placed != placed:
                if frame is None and store.placed == placed:
                    return style, None, None
                yield 0.001  # columns were moved this instant: the frame that goes with them is being made
                continue
            if not resources:
                self._keep(format, layout)
            return style, layout, frame
        return style, None, None

    def _style(self, format: Format) -> Style:
        style = self._styles.get(format)
        if style is None:
            if format.syntax == "protobuf":
                style = ProtobufStyle(format, created=self._created, dotted=self._dotted)
            else:
                style = text_style(format, created=self._created, dotted=self._dotted)
            style = self._styles.setdefault(format, style)  # there are two dozen formats
        return style

    def _keep(self, format: Format, layout: Layout) -> None:
        now = time.monotonic()
        kept = {f: (known, used) for f, (known, used) in list(self._layouts.items()) if now - used < _IDLE}
        kept.pop(format, None)
        while len(kept) >= _KEPT:
            kept.pop(min(kept, key=lambda known: kept[known][1]))
        kept[format] = (layout, now)
        self._layouts = kept  # replaced as a whole: several threads may scrape at once

    def _leave_out(self, name: str, series: Series, why: str) -> None:
        self.leave_out(name, series.resource, why)

    def leave_out(self, name: str, owner: str, why: str) -> None:
        """Say once that a metric is not on the page."""
        if name not in self._clashes and len(self._clashes) < 100:
            self._clashes.add(name)
            log.warning("%s of %s is left out: %s", name, owner, why)


def _names_of(family: Family) -> set[str]:
    """The names by which ``name[]`` may choose a family: in this format, on the wire, of the model."""
    names = {family.name, *lines_of(family.name, family.kind), *family.names[:2]}
    names.update(chunk.series[0].metric.name for chunk in family.chunks[:1])
    return names
