"""What is a resource?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from uno.core.masking import masked
from uno.core.records import NamedTuple
from uno.core.resources.errors import ResourceError, shown

if TYPE_CHECKING:
    import asyncio

    from uno.core.resources.workers import Workers

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+\-]{0,119}\Z")


class Identity(NamedTuple):
    """What an object tells of itself without its secrets."""

    name: str = ""
    endpoint: str | None = None
    labels: Mapping[str, str] = {}


class Driver(Protocol):
    """What a resource needs to know about its library; the resource types of monitoring implement it."""

    @property
    def resource_type(self) -> str: ...

    def identify(self, target: Any) -> Identity: ...
    def stand_in(self, target: Any) -> Any: ...
    def reference(self, target: Any) -> Callable[[], Any]: ...
    def attach(self, target: Any) -> None: ...
    def detach(self, target: Any) -> None: ...
    def statistics(
        self, target: Any
    ) -> Mapping[str, float | None] | Awaitable[Mapping[str, float | None]]: ...
    def ping(self, target: Any) -> Awaitable[object] | object: ...


class GoneError(ReferenceError):
    """The application dropped the object behind a discovered resource."""


class Resource:
    """Something inside the process that can run out, break or slow down: a pool, a client, a queue.

    ``id`` is unique and stable, ``name`` is for people, ``type`` groups ("database", "redis", ...), ``labels``
    are the application's own, ``endpoint`` is where it leads to ("127.0.0.1:5432/shop"), without credentials,
    ``depends_on`` are the ids of declared dependencies.
    """

    __slots__ = (
        "__weakref__", "_read", "_reference", "_strong", "_workers", "depends_on", "discovered", "driver", "endpoint",
        "how", "id", "labels", "loop", "name", "type",
    )  # fmt: skip

    def __init__(
        self,
        target: Any,
        *,
        id: str,
        name: str,
        type: str,
        labels: Mapping[str, str],
        endpoint: str | None,
        depends_on: tuple[str, ...],
        driver: Driver | None,
        read: Callable[[], Any] | None,
        loop: asyncio.AbstractEventLoop | None,
        discovered: bool,
        how: str,
        workers: Workers,
    ) -> None:
        self.id, self.name, self.type = id, name, type
        self.labels: dict[str, str] = dict(labels)
        self.endpoint = endpoint
        self.depends_on = depends_on
        self.driver = driver
        self.discovered = discovered
        self.how = how
        self.loop = loop
        self._read = read
        self._workers = workers
        # What was registered is kept; what was discovered belongs to the application and may go.
        self._strong = None if discovered else target
        self._reference = driver.reference(target) if discovered and driver is not None else None

    def __repr__(self) -> str:
        return f"<Resource {self.id!r} type={self.type!r} endpoint={self.endpoint!r}>"

    @property
    def target(self) -> Any:
        """The object itself; None when the application has dropped it."""
        return self._strong if self._reference is None else self._reference()

    @property
    def read(self) -> Callable[[], Any] | None:
        """What gives the statistics of a custom resource: its ``read=``, or the object's own method."""
        if self._read is not None:
            return self._read
        method = getattr(self.target, "get_statistics", None) if self.driver is None else None
        return method if callable(method) else None

    def _living(self) -> Any:
        target = self.target
        if target is None and self._reference is not None:
            raise GoneError(f"the application has dropped what {self.id!r} was")
        return target

    async def get_statistics(self) -> dict[str, float | None]:
        """Current numbers by name, None where the library cannot tell. A database has at least
        ``total_queries`` and ``slow_queries``.

        Raises what a custom resource's own function raises; ResourceError when that does not return a mapping.
        """
        target = self._living()
        if self.driver is not None:
            found = self.driver.statistics(target)
        elif self.read is not None:
            found = await self._call(self.read)
        else:
            return {}
        if inspect.isawaitable(found):
            found = await found
        return numbers_of(self.id, found)

    async def ping(self) -> bool | None:
        """True when the resource answers, None when it has no way to tell. Raises what the attempt raises."""
        target = self._living()
        driver = self.driver
        own = getattr(target, "ping", None) if driver is None else partial(driver.ping, target)
        if not callable(own):
            return None
        answer = await self._call(own)
        if inspect.isawaitable(answer):
            answer = await answer
        return None if answer is None and driver is not None else answer is not False

    async def _call(self, function: Callable[[], Any]) -> Any:
        """Call the application's function; a plain one on a thread of ours, since it may block."""
        if inspect.iscoroutinefunction(function):
            return await function()
        import asyncio

        return await asyncio.wrap_future(self._workers.submit(function))


def numbers_of(id: str, found: object) -> dict[str, float | None]:
    """The numbers among what a custom resource returned; a bare number is called "value".

    Raises ResourceError for anything that holds no numbers by name.
    """
    if not isinstance(found, Mapping):
        number = None if isinstance(found, bool) else _number(found)
        if number is None:
            raise ResourceError(
                f"{id!r}: statistics are a mapping of names to numbers, not {type(found).__name__}"
            )
        return {"value": number}
    numbers: dict[str, float | None] = {}
    for name, value in found.items():
        number = _number(value)
        if isinstance(name, str) and name and (value is None or number is not None):
            numbers[masked(name)] = number
    if found and not numbers:
        raise ResourceError(
            f"{id!r}: none of its statistics is a number by name: {shown(next(iter(found)))}, ..."
        )
    return numbers


def _number(value: Any) -> float | None:
    """``value`` as float: int, bool, Decimal, numpy's scalars; None for text and all else."""
    if isinstance(value, float):
        return float(value)
    convert = getattr(type(value), "__float__", None)
    try:
        return None if convert is None else float(convert(value))
    except (TypeError, ValueError, OverflowError):
        return None
