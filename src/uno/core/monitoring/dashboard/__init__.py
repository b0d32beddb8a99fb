"""What does a person see of all this? A page that is served by the application itself."""

from __future__ import annotations

from uno.core.monitoring.dashboard.app import Dashboard

__all__ = ["Dashboard"]
