"""Recognises the calls by which Celery closes pools around each task.

Celery's Django fixup closes every pool that it finds in settings before and after each task of
a prefork worker, because a pool that a process inherits through fork() cannot be used. This
package's pools start anew in a child, so the only effect would be two new sessions for each task.
"""

from __future__ import annotations

import sys

__all__ = ["FIXUP", "closes_around_a_task"]

FIXUP = "celery.fixups.django"


def closes_around_a_task() -> bool:
    """Tell whether the calling function was called by Celery's fixup around a task.

    Calls at the start of a worker or of a process are others: the worker's main process runs no
    tasks, and does not need the connections that it has opened.
    """
    if sys._getframe(2).f_globals.get("__name__") != FIXUP:
        return False
    from celery import current_task  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return bool(current_task)
