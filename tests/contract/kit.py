"""What must hold for every resource type? Checks that the tests of any of them use."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from tests.servers import wait_until
from uno.core.monitoring.integration import setup_prometheus_exporter
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Resource

#: Names that the tests of all connection pools use.
WAIT, USE, DURATION = "connection_wait_time", "connection_use_time", "query_duration"
CREATE, PENDING, TIMEOUTS = "db.client.connection.create_time", "connections_waiting", "connection_timeouts"
STATE = "db.client.connection.state"
USED, IDLE = {STATE: "used"}, {STATE: "idle"}
#: How far a measured time may be from the truth on a busy machine.
CLOSE = 0.03


async def soon(condition: Callable[[], object], what: str = "", seconds: float = 10) -> None:
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
    said: list[object] = [setup_prometheus_exporter(monitor).render().decode()]
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


async def gone(monitor: ResourceMonitor, resource: Resource) -> None:
    """What the test has dropped leaves, while the event loop goes on."""
    await soon(lambda: (gc.collect(), resource.id not in monitor.manager)[1], "unregistered")
