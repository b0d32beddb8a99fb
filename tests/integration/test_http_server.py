"""Are an application's requests measured by route, once each, to the end of their answers, and nothing else?"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from tests.integration.test_setup_monitoring import get, served, until
from uno.core.monitoring.http_server import HTTPServerMiddleware
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resource_types.http_server import ServerTarget
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import DuplicateResourceError

DURATION = "http.server.request.duration"


def make(app: Any = None, **options: Any) -> tuple[Any, ResourceMonitor]:
    """An application whose monitor ticks when the test says so."""
    app = FastAPI() if app is None else app
    monitor = setup_monitoring(app, ResourceMonitor(interval=3_600), enable_dashboard=False, **options)
    return app, monitor


def counts(monitor: ResourceMonitor, id: str = "http-server") -> dict[str, int]:
    """How many requests were recorded, by "method route status error"."""
    monitor.tick()
    names = ("http.request.method", "http.route", "http.response.status_code", "error.type")
    return {
        " ".join(reading.labels[name] for name in names if name in reading.labels): int(
            reading.stats["count"] or 0
        )
        for reading in monitor.series(id, DURATION)
    }


def seconds(monitor: ResourceMonitor, route: str) -> float:
    monitor.tick()
    return sum(
        reading.stats["sum"] or 0.0
        for reading in monitor.series("http-server", DURATION)
        if reading.labels["http.route"] == route
    )


def active(monitor: ResourceMonitor) -> dict[str, float | None]:
    monitor.tick()
    readings = monitor.series("http-server", "active_requests")
    return {reading.labels["http.request.method"]: reading.stats["value"] for reading in readings}


# -- routes --------------------------------------------------------------------------------------------


def test_routes_methods_and_statuses() -> None:
    app, monitor = make()

    @app.get("/orders/{id}")
    def order(id: int) -> int:
        return id

    @app.post("/orders", status_code=201)
    async def orders() -> None: ...

    with TestClient(app) as client:
        for n in range(3):
            assert client.get(f"/orders/{n}").status_code == 200
        client.post("/orders")
        client.get("/orders/x")
        client.put("/orders")
        client.request("BREW", "/orders")
        client.get("/docs")
        client.get("/health")
        assert counts(monitor) == {
            "GET /orders/{id} 200": 3,
            "POST /orders 201": 1,
            "GET /orders/{id} 422": 1,
            "PUT /orders 405": 1,
            "_OTHER /orders 405": 1,
            "GET /docs 200": 1,
        }
        assert set(active(monitor).values()) == {0.0}


def test_head_is_a_request_of_its_own() -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app, monitor = make(Starlette(routes=[Route("/hello/{name}", hello)]))
    with served(app) as address:
        assert get(f"{address}/hello/you", "HEAD") == (200, b"")
        assert get(f"{address}/hello/you") == (200, b"hello")
        assert counts(monitor) == {"HEAD /hello/{name} 200": 1, "GET /hello/{name} 200": 1}


def test_a_flood_of_unknown_paths_and_methods_is_one_series_each() -> None:
    app, monitor = make()
    with TestClient(app) as client:
        for n in range(300):
            client.get(f"/wp-admin/{n}?q={n}")
            client.request(f"METHOD{n}", f"/{n}")
        assert counts(monitor) == {"GET unmatched 404": 300, "_OTHER unmatched 404": 300}
        assert set(active(monitor)) == {"GET", "_OTHER"}


@pytest.mark.parametrize("outer", [FastAPI, Starlette])
def test_below_mounts(outer: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("x")
    inner = FastAPI()
    inner.add_api_route("/items/{item}", lambda item: item)
    deep = Starlette(routes=[Mount("/v{version:int}", app=inner)])
    app = outer()
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.mount("/tenants/{tenant}", inner)
    app.mount("/deep", deep)
    app, monitor = make(app)
    with TestClient(app) as client:
        for n in range(30):
            assert client.get(f"/tenants/acme{n}/items/i{n}").status_code == 200
            assert (
                client.get(f"/deep/v00{n}/items/{n}").status_code == 200
            )  # the converted value is another text
            assert client.get(f"/tenants/t{n}/nothing{n}").status_code == 404
        client.get("/static/a.css")
        client.get("/static/none.css")
        client.get("/tenants/acme/docs")
        assert counts(monitor) == {
            "GET /tenants/{tenant}/items/{item} 200": 30,
            "GET /deep/v{version}/items/{item} 200": 30,
            "GET /tenants/{tenant}/{path} 404": 30,
            "GET /static/{path} 200": 1,
            "GET /static/{path} 404": 1,
            "GET /tenants/{tenant}/docs 200": 1,
        }


def test_included_routers_hosts_and_root_path() -> None:
    app = FastAPI()
    nested = APIRouter(prefix="/nested")
    nested.add_api_route("/{name}", lambda name: name)
    router = APIRouter()
    router.include_router(nested)
    app.include_router(router, prefix="/v1")

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app.router.routes.append(Host("{sub}.example.org", Starlette(routes=[Route("/h/{x}", hello)])))
    app, monitor = make(app)
    with TestClient(app, root_path="/proxy") as client:
        client.get("/v1/nested/a")
        client.get("/proxy/v1/nested/b")
        assert client.get("/h/1", headers={"host": "a.example.org"}).text == "hello"
        assert counts(monitor) == {"GET /v1/nested/{name} 200": 2, "GET /h/{x} 200": 1}


def test_a_middleware_that_copies_the_scope_hides_no_route() -> None:
    class Copying:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)

    app = FastAPI()
    app.add_api_route("/orders/{id}", lambda id: id)
    app.add_middleware(Copying)
    app, monitor = make(app)
    with TestClient(app) as client:
        client.get("/orders/1")
        client.get("/nothing")
        assert counts(monitor) == {"GET /orders/{id} 200": 1, "GET unmatched 404": 1}


def test_what_older_routers_tell_is_enough() -> None:
    """Starlette before 1.0 puts the endpoint into the scope, and no route."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = endpoint
        await PlainTextResponse("x")(scope, receive, send)

    async def endpoint(request: Request) -> None: ...

    answer.routes = [Mount("/a", routes=[Route("/b/{c}", endpoint)])]  # type: ignore[attr-defined]
    monitor = ResourceMonitor(interval=3_600)
    TestClient(HTTPServerMiddleware(answer, monitor)).get("/a/b/c")
    assert counts(monitor) == {"GET /a/b/{c} 200": 1}


