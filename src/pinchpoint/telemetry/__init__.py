"""Readings of the service, its host and ourselves while load runs, taken by one separate process.

`start_collector` is the whole interface for callers; the rest of the package runs inside that process.
"""

from pinchpoint.telemetry.config import CollectorConfig, PageAt
from pinchpoint.telemetry.handle import CollectorHandle, start_collector

__all__ = ["CollectorConfig", "CollectorHandle", "PageAt", "start_collector"]
