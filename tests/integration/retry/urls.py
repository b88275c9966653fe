"""Views under each form of decoration."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from django.urls import path

from django_pooled import retry_transaction
from tests.integration.retry.test_decorator import CastOnDispatch, CastOnPost, cast

if TYPE_CHECKING:
    from collections.abc import Callable


def another_decorator(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapped


urlpatterns = [
    path("function/", retry_transaction(cast)),
    path("dispatch/", CastOnDispatch.as_view()),
    path("post/", CastOnPost.as_view()),
    path("wrapped/", another_decorator(retry_transaction(cast))),
]
