"""Servers of the tests: PostgreSQL, poolers, and proxies that fail on demand."""

from __future__ import annotations
