"""How long do the requests of a web application take, by route?

One ASGI middleware, which ``setup_monitoring`` adds to FastAPI and Starlette; any other ASGI application is
wrapped by hand: ``app = HTTPServerMiddleware(app, monitor)``. The route is asked for when the request is over,
for by then the application's own router has found it: nothing is matched twice. Paths are never recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import CallScope, failures, scope
from uno.core.monitoring.metrics import GaugeCell, HistogramCell
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types.http_server import METHODS, OTHER, ServerTarget
from uno.core.resources import Resource

__all__ = ["HTTPServerMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

UNMATCHED = "unmatched"
#: A request that an outer middleware of the same monitor measures already.
MARK = "uno.http_server"
_KEPT = 1_000
_ODD = 50
_DEEP = 8
_REST = "/{path}"
TRAILERS = "trailers"
_NEW = object.__new__


class Routes:
    """The templates of an application's routes ("/orders/{id}"), with the prefix of what they are mounted below."""

    def __init__(
        self,
        routes: Callable[[], Sequence[Any]] = tuple,
        route: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self.routes = routes
        self._given, self._simple = route, route is None
        self._prefixes: dict[str, str] = {}
        self._odd = 0
        self._endpoints: dict[int, tuple[Any, list[str]]] = {}
        self._counted = -1

    def template(self, scope_: Scope, answered: bool = False) -> str | None:
        """The template of the route that took the request; None when none did, as far as can be told.

        ``answered``: that something gave an answer although the scope shows no route, so it is worth a look.
        """
        route = scope_.get("route")
        if route is not None and self._simple and "app_root_path" not in scope_ and "fastapi" not in scope_:
            try:
                return route.path_format  # type: ignore[no-any-return]
            except AttributeError:
                pass
        if self._given is not None:
            return self._given(scope_)
        if "fastapi" in scope_:  # FastAPI keeps the prefix of an included router beside the route
            included = scope_["fastapi"].get("effective_route_context")
            if included is not None and (
                included.original_route is route or getattr(route, "path", None) is None
            ):
                route = included.starlette_route or included
        if "app_root_path" not in scope_:
            if route is not None:
                return _path(route)
            if "endpoint" in scope_:  # a Starlette before 1.0, or a plain route of a FastAPI application
                return self._of_endpoint(scope_["endpoint"], "")
            return self._by_path(self.routes(), scope_) if answered else None
        prefix = self._prefix(scope_)  # below a mount
        endpoint = scope_.get("endpoint")
        if route is None or _is_mount(route):
            found = None if endpoint is None else self._of_endpoint(endpoint, prefix)
            return found or prefix + _REST
        return prefix + (_path(route) or _REST)

    def _prefix(self, scope_: Scope) -> str:
        root, outer = scope_.get("root_path", ""), scope_["app_root_path"]
        inner = root[len(outer) :] if root.startswith(outer) else ""
        if not inner:
            return ""
        known = self._prefixes.get(inner)
        if known is None:
            known = _mounted(self.routes(), inner + "/", 0)
            if known is None:  # below something that does not show its routes
                values = {str(value): f"{{{key}}}" for key, value in scope_.get("path_params", {}).items()}
                known = "/".join(values.get(part, part) for part in inner.split("/"))
                self._odd += 1
                if self._odd > _ODD:
                    return "/{mount}"
            if len(self._prefixes) >= _KEPT:
                self._prefixes.clear()
            self._prefixes[inner] = known
        return known

    def _of_endpoint(self, endpoint: Any, prefix: str) -> str | None:
        routes = self.routes()
        known = self._endpoints.get(id(endpoint))
        if known is None and self._counted != len(routes):
            found: dict[int, tuple[Any, list[str]]] = {}
            for each, template in _endpoints(routes, "", 0):
                found.setdefault(id(each), (each, []))[1].append(template)
            self._endpoints, self._counted = found, len(routes)
            known = found.get(id(endpoint))
        if known is None or known[0] is not endpoint:
            return None
        return next((template for template in known[1] if template.startswith(prefix)), None)

    def _by_path(self, routes: Sequence[Any], scope_: Scope) -> str | None:
        """Where a middleware in between handed a copy of the scope on: as the router does it, once more."""
        probe = {**scope_, "path_params": {}}
        probe.pop("fastapi", None)
        for route in effective(routes):
            matches = getattr(route, "matches", None)
            if matches is None:
                continue
            match, _ = matches(probe)
            if getattr(match, "name", "") == "FULL":
                return _path(route)
        return None


def effective(routes: Sequence[Any]) -> Iterator[Any]:
    """The routes as requests meet them: those of FastAPI's included routers with their prefix."""
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)
        if included is None:
            yield route
        else:
            yield from (context.starlette_route or context for context in included())


def _path(route: Any) -> str | None:
    return getattr(route, "path_format", None) or getattr(route, "path", None)


def _is_mount(route: Any) -> bool:
    return not hasattr(route, "endpoint") and hasattr(route, "routes")


