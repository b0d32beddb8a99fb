"""How are urllib3, requests and what is built on them watched?

A request belongs to the outermost client that sends it: a requests Session, a PoolManager, or a pool alone. There is
one pool for each server; how much of it is used is read from its queue, who holds what from the hooks on taking and
returning. urllib3-future, which niquests installs in urllib3's place, has other pools under the same names: what they
do not have is unknown.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from uno.core.monitoring.causes import describe_lost, lost_of
from uno.core.monitoring.instrumentation import ATTRIBUTE, Held, failures, install
from uno.core.monitoring.names import pick
from uno.core.monitoring.resource_types._http import (
    HttpMonitor,
    HttpUse,
    Sent,
    answered,
    begin,
    failed,
    held_since_now,
    http_stat,
    sending,
    used,
    waited,
)
from uno.core.monitoring.resource_types._pooled import LEAKED
from uno.core.resources import Identity, Resource

_OUT = "_uno_out"


class _Here(threading.local):
    """Where this thread's request goes, and the connection that it took last."""

    host: Any = None
    port: Any = None
    taken = 0


_here = _Here()


class _Urllib3(HttpMonitor):
    """What a client's pools tell."""

    metrics = HttpMonitor.metrics + pick("uno.http.client.connection.discarded", "uno.connection.leaked")
    thresholds = (*HttpMonitor.thresholds, LEAKED)

    def pools(self, target: Any) -> Iterator[Any]:
        """The pools of a client, one for each server."""
        raise NotImplementedError

    def managers(self, target: Any) -> Iterator[Any]:
        """The pool managers of a client."""
        yield from ()

    def covers(self, target: Any) -> tuple[object, ...]:
        return (*self.managers(target), *(pool for pool in self.pools(target) if pool is not target))

    def collect_metrics(self, resource: Resource) -> None:
        super().collect_metrics(resource)
        stat = http_stat(resource.target)
        self.update_metric("uno.http.client.connection.discarded", stat.discarded)
        self.update_metric("uno.connection.leaked", lost_of(stat).count)

    def pool_use(self, target: Any) -> HttpUse:
        taken = idle = waiting = 0.0
        limit: float | None = None
        blocks = True
        holds: dict[int, Held] = {}
        for pool in self.pools(target):
            out: dict[int, Any] = pool.__dict__.get(_OUT) or {}
            mine = {key: held[1] for key, held in list(out.items())}
            holds |= mine
            read = _read(pool)
            if read is None:  # closed
                continue
            if not hasattr(pool.pool, "not_empty"):
                return HttpUse(None, None, None, None)
            size, free, kept, waiters = read
            blocks = blocks and bool(pool.block)
            # one that does not block opens as many as are asked for, and what is lost takes no place
            taken += max(0, size - free) if pool.block else len(mine)
            idle += kept
            waiting += waiters
            limit = (limit or 0.0) + size
        http_stat(target).holds = holds
        return HttpUse(taken, idle, limit if blocks else None, waiting)

    def explain(self, target: Any, metric: str) -> str:
        if metric == "uno.connection.leaked":
            return describe_lost(http_stat(target))
        said = super().explain(target, metric)
        if metric in (
            "uno.resource.utilization",
            "http.client.open_connections",
            "http.client.pending_requests",
        ):
            said = "; ".join(filter(None, (said, describe_lost(http_stat(target)))))
        return said

    def ready(self) -> bool:
        return hasattr(sys.modules.get("urllib3.poolmanager"), "PoolManager") and super().ready()

    def install(self) -> list[Callable[[], None]]:
        pools, managers = sys.modules["urllib3.connectionpool"], sys.modules["urllib3.poolmanager"]
        connections = sys.modules["urllib3.connection"]
        hooks: list[tuple[Any, str, Any]] = [
            (pools.HTTPConnectionPool, "urlopen", _urlopen),
            (managers.PoolManager, "urlopen", _urlopen),
            (pools.HTTPConnectionPool, "_get_conn", _get_conn),
            (pools.HTTPConnectionPool, "_put_conn", _put_conn),
            (connections.HTTPConnection, "connect", _connect),
            (connections.HTTPSConnection, "connect", _connect),
        ]
        return [install(cls, name, wrap) for cls, name, wrap in hooks if name in vars(cls)]


class Urllib3Client(_Urllib3):
    """Requests and connections of a PoolManager, or of a pool for one server.

    Without ``block`` a pool has no limit: it opens what is asked for and discards what it cannot keep. A client is
    found with its second request.
    """

    targets = ("urllib3.poolmanager.PoolManager", "urllib3.connectionpool.HTTPConnectionPool")
    library = "urllib3"
    tested = ">=1.26,<3"

    def identify(self, target: Any) -> Identity:
        host = getattr(target, "host", None)
        if not isinstance(host, str):
            return Identity("http-client")
        text = f"[{host}]" if ":" in host else host
        return Identity(host, f"{text}:{target.port}" if target.port else text, {"server.address": host})

    def pools(self, target: Any) -> Iterator[Any]:
        yield from _pools_of(target) if hasattr(target, "pools") else (target,)


class RequestsSession(_Urllib3):
    """Requests and connections of a Session, over all of its adapters.

    A session is found with its second request, for ``requests.get`` makes one for each.
    """

    targets = ("requests.sessions.Session",)
    library = "requests"
    tested = ">=2.28,<3"

    def identify(self, target: Any) -> Identity:
        return Identity("http-client")

    def managers(self, target: Any) -> Iterator[Any]:
        for adapter in list(target.adapters.values()):
            manager = getattr(adapter, "poolmanager", None)
            if manager is not None:
                yield manager
            yield from list(getattr(adapter, "proxy_manager", {}).values())

    def pools(self, target: Any) -> Iterator[Any]:
        for manager in self.managers(target):
            yield from _pools_of(manager)

    def ready(self) -> bool:
        return super().ready() and hasattr(sys.modules.get("requests.sessions"), "Session")

    def install(self) -> list[Callable[[], None]]:
        return [*super().install(), install(sys.modules["requests.sessions"].Session, "send", _send)]


