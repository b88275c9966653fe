"""The forms of a decorated callable that has to be awaited."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from django_pooled.activity import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_coroutine_function", "as_dispatch"]


def as_coroutine_function(
    calling: Callable[[Callable[..., Any]], Callable[..., Any]],
    decorated: Callable[..., Any],
    alias: str,
    *,
    is_keyed: bool,
) -> Any:
    """Return a coroutine function that makes the attempts of *decorated*.

    Args:
        calling: Takes what calls *decorated* in a thread, and returns what makes the attempts.
        decorated: A coroutine function, or what returns an awaitable.
        alias: Key of the database.
        is_keyed: Whether its requests may have idempotency keys.
    """
    # Not before: what is synchronous needs none of it.
    from .asgiref_private import refuse_old_release
    from .coroutines import awaited_by_caller
    from .placement import Place, call_in_thread, placement_of

    refuse_old_release()
    attempts = calling(awaited_by_caller(decorated))
    name = name_of(decorated)

    @wraps(attempts)
    async def run_again(*args: Any, **kwargs: Any) -> Any:
        placement = await placement_of(alias)
        if placement.place is Place.SAME_TRANSACTION and not is_keyed:
            return await decorated(*args, **kwargs)
        return await call_in_thread(partial(attempts, *args, **kwargs), alias, name, placement)

    run_again.__wrapped__ = decorated
    return run_again


def as_dispatch(
    calling: Callable[[Callable[..., Any]], Callable[..., Any]],
    decorated: Callable[..., Any],
    alias: str,
    *,
    is_keyed: bool,
) -> Any:
    """Return the ``dispatch()`` of a class-based view, whose methods are async or not.

    Args:
        calling: As for `as_coroutine_function`.
        decorated: ``dispatch()``; bound to the view, or a function that takes it first.
        alias: Key of the database.
        is_keyed: Whether its requests may have idempotency keys.
    """
    attempts = calling(decorated)
    bound = decorated
    while isinstance(bound, partial):
        bound = bound.func
    view_of_method = getattr(bound, "__self__", None)
    awaited: list[Any] = []

    @wraps(attempts)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        view = args[0] if view_of_method is None and args else view_of_method
        if getattr(view, "view_is_async", None) is not True:
            return attempts(*args, **kwargs)
        if not awaited:
            awaited.append(as_coroutine_function(calling, decorated, alias, is_keyed=is_keyed))
        return awaited[0](*args, **kwargs)

    return dispatch
