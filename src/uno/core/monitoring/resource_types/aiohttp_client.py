"""How are aiohttp's clients watched?

Sessions of one connector are one resource, for the connector is what holds connections and makes requests wait. The
hooks are on the classes, so sessions made before and after are seen alike, and no TraceConfig of the application is
touched.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from uno.core.monitoring.instrumentation import ATTRIBUTE, Stat, announce, failures, install
from uno.core.monitoring.resource_types._http import (
    HttpMonitor,
    HttpStat,
    HttpUse,
    answered,
    begin,
    failed,
    held_since_now,
    http_stat,
    keep,
    sending,
    used,
    waited,
)
from uno.core.resources import Identity

_OWNER = "owner"


class _Waits:
    """How long one request has waited for a connection, and whether it does so now."""

    __slots__ = ("now", "seconds")

    def __init__(self) -> None:
        self.now = False
        self.seconds = 0.0


#: Of the request that is being sent here.
_waits: ContextVar[_Waits | None] = ContextVar("uno_aiohttp_waits", default=None)


class AiohttpClient(HttpMonitor):
    """Requests and connections of a ClientSession, or of a connector that several share.

    A session is found with the second request on its connector, for many are made for a single one. ``limit_per_host``
    makes requests wait although the limit that is shown is not reached.
    """

    targets = (
        "aiohttp.ClientSession",
        "aiohttp.client.ClientSession",
        "aiohttp.connector.BaseConnector",
    )
    library = "aiohttp"
    tested = ">=3.9,<4"

    def identify(self, target: Any) -> Identity:
        url: Any = getattr(target, "_base_url", None)
        host = getattr(url, "host", None)
        if not host:
            return Identity("http-client")
        text = f"[{host}]" if ":" in host else host
        return Identity(host, f"{text}:{url.port}" if url.port else text, {"server.address": host})

    def ready(self) -> bool:
        return hasattr(sys.modules.get("aiohttp.client"), "ClientSession")

    def install(self) -> list[Callable[[], None]]:
        session = sys.modules["aiohttp.client"].ClientSession
        connectors = sys.modules["aiohttp.connector"]
        base = connectors.BaseConnector
        hooks: list[tuple[Any, str, Any]] = [
            (session, "_request", _request),
            (base, "connect", _connect),
            (base, "_wait_for_available_connection", _wait),
            (base, "_release_acquired", _release),
        ]
        hooks += [(cls, "_create_connection", _create) for cls in _family(base)]
        return [install(cls, name, wrap) for cls, name, wrap in hooks if name in vars(cls)]

    def stat_for(self, target: Any) -> HttpStat:
        stat = _stat(target)
        stat.drain()
        return stat

    def stat(self, target: Any) -> Stat | None:
        return self.stat_for(target)

    def attach(self, target: Any) -> None:
        _owner(target)

    def covers(self, target: Any) -> tuple[object, ...]:
        """One object stands for a connector: the first that was found of it and its sessions."""
        connector = _connector(target)
        if _owner(target) is not target:
            return (target,)
        return () if connector is None or connector is target else (connector,)

    def bound_loop(self, target: Any) -> Any:
        loop = getattr(_connector(target), "_loop", None)
        return None if loop is None or loop.is_closed() else loop

    def pool_use(self, target: Any) -> HttpUse:
        connector = _connector(target)
        acquired = getattr(connector, "_acquired", None)
        if connector is None or acquired is None:  # closed
            return HttpUse(None, None, None, None)
        stat = _stat(target)
        out = {id(protocol) for protocol in list(acquired)}
        for key in [key for key in list(stat.holds) if key not in out]:  # as after close()
            stat.holds.pop(key, None)
        idle = sum(len(kept) for kept in list(connector._conns.values()))
        waiting = sum(len(futures) for futures in list(connector._waiters.values()))
        return HttpUse(float(len(out)), float(idle), connector._limit or None, float(waiting))


def _connector(target: Any) -> Any:
    return target._connector if hasattr(target, "_connector") else target


def _stat(target: Any) -> HttpStat:
    """That of the connector, which its sessions share and keep when they are closed."""
    stat = target.__dict__.get(ATTRIBUTE)
    if stat is None:
        connector = _connector(target)
        stat = http_stat(target if connector is None else connector)
        stat = target.__dict__.setdefault(ATTRIBUTE, stat)
    return stat  # type: ignore[no-any-return]


def _owner(target: Any) -> Any:
    """What stands for the connector of ``target``: whoever came first and still lives, but no session that borrowed
    it, for those come and go."""
    extra = _stat(target).extra
    known = extra.get(_OWNER)
    owner = known() if known is not None else None
    if owner is None:
        owner = target if getattr(target, "_connector_owner", True) else _connector(target) or target
        extra[_OWNER] = weakref.ref(owner)
    return owner


def _tell(session: Any) -> None:
    """With the second request on it, and when what stood for it is gone, discovery hears of the connector, too."""
    stat = _stat(session)
    if not stat.announced:
        return
    owner = stat.extra.get(_OWNER)
    lost = owner is not None and owner() is None
    if lost or "told" not in stat.extra:
        stat.extra["told"] = True
        if lost:
            stat.extra.pop(_OWNER, None)
        announce(session)
        if session._connector is not None:
            announce(session._connector)


def _family(cls: Any) -> list[Any]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _family(sub))]


# -- hooks -----------------------------------------------------------------------------------------------


def _request(original: Any) -> Any:
    async def _request(self: Any, method: Any, str_or_url: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):
            if ATTRIBUTE not in self.__dict__:
                _stat(self)
        sent = begin(self)
        with suppress(Exception):
            _tell(self)
        if sent is None:
            return await original(self, method, str_or_url, *args, **kwargs)
        waits = _Waits()
        token, other = sending.set(sent), _waits.set(waits)
        try:
            response = await original(self, method, str_or_url, *args, **kwargs)
        except BaseException as error:
            host, port = _where(error)
            if waits.now and isinstance(error, Exception):
                sent[0].timeouts.value += 1
            failed(sent, error, host, port)
            raise
        finally:
            sending.reset(token)
            _waits.reset(other)
        try:
            url = response.url
            answered(sent, response.status, url.raw_host, url.port)
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("ClientSession._request", error)
        return response

    return _request


def _where(error: BaseException) -> tuple[Any, Any]:
    """Where a request went that failed; nothing where the error does not say it."""
    try:
        if hasattr(error, "host"):
            return error.host, error.port  # type: ignore[attr-defined]
        url = getattr(getattr(error, "request_info", None), "real_url", None)
        return (None, None) if url is None else (url.raw_host, url.port)
    except Exception:  # noqa: BLE001
        return None, None


def _connect(original: Any) -> Any:
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        connection = await original(self, *args, **kwargs)
        try:
            sent, waits = sending.get(), _waits.get()
            if sent is not None and waits is not None:
                stat = sent[0]
                keep(stat, id(connection.protocol), held_since_now(sent[1]))
                waited(stat, waits.seconds)
                waits.seconds = 0.0
        except Exception as error:  # noqa: BLE001
            failures("BaseConnector.connect", error)
        return connection

    return connect


def _wait(original: Any) -> Any:
    async def _wait_for_available_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent, waits = sending.get(), _waits.get()
        if sent is None or waits is None:
            return await original(self, *args, **kwargs)
        waiters, key = sent[0].waiters, id(waits)
        waiters[key] = sent[1]
        start = perf_counter()
        waits.now = True
        try:
            result = await original(self, *args, **kwargs)
        finally:
            waiters.pop(key, None)
        waits.now = False
        waits.seconds = perf_counter() - start
        return result

    return _wait_for_available_connection


def _create(original: Any) -> Any:
    async def _create_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        protocol = await original(self, *args, **kwargs)
        _stat(self).connects.add(perf_counter() - start)
        return protocol

    return _create_connection


def _release(original: Any) -> Any:
    def _release_acquired(self: Any, key: Any, protocol: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            stat = self.__dict__.get(ATTRIBUTE)
            if stat is not None:
                used(stat, stat.holds.pop(id(protocol), None))
        except Exception as error:  # noqa: BLE001
            failures("BaseConnector._release_acquired", error)
        return original(self, key, protocol, *args, **kwargs)

    return _release_acquired