class NiquestsSession(RequestsSession):
    """Requests of a Session of niquests. Its connections carry several requests at once, and how many are in use is
    not known."""

    targets = ("niquests.sessions.Session",)
    library = "niquests"
    tested = ">=3.21,<4"

    def ready(self) -> bool:
        return hasattr(sys.modules.get("niquests.sessions"), "Session")

    def install(self) -> list[Callable[[], None]]:
        return [*_Urllib3.install(self), install(sys.modules["niquests.sessions"].Session, "send", _send)]


def _pools_of(manager: Any) -> list[Any]:
    pools = getattr(manager, "pools", None)
    kept = getattr(pools, "_container", None)
    return [] if kept is None else [pool for pool in list(kept.values()) if hasattr(pool, "pool")]


def _read(pool: Any) -> tuple[float, float, float, float] | None:
    """(size, free, idle, waiting) of a pool; None when it is closed."""
    queue = pool.pool
    if queue is None:
        return None
    if not hasattr(queue, "not_empty"):  # urllib3-future's, which lends one connection to many
        return 0.0, 0.0, 0.0, 0.0
    connections = list(queue.queue)
    idle = sum(1 for connection in connections if getattr(connection, "sock", None) is not None)
    return float(queue.maxsize), float(len(connections)), float(idle), float(len(queue.not_empty._waiters))


# -- hooks -----------------------------------------------------------------------------------------------


def _urlopen(original: Any) -> Any:
    """Of a manager or a pool; within a request of another client it is a part of that."""

    def urlopen(self: Any, *args: Any, **kwargs: Any) -> Any:
        if sending.get() is not None:
            return original(self, *args, **kwargs)
        sent = begin(self)
        if sent is None:
            return original(self, *args, **kwargs)
        return _send_as(sent, "status", original, self, args, kwargs)

    return urlopen


def _send(original: Any) -> Any:
    """Of a Session; following a redirect it calls itself."""

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer = sending.get()
        if outer is not None and outer[0] is self.__dict__.get(ATTRIBUTE):
            return original(self, *args, **kwargs)
        sent = begin(self)
        if sent is None:
            return original(self, *args, **kwargs)
        return _send_as(sent, "status_code", original, self, args, kwargs)

    return send


def _send_as(sent: Sent, status: str, original: Any, self: Any, args: Any, kwargs: Any) -> Any:
    _here.host = _here.port = None
    token = sending.set(sent)
    try:
        response = original(self, *args, **kwargs)
    except BaseException as error:
        reason = getattr(error, "reason", None)  # of MaxRetryError
        failed(sent, reason if isinstance(reason, Exception) else error, _here.host, _here.port)
        raise
    finally:
        sending.reset(token)
    answered(sent, getattr(response, status, 0), _here.host, _here.port)
    return response


def _get_conn(original: Any) -> Any:
    def _get_conn(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent = sending.get()
        if sent is None:
            return original(self, *args, **kwargs)
        waits = False
        try:
            _here.host, _here.port, _here.taken = self.host, self.port, 0
            if self.block and self.pool is not None and not self.pool.qsize():
                waits = True
                sent[0].waiters[id(sent)] = sent[1]
        except Exception as error:  # noqa: BLE001 - a hook never fails the call
            failures("HTTPConnectionPool._get_conn", error)
        start = perf_counter()
        try:
            connection = original(self, *args, **kwargs)
        except BaseException as error:
            sent[0].waiters.pop(id(sent), None)
            if waits and isinstance(error, Exception):
                sent[0].timeouts.value += 1
            raise
        try:
            if waits:
                sent[0].waiters.pop(id(sent), None)
            waited(sent[0], perf_counter() - start if waits else 0.0)
            _take(self, sent, connection)
        except Exception as error:  # noqa: BLE001
            failures("HTTPConnectionPool._get_conn", error)
        return connection

    return _get_conn


def _take(pool: Any, sent: Sent, connection: Any) -> None:
    out = pool.__dict__.get(_OUT)
    if out is None:
        out = pool.__dict__.setdefault(_OUT, {})
    key, stat, hold = id(connection), sent[0], held_since_now(sent[1])

    def dropped(_: object) -> None:
        """Collected without being returned."""
        held = out.get(key)
        if held is not None and held[1] is hold:
            out.pop(key, None)
            lost_of(stat).add(hold)

    out[key] = stat, hold, weakref.ref(connection, dropped)
    _here.taken = key


def _put_conn(original: Any) -> Any:
    def _put_conn(self: Any, conn: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            out = self.__dict__.get(_OUT)
            if out is not None:
                # what failed is closed, and None is put back for it by the thread that took it
                held = out.pop(_here.taken if conn is None else id(conn), None)
                if held is not None:
                    used(held[0], held[1])
                    if conn is not None and self.pool is not None and self.pool.qsize() >= self.pool.maxsize:
                        held[0].discarded.value += 1
        except Exception as error:  # noqa: BLE001
            failures("HTTPConnectionPool._put_conn", error)
        return original(self, conn, *args, **kwargs)

    return _put_conn


def _connect(original: Any) -> Any:
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        result = original(self, *args, **kwargs)
        sent = sending.get()
        if sent is not None:
            sent[0].connects.add(perf_counter() - start)
        return result

    return connect
