"""Metrics for monitoring systems: a page for Prometheus, a collector; see docs/metrics.md."""

from __future__ import annotations

from .collector import PoolCollector
from .page import prometheus

__all__ = ["PoolCollector", "prometheus"]
