"""The database wrappers of each thread, so that another thread can see what that one holds."""

from __future__ import annotations

import os
import threading
from threading import get_ident
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .transaction_mode import TransactionMode

__all__ = ["note", "wrappers_of"]

_MOST_THREADS = 1000
"""Threads after which those that have ended are forgotten."""

_wrappers: dict[int, tuple[ref[TransactionMode], ...]] = {}
"""By the thread's identifier, which a later thread may have again."""

_lock = threading.Lock()
"""Held to change it."""


def note(wrapper: TransactionMode) -> None:
    """Take note of a wrapper that this thread has made.

    Django keeps wrappers in locals of the thread, which no other one can look into.
    """
    mine = get_ident()
    with _lock:
        if len(_wrappers) >= _MOST_THREADS:
            for thread in [key for key, found in _wrappers.items() if not any(_existing(found))]:
                del _wrappers[thread]
        _wrappers[mine] = (*map(ref, _existing(_wrappers.get(mine, ()))), ref(wrapper))


def wrappers_of(thread: int, alias: str) -> list[TransactionMode]:
    """Return the wrappers for a database that a thread has made and that still exist.

    What they hold may change at any moment: only their own thread may rely on it.
    """
    return [each for each in _existing(_wrappers.get(thread, ())) if each.alias == alias]


def _existing(references: Iterable[ref[TransactionMode]]) -> list[TransactionMode]:
    return [found for each in references if (found := each()) is not None]


def _after_fork_in_child() -> None:
    global _lock
    # Another thread of the parent may have held it.
    _lock = threading.Lock()
    # The other threads are not in the child, and their identifiers are given anew.
    for thread in list(_wrappers):
        if thread != get_ident():
            del _wrappers[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
