"""Replaces a connection that was lost between two statements, if nothing depends on it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import ref

import psycopg
from django.db import DatabaseError
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.pool import psycopg_private
from django_pooled.pool.liveness import ending_of

from .django_private import turn_autocommit_off
from .transaction_mode import TransactionMode
from .transaction_mode_cursors import TransactionModeCursor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import IsolationLevel

    from django_pooled.pool.connection import PooledConnection

__all__ = ["Replacement"]

logger = logging.getLogger("django_pooled.pool")

# Of those that a session may change. A name for monitoring changes nothing else.
_REPORTED = (
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "client_encoding",
    "default_transaction_read_only",
    "is_superuser",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
)


class _Block:
    """An atomic block in which nothing was sent yet; psycopg sends BEGIN with a first statement.

    Django's ``connect()`` forgets blocks, and the functions that they have for ``on_commit()``.
    """

    _NAMES = ("in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback")

    def __init__(self, wrapper: Replacement) -> None:
        self._state = {name: getattr(wrapper, name) for name in self._NAMES}
        self._callbacks = wrapper.run_on_commit

    def restore(self, wrapper: Replacement) -> None:
        """Have *wrapper* be in the block again."""
        vars(wrapper).update(self._state)
        wrapper.run_on_commit = self._callbacks

    def continue_in(self, wrapper: Replacement) -> None:
        """Begin the block on the connection that *wrapper* has now."""
        turn_autocommit_off(wrapper)
        wrapper.autocommit = False
        self.restore(wrapper)

    def abandon(self, wrapper: Replacement) -> None:
        """Leave *wrapper* as Django's ``close()`` does in a block: it refuses statements."""
        self.restore(wrapper)
        wrapper.give_back()
        wrapper.closed_in_transaction = wrapper.needs_rollback = True


