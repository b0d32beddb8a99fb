"""Are urllib3's pools and requests' sessions seen as they are: requests, outcomes, pools, waiting, leaks, faults?"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import requests.adapters
import urllib3

from tests.contract import kit
from tests.contract.kit import Watched
from tests.servers import PASSWORD, free_port, wait_until
from tests.upstream import HttpServer, Upstream
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import ResourceManager

FILE = "tests/contract/test_urllib3.py"
STATE = "http.connection.state"
ACTIVE, IDLE = {STATE: "active"}, {STATE: "idle"}
CREATE, USE, WAIT = "http.client.connection.create_time", "connection_use_time", "connection_wait_time"
PENDING, VAIN, RATIO = "connections_waiting", "connection_timeouts", "uno.http.client.error_ratio"
DISCARDED = "uno.http.client.connection.discarded"
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    assert kit.hooked("urllib3", "requests") == []
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        wait_until(lambda: {"Session.send", "PoolManager.urlopen"} <= set(hooked()), 5, "the hooks")
        yield monitor
    assert hooked() == []


def hooked() -> list[str]:
    return kit.hooked("urllib3", "requests")


class Client:
    """A manager, a pool or a session that opens two connections to a server and lets a third wait."""

    def __init__(self, kind: str, url: str) -> None:
        self.url, self.kind = url, kind
        self.target: Any
        if kind == "manager":
            self.target = urllib3.PoolManager(maxsize=2, block=True)
        elif kind == "pool":
            self.target = urllib3.connection_from_url(url, maxsize=2, block=True)
        else:
            self.target = requests.Session()
            self.target.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=2, pool_block=True))
        self.close: Callable[[], None] = self.target.clear if kind == "manager" else self.target.close

    def get(self, path: str, **options: Any) -> int:
        if self.kind == "session":
            return int(self.target.get(self.url + path, **options).status_code)
        where = path if self.kind == "pool" else self.url + path
        return int(self.target.request("GET", where, retries=options.pop("retries", 1), **options).status)

    def unread(self, path: str) -> Any:
        if self.kind == "session":
            return self.target.get(self.url + path, stream=True)
        where = path if self.kind == "pool" else self.url + path
        return self.target.request("GET", where, preload_content=False)


@pytest.fixture(params=["manager", "pool", "session"])
def client(request: pytest.FixtureRequest, upstream: str) -> Iterator[Client]:
    client = Client(request.param, upstream)
    yield client
    client.close()


@pytest.fixture
def api(monitor: ResourceMonitor, client: Client) -> Watched:
    return Watched(monitor, client.target)


def test_requests_and_connections(api: Watched, client: Client, upstream: str) -> None:
    place = upstream.removeprefix("http://")
    assert api.resource.type == "http_client"
    assert api.resource.endpoint == (place if client.kind == "pool" else None)
    for path in ("/200", "/200", "/404", "/503", "/moved", "/close"):
        client.get(path)
    api.until(6, "request_duration", "count")
    assert api.read("requests", "total", outcome="2xx") == 4
    assert api.read("requests", "total", outcome="4xx") == 1
    assert api.read("requests", "total", outcome="5xx") == 1
    assert api.read(WAIT, "count") == 7  # the redirect asks once more
    assert api.read(USE, "count") == 7
    assert api.read(CREATE, "count") == 1
    assert api.read("errors", "total") == 1
    client.get("/200")
    api.until(2, CREATE, "count")
    api.until(1, "connections", **IDLE)
    assert api.read("connections", **ACTIVE) == 0
    assert api.read("connections_max") == 2
    assert api.read(DISCARDED, "total") == 0
    assert api.driver.endpoints(client.target) == [place]
    assert api.explain(RATIO).endswith(f"in all; to {place}")
    assert kit.names_without_series(api) == set()
    assert kit.unknown(api) == set()


def test_the_wait_is_the_true_one(api: Watched, client: Client) -> None:
    took: list[float] = []

    def get(path: str) -> None:
        begun = time.perf_counter()
        client.get(path)
        took.append(time.perf_counter() - begun)

    holders = [threading.Thread(target=get, args=("/gate",), daemon=True) for _ in range(2)]
    for thread in holders:
        thread.start()
    api.until(1.0, "connection_pool_usage")
    waiting = threading.Thread(target=get, args=("/200",), name="checkout-1", daemon=True)
    waiting.start()
    api.until(1, PENDING)
    place = f"{FILE}:{client.get.__func__.__code__.co_firstlineno + (2 if client.kind == 'session' else 4)} in get"  # type: ignore[attr-defined]
    assert api.sites() == {place: 2}
    assert {h.caller for h in api.monitor.holders("it") if h.waiting} == {"thread checkout"}
    time.sleep(0.25)
    Upstream.gate.set()
    for thread in (*holders, waiting):
        thread.join()
    api.until(3, "request_duration", "count")
    true = took[-1] if took[-1] < min(took[:2]) else min(took)
    assert api.read(WAIT, "sum") == pytest.approx(true, abs=CLOSE)
    assert true > 0.25
    api.until(0, PENDING)
    api.until(0.0, "connection_pool_usage")


def test_a_wait_in_vain(monitor: ResourceMonitor, upstream: str) -> None:
    client = Client("pool", upstream)
    api = Watched(monitor, client.target)
    held = [client.unread("/large") for _ in range(2)]
    api.until(1.0, "connection_pool_usage")
    with pytest.raises(urllib3.exceptions.EmptyPoolError):
        client.get("/200", pool_timeout=0.1)
    api.until(1, VAIN, "total")
    api.until(0, PENDING)
    for response in held:
        response.release_conn()
    client.close()


def test_an_unread_answer_is_a_leak_with_a_name(api: Watched, client: Client) -> None:
    leaked = []

    def leak() -> None:
        leaked.append(client.unread("/large"))

    token = scope.set(CallScope("GET /checkout"))
    leak()
    scope.reset(token)
    api.until(0.5, "connection_pool_usage")
    api.until(0, "active_requests")
    assert " for GET /checkout (1, longest " in api.explain()
    assert next(iter(api.sites())).endswith("in unread")
    leaked[0].close()
    leaked.clear()
    gc.collect()
    # urllib3 itself gets a slot back only when the answer was read
    wait_until(lambda: api.sites() == {}, 5, "nobody holds it")
    if client.kind != "session":
        wait_until(lambda: "1 never returned, taken at " in api.explain(), 5, "it is told")
        assert "in unread" in api.explain()


def test_without_block_there_is_no_limit(monitor: ResourceMonitor, upstream: str) -> None:
    with urllib3.PoolManager(maxsize=1) as manager:
        api = Watched(monitor, manager)
        held = [manager.request("GET", f"{upstream}/large", preload_content=False) for _ in range(3)]
        api.until(3, "connections", **ACTIVE)
        assert kit.unknown(api) == {"uno.resource.utilization", "http.client.connection.max"}
        for response in held:
            response.drain_conn()
            response.release_conn()
        api.until(2, DISCARDED, "total")
        api.until(0, "connections", **ACTIVE)
        api.until(1, "connections", **IDLE)


def test_failures_and_secrets(monitor: ResourceMonitor, upstream: str) -> None:
    session = requests.Session()
    api = Watched(monitor, session)
    port = free_port()
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            session.get(f"http://bob:{PASSWORD}@127.0.0.1:{port}/?token={PASSWORD}")
    api.until(3, "requests", "total", outcome="ConnectionError")
    assert api.explain("uno.resource.errors").endswith(f"3 in all; to 127.0.0.1:{port}")
    wait_until(lambda: monitor.health_of("it").status is HealthStatus.DOWN, 10, "down")
    with pytest.raises(requests.ConnectionError):
        session.get(f"{upstream}/reset")
    with pytest.raises(requests.ReadTimeout):
        session.get(f"{upstream}/gate", timeout=0.1)
    api.until(1, "requests", "total", outcome="ReadTimeout")
    api.until(0, "connections", **ACTIVE)
    said = kit.everything_said(monitor)
    assert PASSWORD not in said
    assert "bob" not in said
    manager = urllib3.PoolManager()
    other = Watched(monitor, manager, "manager")
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        manager.request("GET", f"http://127.0.0.1:{port}/", retries=1)
    other.until(1, "requests", "total", outcome="NewConnectionError")  # what was behind it
    assert other.sites() == {}
    session.close()


def test_what_lives_already(upstream: str) -> None:
    client = Client("manager", upstream)
    held = client.unread("/large")
    with ResourceMonitor(ResourceManager(), interval=0.05) as monitor:
        api = Watched(monitor, client.target)
        wait_until(hooked, 5, "the hooks")
        api.until(1, "connections", **ACTIVE)
        held.drain_conn()
        held.release_conn()
        api.until(0, "connections", **ACTIVE)
        client.get("/200")
        api.until(1, USE, "count")
    client.close()


def test_one_resource_for_a_session_and_none_for_a_single_request(
    monitor: ResourceMonitor, upstream: str
) -> None:
    monitor.discover_resources("http_client")
    before = {r.id for r in monitor.manager}
    requests.get(f"{upstream}/200")
    with requests.Session() as session:
        for _ in range(3):
            session.get(f"{upstream}/200")
        wait_until(lambda: any(r.target is session for r in monitor.manager), 5, "found")
        monitor.discover_resources("http_client")
        assert [r.target for r in monitor.manager if r.id not in before] == [session]


@pytest.mark.parametrize("kind", ["manager", "session"])
def test_it_dies_when_dropped(monitor: ResourceMonitor, upstream: str, kind: str) -> None:
    def make() -> object:
        client = Client(kind, upstream)
        client.get("/200")
        client.close()
        return client.target

    kit.dies(monitor, make, "http_client")


def test_a_frozen_and_a_killed_server(monitor: ResourceMonitor, http_server: HttpServer) -> None:
    client = Client("session", http_server.url)
    api = Watched(monitor, client.target)
    client.get("/200")

    def is_(status: HealthStatus) -> bool:
        return monitor.health_of("it").status is status

    wait_until(lambda: is_(HealthStatus.UP), 10, "up")
    http_server.freeze()
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(client.get("/200")), name="shop-1", daemon=True)
    thread.start()
    wait_until(lambda: is_(HealthStatus.DEGRADED), 5, "the request that hangs")
    assert "1 running: thread shop" in api.explain("uno.http.client.oldest_request")
    assert not got
    http_server.thaw()
    thread.join()
    assert got == [200]
    http_server.kill()

    def fails() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            client.get("/200")
            return False
        return is_(HealthStatus.DOWN)

    wait_until(fails, 10, "down")
    http_server.start()
    wait_until(lambda: client.get("/200") == 200 and not is_(HealthStatus.DOWN), 5, "back")
    client.close()
