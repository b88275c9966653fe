"""Watches for writes to other databases, which a restart would not undo."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from django.db import connections
from django.db.backends.signals import connection_created

from django_pooled.pool.connection import PooledConnection

from .watched_cursors import WatchedCursors, leaves_rows_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.psycopg_pipeline import CarryingCursor
    from django_pooled.sql.effects import Effect

__all__ = ["watch_others"]


@contextmanager
def watch_others(wrapper: DatabaseWrapper, written: set[str]) -> Iterator[None]:
    """Add to *written* the aliases of other databases that may have been written to.

    A statement that is not shown to only read counts as a write, also if it was rolled back.
    Watched are the databases, of any engine, that have a connection in this thread or get one
    meanwhile. With an engine other than ours or SQLite's, statements that bypass Django's cursors
    are not seen.
    """
    # A weak reference would get one more finalizer with each call, for the life of the process.
    connection_created.connect(_join, weak=False, dispatch_uid=__name__)
    watch = _Watch(wrapper.alias, written)
    for other in connections.all(initialized_only=True):
        watch.add(other, is_late=False)
    token = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(token)
        watch.end()


# Of nested attempts, each on another database. A context follows the work through asgiref's
# switches between threads.
_watches: ContextVar[tuple[_Watch, ...]] = ContextVar("django_pooled.watches", default=())


def _join(connection: BaseDatabaseWrapper, **_: object) -> None:
    for watch in _watches.get():
        watch.add(connection, is_late=True)


class _Watch:
    """The other databases of one attempt."""

    def __init__(self, alias: str, written: set[str]) -> None:
        self._alias = alias
        self._written = written
        self._watched: dict[BaseDatabaseWrapper, WatchedCursors] = {}
        self._observers: dict[BaseDatabaseWrapper, _Observer] = {}

    def add(self, other: BaseDatabaseWrapper, *, is_late: bool) -> None:
        # By alias: another wrapper for the attempt's database asks about a lost COMMIT.
        if other.alias == self._alias or other.connection is None:
            return
        note = partial(self._written.add, other.alias)
        connection: object = other.connection
        if isinstance(connection, PooledConnection) and connection.owner is not None:
            # Replaces the observer of a connection that was given back meanwhile.
            self._observers[other] = _Observer(connection, note)
        elif other in self._watched:
            self._watched[other].connected()
        else:
            self._watched[other] = WatchedCursors(other, note, is_late=is_late)

    def end(self) -> None:
        for observer in reversed(self._observers.values()):
            observer.end()
        for watched in reversed(self._watched.values()):
            watched.end()


class _Observer:
    """Sees every statement on a connection of ours, however it is sent.

    Args:
        connection: It has one observer at a time; this one passes on to the one before.
        note: Called when something may have been written.
    """

    def __init__(self, connection: PooledConnection, note: Callable[[], None]) -> None:
        self._connection = connection
        self._note = note
        self._outer = connection.observer
        connection.observer = self

    def end(self) -> None:
        if self._connection.observer is self:
            self._connection.observer = self._outer

    def see(self, query: object, effect: Effect, *, carries: bool, locked: bool) -> Sequence[str]:
        if not leaves_rows_alone("postgresql", query):
            self._note()
        if self._outer is None:
            return ()
        return self._outer.see(query, effect, carries=carries, locked=locked)

    def seen(self, cursor: CarryingCursor | None, addition: Sequence[str], *, locked: bool) -> None:
        if self._outer is not None:
            self._outer.seen(cursor, addition, locked=locked)
