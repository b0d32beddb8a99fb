"""How are HTTP clients watched? httpx and httpx2, sync and async.

``send`` is timed on the client, the wait for a connection in the pool's request beneath it; which connections are
in use is read from the pool. Nothing but host and port of an address is looked at: the rest may hold secrets.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    ATTRIBUTE,
    Hold,
    Stat,
    announce,
    call_site,
    caller,
    describe_error,
    describe_holds,
    describe_slow,
    failures,
    install,
    stat_of,
)
from uno.core.monitoring.names import pick
from uno.core.monitoring.thresholds import Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource

RECENT = 10.0
MAX_HOSTS = 32
_UNLIMITED = 2**31
#: What is read of a pool; where one lacks any of it, its size is unknown.
_READ = ("_connections", "_requests", "_max_connections")

#: The request that is being sent here, for the pool's hooks beneath.
_sending: ContextVar[tuple[Stat, Hold] | None] = ContextVar("uno_http_sending", default=None)


class HttpxClient(ResourceTypeMonitor):
    """Requests and connections of a Client or AsyncClient.

    A client is found with its second request, for many are made for a single one.
    """

    resource_type = "http_client"
    targets = ("httpx.Client", "httpx.AsyncClient", "httpx._client.Client", "httpx._client.AsyncClient")
    library = "httpx"
    core = "httpcore"
    tested = ">=0.25.1,<1"
    blocking = False
    metrics = pick(
        "uno.resource.utilization",
        "http.client.request.duration",
        "http.client.requests",
        "http.client.active_requests",
        "http.client.pending_requests",
        "http.client.wait_time",
        "http.client.open_connections",
        "http.client.connection.max",
        "uno.http.client.error_ratio",
        "uno.resource.errors",
    )
    headline = (
        "http.client.request.duration",
        "http.client.requests",
        "uno.http.client.error_ratio",
        "http.client.active_requests",
    )
    thresholds = (
        ("uno.http.client.error_ratio", Threshold(0.1, 0.5, "Requests fail")),
        ("http.client.request.duration", Threshold(1, 5, "Requests are slow", keep_firing_for=3)),
        ("http.client.pending_requests", Threshold(0, 10, "Requests wait for a connection", for_=1)),
        ("uno.resource.utilization", Threshold(0.8, 0.95, "The connection pool is nearly used up", for_=1)),
    )

    def identify(self, target: Any) -> Identity:
        host = target.base_url.host
        if not host:
            return Identity("http-client")
        place = _place(target.base_url)
        return Identity(host, place, {"server.address": host})

    def attach(self, target: Any) -> None:
        _marks(stat_of(target))

    def ready(self) -> bool:
        # httpx loads its pools with the first client
        return super().ready() and f"{self.core}._async.connection_pool" in sys.modules

    def install(self) -> list[Callable[[], None]]:
        library = sys.modules[self.library]
        undos = [install(library.Client, "send", _send), install(library.AsyncClient, "send", _async_send)]
        for module, name, wrap in (
            ("_sync.connection_pool", "PoolRequest", _wait),
            ("_async.connection_pool", "AsyncPoolRequest", _async_wait),
        ):
            request = getattr(sys.modules.get(f"{self.core}.{module}"), name, None)
            if request is not None:
                undos.append(install(request, "wait_for_connection", wrap))
        return undos

    def collect_metrics(self, resource: Resource) -> None:
        client = resource.target
        stat = stat_of(client)
        used, idle, waiting, limit = self._read(client, stat)
        update = self.update_metric
        update("uno.resource.utilization", used / limit if limit and used is not None else None)
        update("http.client.request.duration", stat.duration)
        for outcome, cell in list(stat.outcomes.items()):
            update("http.client.requests", cell, {"outcome": outcome})
        update("http.client.active_requests", stat.active)
        update("http.client.pending_requests", waiting)
        update("http.client.wait_time", stat.wait)
        update("http.client.open_connections", used, {"http.connection.state": "active"})
        update("http.client.open_connections", idle, {"http.connection.state": "idle"})
        update("http.client.connection.max", limit)
        update("uno.http.client.error_ratio", _error_ratio(stat))
        update("uno.resource.errors", stat.errors)

    def _read(self, client: Any, stat: Stat) -> tuple[float | None, float | None, float | None, float | None]:
        """(active, idle, waiting, limit) over the client's pools; None where its transports have none."""
        used = idle = waiting = limit = 0.0
        holds: dict[int, Hold] = {}
        waiters: dict[int, Hold] = {}
        pools = list(_pools(client))
        for pool in pools:
            for connection in list(pool._connections):
                if connection.is_idle():
                    idle += 1
                else:
                    used += 1
            for request in list(pool._requests):
                queued = request.is_queued()
                waiting += queued
                hold = request.__dict__.get("_uno_hold")
                if hold is not None:
                    (waiters if queued else holds)[id(request)] = hold
            limit += pool._max_connections
        stat.holds, stat.waiters = holds, waiters
        if not pools:
            return None, None, None, None
        return used, idle, waiting, limit if limit < _UNLIMITED else None

    def capacity(self, target: Any) -> tuple[float, float | None] | None:
        used, _, _, limit = self._read(target, stat_of(target))
        return None if used is None else (used, limit)

    def statistics(self, target: Any) -> Mapping[str, float | None]:
        stat = stat_of(target)
        used, idle, waiting, limit = self._read(target, stat)
        return {
            "total_requests": stat.total.value,
            "errors": stat.errors.value,
            "active_requests": stat.active,
            "connections_in_use": used,
            "connections_idle": idle,
            "connections_waiting": waiting,
            "connections_max": limit,
        }

    def ping(self, target: Any) -> bool | None:
        """True when a request went well lately. No request is made for the sake of it: None when there was none."""
        stat = stat_of(target)
        recent = stat.last_ok and monotonic() - stat.last_ok < RECENT
        return True if recent and stat.last_ok >= stat.last_error else None

    def endpoints(self, target: Any) -> list[str]:
        return list(stat_of(target).extra.get("hosts", ()))

    def explain(self, target: Any, metric: str) -> str:
        stat = stat_of(target)
        if metric in ("uno.http.client.error_ratio", "uno.resource.errors", "http.client.requests"):
            place = stat.extra.get("failed_at")
            said = describe_error(stat)
            return f"{said}; to {place}" if said and place else said
        if metric == "http.client.request.duration":
            return describe_slow(stat) or describe_error(stat)
        return describe_holds(stat, "connection", (self.capacity(target) or (0, None))[1])


