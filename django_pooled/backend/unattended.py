"""Threads in which nothing would end a checkout: outside of requests, tasks, commands and tests.

Django gives a connection back at the end of a request, and Celery at the end of a task; a script,
a command and a test own the process's main thread. The threads of ``asyncio.to_thread()``,
``sync_to_async(thread_sensitive=False)`` and executors live on without such an end.
"""

from __future__ import annotations

import threading

from django.core.signals import request_finished, request_started
from django.dispatch import receiver

from django_pooled.integrations import celery

__all__ = ["is_unattended", "note_streaming"]


class _Request(threading.local):
    is_under_way = False
    is_streaming = False


_request = _Request()


def is_unattended() -> bool:
    """Tell whether nothing will soon close the connections of the running thread.

    In doubt it is: then they go back after each transaction, unless something depends on one.
    """
    if _request.is_under_way:
        return _request.is_streaming
    # Looked up anew, since gevent and eventlet replace the functions.
    is_main = threading.get_ident() == threading.main_thread().ident
    return not is_main and not celery.runs_a_task()


def note_streaming() -> None:
    """The rest of this thread's request streams a response, for as long as the client reads it."""
    _request.is_streaming = True


# Under ASGI too they are sent in the thread of the request's synchronous code, of its queries.
@receiver(request_started)
def _request_begins(**kwargs: object) -> None:
    _request.is_under_way, _request.is_streaming = True, False


@receiver(request_finished)
def _request_ends(**kwargs: object) -> None:
    _request.is_under_way = False
