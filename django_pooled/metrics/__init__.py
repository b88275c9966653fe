"""Metrics for monitoring systems: a page for Prometheus, a collector, OpenTelemetry.

Projects import the names below, and `instrument` of ``opentelemetry`` and of ``tracing``; no other
folder imports from here. The packages of either system are imported only where they are used:
neither is required.
"""

from __future__ import annotations

from .collector import PoolCollector
from .page import prometheus

__all__ = ["PoolCollector", "prometheus"]
