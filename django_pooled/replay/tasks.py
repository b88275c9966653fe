"""Refuses tasks of a queue: the task has to be made of the retried function."""

from __future__ import annotations

__all__ = ["refuse_tasks"]


def refuse_tasks(function: object) -> None:
    """Refuse a function that a task queue has already turned into a task.

    The worker would call the task itself, and not what the decorator returns.

    Raises:
        TypeError: With the right order of decorators.
    """
    kind = type(function)
    # By its type: an attribute lookup on a shared_task would finalize Celery's app.
    for queue, decorator, marks in [
        ("celery.", "@shared_task", ("delay", "apply_async")),
        ("dramatiq.", "@dramatiq.actor", ("send", "send_with_options")),
        ("django.tasks.", "@task", ("enqueue", "using")),
    ]:
        if kind.__module__.startswith(queue) or all(hasattr(kind, mark) for mark in marks):
            raise TypeError(
                f"retry_transaction cannot decorate a task, whose worker would not call it: "
                f"write @retry_transaction below {decorator}, next to the function."
            )