class Httpx2Client(HttpxClient):
    """Requests and connections of httpx2's clients, which have the shape of httpx's."""

    targets = ("httpx2.Client", "httpx2.AsyncClient", "httpx2._client.Client", "httpx2._client.AsyncClient")
    library = "httpx2"
    core = "httpcore2"
    tested = ">=2,<3"


def _place(url: Any) -> str:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{port}" if port else host


def _pools(client: Any) -> Iterator[Any]:
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None and all(hasattr(pool, name) for name in _READ):
            yield pool


def _marks(stat: Stat) -> deque[tuple[float, float, float]]:
    """When there were how many requests and errors: from the first request on, then at each collection."""
    marks: deque[tuple[float, float, float]] | None = stat.extra.get("marks")
    if marks is None:
        mark = (monotonic(), stat.total.value, stat.errors.value)
        marks = stat.extra.setdefault("marks", deque((mark,)))
    return marks


def _error_ratio(stat: Stat) -> float | None:
    """The share of failed requests in the last 10 s; None when there was no request."""
    marks = _marks(stat)
    now, total, errors = monotonic(), stat.total.value, stat.errors.value
    marks.append((now, total, errors))
    while len(marks) > 1 and now - marks[1][0] >= RECENT:
        marks.popleft()
    asked = total - marks[0][1]
    return (errors - marks[0][2]) / asked if asked > 0 else None


def _begin(client: Any) -> tuple[Stat, Hold]:
    used = ATTRIBUTE in client.__dict__
    stat = stat_of(client)
    if not used:
        _marks(stat)
    elif "announced" not in stat.extra:  # with its second request: many are made for a single one
        stat.extra["announced"] = True
        announce(client)
    stat.active += 1
    return stat, Hold(call_site(3), caller(), monotonic())


def _end(
    stat: Stat, hold: Hold, start: float, request: Any, response: Any, error: BaseException | None
) -> None:
    seconds = perf_counter() - start
    stat.active -= 1
    if error is not None and not isinstance(error, Exception):  # neither failed nor succeeded
        stat.outcome("cancelled").value += 1
        stat.total.value += 1
        stat.called(hold.caller)[0].value += 1
        return
    if error is not None:
        stat.outcome(type(error).__name__).value += 1
    else:
        stat.outcome(f"{response.status_code // 100}xx").value += 1
        if response.status_code >= 500:
            error = _ServerError(response.status_code)
    stat.done(seconds, error, hold.caller)
    if isinstance(error, _ServerError):
        stat.last_error_kind = f"HTTP {error.status}"
    hosts: dict[str, None] = stat.extra.setdefault("hosts", {})
    place = _place(request.url)
    if place not in hosts and len(hosts) < MAX_HOSTS:
        hosts[place] = None
    if error is not None:
        stat.extra["failed_at"] = place


class _ServerError(Exception):
    """The server said that it failed."""

    def __init__(self, status: int) -> None:
        self.status = status


def _guarded_end(*args: Any) -> None:
    try:
        _end(*args)
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("Client.send", error)


def _send(original: Any) -> Any:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            mine = _begin(self)
        except Exception as error:  # noqa: BLE001
            failures("Client.send", error)
            return original(self, request, *args, **kwargs)
        token, start = _sending.set(mine), perf_counter()
        try:
            response = original(self, request, *args, **kwargs)
        except BaseException as error:
            _guarded_end(*mine, start, request, None, error)
            raise
        finally:
            _sending.reset(token)
        _guarded_end(*mine, start, request, response, None)
        return response

    return send


def _async_send(original: Any) -> Any:
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            mine = _begin(self)
        except Exception as error:  # noqa: BLE001
            failures("AsyncClient.send", error)
            return await original(self, request, *args, **kwargs)
        token, start = _sending.set(mine), perf_counter()
        try:
            response = await original(self, request, *args, **kwargs)
        except BaseException as error:
            _guarded_end(*mine, start, request, None, error)
            raise
        finally:
            _sending.reset(token)
        _guarded_end(*mine, start, request, response, None)
        return response

    return send


def _wait(original: Any) -> Any:
    def wait_for_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        mine = _sending.get()
        if mine is None:
            return original(self, *args, **kwargs)
        self._uno_hold = mine[1]
        if self.connection is not None:
            mine[0].wait.observe(0.0)
            return original(self, *args, **kwargs)
        start = perf_counter()
        try:
            return original(self, *args, **kwargs)
        finally:
            mine[0].wait.observe(perf_counter() - start)

    return wait_for_connection


def _async_wait(original: Any) -> Any:
    async def wait_for_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        mine = _sending.get()
        if mine is None:
            return await original(self, *args, **kwargs)
        self._uno_hold = mine[1]
        if self.connection is not None:
            mine[0].wait.observe(0.0)
            return await original(self, *args, **kwargs)
        start = perf_counter()
        try:
            return await original(self, *args, **kwargs)
        finally:
            mine[0].wait.observe(perf_counter() - start)

    return wait_for_connection
