"""A bound on the delay in a queue: which waiters are refused once all of them wait too long."""

from __future__ import annotations

__all__ = ["QueueDelay"]


class QueueDelay:
    """Controlled delay (CoDel), with the rules of Ecto's DBConnection.

    A burst makes a queue that is gone soon, an overload one that stays. The length tells neither
    from the other, but the least wait of an interval does. If it was above the target, those that
    have waited for twice the target are refused, until an interval in which the least wait is
    below it, and none is refused. Served are then those that have waited for less; with the first
    limit at the target itself, each interval of refusals would be followed by one without.

    A thread that waits to be refused serves no other request meanwhile. So one more waiter than
    are served within that time, at the rate of the last interval, is refused at once.

    https://queue.acm.org/detail.cfm?id=2209336,
    https://hexdocs.pm/db_connection/DBConnection.html#start_link/2-queue-config

    The pool's lock guards it, but for `refuses_from`, whose answer is a moment to look again.

    Args:
        target: Seconds.
        interval: Seconds.
    """

    def __init__(self, target: float, interval: float) -> None:
        self.target = target
        self.interval = interval
        # In the present interval: the least wait, connections that were taken, refusals.
        self._least, self._taken, self._refused = 0.0, 0, 0
        self._began_at = 0.0
        self._rate = 0.0  # connections taken per second, in the interval before
        self._ends_at = 0.0  # when the present interval ends; it may have ended
        self._is_overloaded = False  # as the interval before has shown
        self._counts_from = 0.0  # waits before that moment were for something else

    def begin_anew(self, now: float) -> None:
        """Count waits from now on: until now they were not for connections in use."""
        self._counts_from = self._began_at = now
        self._ends_at = now + self.interval
        self._least, self._taken, self._refused = 0.0, 0, 0
        self._is_overloaded = False

    def note_idle(self) -> None:
        """A connection has come back that no waiter wants: the queue is a short one."""
        self._least = 0.0

    def note_taken(self) -> None:
        """A connection is taken, by a waiter or without a wait."""
        self._taken += 1

    def note_served(self, since: float, now: float) -> None:
        """A waiter gets a connection.

        Args:
            since: When it began to wait.
            now: The monotonic moment.
        """
        waited = self._see(since, now)
        self._least = min(self._least, waited)

    def refuses(self, since: float, now: float) -> bool:
        """Tell whether a waiter has waited too long.

        Args:
            since: When it began to wait.
            now: The monotonic moment.
        """
        if self._waited(since, now) < 2 * self.target:
            # It waits still: how long, it is too early to tell.
            return False
        self._see(since, now)
        self._refused += self._is_overloaded
        return self._is_overloaded

    def has_enough(self, since: list[float], now: float) -> bool:
        """Tell whether a new waiter is refused, since it would wait too long.

        Args:
            since: When those began to wait that wait already, the first one first.
            now: The monotonic moment.
        """
        is_refused = (
            self._is_overloaded
            and now < self._ends_at + self.interval
            and len(since) >= max(1.0, self._rate * 2 * self.target)
            # Else they may be a burst: the rate of a pool that was idle tells of few arrivals.
            and self._waited(since[0], now) > self.target
        )
        self._refused += is_refused
        return is_refused

    def refuses_from(self, since: float) -> float:
        """Return the monotonic moment before which a waiter is not refused.

        Args:
            since: When it began to wait.
        """
        overdue = max(since, self._counts_from) + 2 * self.target
        return overdue if self._is_overloaded else max(overdue, self._ends_at)

    def _see(self, since: float, now: float) -> float:
        """Return how long a waiter has waited; the first one after an interval begins another."""
        waited = self._waited(since, now)
        if now >= self._ends_at:
            goes_on = self._refused > 0 and now < self._ends_at + self.interval
            self._is_overloaded = self._least > self.target or goes_on
            self._rate = self._taken / max(now - self._began_at, self.interval)
            self._least, self._taken, self._refused = waited, 0, 0
            self._began_at, self._ends_at = now, now + self.interval
        return waited

    def _waited(self, since: float, now: float) -> float:
        return now - max(since, self._counts_from)
