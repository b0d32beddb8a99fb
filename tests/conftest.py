"""Which fixtures does every test have? Real servers, and a real browser.

A server is started once, when a test first asks for it. A test may freeze, kill or restart it: after the
test it is brought back. Where a program is missing the test is skipped with the name of the package; with
CI=true it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests import servers
from tests.upstream import HttpServer, Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser

S = TypeVar("S", bound=servers.Server)


def _run(make: Callable[[], S]) -> Iterator[S]:
    server = servers.required(make)
    try:
        yield server
    finally:
        server.close()


def _lend(server: S) -> Iterator[S]:
    yield server
    server.recover()


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[servers.PostgreSQL]:
    yield from _run(servers.PostgreSQL)


@pytest.fixture
def postgresql(_postgresql: servers.PostgreSQL) -> Iterator[servers.PostgreSQL]:
    """A PostgreSQL server; ``url`` begins with ``postgresql://`` and carries a password."""
    yield from _lend(_postgresql)


@pytest.fixture(scope="session")
def _mariadb() -> Iterator[servers.MariaDB]:
    yield from _run(servers.MariaDB)


@pytest.fixture
def mariadb(_mariadb: servers.MariaDB) -> Iterator[servers.MariaDB]:
    """A MariaDB server with the database ``shop``; ``url`` carries a password."""
    yield from _lend(_mariadb)


@pytest.fixture(scope="session")
def _mongodb() -> Iterator[servers.MongoDB]:
    yield from _run(servers.MongoDB)


@pytest.fixture
def mongodb(_mongodb: servers.MongoDB) -> Iterator[servers.MongoDB]:
    """A server that speaks MongoDB's protocol; ``url`` carries a password."""
    yield from _lend(_mongodb)


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[servers.Redis]:
    yield from _run(servers.Redis)


@pytest.fixture
def redis_server(_redis_server: servers.Redis) -> Iterator[servers.Redis]:
    """A Redis server without a password."""
    yield from _lend(_redis_server)


@pytest.fixture(scope="session")
def _redis_with_password() -> Iterator[servers.Redis]:
    yield from _run(lambda: servers.Redis(password=servers.PASSWORD))


@pytest.fixture
def redis_with_password(_redis_with_password: servers.Redis) -> Iterator[servers.Redis]:
    """A Redis server that asks for a password, which ``url`` carries."""
    yield from _lend(_redis_with_password)


@pytest.fixture(scope="session")
def _redis_cluster() -> Iterator[servers.RedisCluster]:
    cluster = servers.required(servers.RedisCluster)
    yield cluster
    cluster.close()


@pytest.fixture
def redis_cluster(_redis_cluster: servers.RedisCluster) -> Iterator[servers.RedisCluster]:
    """Three Redis servers that share the keys."""
    yield _redis_cluster
    _redis_cluster.recover()


@pytest.fixture(scope="session")
def _rabbitmq() -> Iterator[servers.RabbitMQ]:
    yield from _run(servers.RabbitMQ)


@pytest.fixture
def rabbitmq(_rabbitmq: servers.RabbitMQ) -> Iterator[servers.RabbitMQ]:
    """A RabbitMQ server; ``url`` carries a password. Its first start takes some 5 s."""
    yield from _lend(_rabbitmq)


@pytest.fixture(scope="session")
def _managed_rabbitmq() -> Iterator[servers.ManagedRabbitMQ]:
    yield from _run(servers.ManagedRabbitMQ)


@pytest.fixture
def managed_rabbitmq(_managed_rabbitmq: servers.ManagedRabbitMQ) -> Iterator[servers.ManagedRabbitMQ]:
    """A RabbitMQ server with the management plug-in, whose address is ``management``."""
    yield from _lend(_managed_rabbitmq)


@pytest.fixture(scope="session")
def _nats_server() -> Iterator[servers.NATS]:
    yield from _run(servers.NATS)


@pytest.fixture
def nats_server(_nats_server: servers.NATS) -> Iterator[servers.NATS]:
    """A NATS server with JetStream; ``url`` carries a password."""
    yield from _lend(_nats_server)


@pytest.fixture(scope="session")
def _mosquitto() -> Iterator[servers.Mosquitto]:
    yield from _run(servers.Mosquitto)


@pytest.fixture
def mosquitto(_mosquitto: servers.Mosquitto) -> Iterator[servers.Mosquitto]:
    """An MQTT broker that asks for a password."""
    yield from _lend(_mosquitto)


@pytest.fixture
def upstream() -> Iterator[str]:
    """The URL of an HTTP server in this process; the paths that it knows are in ``tests.upstream``."""
    Upstream.gate.clear()
    server = Upstream()
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def _http_server() -> Iterator[HttpServer]:
    yield from _run(HttpServer)


@pytest.fixture
def http_server(_http_server: HttpServer) -> Iterator[HttpServer]:
    """An HTTP server in a process of its own, to be frozen and killed."""
    yield from _lend(_http_server)


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
