"""Threads in which nothing would end a checkout: outside of requests, tasks, commands and tests.

Django gives a connection back at the end of a request, and Celery at the end of a task; a script,
a command and a test own the process's main thread. The threads of ``asyncio.to_thread()``,
``sync_to_async(thread_sensitive=False)`` and executors live on without such an end; so do the
processes of multiprocessing, in which task queues and executors wait for more to do.
"""

from __future__ import annotations

import os
import sys
import threading

from django.core.signals import request_finished, request_started
from django.dispatch import receiver

__all__ = ["note_streaming", "note_tests", "this_thread"]


def _is_main() -> bool:
    # Looked up anew, since gevent and eventlet replace the functions.
    return threading.get_ident() == threading.main_thread().ident


def _is_child() -> bool:
    # Its children have all imported it, by fork or anew; others are spared the import.
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


class _ThisThread(threading.local):
    """What is known of the running thread."""

    in_request: bool = False
    runs_tests: bool = False
    """Whether it is the main thread of a process of Django's parallel test runner."""
    has_end: bool | None = None
    """Whether connections that it checks out now are closed at the end of what it does. In doubt
    not: then they go back after each transaction, unless something depends on one. None before the
    first checkout, which finds out."""

    def __init__(self) -> None:
        self.request: object = object()
        """Tells the request of this thread, and what comes after it, from every other."""

    def find_out(self) -> bool:
        """Find out what `has_end` is outside of a request, and remember it."""
        self.has_end = _is_main() and (self.runs_tests or not _is_child())
        return self.has_end


this_thread = _ThisThread()


def note_tests() -> None:
    """This thread runs tests, in a process of Django's parallel test runner."""
    this_thread.runs_tests, this_thread.has_end = True, None


def note_streaming() -> None:
    """The rest of this thread's request streams a response, for as long as the client reads it."""
    if this_thread.in_request:
        this_thread.has_end = False


# Under ASGI too they are sent in the thread of the request's synchronous code, of its queries.
@receiver(request_started)
def _request_begins(**kwargs: object) -> None:
    this_thread.in_request, this_thread.has_end, this_thread.request = True, True, object()


@receiver(request_finished)
def _request_ends(**kwargs: object) -> None:
    this_thread.in_request, this_thread.has_end = False, None


def _after_fork_in_child() -> None:
    # The thread begins with what its parent's had found out, and may be one of multiprocessing now.
    if not this_thread.in_request:
        this_thread.has_end = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
