"""The reset of a connection that comes back to the state of a new one."""

from __future__ import annotations

import logging
from contextlib import suppress
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.sql.session_state import hides_what_it_does, outlives_discard

from .psycopg_private import forget_prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection

__all__ = ["Reset"]

logger = logging.getLogger("django_pooled.pool")

# DISCARD ALL leaves the seed of random(), the connections of dblink, and what the functions of a
# procedural language keep in variables of their own. SQL and PL/pgSQL have none.
_WHAT_ELSE = """
    SELECT pg_catalog.setseed({seed}),
           (SELECT quote_ident(nspname) FROM pg_catalog.pg_extension
              JOIN pg_catalog.pg_namespace ON pg_namespace.oid = extnamespace
             WHERE extname = 'dblink'),
           EXISTS (SELECT FROM pg_catalog.pg_language
                    WHERE lanname NOT IN ('internal', 'c', 'sql', 'plpgsql'))
"""
_DISCONNECT = "SELECT {0}.dblink_disconnect(name) FROM unnest({0}.dblink_get_connections()) AS name"
_DISCONNECT_UNNAMED = "SELECT {0}.dblink_disconnect()"


_STAYS = {
    "LOAD": "a library that was loaded stays in its session",
    "REPLICATION": "a backup, or what replication was told, stays in its session",
}


class _CannotBeCleared(Exception):
    """Some state stays in the session until its end."""


class Reset:
    """What happens to the connections of a pool when they come back.

    Args:
        alias: The pool's alias, for log lines.
        mode: The pool's option ``reset``.
        transaction_mode: Whether checkouts last for a transaction, so that no state may stay.
        configure: Called after a session was cleared, which undoes the configuration of a new one.
        assume_role: Gives a connection its role as when it was new; None where it has none.
    """

    def __init__(
        self,
        alias: str,
        mode: str | Callable[..., None] | None,
        transaction_mode: bool,
        configure: Callable[[PooledConnection], object],
        assume_role: Callable[[PooledConnection], object] | None = None,
    ) -> None:
        self._alias = alias
        self._always_clears = mode == "discard"
        self._called = mode if callable(mode) else None
        self._configure = configure
        self._assume_role = assume_role
        self.always_acts: bool = self._always_clears or self._called is not None
        """Whether each connection that comes back has to be reset, whatever its state."""
        self.clears_what_is_left: bool = transaction_mode or mode == "auto"
        """Whether a session is cleared where a statement may have left something."""

    def __call__(self, connection: PooledConnection) -> bool:
        """Roll back what is open, restore defaults, and clear what may be left in the session.

        Args:
            connection: What was given back, in whatever state.

        Returns:
            Whether the connection can be kept.
        """
        pgconn = connection.pgconn
        if connection.session.doomed_by is not None or pgconn.status != ConnStatus.OK:
            return False
        try:
            status = pgconn.transaction_status
            if status == TransactionStatus.ACTIVE or pgconn.pipeline_status != PipelineStatus.OFF:
                # Amid a query, a COPY or a pipeline: the rest of its answer is unknown.
                return False
            if status != TransactionStatus.IDLE:
                logger.warning(
                    "pool %r: rolled back a transaction left open",
                    self._alias,
                    extra=event_fields("transaction_left_open", alias=self._alias),
                )
                connection.rollback()
            _restore_defaults(connection)
            left = connection.pinned_by
            if self._always_clears or (left is not None and self.clears_what_is_left):
                self._clear(connection, left)
            elif left is not None and self._assume_role is not None:
                # SET ROLE is for a role that the session's own may assume.
                _run(connection, "RESET SESSION AUTHORIZATION")
                self._assume_role(connection)
            connection.pinned_by = None
            if self._called is not None:
                self._called(connection)
        except Exception as error:
            logger.warning(
                "pool %r: discarded a connection: %s",
                self._alias,
                told(error),
                extra=event_fields("reset_failed", alias=self._alias, error=error),
            )
            return False
        return pgconn.transaction_status == TransactionStatus.IDLE

    def _clear(self, connection: PooledConnection, left: str | None) -> None:
        if left in _STAYS:
            raise _CannotBeCleared(_STAYS[left])
        _run(connection, "DISCARD ALL")
        forget_prepared(connection)
        if left is not None and outlives_discard(left):
            _clear_what_discard_leaves(connection, left)
        connection.session.was_written = False
        connection.session.time_limits.clear()
        self._configure(connection)


def _clear_what_discard_leaves(connection: PooledConnection, left: str) -> None:
    # A seed that cannot be derived from the one that a user has set.
    seed = SystemRandom().uniform(-1.0, 1.0)
    [(_, dblink, has_languages)] = _run(connection, _WHAT_ELSE.format(seed=seed)).fetchall()
    if has_languages and hides_what_it_does(left):
        raise _CannotBeCleared("variables of a procedural language stay in their session")
    if dblink is not None:
        _run(connection, _DISCONNECT.format(dblink))
        with suppress(psycopg.errors.ConnectionDoesNotExist):
            _run(connection, _DISCONNECT_UNNAMED.format(dblink))


def _run(connection: PooledConnection, statement: str) -> psycopg.ClientCursor[Any]:
    # With a cursor that prepares nothing: psycopg would remember a prepared DISCARD ALL, which has
    # discarded itself.
    return psycopg.ClientCursor(connection, row_factory=tuple_row).execute(statement)


def _restore_defaults(connection: PooledConnection) -> None:
    # What a user may have set on the connection object; each setter refuses to run within
    # a transaction and does nothing on the server by itself.
    if not connection.autocommit:
        connection.autocommit = True
    if connection.isolation_level is not None:
        connection.isolation_level = None
    if connection.read_only is not None:
        connection.read_only = None
    if connection.deferrable is not None:
        connection.deferrable = None
