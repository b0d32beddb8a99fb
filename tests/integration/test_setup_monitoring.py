"""Does one call give an application monitoring, and leave the application as it was?"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from tests.servers import free_port
from uno.core.monitoring.health import HealthRegistry
from uno.core.monitoring.integration import setup_monitoring
from uno.core.monitoring.resources import ResourceMonitor
from uno.core.resources import ResourceManager


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def make(**options: Any) -> tuple[FastAPI, ResourceMonitor]:
    """A small application with monitoring."""
    app = FastAPI()
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.05), enable_dashboard=False, **options)
    return app, monitor


@contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """``app`` on a real server in a thread; yields its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def get(url: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


# -- one call is enough --------------------------------------------------------------------------------

PROGRAM = """
import sqlalchemy
from concurrent.futures import ThreadPoolExecutor
from fastapi import FastAPI
from uno.core.monitoring.integration import setup_monitoring

app = FastAPI(title="shop")
engine = sqlalchemy.create_engine("sqlite://")
monitor = setup_monitoring(app)

@app.on_event("startup")
async def startup():
    app.state.pool = ThreadPoolExecutor(2)
    app.state.pool.submit(int)

@app.get("/ids")
def ids():
    return [r.id for r in monitor.manager]
"""


def test_setup_monitoring_alone(tmp_path: Path) -> None:
    program = "\n".join(line for line in PROGRAM.splitlines())
    (tmp_path / "shop.py").write_text(program)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "uvicorn", "shop:app", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def ids() -> list[str]:
            try:
                found: list[str] = json.loads(get(f"http://127.0.0.1:{port}/ids")[1])
                return found
            except OSError:
                return []

        until(
            lambda: (
                {"process", "process-files", "event-loop", "shop.engine", "shop.app.state.pool"} <= set(ids())
            )
        )
        status, body = get(f"http://127.0.0.1:{port}/health")
        assert status == 200
        assert "shop.engine:database" in json.loads(body)["checks"]
        assert get(f"http://127.0.0.1:{port}/monitoring/dashboard/api/snapshot")[0] == 401
        begun = time.monotonic()
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=10)
        assert time.monotonic() - begun < 3
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in output
    assert output.count("#token=") == 1, "the page's address is said once"


def test_it_returns_the_monitor_that_it_was_given() -> None:
    manager = ResourceManager()
    monitor = ResourceMonitor(manager)
    assert setup_monitoring(FastAPI(), resource_monitor=monitor, enable_dashboard=False) is monitor
    registry = HealthRegistry()
    app = FastAPI()
    setup_monitoring(app, monitor, enable_dashboard=False, health_registry=registry)
    assert len(registry.adapters) == 1
    with TestClient(app) as client:
        assert client.get("/monitoring/dashboard").status_code == 404


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((object(),), TypeError, "FastAPI or Starlette application, not object"),
        (
            (FastAPI(), ResourceManager()),
            TypeError,
            "resource_monitor= is a ResourceMonitor, not ResourceManager",
        ),
        ((FastAPI(), None, {"dashboard_path": "monitoring"}), ValueError, "begins with '/'"),
        ((FastAPI(), None, {"dashboard_path": "/"}), ValueError, "names something"),
        ((FastAPI(), None, {"health_path": ""}), ValueError, "health_path"),
        ((FastAPI(), None, {"health_path": 5}), ValueError, "health_path"),
        ((FastAPI(), None, {"health_path": "/x", "dashboard_path": "/x/"}), ValueError, "the same"),
        (
            (FastAPI(), None, {"health_registry": 5}),
            TypeError,
            "health_registry= is a HealthRegistry, not int",
        ),
        ((FastAPI(), None, {"dependencies": "x"}), TypeError, r"dependencies=\[Depends\(check\)\]"),
        ((FastAPI(), None, {"dependencies": [print]}), TypeError, r"dependencies=\[Depends\(check\)\]"),
        ((FastAPI(), None, {"dependencies": 5}), TypeError, r"dependencies=\[Depends\(check\)\]"),
    ],
)
def test_misuse(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(error, match=words):
        setup_monitoring(*positional, **options)


def test_twice_is_an_error_and_so_is_too_late() -> None:
    app, _ = make()
    with pytest.raises(ValueError, match="already"):
        setup_monitoring(app, enable_dashboard=False)
    late = FastAPI()
    with TestClient(late) as client:
        client.get("/")
        with pytest.raises(RuntimeError, match="started"):
            setup_monitoring(late, enable_dashboard=False)


# -- the application's own life ------------------------------------------------------------------------


def test_its_own_lifespan_is_kept() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.append(f"startup running={monitor.running}")
        yield {"from": "lifespan"}
        events.append(f"shutdown running={monitor.running}")

    app = FastAPI(lifespan=lifespan)
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.05), enable_dashboard=False)

    @app.get("/state")
    def state(request: Request) -> str:
        return str(request.state["from"] if hasattr(request.state, "__getitem__") else "")

    assert not monitor.running
    for _ in range(2):  # the application may be started again
        with TestClient(app) as client:
            assert monitor.running
            assert client.get("/state").json() == "lifespan"
            until(lambda: client.get("/health").json()["checks"])
        assert not monitor.running
    assert events == ["startup running=True", "shutdown running=True"] * 2
    assert [t.name for t in threading.enumerate() if t.name == "uno-monitor"] == []


