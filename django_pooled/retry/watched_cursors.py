"""Watches what goes to a database through Django's cursors, whatever its engine."""

from __future__ import annotations

import re
from functools import partial
from inspect import isroutine
from typing import TYPE_CHECKING, Any

from psycopg.sql import Composable

from django_pooled.sql.effects import effect_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["WatchedCursors", "leaves_rows_alone"]

_MAKERS = ("make_cursor", "make_debug_cursor")


class WatchedCursors:
    """The cursors of one wrapper, while an attempt on another database lasts.

    Args:
        wrapper: Django's.
        note: Called when something may have been written.
        is_late: Whether the attempt has begun, and may have entered blocks of `execute_wrapper()`.
    """

    def __init__(
        self, wrapper: BaseDatabaseWrapper, note: Callable[[], None], *, is_late: bool
    ) -> None:
        self._wrapper = wrapper
        self._note = note
        self._connection: object = None
        self._changes: int | None = None
        self.connected()
        # Last, and so next to the driver: it sees the statement that is executed. But such a block
        # ends by removing the last one, which then has to be its own.
        wrappers = wrapper.execute_wrappers
        wrappers.insert(0 if is_late else len(wrappers), self._execute)
        own = vars(wrapper)
        self._outer = {name: own[name] for name in (*_MAKERS, "close") if name in own}
        self._replaced = {name: partial(self._make, getattr(wrapper, name)) for name in _MAKERS}
        self._replaced["close"] = partial(self._close, wrapper.close)
        own.update(self._replaced)

    def connected(self) -> None:
        """The wrapper has a connection, perhaps another one than before."""
        if self._wrapper.connection is not self._connection:
            self._look()
            self._connection = self._wrapper.connection
            self._changes = self._count()

    def end(self) -> None:
        """Watch no more."""
        wrapper, own = self._wrapper, vars(self._wrapper)
        wrapper.execute_wrappers.remove(self._execute)
        for name, method in self._replaced.items():
            # Left alone if other code has replaced it since.
            if own.get(name) is method:
                del own[name]
                if name in self._outer:
                    own[name] = self._outer[name]
        self._look()

    def _look(self) -> None:
        """Take note of writes that bypassed Django's cursors, if the driver counts them."""
        if self._changes is not None and self._count() != self._changes:
            self._note()

    def _count(self) -> int | None:
        """Return how many rows were changed, if the driver counts them, as SQLite's does."""
        wrapper: Any = self._wrapper
        try:
            changes = getattr(self._connection, "total_changes", None)
        except wrapper.Database.Error:
            # Closed by hand.
            return None
        return changes if isinstance(changes, int) else None

    def _close(self, close: Callable[[], Any]) -> Any:
        # Before: a closed connection does not tell any more.
        self._look()
        self._connection = self._changes = None
        try:
            return close()
        finally:
            # That of SQLite in memory stays open.
            self.connected()

    def _execute(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if not leaves_rows_alone(self._wrapper.vendor, sql):
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
    """Django's cursor, which also sees statements that reach the driver in other ways."""

    notes: list[Callable[[], None]]
    """Of nested attempts, each on another database."""

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        self._note_write()
        return super().callproc(*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)  # type: ignore[misc]
        # Such as psycopg's copy() and stream(), or executescript() of SQLite.
        # SQLite's connection can be called, too, and is more than that.
        return partial(self._call, found) if isroutine(found) else found

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, str | bytes | Composable) and not effect_of(given).reads:
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


def leaves_rows_alone(vendor: str, query: object) -> bool:
    """Tell whether *query* is shown to write nothing that another attempt would write again.

    The end of a transaction writes nothing that was not noted before.
    """
    if isinstance(query, str):
        if vendor == "sqlite" and _SELECTS.match(query):
            return True
        if vendor == "mysql":
            if _UNLIKE_POSTGRESQL.search(query):
                return False
            query = query.replace("`", '"')
    effect = effect_of(query)
    return effect.reads or effect.controls
