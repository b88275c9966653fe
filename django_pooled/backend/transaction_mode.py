"""Transaction mode: each statement finds a connection, and most let go of it."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import psycopg
from django.db.backends.postgresql.psycopg_any import register_tzloader
from psycopg.postgres import types
from psycopg.pq import Format, PipelineStatus, TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.session_state import graver

from .cursors import NamedCursor, ServerBindingNamedCursor
from .quick import QuickWrapper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cursors import LentCursor

__all__ = ["LendingWrapper"]

# What a connection can be in that is no end of a statement: its answer, a transaction.
_UNDER_WAY = (TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

_TIMESTAMPTZ = types["timestamptz"].oid


class LendingWrapper(QuickWrapper):
    """The part of the database wrapper that knows when a connection can go back.

    In session mode that is when Django closes it; nothing here happens earlier.
    """

    _keeps = 0
    _under_way = 0
    """Statements of cursors that the connection is lent to."""
    _named_cursors: list[psycopg.ServerCursor[Any]] | None = None
    _cursors: WeakSet[psycopg.Cursor[Any]] | None = None
    """In session mode those of one connection; the lent ones of transaction mode move."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Threads may share a wrapper, as Django's live server does: one must not give back what
        # another is about to use. Guards _under_way, and the moments of lending and giving back.
        self._lending = threading.RLock()

    def set_autocommit(self, *args: Any, **kwargs: Any) -> None:
        super().set_autocommit(*args, **kwargs)
        self.give_back_if_idle()

    def release(self) -> bool:
        """Give the connection back before the request ends, unless something on it is under way.

        That is a transaction or an open server-side cursor. Returns whether it went back.
        """
        if self.connection is None or self.in_atomic_block or not self.autocommit:
            return False
        if self._under_way:
            return False
        cursors = self._named_cursors
        if cursors and any(not cursor.closed for cursor in cursors):
            return False
        self.give_back()
        return True

    def connect(self) -> None:
        with self._lending:
            pool = self.checked_out_from
            if self.connection is not None and pool is not None and pool.lends:
                # Another thread that shares this wrapper was first.
                return
            super().connect()

    def create_cursor(self, name: str | None = None) -> Any:
        with self._lending:
            return self._create_cursor(name)

    def _create_cursor(self, name: str | None) -> Any:
        if self.connection is None:
            self._connect_and_keep()
        cursor = super().create_cursor(None) if name is None else self._named_cursor(name)
        pool = self.checked_out_from
        if pool is not None and pool.lends:
            cursor.lender, cursor.lent_before = self, self.closings
        elif pool is not None and name is None:
            if self._cursors is None:
                self._cursors = WeakSet()
            self._cursors.add(cursor)
        return cursor

    def _named_cursor(self, name: str) -> Any:
        # As Django's, which makes a cursor of its own class, whose connection would not see what
        # it sends: holdable in autocommit, since it is used outside of a transaction then.
        binds_on_server = self.settings_dict["OPTIONS"].get("server_side_binding") is True
        kind = ServerBindingNamedCursor if binds_on_server else NamedCursor
        connection = self.connection
        cursor = kind(connection, name=name, scrollable=False, withhold=connection.autocommit)
        if self.timezone != connection.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT).timezone:
            register_tzloader(self.timezone, cursor)
        # Kept even if nobody else does: one that holds beyond its transaction has to be closed.
        still_open = [other for other in self._named_cursors or () if not other.closed]
        self._named_cursors = [*still_open, cursor]
        return cursor

    def lend(self, cursor: LentCursor) -> None:
        """Have *cursor* on the connection, which may be another one by now.

        Raises:
            psycopg.InterfaceError: The cursor was kept beyond the end of its request.
        """
        if cursor.lent_before != self.closings:
            raise psycopg.InterfaceError("the cursor's connection went back to its pool")
        with self._lending:
            self._connect_and_keep()
            cursor.move_to(self.connection)

    def begin_statement(self, cursor: LentCursor) -> None:
        """Lend the connection to *cursor* for a statement, until `statement_ended`."""
        with self._lending:
            self._under_way += 1
            try:
                self.lend(cursor)
            except BaseException:
                self.statement_ended()
                raise

    def _connect_and_keep(self) -> None:
        # Others may have put more into ensure_connection(), statements whose end gives it back.
        with self._keeping():
            self.ensure_connection()

    def connect_anew(self) -> None:
        with self._keeping():
            super().connect_anew()

    def tell_of_connection(self) -> None:
        with self._keeping():
            super().tell_of_connection()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        # Statements that run while connecting must not give the connection back.
        self._keeps += 1
        try:
            yield
        finally:
            self._keeps -= 1

    def statement_ended(self) -> None:
        """A cursor needs the connection no more: give it back unless something is under way."""
        with self._lending:
            # Nothing counts on from what was under way when it was closed.
            self._under_way = max(0, self._under_way - 1)
            self.give_back_if_idle()

    def give_back_if_idle(self) -> None:
        """In transaction mode: give the connection back unless something on it is under way."""
        with self._lending:
            connection, pool = self.connection, self.checked_out_from
            if (
                pool is not None
                and pool.lends
                and self._keeps == 0
                and self._under_way == 0
                and connection.pinned_by is None
                and connection.pgconn.transaction_status not in _UNDER_WAY
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
        if connection.pinned_by is None and pool is not None and pool.lends:
            pool.record.add("pinned", state)
        connection.pinned_by = graver(connection.pinned_by, state)

    def note_error(self, error: psycopg.Error) -> None:
        """Have the pool judge the connection by an error on it."""
        if self.checked_out_from is not None and isinstance(self.connection, PooledConnection):
            self.checked_out_from.note_error(self.connection, error)

    def has_open_cursors(self) -> bool:
        """Tell whether there are cursors that may need the present connection again."""
        if any(not cursor.closed for cursor in self._named_cursors or ()):
            return True
        connection = self.connection
        return any(
            not cursor.closed and cursor.connection is connection for cursor in self._cursors or ()
        )

    def close_named_cursors(self) -> None:
        """Close what an iterator has left open that was left off half-way.

        One that holds beyond its transaction would stay in the session.
        """
        if self._named_cursors is None:
            return
        cursors, self._named_cursors = self._named_cursors, None
        connection = self.connection
        with self._keeping():
            if connection.pgconn.transaction_status == TransactionStatus.INERROR:
                # Nothing can be closed in a transaction that failed.
                with suppress(psycopg.Error), connection.unobserved():
                    connection.rollback()
            for cursor in cursors:
                # The checkin sees for itself that a connection is lost.
                with suppress(psycopg.Error):
                    cursor.close()
