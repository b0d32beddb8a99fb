"""Which fixtures does every test have? Real servers, and a real browser.

A server is started once, when a test first asks for it. A test may freeze, kill or restart it: after the
test it is brought back. Where a program is missing the test is skipped with the name of the package; with
CI=true it fails.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

import pytest

from tests import servers
from tests.upstream import HttpServer, Upstream
from uno.core.monitoring.resources import ResourceMonitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _none_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """No monitor's hooks stay, for they would fail all tests after it: one that a failing test has left running is
    stopped, and one that was ticked by hand."""
    made: weakref.WeakSet[ResourceMonitor] = weakref.WeakSet()
    original = ResourceMonitor.__init__

    def init(self: ResourceMonitor, *args, **options) -> None:
        original(self, *args, **options)
        made.add(self)

    ResourceMonitor.__init__ = init  # type: ignore[method-assign]
    yield
    ResourceMonitor.__init__ = original  # type: ignore[method-assign]
    for monitor in list(made):
        if request.node.stash.get(_FAILED, False) or not monitor.running:
            monitor.stop()


class Recovering(Protocol):
    """A server, or several that belong together."""

    def recover(self) -> None: ...
    def close(self) -> None: ...


def _lent(name: str, make: Callable[[], Recovering], says: str) -> tuple[object, object]:
    """The fixture ``name``, a server that is brought back after each test, and that of the session, which runs it."""

    @pytest.fixture(scope="session", name=f"_{name}")
    def running() -> Iterator[Recovering]:
        server = servers.required(make)
        try:
            yield server
        finally:
            server.close()

    def lent(request: pytest.FixtureRequest) -> Iterator[Recovering]:
        server: Recovering = request.getfixturevalue(f"_{name}")
        yield server
        server.recover()

    lent.__doc__ = says
    return running, pytest.fixture(name=name)(lent)


_postgresql, postgresql = _lent(
    "postgresql",
    servers.PostgreSQL,
    "A PostgreSQL server; ``url`` begins with ``postgresql://`` and carries a password.",
)
_mariadb, mariadb = _lent(
    "mariadb", servers.MariaDB, "A MariaDB server with the database ``shop``; ``url`` carries a password."
)
_mongodb, mongodb = _lent(
    "mongodb", servers.MongoDB, "A server that speaks MongoDB's protocol; ``url`` carries a password."
)
_redis_server, redis_server = _lent("redis_server", servers.Redis, "A Redis server without a password.")
_redis_with_password, redis_with_password = _lent(
    "redis_with_password",
    lambda: servers.Redis(password=servers.PASSWORD),
    "A Redis server that asks for a password, which ``url`` carries.",
)
_redis_cluster, redis_cluster = _lent(
    "redis_cluster", servers.RedisCluster, "Three Redis servers that share the keys."
)
_rabbitmq, rabbitmq = _lent(
    "rabbitmq",
    servers.RabbitMQ,
    "A RabbitMQ server; ``url`` carries a password. Its first start takes some 5 s.",
)
_managed_rabbitmq, managed_rabbitmq = _lent(
    "managed_rabbitmq",
    servers.ManagedRabbitMQ,
    "A RabbitMQ server with the management plug-in, whose address is ``management``.",
)
_nats_server, nats_server = _lent(
    "nats_server", servers.NATS, "A NATS server with JetStream; ``url`` carries a password."
)
_mosquitto, mosquitto = _lent("mosquitto", servers.Mosquitto, "An MQTT broker that asks for a password.")
_http_server, http_server = _lent(
    "http_server", HttpServer, "An HTTP server in a process of its own, to be frozen and killed."
)


@pytest.fixture
def upstream() -> Iterator[str]:
    """The URL of an HTTP server in this process; the paths that it knows are in ``tests.upstream``."""
    Upstream.gate.clear()
    server = Upstream()
    yield server.url
    server.close()


@pytest.fixture
def prometheus() -> Iterator[Callable[..., servers.Prometheus]]:
    """Call it with a configuration (YAML) to start a Prometheus server that ends with the test."""
    started: list[servers.Prometheus] = []

    def start(config: str, **settings: str) -> servers.Prometheus:
        started.append(servers.required(lambda: servers.Prometheus(config, **settings)))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def victoria_metrics() -> Iterator[servers.VictoriaMetrics]:
    """A VictoriaMetrics server. It is in no stable Debian yet: where it cannot be brought, the test is skipped."""
    try:
        server = servers.VictoriaMetrics()
    except servers.Missing as missing:
        pytest.skip(str(missing))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def newer_prometheus() -> str:
    """The path of a Prometheus from 3.5 on; skips where apt cannot bring one."""
    try:
        return servers.from_newer_debian("prometheus", "usr/bin/prometheus")
    except servers.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return servers.required(lambda: servers.find_program("prometheus", "promtool"))


@pytest.fixture(scope="session")
def dot() -> str:
    """The path of Graphviz's dot."""
    return servers.required(lambda: servers.find_program("graphviz", "dot"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium."""
    return servers.required(lambda: servers.find_program("chromium", "chromium", "google-chrome"))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium, driven by Playwright, that reaches 127.0.0.1 and nothing else.

    It ends with the module, since Playwright's synchronous interface leaves its event loop marked as running
    in the main thread: until it ends, a test that needs a loop of its own fails. Keep those in other modules.
    """
    from playwright.sync_api import sync_playwright

    # Playwright itself switches off the sandbox (the pages are our own) and most of what calls home.
    arguments = [
        "--disable-gpu",
        "--disable-quic",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield chrome
        chrome.close()
