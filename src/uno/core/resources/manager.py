"""Which resources are there?"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from uno.core.masking import masked
from uno.core.resources.errors import (
    DuplicateResourceError,
    ResourceError,
    UnknownResourceError,
    misfit,
    shown,
)
from uno.core.resources.resource import ID, Driver, Identity, Resource
from uno.core.resources.workers import Workers

CUSTOM = "custom"
#: Prometheus and uno set these themselves.
RESERVED_LABELS = frozenset(("resource", "le", "quantile"))


class Kinds(Protocol):
    """Recognises objects. The monitoring layer provides one; tests may give another."""

    def driver_of(self, target: object) -> Driver | None: ...

    def types(self) -> list[str]: ...


def _identity(driver: Driver | None, obj: Any, *, strict: bool) -> Identity:
    try:
        return Identity() if driver is None else driver.identify(obj)
    except Exception:  # a library of an unknown shape, or what is half built, which discovery leaves out
        if strict:
            raise
        return Identity()


def _default_kinds() -> Kinds:
    # By name and at first use: resources know nothing of monitoring, yet register(engine) shall recognise it.
    from importlib import import_module

    kinds: Kinds = import_module("uno.core.monitoring.resource_types").load()
    return kinds


class ResourceManager:
    """The resources of this process, by id.

    A registered object is kept until it is unregistered. Reading takes no lock: the map is replaced, never changed.
    """

    def __init__(self, kinds: Kinds | None = None) -> None:
        self._kinds = kinds
        self._resources: dict[str, Resource] = {}
        self._listeners: tuple[Callable[[str, Resource], None], ...] = ()
        self._lock = threading.RLock()
        self.workers = Workers()

    @property
    def kinds(self) -> Kinds:
        """What recognises objects."""
        if self._kinds is None:
            self._kinds = _default_kinds()
        return self._kinds

    def register(
        self,
        obj: Any,
        *,
        id: str | None = None,
        name: str | None = None,
        type: str | None = None,
        labels: Mapping[str, str] | None = None,
        depends_on: Iterable[str | Resource] = (),
        read: Callable[[], Any] | None = None,
        loop: Any = None,
    ) -> Resource:
        """Add ``obj`` and return its Resource.

        The type is recognised for the libraries that uno knows; any other object is a custom resource, whose
        numbers come from ``read=`` or from its own ``get_statistics`` (each sync or async). ``loop`` is the event loop
        that owns the object; by default the one that runs now. ``depends_on`` may name resources that come later.

        Raises DuplicateResourceError when the id is taken, ResourceError for a bad id, labels or ``read``.
        """
        if obj is None and read is None:
            raise ResourceError("register(None) needs read=: a function that returns the numbers")
        if read is not None and not callable(read):
            raise ResourceError(f"read= is a function without arguments, not {_kind(read)}")
        if read is not None and (why := misfit(read)):
            raise ResourceError(f"read= is called without arguments, and this function needs some: {why}")
        if loop is not None and not callable(getattr(loop, "call_soon_threadsafe", None)):
            raise ResourceError(f"loop= is the event loop that owns the object, not {_kind(loop)}")
        labels, depends_on = _checked_labels(labels), _checked_needs(depends_on)
        for what, text in (
            ("id", id), ("name", name), ("type", type), *(("depends_on", need) for need in depends_on),
            *(("labels", part) for pair in labels.items() for part in pair),
        ):  # fmt: skip
            if isinstance(text, str) and masked(text) != text:
                raise ResourceError(
                    f"{what}= is shown everywhere, and this address holds a password; use another"
                )
        driver = self.kinds.driver_of(obj) if obj is not None else None
        return self._add(
            obj, driver, id, name, type, labels, depends_on, read, loop, discovered=False, how="registered"
        )

    def discovered(self, obj: Any, driver: Driver, *, id: str, how: str, loop: Any = None) -> Resource | None:
        """Add what discovery found: held weakly, gone when the application drops it. None when it is known already."""
        with self._lock:
            if self.of(obj) is not None:
                return None
            unique, n = id, 1
            while unique in self._resources:
                n += 1
                unique = f"{id}-{n}"
            return self._add(obj, driver, unique, None, None, {}, (), None, loop, discovered=True, how=how)

    def _add(
        self,
        obj: Any,
        driver: Driver | None,
        id: str | None,
        name: str | None,
        type: str | None,
        labels: Mapping[str, str],
        depends_on: tuple[str, ...],
        read: Callable[[], Any] | None,
        loop: Any,
        *,
        discovered: bool,
        how: str,
    ) -> Resource:
        identity = _identity(driver, obj, strict=discovered)
        if id is None and isinstance(name, str) and ID.match(name):
            id = name
        if id is not None and not (isinstance(id, str) and ID.match(id)):
            raise ResourceError(
                f"bad resource id {shown(id)}: use 1 to 120 letters, digits and any of _ . : / @ + -, "
                "for example 'main-db'"
            )
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise ResourceError(f"name= is a text for people, for example 'Main database', not {shown(name)}")
        if type is None:
            type = driver.resource_type if driver is not None else CUSTOM
        if not isinstance(type, str) or not ID.match(type):
            raise ResourceError(
                f"bad resource type {shown(type)}: use letters, digits and _, for example 'database'"
            )
        with self._lock:  # also while listeners are told, so that they hear of things in their order
            twin = self.of(obj) if obj is not None else None
            if twin is None and driver is not None:
                twin = self.of(driver.stand_in(obj))
            if twin is not None and not twin.discovered:
                raise DuplicateResourceError(twin.id, id)
            if id is None:
                id = self._free_id(identity.name or ("" if type == CUSTOM else type) or _plain_name(obj))
            if id in self._resources and self._resources[id] is not twin:
                raise DuplicateResourceError(id)
            resource = Resource(
                obj,
                id=id,
                name=name or (id if identity.name == "" or discovered else identity.name),
                type=type,
                labels={**identity.labels, **labels},
                endpoint=identity.endpoint,
                depends_on=depends_on,
                driver=driver,
                read=read,
                loop=loop if loop is not None else _running_loop(),
                discovered=discovered,
                how=how,
                workers=self.workers,
            )
            if twin is not None:  # discovered before, now registered by name: the application's word wins
                self._remove(twin)
            if driver is not None:
                try:
                    driver.attach(obj)
                except Exception:  # a library of an unknown shape: the application's call goes through
                    if discovered:
                        raise
            self._resources = {**self._resources, id: resource}
            for listener in self._listeners:
                listener("added", resource)
        return resource

    def unregister(self, id: str | Resource) -> Resource:
        """Remove a resource and return it. UnknownResourceError when there is none of this id."""
        with self._lock:
            if isinstance(id, Resource) and id not in self:
                raise UnknownResourceError(id.id, self._resources)
            resource = self.get(id.id if isinstance(id, Resource) else id)
            self._remove(resource)
        return resource

    def _remove(self, resource: Resource) -> None:
        with self._lock:
            if resource not in self:  # another thread was first
                return
            self._resources = {k: v for k, v in self._resources.items() if v is not resource}
            target = resource.target
            if resource.driver is not None and target is not None:
                resource.driver.detach(target)
            for listener in self._listeners:
                listener("removed", resource)

    def sweep(self) -> None:
        """Remove the discovered resources whose objects the application has dropped."""
        for resource in list(self._resources.values()):
            if resource.discovered and resource.target is None:
                self._remove(resource)

    def get(self, id: str) -> Resource:
        """The resource of this id; UnknownResourceError, with near matches, when there is none."""
        resource = self._resources.get(id) if isinstance(id, str) else None
        if resource is None:
            raise UnknownResourceError(id, self._resources)
        return resource

    def of(self, obj: object) -> Resource | None:
        """The resource that stands for this object, or None."""
        for resource in self._resources.values():
            if resource.target is obj:
                return resource
        return None

    def by_type(self, type: str) -> list[Resource]:
        """All resources of a type."""
        return [resource for resource in self if resource.type == type]

    def listen(self, listener: Callable[[str, Resource], None]) -> Callable[[], None]:
        """Call ``listener("added" | "removed", resource)`` from now on; returns what ends it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(known for known in self._listeners if known is not listener)

        return stop

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._resources.values()))

    def __len__(self) -> int:
        return len(self._resources)

    def __contains__(self, id: object) -> bool:
        if isinstance(id, Resource):
            return self._resources.get(id.id) is id
        return isinstance(id, str) and id in self._resources

    def __repr__(self) -> str:
        return f"<ResourceManager with {len(self)} resources>"

    def reinit_after_fork(self) -> None:
        """Replace the lock and the workers in a forked child."""
        self._lock = threading.RLock()
        self.workers.reinit_after_fork()

    def _free_id(self, stem: str) -> str:
        stem = (
            "".join(c if ID.match(c) or c in ".:/@+-" else "-" for c in stem)[:100].strip(".:/@+-")
            or "resource"
        )
        number, id = 1, stem
        while id in self._resources:
            number += 1
            id = f"{stem}-{number}"
        return id


