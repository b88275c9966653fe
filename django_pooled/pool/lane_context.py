"""The lane of the running code: as it was said, or as its stack tells."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from django_pooled.activity import is_task

from .lanes import LANES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

__all__ = ["current", "lane", "lane_of_caller", "lane_of_view"]

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "django_pooled_lane"

current: ContextVar[str | Callable[[], str] | None] = ContextVar("django_pooled.lane", default=None)
"""The lane of the running code, or what finds it out at a checkout, and may query itself; None
if it was given none."""


def lane_of_caller() -> str:
    """Return the lane of the running code.

    That of its block, view or request, if it has one; of a management command or a queue's task
    "task"; of anything else "web".
    """
    given = current.get()
    if given is None:
        return "task" if is_task() else "web"
    return given if isinstance(given, str) else given()


def lane_of_view(view: object) -> str | None:
    """Return the lane that a view was decorated with, or None."""
    found = getattr(view, _MARK, None)
    # An object may have an answer for every attribute.
    return found if found in LANES else None


class lane(AbstractContextManager[None]):  # noqa: N801 - used as a function
    """Have connections that are checked out in this block, or by a function, belong to a lane.

    The option ``lanes`` of the pool gives lanes their limits; without it, nothing changes. It
    follows the code into ``sync_to_async`` and ``asyncio.to_thread``, and not into threads that the
    code starts. A connection that the thread has already stays in the lane of its checkout. ::

        with lane("task"):
            ...

        @lane("task")  # a view, or any function or coroutine function
        def export(request): ...

    With `django_pooled.middleware.LaneMiddleware` a view's lane holds from the beginning of its
    request.

    Args:
        name: "probe", "admin", "web" or "task".

    Raises:
        ValueError: There is no such lane.
    """

    def __init__(self, name: str) -> None:
        if name not in LANES:
            raise ValueError(f"lane({name!r}); expected one of {', '.join(LANES)}")
        self._name = name
        self._before: list[Token[str | Callable[[], str] | None]] = []

    def __enter__(self) -> None:
        self._before.append(current.set(self._name))

    def __exit__(self, *_: object) -> None:
        # Other threads and tasks may be in the same block; each can reset its own token alone. A
        # generator that is closed in another thread than it was begun in has none there.
        for token in reversed(self._before.copy()):
            with suppress(ValueError):
                current.reset(token)
                self._before.remove(token)
                return

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function."""
        if isinstance(function, type):
            raise TypeError(
                f"lane() around the class {function.__qualname__}; decorate a function: a view is "
                f"what its as_view() returns"
            )
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            raise TypeError(
                f"lane() around {function!r} would end before the generator runs; use it as a "
                f"block in the generator"
            )
        name = self._name
        laned: Callable[P, R]
        if iscoroutinefunction(function):

            @wraps(function)
            async def laned_coroutine(*args: Any, **kwargs: Any) -> Any:
                with lane(name):
                    return await function(*args, **kwargs)

            laned = cast("Callable[P, R]", laned_coroutine)
        else:

            @wraps(function)
            def laned_function(*args: P.args, **kwargs: P.kwargs) -> R:
                with lane(name):
                    return function(*args, **kwargs)

            laned = laned_function
        setattr(laned, _MARK, name)
        return laned
