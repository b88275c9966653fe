"""Middleware of requests: 503 with Retry-After, a deadline and a lane for each, reads sent again.

Projects name these in ``MIDDLEWARE``, so only checks import this folder. What it needs of the pool
and of errors it takes from below; no rule about transactions comes in here.
"""

from __future__ import annotations

from .deadline import DeadlineMiddleware
from .lane import LaneMiddleware
from .reads import RetryReadsMiddleware
from .unavailable import DatabaseUnavailableMiddleware, handler500, unavailable_response

__all__ = [
    "DatabaseUnavailableMiddleware",
    "DeadlineMiddleware",
    "LaneMiddleware",
    "RetryReadsMiddleware",
    "handler500",
    "unavailable_response",
]