def test_the_last_of_several_applications_stops_the_monitor() -> None:
    monitor = ResourceMonitor(interval=0.05)
    shop, office = FastAPI(), FastAPI()
    for app in (shop, office):
        setup_monitoring(app, monitor, enable_dashboard=False)
    with TestClient(shop) as client:
        with TestClient(office):
            assert monitor.running
        assert monitor.running, "the shop is still open"
        assert client.get("/health").status_code == 200
    assert not monitor.running


def test_a_failure_at_startup_is_the_applications_own() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no configuration")
        yield

    app = FastAPI(lifespan=lifespan)
    monitor = setup_monitoring(app, ResourceMonitor(), enable_dashboard=False)
    with pytest.raises(LookupError, match="no configuration"), TestClient(app):
        pass
    assert not monitor.running


def test_a_failure_at_shutdown_stops_the_monitor_too() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise LookupError("too late")

    app = FastAPI(lifespan=lifespan)
    monitor = setup_monitoring(app, ResourceMonitor(), enable_dashboard=False)
    with pytest.raises(LookupError, match="too late"), TestClient(app):
        assert monitor.running
    assert not monitor.running


def test_a_monitor_that_cannot_start_does_not_keep_the_application_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = make()
    app.add_api_route("/", lambda: "fine")

    def refuse(self: threading.Thread) -> None:
        if self.name == "uno-monitor":
            raise RuntimeError("can't start new thread")
        start(self)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.ERROR, "uno"), TestClient(app) as client:
        assert client.get("/").json() == "fine"
        assert client.get("/health").status_code == 200
    assert "goes on without it" in caplog.text


# -- where it is served --------------------------------------------------------------------------------


def test_root_path() -> None:
    app = FastAPI()
    setup_monitoring(
        app, ResourceMonitor(interval=0.05), token="t" * 24, dashboard_path="/monitoring/dashboard"
    )
    app.add_api_route("/apiary", lambda: "bees")
    with TestClient(app, root_path="/api") as client:
        for prefix in ("", "/api"):  # a proxy that strips the prefix, and one that does not
            assert client.get(f"{prefix}/health").status_code == 200
            assert client.get(f"{prefix}/monitoring/dashboard/api/snapshot").status_code == 401
        assert client.get("/apiary").json() == "bees"
        assert client.get("/apihealth").status_code == 404


def test_mounted_in_another_application() -> None:
    inner, monitor = make()
    inner.add_api_route("/orders/{id}", lambda id: id)
    outer = FastAPI()
    outer.mount("/shop", inner)
    try:
        with TestClient(outer) as client:
            assert not monitor.running, "no lifespan comes through a mount"
            assert client.get("/shop/orders/7").json() == "7"
            assert monitor.running
            assert client.get("/shop/health").status_code == 200
            assert client.get("/health").status_code == 404
    finally:
        monitor.stop()


def test_an_application_with_a_mounted_one() -> None:
    app, _ = make()
    inner = FastAPI()
    inner.add_api_route("/health", lambda: "the inner one's own")
    app.mount("/inner", inner)
    with TestClient(app) as client:
        assert client.get("/inner/health").json() == "the inner one's own"
        assert client.get("/health").headers["content-type"] == "application/health+json"


