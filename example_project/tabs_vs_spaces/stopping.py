"""Ctrl-C, SIGTERM and a closed terminal as one flag, looked at between the steps of ``serve``."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

# A flag instead of an exception: one raised between the start of a child process and the
# line that remembers it would leave an orphan behind.
_requested = False


class Stop(Exception):
    """Ctrl-C was pressed or SIGTERM received."""


def listen() -> None:
    """From now on, note a request to stop instead of ending the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)
    # nohup has this one ignored, and means it.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _note)


def requested() -> bool:
    """Whether one of the signals arrived since :func:`listen`."""
    return _requested


def pause(seconds: float = 0.1) -> None:
    """Wait between two steps.

    Raises:
        Stop: One of the signals arrived.
    """
    time.sleep(seconds)
    if _requested:
        raise Stop


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True
