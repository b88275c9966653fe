"""The checkouts of one pool: those under way, and the count of those that have ended."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakMethod

from psycopg.pq import TransactionStatus

from django_pooled.diagnostics.call_site import quoted
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import one_line
from django_pooled.sql.fingerprint import fingerprint
from django_pooled.sql.query_text import text_of

from .cancellation import cancel
from .holders import holders
from .thread_exit import Threads

if TYPE_CHECKING:
    from django_pooled.stats.counters import Counters, Record
    from django_pooled.stats.snapshot import ConnectionFigures

    from .checkout import Checkout
    from .connection import PooledConnection
    from .thread_exit import Thread

__all__ = ["DROPPED", "FOLD", "Checkouts", "described"]

logger = logging.getLogger("django_pooled.pool")

DROPPED = "that was dropped without close()"
"""What became of a connection that nothing refers to any more, for `Checkouts.log_reclaimed`."""

FOLD = 100
"""Ends of checkouts that are counted together."""


BRIEF = 1.5
"""Seconds between two looks for which the holders at the second stand."""


def described(
    connection: PooledConnection,
    checkout: Checkout | None = None,
    shows_statement: bool = False,
) -> ConnectionFigures:
    """Describe a connection: idle, or in use since *checkout*."""
    session, now = connection.session, monotonic()
    status, text = connection.look(lambda pgconn: pgconn.transaction_status), None
    if shows_statement and status == TransactionStatus.ACTIVE:
        text = text_of(connection.statement)
    state = "returning" if checkout and checkout.returning else "in use" if checkout else "idle"
    return {
        "backend_pid": session.backend_pid,
        "age": now - session.opened_at,
        "state": state,
        "since": max(0.0, now - (checkout.since if checkout else session.idle_since)),
        "by": (checkout.activity or None) if checkout else None,
        "where": str(checkout.where) if checkout else None,
        "pinned_by": connection.pinned_by,
        "doomed_by": session.doomed_by,
        "status": "closed" if status is None else _STATUS.get(TransactionStatus(status), "closed"),
        "statement": fingerprint(text) if text else None,
    }


_STATUS = {
    TransactionStatus.IDLE: "idle",
    TransactionStatus.ACTIVE: "active",
    TransactionStatus.INTRANS: "idle in transaction",
    TransactionStatus.INERROR: "idle in transaction",
}


class Checkouts:
    """The connections of one pool that are in use, and the record of those that were.

    Args:
        alias: The pool's alias, for log lines.
        lock: The pool's.
        record: Where what has ended is counted.
        leak_after: Seconds after which the log tells where a connection was checked out.
        show_statements: Whether the statements under way are described too.
    """

    def __init__(
        self,
        alias: str,
        lock: threading.RLock,
        record: Record,
        leak_after: float | None,
        show_statements: bool,
    ) -> None:
        self._alias = alias
        self.lock = lock
        self._record = record
        self._leak_after = leak_after
        self._show_statements = show_statements
        self.open: dict[object, Checkout] = {}
        """Those under way, by key. One is added without the lock, under a key of its own. The
        lock guards what is taken away, which is counted first."""
        # The parent process's, kept for good; written by the only thread of a forked process.
        self._inherited: list[PooledConnection] = []
        self.threads: Threads = Threads(WeakMethod(self._thread_ended))
        self._changed = threading.Condition(lock)
        self.watched: bool = False
        """Whether a thread waits for the end of one; guarded by the lock."""

    def __len__(self) -> int:
        return len(self.open)

    def connections(self) -> list[PooledConnection]:
        """The connections in use now."""
        return [
            connection
            for checkout in list(self.open.values())
            if not checkout.returning and (connection := checkout.connection()) is not None
        ]

    def begin(self, connection: PooledConnection, checkout: Checkout) -> None:
        """Note that a connection is in use."""
        connection.uses.append(checkout)
        self.open[checkout.key] = checkout
        connection.in_use = True

    def describe(self) -> list[ConnectionFigures]:
        """Describe the connections in use now, and those that are being given back."""
        return [
            described(connection, checkout, self._show_statements)
            for checkout in list(self.open.values())
            if (connection := checkout.connection()) is not None
        ]

    def note_held(self, seconds: float) -> None:
        """Count the time since the last look for the holders of the connections in use now."""
        now, checkouts = monotonic(), list(self.open.values())
        self._record.hold(
            (
                checkout.activity or checkout.where.function,
                # After a long pause it can't be told who had them before.
                seconds if seconds <= BRIEF else min(seconds, max(now - checkout.since, 1.0)),
            )
            for checkout in checkouts
        )

    def holders(self, max_size: int) -> str | None:
        """Say who holds the connections in use; see `holders.holders`."""
        return holders(list(self.open.values()), max_size)

    def counters(self) -> Counters:
        """Return the counters of the record, and in them what is in use now."""
        return self._record.counters(self._waits)

    def _waits(self) -> list[float]:
        self.fold()
        return [checkout.waited for checkout in list(self.open.values())]

    def end(self, checkout: Checkout, now: float, kept: bool) -> None:
        """Note and count the end of a checkout; under the pool's lock. Twice does no harm.

        Args:
            checkout: One that has ended.
            now: The monotonic moment.
            kept: Whether the connection goes back, and is not closed.
        """
        ends = self._record.book[1]
        ends[checkout.key] = (checkout.waited, now - checkout.since, kept)
        self.open.pop(checkout.key, None)
        if len(ends) >= FOLD or self.watched:
            self.settle()

    def settle(self) -> None:
        """Count the ends that were noted, and tell the thread that waits; under the lock."""
        self.fold()
        if self.watched:
            self._changed.notify_all()

    def fold(self) -> None:
        """Count the ends that were noted; under the pool's lock."""
        # An exception may have kept one of them from being taken away.
        for key in list(self._record.book[1]):
            self.open.pop(key, None)
        self._record.fold()

    def count_anew(self, connect_failures: int) -> None:
        """Count from 0 again. What is in use stays a checkout of the new counts.

        Args:
            connect_failures: Connects that have failed until now.
        """
        with self.lock:
            self.fold()
            self._record.begin_anew(connect_failures)

    def is_current(self, checkout: Checkout) -> bool:
        """Tell whether that checkout has not ended; its connection may have had others since."""
        return checkout.key in self.open

    def end_lost(self) -> int:
        """End the checkouts whose connection has been freed; return how many there were.

        As a rule a finalizer hands such a connection over, but not if an exception interrupts that,
        or once the pool is closed.
        """
        now = monotonic()
        with self.lock:
            self.fold()
            lost = [c for c in list(self.open.values()) if c.connection() is None]
            for checkout in lost:
                self._record.add("reclaimed")
                self.end(checkout, now, kept=False)
        for checkout in lost:
            self.log_reclaimed(checkout, DROPPED)
        return len(lost)

    def log_reclaimed(self, checkout: Checkout, which: str, advice: str = "") -> None:
        """Say where a connection was checked out that its user has not given back.

        Args:
            checkout: The one that is over.
            which: What became of the user.
            advice: What would have been right.
        """
        logger.warning(
            "pool %r: took back a connection %s, checked out at %s%s",
            *(self._alias, which, checkout.where, advice),
            extra=event_fields(
                "connection_reclaimed", alias=self._alias, where=str(checkout.where)
            ),
        )

    def log_overdue(self) -> float:
        """Log checkouts that last longer than ``leak_after``, then twice as long, and so on.

        Returns:
            The seconds until the next may be due.
        """
        assert self._leak_after is not None
        now, pause = monotonic(), self._leak_after
        for checkout in list(self.open.values()):
            if checkout.due <= now:
                held = now - checkout.since
                while checkout.due <= now:
                    checkout.due += checkout.due - checkout.since
                self._log_overdue(checkout, held)
            pause = min(pause, checkout.due - now)
        return pause

    def _log_overdue(self, checkout: Checkout, held: float) -> None:
        logger.warning(
            "pool %r: a connection has been in use for %.1f s%s, checked out at:\n%s",
            self._alias,
            held,
            f" by {one_line(checkout.activity)}" if checkout.activity else "",
            "".join(map(quoted, checkout.stack or [checkout.where])),
            extra=event_fields(
                "connection_held", alias=self._alias, seconds=held, where=str(checkout.where)
            ),
        )

    def cancel_statements(self) -> int:
        """Ask the server to cancel what is under way, but for a COMMIT; return how much that is."""
        found = [
            connection
            for connection in self.connections()
            if connection.look(lambda pgconn: pgconn.transaction_status) == TransactionStatus.ACTIVE
            and not connection.session.is_committing
        ]
        for connection in found:
            connection.session.is_interrupted = True
            cancel(connection)
        return len(found)

    def wait_for_other_threads(self, timeout: float) -> None:
        """Wait until other threads have no connection in use, at most *timeout* seconds."""
        mine, deadline = self.threads.this, monotonic() + timeout

        def is_over() -> bool:
            self.end_lost()
            left = list(self.open.values())
            return all(checkout.thread is mine and not checkout.returning for checkout in left)

        with self._changed:
            self.watched = True
            # A connection that is dropped from now on is freed without notice.
            while not is_over() and (left := deadline - monotonic()) > 0:
                self._changed.wait(min(left, 0.1))

    def abandon(self, lock: threading.RLock) -> None:
        """After fork(): what is in use is the parent's, and *lock* takes the place of its lock.

        The connections stay referenced, so that nothing frees them.
        """
        self.lock, self._changed = lock, threading.Condition(lock)
        self._inherited += [
            connection
            for checkout in self.open.values()
            if (connection := checkout.connection()) is not None
        ]
        self.open = {}

    def _thread_ended(self, thread: Thread) -> None:
        for checkout in list(self.open.values()):
            if checkout.thread is thread:
                checkout.home.left_behind(checkout)