OWN_HEALTH = PlainTextResponse("own")


@pytest.mark.parametrize("how", ["route", "router", "parameter", "post", "mount", "later"])
def test_the_applications_routes_win(how: str, caplog: pytest.LogCaptureFixture) -> None:
    app, _ = make()
    router = APIRouter()

    async def own() -> PlainTextResponse:
        return PlainTextResponse("own")

    with caplog.at_level(logging.WARNING, "uno"), TestClient(app) as client:
        if how == "later":
            assert client.get("/health").status_code == 200
        if how in ("route", "later"):
            app.add_api_route("/health", own)
        elif how == "router":
            router.add_api_route("/", own)
            router.add_api_route("/{any}", own)
            app.include_router(router, prefix="/health")
            app.include_router(APIRouter(routes=[Route("/health", lambda request: PlainTextResponse("own"))]))
        elif how == "parameter":
            app.add_api_route("/{name}th", own)
        elif how == "mount":
            app.mount("/health", Starlette(routes=[Route("/", lambda request: PlainTextResponse("own"))]))
        else:
            app.add_api_route("/health", own, methods=["POST"])
        if how == "post":
            assert client.get("/health").status_code == 405
            assert client.post("/health").text == "own"
        else:
            assert client.get("/health").text == "own"
            assert client.get("/health").text == "own"
    assert caplog.text.count("route of its own at /health") == 1


