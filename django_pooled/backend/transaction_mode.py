"""Transaction mode: the connection goes back when a statement or a transaction has ended."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.postgresql import base as postgresql
from psycopg.postgres import types
from psycopg.pq import ConnStatus, Format, PipelineStatus, TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.session_state import graver

from .cursors import NamedCursor, ServerBindingNamedCursor
from .django_private import register_tzloader
from .transaction_mode_cursors import for_transaction_mode

if TYPE_CHECKING:
    from weakref import ref

    from django_pooled.pool.pool import Pool

    from .transaction_mode_cursors import TransactionModeCursor

__all__ = ["TransactionMode"]

# What a connection can be in that is not the end of a statement: its answer, a transaction.
_UNDER_WAY = (TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

_TIMESTAMPTZ = types["timestamptz"].oid


class TransactionMode(postgresql.DatabaseWrapper):
    """The part of the database wrapper that knows when a connection can go back.

    In session mode that is when Django closes it, and nothing here happens earlier, unless the
    connection was checked out where nothing would close it: see `unattended`.
    """

    checked_out_from: Pool | None = None
    """The pool of the present connection."""

    gives_back: bool = False
    """Whether the present connection goes back by itself; decided at its checkout."""

    closings: int = 0
    """How often it was closed, as at the end of a request."""

    _keeps = 0  # how many blocks are connecting, whose statements must not give it back
    _is_begun_by_hand = False  # whether the last statement was in a transaction without a block
    _named_cursors: list[psycopg.ServerCursor[Any]] | None = None
    _cursors: list[ref[psycopg.Cursor[Any]]]
    """In session mode those of one connection; in transaction mode they change connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors = []
        # Threads may share a wrapper, as with Django's live server: one must not give back what
        # another is about to use. Held while a cursor gets a connection, and while one goes back.
        self._connection_lock = threading.RLock()

    def give_back(self) -> None:
        """Close the connection before the request ends; its cursors may get another one."""
        closings = self.closings
        try:
            self.close()
        finally:
            self.closings = closings

    def release(self) -> bool:
        """Give the connection back before the request ends, unless something on it is under way.

        That is a transaction, a statement, or an open server-side cursor. Returns whether it went
        back.
        """
        connection = self.connection
        if connection is None or self.in_atomic_block or not self.autocommit:
            return False
        if isinstance(connection, PooledConnection) and connection.statements:
            return False
        if self.has_server_side_cursors():
            return False
        self.give_back()
        return True

    def release_elsewhere(self) -> None:
        """As `release`, by another thread, while an event loop runs in the wrapper's own.

        Django refuses to close a connection there, and all other use of it.
        """
        self.inc_thread_sharing()
        try:
            # Other tasks of the loop may ask for the same.
            with self._connection_lock:
                self.release()
        finally:
            self.dec_thread_sharing()

    def make_named_cursor(self, name: str) -> Any:
        """Make a server-side cursor on the present connection."""
        # As Django's, which makes a cursor of its own class, whose connection would not see what
        # it sends: holdable in autocommit, since it is used outside of a transaction then.
        binds_on_server = self.settings_dict["OPTIONS"].get("server_side_binding") is True
        kind: Any = ServerBindingNamedCursor if binds_on_server else NamedCursor
        if self.gives_back:
            kind = for_transaction_mode(kind)
        connection = self.connection
        cursor = kind(connection, name=name, scrollable=False, withhold=connection.autocommit)
        if self.timezone != connection.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT).timezone:
            register_tzloader(self.timezone, cursor)
        # Kept here in any case: one that holds beyond its transaction has to be closed.
        still_open = [other for other in self._named_cursors or () if not other.closed]
        self._named_cursors = [*still_open, cursor]
        return cursor

    def make_moving_cursor(self) -> Any:
        """Make a cursor that runs each statement on the connection of that moment."""
        pool, connection = self.checked_out_from, self.connection
        if pool is None or pool.transaction_mode:
            # The connection makes such cursors.
            return super().create_cursor()
        # The connection was opened for cursors that keep it, as those of a class set on it do.
        usual = connection.cursor_factory
        if usual is not self.get_connection_params()["cursor_factory"]:
            return super().create_cursor()
        connection.cursor_factory = for_transaction_mode(usual)
        try:
            return super().create_cursor()
        finally:
            connection.cursor_factory = usual

    def has_open_cursors(self) -> bool:
        """Tell whether there are cursors that may need the present connection again."""
        if self.has_server_side_cursors():
            return True
        with self._connection_lock:
            # Else those that are gone would be looked at by each decorated call of a request.
            self._cursors = [each for each in self._cursors if each() is not None]
        for each in self._cursors:
            cursor = each()
            if cursor is not None and not cursor.closed and cursor.connection is self.connection:
                return True
        return False

    def has_server_side_cursors(self) -> bool:
        """Tell whether there are named cursors that may have more rows to fetch."""
        return any(not cursor.closed for cursor in self._named_cursors or ())

    def close_named_cursors(self) -> None:
        """Close the cursors of iterators that were left half-way.

        One that holds beyond its transaction would stay in the session.
        """
        if self._named_cursors is None:
            return
        cursors, self._named_cursors = self._named_cursors, None
        connection = self.connection
        self._keeps += 1
        try:
            if connection.pgconn.transaction_status == TransactionStatus.INERROR:
                # Nothing can be closed in a transaction that failed.
                with suppress(psycopg.Error), connection.unobserved():
                    connection.rollback()
            for cursor in cursors:
                # The checkin sees for itself that a connection is lost.
                with suppress(psycopg.Error):
                    cursor.close()
        finally:
            self._keeps -= 1

    def attach(self, cursor: TransactionModeCursor) -> PooledConnection:
        """Move *cursor* to the present connection, and return that.

        Raises:
            psycopg.InterfaceError: The cursor was kept beyond the end of its request.
        """
        with self._connection_lock:
            if cursor.made_after != self.closings:
                raise psycopg.InterfaceError("the cursor's connection went back to its pool")
            self.connect_and_keep()
            connection: PooledConnection = self.connection
            cursor.move_to(connection)
            return connection

    def begin_statement(self, cursor: TransactionModeCursor) -> PooledConnection:
        """Move *cursor* to a connection that stays until `end_statement`."""
        with self._connection_lock:
            connection = self.attach(cursor)
            if connection.pgconn.status == ConnStatus.OK:
                is_begun = connection.pgconn.transaction_status in _UNDER_WAY
                self._is_begun_by_hand = connection.autocommit and is_begun
            # Counted on the connection: nothing is left of the count once that has gone.
            connection.statements += 1
            return connection

    def end_statement(self, connection: PooledConnection) -> None:
        """A statement on *connection* has ended: give that back unless something is under way."""
        with self._connection_lock:
            while connection.replaced_by is not None:
                connection = connection.replaced_by
            connection.statements -= 1
            self.give_back_if_idle()

    def give_back_if_idle(self) -> None:
        """Give a connection back that does so by itself, unless something on it is under way."""
        if not self.gives_back:
            return
        with self._connection_lock:
            connection = self.connection
            if (
                connection is not None
                and self._keeps == 0
                and connection.pinned_by is None
                and connection.pgconn.transaction_status not in _UNDER_WAY
                # A transaction begun by hand was lost with it, and must not go on with another.
                and not (self._is_begun_by_hand and connection.pgconn.status != ConnStatus.OK)
                and connection.pgconn.pipeline_status == PipelineStatus.OFF
            ):
                self.release()

    def pin(self, connection: PooledConnection, state: str) -> None:
        """A statement gives the session *state*, or may do so: keep the connection for the request.

        Its checkin clears it. What receivers of ``connection_created`` set up is left out: they
        do so at each checkout. But a role is more than a setting.
        """
        if self._keeps and state != "ROLE":
            return
        pool = self.checked_out_from
        if connection.pinned_by is None and pool is not None and pool.transaction_mode:
            pool.record.add("pinned", state)
        connection.pinned_by = graver(connection.pinned_by, state)

    def connect_and_keep(self) -> None:
        """Connect, and have no statement run meanwhile give the connection back."""
        # Others may have put more into ensure_connection(), statements whose end gives it back.
        self._keeps += 1
        try:
            self.ensure_connection()
        finally:
            self._keeps -= 1
