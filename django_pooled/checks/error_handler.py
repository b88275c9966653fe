"""Checks that errors which no middleware sees are answered too: W005."""

from __future__ import annotations

from inspect import isclass

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ViewDoesNotExist
from django.urls import get_resolver
from django.utils.module_loading import import_string
from django.views.defaults import server_error

__all__ = ["check_error_handler"]

MIDDLEWARE = "django_pooled.middleware.DatabaseUnavailableMiddleware"
HANDLER500 = "django_pooled.middleware.handler500"


def check_error_handler(**kwargs: object) -> list[CheckMessage]:
    """Check that errors which no middleware can see are answered too: W005.

    The project's own error handler is not judged: whether it calls
    ``unavailable_response()`` can't be seen from outside.
    """
    root = getattr(settings, "ROOT_URLCONF", None)
    if root is None or not _has_middleware():
        return []
    try:
        handler = get_resolver().resolve_error_handler(500)
    except (ImportError, ViewDoesNotExist):
        # Django's own checks report it.
        return []
    if handler is not server_error:
        return []
    return [
        CheckWarning(
            f"{MIDDLEWARE} is installed, and {root} has no handler500: a "
            f"database that is away while another middleware needs it is answered 500.",
            hint=f"Add handler500 = {HANDLER500!r} to {root}.",
            id="django_pooled.W005",
        )
    ]


def _has_middleware() -> bool:
    from django_pooled.middleware import DatabaseUnavailableMiddleware

    for path in settings.MIDDLEWARE:
        try:
            candidate = import_string(path)
        except ImportError:
            # Django fails on it at start-up.
            continue
        if isclass(candidate) and issubclass(candidate, DatabaseUnavailableMiddleware):
            return True
    return False
