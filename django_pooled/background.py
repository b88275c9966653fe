"""Work that may never end: in a daemon thread of its own, so that its caller can give it up."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["over_within", "start"]

T = TypeVar("T")


def start(work: Callable[[], T], name: str) -> Future[T]:
    """Run *work* in a thread of its own, which does not hold up the end of the process.

    Where no more threads can be had it is run at once, by the caller.

    Args:
        work: Whatever it raises, BaseExceptions included, is kept for the caller.
        name: The thread's name.
    """
    future: Future[T] = Future()
    try:
        threading.Thread(target=_run, args=(future, work), name=name, daemon=True).start()
    except RuntimeError:
        _run(future, work)
    return future


def over_within(future: Future[T], seconds: float) -> bool:
    """Wait at most that long, and tell whether the work is over, well or not."""
    # Its own timeouts cannot be told from a TimeoutError that the work has raised.
    return bool(wait([future], max(0.0, seconds)).done)


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
