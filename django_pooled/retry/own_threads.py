"""Threads for calls that need one of their own, used again while there is work for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from django_pooled.activity import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OwnThreads"]

IDLE = 10.0
"""Seconds after which a thread without work ends."""

MOST_IDLE = 32
"""Threads without work that are kept for so long; others end at once."""


class OwnThreads:
    """Threads that run one job each, from its beginning to its end.

    There are as many as jobs.

    Args:
        name: Of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[_Thread] = deque()
        """Without a lock: pop(), append() and remove() are one operation each, and whoever has
        taken a thread out of it is the only one that gives it a job."""

    def run(self, job: Callable[[], object]) -> None:
        """Run a job, which must not raise, in a thread that has no other.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        try:
            # The one that was at work last: the others come to their ends.
            thread = self._idle.pop()
        except IndexError:
            _Thread(self, job).start(self._name)
        else:
            thread.take(job)

    def rest(self, thread: _Thread) -> bool:
        """Keep a thread that has ended its job; tell whether it is wanted."""
        if len(self._idle) >= MOST_IDLE:
            return False
        self._idle.append(thread)
        return True

    def leave(self, thread: _Thread) -> bool:
        """Forget an idle thread; tell whether it was idle still, and has not got a job."""
        try:
            self._idle.remove(thread)
        except ValueError:
            return False
        return True

    def forget_all(self) -> None:
        """After fork(): the threads are not in the child."""
        self._idle = deque()


class _Thread:
    def __init__(self, threads: OwnThreads, job: Callable[[], object]) -> None:
        self._threads = threads
        self._job: Callable[[], object] | None = job
        # A lock that is opened when there is a job: see `Waiter`.
        self._gate = threading.Lock()
        self._gate.acquire()

    def start(self, name: str) -> None:
        # Without work it does not hold up the end of the process, and with work its task does.
        start_thread(self._run, name)

    def take(self, job: Callable[[], object]) -> None:
        self._job = job
        self._gate.release()

    def _run(self) -> None:
        while True:
            job, self._job = self._job, None
            if job is not None:
                job()
            # It may hold what the next job waits for.
            del job
            if not self._threads.rest(self):
                return
            if not self._gate.acquire(timeout=IDLE):
                if self._threads.leave(self):
                    return
                # It was taken from the idle ones this very moment.
                self._gate.acquire()


THREADS = OwnThreads("retry_transaction")

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=THREADS.forget_all)
