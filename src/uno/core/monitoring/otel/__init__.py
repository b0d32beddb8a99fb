"""How do libraries that speak OpenTelemetry record into uno? Through a MeterProvider that is uno's own.

``opentelemetry.metrics.set_meter_provider(UnoMeterProvider(monitor))``, and FastAPI, httpx, SQLAlchemy, redis and
every other instrumented library are on the page, in reports, alerts and scrapes. Of OpenTelemetry, the API package
is enough (``pip install "uno-monitor[otel]"``); the SDK is not used. Each meter is a resource of the type
"opentelemetry". Source: OpenTelemetry specification 1.50, metrics API and SDK.
"""

from uno.core.monitoring.otel.provider import UnoMeterProvider
from uno.core.monitoring.otel.views import View

__all__ = ["UnoMeterProvider", "View"]
