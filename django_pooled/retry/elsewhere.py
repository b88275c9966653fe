"""What an attempt may have written to other databases, which a restart would not undo."""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.backends.signals import connection_created
from psycopg.sql import Composable

from django_pooled.sql_text import only_reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from django_pooled.base import DatabaseWrapper

__all__ = ["watch_others"]


@contextmanager
def watch_others(wrapper: DatabaseWrapper, written: set[str]) -> Iterator[None]:
    """Note in *written* the aliases of other databases that may have been written to.

    Whatever their engine is. What is not shown to only read counts as a write, and so does a write
    that was rolled back there. Looked at are the databases that have a connection in this thread,
    or get one meanwhile: an entry that nobody uses may lack its driver. With an engine other than
    ours or SQLite's, what goes to the driver past Django's cursors is not seen.
    """
    connection_created.connect(_join, dispatch_uid=__name__)
    watch = _Watch(wrapper.alias, written)
    for other in connections.all(initialized_only=True):
        watch.add(other)
    token = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(token)
        watch.end()


# Of attempts around each other, on different databases. A context follows the work through
# asgiref's switches between threads.
_watches: ContextVar[tuple[_Watch, ...]] = ContextVar("django_pooled.watches", default=())


def _join(connection: BaseDatabaseWrapper, **_: object) -> None:
    for watch in _watches.get():
        watch.add(connection)


class _Watch:
    """The other databases of one attempt."""

    def __init__(self, alias: str, written: set[str]) -> None:
        self._alias = alias
        self._written = written
        self._watched: list[_Watched] = []

    def add(self, other: BaseDatabaseWrapper) -> None:
        # By alias: the question for a lost COMMIT is asked by another wrapper of the attempt's own.
        if other.alias != self._alias and all(one.wrapper is not other for one in self._watched):
            note = partial(self._written.add, other.alias)
            self._watched.append(_Watched(other, note))

    def end(self) -> None:
        for watched in reversed(self._watched):
            watched.end()


class _Watched:
    """One database, while an attempt runs on another.

    Args:
        wrapper: Django's.
        note: Called when there may have been a write.
    """

    _MAKERS = ("make_cursor", "make_debug_cursor")

    def __init__(self, wrapper: BaseDatabaseWrapper, note: Callable[[], None]) -> None:
        self.wrapper = wrapper
        self._note = note
        self._connection = wrapper.connection
        self._changes = _changes(wrapper.connection)
        # Last, and so next to the driver: what is executed is what others have made of it.
        wrapper.execute_wrappers.append(self._execute)
        self._makers = {name: partial(self._make, getattr(wrapper, name)) for name in self._MAKERS}
        self._outer = {name: vars(wrapper)[name] for name in self._MAKERS if name in vars(wrapper)}
        vars(wrapper).update(self._makers)

    def end(self) -> None:
        wrapper = self.wrapper
        wrapper.execute_wrappers.remove(self._execute)
        for name, maker in self._makers.items():
            if vars(wrapper).get(name) is maker:
                del vars(wrapper)[name]
                vars(wrapper).update({name: self._outer[name]} if name in self._outer else {})
        if wrapper.connection is self._connection and _changes(self._connection) != self._changes:
            self._note()

    def _execute(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if not _only_reads(self.wrapper.vendor, sql):
            self._note()
        return execute(sql, params, many, context)

    def _make(self, make: Callable[[Any], Any], cursor: Any) -> Any:
        made = make(cursor)
        if not isinstance(made, _NotingCursor):
            made.__class__ = _noting(type(made))
            made.notes = []
        made.notes.append(self._note)
        return made


class _NotingCursor:
    """Django's cursor; it also tells of statements that reach the driver in other ways."""

    notes: list[Callable[[], None]]
    """Those of attempts around each other."""

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        self._note_write()
        return super().callproc(*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)  # type: ignore[misc]
        # Such as psycopg's copy() and stream(), or executescript() of SQLite.
        return partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, str | bytes | Composable) and not only_reads(given):
                self._note_write()
                break
        return method(*args, **kwargs)

    def _note_write(self) -> None:
        for note in self.notes:
            note()


_kinds: dict[type, type] = {}


def _noting(kind: type) -> type:
    if kind not in _kinds:
        _kinds[kind] = type(kind.__name__, (_NotingCursor, kind), {})
    return _kinds[kind]


# SQLite executes one statement at a time, and has functions of Django's own.
_SELECTS = re.compile(r"(?i)\s*(?:SELECT|VALUES)\b")
# MySQL reads these otherwise than PostgreSQL; `name` is its "name".
_UNLIKE_POSTGRESQL = re.compile(r"""["\\#]|/\*!""")


# Ends or undoes what has been noted already. COMMIT PREPARED does more, and does not match.
_CONTROLS_TRANSACTION = re.compile(
    r"""(?ix) \s* (?:
        BEGIN | START \s+ TRANSACTION | COMMIT | END | ROLLBACK
        | (?: SAVEPOINT | RELEASE (?:\s+ SAVEPOINT)? | ROLLBACK \s+ TO (?:\s+ SAVEPOINT)? )
          \s+ ["`]? \w+ ["`]?
    ) \s* ;? \s*"""
)


def _only_reads(vendor: str, query: object) -> bool:
    if isinstance(query, str):
        if _CONTROLS_TRANSACTION.fullmatch(query):
            return True
        if vendor == "sqlite" and _SELECTS.match(query):
            return True
        if vendor == "mysql":
            return not _UNLIKE_POSTGRESQL.search(query) and only_reads(query.replace("`", '"'))
    return only_reads(query)


def _changes(connection: Any) -> int | None:
    """Return how many rows a connection has changed, where the driver tells, as SQLite's does."""
    changes = getattr(connection, "total_changes", None)
    return changes if isinstance(changes, int) else None
