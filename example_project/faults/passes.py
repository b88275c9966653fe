"""A cookie that stands for the look at session and user, where the database can't be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.core import signing
from django.utils.crypto import constant_time_compare, salted_hmac

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

COOKIE = "pass"
LIFETIME = 3600
"""Seconds, after which the database has to be asked again."""
SALT = "faults.passes"


def give(request: HttpRequest, response: HttpResponse) -> None:
    """Give a pass to the browser of a request, whose user has been found to be staff."""
    content = {"user": request.user.pk, "browser": _browser(request)}
    response.set_cookie(
        COOKIE,
        signing.dumps(content, salt=SALT),
        max_age=LIFETIME,
        path="/pools/",
        httponly=True,
        samesite="Strict",
    )


def holder(request: HttpRequest) -> int | None:
    """Return the id of the user that this browser's pass was given to, or None without one."""
    try:
        content = signing.loads(request.COOKIES.get(COOKIE, ""), salt=SALT, max_age=LIFETIME)
    except signing.BadSignature:
        return None
    if not constant_time_compare(content["browser"], _browser(request)):
        return None
    user: int = content["user"]
    return user


def _browser(request: HttpRequest) -> str:
    # By the session's cookie, which goes when somebody logs out, and leaves a pass of no use.
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
    return salted_hmac(SALT, session, algorithm="sha256").hexdigest()
