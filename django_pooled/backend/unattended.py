"""Threads in which nothing would end a checkout: outside of requests, tasks, commands and tests.

Django gives a connection back at the end of a request, and Celery at the end of a task; a script,
a command and a test own the process's main thread. The threads of ``asyncio.to_thread()``,
``sync_to_async(thread_sensitive=False)`` and executors live on without such an end.
"""

from __future__ import annotations

import threading

from django.core.signals import request_finished, request_started
from django.dispatch import receiver

__all__ = ["note_streaming", "this_thread"]


def _is_main() -> bool:
    # Looked up anew, since gevent and eventlet replace the functions.
    return threading.get_ident() == threading.main_thread().ident


class _ThisThread(threading.local):
    """What is known of the running thread."""

    in_request: bool = False
    has_end: bool
    """Whether connections that it checks out now are closed at the end of what it does. In doubt
    not: then they go back after each transaction, unless something depends on one."""

    def __init__(self) -> None:
        self.has_end = _is_main()
        self.request: object = object()
        """Tells the request of this thread, and what comes after it, from every other."""


this_thread = _ThisThread()


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
    this_thread.in_request, this_thread.has_end = False, _is_main()
