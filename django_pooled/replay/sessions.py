"""Sessions, and what an attempt did to them where no rollback reaches."""

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
"""Far enough for whatever is stored in a session."""


@keeps("django.contrib.sessions.backends.base.SessionBase")
class KeptSession(KeptAttributes):
    """A session: its key, its data if it was loaded, and what is stored outside the transaction.

    ``login()``, ``logout()``, ``cycle_key()`` and ``flush()`` store and delete at once. In a
    table the rollback undoes that; an attempt that wrote to another database's gets no successor.
    In a cache or in files nothing does: there each attempt's first store or deletion of a key
    is preceded by a look at what it holds, which is put back before another attempt. Only what the
    attempt has done is undone: a session that was changed or ended elsewhere meanwhile stays so.
    """

    __slots__ = ("_outer", "_session", "_touched")

    def __init__(self, value: SessionBase, snapshot: Snapshot, depth: int) -> None:
        super().__init__(value, snapshot, _DATA_DEPTH)
        self._session = value
        self._touched: dict[str, _Touched] = {}
        self._outer: dict[str, Any] = {}
        snapshot.hooks.append(self)

    def start(self) -> None:
        """Begin to look, unless all of it is in a table."""
        if not _in_a_table(self._session):
            attributes = vars(self._session)
            # An attempt around this one, on another database, goes on looking.
            self._outer = {name: attributes[name] for name in _HOOKED if name in attributes}
            attributes.update({name: getattr(self, f"_{name}") for name in _HOOKED})

    def stop(self) -> None:
        """Look no more."""
        attributes = vars(self._session)
        if attributes.get("save") == self._save:
            for name in _HOOKED:
                del attributes[name]
            attributes.update(self._outer)

    def restore(self) -> None:
        super().restore()
        touched, self._touched = self._touched, {}
        try:
            for one in touched.values():
                one.undo()
        except Exception as error:
            raise CannotReplay(f"the session could not be put back: {told(error)}") from error

    def _save(self, must_create: bool = False) -> None:
        session = self._session
        if session.session_key is None:
            # Calls this again, with the key that it makes.
            self._theirs("save")(must_create)
            return
        touched = self._touch(session.session_key, new=must_create)
        self._theirs("save")(must_create)
        touched.saved()

    def _delete(self, session_key: str | None = None) -> None:
        key = session_key or self._session.session_key
        if key is not None:
            self._touch(key).about_to_delete()
        self._theirs("delete")(session_key)

    async def _asave(self, must_create: bool = False) -> None:
        session = self._session
        if session.session_key is None:
            await self._theirs("asave")(must_create)
            return
        touched = await sync_to_async(self._touch)(session.session_key, new=must_create)
        await self._theirs("asave")(must_create)
        await sync_to_async(touched.saved)()

    async def _adelete(self, session_key: str | None = None) -> None:
        key = session_key or self._session.session_key
        if key is not None:
            touched = await sync_to_async(self._touch)(key)
            await sync_to_async(touched.about_to_delete)()
        await self._theirs("adelete")(session_key)

    def _theirs(self, name: str) -> Any:
        """Return what stood there before: the store's method, or that of an attempt around."""
        own = getattr(type(self._session), name)
        return self._outer.get(name) or partial(own, self._session)

    def _touch(self, key: str, new: bool = False) -> _Touched:
        if key not in self._touched:
            self._touched[key] = _Touched(type(self._session), key, new)
        return self._touched[key]


class _Touched:
    """What the store held of one key before an attempt, and what the attempt left there."""

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
        # As the store returns it: not every one does so with the same types.
        self._after = self._look()
        self._deleted = False

    def about_to_delete(self) -> None:
        # What is not there any more was ended elsewhere, and must not come back.
        self._deleted = self._deleted or self._look() is not None
        self._after = None

    def undo(self) -> None:
        if _caches_a_table(self._store):
            # The table tells again what it is, or that it is gone.
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
        """Return what is stored, if anything; a table needs no look."""
        if _caches_a_table(self._store):
            return None
        session = self._store(self._key)
        if not session.exists(self._key):
            return None
        data: dict[str, Any] = session.load()
        if session.session_key == self._key:
            return data
        # It had expired. A store of files has made a new one, which nobody needs.
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
            # Somebody was faster.
            return


def _in_a_table(session: SessionBase) -> bool:
    # Where this is not imported, no session is kept in a table by it.
    db: Any = sys.modules.get("django.contrib.sessions.backends.db")
    if db is None or not isinstance(session, db.SessionStore):
        return False
    # A subclass that stores in its own way may store elsewhere too, as cached_db does.
    kind = type(session)
    return kind.save is db.SessionStore.save and kind.delete is db.SessionStore.delete


def _caches_a_table(store: type[SessionBase]) -> bool:
    cached: Any = sys.modules.get("django.contrib.sessions.backends.cached_db")
    return cached is not None and issubclass(store, cached.SessionStore)
