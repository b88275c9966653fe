"""Python's garbage collector, asked at need and not too often."""

from __future__ import annotations

import gc
from time import monotonic

__all__ = ["collect_garbage"]

SHARE = 0.1
"""Most of the time that may go into it: it stops all threads, for longer the larger the process."""

# Without a lock: if two threads write them at once, the moment of either will do.
_last_at = _next_at = float("-inf")


def collect_garbage(since: float | None = None) -> None:
    """Have what only refers to itself freed, unless that was done a moment ago.

    Args:
        since: A monotonic moment: then unless it was done after that.
    """
    global _last_at, _next_at
    started = monotonic()
    if started >= _next_at if since is None else _last_at < since:
        # Several threads may come here at once: the collector turns away all but the first.
        gc.collect()
        ended = monotonic()
        _last_at, _next_at = started, ended + (ended - started) / SHARE
