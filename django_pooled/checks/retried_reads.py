"""Are the reads of other middleware sent again as well: W024."""

from __future__ import annotations

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

from .middleware import place_of, that_queries_before

__all__ = ["check_retried_reads"]

MIDDLEWARE = "django_pooled.middleware.RetryReadsMiddleware"


def check_retried_reads(**kwargs: object) -> list[CheckMessage]:
    """Check that what queries is within the middleware that sends reads again."""
    place = place_of(MIDDLEWARE)
    before = [] if place is None else that_queries_before(place)
    if not before:
        return []
    return [
        CheckWarning(
            f"{MIDDLEWARE} comes after {', '.join(before)}: what they read is not sent again.",
            hint=f"Place {MIDDLEWARE!r} before them.",
            id="django_pooled.W024",
        )
    ]
