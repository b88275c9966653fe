"""A retry budget: limits the load that restarts may add, of each function and of all together."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from django_pooled.pool.pool import RetryBudget as Limit

__all__ = ["RetryBudget", "budget_of"]

MOST_FUNCTIONS = 1000
"""Functions with a budget of their own; all further ones of a process share one."""


class RetryBudget:
    """Restarts that functions may owe until commits or time pay for them.

    Each commit of a function pays for one of its restarts, and time pays for some each second. A
    function may owe ``size``, all functions together twice as many. Of the second half, a function
    gets none while it owes as many as are left. So a function that fails again and again gets none
    of it, each further one like that gets fewer, and one is left for a function that owes nothing.

    Args:
        size: Restarts that one function may owe; 0 for no limit.
        per_second: Restarts of one function that time pays for.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, size: int, per_second: float = 10.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self.size = size
        # A single one cannot be shared.
        self._spare = size if size > 1 else 0
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.RLock()
        self.is_owed: bool = False
        """Whether there may be restarts to pay for; set under the lock."""
        # Guarded by the lock:
        self._owed: dict[str, float] = {}  # by the names of the functions that owe any
        self._owed_by_all = 0.0
        self._paid_at = clock()  # up to when time has paid

    @property
    def left(self) -> float | None:
        """Restarts that the function which owes most could make now; None without a limit."""
        if not self.size:
            return None
        with self._lock:
            self._let_time_pay()
            most = max(self._owed.values(), default=0.0)
            return max(0.0, min(self.size - most, self.size + self._spare - self._owed_by_all))

    def take(self, name: str = "") -> bool:
        """Take one restart; False if none is left for the function.

        Args:
            name: That of the function; those of the same name share a budget.
        """
        if not self.size:
            return True
        with self._lock:
            self._let_time_pay()
            if name not in self._owed and len(self._owed) >= MOST_FUNCTIONS:
                name = ""
            owed = self._owed.get(name, 0.0)
            left = self.size + self._spare - self._owed_by_all
            if min(left, self.size - owed) < 1 or (left < self._spare + 1 and owed >= left):
                return False
            self.is_owed = True
            self._owed[name] = owed + 1
            self._owed_by_all += 1
            return True

    def give(self, name: str = "") -> None:
        """A transaction of the function with this name was committed."""
        if not self.size:
            return
        with self._lock:
            self._let_time_pay()
            if name not in self._owed:
                name = ""
            owed = self._owed.pop(name, 0.0)
            if owed:
                self._owed_by_all = max(0.0, self._owed_by_all - 1)
            if owed > 1:
                self._owed[name] = owed - 1
            self.is_owed = bool(self._owed)

    def _let_time_pay(self) -> None:
        """Take off what time has paid for since it last did; under the lock."""
        now = self._clock()
        paid, self._paid_at = (now - self._paid_at) * self._per_second, now
        for name, owed in list(self._owed.items()):
            if owed > paid:
                self._owed[name] = owed - paid
            else:
                self._owed.pop(name, None)
        paid_for_all = paid * (self.size + self._spare) / self.size
        self._owed_by_all = max(0.0, self._owed_by_all - paid_for_all)


_making = threading.Lock()
"""Held by a thread that makes a pool's budget."""


def budget_of(pool: Pool) -> Limit:
    """Return a pool's budget, which is made at its first restart: until then nothing is owed."""
    with _making:
        if pool.retry_budget is None:
            pool.retry_budget = RetryBudget(pool.options.retry_budget)
        return pool.retry_budget


def _after_fork_in_child() -> None:
    # It may have been held by a thread that is not in the child.
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
