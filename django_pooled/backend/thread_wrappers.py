"""The database wrappers of each thread, so that another thread can see what that one holds."""

from __future__ import annotations

import os
from threading import get_ident
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from .transaction_mode import TransactionMode

__all__ = ["note", "wrappers_of"]

_wrappers: dict[int, tuple[ref[TransactionMode], ...]] = {}
"""By the thread's identifier, which a later thread may have again. Each thread replaces its own."""


def note(wrapper: TransactionMode) -> None:
    """Take note of a wrapper that this thread has made.

    Django keeps wrappers in locals of the thread, which no other one can look into.
    """
    mine = get_ident()
    left = [each for each in _wrappers.get(mine, ()) if each() is not None]
    _wrappers[mine] = (*left, ref(wrapper))


def wrappers_of(thread: int, alias: str) -> list[TransactionMode]:
    """Return the wrappers for a database that a thread has made and that still exist.

    What they hold may change at any moment: only their own thread may rely on it.
    """
    found = [each() for each in _wrappers.get(thread, ())]
    return [each for each in found if each is not None and each.alias == alias]


def _after_fork_in_child() -> None:
    # The other threads are not in the child, and their identifiers are given anew.
    for thread in list(_wrappers):
        if thread != get_ident():
            del _wrappers[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
