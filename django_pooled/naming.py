"""Names the running view or task for SQL comments and ``poolstats --connections``."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .activity import current, name_of
from .request_context import RequestContextMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

__all__ = ["NameViewMiddleware", "name_celery_tasks"]


class NameViewMiddleware(RequestContextMiddleware):
    """Give all that a view does the view's name, as ``votes.views.cast``.

    Works under WSGI and ASGI, without another thread. The name is there from the moment that
    Django knows the view until the response has been made: what the body of a streaming response
    does later has none.
    """

    variable = current

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        if self.async_mode:
            # Django would run a plain method in a thread of its own.
            self.process_view = self._aprocess_view  # type: ignore[assignment,method-assign]

    def value_for(self, request: HttpRequest) -> None:
        """Without a name until Django has found the view: before it, others may be named."""

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """Django's hook for when it has found the view.

        Args:
            request: The request.
            view: Its view.
            args: The view's arguments.
            kwargs: The view's named arguments.
        """
        current.set(name_of(view))

    async def _aprocess_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        current.set(name_of(view))


# What there was before each task that is under way, which may be a view that runs it itself.
_outer: ContextVar[tuple[str | None, ...]] = ContextVar("django_pooled.naming", default=())


def name_celery_tasks() -> None:
    """Give all that a task of Celery does the task's name, as ``celery votes.tasks.count``.

    To be called once, in the module that makes the Celery application.
    """
    from celery import signals  # type: ignore[import-untyped,unused-ignore]

    signals.task_prerun.connect(_task_begins, dispatch_uid="django_pooled.naming")
    signals.task_postrun.connect(_task_ended, dispatch_uid="django_pooled.naming")


def _task_begins(task: Any, **kwargs: Any) -> None:
    _outer.set((*_outer.get(), current.get()))
    current.set(f"celery {task.name}")


def _task_ended(**kwargs: Any) -> None:
    *outer, before = _outer.get()
    _outer.set(tuple(outer))
    current.set(before)
