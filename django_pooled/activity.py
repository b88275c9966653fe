"""The view, task or command that code runs for, and that its connection is in use for."""

from __future__ import annotations

import _thread
import queue
import sys
import threading
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = [
    "MODULES",
    "NOT_YET",
    "current",
    "is_task",
    "look_for",
    "name_of",
    "start_thread",
]

current: ContextVar[str | None] = ContextVar("django_pooled.activity", default=None)
"""The name of what the running code belongs to, if it was given one."""


NOT_YET = ""
"""Stands for the name of a view while a middleware runs, before the view is known."""


def start_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread of this package's own, which works for none of them.

    Without the GIL, and with an option from Python 3.14 on, a thread begins with the context
    variables of the code that starts it: the deadline of one request would be that of a pool's
    worker for good. https://docs.python.org/3.14/library/threading.html#threading.Thread

    Raises:
        RuntimeError: The system has no more threads.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    if sys.version_info >= (3, 12):
        Context().run(thread.start)
    else:
        _start_elsewhere(thread)
    return thread


def _start_elsewhere(thread: threading.Thread) -> None:
    """Start a thread from another, whose number nobody has.

    Up to Python 3.11 a new thread has the number of the one that starts it, for a moment. An
    exception that is thrown into that one by its number (PyThreadState_SetAsyncExc), as time limits
    of jobs are, may end the new one instead, and ``Thread.start()`` would wait for it for ever.
    Here it may end what starts it, before its first line: then that is done again.
    """
    outcomes: queue.SimpleQueue[RuntimeError | None] = queue.SimpleQueue()
    left = [thread]

    def start() -> None:
        # Only one may start it: pop() is one operation.
        with suppress(IndexError):
            try:
                left.pop().start()
            except RuntimeError as error:
                outcomes.put(error)
            else:
                outcomes.put(None)

    while True:
        _thread.start_new_thread(start, ())
        with suppress(queue.Empty):
            if (error := outcomes.get(timeout=0.1)) is not None:
                raise error
            return


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


def _task(queue: str, variable: str, attribute: str) -> Callable[[FrameType], str | None]:
    """Return what finds the name of a queue's task in a variable of the frame that runs it."""

    def look(frame: FrameType) -> str | None:
        found = frame.f_locals.get(variable)
        name = getattr(found, attribute, None) if attribute else found
        return f"{queue} {name}" if isinstance(name, str) else None

    return look


def _huey_task(frame: FrameType) -> str | None:
    # Each function has a class of its own, with its module and its name.
    task = frame.f_locals.get("task")
    return None if task is None else f"huey {name_of(type(task))}"


def _command(frame: FrameType) -> str | None:
    command: Any = frame.f_locals.get("self")
    return f"manage.py {type(command).__module__.rpartition('.')[2]}"


def _middleware(frame: FrameType) -> str:
    return NOT_YET


_NAMED_FRAMES: dict[tuple[str, str], Callable[[FrameType], str | None]] = {
    ("django.core.handlers.base", "get_response"): _middleware,
    ("django.core.handlers.base", "_get_response"): _view,
    ("celery.app.trace", "trace_task"): _task("celery", "task", "name"),
    ("django_q.worker", "worker"): _task("django-q2", "func_name", ""),
    ("django_tasks_db.management.commands.db_worker", "run_task"): _task(
        "django-tasks", "db_task_result", "task_path"
    ),
    ("dramatiq.worker", "process_message"): _task("dramatiq", "message", "actor_name"),
    ("huey.api", "execute"): _huey_task,
    ("procrastinate.worker", "run_sync_task"): _task("procrastinate", "job", "task_name"),
    ("rq.worker", "perform_job"): _task("rq", "job", "func_name"),
    ("rq.worker.base", "perform_job"): _task("rq", "job", "func_name"),
    ("django.core.management.base", "execute"): _command,
}
"""How a frame of Django's handler, of a task queue's worker or of a management command tells the
name, by its module and function."""

MODULES = frozenset(module for module, _ in _NAMED_FRAMES)
"""Those modules alone."""

_FUNCTIONS = frozenset(function for _, function in _NAMED_FRAMES)


def look_for(frame: FrameType) -> Callable[[FrameType], str | None] | None:
    """Return what finds the name in a frame of one of `MODULES`; None if it is another's."""
    return _NAMED_FRAMES.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))


def is_task() -> bool:
    """Tell whether the running code belongs to a queue's task or a command, and to no view.

    As the innermost of them on its stack tells.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _FUNCTIONS and (look := look_for(frame)) is not None:
            return look not in (_view, _middleware)
        frame = frame.f_back
    return False
