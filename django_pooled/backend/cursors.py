"""Django's cursors, of every kind: the connection sees each statement before it is sent."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import lru_cache
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from django_pooled.pool import psycopg_pipeline, psycopg_private
from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.effects import REMEMBERED_LENGTH, effect_of, effect_of_text

from . import django_private as django

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

__all__ = ["Cursor", "NamedCursor", "ServerBindingNamedCursor", "observed"]


if TYPE_CHECKING:
    # The classes that the mixins below are for; django-stubs does not know their methods.
    _AnyCursor = psycopg.Cursor[Any]
    _ClientCursor = psycopg.ClientCursor[Any]
else:
    _AnyCursor = _ClientCursor = object


_IDLE, _UNKNOWN = TransactionStatus.IDLE, TransactionStatus.UNKNOWN
_NO_PIPELINE = PipelineStatus.OFF


class _Observed(psycopg_pipeline.CarryingCursor, _AnyCursor):
    """Announces each statement to the connection."""

    _can_carry = False
    """Whether another statement can be sent along with one, in one message."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's; its results are those of *query* alone."""
        connection: Any = self._conn
        thread = get_ident()
        if (
            self._closed
            or not isinstance(connection, PooledConnection)
            or connection.announced_by == thread
            or (status := connection.pgconn.transaction_status) == _UNKNOWN
            # As in `_observing`.
            or (
                status == _IDLE
                and monotonic() >= connection.fresh_until
                and connection.session.is_readable()
            )
        ):
            connection = self._observing()
            if connection is None:
                self.take_along()
                super().execute(query, params, **options)
                return self
        if connection.control is not None and connection.has_to_wait(self, query):
            return self
        # It is asked of every statement, and most have been seen before.
        effect = (
            effect_of_text(query)
            if type(query) is str and len(query) <= REMEMBERED_LENGTH
            else effect_of(query)
        )
        addition: Sequence[str] = ()
        try:
            if connection.observer is not None:
                # A pipeline takes one statement at a time.
                carries = self._can_carry and connection.pgconn.pipeline_status == _NO_PIPELINE
                addition = self.addition = connection.announce(query, effect, carries=carries)
                self.answers = ()
            elif effect.leaves is not None or not effect.reads or connection.control is not None:
                connection.announce(query, effect)
            connection.announced_by, connection.statement = thread, query
            if addition or not connection.autocommit or connection.control is not None:
                self.take_along()
            super().execute(query, params, **options)
            if connection.observer is not None:
                connection.observer.seen(self, addition, locked=False)
        finally:
            if addition:
                self.addition = ()
            connection.statement = None
            if connection.announced_by == thread:
                connection.announced_by = 0
        return self

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """As psycopg's."""
        with self._announced(query):
            super().executemany(query, params_seq, **options)

    def copy(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """As psycopg's."""
        if isinstance(self._conn, PooledConnection):
            self._conn.refuse_if_given_back()
        return self._copy(statement, params, options)

    @contextmanager
    def _copy(self, statement: Any, params: Any, options: Any) -> Iterator[Any]:
        with self._announced(statement), super().copy(statement, params, **options) as copy:
            yield copy

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """As psycopg's."""
        with self._announced(query):
            yield from super().stream(query, params, **options)

    @contextmanager
    def _announced(self, query: object) -> Iterator[None]:
        # execute() has the same inline, since most statements go through that.
        connection = self._observing()
        if connection is None:
            yield
            return
        try:
            connection.announce(query)
            connection.announced_by, connection.statement = get_ident(), query
            yield
            if connection.observer is not None:
                connection.observer.seen(self, (), locked=False)
        finally:
            connection.statement = None
            connection.end_announced()

    def _observing(self) -> PooledConnection | None:
        """Return the connection that has to see the next statement; None without one.

        Raises:
            psycopg.InterfaceError: The cursor is closed.
        """
        if self.closed:
            # As psycopg has it, which would look at the connection first.
            raise psycopg.InterfaceError("the cursor is closed")
        connection = self._conn
        # A connection that psycopg.connect() has made is of another class. And a call within an
        # announced statement was announced with it.
        if isinstance(connection, PooledConnection) and connection.announced_by != get_ident():
            # Between two statements there is nothing to be read; if there is, the session may have
            # ended. This is a system call, so it is left out within a transaction.
            status = connection.pgconn.transaction_status
            if status == _UNKNOWN:
                return self._replaced(connection)
            if status == _IDLE and connection.session.is_readable():
                return self._replaced(connection)
            return connection
        return None

    def _replaced(self, connection: PooledConnection) -> PooledConnection:
        owner = connection.owner() if connection.owner is not None else None
        if owner is None:
            return connection
        present = owner.replace(connection)
        if present is not connection:
            psycopg_private.move_cursor(self, present)
        return present


class _Carrying(_ClientCursor):
    """Can send along what the connection's observer adds to a statement."""

    _can_carry = True


class Cursor(_Carrying, _Observed, django.Cursor):
    """The cursor for parameters that psycopg puts into the statement."""


class ServerBindingCursor(_Observed, django.ServerBindingCursor):
    """The cursor of ``server_side_binding``: one statement in a message."""


class _Named(_Observed):
    """Can be closed at any moment, since a generator that reads it is closed as it is freed."""

    def take_along(self) -> None:
        """DECLARE takes nothing along: what is due is sent before it.

        It does not go through what ``execute()`` would be given for it, which refers to the cursor
        and keeps it, and its connection, until the garbage collector comes by.
        """

    def close(self) -> None:
        """As psycopg's, unless this thread holds the connection's lock: it would wait for itself.

        It does if the garbage collector frees the cursor in the midst of a statement. The server
        closes it at the end of the transaction, or of the session.
        """
        connection: Any = self._conn
        if connection.lock.locked() and _is_used_below(connection, self):
            psycopg.Cursor.close(self)
        else:
            super().close()


def _is_used_below(connection: object, cursor: object) -> bool:
    """Tell whether this thread is inside a call of the connection, or of another cursor of its."""
    frame = inspect.currentframe()
    while frame is not None:
        user: Any = frame.f_locals.get("self")
        # Not isinstance(): a lazy object would query, to say which class it is of.
        is_cursor = issubclass(type(user), psycopg.Cursor)
        if (user.connection if is_cursor and user is not cursor else user) is connection:
            return True
        frame = frame.f_back
    return False


class NamedCursor(_Named, django.ServerSideCursor):
    """The named cursor for parameters that psycopg puts into the statement."""


class ServerBindingNamedCursor(_Named, django.CursorMixin, psycopg.ServerCursor[Any]):
    """The named cursor of ``server_side_binding``."""


@lru_cache(maxsize=64)
def observed(kind: type[Any]) -> type[Any]:
    """Return the class of cursors that does what *kind* does, and announces its statements."""
    if kind is django.Cursor:
        return Cursor
    if kind is django.ServerBindingCursor:
        return ServerBindingCursor
    if issubclass(kind, _Observed) or not issubclass(kind, psycopg.Cursor):
        return kind
    mixins: tuple[type[Any], ...] = (_Observed,)
    if issubclass(kind, psycopg.ServerCursor):
        mixins = (_Named,)
    elif issubclass(kind, psycopg.ClientCursor):
        mixins = (_Carrying, _Observed)
    return type(f"Observed{kind.__name__}", (*mixins, kind), {"__module__": kind.__module__})
