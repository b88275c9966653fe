"""Why a checkout is refused: the error of each reason, its words, and what it counts as."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from django_pooled.diagnostics.redaction import told
from django_pooled.errors import (
    CheckoutTimeout,
    ConnectFailed,
    PoolClosed,
    PoolError,
    PoolExhausted,
)

from . import queue
from .connect_errors import AttemptFailed
from .deadline import current
from .waiter import Overdue

if TYPE_CHECKING:
    from django_pooled.stats.counters import Record

    from .checkouts import Checkouts
    from .connector import Connector
    from .deadline import Deadline
    from .events import Events
    from .figures import Figures
    from .lanes import Lane
    from .options import PoolOptions

__all__ = ["REASONS", "Refusal", "Refusals"]

REASONS: Final = (
    queue.PoolTimeout,
    queue.TooManyRequests,
    queue.PoolClosed,
    queue.Refused,
)
"""What the queue raises when it hands out no connection."""

E = TypeVar("E", bound=PoolError)


class Refusal(NamedTuple):
    """What is raised in a thread that gets no connection."""

    error: PoolError
    cause: BaseException | None
    """Why the server cannot be reached, if that is so."""


class Refusals:
    """Makes and counts the errors of one pool's checkouts.

    Args:
        alias: The pool's alias.
        options: Its options.
        server: Where the connections lead to, for people.
        pool: Its connections and its waiters.
        connector: What opens them.
        checkouts: Which are in use.
        figures: How full it is.
        events: Is told of each error.
        record: Counts them.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        server: str,
        pool: queue.RecoveringPool,
        connector: Connector,
        checkouts: Checkouts,
        figures: Figures,
        events: Events,
        record: Record,
    ) -> None:
        self._alias = alias
        self._options = options
        self._server = server
        self._pool = pool
        self._connector = connector
        self._checkouts = checkouts
        self._figures = figures
        self._events = events
        self._record = record

    def because(self, reason: Exception, started: float, deadline: float) -> Refusal:
        """Return what to raise for one of `REASONS`.

        Args:
            reason: What the queue has raised.
            started: The monotonic moment at which the checkout began.
            deadline: The one at which it had to end.
        """
        error: PoolError
        cause = _cause_of(self._connector.trouble)
        if isinstance(reason, queue.PoolTimeout):
            limit = current.get()
            if limit is not None and limit.until <= deadline:
                return Refusal(self.too_late(limit, started), cause)
            what = f"no connection within {self._options.timeout:g} s"
            error, counter = self._error(CheckoutTimeout, started, what), "timeouts"
        elif isinstance(reason, Overdue):
            self._record.add("shed")
            error, counter = self._shed(reason.lane, started), "exhausted"
        elif isinstance(reason, queue.TooManyRequests):
            waiting = self._options.max_waiting
            who = "1 thread is" if waiting == 1 else f"{waiting} threads are"
            what = f"{who} waiting already"
            error, counter = self._error(PoolExhausted, started, what), "exhausted"
        elif isinstance(reason, queue.PoolClosed):
            return Refusal(self._error(PoolClosed, started, "the pool is closed"), None)
        else:
            refusal = reason.__cause__ or reason
            what, cause = f"cannot connect: {told(refusal)}", _cause_of(refusal)
            error, counter = self._error(ConnectFailed, started, what), "refused"
        self._record.add(counter)
        return Refusal(self._events.failed(error), cause)

    def too_late(self, limit: Deadline, started: float) -> PoolError:
        """Return the error of a checkout that had to end with the present deadline."""
        self._record.add("deadlines", "checkout")
        self._record.add("timeouts")
        what = f"{limit.reason} before a connection was had"
        return self._events.failed(self._error(CheckoutTimeout, started, what))

    def _shed(self, lane: Lane, started: float) -> PoolError:
        delay = lane.delay
        assert delay is not None
        error = self._error(
            PoolExhausted,
            started,
            f"overload: for {delay.interval:g} s or more checkouts have waited for longer than "
            f"queue_target, {delay.target:g} s, and this one would wait for twice as long",
        )
        error.limit = "queue_target"
        return error

    def _error(self, kind: type[E], started: float, what: str) -> E:
        elapsed, gauges = monotonic() - started, self._figures.gauges()
        is_full = kind in (CheckoutTimeout, PoolExhausted)
        pause = self._pool.pause
        holders = self._checkouts.holders(self._pool.max_size) if is_full else None
        if pause is not None:
            what += f": paused by {pause.by}, for {pause.left:.1f} s more"
        elif holders:
            # So that a log tells which view it was, after the incident too.
            what += f": {holders}"
        if is_full:
            what += self._pool.describe_lane()
        message = f"pool {self._alias!r}: {what} (after {elapsed:.2f} s; {gauges})"
        trouble, opening = self._connector.trouble, self._pool.opening
        if kind is CheckoutTimeout and trouble is not None:
            message += f"; the last attempt to connect failed: {told(trouble)}"
        elif kind is CheckoutTimeout and opening:
            message += f"; {opening} being opened, without an answer yet from {self._server}"
        error = kind(message, alias=self._alias, elapsed=elapsed, gauges=gauges)
        error.holders = holders
        return error


def _cause_of(failure: BaseException | None) -> BaseException | None:
    """Return the project's own error, where it is the project that failed."""
    return failure.__cause__ if isinstance(failure, AttemptFailed) else failure
