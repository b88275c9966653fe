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


class _Debt:
    """Restarts that were not yet paid for, by commits or by time."""

    __slots__ = ("at", "owed")

    def __init__(self, at: float) -> None:
        self.owed = 0.0
        self.at = at

    def paid(self, now: float, per_second: float) -> float:
        """Return what is owed now, after time has paid for *per_second* of them."""
        self.owed = max(0.0, self.owed - (now - self.at) * per_second)
        self.at = now
        return self.owed


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
        self._debts: dict[str, _Debt] = {}
        self._all = _Debt(clock())

    @property
    def left(self) -> float | None:
        """Restarts that the function which owes most could make now; None without a limit."""
        if not self.size:
            return None
        with self._lock:
            now = self._clock()
            owed = [debt.paid(now, self._per_second) for debt in self._debts.values()]
            return max(0.0, min(self.size - max(owed, default=0.0), self._left(now)))

    def take(self, name: str = "") -> bool:
        """Take one restart; False if none is left for the function.

        Args:
            name: That of the function; those of the same name share a budget.
        """
        if not self.size:
            return True
        with self._lock:
            now = self._clock()
            left = self._left(now)
            debt = self._debt(name, now)
            owed = debt.paid(now, self._per_second)
            if min(left, self.size - owed) < 1 or (left < self._spare + 1 and owed >= left):
                return False
            self.is_owed = True
            debt.owed += 1
            self._all.owed += 1
            return True

    def give(self, name: str = "") -> None:
        """A transaction of the function with this name was committed."""
        with self._lock:
            debt = self._debts.get(name) or self._debts.get("")
            if debt is not None and debt.owed:
                debt.owed = max(0.0, debt.owed - 1)
                self._all.owed = max(0.0, self._all.owed - 1)
            self._forget()

    def _left(self, now: float) -> float:
        """Return how many are left for all functions together."""
        whole = self.size + self._spare
        return whole - self._all.paid(now, self._per_second * whole / self.size)

    def _debt(self, name: str, now: float) -> _Debt:
        if name not in self._debts:
            if len(self._debts) >= MOST_FUNCTIONS:
                self._forget()
            if len(self._debts) >= MOST_FUNCTIONS:
                name = ""
        return self._debts.setdefault(name, _Debt(now))

    def _forget(self) -> None:
        """Drop the functions that owe nothing."""
        now = self._clock()
        for name, debt in list(self._debts.items()):
            if not debt.paid(now, self._per_second):
                del self._debts[name]
        self.is_owed = bool(self._debts)


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
