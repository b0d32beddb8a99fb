"""How are httpx and httpx2 watched, sync and async?

Who sends travels in the request's extensions down to the pool, where it is seen who holds and who waits: so a request
that gets its connection at once passes one hook only, and few lines of that. Everything else is read from the pool, or
happens when a connection is opened or waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import (
    MAX_LOG,
    ONE_CLOCK,
    OWN,
    SLOW_SECONDS,
    Held,
    Hold,
    call_site,
    failures,
    install,
    scope,
    unscoped,
)
from uno.core.monitoring.resource_types._http import (
    HttpMonitor,
    HttpStat,
    HttpUse,
    Sent,
    answered,
    failed,
    held_since_now,
    http_stat,
    meet,
    used,
    waited,
)
from uno.core.resources import Identity

_UNLIMITED = 2**31
#: What is read of a pool; where one lacks any of it, its size is unknown.
_READ = ("_connections", "_requests", "_max_connections")
_SENT = "uno"
#: While no other request runs, the place that sends one is looked up at most this often: requests are long, and a
#: stack that is looked at so seldom is dear.
SITE_SECONDS = 0.01
#: The server that a request goes to is looked up at most this often: the tick finds it in the pool.
PLACE_SECONDS = 0.05
_new = tuple.__new__


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

    def parts(self) -> int:
        return len(self._pool_hooks())

    def _pool_hooks(self) -> list[tuple[type, str, Any]]:
        """What is hooked of the pools, which httpx loads with the first client that has one."""
        hooks: list[tuple[type, str, Any]] = []
        for module, owner, name, wrap in (
            ("_synchronization", "Event", "wait", _wait),
            ("_synchronization", "AsyncEvent", "wait", _async_wait),
            ("_sync.connection", "HTTPConnection", "_connect", _connect),
            ("_async.connection", "AsyncHTTPConnection", "_connect", _async_connect),
        ):
            cls = getattr(sys.modules.get(f"{self.core}.{module}"), owner, None)
            if cls is not None and name in vars(cls):
                hooks.append((cls, name, wrap))
        return hooks

    def install(self) -> list[Callable[[], None]]:
        library = sys.modules[self.library]
        undos = [install(library.Client, "send", _send), install(library.AsyncClient, "send", _async_send)]
        return undos + [install(*hook) for hook in self._pool_hooks()]

    def attach(self, target: Any) -> None:
        http_stat(target).pooled = next(_pools(target), None) is not None
        super().attach(target)

    def pool_use(self, target: Any) -> HttpUse:
        used = idle = waiting = limit = 0.0
        stat = http_stat(target)
        holds: dict[int, Held] = {}
        waiters: dict[int, Held] = {}
        pools = list(_pools(target))
        for pool in pools:
            for connection in list(pool._connections):
                origin = getattr(connection, "_origin", None)
                if origin is not None and (origin.host, origin.port) not in stat.places:
                    stat.place(origin.host, origin.port)
                if connection.is_idle():
                    idle += 1
                else:
                    used += 1
            for request in list(pool._requests):
                queued = request.is_queued()
                waiting += queued
                held = request.request.extensions.get(_SENT)
                if held is not None:
                    (waiters if queued else holds)[id(request)] = held[1]
            limit += pool._max_connections
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


# -- hooks -----------------------------------------------------------------------------------------------
# What runs for each request is written out, since it runs once in a while only, so that each line costs a multiple of
# what it costs in a loop.


def _send(original: Any) -> Any:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sent = _begin(self, request, kwargs)
        if sent is None:
            return original(self, request, *args, **kwargs)
        try:
            response = original(self, request, *args, **kwargs)
        except BaseException as error:
            _failed(sent, error, request)
            raise
        try:
            now, status = perf_counter(), response.status_code
            stat, hold, start = sent
            if (
                status < 500
                and now - start <= SLOW_SECONDS
                and not kwargs.get("stream")
                and not response.history
                and request.extensions.get(_SENT) is sent
            ):
                if start - stat.placed > PLACE_SECONDS:
                    stat.placed = start
                    url = request.url
                    stat.place(url.host, url.port or _port(url))
                del stat.running[start], request.extensions[_SENT]
                done = start, now, hold[1], status
                log = stat.log
                log += done
                if len(log) > MAX_LOG:
                    stat.drain()
                return response
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("Client.send", error)
        _answered(sent, request, response, kwargs)
        return response

    return send


def _async_send(original: Any) -> Any:
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sent = _begin(self, request, kwargs)
        if sent is None:
            return await original(self, request, *args, **kwargs)
        try:
            response = await original(self, request, *args, **kwargs)
        except BaseException as error:
            _failed(sent, error, request)
            raise
        _answered(sent, request, response, kwargs)
        return response

    return send


def _begin(client: Any, request: Any, kwargs: Any) -> Sent | None:
    try:
        try:
            stat: HttpStat = client._uno_stat
        except AttributeError:
            stat = http_stat(client)
        if not stat.announced:
            meet(client)
        current = scope.get()
        name = unscoped() if current is None else current._name or current.name
        if name == OWN:
            return None
        start = perf_counter()
        running = stat.running
        site = None
        if running or start - stat.sited > SITE_SECONDS or kwargs.get("stream"):
            stat.sited = start
            site = call_site(3)
        running[start] = start, name
        sent = stat, _new(Hold, (site, name, start if ONE_CLOCK else monotonic())), start
        request.extensions[_SENT] = sent
        return sent
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("Client.send", error)
        return None


def _answered(sent: Sent, request: Any, response: Any, kwargs: Any) -> None:
    """A request that was slow, waited, failed, was redirected or is not read yet, and any of asyncio."""
    try:
        stat, hold, start = sent
        url, status, now = request.url, response.status_code, perf_counter()
        place = url.host, url.port or _port(url)
        if place not in stat.places:
            stat.place(*place)
        last = response.request.extensions
        held = last.get(_SENT) or sent
        stream = kwargs.get("stream")
        for asked in (request, *(earlier.request for earlier in response.history), response.request):
            if not stream or asked is not response.request:
                asked.extensions.pop(_SENT, None)
        if held is sent and not stream and status < 500 and now - start <= SLOW_SECONDS:
            stat.running.pop(start, None)
            stat.wrote(start, now, hold[1], status)
            return
        answered(sent, status, *place)
        if stat.pooled:
            if held is sent:
                waited(stat, 0.0)
            if not stream or not _until_closed(response, stat, held[1], last):
                used(stat, held[1])
    except Exception as error:  # noqa: BLE001 - a hook never fails the call
        failures("Client.send", error)


def _until_closed(response: Any, stat: HttpStat, hold: Hold, extensions: Any) -> bool:
    """See when the connection of an answer that is not read yet is given back."""
    inner = getattr(getattr(response.stream, "_stream", None), "_httpcore_stream", None)
    name = "aclose" if hasattr(inner, "aclose") else "close"
    original = getattr(inner, name, None)
    if original is None or not hasattr(inner, "__dict__"):
        return False

    def close(*args: Any, **kwargs: Any) -> Any:
        if extensions.pop(_SENT, None) is not None:
            used(stat, hold)
        return original(*args, **kwargs)

    setattr(inner, name, close)
    return True


def _failed(sent: Sent, error: BaseException, request: Any) -> None:
    try:
        url = request.url
        request.extensions.pop(_SENT, None)
        failed(sent, error, url.host, _port(url))
    except Exception as failure:  # noqa: BLE001
        failures("Client.send", failure)


def _asking(frame: Any) -> tuple[Any, Sent] | None:
    """Whose request it is that waits in the pool: the caller's ``self`` is the pool's request."""
    try:
        extensions = frame.f_locals["self"].request.extensions
        return extensions, extensions[_SENT]
    except Exception:  # noqa: BLE001 - not the one that is meant
        return None


def _wait(original: Any) -> Any:
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        asking = _asking(sys._getframe(1))
        if asking is None:
            return original(self, *args, **kwargs)
        start = perf_counter()
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _in_vain(asking, error)
            raise
        _there(asking, start)
        return result

    return wait


def _async_wait(original: Any) -> Any:
    async def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        asking = _asking(sys._getframe(1))
        if asking is None:
            return await original(self, *args, **kwargs)
        start = perf_counter()
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            _in_vain(asking, error)
            raise
        _there(asking, start)
        return result

    return wait


def _there(asking: tuple[Any, Sent], start: float) -> None:
    extensions, (stat, hold, begun) = asking
    waited(stat, perf_counter() - start)
    extensions[_SENT] = stat, held_since_now(hold), begun


def _in_vain(asking: tuple[Any, Sent], error: BaseException) -> None:
    if isinstance(error, Exception):
        asking[1][0].timeouts.value += 1


def _connect(original: Any) -> Any:
    def _connect(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        stream = original(self, request, *args, **kwargs)
        _opened(request, start)
        return stream

    return _connect


def _async_connect(original: Any) -> Any:
    async def _connect(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        stream = await original(self, request, *args, **kwargs)
        _opened(request, start)
        return stream

    return _connect


def _opened(request: Any, start: float) -> None:
    try:
        sent = request.extensions.get(_SENT)
        if sent is not None:
            sent[0].connects.add(perf_counter() - start)
    except Exception as error:  # noqa: BLE001
        failures("HTTPConnection._connect", error)
