"""Which hooks are on, and which are off because they do not fit?

A library whose version nobody tested is only read. So is one whose classes have another shape than expected, and one
whose hooks failed again and again: they come off together, since half of them would count wrong.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Container, Iterable, Sequence

from uno.core.monitoring.instrumentation import HookGroup, failures, install_whole
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.records import NamedTuple

log = logging.getLogger("uno.hooks")

_RULE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)\s*\Z")
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)")


class Off(NamedTuple):
    """A kind whose hooks are off: its class, why ("version", "shape", "failures"), and the same in words."""

    adapter: str
    reason: str
    words: str


class Hooks:
    """The hooks of one monitor."""

    def __init__(self, kinds: Sequence[ResourceTypeMonitor]) -> None:
        self._kinds = kinds
        self._groups: dict[int, HookGroup] = {}
        self._off: dict[int, Off] = {}
        self._parts: dict[int, int] = {}
        self._versions: dict[str, str] = {}

    def install(self, in_use: Container[object] = ()) -> None:
        """Hook the libraries that were loaded since, and note which hooks went off.

        ``in_use`` are the kinds that watch a resource: their library is loaded, so one that is still not ready never
        will be.
        """
        for number, kind in enumerate(self._kinds):
            group = self._groups.get(number)
            if group is not None and number not in self._off and self._parts.get(number, 0) != kind.parts():
                group.undo()  # more of the library was loaded: its hooks are installed anew, as a whole
                group = None
            if group is not None:
                if group.off and number not in self._off:
                    self._switch_off(number, kind, "failures", group.off)
            elif type(kind).install is ResourceTypeMonitor.install:  # it has no hooks
                self._groups[number] = HookGroup()
            elif kind.library in sys.modules and self._is_untested(kind):
                words = f"{self._named(kind)} is not among the versions that were tested ({kind.tested})"
                self._switch_off(number, kind, "version", words)
                self._groups[number] = HookGroup()
            elif kind.ready():
                if not is_being_imported(kind.library):  # by another thread; the next tick comes soon
                    self._parts[number] = kind.parts()
                    self._groups[number] = self._hook(number, kind)
            elif number not in self._off and kind.library in sys.modules and kind in in_use:
                words = f"{self._named(kind)} has another shape than those that were tested"
                self._switch_off(number, kind, "shape", words)

    def remove(self) -> None:
        """Take every hook off. What was switched off gets another chance at the next install()."""
        for group in self._groups.values():
            group.undo()
        self._groups.clear()
        self._off.clear()
        for kind in self._kinds:
            kind.read_only = ""

    def off(self) -> list[Off]:
        """What is off at present."""
        return list(self._off.values())

    def _version(self, kind: ResourceTypeMonitor) -> str:
        if kind.library not in self._versions:
            self._versions[kind.library] = version_of(kind.library)
        return self._versions[kind.library]

    def _is_untested(self, kind: ResourceTypeMonitor) -> bool:
        return bool(kind.tested) and fits(self._version(kind), kind.tested) is False

    def _named(self, kind: ResourceTypeMonitor) -> str:
        return f"{kind.library} {self._version(kind)}".strip()

    def _hook(self, number: int, kind: ResourceTypeMonitor) -> HookGroup:
        try:
            group = install_whole(kind.install)
        except Exception as error:  # noqa: BLE001 - an unknown shape of a library: read only
            failures(f"{type(kind).__name__}.install", error)
            words = (
                f"{self._named(kind)} has another shape than those that were tested ({type(error).__name__})"
            )
            self._switch_off(number, kind, "shape", words)
            return HookGroup()
        if self._off.pop(number, None) is not None:  # it was not loaded whole
            kind.read_only = ""
        return group

    def _switch_off(self, number: int, kind: ResourceTypeMonitor, reason: str, words: str) -> None:
        kind.read_only = f"{words}: uno only reads it; times, holders, callers and errors are unknown."
        self._off[number] = Off(type(kind).__name__, reason, kind.read_only)
        log.warning("%s: %s", type(kind).__name__, kind.read_only)


def is_being_imported(library: str) -> bool:
    """Whether a module of the library's package is not yet whole. What it lacks then is no other shape of it."""
    package = library.partition(".")[0]
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            spec = getattr(module, "__dict__", {}).get("__spec__")
            if getattr(spec, "_initializing", False):
                return True
    return False


def version_of(library: str) -> str:
    """The version of a loaded library; "" where it cannot be told."""
    name = library.partition(".")[0]
    if not name or name in sys.stdlib_module_names:
        return ""
    found = getattr(sys.modules.get(library), "__version__", None) or getattr(
        sys.modules.get(name), "__version__", None
    )
    if isinstance(found, str):
        return found
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except (PackageNotFoundError, ValueError):
        return ""


def fits(version: str, tested: str) -> bool | None:
    """Whether a version is in a range such as ">=1.4,<2.2"; None where one of the two cannot be read.

    Releases alone are compared: 2.2.0b1 is no version below 2.2.
    """
    found = _RELEASE.match(version.strip())
    rules = [_RULE.match(rule) for rule in tested.split(",") if rule.strip()]
    if found is None or not rules or None in rules:
        return None
    has = _numbers(found[1])
    return all(_holds(has, rule[1], _numbers(rule[2])) for rule in rules if rule is not None)


def _numbers(release: str) -> tuple[int, ...]:
    numbers = [int(part) for part in release.split(".")]
    while numbers and not numbers[-1]:  # 2 is 2.0
        numbers.pop()
    return tuple(numbers)


def _holds(has: tuple[int, ...], sign: str, limit: tuple[int, ...]) -> bool:
    told: dict[str, bool] = {
        ">=": has >= limit,
        "<=": has <= limit,
        "==": has == limit,
        "!=": has != limit,
        "<": has < limit,
        ">": has > limit,
    }
    return told[sign]


def notes_of(kinds: Iterable[ResourceTypeMonitor]) -> str:
    """What the page says of a resource that is only read; "" for the others."""
    return " ".join(dict.fromkeys(kind.read_only for kind in kinds if kind.read_only))
