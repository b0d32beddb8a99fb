"""Which resources does the process hold that nobody registered, and what are they called?

One pass over the garbage collector's objects compares types, and nothing but types: isinstance and hasattr run
code of lazy proxies. A resource is called after the first-party name that holds it (``app.db.engine``), which is
the same after a restart; where there is none, after its kind and where it leads to.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import compress
from types import MemberDescriptorType, ModuleType
from typing import TYPE_CHECKING, Any

from uno.core.monitoring.instrumentation import announced, is_first_party
from uno.core.monitoring.type_monitor import ResourceTypeMonitor, ask
from uno.core.resources import Resource, ResourceManager
from uno.core.resources.errors import meant, shown

if TYPE_CHECKING:
    from uno.core.monitoring.resource_types import Recogniser

log = logging.getLogger("uno.discovery")

_NOTHING: tuple[object, ...] = ()
MAX_FOUND = 1_000
MAX_ITEMS = 200
MAX_LOOKED_AT = 50_000
#: Keys of dicts that are shown as part of an id. Others may be secrets: ``engines[url]``, ``clients[api_key]``.
_NAME = re.compile(r"(?!.*(?:[A-Za-z0-9_-]{24}|://))[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,59}\Z")
#: Objects of these classes keep the application's resources in their attributes.
HOLDERS = frozenset(
    ("fastapi.applications.FastAPI", "starlette.applications.Starlette", "starlette.datastructures.State")
)


class UnknownResourceTypeError(ValueError):
    """No kind of resource has this name; the message lists those that exist."""

    def __init__(self, type: object, known: Iterable[str]) -> None:
        known = sorted(known)
        hint = meant(type, known) if isinstance(type, str) else ""
        super().__init__(f"unknown resource type {shown(type)}; known are {', '.join(known)}.{hint}")


class _Kinds(dict[type, "ResourceTypeMonitor | None"]):
    """Kinds by class, each looked up once."""

    def __init__(self, look_up: Callable[[type], ResourceTypeMonitor | None]) -> None:
        self._look_up = look_up

    def __missing__(self, cls: type) -> ResourceTypeMonitor | None:
        kind = self[cls] = self._look_up(cls)
        return kind


#: Hooks announce to the process, so all of its monitors hear of it.
_LISTENING: tuple[weakref.ref[Discovery], ...] = ()


class Discovery:
    """Finds resources for one manager."""

    def __init__(self, manager: ResourceManager, kinds: Recogniser) -> None:
        self._manager, self._kinds = manager, kinds
        #: The types that are looked for while the monitor runs; None stands for all.
        self.types: set[str] | None = set()
        self._heard: deque[weakref.ref[Any]] = deque(maxlen=4_096)
        self._said_full = False
        self._busy = threading.Lock()

    def reinit_after_fork(self) -> None:
        """Replace the lock in a forked child."""
        self._busy = threading.Lock()

    def scan(self, resource_type: str | None = None) -> list[Resource]:
        """Find what lives now, of one type or of all, and watch for more from now on.

        Returns what was found in this call and is new. UnknownResourceTypeError names the known types.
        """
        known = self._kinds.types()
        if resource_type is not None and not (isinstance(resource_type, str) and resource_type in known):
            raise UnknownResourceTypeError(resource_type, known)
        with self._busy:  # or a tick finds first what the caller is to be told of
            return self._scan(resource_type)

    def _scan(self, resource_type: str | None) -> list[Resource]:
        if resource_type is None:
            self.types = None
        elif self.types is not None:
            self.types.add(resource_type)
        self._listen()
        wanted = None if resource_type is None else {resource_type}
        named = list(self._named(wanted))
        names = {id(obj): name for obj, _, name in named}
        found = [(obj, kind) for obj, kind, _ in named]
        found += [(obj, kind) for obj, kind in self._living(wanted) if id(obj) not in names]
        return self._take(found, names)

    def follow(self, *, names: bool) -> list[Resource]:
        """Take what was created since: what hooks announced and, when ``names``, what first-party names hold.

        Nothing while a scan is under way, which finds it too.
        """
        if not self._busy.acquire(blocking=False):
            return []
        try:
            return self._follow(names)
        finally:
            self._busy.release()

    def _follow(self, names: bool) -> list[Resource]:
        fresh = [
            (obj, kind)
            for obj in self._announced()
            if (kind := self._wanted(type(obj), self.types)) is not None
        ]
        if not fresh and not names:
            return []
        named = list(self._named(self.types, MAX_LOOKED_AT // 10))
        known = {id(obj): name for obj, _, name in named}
        seen = {id(obj) for obj, _ in fresh}
        return self._take(fresh + [(obj, kind) for obj, kind, _ in named if id(obj) not in seen], known)

    def _listen(self) -> None:
        global _LISTENING
        if not any(other() is self for other in _LISTENING):
            _LISTENING = (*(other for other in _LISTENING if other() is not None), weakref.ref(self))

    def _announced(self) -> list[Any]:
        """What hooks announced since the last call, to whichever monitor of the process, and still lives."""
        self._listen()
        fresh = [weakref.ref(obj) for obj in announced()]
        for reference in _LISTENING:
            if (other := reference()) is not None:
                other._heard.extend(fresh)
        found = [self._heard.popleft()() for _ in range(len(self._heard))]
        return [obj for obj in found if obj is not None]

    def _wanted(self, cls: type, types: set[str] | None) -> ResourceTypeMonitor | None:
        kind = self._kinds.driver_of_class(cls)
        if kind is None or not (types is None or kind.resource_type in types):
            return None
        if cls.__module__.startswith("uno.core.") and type(kind).stand_in is ResourceTypeMonitor.stand_in:
            return None  # another monitor's process, files, loops
        return kind

    def _take(self, found: list[tuple[Any, ResourceTypeMonitor]], names: dict[int, str]) -> list[Resource]:
        # What another object stands for is not a resource of its own.
        covered = {id(inner) for obj, kind in found for inner in ask(kind.covers, obj, otherwise=_NOTHING)}
        covered |= {
            id(inner)
            for r in self._manager
            if r.driver is not None and (target := r.target) is not None
            for inner in ask(r.driver.covers, target, otherwise=_NOTHING)  # type: ignore[attr-defined]
        }
        taken = []
        for obj, kind in found:
            name = names.get(id(obj))
            if id(obj) in covered or (kind.only_named and name is None) or self._manager.of(obj) is not None:
                continue
            if len(self._manager) >= MAX_FOUND:
                if not self._said_full:
                    self._said_full = True
                    log.warning("more than %d resources: further ones are not discovered", MAX_FOUND)
                break
            try:
                how = f"held by {name}" if name else "found in memory"
                resource = self._manager.discovered(
                    obj, kind, id=name or _unnamed(kind, obj), how=how, loop=kind.bound_loop(obj)
                )
            except Exception as error:  # noqa: BLE001 - one odd object must not end discovery
                log.warning("a %s could not be watched: %s", kind.resource_type, type(error).__name__)
                continue
            if resource is not None:
                taken.append(resource)
                log.info("discovered %s %r (%s)", resource.type, resource.id, how)
        return taken

    def _living(self, types: set[str] | None) -> Iterator[tuple[Any, ResourceTypeMonitor]]:
        kinds = _Kinds(lambda cls: self._wanted(cls, types))
        objects = gc.get_objects()
        # without a line of Python for each object
        for obj in compress(objects, map(kinds.__getitem__, map(type, objects))):
            kind = kinds[type(obj)]
            if kind is not None:
                yield kind.stand_in(obj), kind

    def _named(
        self, types: set[str] | None, budget: int = MAX_LOOKED_AT
    ) -> Iterator[tuple[Any, ResourceTypeMonitor, str]]:
        """Resources that first-party modules hold by name, directly or one or two steps inside.

        The shortest names come first, and no more than ``budget`` values of a module are looked at: data that it
        holds may be large.
        """
        seen: set[int] = set()
        kinds = _Kinds(lambda cls: self._wanted(cls, types))
        for prefix, module in _first_party():
            queue = deque((f"{prefix}.{k}", v, 0) for k, v in _items(vars(module)))
            for _ in range(budget):
                if not queue:
                    break
                name, value, depth = queue.popleft()
                cls = type(value)
                kind = kinds[cls]
                if kind is not None:
                    if id(value) not in seen:
                        seen.add(id(value))
                        yield kind.stand_in(value), kind, _as_id(name)
                elif depth < 3 and id(value) not in seen:
                    inside = _inside(value, cls)
                    if inside is not None and len(queue) < budget:
                        seen.add(id(value))
                        queue.extend((f"{name}.{k}", v, depth + 1) for k, v in inside)


def _first_party() -> Iterator[tuple[str, ModuleType]]:
    # In the order in which they were loaded to the end: what made an object comes before what imported it from
    # there. Only __main__ stands first although it ends last.
    modules = sorted(sys.modules.items(), key=lambda item: item[0] == "__main__")
    for name, module in modules:
        if (
            type(module) is not ModuleType or name == "__mp_main__"
        ):  # multiprocessing's second name for __main__
            continue
        file = module.__dict__.get("__file__")
        if isinstance(file, str) and is_first_party(file):
            if name == "__main__":
                spec = module.__dict__.get("__spec__")
                name = getattr(spec, "name", None) or os.path.splitext(os.path.basename(file))[0]
                name = name.removesuffix(".__main__")
            yield name, module


def _items(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in list(attributes.items()) if type(k) is str and not k.startswith("__")]


def _inside(value: Any, cls: type) -> list[tuple[str, Any]] | None:
    if cls is dict:
        items = enumerate(list(value.items())[:MAX_ITEMS])
        return [(k if _NAME.match(k) else str(i), v) for i, (k, v) in items if type(k) is str]
    if cls is list or cls is tuple:
        return [(str(i), v) for i, v in enumerate(list(value)[:MAX_ITEMS])]
    dotted = f"{cls.__module__}.{cls.__qualname__}"
    if dotted in HOLDERS or any(f"{b.__module__}.{b.__qualname__}" in HOLDERS for b in cls.__mro__):
        found = [(k, v) for k, v in _items(vars(value)) if k in ("state", "_state")]
        return found if not found or found[0][0] != "_state" else _inside(found[0][1], dict)
    if issubclass(cls, type):  # never by __class__, which wakes what is lazy
        return _items(dict(vars(value)))[:MAX_ITEMS] if _is_ours(value) else None
    if cls is ModuleType or not _is_ours(cls):
        return None
    found = _slots(value, cls)
    with suppress(AttributeError):
        found += _items(object.__getattribute__(value, "__dict__"))
    return found[:MAX_ITEMS]


def _is_ours(cls: type) -> bool:
    """Whether a class is the application's."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) if type(module) is ModuleType else None
    return isinstance(file, str) and is_first_party(file)


def _slots(value: Any, cls: type) -> list[tuple[str, Any]]:
    """What an object has in slots. No code of the application runs for it: a slot is no property."""
    found = []
    for base in cls.__mro__:
        for name, slot in list(vars(base).items()) if "__slots__" in vars(base) else ():
            if type(slot) is MemberDescriptorType:
                with suppress(AttributeError):  # it is empty
                    found.append((name, slot.__get__(value, cls)))
    return found


def _as_id(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.:/@+-") else "-" for c in name)[:110]


def _unnamed(kind: ResourceTypeMonitor, obj: Any) -> str:
    identity = kind.identify(obj)
    stem = identity.name or identity.endpoint or ""
    if stem.replace("-", "_") == kind.resource_type:
        return stem
    return _as_id(f"{kind.resource_type}-{stem}" if stem else kind.resource_type).strip(".:/@+-")
