"""Methods of requests."""

from __future__ import annotations

__all__ = ["SAFE"]

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Those that are not meant to change anything (RFC 9110, section 9.2.1)."""
