"""What do libraries record through OpenTelemetry's API? One resource for each of their meters.

The numbers come by themselves, from ``uno.core.monitoring.otel``; OpenTelemetry itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping

from uno.core.monitoring.type_monitor import ResourceTypeMonitor
from uno.core.resources import Identity, Resource


class MeterTarget:
    """One meter (an instrumentation scope): the name and the version of the library that records."""

    def __init__(self, name: str, version: str = "") -> None:
        self.name, self.version = name, version
        self.instruments = 0


class OpenTelemetryMeter(ResourceTypeMonitor):
    """The instruments of one meter."""

    resource_type = "opentelemetry"
    targets = (f"{__name__}.MeterTarget",)
    blocking = False

    def identify(self, target: MeterTarget) -> Identity:
        return Identity(target.name, labels={"version": target.version} if target.version else {})

    def collect_metrics(self, resource: Resource) -> None:
        """Nothing: what is recorded is in the store already, and callbacks are jobs of their own."""

    def statistics(self, target: MeterTarget) -> Mapping[str, float | None]:
        return {"instruments": target.instruments}

    def ping(self, target: MeterTarget) -> bool:
        return True
