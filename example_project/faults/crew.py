"""The workers that wait for orders, as ``serve`` sees them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

from django_pooled.stats.names import session_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Line


class Crew:
    """All workers, each of which keeps a call open, and the connections they hold hostage."""

    def __init__(self, released: Callable[[], None]) -> None:
        """Prepare for workers.

        Args:
            released: called each time when the last connection that was held is free again.
        """
        self._released = released
        self._lines: dict[int, Line] = {}
        self._held: dict[int, int] = {}
        self._reporting = threading.Lock()
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
                self._report(pid, report["held"])
        finally:
            del self._lines[pid]
            self._report(pid, 0)

    def _report(self, pid: int, held: int) -> None:
        with self._reporting:
            before = self.held
            self._held[pid] = held
            free = before and not self.held
            if not held:
                del self._held[pid]
        if free:
            self._released()

    def take(self, seconds: float) -> None:
        """Have every worker take all connections it may have."""
        self._until = time.monotonic() + seconds
        for line in self._lines.copy().values():
            # A worker that has just died holds nothing.
            with contextlib.suppress(OSError):
                line.send({"seconds": seconds})
