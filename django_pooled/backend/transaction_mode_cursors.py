"""Cursors of transaction mode, which get a connection for each statement."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from django_pooled.pool import psycopg_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from django_pooled.pool.connection import PooledConnection

    _AnyCursor = psycopg.Cursor[Any]
else:
    _AnyCursor = object

__all__ = ["ConnectionSource", "TransactionModeCursor", "for_transaction_mode"]


class ConnectionSource(Protocol):
    """Provides a connection for each statement."""

    def attach(self, cursor: TransactionModeCursor) -> PooledConnection:
        """Move *cursor* to the present connection, and return that."""

    def begin_statement(self, cursor: TransactionModeCursor) -> PooledConnection:
        """Move *cursor* to a connection that stays until `end_statement`."""

    def end_statement(self, connection: PooledConnection) -> None:
        """A statement on *connection* has ended."""

    def give_back_if_idle(self) -> None:
        """Give the connection back, unless something on it is under way."""

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error on the connection."""


class TransactionModeCursor(_AnyCursor):
    """A cursor that remains of use when its connection goes back.

    The results of a statement are in memory once it has been executed, so they can be fetched
    later. The next statement moves the cursor to the connection that its source has then.
    """

    source: ConnectionSource | None = None
    """None for a cursor that was made by psycopg's own ``connection.cursor()``."""

    made_after: int = 0
    """How often the source had been closed when it made the cursor."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's."""
        source = self.source
        if source is None:
            return super().execute(query, params, **options)
        # As `_attached`, without a generator: most statements go through here.
        connection = self._begin(source)
        try:
            return super().execute(query, params, **options)
        except psycopg.Error as error:
            source.note_error(error)
            raise
        finally:
            source.end_statement(connection)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """As psycopg's."""
        with self._attached():
            super().executemany(query, params_seq, **options)

    @contextmanager
    def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the block ends."""
        with self._attached(), super().copy(statement, params, **options) as copy:
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the last row."""
        with self._attached():
            yield from super().stream(query, params, **options)

    def close(self) -> None:
        """As psycopg's; gives back a connection that nothing else needs."""
        try:
            super().close()
        finally:
            if self.source is not None:
                self.source.give_back_if_idle()

    @property
    def connection(self) -> Any:
        """psycopg's connection; it stays until the next statement or the cursor's end."""
        if self.source is not None and not self.closed:
            self.source.attach(self)
        return self._conn

    def move_to(self, connection: PooledConnection) -> None:
        """Continue with a connection, which may be another one by now."""
        # A server-side cursor belongs to the connection that declared it.
        if self._conn is not connection and not isinstance(self, psycopg.ServerCursor):
            psycopg_private.move_cursor(self, connection)

    @contextmanager
    def _attached(self) -> Iterator[None]:
        source = self.source
        if source is None:
            yield
            return
        connection = self._begin(source)
        try:
            yield
        except psycopg.Error as error:
            # While there is a connection to be judged by it.
            source.note_error(error)
            raise
        finally:
            source.end_statement(connection)

    def _begin(self, source: ConnectionSource) -> PooledConnection:
        if self.closed:
            # As psycopg has it, which would look at the connection first.
            raise psycopg.InterfaceError("the cursor is closed")
        return source.begin_statement(self)


@lru_cache(maxsize=64)
def for_transaction_mode(kind: type[Any]) -> type[Any]:
    """Return a class of cursors as *kind*, which get a connection for each statement."""
    if issubclass(kind, TransactionModeCursor) or not issubclass(kind, psycopg.Cursor):
        return kind
    return type(
        f"TransactionMode{kind.__name__}",
        (TransactionModeCursor, kind),
        {"__module__": kind.__module__},
    )
