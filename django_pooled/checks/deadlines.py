"""Is the deadline of requests set, sound, and around all of them: E006, W022, W023."""

from __future__ import annotations

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from .middleware import place_of, that_queries_before

__all__ = ["check_deadlines"]

SETTING = "POOLED_DEADLINE"
MIDDLEWARE = "django_pooled.middleware.DeadlineMiddleware"


def check_deadlines(**kwargs: object) -> list[CheckMessage]:
    """Check that the setting can work, and that other middleware is within the deadline.

    What neither uses the database nor answers by itself may come first, but whether that is so
    can't be seen from outside.
    """
    place = place_of(MIDDLEWARE)
    if place is None:
        if not hasattr(settings, SETTING):
            return []
        return [
            CheckWarning(
                f"{SETTING} is set, and {MIDDLEWARE} is not installed: no request has a deadline.",
                hint=f"Add {MIDDLEWARE!r} to MIDDLEWARE, as its first.",
                id="django_pooled.W023",
            )
        ]
    from django_pooled.middleware.deadline import DeadlineSettings

    try:
        DeadlineSettings.read()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="django_pooled.E006")]
    before = that_queries_before(place)
    if not before:
        return []
    return [
        CheckWarning(
            f"{MIDDLEWARE} comes after {', '.join(before)}: what they do in the database has no "
            f"deadline.",
            hint=f"Place {MIDDLEWARE!r} first in MIDDLEWARE.",
            id="django_pooled.W022",
        )
    ]
