"""What is checked out of one pool: since when, by which line of code, for which thread."""

from __future__ import annotations

import logging
import threading
import traceback
from time import monotonic
from typing import TYPE_CHECKING, TypedDict
from weakref import WeakMethod

from .activity import activity_of, current
from .log_facts import facts
from .reclaim import Threads, caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection
    from .reclaim import Line, Thread
    from .record import Counters, Record

__all__ = ["Checkout", "ConnectionFigures", "Usage", "described"]

logger = logging.getLogger("django_pooled.pool")


class Checkout:
    """One connection in use by the thread that makes this.

    Args:
        connection: What it got.
        asked: The monotonic moment at which it began to ask for one.
        thread: Which thread that is.
        left_behind: As `Usage.begin` has it; holds the pool for as long as something is in use.
        keep_stack: Whether to remember the whole stack, and not one line alone.
    """

    __slots__ = (
        "activity",
        "connection",
        "left_behind",
        "since",
        "stack",
        "thread",
        "waited",
        "where",
    )

    def __init__(
        self,
        connection: PooledConnection,
        asked: float,
        thread: Thread,
        left_behind: Callable[[Checkout], None],
        keep_stack: bool,
    ) -> None:
        self.connection = connection
        self.left_behind = left_behind
        self.since: float = monotonic()
        self.waited: float = self.since - asked
        self.where: Line = caller(above=4)  # Past Usage.begin() and Pool.checkout().
        self.stack = traceback.extract_stack() if keep_stack else None
        self.thread = thread
        self.activity: str | None = current.get()
        """What it is for, where something has named it."""


class ConnectionFigures(TypedDict):
    """One connection of a pool at one moment; times are seconds."""

    backend_pid: int
    age: float
    state: str
    """'idle', 'in use' or 'returning': while it is reset at its checkin."""
    since: float
    """How long it has been in that state."""
    by: str | None
    """The view, task or command that has it in use, if that can be told."""
    where: str | None
    """The line that checked it out, as 'module.function:line'; None while it is idle."""
    pinned_by: str | None
    """The session state that keeps it with its request, in transaction mode."""
    doomed_by: str | None
    """Why it will be closed at its checkin."""


def described(connection: PooledConnection, checkout: Checkout | None = None) -> ConnectionFigures:
    """Describe a connection: idle, or in use since *checkout*."""
    life, now = connection.life, monotonic()
    return ConnectionFigures(
        backend_pid=life.backend_pid,
        age=now - life.opened_at,
        state="in use" if checkout else "idle",
        since=max(0.0, now - (checkout.since if checkout else life.idle_since)),
        by=(checkout.activity or activity_of(checkout.thread.ident)) if checkout else None,
        where=str(checkout.where) if checkout else None,
        pinned_by=connection.pinned_by,
        doomed_by=life.doomed_by,
    )


