"""Connections that a thread left behind when it ended go back to their pool."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

__all__ = ["Holder", "Line", "caller", "this_threads_holder"]

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
    holder = _locals.holder
    if holder.process != os.getpid():
        holder = _locals.holder = Holder()
    return holder.held


class Line(NamedTuple):
    """A line of code, which is put into words when somebody asks."""

    code: CodeType
    module: str
    number: int

    def __str__(self) -> str:
        return f"{self.module}.{self.code.co_name}:{self.number}"


def caller() -> Line:
    """Return the line of the project's own code that led here."""
    frame = sys._getframe(1)
    while _passed_over.get(frame.f_code) or _is_passed_over(frame):
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Line(frame.f_code, frame.f_globals.get("__name__", "?"), frame.f_lineno)


def _is_passed_over(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "").partition(".")[0]
    if module not in _PASSED_OVER:
        return False
    if len(_passed_over) >= REMEMBERED:
        _passed_over.clear()
    _passed_over[frame.f_code] = True
    return True


REMEMBERED = 10_000
"""Functions whose module is remembered: a site that makes functions has no end of them."""

# A look at each module's name would take longer than all else that a checkout notes.
_passed_over: dict[CodeType, bool] = {}
