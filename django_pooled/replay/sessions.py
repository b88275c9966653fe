"""Sessions, and what an attempt did to them where no rollback reaches."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from django_pooled.redaction import told

from .memory import KeptAttributes, keeps
from .refusal import CannotReplay

if TYPE_CHECKING:
    from django.contrib.sessions.backends.base import SessionBase

    from .memory import Memory

__all__ = ["KeptSession"]

_HOOKED = ("save", "delete")
_DATA_DEPTH = 32
"""Far enough for whatever is stored in a session."""


@keeps("django.contrib.sessions.backends.base.SessionBase")
class KeptSession(KeptAttributes):
    """A session: its key, its data if it was loaded, and what is stored outside the transaction.

    ``login()``, ``logout()``, ``cycle_key()`` and ``flush()`` store and delete at once. In a
    table the rollback undoes that; an attempt that wrote to another database's gets no successor.
    In a cache or in files nothing does: there each attempt's first store or deletion of a key
    is preceded by a look at what it holds, which is put back before another attempt.
    """

    __slots__ = ("_before", "_outer", "_session")

    def __init__(self, value: SessionBase, memory: Memory, depth: int) -> None:
        super().__init__(value, memory, _DATA_DEPTH)
        self._session = value
        self._before: dict[str, dict[str, Any] | None] = {}
        self._outer: dict[str, Any] = {}
        memory.hooks.append(self)

    def start(self) -> None:
        """Begin to look, unless all of it is in a table."""
        if not _in_a_table(self._session):
            attributes = vars(self._session)
            # An attempt around this one, on another database, goes on looking.
            self._outer = {name: attributes[name] for name in _HOOKED if name in attributes}
            attributes.update(save=self._save, delete=self._delete)

    def stop(self) -> None:
        """Look no more."""
        attributes = vars(self._session)
        if attributes.get("save") == self._save:
            for name in _HOOKED:
                del attributes[name]
            attributes.update(self._outer)

    def restore(self) -> None:
        super().restore()
        before, self._before = self._before, {}
        try:
            for key, data in before.items():
                _put_back(type(self._session), key, data)
        except Exception as error:
            raise CannotReplay(f"the session could not be put back: {told(error)}") from error

    def _save(self, must_create: bool = False) -> None:
        session = self._session
        if session.session_key is not None:
            self._look(session.session_key, new=must_create)
        save = self._outer.get("save") or partial(type(session).save, session)
        save(must_create)

    def _delete(self, session_key: str | None = None) -> None:
        key = session_key or self._session.session_key
        if key is not None:
            self._look(key)
        delete = self._outer.get("delete") or partial(type(self._session).delete, self._session)
        delete(session_key)

    def _look(self, key: str, new: bool = False) -> None:
        if key not in self._before:
            self._before[key] = None if new else _stored(type(self._session), key)


def _in_a_table(session: SessionBase) -> bool:
    # Where this is not imported, no session is kept in a table by it.
    db: Any = sys.modules.get("django.contrib.sessions.backends.db")
    if db is None or not isinstance(session, db.SessionStore):
        return False
    # A subclass that stores in its own way may store elsewhere too, as cached_db does.
    kind = type(session)
    return kind.save is db.SessionStore.save and kind.delete is db.SessionStore.delete


def _stored(store: type[SessionBase], key: str) -> dict[str, Any] | None:
    return store(key).load() if store(key).exists(key) else None


def _put_back(store: type[SessionBase], key: str, data: dict[str, Any] | None) -> None:
    exists = store(key).exists(key)
    if data is None:
        if exists:
            store(key).delete(key)
        return
    if exists and _stored(store, key) == data:
        return
    session = store(key)
    session.clear()
    session.update(data)
    session.save(must_create=not exists)