def _mounted(routes: Sequence[Any], path: str, depth: int) -> str | None:
    """The template of the mounts that lead to ``path``, which ends with a slash."""
    if depth > _DEEP:
        return None
    for route in effective(routes):
        if not _is_mount(route):
            continue
        regex = getattr(route, "path_regex", None)
        if regex is None:  # a Host
            found = _mounted(route.routes or (), path, depth + 1)
            if found is not None:
                return found
            continue
        match = regex.match(path)
        if match is None:
            continue
        prefix, rest = route.path_format.removesuffix(_REST), "/" + match["path"]
        if rest == "/":
            return str(prefix)
        found = _mounted(route.routes or (), rest, depth + 1)
        if found is not None:
            return str(prefix) + found
    return None


def _endpoints(routes: Sequence[Any], prefix: str, depth: int) -> Iterator[tuple[Any, str]]:
    for route in effective(routes):
        path = _path(route)
        if _is_mount(route):
            if depth < _DEEP:
                inner = "" if path is None else path.removesuffix(_REST)
                yield from _endpoints(route.routes or (), prefix + inner, depth + 1)
        elif path is not None and getattr(route, "endpoint", None) is not None:
            yield route.endpoint, prefix + path


class RouteScope(CallScope):
    """The route on whose behalf code runs; it is known once the application's router has run."""

    __slots__ = ("_routes", "_scope")

    def __init__(self, scope_: Scope, routes: Routes) -> None:
        self._name, self._make = "", None
        self._scope, self._routes = scope_, routes

    @property
    def name(self) -> str:
        """ "GET /orders/{id}"; the template, never the path itself, which is without bound."""
        if not self._name:
            here = self._scope
            method = here.get("method", "WEBSOCKET")
            if method not in METHODS and method != "WEBSOCKET":
                method = OTHER
            template = self._routes.template(here)
            if template is None:
                endpoint = here.get("endpoint")
                if endpoint is None:
                    return f"{method} (no route yet)"
                template = getattr(endpoint, "__qualname__", type(endpoint).__name__)
            self._name = f"{method} {template}"
        return self._name


class Server:
    """Measures the requests of one application. ``resource`` is what they belong to."""

    def __init__(
        self, monitor: ResourceMonitor, routes: Routes, *, id: str | None = None, name: str | None = None
    ) -> None:
        self.monitor, self.routes = monitor, routes
        self.target = ServerTarget()
        self.resource: Resource = monitor.manager.register(self.target, id=id, name=name)
        for family in self.target.families:
            monitor.store.attach(self.resource.id, family)
        #: found before: (method as recorded, gauge) by method, durations by method, route and status
        self.methods: dict[str, tuple[str, GaugeCell]] = {}
        self.cells: dict[tuple[str, str | None, int], HistogramCell] = {}

    def begin(self, scope_: Scope, send: Send) -> Exchange | None:
        """A request comes. None when it is not to be measured here: not twice, and not when FastAPI's telemetry tells
        us of it."""
        monitor = self.monitor
        if MARK in scope_ and scope_[MARK] is monitor:
            return None
        if "fastapi.telemetry" in scope_ and _tells(scope_.get("app"), monitor):
            return None
        scope_[MARK] = monitor
        exchange = _NEW(Exchange)  # calling the class takes longer than all that follows
        exchange._name = ""
        exchange._scope, exchange._server, exchange._send = scope_, self, send
        exchange.status = 0
        exchange.ended = exchange.more = False
        name = scope_["method"]
        exchange.method, exchange._active = self.methods.get(name) or self.method(name)
        exchange._active.value += 1
        exchange._began = perf_counter()
        return exchange

    def method(self, name: str) -> tuple[str, GaugeCell]:
        """The method as it is recorded, and the gauge of its requests in progress."""
        found = self.target.method(name)
        if found[0] != OTHER:
            self.methods[name] = found
        return found

    def cell(self, key: tuple[str, str | None, int]) -> HistogramCell:
        """The durations of a method, a route and a status below 500."""
        method, template, status = key
        cell = self.target.answered.labels(method, template or UNMATCHED, str(status))
        if len(self.cells) < _KEPT:
            self.cells[key] = cell
        return cell

    def record_failure(self, exchange: Exchange, seconds: float, error: BaseException | None) -> None:
        """Take one request that failed, or that ended without a whole answer."""
        template = self.routes.template(exchange._scope, True) or UNMATCHED
        status, method = exchange.status, exchange.method
        left = status and isinstance(error, OSError)  # what ASGI servers raise on a closed connection
        if left or type(error).__name__ == "ClientDisconnect":
            kind = "client_disconnect"
        elif error is not None and not isinstance(error, Exception):
            kind = "cancelled"  # or the interpreter ends
        elif error is not None:
            kind = _kind(error)
            status = status or 500  # which the server will answer
        elif status >= 500 and exchange.ended:
            kind = str(status)
        elif status:  # a stream that the client left, with most servers
            kind = "incomplete_response"
        else:
            kind, status = "no_response", 500
        if status:
            cell = self.target.failed.labels(method, template, str(status), kind)
        else:
            cell = self.target.unanswered.labels(method, template, kind)
        cell.add(seconds)


