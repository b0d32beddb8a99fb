"""What does a page say of resources, their health and alerts? Few lines, made anew."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from uno.core.monitoring.exporters.prometheus.style import Sample
from uno.core.monitoring.health import HealthStatus
from uno.core.monitoring.names import wire_label
from uno.core.records import NamedTuple

if TYPE_CHECKING:
    from uno.core.monitoring.monitor import ResourceMonitor

_HEALTH = "uno_resource_health"
_STATES = tuple(status.value for status in HealthStatus)
_STEP = 50


class Given(NamedTuple):
    """A family whose samples are given; ``name`` is without a suffix."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


def families(
    monitor: ResourceMonitor, resources: frozenset[str]
) -> Generator[float, None, tuple[Given, ...]]:
    """Resources, health (a stateset: 1 for the present status, 0 for the others) and alerts, in small steps.

    ``resources`` chooses some; all where it is empty.
    """
    info: list[Sample] = []
    health: list[Sample] = []
    for n, r in enumerate(list(monitor.manager)):
        if resources and r.id not in resources:
            continue
        labels = (("resource", r.id), ("type", r.type), ("name", r.name), ("endpoint", r.endpoint or ""))
        info.append(Sample("_info", labels, 1.0))
        present = monitor.team.health(r.id).status.value
        health += [
            Sample("", (("resource", r.id), (_HEALTH, state)), float(state == present)) for state in _STATES
        ]
        if n % _STEP == _STEP - 1:
            yield 0.0
    alerts: dict[tuple[tuple[str, str], ...], Sample] = {}
    for n, a in enumerate(monitor.team.alerts()):
        if resources and a.resource not in resources:
            continue
        pairs = {"resource": a.resource, "metric": a.metric, "level": a.level.label, "state": a.state}
        pairs["source"] = a.source
        pairs.update({f"label_{wire_label(key)}": value for key, value in a.labels.items()})
        key = tuple(pairs.items())
        alerts[key] = Sample("", key, 1.0)
        if n % _STEP == _STEP - 1:
            yield 0.0
    return (
        Given("uno_resource", "info", "What a resource is", info),
        Given(_HEALTH, "stateset", "The health of a resource: 1 for its present status", health),
        Given("uno_alert", "gauge", "Alerts that are pending or firing", [*alerts.values()]),
    )
