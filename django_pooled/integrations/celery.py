"""Tells Celery's closing of pools around each task from everybody else's.

Celery's Django fixup closes every pool that it finds in settings before and after each task of
a prefork worker, because a pool that a process inherits through fork() can't be used. Ours
starts anew in a child by itself, so there the only effect would be two new sessions a task.
"""

from __future__ import annotations

import sys

__all__ = ["FIXUP", "closes_around_a_task"]

FIXUP = "celery.fixups.django"


def closes_around_a_task() -> bool:
    """Tell whether the function that asks was called by Celery's fixup, for a task's sake.

    What the fixup closes when a worker or a process starts is none of that: the worker's main
    process runs no tasks, and what it opened by then is of no more use.
    """
    if sys._getframe(2).f_globals.get("__name__") != FIXUP:
        return False
    from celery import current_task  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return bool(current_task)