class Exchange(RouteScope):
    """One request and its answer, timed from its arrival to the end of the answer's body.

    ``send`` stands in for the server's. What runs after the answer, such as background tasks, does not count.
    """

    __slots__ = (
        "_active", "_began", "_send", "_server", "ended", "method", "more", "status",
    )  # fmt: skip

    _active: GaugeCell
    _began: float
    _send: Send
    _server: Server
    ended: bool
    method: str
    more: Any  #: whether the answer comes in several parts; TRAILERS when it ends with these
    status: int

    @property
    def _routes(self) -> Routes:  # type: ignore[override]
        return self._server.routes

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on; not a coroutine function, which saves one for each message."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            if message.get("trailers"):
                self.more = TRAILERS
        elif kind == "http.response.body":
            if self.more:
                if self.more is True and not message.get("more_body"):
                    return self._last(message)
            elif message.get("more_body"):
                self.more = True
            else:  # the whole answer in one message: its end is when the server has it
                self.ended = True
                self.end(None)
        elif (kind == "http.response.trailers" and not message.get("more_trailers")) or (
            kind == "http.response.pathsend" and not self.more
        ):
            return self._last(message)
        return self._send(message)

    async def _last(self, message: Message) -> None:
        """Pass on the last part: the answer ends when the server has taken it from a slow client's hands."""
        await self._send(message)
        if not self.ended:
            self.ended = True
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The answer is complete (``ended``), or there will be none."""
        seconds = perf_counter() - self._began
        self._active.value -= 1
        server, status = self._server, self.status
        try:
            if self.ended and 0 < status < 500:
                key = (self.method, server.routes.template(self._scope, status < 300), status)
                (server.cells.get(key) or server.cell(key)).observe(seconds)
            else:
                server.record_failure(self, seconds, error)
        except Exception as failure:  # noqa: BLE001 - never into the application
            failures("http_server", failure)

    def abort(self, error: BaseException | None) -> None:
        """The application returned, or raised, before its answer was complete."""
        if not self.ended:
            self.end(error)
            self.ended = True


class HTTPServerMiddleware:
    """Measures the requests of any ASGI application; ``setup_monitoring`` does it for FastAPI and Starlette.

    ``resource_id`` names the application among the resources ("http-server", then "http-server-2" by default).
    ``route`` gives the template of a request's route from its ASGI scope when the request is over, where the
    application is of neither framework; None stands for no route. What is neither is recorded as "unmatched".

    The monitor is started and stopped by whoever made it. Raises TypeError for what is no ResourceMonitor, and
    what ``ResourceManager.register`` raises for a bad or a taken id.
    """

    def __init__(
        self,
        app: ASGIApp,
        resource_monitor: ResourceMonitor,
        *,
        resource_id: str | None = None,
        route: Callable[[Scope], str | None] | None = None,
    ) -> None:
        if not isinstance(resource_monitor, ResourceMonitor):
            raise TypeError(f"resource_monitor= is a ResourceMonitor, not {type(resource_monitor).__name__}")
        if route is not None and not callable(route):
            raise TypeError(f"route= is a function of the ASGI scope, not {type(route).__name__}")
        self.app = app
        self._routes = Routes(lambda: getattr(app, "routes", ()), route)
        self._server = Server(resource_monitor, self._routes, id=resource_id)

    async def __call__(self, scope_: Scope, receive: Receive, send: Send) -> None:
        kind = scope_["type"]
        exchange = self._server.begin(scope_, send) if kind == "http" else None
        if exchange is not None:
            token = scope.set(exchange)
            try:
                await self.app(scope_, receive, exchange.send)
            except BaseException as error:
                exchange.abort(error)
                raise
            finally:
                scope.reset(token)
                if not exchange.ended:
                    exchange.abort(None)
        elif kind in ("http", "websocket"):
            token = scope.set(RouteScope(scope_, self._routes))
            try:
                await self.app(scope_, receive, send)
            finally:
                scope.reset(token)
        else:
            await self.app(scope_, receive, send)


def _kind(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _tells(app: Any, monitor: ResourceMonitor) -> bool:
    """Whether FastAPI's own telemetry records an application's requests into ``monitor``."""
    telemetry = getattr(app, "_native_telemetry", None)
    config = getattr(telemetry, "config", None) or {}
    if not config.get("metrics", True):
        return False
    provider = config.get("meter_provider") or getattr(telemetry, "_provider", None)
    if provider is None and "opentelemetry.metrics" in sys.modules:
        provider = sys.modules["opentelemetry.metrics"].get_meter_provider()
    return getattr(provider, "resource_monitor", None) is monitor
