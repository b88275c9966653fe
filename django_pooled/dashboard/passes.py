"""Passes: what lets a browser read the figures without a look at its session in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.core import signing
from django.utils.crypto import constant_time_compare, salted_hmac

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["HEADER", "LIFETIME", "accepts", "issue"]

HEADER = "X-Pools-Pass"
"""Not Authorization, which belongs to a proxy that asks for a password, nor in the address, which
is logged."""

LIFETIME = 3600
"""Seconds for which a pass is good. The page gets another long before, as long as its user may."""

_SALT = "django_pooled.dashboard"
_COOKIE_THAT_CHANGES = "django.contrib.sessions.backends.signed_cookies"


def issue(request: HttpRequest) -> str:
    """Return a pass for the user and the browser of a request, whom somebody has checked.

    Args:
        request: One whose user may watch.
    """
    content = {"user": str(request.user.pk), "browser": _browser(request)}
    return signing.dumps(content, salt=_SALT)


def accepts(request: HttpRequest) -> bool:
    """Tell whether a request carries a pass that is good and was given to this browser.

    Args:
        request: Of which nothing is read but its headers: neither session nor user.
    """
    try:
        content = signing.loads(request.headers.get(HEADER, ""), salt=_SALT, max_age=LIFETIME)
    except signing.BadSignature:
        return False
    return constant_time_compare(content["browser"], _browser(request))


def _browser(request: HttpRequest) -> str:
    """Tell browsers apart by the session cookie, so that a pass is of no use in another one."""
    if settings.SESSION_ENGINE == _COOKIE_THAT_CHANGES:
        return ""
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
    return salted_hmac(_SALT, cookie, algorithm="sha256").hexdigest()
