"""Connections that a thread left behind when it ended go back to their pool."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

__all__ = ["Line", "Thread", "Threads", "caller"]

# Since Python 3.12; without it each frame on the way has to become an object, to be asked.
_module_at = getattr(sys, "_getframemodulename", None)

_PASSED_OVER = ("django", "django_pooled", "contextlib", "asgiref", "threading")


class Thread:
    """What remains of a thread when it has ended, for who has to tell it from others."""

    __slots__ = ("ident",)

    def __init__(self) -> None:
        self.ident: int = threading.get_ident()
        """Another thread's, later."""


class Threads(threading.local):
    """Knows the running thread, and tells of its end.

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
    """Something that goes."""


def _tell(
    ended: weakref.WeakMethod[Callable[[Thread], None]], thread: Thread, process: int
) -> None:
    tell = ended()
    # A forked child frees the locals of its parent's other threads before it runs any hook:
    # what they held is still theirs, and they may hold its locks for ever.
    if tell is not None and os.getpid() == process:
        tell(thread)


class Line(NamedTuple):
    """A line of code, which is put into words when somebody asks."""

    code: CodeType
    module: str
    instruction: int
    """Offset of what was being run; to find its line takes longer than all else here."""

    @property
    def number(self) -> int:
        """The line's number."""
        for start, end, number in self.code.co_lines():
            if start <= self.instruction < end and number is not None:
                return number
        return self.code.co_firstlineno

    def __str__(self) -> str:
        return f"{self.module}.{self.code.co_name}:{self.number}"


def caller(above: int = 0) -> Line:
    """Return the line of the project's own code that led here.

    Args:
        above: How many callers are passed over in any case.
    """
    depth = above + 1
    if _module_at is not None:
        # A decorator may have copied that name from what it decorates; the frame's own settles it.
        while _is_passed_over(module := _module_at(depth)):
            depth += 1
        if module is None:
            depth = above + 1
    frame = sys._getframe(depth)
    while True:
        module = frame.f_globals.get("__name__", "?")
        if not _is_passed_over(module) or frame.f_back is None:
            return Line(frame.f_code, module, frame.f_lasti)
        frame = frame.f_back


@lru_cache(maxsize=1024)
def _is_passed_over(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _PASSED_OVER
