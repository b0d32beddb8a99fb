"""Which kinds of resource does uno recognise? One file for each library in this folder, and plug-ins.

A plug-in is a distribution with an entry point in the group ``uno.resource_types`` that names a
ResourceTypeMonitor class, or a module that holds some.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from uno.core.monitoring.type_monitor import ResourceTypeMonitor

log = logging.getLogger("uno.resource_types")

ENTRY_POINTS = "uno.resource_types"


def load() -> Recogniser:
    """All kinds: ours first, then those of plug-ins. A plug-in that cannot be loaded is reported and left out."""
    from importlib import import_module
    from pkgutil import iter_modules

    kinds: list[ResourceTypeMonitor] = []
    for found in iter_modules(__path__):
        kinds.extend(_kinds_in(import_module(f"{__name__}.{found.name}")))
    kinds.extend(_plugins())
    return Recogniser(kinds)


def _plugins() -> Iterator[ResourceTypeMonitor]:
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        try:
            loaded = point.load()
            found = list(_kinds_in(loaded)) if isinstance(loaded, ModuleType) else [loaded()]
            for kind in found:
                if not isinstance(kind, ResourceTypeMonitor):
                    raise TypeError(f"{point.value} is no ResourceTypeMonitor")
        except Exception as error:  # noqa: BLE001 - a broken plug-in must not take the application down
            log.warning("the plug-in %s (%s) was left out: %s", point.name, point.value, type(error).__name__)
        else:
            yield from found


def _kinds_in(module: ModuleType) -> Iterator[ResourceTypeMonitor]:
    for value in list(vars(module).values()):
        if (
            isinstance(value, type)
            and issubclass(value, ResourceTypeMonitor)
            and value.__module__ == module.__name__
            and value.targets
        ):
            yield value()


class Recogniser:
    """Tells which kind an object is, by the dotted names of its class and their bases; imports nothing."""

    def __init__(self, kinds: list[ResourceTypeMonitor]) -> None:
        self.kinds = kinds
        self._by_name: dict[str, ResourceTypeMonitor | None] = {
            target: kind for kind in kinds for target in kind.targets
        }
        self._by_name.update((name, None) for kind in kinds for name in kind.ignored)

    def driver_of(self, target: object) -> Any:
        """The kind of ``target``, or None."""
        return self.driver_of_class(type(target))

    def driver_of_class(self, cls: type) -> ResourceTypeMonitor | None:
        """The kind of instances of ``cls``, or None. Uses type() and the MRO only, which wakes no lazy proxy."""
        names = self._by_name
        for base in cls.__mro__:
            name = f"{base.__module__}.{base.__qualname__}"
            if name in names:
                return names[name]
        return None

    def types(self) -> list[str]:
        """The known types of resource."""
        return sorted({kind.resource_type for kind in self.kinds})
