"""Which connections of a pool may be used, and which have to go."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from .liveness import answers, looks_alive
from .log_facts import facts
from .redaction import told
from .sqlstates import READ_ONLY, is_connection_lost, is_stale_plan

if TYPE_CHECKING:
    import psycopg

    from .conf import PoolOptions
    from .connecting import Connector
    from .connection import PooledConnection
    from .psycopg_seam import RecoveringPool
    from .record import Reason
    from .usage import Usage

__all__ = ["Judge"]

logger = logging.getLogger("django_pooled.pool")


class Judge:
    """Judges a pool's connections: idle ones at a checkout, those in use by their errors.

    Args:
        alias: The pool's alias, for log lines.
        options: The pool's options.
        connector: Is told of connections that were lost.
        pool: The connections.
        usage: Which of them are in use.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        connector: Connector,
        pool: RecoveringPool,
        usage: Usage,
    ) -> None:
        self._alias = alias
        self._check_after = options.check_after
        self._check_timeout = options.check_timeout
        self._check = options.check
        self._connector = connector
        self._pool = pool
        self._usage = usage

    def unusable(self, connection: PooledConnection, deadline: float) -> Reason | None:
        """Return why a connection that was idle cannot be used; None if it can.

        Args:
            connection: Taken from the pool.
            deadline: The monotonic moment at which its answer comes too late.
        """
        now, life = monotonic(), connection.life
        if now >= life.expires_at:
            return "lifetime"
        if not looks_alive(connection):
            return self._dead(now, silent=False)
        # Idle for so long that only a round trip tells.
        if now - life.idle_since >= self._check_after and not answers(
            connection, min(self._check_timeout, deadline - now)
        ):
            return self._dead(now, silent=looks_alive(connection))
        if self._check is not None:
            try:
                self._check(connection)
            except Exception as error:
                logger.info(
                    "pool %r: the project's check failed: %s",
                    self._alias,
                    told(error),
                    extra=facts("check_failed", alias=self._alias, error=error),
                )
                return "dead"
        return None

    def note_error(self, connection: PooledConnection, error: psycopg.Error) -> None:
        """Take note of an error on a connection in use: some say that it must not come back.

        A server that refuses to write because it has been demoted (25006) loses all of its
        connections at once; one whose client asked for a read-only transaction does not.
        A prepared statement that no longer fits its tables would fail on each of them, each time:
        psycopg keeps it, and has no public way to forget it.
        """
        if is_connection_lost(error):
            connection.life.doom(f"{error.sqlstate or 'lost'}: {told(error)}")
        elif error.sqlstate == READ_ONLY and connection.server_is_read_only:
            place = connection.place
            for other in self._usage.connections():
                if other.place == place:
                    other.life.doom(f"{READ_ONLY}: {told(error)}")
            self._pool.sweep(lambda other: other.place != place, "drained")
            logger.warning(
                "pool %r: %s:%s turned read-only, and is left",
                *(self._alias, *place),
                extra=facts("server_read_only", alias=self._alias, host=place[0], port=place[1]),
            )
        elif is_stale_plan(error):
            for other in self._usage.connections():
                other.life.doom(told(error))
            self._pool.sweep(lambda other: False, "drained")
            logger.info(
                "pool %r: tables have changed; new connections prepare anew",
                self._alias,
                extra=facts("tables_changed", alias=self._alias),
            )

    def spoilt(self, connection: PooledConnection) -> Reason:
        """Say why a connection that came back is not kept."""
        if self._pool.closed:
            return "drained"
        spoilt = connection.broken or connection.life.doomed_by is not None
        return "error" if spoilt else "reset"

    def _dead(self, now: float, *, silent: bool) -> Reason:
        """Look at the other idle connections, since where one died they may have too.

        Each would cost a later checkout its own discovery. Where one only kept silent, those that
        need a round trip too go unasked: each would cost another check_timeout.
        """
        self._connector.suspect()
        unasked = now - self._check_after if silent else float("-inf")
        dead = self._pool.sweep(
            lambda other: looks_alive(other) and other.life.idle_since > unasked, "dead"
        )
        logger.info(
            "pool %r: found %d dead connections",
            self._alias,
            dead + 1,
            extra=facts("connections_dead", alias=self._alias, connections=dead + 1),
        )
        return "dead"