# -- how long, how it ended ------------------------------------------------------------------------------


def test_a_stream_is_timed_to_its_end_and_background_tasks_are_not() -> None:
    app, monitor = make()
    finished = threading.Event()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(5):
                await asyncio.sleep(0.05)
                yield b"x"

        return StreamingResponse(chunks())

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> None:
        async def work() -> None:
            await asyncio.sleep(0.4)
            finished.set()

        tasks.add_task(work)

    with served(app) as address:
        assert get(f"{address}/stream")[1] == b"xxxxx"
        assert seconds(monitor, "/stream") >= 0.25
        assert get(f"{address}/later")[0] == 200
        assert finished.wait(5)
        assert seconds(monitor, "/later") < 0.4
        assert active(monitor) == {"GET": 0.0}


class SoldOutError(Exception):
    """Of the application."""


def test_exceptions_and_server_errors() -> None:
    app, monitor = make()

    @app.get("/raises")
    def raises() -> None:
        raise SoldOutError("secret-7")

    @app.get("/builtin")
    async def builtin() -> None:
        raise LookupError

    @app.get("/unavailable")
    def unavailable() -> PlainTextResponse:
        return PlainTextResponse("", 503)

    @app.get("/halfway")
    async def halfway() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x"
            raise SoldOutError

        return StreamingResponse(chunks())

    @app.get("/background")
    def background(tasks: BackgroundTasks) -> None:
        tasks.add_task(raises)

    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("raises", "builtin", "unavailable", "background"):
            client.get(f"/{path}")
        client.get("/halfway")
        where = f"{SoldOutError.__module__}.SoldOutError"
        found = counts(monitor)
        assert found.pop("GET /background 200") == 1
        halfway_key = next(key for key in found if "/halfway" in key)
        assert halfway_key.startswith("GET /halfway 200 ")
        assert found.pop(halfway_key) == 1
        assert found == {
            f"GET /raises 500 {where}": 1,
            "GET /builtin 500 LookupError": 1,
            "GET /unavailable 503 503": 1,
        }
        assert active(monitor) == {"GET": 0.0}
        assert monitor.read("http-server", "errors", stat="total") == 4
        assert monitor.read("http-server", "error_rate") == pytest.approx(4 / 5)
        explained = monitor._explain("http-server", "uno.http.server.error_ratio")
        assert "GET /raises" in explained
        assert "secret" not in explained


