"""Work that may never end, in a daemon thread, so that its caller can give it up."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from django_pooled.activity import start_thread

from .backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAVE", "LeftBehind", "in_a_thread", "over_within", "start"]

T = TypeVar("T")

LEAVE = 0.2
"""Seconds in which a thread may end that was told to; most end at once, and are not counted."""


def start(
    work: Callable[[], T],
    by: Callable[[Callable[[], None]], None],
    future: Future[T] | None = None,
) -> Future[T]:
    """Run *work*, and keep its result or its error.

    Args:
        work: Its error is kept too, also one that is no Exception.
        by: Runs an action in a thread of its own.
        future: What keeps it, where others wait for it already.
    """
    future = Future() if future is None else future
    by(partial(_run, future, work))
    return future


def in_a_thread(name: str) -> Callable[[Callable[[], None]], None]:
    """Return what runs an action in a thread of that name.

    It does not hold up the end of the process. Where no more threads can be had, the action is run
    at once, by the caller.
    """

    def run(action: Callable[[], None]) -> None:
        try:
            start_thread(action, name)
        except RuntimeError:
            action()

    return run


def over_within(future: Future[T], seconds: float) -> bool:
    """Wait at most that long, and tell whether the work is over, well or not."""
    # Its own timeouts cannot be told from a TimeoutError that the work has raised.
    return bool(wait([future], max(0.0, seconds)).done)


class LeftBehind:
    """Threads of one pool that were given up and have not ended: nothing can end them.

    Args:
        most: As many as that cost nothing; with more of them, what leaves them behind has to wait.
        longest: Seconds to which those waits grow.
    """

    def __init__(self, most: int, longest: float) -> None:
        self._most = most
        self._longest = longest
        self._number = 0
        self._lock = threading.Lock()  # guards the number

    def add(self, future: Future[T], waited: float) -> float:
        """Count work that was given up, until it ends.

        Args:
            future: The work.
            waited: Seconds that were waited for it.

        Returns:
            Seconds to wait before the like is tried again.
        """
        with self._lock:
            self._number += 1
        future.add_done_callback(self._ended)
        with self._lock:
            too_many = self._number - self._most
        if too_many <= 0:
            return 0.0
        return Backoff(waited, max(waited, self._longest)).wait(too_many)

    def _ended(self, future: Future[T]) -> None:
        with self._lock:
            self._number -= 1


def _run(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
        del result
    finally:
        # The error's traceback holds this frame, which would hold the error by way of the future.
        del future, work