def _plain_name(obj: object) -> str:
    kind = type(obj)
    return "custom" if obj is None or kind.__module__ == "builtins" else kind.__name__.lower()


def _checked_labels(labels: Mapping[str, str] | None) -> Mapping[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise ResourceError(f"labels= maps names to values, labels={{'team': 'orders'}}, not {_kind(labels)}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ResourceError(f"labels= maps str to str, got {_kind(key)} to {_kind(value)}")
        if not key or key.startswith("__") or key in RESERVED_LABELS:
            raise ResourceError(f"the label {key!r} has a meaning of its own; choose another name in labels=")
    return labels


def _checked_needs(depends_on: Iterable[str | Resource]) -> tuple[str, ...]:
    if isinstance(depends_on, str):
        raise ResourceError(f"depends_on is a sequence of ids: depends_on=[{shown(depends_on)}]")
    if isinstance(depends_on, Resource) or not isinstance(depends_on, Iterable):
        raise ResourceError(f"depends_on is a sequence of ids or resources, not {_kind(depends_on)}")
    needs = tuple(need.id if isinstance(need, Resource) else need for need in depends_on)
    for need in needs:
        if not (isinstance(need, str) and ID.match(need)):
            raise ResourceError(
                f"depends_on names resources by their ids, not by {shown(need)}"
                if isinstance(need, str)
                else f"depends_on is a sequence of ids or resources, not of {_kind(need)}"
            )
    return needs


def _kind(value: object) -> str:
    return type(value).__name__


def _running_loop() -> Any:
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()
