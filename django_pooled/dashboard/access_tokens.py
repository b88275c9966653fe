"""Passes: what lets a browser read the figures without a look at its session in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core import signing

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["HEADER", "LIFETIME", "accepts", "issue"]

HEADER = "X-Pools-Pass"
"""Not Authorization, which belongs to a proxy that asks for a password, nor in the address, which
is logged."""

LIFETIME = 3600
"""Seconds for which a pass is good. The page gets another long before, as long as its user may."""

_SALT = "django_pooled.dashboard"


def issue(request: HttpRequest) -> str:
    """Return a pass for the user of a request, whom somebody has checked.

    Args:
        request: One whose user may watch.
    """
    # Whose it is counts only for whoever finds one and wonders.
    return signing.dumps({"user": str(request.user.pk)}, salt=_SALT)


def accepts(request: HttpRequest) -> bool:
    """Tell whether a request carries a pass that is genuine and not too old.

    Args:
        request: Of which nothing is read but one header: neither session nor user.
    """
    try:
        signing.loads(request.headers.get(HEADER, ""), salt=_SALT, max_age=LIFETIME)
    except signing.BadSignature:
        return False
    return True