class Wrapped:
    """An ASGI middleware as most are."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("how", ["fastapi", "routes", "wrapped", "nested", "host", "tenant"])
def test_routes_of_what_is_mounted_at_the_root_win(how: str, caplog: pytest.LogCaptureFixture) -> None:
    paths = ("/health", "/dashboard/", "/monitoring/dashboard/")
    inner = Starlette(routes=[Route(path, lambda request: OWN_HEALTH) for path in paths])
    fastapi = FastAPI()
    for path in paths:
        fastapi.add_api_route(path, lambda: OWN_HEALTH, response_model=None)
    mounted: dict[str, Any] = {
        "fastapi": Mount("/", fastapi),
        "routes": Mount("/", routes=inner.routes),
        "wrapped": Mount("/", Wrapped(Wrapped(inner))),
        "nested": Mount("", routes=[Mount("/", inner)]),
        "host": Host("{any}server", inner),
        "tenant": Mount("/{tenant}", inner),
    }
    app = Starlette(routes=[mounted[how]])
    setup_monitoring(app, ResourceMonitor(interval=0.05))
    with caplog.at_level(logging.WARNING, "uno"), TestClient(app) as client:
        if how != "tenant":
            assert client.get("/health").text == "own"
            assert "route of its own at /health" in caplog.text
        assert client.get("/monitoring/dashboard").text == "own"  # after a redirect
        assert client.get("/monitoring/dashboard/").text == "own"
        assert client.get("/monitoring/dashboard/api/snapshot").status_code == 401
        if how == "host":
            other = client.get("/health", headers={"host": "other.example"})
            assert other.headers["content-type"] == "application/health+json"


def test_routes_below_the_dashboard_win() -> None:
    app = FastAPI()
    router = APIRouter()
    router.add_api_route("/dashboard/mine", lambda: "mine")
    router.add_api_route("/other", lambda: "other")
    app.include_router(router, prefix="/monitoring")
    setup_monitoring(app, ResourceMonitor(interval=0.05))
    with TestClient(app) as client:
        assert client.get("/monitoring/dashboard/mine").json() == "mine"
        assert client.get("/monitoring/other").json() == "other"
        assert client.get("/monitoring/dashboard/api/snapshot").status_code == 401
        assert client.get("/monitoring/dashboards").status_code == 404


@pytest.mark.parametrize("how", ["route", "static", "parameter", "mounted", "nested", "host", "tenant"])
def test_a_catch_all_takes_neither_health_nor_page(how: str, tmp_path: Path) -> None:
    app = FastAPI()
    (tmp_path / "index.html").write_text("the single-page application")
    if how == "route":
        app.add_api_route("/{path:path}", lambda path: path)
    elif how == "parameter":
        app.add_api_route("/{page}", lambda page: page)
    elif how == "mounted":
        inner = FastAPI()
        inner.add_api_route("/{path:path}", lambda path: path)
        app.mount("/", inner)
    elif how == "nested":
        app.mount("/", Starlette(routes=[Mount("/", StaticFiles(directory=tmp_path, html=True))]))
    elif how == "host":
        app.router.routes.append(Host("testserver", StaticFiles(directory=tmp_path, html=True)))
    elif how == "tenant":
        app.mount("/{tenant}", Starlette(routes=[Route("/", lambda request: PlainTextResponse("tenant"))]))
    else:
        app.mount("/", StaticFiles(directory=tmp_path, html=True))
    setup_monitoring(app, ResourceMonitor(interval=0.05))
    with TestClient(app) as client:
        assert client.get("/health").headers["content-type"] == "application/health+json"
        assert client.get("/monitoring/dashboard/api/snapshot").status_code == 401
        if how in ("static", "nested", "host"):
            assert "single-page" in client.get("/").text
        elif how == "tenant":
            assert client.get("/anything/").text == "tenant"
        else:
            assert client.get("/anything").json() == "anything"


def test_starlette() -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/hello", hello), Mount("/sub", routes=[Route("/health", hello)])])
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.05), enable_dashboard=False)
    with TestClient(app) as client:
        assert monitor.running
        assert client.get("/hello").text == "hello"
        assert client.get("/sub/health").text == "hello"
        assert client.get("/health").status_code == 200
    assert not monitor.running


def test_websockets_pass() -> None:
    app, _ = make()

    @app.websocket("/health")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    with TestClient(app) as client, client.websocket_connect("/health") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"


def test_exceptions_pass_unchanged() -> None:
    app, _ = make()
    error = LookupError("of the application")

    @app.get("/fail")
    def fail() -> None:
        raise error

    with TestClient(app) as client, pytest.raises(LookupError) as caught:
        client.get("/fail")
    assert caught.value is error


@pytest.mark.parametrize("before", [True, False])
def test_beside_other_middleware(before: bool) -> None:
    app = FastAPI()

    async def stamp(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["x-stamp"] = "yes"
        return answer

    if before:
        app.add_middleware(BaseHTTPMiddleware, dispatch=stamp)
    monitor = setup_monitoring(app, ResourceMonitor(interval=0.05), enable_dashboard=False)
    if not before:
        app.add_middleware(BaseHTTPMiddleware, dispatch=stamp)
    pool = ThreadPoolExecutor(1)
    monitor.manager.register(pool, id="pool")

    @app.get("/orders/{id}")
    async def order(id: int) -> int:
        return await asyncio.wrap_future(pool.submit(int, id))

    with TestClient(app) as client:
        answer = client.get("/orders/5")
        assert answer.json() == 5
        assert answer.headers["x-stamp"] == "yes"
        assert client.get("/health").headers.get("x-stamp") == (None if before else "yes")
        assert callers(monitor, "pool") == {"GET /orders/{id}"}
    pool.shutdown()


# -- health --------------------------------------------------------------------------------------------


def test_health_says_down_and_up_again() -> None:
    app, monitor = make()
    working = True

    class Broker:
        def get_statistics(self) -> dict[str, float]:
            return {"depth": 1}

        def ping(self) -> bool:
            if not working:
                raise ConnectionRefusedError("amqp://user:hunter2@broker")
            return True

    with TestClient(app) as client:
        monitor.manager.register(Broker(), id="broker")
        until(
            lambda: (
                client.get("/health").json()["checks"].get("broker:custom", [{}])[0].get("status") == "pass"
            )
        )
        for job in monitor.collection.jobs.values():  # pings are rare; ask for one now
            job.every = job.every and 0.05
            job.not_before = 0.0
        working = False
        until(lambda: client.get("/health").status_code == 503, 15)
        answer = client.get("/health")
        (line,) = answer.json()["checks"]["broker:custom"]
        assert (line["status"], line["observedValue"], line["output"]) == (
            "fail",
            "down",
            "ConnectionRefusedError",
        )
        assert "hunter2" not in answer.text
        head = client.head("/health")
        assert (head.status_code, head.content) == (503, b"")
        assert head.headers["content-length"] == str(len(client.get("/health").content))
        assert client.post("/health").status_code == 405
        working = True
        until(lambda: client.get("/health").status_code == 200)
        assert answer.headers["cache-control"] == "no-store"


def test_a_request_touches_no_resource() -> None:
    app, monitor = make()
    release = threading.Event()
    asked: list[str] = []

    class Hung:
        def get_statistics(self) -> dict[str, float]:
            asked.append(threading.current_thread().name)
            release.wait()
            return {}

        async def ping(self) -> bool:
            asked.append("loop")
            await asyncio.sleep(3_600)
            return True

    with TestClient(app) as client:
        monitor.manager.register(Hung(), id="hung")
        until(lambda: len(asked) == 2)
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            client.get("/health")
            times.append(time.perf_counter() - begun)
        assert sorted(times)[10] < 0.05
        assert set(asked) == {"uno-worker", "loop"}
        release.set()


def test_the_applications_own_checks_run_again_after_a_restart() -> None:
    registry = HealthRegistry()
    registry.register("disk", lambda: True, interval=0.05)
    app = FastAPI()
    setup_monitoring(app, ResourceMonitor(interval=0.05), enable_dashboard=False, health_registry=registry)
    for _ in range(2):
        with TestClient(app) as client:
            first = time_of(client)
            until(lambda first=first: time_of(client) != first)  # type: ignore[misc]
        assert [t.name for t in threading.enumerate() if t.name == "uno-health"] == []


def time_of(client: TestClient) -> Any:
    checks = client.get("/health").json()["checks"]
    return next((lines[0].get("time") for name, lines in checks.items() if name.startswith("disk")), None)


# -- on whose behalf -----------------------------------------------------------------------------------


def callers(monitor: ResourceMonitor, id: str) -> set[str]:
    stat = monitor.stat_of(monitor.manager.get(id))
    return set() if stat is None else set(stat.callers)


def test_routes_are_named_by_their_template(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite", connect_args={"check_same_thread": False})
    app, monitor = make()
    monitor.manager.register(engine, id="db")

    def query() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("select 1")).scalar_one())

    @app.get("/orders/{id}")
    def order(id: int) -> int:  # in Starlette's thread pool
        return query()

    @app.post("/orders")
    async def orders() -> int:
        return query()

    nested = APIRouter(prefix="/nested")
    nested.add_api_route("/{name}", lambda name: query())
    router = APIRouter()
    router.include_router(nested)
    app.include_router(router, prefix="/v1")
    inner = FastAPI()
    inner.add_api_route("/items/{item}", lambda item: query())
    app.mount("/sub", inner)
    app.mount("/tenants/{tenant}", inner)

    @app.websocket("/live/{channel}")
    async def live(socket: WebSocket, channel: str) -> None:
        await socket.accept()
        query()
        await socket.close()

    with TestClient(app) as client:
        until(lambda: monitor.store.frame is not None)
        for n in range(3):
            assert client.get(f"/orders/{n}").json() == 1
            assert client.get(f"/v1/nested/name{n}").json() == 1
            assert client.get(f"/sub/items/{n}").json() == 1
            assert client.get(f"/tenants/acme{n}/items/i{n}").json() == 1
        client.post("/orders")
        with client.websocket_connect("/live/7"):
            pass
        assert {name for name in callers(monitor, "db") if not name.startswith("uno")} == {
            "GET /orders/{id}",
            "POST /orders",
            "GET /v1/nested/{name}",
            "GET /sub/items/{item}",
            "GET /tenants/{tenant}/items/{item}",
            "WEBSOCKET /live/{channel}",
        }
    engine.dispose()


def test_on_a_real_server(tmp_path: Path) -> None:
    app, monitor = make()
    app.mount("/", StaticFiles(directory=tmp_path))
    with served(app) as address:
        assert get(f"{address}/health")[0] == 200
        assert get(f"{address}/health", "HEAD") == (200, b"")
        assert get(f"{address}/nothing")[0] == 404
        until(lambda: "event-loop" in monitor.manager)
        until(lambda: monitor.read("event-loop", "lag") is not None)
    assert not monitor.running
    assert os.getpid()
