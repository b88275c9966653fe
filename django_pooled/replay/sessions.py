"""Sessions, and their stores, which a rollback does not restore."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache import caches

from django_pooled.diagnostics.redaction import told

from .object_state import KeptAttributes, keeps
from .refusal import CannotReplay

if TYPE_CHECKING:
    from django.contrib.sessions.backends.base import SessionBase

    from .object_state import Snapshot

__all__ = ["KeptSession"]

_HOOKED = ("save", "delete", "asave", "adelete")
_DATA_DEPTH = 32
"""Deep enough for any data of a session."""


@keeps("django.contrib.sessions.backends.base.SessionBase")
class KeptSession(KeptAttributes):
    """A session: its key, its data if it was loaded, and its entries in the store.

    ``login()``, ``logout()``, ``cycle_key()`` and ``flush()`` store and delete at once. In a
    table of the same database the rollback undoes that; a table of another database counts as
    written to, so that no attempt follows. In a cache or in files, the entry is read before an
    attempt first stores or deletes it, and is restored before the next attempt. Only changes of
    the attempt are undone: a session that was changed or ended by others meanwhile stays so.
    """

    __slots__ = ("_outer", "_session", "_stored")

    def __init__(self, value: SessionBase, snapshot: Snapshot, depth: int) -> None:
        super().__init__(value, snapshot, _DATA_DEPTH)
        self._session = value
        self._stored: dict[str, _StoredSession] = {}
        self._outer: dict[str, Any] = {}
        snapshot.hooks.append(self)

    def start(self) -> None:
        """Begin to watch the store, unless it is a table."""
        if not _in_a_table(self._session):
            attributes = vars(self._session)
            # An outer attempt, on another database, goes on watching.
            self._outer = {name: attributes[name] for name in _HOOKED if name in attributes}
            attributes.update({name: getattr(self, f"_{name}") for name in _HOOKED})

    def stop(self) -> None:
        """Stop watching."""
        attributes = vars(self._session)
        if attributes.get("save") == self._save:
            for name in _HOOKED:
                del attributes[name]
            attributes.update(self._outer)

    def restore(self) -> None:
        super().restore()
        stored, self._stored = self._stored, {}
        try:
            for one in stored.values():
                one.undo()
        except Exception as error:
            raise CannotReplay(f"the session could not be put back: {told(error)}") from error

    def _save(self, must_create: bool = False) -> None:
        session = self._session
        if session.session_key is None:
            # Calls this again, with the key that it makes.
            self._original("save")(must_create)
            return
        stored = self._stored_before(session.session_key, new=must_create)
        self._original("save")(must_create)
        stored.saved()

    def _delete(self, session_key: str | None = None) -> None:
        key = session_key or self._session.session_key
        if key is not None:
            self._stored_before(key).about_to_delete()
        self._original("delete")(session_key)

    async def _asave(self, must_create: bool = False) -> None:
        session = self._session
        if session.session_key is None:
            await self._original("asave")(must_create)
            return
        stored = await sync_to_async(self._stored_before)(session.session_key, new=must_create)
        await self._original("asave")(must_create)
        await sync_to_async(stored.saved)()

    async def _adelete(self, session_key: str | None = None) -> None:
        key = session_key or self._session.session_key
        if key is not None:
            stored = await sync_to_async(self._stored_before)(key)
            await sync_to_async(stored.about_to_delete)()
        await self._original("adelete")(session_key)

    def _original(self, name: str) -> Any:
        """Return the store's own method, or that of an outer attempt."""
        own = getattr(type(self._session), name)
        return self._outer.get(name) or partial(own, self._session)

    def _stored_before(self, key: str, new: bool = False) -> _StoredSession:
        if key not in self._stored:
            self._stored[key] = _StoredSession(type(self._session), key, new)
        return self._stored[key]


class _StoredSession:
    """One entry of the store: its data before an attempt, and after it."""

    __slots__ = ("_after", "_before", "_deleted", "_key", "_made", "_store")

    def __init__(self, store: type[SessionBase], key: str, new: bool) -> None:
        self._store = store
        self._key = key
        self._before = None if new else self._look()
        self._after = self._before
        self._made = self._deleted = False
        """Whether it is the attempt that has made it, or deleted it."""

    def saved(self) -> None:
        self._made = self._made or self._before is None
        # As the store returns it, which may be in other types.
        self._after = self._look()
        self._deleted = False

    def about_to_delete(self) -> None:
        # If it is gone already, it was ended by others and must not come back.
        self._deleted = self._deleted or self._look() is not None
        self._after = None

    def undo(self) -> None:
        if _caches_a_table(self._store):
            # The next read asks the table.
            cache = caches[settings.SESSION_CACHE_ALIAS]
            cache.delete(self._store.cache_key_prefix + self._key)  # type: ignore[attr-defined]
            return
        if self._made:
            self._store(self._key).delete(self._key)
            return
        now = self._look()
        if now == self._after != self._before and (now is not None or self._deleted):
            self._write(must_create=now is None)

    def _look(self) -> dict[str, Any] | None:
        """Return the stored data, if there is any; None for a table, which is not asked."""
        if _caches_a_table(self._store):
            return None
        session = self._store(self._key)
        if not session.exists(self._key):
            return None
        data: dict[str, Any] = session.load()
        if session.session_key == self._key:
            return data
        # It had expired, and a store of files has made a new one in its place.
        if session.session_key is not None:
            session.delete(session.session_key)
        return None

    def _write(self, must_create: bool) -> None:
        backends: Any = sys.modules["django.contrib.sessions.backends.base"]
        session = self._store(self._key)
        session.clear()
        session.update(self._before or {})
        try:
            session.save(must_create=must_create)
        except (backends.UpdateError, backends.CreateError):
            # Another request was faster.
            return


def _in_a_table(session: SessionBase) -> bool:
    # If it is not imported, it is not the store.
    db: Any = sys.modules.get("django.contrib.sessions.backends.db")
    if db is None or not isinstance(session, db.SessionStore):
        return False
    # A subclass with its own methods may store in another place too, as cached_db does.
    kind = type(session)
    return kind.save is db.SessionStore.save and kind.delete is db.SessionStore.delete


def _caches_a_table(store: type[SessionBase]) -> bool:
    cached: Any = sys.modules.get("django.contrib.sessions.backends.cached_db")
    return cached is not None and issubclass(store, cached.SessionStore)
