"""Keeps a pool's connections fit while none waits for them: replaced ahead, and pinged."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkouts import Checkouts
    from .connection import PooledConnection
    from .connector import Connector
    from .idle_checks import IdleChecks
    from .options import PoolOptions
    from .queue import RecoveringPool
    from .session import Session
    from .steering import Steering

__all__ = ["Upkeep"]

SHARE, LONGEST = 0.1, 30.0
"""How long before its end a connection is replaced: this share of max_lifetime, and at most so many
seconds. It has to be enough for all connections of a pool, which are replaced one after another."""

YOUNGEST = 0.9
"""The share of max_lifetime that each connection lives at least; see `_configure_new`."""

SOONEST = 0.25
"""Seconds between two looks, at least."""


class Upkeep:
    """Replaces the connections of one pool before they expire, and pings those that are idle.

    A thread of its own does so, which is there only for as long as something is due, and does one
    thing after another. So no checkout meets a connection that has expired, or that a proxy has
    cut; one connection at most is away from users; and connections that were opened together are
    not replaced together.

    A replacement is opened first, as far as there is room, and the old one leaves once that is
    there: at once if it is idle, else as it comes back. Without room an idle one leaves first.
    While connecting fails, none leaves before its end. What was not needed for ``max_idle``
    seconds, and is beyond ``min_size``, is closed and not replaced.

    It has no state of its own: nothing here changes once it is made.

    Args:
        options: The pool's.
        queue: The connections.
        connector: Knows whether connecting fails.
        checkouts: Which of them are in use.
        checks: Ping them.
        steering: Knows whether they are being drained.
    """

    def __init__(
        self,
        options: PoolOptions,
        queue: RecoveringPool,
        connector: Connector,
        checkouts: Checkouts,
        checks: IdleChecks,
        steering: Steering,
    ) -> None:
        self._ahead = min(SHARE * options.max_lifetime, LONGEST)
        # A connection that is opened right after a look is due after this time at the soonest.
        self._newest_due_after = YOUNGEST * options.max_lifetime - self._ahead
        # While something that is due cannot be done yet.
        self._again = max(SOONEST, self._ahead / 10)
        self._keepalive = options.keepalive
        self._check_timeout = options.check_timeout
        self._queue = queue
        self._connector = connector
        self._checkouts = checkouts
        self._checks = checks
        self._steering = steering

    def look(self) -> float:
        """Do what is due; return the seconds until the next look."""
        queue = self._queue
        if queue.pause is not None or self._steering.to_replace is not None:
            return self._again
        if self._keepalive is not None:
            self._ping(self._keepalive)
        return self.next_look if self._replace() else self._again

    @property
    def next_look(self) -> float:
        """Seconds until something may be due."""
        now = monotonic()
        due_at = [now + self._newest_due_after]
        due_at += [
            session.expires_at - self._ahead for session in self._idle() if not session.is_retired
        ]
        # What is in use past its end leaves as it comes back.
        due_at += [
            session.expires_at - self._ahead
            for session in self._in_use()
            if session.expires_at > now
        ]
        if self._keepalive is not None:
            due_at.append(now + self._keepalive)
            due_at += [session.idle_since + self._keepalive for session in self._idle()]
        return max(SOONEST, min(due_at) - now)

    def _idle(self) -> list[Session]:
        # Not the connections: their objects change, and one that is referred to is not used again.
        return [connection.session for connection in self._queue.idle_connections]

    def _in_use(self) -> list[Session]:
        return [connection.session for connection in self._checkouts.connections()]

    def _ping(self, keepalive: float) -> None:
        """Make a round trip on each connection that was idle for that long."""
        queue = self._queue
        # From the end, since each goes back to the front: so their order stays.
        for session in reversed(self._idle()):
            now = monotonic()
            is_due = session.idle_since + keepalive <= now < session.expires_at
            connection = queue.take_out(session) if is_due else None
            if connection is None:
                continue
            try:
                # So only a round trip tells.
                session.idle_since = float("-inf")
                unusable = self._checks.unusable(connection, now + self._check_timeout)
            except BaseException:
                queue.discard(connection, "error")
                raise
            if unusable is not None:
                queue.discard(connection, unusable)
            else:
                session.idle_since = monotonic()
                queue.put_back(connection)

    def _replace(self) -> bool:
        """Replace the connections that will expire soon; tell whether that could be done."""
        queue, is_done, now = self._queue, True, monotonic()
        due = [session for session in self._idle() if session.expires_at <= now + self._ahead]
        due += [
            session for session in self._in_use() if now < session.expires_at <= now + self._ahead
        ]
        for session in sorted(due, key=lambda session: session.expires_at):
            if session.slot is None:
                continue  # It was closed meanwhile.
            if (connection := queue.take_out(session, if_needless=True)) is not None:
                queue.discard(connection, "lifetime")
            elif self._connector.trouble is not None or self._connector.pause:
                return False
            elif queue.has_room:
                if not self._open_one():
                    return False
                session.retire()
                if (connection := queue.take_out(session)) is not None:
                    queue.discard(connection, "lifetime")
            elif (connection := queue.take_out(session)) is not None:
                if not self._open_one(connection):
                    return False
            else:
                is_done = False
        return is_done

    def _open_one(self, instead_of: PooledConnection | None = None) -> bool:
        """Open a connection, unless one is on its way; tell whether it was opened.

        Args:
            instead_of: One to close before, to make room.
        """
        queue, connector = self._queue, self._connector
        before, failures = queue.successes, connector.failures
        if instead_of is not None:
            # Below min_size this opens another already.
            queue.discard(instead_of, "lifetime")
            queue.open_one()
        elif not queue.open_one():
            return False
        return queue.wait_for_one(
            before, lambda: connector.failures != failures or not queue.opening
        )
