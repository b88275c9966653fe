"""A retry budget: restarts never multiply the load of a process beyond a bound."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryBudget"]


class RetryBudget:
    """A token bucket that restarts take from, and that commits and time fill.

    While transactions succeed, each pays for one restart; while none does, the bucket and its
    trickle are all there is, however many threads want to try again.

    Args:
        size: Most tokens, and those at the beginning; 0 for no limit.
        per_second: Tokens that come back by themselves.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, size: int, per_second: float = 10.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self.size = size
        self._per_second = per_second
        self._clock = clock
        self._left = float(size)
        self._at = clock()
        self._lock = threading.Lock()

    @property
    def left(self) -> float | None:
        """Restarts that could be made now; None without a limit."""
        if not self.size:
            return None
        with self._lock:
            return self._filled()

    def take(self) -> bool:
        """Take one restart; False if there is none left."""
        if not self.size:
            return True
        with self._lock:
            left = self._filled()
            if left < 1:
                return False
            self._left = left - 1
            return True

    def give(self) -> None:
        """A transaction was committed."""
        # Without the lock while nothing is missing, which is nearly always.
        if self._left < self.size:
            with self._lock:
                self._left = min(self.size, self._filled() + 1)

    def _filled(self) -> float:
        now = self._clock()
        self._left = min(self.size, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left
