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


class _Proxy:
    """psycopg's cursor, behind what has to be done before and after.

    Args:
        wrapper: Whose cursor it is, with a connection.
        cursor: psycopg's, on that connection.
    """

    _wrapper: DatabaseWrapper
    _cursor: Any

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
        """As psycopg's; gives back a connection that nothing else needs."""
        try:
            self._cursor.close()
        finally:
            self._wrapper.statement_ended()


class LendingNamedCursor(_Proxy):
    """A server-side cursor: its connection stays until it is closed."""


class LendingCursor(_Proxy):
    """A cursor that outlives its connection's stay.

    Results are in memory when a statement has been executed, so that they can be fetched when
    the connection has gone back; the next statement brings a connection again. What else there
    is to a cursor is that of psycopg's, including what is set on it.
    """

    def __init__(self, wrapper: DatabaseWrapper, cursor: Any) -> None:
        super().__init__(wrapper, cursor)
        self.__dict__.update(_home=wrapper.connection, _given={})

    def __setattr__(self, name: str, value: Any) -> None:
        self._given[name] = value
        super().__setattr__(name, value)

    @property
    def connection(self) -> Any:
        """psycopg's connection, which stays until the next statement or until it is closed."""
        self._come_home()
        return self._home

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's."""
        with self._statement(query):
            self._cursor.execute(query, params, **options)
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """As psycopg's."""
        with self._statement(query):
            self._cursor.executemany(query, params_seq, **options)

    @contextmanager
    def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the block ends."""
        with self._statement(statement), self._cursor.copy(statement, params, **options) as copy:
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's; the connection stays until the last row."""
        with self._statement(query):
            yield from self._cursor.stream(query, params, **options)

    @contextmanager
    def _statement(self, query: object) -> Iterator[None]:
        wrapper = self._wrapper
        self._come_home()
        state = session_state_of(query)
        if state is not None:
            wrapper.pin(state)
        try:
            yield
        except psycopg.Error as error:
            # While there is a connection to be judged by it. Within a transaction there still is
            # one when Django translates the error.
            if not wrapper.in_atomic_block:
                wrapper.note_error(error)
            raise
        finally:
            wrapper.statement_ended()

    def _come_home(self) -> None:
        """Have a cursor on the wrapper's connection, which may be another one by now."""
        wrapper = self._wrapper
        is_home = wrapper.connection is not None and wrapper.connection is self._home
        if is_home or self._cursor.closed:
            return
        cursor = wrapper.bare_cursor()
        for name, value in self._given.items():
            setattr(cursor, name, value)
        self.__dict__.update(_cursor=cursor, _home=wrapper.connection)
