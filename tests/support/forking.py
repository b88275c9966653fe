"""A process that forks with threads running."""

from __future__ import annotations

import os
import warnings

__all__ = ["fork"]


def fork() -> int:
    """Fork, in spite of other threads: what then becomes of the child is what a test asks.

    From 3.12 on Python warns of them, with a DeprecationWarning.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return os.fork()
