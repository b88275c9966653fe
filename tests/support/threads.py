"""Runs a function in another thread meanwhile."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["in_background"]


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
