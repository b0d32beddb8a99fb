"""What must hold for every resource type? Checks for the tests of any of them, yours included.

:func:`meets_contract` is the whole of it in one call; the rest are its parts, for tests that look closer.
Nothing here needs a test framework.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from uno.core.monitoring.exporters.prometheus.exporter import PrometheusExporter
from uno.core.monitoring.instrumentation import failures
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.resource_types import Recogniser, load
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Resource, ResourceManager

__all__ = [
    "Watched",
    "dies",
    "everything_said",
    "hooked",
    "meets_contract",
    "names_without_series",
    "soon",
    "unknown",
    "wait_until",
    "watching",
]


def wait_until(condition: Callable[[], object], seconds: float = 30, what: str = "") -> None:
    """Call ``condition`` until it is true; TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or 'it'}: not within {seconds:g} s")
        time.sleep(0.02)


async def soon(condition: Callable[[], object], what: str = "", seconds: float = 30) -> None:
    """As ``wait_until``, for tests whose event loop has to go on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


class Watched:
    """One resource that a running monitor watches, read through the public names."""

    def __init__(self, monitor: ResourceMonitor, obj: Any, id: str = "it") -> None:
        self.monitor = monitor
        self.resource: Resource = monitor.manager.register(obj, id=id)

    @property
    def driver(self) -> ResourceTypeMonitor:
        """What watches it."""
        driver = self.resource.driver
        assert isinstance(driver, ResourceTypeMonitor)
        return driver

    def read(self, metric: str, stat: str | None = None, **labels: str) -> float | None:
        """Its value at the last tick."""
        return self.monitor.read(self.resource.id, metric, labels, stat=stat)

    def until(self, expected: float | None, metric: str, stat: str | None = None, **labels: str) -> None:
        """Wait for a value."""
        wait_until(
            lambda: self.read(metric, stat, **labels) == expected,
            10,
            f"{metric} {expected}, it is {self.read(metric, stat, **labels)}",
        )

    async def soon(self, expected: float | None, metric: str, stat: str | None = None, **labels: str) -> None:
        """Wait for a value while the event loop goes on."""
        await soon(lambda: self.read(metric, stat, **labels) == expected, f"{metric} {expected}")

    def explain(self, metric: str = "uno.resource.utilization") -> str:
        """The cause of a value, in words."""
        return self.driver.explain(self.resource.target, metric)

    def sites(self, *, waiting: bool = False) -> dict[str, int]:
        """Which places hold (or wait for) how many slots."""
        found = [h for h in self.monitor.holders(self.resource.id) if h.waiting is waiting]
        return {h.site: sum(o.slots for o in found if o.site == h.site) for h in found}


def names_without_series(watched: Watched) -> set[str]:
    """The metrics that the type declares and that have no series."""
    seen = {series.metric for series in watched.monitor.series(watched.resource.id)}
    return {spec.name for spec in watched.driver.metrics} - seen


def unknown(watched: Watched) -> set[str]:
    """The gauges and counters that are a gap at the last tick."""
    return {
        series.metric
        for series in watched.monitor.series(watched.resource.id)
        if series.kind != "histogram" and set(series.stats.values()) == {None}
    }


def hooked(*modules: str) -> list[str]:
    """The methods of a library's classes that a hook has replaced."""
    found = set()
    for name, module in list(sys.modules.items()):
        if not name.startswith(modules):
            continue
        for cls in list(vars(module).values()):
            if isinstance(cls, type) and cls.__module__.startswith(modules):
                found |= {
                    f"{cls.__qualname__}.{k}" for k, v in vars(cls).items() if hasattr(v, "__uno_hook__")
                }
    return sorted(found)


def everything_said(monitor: ResourceMonitor) -> str:
    """All that the monitor tells anybody, as one text: a password must not be in it."""
    said: list[object] = [PrometheusExporter(monitor).render().decode()]
    for resource in monitor.manager:
        said += [repr(resource), resource.name, resource.endpoint, resource.labels, resource.how]
        said += [monitor.health_of(resource.id), monitor.holders(resource.id), monitor.series(resource.id)]
        if isinstance(resource.driver, ResourceTypeMonitor):
            said += [resource.driver.explain(resource.target, spec.name) for spec in resource.driver.metrics]
    said += [alert.to_dict() for alert in (*monitor.alerts.active(), *monitor.alerts.history(500))]
    said += [json.dumps(monitor.generate_dependency_graph().to_dict()), monitor.generate_report()]
    return "\n".join(map(str, said))


