"""The list in ``settings.MIDDLEWARE``: where a class is, and what comes before it."""

from __future__ import annotations

from inspect import isclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

__all__ = ["place_of", "that_queries_before"]

_IN_THE_DATABASE = frozenset(
    {
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
        "django.contrib.auth.middleware.RemoteUserMiddleware",
        "django.contrib.sites.middleware.CurrentSiteMiddleware",
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
        "django.contrib.redirects.middleware.RedirectFallbackMiddleware",
        "django.middleware.cache.UpdateCacheMiddleware",
        "django.middleware.cache.FetchFromCacheMiddleware",
    }
)
"""Django's own middleware that may use the database."""


def that_queries_before(place: int) -> list[str]:
    """Return the middleware of Django's that may use the database and comes before a place."""
    return [path for path in settings.MIDDLEWARE[:place] if path in _IN_THE_DATABASE]


def place_of(wanted: str) -> int | None:
    """Return where a class of middleware is, or one of its subclasses; None if it is nowhere.

    Args:
        wanted: The path of one of this package's.
    """
    for place, path in enumerate(settings.MIDDLEWARE):
        try:
            candidate, kind = import_string(path), import_string(wanted)
        except (ImportError, ImproperlyConfigured):
            # Django fails on it at start-up. Without psycopg, the check that says so has to run.
            continue
        if isclass(candidate) and issubclass(candidate, kind):
            return place
    return None
