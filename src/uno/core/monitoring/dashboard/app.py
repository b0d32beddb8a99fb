"""Which address of the dashboard answers what, and to whom?"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.dashboard import detail
from uno.core.monitoring.dashboard.auth import VARIABLE, SharedToken, TokenAuth, is_cross_site
from uno.core.monitoring.dashboard.cards import Cards
from uno.core.monitoring.dashboard.stream import Stream, server_address
from uno.core.monitoring.dashboard.web import (
    FILES,
    HEADERS,
    Answer,
    ASGIApp,
    HTTPError,
    Message,
    Receive,
    Request,
    Scope,
    Send,
    Static,
    dumps,
    encoded,
    error_answer,
    json_answer,
    sliced,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from uno.core.monitoring.monitor import ResourceMonitor

FRESH = 1.0  # seconds for which an encoded snapshot serves others, at most
MAX_HOURS = 24 * 366
MAX_REPORTS = 2  # at a time
BIG_GRAPH = 60  # nodes from which on the picture is drawn off the event loop
READ = ("GET", "HEAD")


class Dashboard:
    """The dashboard of a monitor as an ASGI application (``app``).

    A token is asked for: ``token``, else the environment's UNO_DASHBOARD_TOKEN, else one that is made and printed
    at the start. ``dependencies`` (FastAPI's ``Depends(...)``) replace it, on every path; ``allow_anonymous=True``
    lets everybody in. Raises ValueError for contradictions and for an empty token.
    """

    def __init__(
        self,
        monitor: ResourceMonitor,
        *,
        token: str | None = None,
        dependencies: Sequence[Any] | None = None,
        allow_anonymous: bool = False,
    ) -> None:
        if sum((token is not None, dependencies is not None, allow_anonymous)) > 1:
            raise ValueError(
                "token=, dependencies= and allow_anonymous=True exclude each other: give one of them"
            )
        if dependencies is not None and not dependencies:
            raise ValueError(
                "dependencies=[] would let everybody in; say allow_anonymous=True if that is meant"
            )
        if token is not None and (not isinstance(token, str) or not token.strip()):
            raise ValueError("token= is a non-empty string; leave it out to have one made")
        self._cards = Cards(monitor)
        self.stream = Stream(self._cards)
        self._monitor = monitor
        self._static: Static | None = None
        self._dependencies = dependencies
        self._gates: dict[int, tuple[Any, ASGIApp]] = {}
        self._auth: TokenAuth | None = None
        self._made: SharedToken | None = None
        if dependencies is None and not allow_anonymous:
            chosen = token or os.environ.get(VARIABLE, "").strip()
            if not chosen:
                self._made = SharedToken(monitor.service)
                chosen = self._made.value
            self._auth = TokenAuth(chosen.strip())
        self._announced = False
        self._snapshot: tuple[object, float, bytes] | None = None
        self._building: asyncio.Task[bytes] | None = None
        self._reports = 0
        self._routes: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "/api/snapshot": self._get_snapshot,
            "/api/resource": self._get_resource,
            "/api/series": self._get_series,
            "/api/graph": self._get_graph,
            "/api/alerts": self._get_alerts,
            "/api/report": self._get_report,
            "/api/report.csv": self._get_report,
        }

    # -- life ------------------------------------------------------------------------------------------

    def announce(self, path: str) -> None:
        """Print once where the dashboard is. Only a token that was made here is printed, and only by one worker."""
        if self._announced:
            return
        self._announced = True
        address = (server_address() or "") + path
        if self._made is None:
            how = "" if self._auth is None else "  (the token is the one you chose)"
            print(f"uno dashboard: {address}/{how}", file=sys.stderr, flush=True)  # noqa: T201
        elif self._made.speaks(path):
            print(f"uno dashboard: {address}/#token={self._made.value}", file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """End all streams at once. The dashboard answers on."""
        self._announced = False
        self.stream.close()
        if self._made is not None:
            self._made.close()

    # -- every request ---------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application. ``root_path`` is the dashboard's own path."""
        if scope["type"] == "http":
            await (self._answer if self._dependencies is None else self._gate(scope))(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if request.path == "/api/stream" and request.method in READ:
                self._require(request)
                await self.stream(request, receive, send)
                return
            answer = await self._route(request)
        except HTTPError as error:
            answer = error_answer(request, error)
        await answer(request, send)

    async def _route(self, request: Request) -> Answer:
        path = request.path
        if path == "/api/session":
            if request.method != "POST":
                raise HTTPError(405, "POST the token here", {"allow": "POST"})
            return await self._post_session(request)
        route = self._routes.get(path)
        known = route is not None or path in ("", "/", "/api/stream") or path.removeprefix("/") in FILES
        if not known:
            raise HTTPError(404, f"nothing is at {path[:80]!r} here. There is {', '.join(self._routes)}.")
        if request.method not in READ:
            raise HTTPError(405, f"{request.method[:20]} is not for reading", {"allow": ", ".join(READ)})
        if path == "":  # relative, so that no proxy's prefix gets lost
            return Answer(b"", 307, {"location": request.base.rstrip("/").rpartition("/")[2] + "/"})
        if route is not None:
            self._require(request)
            return await route(request)
        static = self._static = self._static or Static()
        if path == "/":
            headers = {"content-type": "text/html; charset=utf-8", "vary": "cookie"}
            return Answer(static.page, 200 if self._allows(request) else 401, headers)
        return static.file(path.removeprefix("/"), request, public=self._dependencies is None)

    def _allows(self, request: Request) -> bool:
        return self._auth is None or self._auth.allows(request)

    def _require(self, request: Request) -> None:
        if not self._allows(request):
            wrong = "authorization" in request.headers
            message = "That token is not right." if wrong else "A token is needed."
            raise HTTPError(401, message, {"www-authenticate": "Bearer"})

    async def _post_session(self, request: Request) -> Answer:
        if is_cross_site(request):
            raise HTTPError(
                403, "this came from another site; behind a proxy, let it pass the Host header on"
            )
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPError(415, 'send {"token": "..."} as application/json')
        try:
            token = json.loads(await request.body())["token"]
            if not isinstance(token, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise HTTPError(400, 'send {"token": "..."}') from None
        if self._auth is None:
            return Answer(status=204)
        if not self._auth.accepts(token.strip(), request):
            raise HTTPError(401, "That token is not right.", {"www-authenticate": "Bearer"})
        return Answer(b"", 204, {"set-cookie": self._auth.set_cookie(request)})

    # -- what is read ----------------------------------------------------------------------------------

    async def _get_snapshot(self, request: Request) -> Answer:
        return json_answer(request, await self._encoded_snapshot())

    async def _encoded_snapshot(self) -> bytes:
        """The snapshot as JSON, made once for all that ask within one tick."""
        monitor = self._monitor
        frame = monitor.view.frame
        key = (
            None if frame is None else frame.seq,
            monitor.running,
            len(monitor.manager),
            monitor.view.version,
        )
        made = self._snapshot
        if made is not None and made[0] == key and monotonic() - made[1] < FRESH:
            return made[2]
        task, loop = self._building, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._building = loop.create_task(self._build_snapshot(key))
        return await asyncio.shield(task)

    async def _build_snapshot(self, key: object) -> bytes:
        body = dumps(await sliced(self._cards.snapshot()))
        self._snapshot = (key, monotonic(), body)
        return body

    async def _get_resource(self, request: Request) -> Answer:
        found = await sliced(detail.resource(self._cards, request.query().get("id")))
        return json_answer(request, dumps(found))

    async def _get_series(self, request: Request) -> Answer:
        return json_answer(request, dumps(await sliced(detail.series(self._cards, request.query()))))

    async def _get_graph(self, request: Request) -> Answer:
        def build() -> bytes:
            return dumps(detail.graph(self._cards))

        if len(self._monitor.manager) < BIG_GRAPH:
            return json_answer(request, build())
        return json_answer(request, await self._on_worker(build))

    async def _get_alerts(self, request: Request) -> Answer:
        return json_answer(request, dumps(await sliced(detail.alerts(self._cards))))

    async def _get_report(self, request: Request) -> Answer:
        query, as_csv = request.query(), request.path.endswith(".csv")
        try:
            hours = float(query.get("hours") or 1)
        except ValueError:
            hours = 0.0
        if not 0 < hours <= MAX_HOURS:
            raise HTTPError(400, "hours= is a number above 0, for example hours=24")
        kind = query.get("type") or None

        def build() -> bytes:
            end = datetime.now(UTC)
            report = self._monitor.generate_report(kind, end - timedelta(hours=hours), end)
            if not as_csv:
                return dumps(report.to_dict())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "report.csv"
                report.export_csv(path)
                return path.read_bytes()

        if self._reports >= MAX_REPORTS:
            raise HTTPError(503, "another report is being made", {"retry-after": "2"})
        self._reports += 1
        try:
            body = await self._on_worker(build)
        except ValueError as error:  # an unknown type; the message is our own and names the known ones
            raise HTTPError(400, str(error)) from None
        finally:
            self._reports -= 1
        if not as_csv:
            return json_answer(request, body)
        name = f"uno-report-{datetime.now(UTC):%Y%m%d-%H%M}.csv"
        headers = {
            "content-type": "text/csv; charset=utf-8",
            "content-disposition": f'attachment; filename="{name}"',
        }
        return Answer(body, 200, headers)

    async def _on_worker(self, build: Callable[[], bytes]) -> bytes:
        """Run what takes long on one of uno's own threads; the application's are not borrowed."""
        try:
            return await asyncio.wrap_future(self._monitor.manager.workers.submit(build))
        except RuntimeError as error:
            if type(error).__name__ != "OverloadedError":
                raise
            raise HTTPError(503, "every worker thread is busy", {"retry-after": "2"}) from None

    # -- the application's own check -------------------------------------------------------------------

    def _gate(self, scope: Scope) -> ASGIApp:
        """FastAPI resolves ``dependencies``, then the request goes on. As far as they can see they run in the
        application: ``request.app``, its exception handlers and its dependency_overrides are the application's."""
        outer = scope.get("app")
        known = self._gates.get(id(outer))
        if known is None or known[0] is not outer:
            known = self._gates[id(outer)] = (outer, self._build_gate(outer))
        return known[1]

    def _build_gate(self, outer: Any) -> ASGIApp:
        from fastapi import FastAPI
        from starlette.responses import Response

        answer = self._answer

        class Onward(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await answer(scope, receive, send)

        gate = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
        gate.dependency_overrides = getattr(outer, "dependency_overrides", {})
        gate.exception_handlers.update(getattr(outer, "exception_handlers", {}))

        async def through() -> Response:
            return Onward()

        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        for path in ("", "/{path:path}"):
            gate.router.add_api_route(
                path,
                through,
                methods=methods,
                dependencies=list(self._dependencies or ()),
                response_class=Response,
                response_model=None,
            )
        inner = gate.build_middleware_stack()

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def safely(message: Message) -> None:
                if message["type"] == "http.response.start":  # also when a dependency has answered
                    present = {key.lower() for key, _ in message.get("headers", ())}
                    extra = [
                        pair
                        for pair in encoded({**HEADERS, "cache-control": "no-store"})
                        if pair[0] not in present
                    ]
                    message = {**message, "headers": [*message.get("headers", ()), *extra]}
                await send(message)

            own = dict(scope)
            own.setdefault("app", gate)
            own.pop("router", None)
            own.pop("route", None)
            await inner(own, receive, safely)

        return guarded
