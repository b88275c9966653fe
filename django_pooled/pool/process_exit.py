"""Calls functions as a process ends, one that multiprocessing has started too."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["at_exit", "has_begun"]

LAST = -100
"""Priority among what multiprocessing does at the end: after its queues and its own children."""

_functions: list[Callable[[], object]] = []
"""Grows while modules are imported; read at the end."""
_known_in = 0
"""The process that multiprocessing was told of, in one assignment."""


def at_exit(function: Callable[[], object]) -> None:
    """Have *function* called as this process or a child of it ends, before those known already."""
    _functions.append(function)


def has_begun() -> None:
    """Have the functions called at the end of this process, which has something to end now.

    A child that multiprocessing has forked leaves by os._exit(), without the handlers of atexit.
    """
    global _known_in
    # All its children have imported it, by fork or anew.
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _known_in == os.getpid():
        return
    from multiprocessing.util import Finalize

    _known_in = os.getpid()
    Finalize(None, _call, exitpriority=LAST)


def _call() -> None:
    for function in reversed(_functions):
        function()


atexit.register(_call)
