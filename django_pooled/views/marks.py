"""Which views are left alone: those that say so, or that begin their own transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from django_pooled.backend.non_atomic import is_non_atomic
from django_pooled.integrations import ninja
from django_pooled.integrations.rest_framework import decorated_by_api_view
from django_pooled.retry.asgiref_private import is_old_release
from django_pooled.retry.callables import is_async

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["class_of", "is_left_alone", "leaves_method_alone", "no_retry"]

F = TypeVar("F", bound="Callable[..., Any]")

_MARK = "django_pooled_no_retry"


def no_retry(view: F, /) -> F:
    """Have ``retry_requests`` leave a view alone: it runs as it would without that line.

    For a view with effects outside the database that must not happen twice, or for one that has to
    answer without a database. Decorate a function, a class-based view, its ``dispatch`` or one of
    its methods such as ``get``; a method of a ``ModelAdmin``; an operation of Ninja's, below its
    route. A view of another package is marked where the URLs are: ``no_retry(their_view)``.

    Args:
        view: Marked as it is, and returned.

    Raises:
        TypeError: It cannot bear a mark, as a method that is bound to an object.
    """
    try:
        setattr(view, _MARK, True)
    except AttributeError:
        raise TypeError(
            f"no_retry cannot mark {view!r}: decorate the function or the class that defines it."
        ) from None
    return view


def is_left_alone(view: Callable[..., Any], using: str) -> bool:
    """Tell whether a view is left alone for requests of any method."""
    # Inherited by subclasses, unlike the attributes that as_view() copies from dispatch().
    marked = _is_marked(view) or _is_marked(class_of(view))
    return marked or is_non_atomic(view, using) or (is_async(view) and is_old_release())


def leaves_method_alone(view: Callable[..., Any], method: str, using: str) -> bool:
    """Tell whether a view is left alone for requests of one method, by the function for that."""
    function = _function_for(view, method)
    return function is not None and (_is_marked(function) or is_non_atomic(function, using))


def class_of(view: Callable[..., Any]) -> type | None:
    """Return the class of a class-based view, of Django or of Django REST framework."""
    for name in ("view_class", "cls"):
        found = getattr(view, name, None)
        if isinstance(found, type):
            return found
    return None


def _is_marked(function: object) -> bool:
    # Not for its truth: an object may have an answer for every attribute.
    return getattr(function, _MARK, None) is True


def _function_for(view: Callable[..., Any], method: str) -> object:
    cls, name = class_of(view), method.lower()
    if cls is None:
        return ninja.function_for(view, method)
    # Django REST framework's ViewSets.
    actions = getattr(view, "actions", None)
    if isinstance(actions, dict):
        name = actions.get(name, name)
    if name == "head" and not hasattr(cls, "head"):
        name = "get"
    return decorated_by_api_view(getattr(cls, name, None))
