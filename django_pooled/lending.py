"""Cursors of transaction mode: each statement finds a connection, and most let go of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from .session_state import session_state_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from .base import DatabaseWrapper

__all__ = ["LendingCursor", "LendingNamedCursor"]


class LendingCursor:
    """A cursor that outlives its connection's stay.

    Results are in memory when a statement has been executed, so that they can be fetched when
    the connection has gone back; the next statement brings a connection again. What else there
    is to a cursor is that of psycopg's, including what is set on it.

    Args:
        wrapper: Whose cursor it is, with a connection.
        cursor: psycopg's, on that connection.
    """

    def __init__(self, wrapper: DatabaseWrapper, cursor: Any) -> None:
        state = self.__dict__
        state.update(_wrapper=wrapper, _cursor=cursor, _home=wrapper.connection, _given={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._given[name] = value
        setattr(self._cursor, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def connection(self) -> Any:
        """psycopg's connection, which stays until the next statement or until it is closed."""
        self._come_home()
        return self._home

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's."""
        self._come_home(query)
        try:
            self._cursor.execute(query, params, **options)
        except psycopg.Error as error:
            self._note(error)
            raise
        finally:
            self._wrapper.statement_ended()
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """As psycopg's."""
        self._come_home(query)
        try:
            self._cursor.executemany(query, params_seq, **options)
        except psycopg.Error as error:
            self._note(error)
            raise
        finally:
            self._wrapper.statement_ended()

    @contextmanager
    def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the block ends."""
        self._come_home(statement)
        try:
            with self._cursor.copy(statement, params, **options) as copy:
                yield copy
        except psycopg.Error as error:
            self._note(error)
            raise
        finally:
            self._wrapper.statement_ended()

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the last row."""
        self._come_home(query)
        try:
            yield from self._cursor.stream(query, params, **options)
        except psycopg.Error as error:
            self._note(error)
            raise
        finally:
            self._wrapper.statement_ended()

    def close(self) -> None:
        """As psycopg's; gives back a connection for which there was no statement."""
        self._cursor.close()
        self._wrapper.statement_ended()

    def _come_home(self, query: object = None) -> None:
        """Have a cursor on the wrapper's connection, as it may be another one by now."""
        wrapper = self._wrapper
        if (wrapper.connection is None or wrapper.connection is not self._home) and (
            not self._cursor.closed
        ):
            cursor = wrapper.bare_cursor()
            for name, value in self._given.items():
                setattr(cursor, name, value)
            self.__dict__.update(_cursor=cursor, _home=wrapper.connection)
        if query is not None:
            state = session_state_of(query)
            if state is not None:
                wrapper.pin(state)

    def _note(self, error: psycopg.Error) -> None:
        # While there is a connection to be judged by it; within a transaction there still is
        # when Django translates the error.
        if not self._wrapper.in_atomic_block:
            self._wrapper.note_error(error)


class LendingNamedCursor:
    """A server-side cursor: its connection stays until it is closed."""

    def __init__(self, wrapper: DatabaseWrapper, cursor: Any) -> None:
        self.__dict__.update(_wrapper=wrapper, _cursor=cursor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """As psycopg's; gives back the connection where nothing else needs it."""
        try:
            self._cursor.close()
        finally:
            self._wrapper.statement_ended()
