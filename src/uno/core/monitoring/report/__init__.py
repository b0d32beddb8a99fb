"""What happened between two times, for people and for spreadsheets?"""

from __future__ import annotations

from uno.core.monitoring.report.model import Report, Row

__all__ = ["Report", "Row"]
