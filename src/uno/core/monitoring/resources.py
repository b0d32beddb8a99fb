"""The public names of resource monitoring. No definitions here: see each module."""

from uno.core.monitoring.alerts import Alert
from uno.core.monitoring.anomaly import Anomaly, AnomalyDetector
from uno.core.monitoring.discovery import UnknownResourceTypeError
from uno.core.monitoring.graph import DependencyGraph
from uno.core.monitoring.health import Health, HealthRegistry, HealthStatus, ResourceHealthAdapter
from uno.core.monitoring.metrics import Counter, Gauge, Histogram, MetricError
from uno.core.monitoring.monitor import ResourceMonitor
from uno.core.monitoring.readings import Holder, Reading, UnknownMetricError
from uno.core.monitoring.report import Report
from uno.core.monitoring.resource_types.rabbitmq_management import RabbitMQManagement
from uno.core.monitoring.thresholds import AlertLevel, Threshold
from uno.core.monitoring.type_monitor import ResourceTypeMonitor

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
