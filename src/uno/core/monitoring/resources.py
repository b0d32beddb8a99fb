"""The public names of resource monitoring. No definitions here: see each module."""

from typing import TYPE_CHECKING

from uno.core.monitoring.alerts import Alert
from uno.core.monitoring.discovery import UnknownResourceTypeError
from uno.core.monitoring.health import Health, HealthRegistry, HealthStatus, ResourceHealthAdapter
from uno.core.monitoring.metrics import Counter, Gauge, Histogram, MetricError
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.readings import Holder, Reading, UnknownMetricError
from uno.core.monitoring.thresholds import AlertLevel, Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor

if TYPE_CHECKING:
    from uno.core.monitoring.anomaly import Anomaly, AnomalyDetector
    from uno.core.monitoring.graph import DependencyGraph
    from uno.core.monitoring.report import Report
    from uno.core.monitoring.resource_types.rabbitmq_management import RabbitMQManagement

__all__ = [
    "Alert",
    "AlertLevel",
    "Anomaly",
    "AnomalyDetector",
    "Counter",
    "DependencyGraph",
    "Gauge",
    "Health",
    "HealthRegistry",
    "HealthStatus",
    "Histogram",
    "Holder",
    "MetricError",
    "RabbitMQManagement",
    "Reading",
    "Report",
    "ResourceHealthAdapter",
    "ResourceMonitor",
    "ResourceTypeMonitor",
    "Threshold",
    "UnknownMetricError",
    "UnknownResourceTypeError",
]

#: What a program may do without is loaded when it is first asked for: the import is part of every start.
_LATER = {
    "Anomaly": "anomaly",
    "AnomalyDetector": "anomaly",
    "DependencyGraph": "graph",
    "RabbitMQManagement": "resource_types.rabbitmq_management",
    "Report": "report",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"uno.core.monitoring.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
