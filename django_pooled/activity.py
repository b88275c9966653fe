"""The view, task or command that a thread runs, and that its connection is in use for."""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

__all__ = ["activities_of", "current", "name_of", "present", "start_thread"]

current: ContextVar[str | None] = ContextVar("django_pooled.activity", default=None)
"""The name of what the running code belongs to, if it was given one."""

STACKS_CAN_BE_READ: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether a thread may look at the stack of another one. Without the GIL its frames are freed under
the reader's hands, and the process crashes."""


def _by_own_stack() -> str | None:
    name = current.get()
    return _activity_in(sys._getframe(1)) if name is None else name


present: Callable[[], str | None] = current.get if STACKS_CAN_BE_READ else _by_own_stack
"""Names what the running code belongs to, for others to see: by its stack too where no other thread
can read that later."""

# Held while garbage collection is off. Reentrant: a signal handler may interrupt the holder.
_collection_lock = threading.RLock()
_is_off = False  # guarded by the lock: whether collection has to be turned on again


def activities_of(threads: Iterable[int]) -> dict[int, str | None]:
    """Name the views, tasks and commands that threads of this process run now, by their stacks.

    It costs those threads nothing: they keep no record of it. Without the GIL it names none.

    Args:
        threads: The ``threading.get_ident()`` of each.

    Returns:
        By thread, a view as ``votes.views.cast``, a task of Celery as ``celery votes.tasks.count``,
        a command as ``manage.py loaddata``; None for anything else, or a thread that has ended.
    """
    wanted = set(threads) if STACKS_CAN_BE_READ else set()
    # CPython makes the frames of all threads, even if one is asked for.
    frames = _frames_of_all() if wanted else {}
    try:
        return {thread: _activity_in(frames.get(thread)) for thread in wanted}
    finally:
        # This frame is one of them, and would hold itself and its callers.
        frames.clear()


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread of this package's own, which works for none of them.

    Without the GIL, and with an option from Python 3.14 on, a thread begins with the context
    variables of the code that starts it: the deadline of one request would be that of a pool's
    worker for good. https://docs.python.org/3.14/library/threading.html#threading.Thread

    Raises:
        RuntimeError: The system has no more threads.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    Context().run(thread.start)
    return thread


def _activity_in(frame: FrameType | None) -> str | None:
    while frame is not None:
        name = frame.f_code.co_name
        if name in _NAMES:
            look = _FRAMES.get((frame.f_globals.get("__name__", ""), name))
            if look is not None and (found := look(frame)) is not None:
                return found
        frame = frame.f_back
    return None


def _frames_of_all() -> dict[int, FrameType]:
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    # Before 3.12 CPython may collect garbage while it makes the frames, and for that waits for a
    # lock that it holds: the process hangs. https://github.com/python/cpython/issues/106883
    global _is_off
    with _collection_lock:
        if not gc.isenabled():
            return sys._current_frames()
        _is_off = True
        try:
            gc.disable()
            return sys._current_frames()
        finally:
            gc.enable()
            _is_off = False


def name_of(function: Any) -> str:
    """Name a view or any callable by its module and its own name; a class-based view by its class.

    Args:
        function: A function, a class's ``as_view()``, or an object that can be called.
    """
    function = getattr(function, "view_class", function)
    if not hasattr(function, "__qualname__"):
        # Not type(): what stands for a view under retry_requests has the class of the view.
        function = function.__class__
    return f"{function.__module__}.{function.__qualname__}"


def _view(frame: FrameType) -> str | None:
    match = getattr(frame.f_locals.get("request"), "resolver_match", None)
    return None if match is None else name_of(match.func)


def _task(frame: FrameType) -> str | None:
    task = frame.f_locals.get("task")
    name = getattr(task, "name", None)
    return f"celery {name}" if isinstance(name, str) else None


def _command(frame: FrameType) -> str | None:
    command: Any = frame.f_locals.get("self")
    return f"manage.py {type(command).__module__.rpartition('.')[2]}"


# The frames with the name: of Django's handler, of Celery's tracer, of a management command.
_FRAMES = {
    ("django.core.handlers.base", "_get_response"): _view,
    ("celery.app.trace", "trace_task"): _task,
    ("django.core.management.base", "execute"): _command,
}
_NAMES = frozenset(name for _, name in _FRAMES)


def _after_fork_in_child() -> None:
    global _collection_lock, _is_off
    # Another thread of the parent may have held it.
    _collection_lock = threading.RLock()
    if _is_off:
        gc.enable()
    _is_off = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