class Replacement(TransactionMode):
    """The part of the database wrapper that replaces lost connections.

    It never sends a statement twice: a connection is replaced before the next one is sent, and
    only if no transaction was open, and no session state or cursor is lost with it.
    """

    isolation_level: IsolationLevel

    def replace(self, connection: PooledConnection) -> PooledConnection:
        """Return what the next statement goes to: *connection*, or another one if it was lost.

        Without a round trip. A connection that something depends on stays, and its next statement
        raises the error.

        Raises:
            PoolError: It was lost, and no other is to be had.
        """
        session = connection.session
        if (
            connection.pgconn.status == ConnStatus.OK
            and session.goodbye is None
            and not session.is_readable()
        ):
            # Nothing says that it was, as a rule before a decorated call.
            return connection
        with self._connection_lock:
            if not self._can_be_replaced(connection):
                return connection
            return self._replace(connection)

    def _can_be_replaced(self, connection: PooledConnection) -> bool:
        # Its user, and what an attempt knows of its transaction, go on with this one.
        if (
            self.connection is not connection
            or self.checked_out_from is None
            or self._keeps
            or connection.observer is not None
            or not self._may_be_used_here()
        ):
            return False
        if (
            # As with a checkin: what the session may have been given would have to be cleared.
            connection.pinned_by is not None
            or psycopg_private.is_piping(connection)
            or any(_is_declared(cursor) for cursor in self._named_cursors or ())
            or not self._has_default_characteristics(connection)
        ):
            return False
        in_autocommit = self.autocommit and connection.autocommit and not self.in_atomic_block
        if connection.pgconn.status != ConnStatus.OK:
            # Of a transaction that was open, an error has told; it must not be continued.
            return in_autocommit and not connection.may_have_begun
        is_unbegun = (
            self.in_atomic_block
            and self.commit_on_exit
            and not self.closed_in_transaction
            and not any(self.savepoint_ids)
            # One that was set by hand is not among those.
            and not (connection.control is not None and connection.control.waiting)
        )
        return (in_autocommit or is_unbegun) and _has_ended(connection)

    def _may_be_used_here(self) -> bool:
        try:
            self.validate_thread_sharing()
        except DatabaseError:
            return False
        return True

    def _has_default_characteristics(self, connection: PooledConnection) -> bool:
        """Tell whether psycopg's attributes for the next transaction are as at the checkout."""
        is_set = "isolation_level" in self.settings_dict["OPTIONS"]
        return (
            connection.isolation_level == (self.isolation_level if is_set else None)
            and connection.read_only is None
            and connection.deferrable is None
        )

    def _replace(self, lost: PooledConnection) -> PooledConnection:
        pool, named, cursors = self.checked_out_from, self._named_cursors, self._cursors
        block = _Block(self) if self.in_atomic_block else None
        reported, registered = _reported(lost), psycopg_private.registered_on(lost)
        # None of them was used, so there is nothing to be closed with the connection.
        self._named_cursors = None
        try:
            self.give_back()
            self.in_atomic_block = self.closed_in_transaction = False
            self.ensure_connection()
            connection: PooledConnection = self.connection
            with self.wrap_database_errors:
                if reported and _reported(connection) != reported:
                    self._refuse(lost, _difference(reported, _reported(connection)))
                # After receivers of connection_created, which may register some each time.
                if psycopg_private.registered_on(connection) != registered:
                    self._refuse(lost, "adapters, handlers or factories were set on it")
                if lost.drew and connection.session.was_written:
                    # lastval() must fail, not tell what another request has drawn.
                    connection.ask("DISCARD SEQUENCES")
                    connection.session.was_written = False
            if block is not None:
                block.continue_in(self)
        except BaseException:
            if block is not None:
                block.abandon(self)
            raise
        connection.statements, lost.replaced_by = lost.statements, connection
        self._named_cursors = named
        for cursor in named or ():
            psycopg_private.move_cursor(cursor, connection)
        for reference in cursors:
            self._move(reference(), connection)
        if pool is not None:  # pragma: no branch - told to mypy
            pool.record.add("replaced")
        logger.info(
            "pool %r: replaced a connection that was lost between two statements",
            self.alias,
            extra=event_fields("connection_replaced", alias=self.alias),
        )
        return connection

    def _refuse(self, lost: PooledConnection, reason: str) -> NoReturn:
        """Keep the lost connection: it had what no statement's text has shown."""
        self.give_back()
        # As after any other loss, until it is closed, at the latest at the end of the request.
        self.connection, self.errors_occurred = lost, True
        raise psycopg.OperationalError(f"the connection is lost, and was not replaced: {reason}")

    def move_here(self, cursor: psycopg.Cursor[Any]) -> None:
        """Have a cursor of a connection that was closed run its next statement on the present one.

        Within the request that has made it.
        """
        connection = self.connection
        if isinstance(cursor, TransactionModeCursor) and cursor.source is not None:
            # It moves by itself, unless Django has closed the connection amid a transaction.
            cursor.made_after = self.closings
        elif cursor.connection is not connection:
            self._move(cursor, connection)

    def _move(self, cursor: psycopg.Cursor[Any] | None, connection: PooledConnection) -> None:
        if cursor is not None and not cursor.closed:
            psycopg_private.move_cursor(cursor, connection)
            self._cursors.append(ref(cursor))


def _reported(connection: PooledConnection) -> dict[str, str | None]:
    """Return the settings of which the server reports each change, whatever has made it.

    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC

    Of a connection that was closed on this side, by psycopg's own ``close()``, none is known.
    """
    try:
        return {name: connection.info.parameter_status(name) for name in _REPORTED}
    except psycopg.OperationalError:
        return {}


def _has_ended(connection: PooledConnection) -> bool:
    """Look at the socket, unless another thread that shares the connection is using it.

    Its answer would be read here, and it would wait for that for ever.
    """
    if not connection.lock.acquire(blocking=False):
        return False
    try:
        is_idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        return is_idle and ending_of(connection) is not None
    finally:
        connection.lock.release()


def _difference(lost: Mapping[str, str | None], new: Mapping[str, str | None]) -> str:
    other = [name for name, value in new.items() if value != lost[name]]
    return f"its session had another {' and '.join(other)} than a new one"


def _is_declared(cursor: psycopg.ServerCursor[Any]) -> bool:
    """Tell whether a server-side cursor was used, and may have more rows."""
    return not cursor.closed and cursor.pgresult is not None
