"""Transaction mode: each statement finds a connection, and most let go of it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus

from .connection import PooledConnection
from .quick import QuickWrapper
from .sql_text import session_state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

__all__ = ["LendingCursor", "LendingNamedCursor", "LendingWrapper"]

# What a connection can be in that is no end of a statement: its answer, a transaction.
_UNDER_WAY = (TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _Proxy:
    """psycopg's cursor, behind what has to be done before and after.

    Args:
        wrapper: Whose cursor it is, with a connection.
        cursor: psycopg's, on that connection.
    """

    _wrapper: LendingWrapper
    _cursor: Any

    def __init__(self, wrapper: LendingWrapper, cursor: Any) -> None:
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

    _given: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, wrapper: LendingWrapper, cursor: Any) -> None:
        self.__dict__.update(_wrapper=wrapper, _cursor=cursor, _home=wrapper.connection)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_given"] = {**self._given, name: value}
        super().__setattr__(name, value)

    @property
    def connection(self) -> Any:
        """psycopg's connection, which stays until the next statement or until it is closed."""
        self._come_home()
        return self._home

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's."""
        self._begin(query)
        try:
            self._cursor.execute(query, params, **options)
        except psycopg.Error as error:
            self._note_error(error)
            raise
        finally:
            self._wrapper.statement_ended()
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
        # As execute() has it for itself, since most statements are executed by that.
        self._begin(query)
        try:
            yield
        except psycopg.Error as error:
            self._note_error(error)
            raise
        finally:
            self._wrapper.statement_ended()

    def _begin(self, query: object) -> None:
        self._come_home()
        state = session_state_of(query)
        if state is not None:
            self._wrapper.pin(state)

    def _note_error(self, error: psycopg.Error) -> None:
        # While there is a connection to be judged by it. Within a transaction there still is
        # one when Django translates the error.
        if not self._wrapper.in_atomic_block:
            self._wrapper.note_error(error)

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


class LendingWrapper(QuickWrapper):
    """The part of the database wrapper that knows when a connection can go back.

    In session mode that is when Django closes it; nothing here happens earlier.
    """

    _keeps = 0
    _named_cursors: WeakSet[psycopg.Cursor[Any]] | None = None

    def set_autocommit(self, *args: Any, **kwargs: Any) -> None:
        super().set_autocommit(*args, **kwargs)
        self.statement_ended()

    def release(self) -> bool:
        """Give the connection back before the request ends, unless something on it is under way.

        That is a transaction or an open server-side cursor. Returns whether it went back.
        """
        if self.connection is None or self.in_atomic_block or not self.autocommit:
            return False
        cursors = self._named_cursors
        if cursors and any(not cursor.closed for cursor in cursors):
            return False
        self.give_back()
        return True

    def create_cursor(self, name: str | None = None) -> Any:
        if self.connection is None:
            self._connect_and_keep()
        cursor = super().create_cursor(name)
        if name is not None:
            if self._named_cursors is None:
                self._named_cursors = WeakSet()
            self._named_cursors.add(cursor)
        pool = self.checked_out_from
        if pool is None or not pool.lends:
            return cursor
        return (LendingCursor if name is None else LendingNamedCursor)(self, cursor)

    def bare_cursor(self) -> Any:
        """Return psycopg's cursor, on a connection that stays until `statement_ended`."""
        self._connect_and_keep()
        return super().create_cursor(None)

    def _connect_and_keep(self) -> None:
        # Somebody may have put more into ensure_connection(), statements whose end gives it back.
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
        # Statements that are run on the way to one's own end nothing.
        self._keeps += 1
        try:
            yield
        finally:
            self._keeps -= 1

    def statement_ended(self) -> None:
        """In transaction mode: give the connection back unless something on it is under way."""
        connection, pool = self.connection, self.checked_out_from
        if (
            pool is not None
            and pool.lends
            and self._keeps == 0
            and connection.pinned_by is None
            and connection.pgconn.transaction_status not in _UNDER_WAY
        ):
            self.release()

    def pin(self, state: str) -> None:
        """Keep the connection to the end of the request: a statement gives its session *state*.

        It is cleared of it when it comes back. Without effect in session mode, where others
        may have set up such state for all.
        """
        if self.connection.pinned_by is None and self.checked_out_from is not None:
            self.connection.pinned_by = state
            self.checked_out_from.record.add("pinned", state)

    def note_error(self, error: psycopg.Error) -> None:
        """Have the pool judge the connection by an error on it."""
        if self.checked_out_from is not None and isinstance(self.connection, PooledConnection):
            self.checked_out_from.note_error(self.connection, error)

    def held_by_caller(self) -> str | None:
        """Return what the caller has on the connection outside of transactions, if anything."""
        if any(not cursor.closed for cursor in self._named_cursors or ()):
            return "open server-side cursor"
        state = getattr(self.connection, "pinned_by", None)
        return f"session state ({state})" if state is not None else None

    def close_named_cursors(self) -> None:
        """Close what an iterator has left open that was left off half-way.

        It would go on reading, and in the end close its cursor, on a connection that somebody
        else has by then.
        """
        if self._named_cursors is None:
            return
        for cursor in list(self._named_cursors):
            # A connection that is lost is none of this one's business: the checkin sees it.
            with suppress(psycopg.Error):
                cursor.close()
        self._named_cursors = None
