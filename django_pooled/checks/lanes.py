"""Are requests told apart where pools have lanes for them: W029, W030."""

from __future__ import annotations

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

from .databases import pooled
from .middleware import place_of, that_queries_before

__all__ = ["check_lanes"]

MIDDLEWARE = "django_pooled.middleware.LaneMiddleware"


def check_lanes(**kwargs: object) -> list[CheckMessage]:
    """Check that requests of the admin and of probes get to their lanes."""
    place = place_of(MIDDLEWARE)
    if place is not None:
        before = that_queries_before(place)
        if not before:
            return []
        return [
            CheckWarning(
                f"{MIDDLEWARE} comes after {', '.join(before)}: where they are first to use the "
                f'database, each request is in the lane "web".',
                hint=f"Place {MIDDLEWARE!r} before them in MIDDLEWARE.",
                id="django_pooled.W030",
            )
        ]
    messages: list[CheckMessage] = []
    for alias, options in pooled(settings.DATABASES).items():
        named = [name for name in ("probe", "admin") if name in (options.lanes or {})]
        if named:
            messages.append(
                CheckWarning(
                    f"DATABASES[{alias!r}]['OPTIONS']['pool']['lanes'] has limits for "
                    f"{' and '.join(map(repr, named))}, and {MIDDLEWARE} is not installed: each "
                    f'request is in the lane "web", unless its view is decorated.',
                    hint=f"Add {MIDDLEWARE!r} to MIDDLEWARE, as its first.",
                    id="django_pooled.W029",
                )
            )
    return messages
