"""Connections that a thread left behind when it ended go back to their pool."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Holder", "caller", "this_threads_holder"]

_PASSED_OVER = ("django", "django_pooled", "contextlib", "asgiref", "threading")


class Holder:
    """What one thread has checked out: actions that give each thing back, by its key.

    The thread's locals are its only owner, so it goes when the thread does; the finalizer
    then runs what is left of the actions.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.held: dict[int, Callable[[], None]] = {}
        weakref.finalize(self, _give_back, self.held, self.process).atexit = False  # type: ignore[misc]


def _give_back(held: dict[int, Callable[[], None]], process: int) -> None:
    # A forked child frees the locals of its parent's other threads before it runs any hook:
    # what they held is still theirs, and they may hold its locks for ever.
    if os.getpid() != process:
        return
    while held:
        _, action = held.popitem()
        action()


class _Locals(threading.local):
    def __init__(self) -> None:
        self.holder = Holder()


_locals = _Locals()


def this_threads_holder() -> dict[int, Callable[[], None]]:
    """Return the running thread's actions; changing them from another thread is safe."""
    if _locals.holder.process != os.getpid():
        _locals.holder = Holder()
    return _locals.holder.held


@cache
def _is_passed_over(module: str) -> bool:
    return module.partition(".")[0] in _PASSED_OVER


def caller() -> str:
    """Name the line of the project's own code that led here, as 'module.function:line'."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_passed_over(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}:{frame.f_lineno}"
