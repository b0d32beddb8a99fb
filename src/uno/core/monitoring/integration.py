"""How does a web application get monitoring? ``setup_monitoring(app)`` is enough.

Everything enters the application as one ASGI middleware: it starts and stops the monitor with the application's
own lifespan, answers the dashboard's and the health endpoint's paths, and names the route on whose behalf
resources are used. The application's routes are not touched, and win where they are the same.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.exporters.prometheus import PrometheusExporter, as_collector
from uno.core.monitoring.exporters.prometheus.asgi import application
from uno.core.monitoring.health import MEDIA_TYPE, HealthRegistry, ResourceHealthAdapter
from uno.core.monitoring.http_server import (
    ASGIApp,
    Message,
    Receive,
    Routes,
    RouteScope,
    Scope,
    Send,
    Server,
    effective,
)
from uno.core.monitoring.instrumentation import scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.sampler import running_loop
from uno.core.resources.errors import shown

if TYPE_CHECKING:
    from fastapi import APIRouter

    from uno.core.monitoring.exporters.otlp.push import OtlpExporter

__all__ = [
    "MonitoringMiddleware",
    "RoutedExporter",
    "as_collector",
    "setup_monitoring",
    "setup_otlp_exporter",
    "setup_prometheus_exporter",
]

log = logging.getLogger("uno.integration")


class RoutedExporter(PrometheusExporter):
    """The Prometheus exporter with its web forms: a FastAPI router, or a plain ASGI application."""

    @property
    def router(self) -> APIRouter:
        """To be included under a prefix: ``app.include_router(exporter.router, prefix="/metrics")``."""
        from fastapi import APIRouter, HTTPException, Request, Response

        router = APIRouter()

        async def scrape(request: Request) -> Response:
            accept = ",".join(request.headers.getlist("accept"))
            accept_encoding = ",".join(request.headers.getlist("accept-encoding"))
            try:
                parts, headers = await self.respond_in_loop(accept_encoding, accept, request.url.query)
            except ValueError:
                raise HTTPException(400, "too many parameters") from None
            length = {"content-length": str(sum(map(len, parts)))}
            body = b"" if request.method == "HEAD" else b"".join(parts)
            return Response(body, headers=headers | length)

        scrape.__annotations__ = {"request": Request, "return": Response}
        router.add_api_route(
            "", scrape, methods=["GET", "HEAD"], include_in_schema=False, response_model=None
        )
        return router

    @property
    def app(self) -> ASGIApp:
        """The same as an ASGI application, for any framework: ``app.mount("/metrics", exporter.app)``."""
        return application(self)


def setup_prometheus_exporter(
    resource_monitor: ResourceMonitor,
    *,
    created: bool = True,
    dotted_names: bool = False,
    prometheus_client: Any = True,
) -> RoutedExporter:
    """An exporter of all metrics of ``resource_monitor``; its ``router`` is a FastAPI APIRouter.

    ``created=False`` leaves out OpenMetrics' ``_created`` lines. ``dotted_names=True`` sends standard names with
    their dots to readers that take UTF-8 names. ``prometheus_client=False`` leaves out what the application keeps in
    that library; a registry of yours may be given instead. TypeError for what is no ResourceMonitor.
    """
    if not isinstance(resource_monitor, ResourceMonitor):
        raise TypeError(
            f"setup_prometheus_exporter takes a ResourceMonitor, not {type(resource_monitor).__name__}"
        )
    if not (isinstance(prometheus_client, bool) or callable(getattr(prometheus_client, "collect", None))):
        raise TypeError(
            f"prometheus_client= is True, False or a CollectorRegistry, not {type(prometheus_client).__name__}"
        )
    return RoutedExporter(
        resource_monitor, created=created, dotted_names=dotted_names, prometheus_client=prometheus_client
    )


def setup_otlp_exporter(
    resource_monitor: ResourceMonitor,
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
) -> OtlpExporter:
    """Push all metrics of ``resource_monitor`` by OTLP/HTTP from now on: to a collector, or any receiver of OTLP.

    What is not given is taken from the ``OTEL_*`` variables, else from the specification: ``endpoint``
    http://localhost:4318 (a URL without a path gets /v1/metrics), ``protocol`` "http/protobuf" or "http/json",
    ``compression`` "none" or "gzip", ``timeout`` of a request 10 s, ``interval`` 60 s, ``temporality`` "cumulative",
    "delta" or "lowmemory", ``histograms`` "explicit_bucket_histogram" or "base2_exponential_bucket_histogram" for
    those that have both. Times are seconds. The files of certificates are PEM.

    Pushing ends, after a last flush, with the monitor or the program. Raises TypeError and ValueError for bad
    arguments; bad variables are told in the log, and the default is used. No header's value is ever shown.
    """
    from uno.core.monitoring.exporters.otlp.config import configure
    from uno.core.monitoring.exporters.otlp.push import OtlpExporter

    if not isinstance(resource_monitor, ResourceMonitor):
        raise TypeError(f"setup_otlp_exporter takes a ResourceMonitor, not {type(resource_monitor).__name__}")
    config = configure(
        endpoint,
        headers=headers,
        protocol=protocol,
        compression=compression,
        timeout=timeout,
        interval=interval,
        temporality=temporality,
        histograms=histograms,
        certificate=certificate,
        client_certificate=client_certificate,
        client_key=client_key,
        resource_attributes=resource_attributes,
        service=resource_monitor.service,
    )
    exporter = OtlpExporter(resource_monitor, config)
    exporter.start()
    return exporter


def setup_monitoring(
    app: Any,
    resource_monitor: ResourceMonitor | None = None,
    *,
    enable_dashboard: bool = True,
    dashboard_path: str = "/monitoring/dashboard",
    health_path: str | None = "/health",
    health_registry: HealthRegistry | None = None,
    dependencies: Sequence[Any] | None = None,
    token: str | None = None,
    allow_anonymous: bool = False,
    http_metrics: bool | str = True,
) -> ResourceMonitor:
    """Monitor an application: dashboard, live stream, JSON API and health. Returns the monitor.

    Without ``resource_monitor``, one is made that discovers everything in the process. It starts and stops with the
    application. The dashboard asks for a token (``token``, else ``UNO_DASHBOARD_TOKEN``, else one that is made and
    printed once at the start); ``dependencies=[Depends(...)]`` replaces that by the application's own check, and
    ``allow_anonymous=True`` lets everybody in. ``health_path=None`` leaves the health endpoint out.

    Requests are timed by route, as a resource "http-server" (a second application is "http-server-2"; a text in
    ``http_metrics`` is another id). ``http_metrics=False`` leaves that out; so does FastAPI's own telemetry when it
    records into the same monitor.

    Raises TypeError for an argument of the wrong kind, ValueError for a bad path or when the application is
    set up already, RuntimeError when it has started.
    """
    if not callable(getattr(app, "add_middleware", None)):
        raise TypeError(
            f"setup_monitoring takes a FastAPI or Starlette application, not {type(app).__name__}"
        )
    if resource_monitor is not None and not isinstance(resource_monitor, ResourceMonitor):
        raise TypeError(f"resource_monitor= is a ResourceMonitor, not {type(resource_monitor).__name__}")
    if health_registry is not None and not isinstance(health_registry, HealthRegistry):
        raise TypeError(f"health_registry= is a HealthRegistry, not {type(health_registry).__name__}")
    if dependencies is not None and not (
        isinstance(dependencies, Sequence)
        and all(callable(getattr(depends, "dependency", None)) for depends in dependencies)
    ):
        raise TypeError("dependencies= is a sequence of FastAPI's Depends: dependencies=[Depends(check)]")
    if not isinstance(http_metrics, (bool, str)):
        raise TypeError(f"http_metrics= is True, False or a resource's id, not {type(http_metrics).__name__}")
    for name, flag in (("enable_dashboard", enable_dashboard), ("allow_anonymous", allow_anonymous)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}= is True or False, not {type(flag).__name__}")
    for name, path in (("dashboard_path", dashboard_path), ("health_path", health_path)):
        if path is not None and not (
            isinstance(path, str) and path.startswith("/") and path.strip("/") and not _NO_PATH.search(path)
        ):
            raise ValueError(
                f"{name} begins with '/' and names something, for example '/monitoring', not {shown(path)}"
            )
    if health_path is not None and health_path.rstrip("/") == dashboard_path.rstrip("/"):
        raise ValueError(f"health_path and dashboard_path are the same, {health_path!r}")
    if any(
        getattr(known, "cls", None) is MonitoringMiddleware for known in getattr(app, "user_middleware", ())
    ):
        raise ValueError("setup_monitoring was called for this application already")
    monitor = resource_monitor
    if monitor is None:
        monitor = ResourceMonitor(discover=True, service=getattr(app, "title", "") or None)
    if resource_monitor is None:
        from uno.core.monitoring.anomaly import AnomalyDetector

        monitor.set_anomaly_detector(AnomalyDetector())
    registry = HealthRegistry() if health_registry is None else health_registry
    if not registry.adapters:
        registry.register_adapter(ResourceHealthAdapter(monitor.manager, monitor))
    dashboard = None
    if enable_dashboard:
        from uno.core.monitoring.dashboard import Dashboard

        dashboard = Dashboard(
            monitor, token=token, dependencies=dependencies, allow_anonymous=allow_anonymous
        )
    routes = Routes(lambda: getattr(app, "routes", ()))
    server = None
    if http_metrics is not False:
        server = Server(monitor, routes, id=None if http_metrics is True else http_metrics)
    try:
        app.add_middleware(
            MonitoringMiddleware,
            monitor=monitor,
            registry=registry,
            health_path=None if health_path is None else health_path.rstrip("/"),
            dashboard=dashboard,
            dashboard_path=dashboard_path.rstrip("/"),
            routes=routes,
            server=server,
        )
    except RuntimeError:  # the application has started
        if server is not None:
            monitor.manager.unregister(server.resource)
        raise
    return monitor


def _takes(routes: Sequence[Any], scope_: Scope, depth: int = 0) -> bool:
    """Whether one of ``routes`` answers, by more than being a catch-all (``/{path:path}``, static files at ``/``).

    A path of parameters only is one as well. What is mounted below such a path, or for a host, is looked into.
    """
    for route in effective(routes):
        try:
            match, inner = route.matches(scope_)
        except Exception:  # noqa: BLE001 - a route of the application's own kind
            continue
        if getattr(match, "name", "NONE") == "NONE":
            continue
        template = getattr(route, "path", None)
        if isinstance(template, str) and _PARAMETER.sub("", template).strip("/"):
            return True
        if depth < _DEEP and _takes(_inside(route), {**scope_, **inner}, depth + 1):
            return True
    return False


def _inside(route: Any) -> Sequence[Any]:
    """The routes of the application that a Mount or a Host leads to, through middlewares around it."""
    if hasattr(route, "endpoint"):  # a single route
        return ()
    app = route
    for _ in range(_DEEP):
        routes = getattr(app, "routes", None)
        if isinstance(routes, Sequence) and routes:
            return routes
        app = getattr(app, "app", None)
    return ()


#: So many mounts, or middlewares, within each other are looked into.
_DEEP = 8
_PARAMETER = re.compile(r"\{[^}]*\}")
#: What the path of a request never holds, or where it would be a parameter.
_NO_PATH = re.compile(r"[\s\x00-\x1f?#{}\\]|//")


class MonitoringMiddleware:
    """See the module."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        monitor: ResourceMonitor,
        registry: HealthRegistry,
        health_path: str | None,
        dashboard: Any,
        dashboard_path: str,
        routes: Routes,
        server: Server | None = None,
    ) -> None:
        self._app = app
        self._monitor, self._registry = monitor, registry
        self._health_path, self._dashboard, self._dashboard_path = health_path, dashboard, dashboard_path
        self._routes, self._server = routes, server
        #: What paths of uno's own begin with.
        self._own = (
            *(() if health_path is None else (health_path,)),
            *(() if dashboard is None else (dashboard_path,)),
        )
        self._said: set[str] = set()
        self._started = False

    async def __call__(self, scope_: Scope, receive: Receive, send: Send) -> None:
        kind = scope_["type"]
        if kind == "lifespan":
            await self._lifespan(scope_, receive, send)
            return
        if kind not in ("http", "websocket"):
            await self._app(scope_, receive, send)
            return
        if not self._started:  # mounted somewhere, where no lifespan comes through
            self._start()
        if kind == "http":
            path = _below(scope_) if scope_.get("root_path") else scope_["path"]
            if path.startswith(self._own):
                answer = self._answer(path, scope_)
                if answer is not None:
                    await answer(scope_, receive, send)
                    return
            server = self._server
            exchange = None if server is None else server.begin(scope_, send)
            if exchange is not None:
                token = scope.set(exchange)
                try:
                    await self._app(scope_, receive, exchange.send)
                except BaseException as error:
                    exchange.abort(error)
                    raise
                finally:
                    scope.reset(token)
                    if not exchange.ended:
                        exchange.abort(None)
                return
        token = scope.set(RouteScope(scope_, self._routes))
        try:
            await self._app(scope_, receive, send)
        finally:
            scope.reset(token)

    def _answer(self, path: str, scope_: Scope) -> ASGIApp | None:
        """What answers a path of uno's own; None for the application's."""
        base = self._dashboard_path
        if path == self._health_path:
            answer: ASGIApp = self._health
        elif self._dashboard is not None and (path == base or path.startswith(base + "/")):
            answer = self._to_dashboard
        else:
            return None
        return answer if self._is_ours(path, scope_) else None

    def _is_ours(self, path: str, scope_: Scope) -> bool:
        """Whether the application has no route of its own at ``path``; a catch-all is none."""
        probe = {**scope_, "path": path, "root_path": "", "path_params": {}}
        probe.pop("fastapi", None)
        slashed = {**probe, "path": path + "/"}  # where the application's router would redirect to
        routes = self._routes.routes()
        if not (_takes(routes, probe) or _takes(routes, slashed)):
            return True
        if path not in self._said and len(self._said) < 10:
            self._said.add(path)
            log.warning("the application has a route of its own at %s: uno's is not served there", path)
        return False

    def _start(self) -> None:
        self._started = True
        loop = running_loop()
        self._registry.open()
        self._registry.loop = loop
        if loop is not None:
            self._monitor.bind_loop(loop)
        try:
            self._monitor.start()
        except Exception:
            log.exception("monitoring could not start; the application goes on without it")
        if self._dashboard is not None:
            self._dashboard.announce(self._dashboard_path)

    async def _lifespan(self, scope_: Scope, receive: Receive, send: Send) -> None:
        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._monitor.applications.add(self)
                self._start()  # before the application's own startup, so that it sees what is made there
            return message

        async def sending(message: Message) -> None:
            if message["type"] in (
                "lifespan.shutdown.complete",
                "lifespan.shutdown.failed",
                "lifespan.startup.failed",
            ):
                self._stop()
            await send(message)

        await self._app(scope_, receiving, sending)

    def _stop(self) -> None:
        self._started = False
        try:
            if self._dashboard is not None:
                self._dashboard.close()
            self._registry.close()
            self._monitor.applications.discard(self)
            if not self._monitor.applications:
                self._monitor.stop()
        except Exception:
            log.exception("monitoring did not stop cleanly")

    async def _health(self, scope_: Scope, receive: Receive, send: Send) -> None:
        if scope_["method"] not in ("GET", "HEAD"):
            await _respond(send, 405, b"", {"allow": "GET, HEAD"})
            return
        report = self._registry.report()
        body = json.dumps(report.to_dict()).encode()
        headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
        await _respond(send, report.http_status, body, headers, head=scope_["method"] == "HEAD")

    async def _to_dashboard(self, scope_: Scope, receive: Receive, send: Send) -> None:
        root = scope_.get("root_path", "")
        inner = dict(scope_)
        # In ASGI the path includes the root path; a server behind a prefix-stripping proxy leaves it out.
        inner["path"] = root + _below(scope_)
        inner["root_path"] = root + self._dashboard_path
        await self._dashboard.app(inner, receive, send)


def _below(scope_: Scope) -> str:
    """The path below the root path."""
    path: str = scope_["path"]
    root: str = scope_.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


async def _respond(
    send: Send, status: int, body: bytes, headers: dict[str, str], *, head: bool = False
) -> None:
    pairs = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b"" if head else body})
