"""Celery's workers: where their tasks run, and the calls of its Django fixup.

It starts Django in the handler of a signal, and Celery only logs what that raises: a worker would
go on without its tasks. And it closes every pool that it finds in settings before and after each
task of a prefork worker, because a pool that a process inherits through fork() cannot be used. This
package's pools start anew in a child, so the only effect would be two new sessions for each task.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FIXUP",
    "call_in_workers",
    "closes_around_a_task",
    "end_starting_worker",
    "runs_a_task",
]

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


def call_in_workers(hook: Callable[[], object]) -> None:
    """Have *hook* called in each process of a worker that will run tasks; elsewhere, do nothing.

    A parent of such processes runs none.
    """
    if "celery" not in sys.modules:
        return
    from celery import signals  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def begins(**_: Any) -> None:
        hook()

    def comes_last(**_: Any) -> None:
        # As a process begins, the fixup closes every pool, in case it is the parent's.
        signals.worker_process_init.disconnect(begins)
        signals.worker_process_init.connect(begins, weak=False)

    def runs_tasks_itself(sender: Any, **_: Any) -> None:
        # Those with threads or greenlets have no other process.
        if not type(sender.pool).__module__.endswith("prefork"):
            hook()

    signals.worker_process_init.connect(begins, weak=False)
    signals.celeryd_after_setup.connect(comes_last, weak=False)
    signals.worker_ready.connect(runs_tasks_itself, weak=False)


def runs_a_task() -> bool:
    """Tell whether the running code is a worker's task, at whose end Celery closes connections."""
    if "celery" not in sys.modules:
        return False
    from celery import current_task  # type: ignore[import-not-found,import-untyped,unused-ignore]

    # After a task that its caller runs itself, by apply(), it does not.
    return bool(current_task) and not current_task.request.is_eager


def end_starting_worker(error: Exception) -> None:
    """End the process if it is a worker of Celery that is being started.

    Args:
        error: Why it cannot start.

    Raises:
        SystemExit: It is one.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == FIXUP:
            raise SystemExit(f"{type(error).__name__}: {error}") from error
