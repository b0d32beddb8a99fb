"""Are Redis clients seen as they are, sync and async: commands, pools, waiting, holders, the frozen and lost server?"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.exceptions

from tests import servers
from tests.contract.kit import soon as eventually
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.instrumentation import CallScope, Stat, scope
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.resources import Resource, ResourceManager

pytestmark = pytest.mark.server

DURATION, WAIT, USE = "command_duration", "connection_wait_time", "connection_use_time"
CREATE, PENDING, LIMIT = "db.client.connection.create_time", "connections_waiting", "connections_max"
IDLE, USED = {"db.client.connection.state": "idle"}, {"db.client.connection.state": "used"}
QUICK: dict[str, Any] = {"retry": None}


def soon(condition: Callable[[], object], what: str = "", seconds: float = 30) -> None:
    servers.wait_until(condition, seconds, what)


async def asoon(condition: Callable[[], object], what: str = "", seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture
def monitor() -> Iterator[ResourceMonitor]:
    with ResourceMonitor(ResourceManager(), interval=0.1) as monitor:
        soon(lambda: hasattr(redis.Redis.execute_command, "__uno_hook__"), "hooked")
        yield monitor


@pytest.fixture
def client(redis_server: servers.Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
async def aclient(redis_server: servers.Redis) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        yield client


def stat(monitor: ResourceMonitor, id: str = "cache") -> Stat:
    found = monitor.stat_of(monitor.manager.get(id))
    assert found is not None
    return found


def _seen_once(monitor: ResourceMonitor) -> bool:
    return monitor.read("cache", DURATION, stat="count") == 1


def explain(resource: Resource, metric: str = "uno.resource.utilization") -> str:
    return resource.driver.explain(resource.target, metric)  # type: ignore[union-attr]


def health(monitor: ResourceMonitor) -> HealthStatus:
    return monitor.health_of("cache").status


# -- commands ------------------------------------------------------------------------------------------


def test_commands_pipelines_and_the_pool(monitor: ResourceMonitor, client: redis.Redis) -> None:
    client.set("first", 1)  # before it is registered: the Stat is made by the hook
    resource = monitor.manager.register(client, id="cache")
    assert resource.type == "redis"
    for number in range(9):
        client.set("a", number)
    pipe = client.pipeline()
    pipe.get("a")
    pipe.get("a")
    assert pipe.execute() == [b"8", b"8"]
    assert pipe.execute() == []  # nothing to send: no command
    with client.pipeline() as watching:
        watching.watch("a")
        watching.get("a")
        watching.multi()
        watching.set("a", 1)
        watching.execute()
    soon(lambda: monitor.read("cache", DURATION, stat="count") == 14, "10 commands, 2 watched, 2 pipelines")
    assert monitor.read("cache", WAIT, stat="count") == 0, "the default pool makes nobody wait"
    assert monitor.read("cache", CREATE, stat="count") == 1
    assert monitor.read("cache", "connections", IDLE) == 1
    assert monitor.read("cache", "connections", USED) == 0
    assert monitor.read("cache", "errors", stat="total") == 0
    soon(lambda: health(monitor) is HealthStatus.UP, "a ping that was passive")


async def test_async_commands(monitor: ResourceMonitor, aclient: Any) -> None:
    resource = monitor.manager.register(aclient, id="cache")
    for number in range(5):
        await aclient.set("a", number)
    async with aclient.pipeline() as pipe:
        pipe.get("a")
        pipe.get("a")
        assert await pipe.execute() == [b"4", b"4"]
    await asoon(lambda: monitor.read("cache", DURATION, stat="count") == 6, "6 commands")
    assert monitor.read("cache", WAIT, stat="count") == 0
    assert monitor.read("cache", USE, stat="count") == 6
    assert monitor.read("cache", CREATE, stat="count") == 1
    assert resource.driver.bound_loop(aclient) is asyncio.get_running_loop()  # type: ignore[union-attr]
    assert (await resource.get_statistics())["total_queries"] == 6
    await asoon(lambda: health(monitor) is HealthStatus.UP)


def test_what_waits_on_purpose_is_not_slow(monitor: ResourceMonitor, client: redis.Redis) -> None:
    monitor.manager.register(client, id="cache")
    client.set("a", 1)
    assert client.blpop(["nothing"], timeout=0.3) is None
    assert client.xread({"stream": "$"}, block=300) in ([], {}, None)
    client.execute_command("brpop", "nothing", "0.2")
    client.xread({"stream": "$"})  # this one does not block
    with client.pubsub() as channel:
        channel.subscribe("news")
        channel.get_message(timeout=0.3)
    soon(lambda: stat(monitor).total.value == 5, "five commands")
    soon(lambda: monitor.read("cache", DURATION, stat="count") == 2, "of which two tell how fast it is")
    assert (monitor.read("cache", DURATION, stat="sum") or 1) < 0.1
    assert monitor.read("cache", "slow_queries", stat="total") == 0
    assert not stat(monitor).running


def test_slow_commands_name_their_line(monitor: ResourceMonitor, client: redis.Redis) -> None:
    resource = monitor.manager.register(client, id="cache")
    now = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2] "
    client.eval(now + "local till = now + 200000 repeat " + now + "until now > till", 0)
    soon(lambda: monitor.read("cache", "slow_queries", stat="total") == 1)
    assert "1 slow from" in explain(resource, "db.client.operation.duration")
    assert "test_redis.py" in explain(resource, "db.client.operation.duration")


def test_errors_by_type_and_who_called(monitor: ResourceMonitor, client: redis.Redis) -> None:
    resource = monitor.manager.register(client, id="cache")
    token = scope.set(CallScope("GET /cart"))
    try:
        client.set("text", "secret-value")
        with pytest.raises(redis.exceptions.ResponseError):
            client.lpush("text", "secret-value")
        with client.pipeline() as pipe:
            pipe.watch("text")
            client.set("text", 2)
            pipe.multi()
            pipe.set("text", 3)
            with pytest.raises(redis.exceptions.WatchError):
                pipe.execute()
    finally:
        scope.reset(token)
    soon(lambda: monitor.read("cache", "errors", stat="total") == 1, "a lost race is no error")
    said = explain(resource, "uno.resource.errors")
    assert "ResponseError" in said
    assert "secret" not in said
    by = stat(monitor).callers["GET /cart"]
    assert (by.calls.value, by.errors.value, by.timed.value) == (5, 1, 5)


# -- pools ---------------------------------------------------------------------------------------------


def test_a_blocking_pool_that_is_used_up(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    pool = redis.BlockingConnectionPool(max_connections=2, timeout=5, port=redis_server.port)
    client = redis.Redis(connection_pool=pool)
    resource = monitor.manager.register(client, id="cache")
    client.set("a", 1)
    time.sleep(0.01)  # places are looked up a thousand times a second at most
    held = [pool.get_connection() for _ in range(2)]
    waits: list[float] = []

    def wait() -> None:
        start = time.monotonic()
        connection = pool.get_connection()
        waits.append(time.monotonic() - start)
        pool.release(connection)

    soon(lambda: monitor.read("cache", WAIT, stat="count") == 3)
    before = monitor.read("cache", WAIT, stat="sum") or 0
    thread = threading.Thread(target=wait)
    thread.start()
    soon(lambda: monitor.read("cache", PENDING) == 1, "one waits")
    soon(lambda: monitor.read("cache", "connection_pool_usage") == 1.0)
    assert monitor.read("cache", LIMIT) == 2
    assert "2 of 2 connections held: " in explain(resource)
    assert "in <listcomp>" in explain(resource), explain(resource)
    assert [(holder.slots, holder.waiting) for holder in monitor.holders("cache")] == [(2, False), (1, True)]
    time.sleep(0.2)
    for connection in held:
        pool.release(connection)
    thread.join()
    soon(lambda: monitor.read("cache", PENDING) == 0)
    soon(lambda: monitor.read("cache", WAIT, stat="count") == 4)
    seen = (monitor.read("cache", WAIT, stat="sum") or 0) - before
    assert seen == pytest.approx(waits[0], abs=max(0.005, 0.02 * waits[0]))
    assert monitor.read("cache", "connection_timeouts", stat="total") == 0
    assert not stat(monitor).waiters
    assert not stat(monitor).holds
    pool.disconnect()


async def test_an_async_blocking_pool_that_is_used_up(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    pool = redis.asyncio.BlockingConnectionPool(max_connections=1, timeout=0.3, port=redis_server.port)
    client = redis.asyncio.Redis(connection_pool=pool)
    resource = monitor.manager.register(client, id="cache")
    await client.set("a", 1)
    await asyncio.sleep(0.01)  # places are looked up a thousand times a second at most
    held = await pool.get_connection()
    await asoon(lambda: monitor.read("cache", WAIT, stat="count") == 2)
    before = monitor.read("cache", WAIT, stat="sum") or 0

    async def use() -> float:
        start = time.monotonic()
        await pool.release(await pool.get_connection())
        return time.monotonic() - start

    waiting = asyncio.create_task(use())
    await asoon(lambda: monitor.read("cache", PENDING) == 1, "one waits")
    assert "test_redis.py" in explain(resource)
    with pytest.raises(redis.exceptions.ConnectionError):
        await waiting
    await asoon(lambda: monitor.read("cache", "connection_timeouts", stat="total") == 1)
    waiting = asyncio.create_task(use())
    await asyncio.sleep(0.2)
    await pool.release(held)
    truth = await waiting
    await asoon(
        lambda: monitor.read("cache", WAIT, stat="count") == 3, "the one in vain is a timeout, no wait"
    )
    seen = (monitor.read("cache", WAIT, stat="sum") or 0) - before
    assert seen == pytest.approx(truth, abs=max(0.005, 0.02 * truth))
    await pool.disconnect()


def test_the_default_pool_refuses(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    pool = redis.ConnectionPool(max_connections=1, port=redis_server.port)
    client = redis.Redis(connection_pool=pool)
    monitor.manager.register(client, id="cache")
    held = pool.get_connection()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.get("a")
    soon(lambda: monitor.read("cache", "connection_timeouts", stat="total") == 1)
    assert monitor.read("cache", "errors", stat="total") == 1
    pool.release(held)
    client.get("a")
    pool.disconnect()


def test_no_limit_is_unknown(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    pool = redis.ConnectionPool(max_connections=2**31 - 1, port=redis_server.port)
    client = redis.Redis(connection_pool=pool)
    monitor.manager.register(client, id="cache")
    client.get("a")
    soon(lambda: monitor.read("cache", DURATION, stat="count") == 1)
    assert monitor.read("cache", "connection_pool_usage") is None
    assert monitor.read("cache", LIMIT) is None
    soon(lambda: monitor.read("cache", "connections", IDLE) == 1, "idle once no ping has it")
    pool.disconnect()


# -- identity and life ---------------------------------------------------------------------------------


def test_endpoint_without_credentials(monitor: ResourceMonitor, redis_with_password: servers.Redis) -> None:
    client = redis.Redis.from_url(redis_with_password.url.replace("/0", "/3"))
    resource = monitor.manager.register(client, id="cache")
    client.get("a")
    assert resource.endpoint == f"127.0.0.1:{redis_with_password.port}/3"
    assert resource.labels["db.namespace"] == "3"
    soon(lambda: health(monitor) is HealthStatus.UP)
    wrong = redis.Redis(port=redis_with_password.port, password="hunter2-canary", **QUICK)
    other = monitor.manager.register(wrong, id="wrong")
    with pytest.raises(redis.exceptions.RedisError):
        wrong.get("a")
    soon(lambda: monitor.read("wrong", "errors", stat="total") == 1)
    assert "canary" not in explain(other, "uno.resource.errors") + repr(other) + str(other.labels)
    assert monitor.manager.register(
        redis.Redis(unix_socket_path="/run/redis.sock"), id="socket"
    ).endpoint == ("unix:/run/redis.sock/0")
    client.close()
    wrong.close()


def test_clients_that_share_a_pool_are_one_resource(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    pool = redis.ConnectionPool(port=redis_server.port)
    clients = [redis.Redis(connection_pool=pool) for _ in range(3)]
    monitor.discover_resources("redis")
    found = [r for r in monitor.manager if r.target in (*clients, pool)]
    assert len(found) == 1
    for client in clients:
        client.get("a")
    soon(lambda: monitor.read(found[0].id, DURATION, stat="count") == 3, "of all three")
    assert [r for r in monitor.discover_resources("redis") if r.target in (*clients, pool)] == []
    pool.disconnect()


def test_a_client_for_each_request(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    monitor.discover_resources("redis")
    pool = redis.ConnectionPool(port=redis_server.port)

    def found() -> list[Resource]:
        redis.Redis(connection_pool=pool).get("a")
        return [r for r in monitor.manager if r.target is pool]

    soon(found, "the pool itself stands for them")
    number = stat(monitor, found()[0].id).total.value
    soon(lambda: (monitor.read(found()[0].id, DURATION, stat="count") or 0) > number)
    pool.disconnect()


def test_a_discovered_client_goes_when_it_is_dropped(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    monitor.discover_resources("redis")
    client = redis.Redis(host="127.0.0.1", port=redis_server.port)
    client.get("a")
    gone, pool = weakref.ref(client), weakref.ref(client.connection_pool)

    def found() -> list[Resource]:
        return [r for r in monitor.manager if r.target in (gone(), pool()) and r.target is not None]

    soon(found, "found while the monitor runs")
    id = found()[0].id
    client.close()
    del client
    soon(lambda: (gc.collect(), gone())[1] is None, "freed: a tick may be reading it")
    soon(lambda: id not in monitor.manager, "unregistered")


def test_install_and_undo_leave_the_classes_as_they_were(redis_server: servers.Redis) -> None:
    pools = [redis.ConnectionPool, redis.BlockingConnectionPool, redis.asyncio.ConnectionPool]
    classes = [redis.Redis, redis.asyncio.Redis, redis.client.Pipeline, redis.Connection, *pools]
    before = [dict(vars(cls)) for cls in classes]
    with (
        ResourceMonitor(ResourceManager(), interval=0.05) as first,
        ResourceMonitor(ResourceManager(), interval=0.05) as second,
    ):
        soon(lambda: hasattr(redis.Redis.execute_command, "__uno_hook__"))
        with redis.Redis(port=redis_server.port) as client:
            for monitor in (first, second):
                monitor.manager.register(client, id="cache")
            client.get("a")
            for monitor in (first, second):
                soon(partial(_seen_once, monitor), "seen once by each")
    assert [dict(vars(cls)) for cls in classes] == before


# -- a server that does not answer ---------------------------------------------------------------------


def test_a_frozen_server(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    client = redis.Redis(port=redis_server.port, socket_timeout=8, **QUICK)
    resource = monitor.manager.register(client, id="cache")
    client.get("a")
    soon(lambda: health(monitor) is HealthStatus.UP)
    redis_server.freeze()
    start = time.monotonic()
    outcome: list[object] = []
    caller = threading.Thread(target=lambda: outcome.append(client.get("a")))
    caller.start()
    soon(lambda: health(monitor) is not HealthStatus.UP, "not up soon after calls stall", 15)
    assert time.monotonic() - start < 6
    soon(lambda: "a call has been running for" in explain(resource), "said")
    assert outcome == [], "the call waits as it would without uno"
    redis_server.thaw()
    caller.join(5)
    assert len(outcome) == 1

    def recovered() -> bool:
        client.get("a")  # an alert on duration ends with calls that are quick, not with silence
        return health(monitor) is HealthStatus.UP

    soon(recovered, "it recovers", 15)
    client.close()


async def test_a_frozen_server_and_an_async_client(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    client: Any = redis.asyncio.Redis(port=redis_server.port, socket_timeout=8, **QUICK)
    monitor.manager.register(client, id="cache")
    await client.get("a")
    await asoon(lambda: health(monitor) is HealthStatus.UP)
    redis_server.freeze()
    call = asyncio.create_task(client.get("a"))
    await asoon(lambda: health(monitor) is not HealthStatus.UP, "not up soon after calls stall", 15)
    assert not call.done()
    redis_server.thaw()
    await call
    deadline = time.monotonic() + 15
    while health(monitor) is not HealthStatus.UP:
        await client.get("a")
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await client.aclose()


@pytest.mark.slow
def test_a_server_that_dies_and_returns(monitor: ResourceMonitor, redis_server: servers.Redis) -> None:
    client = redis.Redis(port=redis_server.port, **QUICK)
    monitor.manager.register(client, id="cache")
    client.get("a")
    redis_server.kill()

    def fails() -> bool:
        with contextlib.suppress(redis.exceptions.ConnectionError):
            client.get("a")
            return False
        return True

    assert fails()
    soon(lambda: (monitor.read("cache", "errors", stat="total") or 0) >= 1)
    soon(lambda: health(monitor) is HealthStatus.DOWN, "down", 20)
    redis_server.start()
    soon(lambda: health(monitor) is HealthStatus.UP, "up again", 20)
    client.get("a")
    assert not stat(monitor).holds
    client.close()


def test_a_client_whose_loop_is_closed_is_unknown(
    monitor: ResourceMonitor, redis_server: servers.Redis
) -> None:
    client = redis.asyncio.Redis(port=redis_server.port, **QUICK)

    async def work() -> None:
        await client.get("a")
        monitor.manager.register(client, id="cache")
        await eventually(lambda: health(monitor) is HealthStatus.UP, "up")

    asyncio.run(work())
    soon(lambda: health(monitor) is HealthStatus.UNKNOWN, "nobody can ask", 10)
    assert monitor.health_of("cache").reason == "event loop closed"
