"""Reports the end of a thread, which may have left a connection behind."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Thread", "Threads"]


class Thread:
    """Tells a thread from every other one, also after its end."""

    __slots__ = ("ident",)

    def __init__(self) -> None:
        self.ident: int = threading.get_ident()
        """May be reused by another thread."""


class Threads(threading.local):
    """Knows the running thread, and reports its end.

    The thread's locals are the only owner of its sentinel, so that goes when the thread does.

    Args:
        ended: Called with a thread that has ended, in that thread, which is no more as far as
            threading knows: it must not log, for instance.
    """

    def __init__(self, ended: weakref.WeakMethod[Callable[[Thread], None]]) -> None:
        # Once in each thread that asks.
        self.this: Thread = Thread()
        self._sentinel = _Sentinel()
        weakref.finalize(self._sentinel, _tell, ended, self.this, os.getpid()).atexit = False  # type: ignore[misc]


class _Sentinel:
    """An object that is freed with its thread."""


def _tell(
    ended: weakref.WeakMethod[Callable[[Thread], None]], thread: Thread, process: int
) -> None:
    tell = ended()
    # A forked child frees the locals of its parent's other threads before it runs any hook:
    # what they held is still theirs, and they may hold its locks for ever.
    if tell is not None and os.getpid() == process:
        tell(thread)
