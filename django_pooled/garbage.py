"""Python's garbage collector, asked at need and not too often."""

from __future__ import annotations

import gc
from time import monotonic

__all__ = ["collect_garbage"]

SHARE = 0.1
"""Most of the time that may go into it: it stops all threads, for longer the larger the process."""

_next_at = float("-inf")


def collect_garbage() -> None:
    """Have what only refers to itself freed, unless that was done a moment ago."""
    global _next_at
    started = monotonic()
    if started >= _next_at:
        # Several threads may come here at once: the collector turns away all but the first.
        gc.collect()
        ended = monotonic()
        _next_at = ended + (ended - started) / SHARE