class Usage:
    """The connections of one pool that are in use, and the record of those that were.

    Args:
        alias: The pool's alias, for log lines.
        record: Where what has ended is counted; its lock guards the sums.
        leak_after: Seconds after which the log tells where a connection was checked out.
    """

    def __init__(self, alias: str, record: Record, leak_after: float | None) -> None:
        self._alias = alias
        self._record = record
        self._leak_after = leak_after
        # Who adds to it needs no lock, since a connection that is in use is there once. Who takes
        # away from either does, and counts it before the lock is let go.
        self._checkouts: dict[PooledConnection, Checkout] = {}
        self._returning: dict[PooledConnection, Checkout] = {}
        self._inherited: list[PooledConnection] = []
        self._threads = Threads(WeakMethod(self._thread_ended))
        self._changed = threading.Condition(record.lock)
        self._watched = False

    def __len__(self) -> int:
        return len(self._checkouts) + len(self._returning)

    def connections(self) -> list[PooledConnection]:
        """The connections in use now."""
        return list(self._checkouts)

    def begin(
        self, connection: PooledConnection, asked: float, left_behind: Callable[[Checkout], None]
    ) -> float:
        """Note that this thread has checked out *connection*.

        Args:
            connection: What it got.
            asked: The monotonic moment at which it began to ask for one.
            left_behind: Called with the checkout if the thread ends without giving it back, in a
                thread that is no more, as far as threading knows: it must not log, for instance.

        Returns:
            How many seconds that took.
        """
        checkout = Checkout(
            connection, asked, self._threads.this, left_behind, self._leak_after is not None
        )
        self._checkouts[connection] = checkout
        return checkout.waited

    def describe(self) -> list[ConnectionFigures]:
        """Describe the connections in use now, and those that are being given back."""
        in_use = [described(*pair) for pair in self._checkouts.copy().items()]
        returning = [described(*pair) for pair in self._returning.copy().items()]
        for figures in returning:
            figures["state"] = "returning"
        return in_use + returning

    def counters(self) -> Counters:
        """Return the counters of the record, and in them what is in use now."""
        return self._record.counters(
            lambda: [
                checkout.waited
                for checkout in (*list(self._checkouts.values()), *self._returning.values())
            ]
        )

    def end(self, connection: PooledConnection) -> Checkout | None:
        """Note that *connection* is in use no more; under the record's lock.

        Returns:
            What has ended, for `count`; None if it was not checked out, or is being given back
            already.
        """
        return self._checkouts.pop(connection, None)

    def begin_to_end(self, connection: PooledConnection) -> Checkout | None:
        """Note that *connection* is being reset; it counts as in use until `ended`."""
        with self._record.lock:
            checkout = self._checkouts.pop(connection, None)
            if checkout is not None:
                self._returning[connection] = checkout
        return checkout

    def ended(self, connection: PooledConnection, now: float, kept: bool) -> None:
        """Note that *connection* has been reset."""
        with self._record.lock:
            self.count(self._returning.pop(connection), now, kept)

    def count(self, checkout: Checkout, now: float, kept: bool) -> None:
        """Count a checkout that has ended; under the record's lock, in the same turn as its end.

        Args:
            checkout: What `end` returned.
            now: The monotonic moment.
            kept: Whether the connection went back, and was not closed.
        """
        self._record.checkin(checkout.waited, now - checkout.since, kept)
        if self._watched:
            self._changed.notify_all()

    def is_current(self, checkout: Checkout) -> bool:
        """Tell whether that checkout has not ended; its connection may have had others since."""
        return self._checkouts.get(checkout.connection) is checkout

    def log_if_long(self, checkout: Checkout, now: float) -> None:
        """Log where a connection was checked out that is in use for longer than ``leak_after``."""
        held = now - checkout.since
        if self._leak_after is None or held <= self._leak_after:
            return
        stack = "".join(checkout.stack.format()) if checkout.stack else str(checkout.where)
        logger.warning(
            "pool %r: a connection is in use for %.1f s, checked out at:\n%s",
            self._alias,
            held,
            stack,
            extra=facts(
                "connection_held", alias=self._alias, seconds=held, where=str(checkout.where)
            ),
        )

    def log_long_holds(self) -> None:
        """Log each that is in use for longer than ``leak_after``."""
        now = monotonic()
        for checkout in list(self._checkouts.values()):
            self.log_if_long(checkout, now)

    def wait_for_other_threads(self, timeout: float) -> None:
        """Wait until nothing is in use but by this thread, at most *timeout* seconds."""
        mine = self._threads.this
        with self._changed:
            self._watched = True
            self._changed.wait_for(
                lambda: (
                    not self._returning
                    and all(checkout.thread is mine for checkout in self._checkouts.values())
                ),
                timeout,
            )

    def abandon(self) -> None:
        """After fork(), and after the record: what is in use is the parent's.

        The connections stay referenced, so that nothing frees them.
        """
        self._changed = threading.Condition(self._record.lock)
        self._inherited += [*self._checkouts, *self._returning]
        self._checkouts, self._returning = {}, {}

    def _thread_ended(self, thread: Thread) -> None:
        for checkout in list(self._checkouts.values()):
            if checkout.thread is thread:
                checkout.left_behind(checkout)
