"""Waits for a condition, not for a time."""

from __future__ import annotations

import contextlib
import inspect
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["wait_until"]

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Poll until the condition is true and return its value.

    Args:
        condition: called every few milliseconds; what it raises counts as "not yet".
        timeout: seconds.
        what: words for the failure; by default the condition's source.

    Raises:
        AssertionError: it did not become true; with its last value or exception.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            value = condition()
        except Exception as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() > deadline:
            if not what:
                with contextlib.suppress(OSError, TypeError):
                    what = inspect.getsource(condition).strip()
            raise AssertionError(f"not within {timeout:g} s: {what or condition}; last: {last!r}")
        time.sleep(0.005)
