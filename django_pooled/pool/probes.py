"""The pool's own checkouts: a round trip that probes it, and a look at the server's sessions."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from . import queue
from .checkout import Checkout
from .connect_errors import is_server_full
from .lane_context import lane
from .server_sessions import ServerSessions, ask_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from .checkout import Home
    from .checkouts import Checkouts
    from .connection import PooledConnection
    from .connector import Connector
    from .eviction import Eviction
    from .idle_checks import IdleChecks
    from .options import PoolOptions

__all__ = ["Probes"]

_ASKED, _UNASKED = 2.0, 10.0
"""Seconds for which a look at the server's sessions serves readers that ask, and is not repeated
while none asks."""


class Probes:
    """Uses connections of one pool for the pool itself.

    Args:
        options: The pool's options.
        pool: Its connections and its waiters.
        connector: What opens them.
        checkouts: Which are in use.
        home: Takes a connection back that was dropped.
        idle_checks: Tells whether one is alive.
        eviction: Is told of uses and errors.
    """

    def __init__(
        self,
        options: PoolOptions,
        pool: queue.RecoveringPool,
        connector: Connector,
        checkouts: Checkouts,
        home: Home,
        idle_checks: IdleChecks,
        eviction: Eviction,
    ) -> None:
        self._options = options
        self._pool = pool
        self._connector = connector
        self._checkouts = checkouts
        self._home = home
        self._idle_checks = idle_checks
        self._eviction = eviction
        self.sessions: ServerSessions | None = None
        """Those that the server had at the last look; one assignment, without a lock."""

    def ping(self, checkin: Callable[[PooledConnection], Any]) -> bool | None:
        """Make a round trip on an idle connection; None if there is none.

        Args:
            checkin: Gives the connection back.
        """
        started = monotonic()
        with lane("probe"):
            connection = self._pool.take_idle()
        if connection is None:
            return None
        connection.session.idle_since = float("-inf")  # So only a round trip tells.
        if not self._check_out(connection, started):
            return False
        checkin(connection)
        return True

    def look_at_server(
        self, checkin: Callable[[PooledConnection], Any], timeout: float = 0.0
    ) -> None:
        """Find out whose sessions the server has; where it is full, by itself.

        Args:
            checkin: Gives the connection back.
            timeout: Seconds to wait for a connection, if all are in use. With 0 it is a look only
                if the server has refused a connection for want of room.
        """
        trouble, seen = self._connector.trouble, self.sessions
        is_asked = timeout > 0.0
        if not is_asked and (trouble is None or not is_server_full(trouble)):
            return
        if seen is not None and monotonic() - seen.seen_at < (_ASKED if is_asked else _UNASKED):
            return
        started = monotonic()
        most = self._options.max_waiting
        if self._pool.pause is not None:
            return
        with lane("probe"):
            connection = self._pool.take_idle()
            if connection is None and is_asked and not 0 < most <= self._pool.waiting + 1:
                # In the queue, since none is idle where threads wait; not in the last place of it.
                with suppress(queue.PoolTimeout, queue.TooManyRequests, queue.Refused):
                    connection = self._pool.take(timeout)
        if connection is None or not self._check_out(connection, started):
            return
        try:
            self.sessions = ask_sessions(connection)
        except psycopg.Error as error:
            self._eviction.note_error(connection, error)
        finally:
            checkin(connection)

    def _check_out(self, connection: PooledConnection, started: float) -> bool:
        """Check out a connection that was taken; close it if it is dead."""
        try:
            deadline = started + self._options.check_timeout
            unusable = self._idle_checks.unusable(connection, deadline)
            if unusable is None:
                thread, now = self._checkouts.threads.this, monotonic()
                leak_after = self._options.leak_after
                checkout = Checkout(connection, started, now, thread, self._home, leak_after)
                # By no view: it is not to be taken for one of a thread of the site.
                checkout.activity = "django_pooled"
                self._checkouts.begin(connection, checkout)
                if self._eviction.in_doubt:
                    self._eviction.note_use(connection, looks_again=True)
        except BaseException:
            self._pool.discard(connection, "error")
            raise
        if unusable is not None:
            self._pool.discard(connection, unusable)
        return unusable is None
