"""Signed tokens with which a browser reads the figures without its session in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core import signing

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["HEADER", "LIFETIME", "accepts", "issue"]

HEADER = "X-Pools-Pass"
"""Authorization belongs to proxies that ask for a password, and addresses are logged."""

LIFETIME = 3600
"""Seconds for which a token is valid. The page renews it long before, while its user is staff."""

_SALT = "django_pooled.dashboard"


def issue(request: HttpRequest) -> str:
    """Return a token for the user of a request.

    Args:
        request: Its user may watch; the caller has checked that.
    """
    # The user is there for people who find a token; it is not checked.
    return signing.dumps({"user": str(request.user.pk)}, salt=_SALT)


def accepts(request: HttpRequest) -> bool:
    """Tell whether a request carries a genuine token that is not too old.

    Args:
        request: Only its header is read, neither session nor user.
    """
    try:
        signing.loads(request.headers.get(HEADER, ""), salt=_SALT, max_age=LIFETIME)
    except signing.BadSignature:
        return False
    return True
