"""Django's cursors, of every kind, whose connection sees each statement before it is sent."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from django.db.backends.postgresql import base as postgresql

from django_pooled.pool import psycopg_private
from django_pooled.pool.connection import PooledConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

__all__ = ["Cursor", "Lender", "NamedCursor", "ServerBindingNamedCursor", "observed"]


class Lender(Protocol):
    """Lends a connection for each statement, in transaction mode."""

    def lend(self, cursor: LentCursor) -> None:
        """Have *cursor* on the connection, which may be another one by now."""

    def begin_statement(self, cursor: LentCursor) -> None:
        """Lend it the connection for a statement, until `statement_ended`."""

    def statement_ended(self) -> None:
        """A statement that was begun needs the connection no more."""

    def give_back_if_idle(self) -> None:
        """Give the connection back, unless something on it is under way."""

    def note_error(self, error: psycopg.Error) -> None:
        """Have the pool judge the connection by an error on it."""


class LentCursor(Protocol):
    """A cursor that is lent its connection."""

    lent_before: int
    """How often the lender had been closed when it made the cursor."""

    def move_to(self, connection: Any) -> None:
        """Go on with a connection, which may be another one by now."""


if TYPE_CHECKING:
    # What the mixins below are mixed into; django-stubs knows nothing of its methods.
    _AnyCursor = psycopg.Cursor[Any]
    _ClientCursor = psycopg.ClientCursor[Any]
    _NamedCursor = psycopg.ServerCursor[Any]
else:
    _AnyCursor = _ClientCursor = _NamedCursor = object


class _Observed(_AnyCursor):
    """Announces each statement to the connection.

    In transaction mode it outlives its connection's stay: results are in memory when a statement
    has been executed, so they can be fetched when the connection has gone back, and the next
    statement moves the cursor to the connection that is lent then.
    """

    lender: Lender | None = None
    """Who lends it a connection for each statement; None in session mode."""

    lent_before: int = 0
    """How often the lender had been closed when it made the cursor."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's; its results are those of *query* alone."""
        connection = self._take()
        if connection is None:
            super().execute(query, params, **options)
            return self
        outer = connection.announced
        try:
            addition = connection.announce(query, carries=self._carries(connection))
            connection.expect()
            if addition is None:
                super().execute(query, params, **options)
            else:
                super().execute(query + addition, params, **options)
            if not outer and connection.observer is not None:
                connection.observer.seen(self, addition, locked=False)
        except psycopg.Error as error:
            self._note_error(error)
            raise
        finally:
            self._ended(connection, outer)
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """As psycopg's."""
        with self._statement(query):
            super().executemany(query, params_seq, **options)

    def copy(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """As psycopg's; a lent connection stays until the block ends."""
        if self.lender is None and isinstance(self._conn, PooledConnection):
            self._conn.refuse_if_given_back()
        return self._copy(statement, params, options)

    @contextmanager
    def _copy(self, statement: Any, params: Any, options: Any) -> Iterator[Any]:
        with self._statement(statement), super().copy(statement, params, **options) as copy:
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; a lent connection stays until the last row."""
        with self._statement(query):
            yield from super().stream(query, params, **options)

    def close(self) -> None:
        """As psycopg's; gives back a lent connection that nothing else needs."""
        try:
            super().close()
        finally:
            if self.lender is not None:
                self.lender.give_back_if_idle()

    @property
    def connection(self) -> Any:
        """psycopg's connection; a lent one stays until the next statement or the cursor's end."""
        if self.lender is not None and not self.closed:
            self.lender.lend(self)
        return self._conn

    @contextmanager
    def _statement(self, query: object) -> Iterator[None]:
        # As execute() has it for itself, since most statements are executed by that.
        connection = self._take()
        if connection is None:
            yield
            return
        outer = connection.announced
        try:
            connection.announce(query)
            connection.expect()
            yield
            if not outer and connection.observer is not None:
                connection.observer.seen(self, None, locked=False)
        except psycopg.Error as error:
            self._note_error(error)
            raise
        finally:
            self._ended(connection, outer)

    def _ended(self, connection: PooledConnection, outer: bool) -> None:
        """A statement has ended, in whatever way; *outer* was announced around it, or not."""
        if not outer:
            connection.expect_nothing()
        if self.lender is not None:
            self.lender.statement_ended()

    def _take(self) -> PooledConnection | None:
        """Have a connection to run a statement on; None for one that no pool knows.

        Raises:
            psycopg.InterfaceError: The cursor is closed.
        """
        if self.closed:
            # As psycopg has it, which would look at the connection first.
            raise psycopg.InterfaceError("the cursor is closed")
        if self.lender is not None:
            self.lender.begin_statement(self)
        # With Django's parameters psycopg itself makes a connection of its own class.
        return self._conn if isinstance(self._conn, PooledConnection) else None

    def move_to(self, connection: Any) -> None:
        """Go on with the lender's connection, which may be another one by now."""
        if self._conn is not connection:
            psycopg_private.move_cursor(self, connection)

    def _note_error(self, error: psycopg.Error) -> None:
        # While there is a lent connection to be judged by it.
        if self.lender is not None:
            self.lender.note_error(error)

    def _carries(self, connection: PooledConnection) -> bool:
        """Tell whether another statement can be sent along with one, in one message."""
        return False


class _Carrying(_ClientCursor):
    """Can send along what the connection's observer adds to a statement."""

    def _carries(self, connection: PooledConnection) -> bool:
        # A pipeline takes one statement at a time.
        return not psycopg_private.is_piping(connection)


class Cursor(_Carrying, _Observed, postgresql.Cursor):
    """The cursor for parameters that psycopg puts into the statement."""


class ServerBindingCursor(_Observed, postgresql.ServerBindingCursor):
    """The cursor of ``server_side_binding``: one statement in a message."""


class _Named(_NamedCursor):
    """A server-side cursor: a lent connection stays until it is closed."""

    def move_to(self, connection: Any) -> None:
        """It is of the connection that declared it."""


class NamedCursor(_Named, _Observed, postgresql.ServerSideCursor):  # type: ignore[misc]
    """The named cursor for parameters that psycopg puts into the statement."""


class ServerBindingNamedCursor(
    _Named, _Observed, postgresql.CursorMixin, psycopg.ServerCursor[Any]
):
    """The named cursor of ``server_side_binding``."""


@lru_cache(maxsize=64)
def observed(kind: type[Any]) -> type[Any]:
    """Return the class of cursors that does what *kind* does, and announces its statements."""
    if kind is postgresql.Cursor:
        return Cursor
    if kind is postgresql.ServerBindingCursor:
        return ServerBindingCursor
    if issubclass(kind, _Observed) or not issubclass(kind, psycopg.Cursor):
        return kind
    mixins = (_Carrying, _Observed) if issubclass(kind, psycopg.ClientCursor) else (_Observed,)
    return type(f"Observed{kind.__name__}", (*mixins, kind), {"__module__": kind.__module__})
