"""Runs functions in other threads."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["at_once", "in_background"]


@contextlib.contextmanager
def in_background(work: Callable[[], object], over: threading.Event) -> Iterator[None]:
    """Have *work* run in a thread; it returns once *over* is set, at the end of the block."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60.0)


def at_once(work: Callable[[], object], times: int) -> None:
    """Run *work* in so many threads at the same time, until all have ended."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
