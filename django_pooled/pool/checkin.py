"""How a connection comes back whose session is not as new, or that its thread has left behind."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING
from weakref import ref

from psycopg.pq import TransactionStatus

from django_pooled.signals import connection_checked_in

from .cancellation import cancel
from .checkouts import DROPPED

if TYPE_CHECKING:
    import threading

    from django_pooled.stats.counters import Reason, Record

    from .checkout import Checkout
    from .checkouts import Checkouts
    from .connection import PooledConnection
    from .connector import Connector
    from .events import Events
    from .eviction import Eviction
    from .queue import RecoveringPool
    from .reset import Reset

__all__ = ["Checkin"]


class Checkin:
    """Resets connections of one pool and gives them back, or closes them; see `Pool.checkin`.

    Args:
        lock: The pool's.
        queue: Where connections go back to.
        checkouts: Which connections are in use.
        reset: Brings a connection back to the state of a new one.
        connector: Is told of connections that were lost.
        eviction: Is told of connections that are not kept.
        events: Is told of each end.
        record: Counts what was left behind or dropped.
    """

    def __init__(
        self,
        lock: threading.RLock,
        queue: RecoveringPool,
        checkouts: Checkouts,
        reset: Reset,
        connector: Connector,
        eviction: Eviction,
        events: Events,
        record: Record,
    ) -> None:
        self._lock = lock
        self._queue = queue
        self._checkouts = checkouts
        self._reset = reset
        self._connector = connector
        self._eviction = eviction
        self._events = events
        self._record = record

    def end(self, checkout: Checkout, connection: PooledConnection) -> None:
        """End a checkout, which only this caller has claimed, and renew or close its connection."""
        kept = False
        # From here on no user can reach the session. The reset works on the new object, since a
        # generator that is kept may hold the lock of the old one.
        renewed = _renewed(connection, checkout)
        try:
            if not self._queue.closed and self._reset(renewed):
                # The configuration of a cleared session may have registered more.
                renewed = _renewed(renewed, checkout)
                kept = True
        finally:
            # Whatever ended the reset, Ctrl-C included, the connection leaves or goes back.
            now = monotonic()
            with self._lock:
                # Counted before it is given: whatever comes in between, it has one user.
                self._checkouts.end(checkout, now, kept)
                renewed.uses.clear()
                if kept:
                    self._queue.give(renewed, now)
            if not kept:
                # A COMMIT is announced and left to finish: one that waits for a standby would be
                # committed without it.
                self._close(renewed, cancels=not connection.announced)
        if connection_checked_in.receivers:
            self._events.checked_in(now - checkout.since, kept)

    def _close(self, connection: PooledConnection, *, cancels: bool) -> None:
        if connection.broken:
            self._connector.suspect()
        elif cancels and connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            # A thread that may be hit by an exception starts no other: see `start`.
            cancel(connection, self._queue.start)
        self._queue.discard(connection, self._why_closed(connection))
        self._eviction.note_closed(connection)

    def _why_closed(self, connection: PooledConnection) -> Reason:
        if self._queue.closed:
            return "drained"
        if connection.broken:
            return "error"
        session = connection.session
        return "reset" if session.doomed_by is None else session.doomed_for

    def left_behind(self, checkout: Checkout) -> None:
        """A thread has ended without giving its connection back; see `Home`."""
        self._queue.run_later(partial(self._reclaim, checkout))

    def _reclaim(self, checkout: Checkout) -> None:
        connection = checkout.connection()
        if connection is None or checkout.returning or not self._checkouts.is_current(checkout):
            return
        owner = connection.owner() if connection.owner is not None else None
        if owner is not None and owner.keeps(connection):
            # It goes back when it is not referred to any more.
            return
        try:
            # As `PooledConnection.claim`; it may serve another checkout by now.
            connection.uses.remove(checkout)
        except ValueError:
            # Its user has given it back after all, or its finalizer has handed it over.
            return
        checkout.returning = True
        connection.owner = connection.observer = None
        self._checkouts.log_reclaimed(
            checkout,
            "of a thread that has ended",
            ". Call connections.close_all() at the end of the thread.",
        )
        self._record.add("reclaimed")
        self.end(checkout, connection)

    def take_back(self, checkout: Checkout, connection: PooledConnection) -> bool:
        """Take back a connection that is not referred to any more; see `Home`."""
        with self._lock:
            if not self._checkouts.is_current(checkout):
                return False
            checkout.returning = True
        self._checkouts.log_reclaimed(checkout, DROPPED)
        self._record.add("reclaimed")
        connection.owner = connection.observer = None
        if connection.pinned_by is None:
            # Its cursors were not closed, and more may have been under way.
            connection.pinned_by = "dropped"
        self.end(checkout, connection)
        return True


def _renewed(connection: PooledConnection, checkout: Checkout) -> PooledConnection:
    renewed = connection.renewed()
    # If an exception ends the checkin early, it is this object that is found.
    renewed.uses.append(checkout)
    checkout.connection = ref(renewed)
    return renewed