def test_the_cause_is_what_fails_now(monkeypatch: pytest.MonkeyPatch) -> None:
    app, monitor = make()

    @app.get("/{name}")
    def serve(name: str) -> PlainTextResponse:
        return PlainTextResponse("", 503)

    def cause() -> str:
        monitor.tick()  # takes what was recorded
        monitor.tick()
        return monitor._explain("http-server", "error_rate")

    later = 0.0
    monkeypatch.setattr(f"{ServerTarget.__module__}.monotonic", lambda: time.monotonic() + later)
    with TestClient(app) as client:
        monitor.tick()
        for _ in range(3):
            client.get("/old")
        assert cause() == "3 x 503 in GET /{name}"
        later = 1_000.0
        assert cause() == ""
        client.get("/old")
        assert cause() == "1 x 503 in GET /{name}"


def test_a_client_that_leaves_is_no_fault() -> None:
    app, monitor = make()
    started = threading.Event()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                started.set()
                yield b"x" * 1_000
                await asyncio.sleep(0.01)

        return StreamingResponse(chunks())

    @app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    with served(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
            assert started.wait(5)
            until(lambda: active(monitor) == {"GET": 1.0})
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
            until(lambda: active(monitor).get("POST") == 1.0)
        until(lambda: active(monitor) == {"GET": 0.0, "POST": 0.0})
        found = counts(monitor)
        assert found.pop("GET /stream 200 incomplete_response") == 1
        assert found == {"POST /upload client_disconnect": 1} or set(found) == {
            "POST /upload 500 client_disconnect"
        }
        assert monitor.read("http-server", "errors", stat="total") == 0


def test_a_cancelled_request() -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3_600)

    monitor = ResourceMonitor(interval=3_600)
    app = HTTPServerMiddleware(hang, monitor, route=lambda scope: "/hang")

    async def main() -> None:
        task = asyncio.create_task(app({"type": "http", "method": "GET"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert counts(monitor) == {"GET /hang cancelled": 1}
    assert active(monitor) == {"GET": 0.0}


def test_websockets_and_lifespan_are_no_requests() -> None:
    app, monitor = make()

    @app.websocket("/live/{channel}")
    async def live(socket: WebSocket, channel: str) -> None:
        await socket.accept()
        await socket.send_text(channel)
        await socket.close()

    with TestClient(app) as client:
        with client.websocket_connect("/live/7") as socket:
            assert socket.receive_text() == "7"
        assert counts(monitor) == {}
        assert active(monitor) == {}


def test_trailers_and_files_sent_by_path() -> None:
    monitor = ResourceMonitor(interval=3_600)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "trailers": scope["path"] == "/t"})
        if scope["path"] == "/t":
            await send({"type": "http.response.body", "body": b"x"})
            assert len(recorded()) == 0
            await send({"type": "http.response.trailers", "headers": []})
        else:
            await send({"type": "http.response.pathsend", "path": "/x"})
        assert len(recorded()) == 1

    def recorded() -> dict[str, int]:
        return {key: n for key, n in counts(monitor).items() if key.startswith(f"GET {path} ")}

    async def send(message: Any) -> None: ...

    app = HTTPServerMiddleware(answer, monitor, route=lambda scope: str(scope["path"]))
    for path in ("/t", "/p"):
        asyncio.run(app({"type": "http", "method": "GET", "path": path}, None, send))  # type: ignore[arg-type]
    assert counts(monitor) == {"GET /t 200": 1, "GET /p 200": 1}


# -- around it -----------------------------------------------------------------------------------------


def test_off() -> None:
    app, monitor = make(http_metrics=False)
    with TestClient(app) as client:
        client.get("/x")
    assert "http-server" not in monitor.manager


def test_two_applications_are_two_resources() -> None:
    first, monitor = make()
    second = FastAPI()
    setup_monitoring(second, monitor, enable_dashboard=False)
    third = FastAPI()
    setup_monitoring(third, monitor, enable_dashboard=False, http_metrics="admin")
    with pytest.raises(DuplicateResourceError):
        setup_monitoring(FastAPI(), monitor, enable_dashboard=False, http_metrics="admin")
    with pytest.raises(TypeError, match="http_metrics"):
        setup_monitoring(FastAPI(), monitor, http_metrics=5)  # type: ignore[arg-type]
    first.mount("/second", second)
    second.add_api_route("/x", lambda: 1)
    with TestClient(first) as client, TestClient(third) as other:
        assert client.get("/second/x").status_code == 200
        other.get("/y")
        assert counts(monitor) == {"GET /second/x 200": 1}, "measured once, by the outer one"
        assert counts(monitor, "http-server-2") == {}
        assert counts(monitor, "admin") == {"GET unmatched 404": 1}


def test_setting_up_too_late_leaves_nothing_behind() -> None:
    monitor = ResourceMonitor()
    app = FastAPI()
    with TestClient(app) as client:
        client.get("/")
        with pytest.raises(RuntimeError, match="started"):
            setup_monitoring(app, monitor, enable_dashboard=False)
    assert list(monitor.manager) == []


def test_misuse() -> None:
    with pytest.raises(TypeError, match="ResourceMonitor"):
        HTTPServerMiddleware(FastAPI(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="route="):
        HTTPServerMiddleware(FastAPI(), ResourceMonitor(), route="/x")  # type: ignore[arg-type]


def test_a_route_function_that_fails_does_not_reach_the_application() -> None:
    monitor = ResourceMonitor(interval=3_600)

    def route(scope: Any) -> str:
        raise ZeroDivisionError

    app = HTTPServerMiddleware(PlainTextResponse("fine"), monitor, route=route)
    assert TestClient(app).get("/").text == "fine"
    assert active(monitor) == {"GET": 0.0}


def test_concurrent_requests_are_all_counted() -> None:
    """Over a real server and from many threads at once, each with an event loop of its own."""
    app, monitor = make()

    @app.get("/slow/{n}")
    async def slow(n: int) -> int:
        await asyncio.sleep(0.001 * (n % 5))
        return n

    @app.get("/thread/{n}")
    def thread(n: int) -> int:
        return n

    def local(_: int) -> None:
        async def main() -> None:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                await asyncio.gather(*(client.get(f"/slow/{n}") for n in range(100)))

        asyncio.run(main())

    def remote(address: str) -> None:
        for n in range(100):
            get(f"{address}/thread/{n}")

    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            monitor.tick()

    with served(app) as address, ThreadPoolExecutor(8) as pool:
        ticking = pool.submit(tick)
        jobs = [pool.submit(local, n) for n in range(3)]
        jobs += [pool.submit(remote, address) for _ in range(3)]
        for job in jobs:
            job.result()
        stop.set()
        ticking.result()
        assert counts(monitor) == {"GET /slow/{n} 200": 300, "GET /thread/{n} 200": 300}
        assert active(monitor) == {"GET": 0.0}


def test_beside_base_http_middleware() -> None:
    app = FastAPI()

    async def dispatch(request: Request, call_next: Any) -> Any:
        if "blocked" in request.url.path:
            return PlainTextResponse("", 403)
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_api_route("/a/{b}", lambda b: b)
    app, monitor = make(app)
    with TestClient(app) as client:
        client.get("/a/b")
        client.get("/blocked/1")
        client.get("/blocked/2")
        assert counts(monitor) == {"GET /a/{b} 200": 1, "GET unmatched 403": 2}


def test_the_map_the_report_and_alerts_know_routes() -> None:
    app = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.1), enable_dashboard=False)
    pool = ThreadPoolExecutor(1)
    monitor.manager.register(pool, id="pool")

    @app.get("/orders/{id}")
    async def order(id: int) -> int:
        return await asyncio.wrap_future(pool.submit(int, id))

    def edge() -> Any:
        graph = monitor.generate_dependency_graph()
        edges = {(e.source, e.target): e for e in graph.edges}
        return edges.get(("http-server", "caller GET /orders/{id}"))

    with TestClient(app) as client:
        begun = time.monotonic()
        while not ((found := edge()) and found.rate):
            assert time.monotonic() - begun < 10
            client.get("/orders/5")
        assert found.calls > 0
        assert found.errors == 0
        graph = monitor.generate_dependency_graph()
        assert {"caller GET /orders/{id}", "pool"} <= graph.downstream("http-server")
        assert "GET /orders/{id}" in graph.to_svg()
        rows = monitor.generate_report(resource_type="http_server").rows
        assert any(row.labels.get("http.route") == "/orders/{id}" for row in rows)
        assert monitor.health_of("http-server").status.value in ("up", "unknown")
    pool.shutdown()
