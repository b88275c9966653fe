"""Tasks of a queue, which are to be made of a retried function and not the other way round."""

from __future__ import annotations

__all__ = ["refuse_tasks"]


def refuse_tasks(function: object) -> None:
    """Refuse what a task queue has already made a task of.

    The worker would call the task itself, and not what the decorator returns.

    Raises:
        TypeError: With the right order of decorators.
    """
    kind = type(function)
    # By its type: to look for an attribute of a shared_task itself finalizes Celery's app.
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
