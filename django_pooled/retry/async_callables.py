"""The forms of a decorated callable that has to be awaited."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from django_pooled.activity import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .retried import Retried

__all__ = ["as_coroutine_function", "as_dispatch"]


def as_coroutine_function(
    retried: Retried[Any], calling: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Any:
    """Return a coroutine function that makes the attempts of a function.

    Args:
        retried: A coroutine function, or what returns an awaitable.
        calling: Takes what calls it in a thread, and returns what makes the attempts.
    """
    # Not before: what is synchronous needs none of it.
    from .asgiref_private import refuse_old_release
    from .coroutines import awaited_by_caller
    from .placement import Place, call_in_thread, placement_of

    refuse_old_release()
    decorated, alias = retried.function, retried.policy.using
    is_keyed = retried.policy.idempotency is not None
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
    retried: Retried[Any], calling: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Any:
    """Return the ``dispatch()`` of a class-based view, whose methods are async or not.

    Args:
        retried: ``dispatch()``; bound to the view, or a function that takes it first.
        calling: As for `as_coroutine_function`.
    """
    attempts = calling(retried.function)
    bound = retried.function
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
            awaited.append(as_coroutine_function(retried, calling))
        return awaited[0](*args, **kwargs)

    return dispatch
