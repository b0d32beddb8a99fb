"""How are httpx and httpx2 watched, sync and async?

``send`` is timed on the client; the wait for a connection and the time that it is out in the pool's request beneath.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import Hold, failures, install
from uno.core.monitoring.resource_types._http import (
    HttpMonitor,
    HttpUse,
    answered,
    begin,
    failed,
    held_since_now,
    http_stat,
    sending,
    used,
    waited,
)
from uno.core.resources import Identity

_UNLIMITED = 2**31
#: What is read of a pool; where one lacks any of it, its size is unknown.
_READ = ("_connections", "_requests", "_max_connections")
_HELD = "_uno_held"


class HttpxClient(HttpMonitor):
    """Requests and connections of a Client or AsyncClient.

    A client is found with its second request, for many are made for a single one.
    """

    targets = ("httpx.Client", "httpx.AsyncClient", "httpx._client.Client", "httpx._client.AsyncClient")
    library = "httpx"
    core = "httpcore"
    tested = ">=0.25.1,<1"

    def identify(self, target: Any) -> Identity:
        host = target.base_url.host
        if not host:
            return Identity("http-client")
        return Identity(host, _place(target.base_url), {"server.address": host})

    def ready(self) -> bool:
        # httpx loads its pools with the first client
        return super().ready() and f"{self.core}._async.connection_pool" in sys.modules

    def install(self) -> list[Callable[[], None]]:
        library = sys.modules[self.library]
        undos = [install(library.Client, "send", _send), install(library.AsyncClient, "send", _async_send)]
        for module, owner, name, wrap in (
            ("_sync.connection_pool", "PoolRequest", "wait_for_connection", _wait),
            ("_async.connection_pool", "AsyncPoolRequest", "wait_for_connection", _async_wait),
            ("_sync.connection_pool", "PoolByteStream", "close", _close),
            ("_async.connection_pool", "PoolByteStream", "aclose", _close),
            ("_sync.connection", "HTTPConnection", "_connect", _connect),
            ("_async.connection", "AsyncHTTPConnection", "_connect", _async_connect),
        ):
            cls = getattr(sys.modules.get(f"{self.core}.{module}"), owner, None)
            if cls is not None and name in vars(cls):
                undos.append(install(cls, name, wrap))
        return undos

    def pool_use(self, target: Any) -> HttpUse:
        used = idle = waiting = limit = 0.0
        holds: dict[int, Hold] = {}
        waiters: dict[int, Hold] = {}
        pools = list(_pools(target))
        for pool in pools:
            for connection in list(pool._connections):
                if connection.is_idle():
                    idle += 1
                else:
                    used += 1
            for request in list(pool._requests):
                queued = request.is_queued()
                waiting += queued
                held = request.__dict__.get(_HELD)
                if held is not None:
                    (waiters if queued else holds)[id(request)] = held[1]
            limit += pool._max_connections
        stat = http_stat(target)
        stat.holds, stat.waiters = holds, waiters
        if not pools:
            return HttpUse(None, None, None, None)
        return HttpUse(used, idle, limit if limit < _UNLIMITED else None, waiting)


class Httpx2Client(HttpxClient):
    """Requests and connections of httpx2's clients, which have the shape of httpx's."""

    targets = ("httpx2.Client", "httpx2.AsyncClient", "httpx2._client.Client", "httpx2._client.AsyncClient")
    library = "httpx2"
    core = "httpcore2"
    tested = ">=2,<3"


def _place(url: Any) -> str:
    port = _port(url)
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{port}" if port else host


def _port(url: Any) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _pools(client: Any) -> Iterator[Any]:
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None and all(hasattr(pool, name) for name in _READ):
            yield pool


def _send(original: Any) -> Any:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sent = begin(self)
        if sent is None:
            return original(self, request, *args, **kwargs)
        token = sending.set(sent)
        try:
            response = original(self, request, *args, **kwargs)
        except BaseException as error:
            sending.reset(token)
            _failed(sent, error, request)
            raise
        sending.reset(token)
        _answered(sent, request, response)
        return response

    return send


def _async_send(original: Any) -> Any:
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sent = begin(self)
        if sent is None:
            return await original(self, request, *args, **kwargs)
        token = sending.set(sent)
        try:
            response = await original(self, request, *args, **kwargs)
        except BaseException as error:
            sending.reset(token)
            _failed(sent, error, request)
            raise
        sending.reset(token)
        _answered(sent, request, response)
        return response

    return send


def _answered(sent: Any, request: Any, response: Any) -> None:
    try:
        url = request.url
        answered(sent, response.status_code, url.host, url.port or _port(url))
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("Client.send", error)


def _failed(sent: Any, error: BaseException, request: Any) -> None:
    try:
        url = request.url
        failed(sent, error, url.host, _port(url))
    except Exception as failure:  # noqa: BLE001
        failures("Client.send", failure)


def _wait(original: Any) -> Any:
    def wait_for_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent = sending.get()
        if sent is None:
            return original(self, *args, **kwargs)
        self._uno_held = sent
        if self.connection is not None:
            waited(sent[0], 0.0)
            return original(self, *args, **kwargs)
        start = perf_counter()
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            _in_vain(sent, error)
            raise
        waited(sent[0], perf_counter() - start)
        self._uno_held = sent[0], held_since_now(sent[1])
        return connection

    return wait_for_connection


def _async_wait(original: Any) -> Any:
    async def wait_for_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent = sending.get()
        if sent is None:
            return await original(self, *args, **kwargs)
        self._uno_held = sent
        if self.connection is not None:
            waited(sent[0], 0.0)
            return await original(self, *args, **kwargs)
        start = perf_counter()
        try:
            connection = await original(self, *args, **kwargs)
        except BaseException as error:
            _in_vain(sent, error)
            raise
        waited(sent[0], perf_counter() - start)
        self._uno_held = sent[0], held_since_now(sent[1])
        return connection

    return wait_for_connection


def _in_vain(sent: Any, error: BaseException) -> None:
    if isinstance(error, Exception):
        sent[0].timeouts.value += 1


def _close(original: Any) -> Any:
    """Sync and async alike: the connection is given back when the call begins."""

    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            held = self._pool_request.__dict__.pop(_HELD, None)
            if held is not None:
                used(held[0], held[1])
        except Exception as error:  # noqa: BLE001
            failures("PoolByteStream.close", error)
        return original(self, *args, **kwargs)

    return close


def _connect(original: Any) -> Any:
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        stream = original(self, *args, **kwargs)
        sent = sending.get()
        if sent is not None:
            sent[0].connects.add(perf_counter() - start)
        return stream

    return _connect


def _async_connect(original: Any) -> Any:
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        stream = await original(self, *args, **kwargs)
        sent = sending.get()
        if sent is not None:
            sent[0].connects.add(perf_counter() - start)
        return stream

    return _connect
