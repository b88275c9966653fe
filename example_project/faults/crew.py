"""The workers that wait for orders, as ``serve`` sees them."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from django_pooled.stats.snapshot import session_name

if TYPE_CHECKING:
    from .channel import Line


class Crew:
    """All workers, each of which keeps a call open, and the connections they hold hostage."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._held: dict[int, int] = {}
        self._until = 0.0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def held(self) -> int:
        """Connections that are held now, of all workers."""
        return sum(self._held.copy().values())

    @property
    def left(self) -> float | None:
        """Seconds until they are released; None while none is to be held."""
        left = self._until - time.monotonic()
        return left if left > 0 else None

    def session_names(self) -> list[str]:
        """Return what the workers' sessions are called in pg_stat_activity."""
        host = socket.gethostname()
        return [session_name(pid, host) for pid in self._lines.copy()]

    def listen(self, pid: int, line: Line) -> None:
        """Note what one worker reports, until it hangs up."""
        self._lines[pid] = line
        try:
            for report in line:
                self._held[pid] = report["held"]
        finally:
            del self._lines[pid]
            self._held.pop(pid, None)

    def take(self, seconds: float) -> int:
        """Have every worker take all connections it may have; return how many workers there are."""
        self._until = time.monotonic() + seconds
        lines = list(self._lines.copy().values())
        for line in lines:
            # A worker that has just died holds nothing.
            with contextlib.suppress(OSError):
                line.send({"seconds": seconds})
        return len(lines)