def dies(monitor: ResourceMonitor, make: Callable[[], Any], resource_type: str) -> None:
    """What was discovered is not kept alive: it leaves when the application drops it."""
    target = make()
    monitor.discover_resources(resource_type)
    (resource,) = [r for r in monitor.manager if r.target is target]
    wait_until(lambda: monitor.series(resource.id), 10, "a collection")
    reference = weakref.ref(target)
    del target
    gc.collect()
    wait_until(lambda: (gc.collect(), reference())[1] is None, 10, "the object goes")
    wait_until(lambda: resource not in monitor.manager, 10, "the resource leaves")


@contextmanager
def watching(*kinds: type[ResourceTypeMonitor], interval: float = 0.05) -> Iterator[ResourceMonitor]:
    """A running monitor that knows ``kinds`` beside all others, as if they were announced by a plug-in.

    At its end no hook may have failed.
    """
    before = failures.cell.value
    known = load().kinds
    fresh = [kind() for kind in kinds if not any(type(one) is kind for one in known)]
    with ResourceMonitor(ResourceManager(Recogniser([*known, *fresh])), interval=interval) as monitor:
        yield monitor
    assert failures.cell.value == before, (
        f"{failures.cell.value - before:g} calls of hooks failed: see the log"
    )


def meets_contract(
    kind: type[ResourceTypeMonitor],
    make: Callable[[], Any],
    use: Callable[[Any], object] = id,
    *,
    secret: str = "",
    may_lack: tuple[str, ...] = (),
) -> None:
    """What must hold for every resource type, as AssertionError or TimeoutError that say what does not.

    ``make()`` gives a new object of the library, ``use(object)`` does with it what applications do and returns a result
    to compare, ``secret`` is a password that the object knows, ``may_lack`` are declared metrics that have no
    series in this test. Checked are: the object is recognised, and found unless only names are looked at; every
    declared metric is there; what a type leaves unread at rest is what it would read; the application gets the same
    result with uno and without; words and numbers hold no secret; no hook fails; hooks come off, whole, twice; what the
    application drops is not kept alive.
    """
    plain_target = make()
    plain = use(plain_target) if use is not id else None
    before = _classes(kind)
    for _ in range(2):
        with watching(kind) as monitor:
            target = make()
            watched = Watched(monitor, target)
            assert type(watched.driver) is kind, f"recognised by {type(watched.driver).__name__}"
            assert watched.resource.type == kind.resource_type
            got = use(target) if use is not id else None
            assert got == plain, f"the application got {type(got).__name__}: not what it gets without uno"
            lacking = set(may_lack)
            wait_until(
                lambda w=watched, lack=lacking: names_without_series(w) <= lack,  # type: ignore[misc]
                10,
                "a series for every declared metric",
            )
            assert not secret or secret not in everything_said(monitor), "the secret is said"
            _rests_truly(watched)
            monitor.manager.unregister(watched.resource)
            del watched, target
            if not kind.only_named:
                dies(monitor, make, kind.resource_type)
        left = [name for name, kept in _classes(kind).items() if before.get(name, kept) != kept]
        assert not left, f"hooks were left on {', '.join(left)}"


def _rests_truly(watched: Watched) -> None:
    """What was left as it is, since the type says that it is at rest, is what a collection gives."""
    monitor, resource, driver = watched.monitor, watched.resource, watched.driver

    def gauges() -> dict[tuple[str, ...], Any]:
        return {
            (one.metric, *one.labels.values()): one.stats["value"]
            for one in monitor.series(resource.id)
            if one.kind == "gauge"
        }

    def two_ticks() -> None:
        for _ in range(2):
            frame = monitor.store.frame
            wait_until(lambda seen=frame: monitor.store.frame is not seen, 10, "a tick")  # type: ignore[misc]

    rest = driver.at_rest(resource.target)
    if rest is None:
        return
    two_ticks()
    left = gauges()
    monitor.store.blank(resource.id, "driver")
    two_ticks()
    read = gauges()
    if driver.at_rest(resource.target) == rest:
        assert left == read, f"at rest, and yet: {dict(set(read.items()) - set(left.items()))}"


def _classes(kind: type[ResourceTypeMonitor]) -> dict[str, dict[str, Any]]:
    """What the classes of a type's modules define."""
    modules = {target.rpartition(".")[0] for target in kind.targets}
    return {
        f"{name}.{cls.__qualname__}": dict(vars(cls))
        for name in modules
        if name in sys.modules
        for cls in list(vars(sys.modules[name]).values())
        if isinstance(cls, type) and cls.__module__ == name
    }
