"""The database wrappers of each thread, so that another thread can see what that one holds."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .transaction_mode import TransactionMode

__all__ = ["note", "wrappers_of"]

_wrappers: WeakKeyDictionary[threading.Thread, tuple[ref[TransactionMode], ...]] = (
    WeakKeyDictionary()
)
"""By the thread itself: its identifier may be that of one that has ended."""

_lock = threading.RLock()
"""Guards the dictionary. Reentrant, since a finalizer or a signal handler may make a wrapper."""


def note(wrapper: TransactionMode) -> None:
    """Take note of a wrapper that this thread has made.

    Django keeps wrappers in locals of the thread, which no other one can look into.
    """
    mine = threading.current_thread()
    with _lock:
        _wrappers[mine] = (*map(ref, _existing(_wrappers.get(mine, ()))), ref(wrapper))


def wrappers_of(thread: threading.Thread, alias: str | None = None) -> list[TransactionMode]:
    """Return the wrappers that a thread has made and that still exist.

    What they hold may change at any moment: only their own thread may rely on it.

    Args:
        thread: Whose.
        alias: The key of their database; None for those of all.
    """
    with _lock:
        found = _wrappers.get(thread, ())
    return [each for each in _existing(found) if alias in (None, each.alias)]


def _existing(references: Iterable[ref[TransactionMode]]) -> list[TransactionMode]:
    return [found for each in references if (found := each()) is not None]


def _after_fork_in_child() -> None:
    global _lock
    # Another thread of the parent may have held it.
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
