"""503 with Retry-After where a pool is saturated, the database away, or a deadline has ended."""

from __future__ import annotations

import logging
import random
import sys
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connections
from django.http import HttpResponse, JsonResponse
from django.template import TemplateDoesNotExist, loader
from django.utils.deprecation import MiddlewareMixin
from django.utils.log import log_response
from django.views.defaults import server_error

from django_pooled.backend.startup import refuse_bad_settings
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.diagnostics.log_fields import LoggerWithFields, event_fields
from django_pooled.diagnostics.redaction import one_line, stand_in, told
from django_pooled.errors import AmbiguousCommit, PoolError
from django_pooled.sql.sqlstates import history, is_ended_by_deadline, is_server_away, sqlstate_of
from django_pooled.views.methods import SAFE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["DatabaseUnavailableMiddleware", "handler500", "unavailable_response"]

logger = logging.getLogger("django_pooled.pool")

TEMPLATE = "503.html"

RETRY_AFTER = (5, 15)
"""Least and most seconds of Retry-After.

A saturated pool has let the request wait for its whole ``timeout``, and a plain restart of
PostgreSQL takes seconds: below 5 most clients would come back into the same trouble. Above 15
the site looks down long after it is up. In between, those that failed in one moment spread
over ten seconds instead of arriving together again.
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Service unavailable</title>
</head>
<body>
  <h1>Service unavailable</h1>
  <p>{detail}</p>
</body>
</html>
"""


class DatabaseUnavailableMiddleware(MiddlewareMixin):
    """Answer 503 where a view failed because it got no connection, or lost it.

    Works under WSGI and ASGI. It has no code of its own before or after the view, so no
    request pays a thread or a coroutine switch for it.

    Django turns exceptions into responses around *each* middleware, so none of them sees an
    exception pass through its call, and this one needs a `handler500` beside it:

    ==========================================  ==============  ==========================
    raised in                                   the middleware  handler500
    ==========================================  ==============  ==========================
    a view; BEGIN, COMMIT of ATOMIC_REQUESTS    answers         if there is no middleware
    rendering of a TemplateResponse             answers         if there is no middleware
    another middleware, before or after a view  never sees it   answers
    URL resolving, handler404 and the like      never sees it   answers
    the body of a streaming response            never sees it   never sees it
    ==========================================  ==============  ==========================

    The last line cannot be otherwise: the status has been sent by then, so the server ends
    the connection. HEAD gets the status and headers of GET.

    Any place in MIDDLEWARE will do. It matters only beside others that have a
    ``process_exception``: Django asks the last in the list first, so at the top this one
    leaves the first word to theirs.

    With DEBUG the answer is 503 too, as users will see it, and the log line carries the
    traceback that the debug page would have shown; Django does not call handler500 then.

    A request that is not GET, HEAD, OPTIONS or TRACE gets a 503 only while nothing that it did
    can have taken effect: no statement in autocommit that may write was sent, and no transaction
    that wrote was committed. Else the error is answered 500, since a client that repeats the
    request might double its effect. Only statements of its own thread and on databases of this
    engine are known.

    Attributes:
        retry_after: Least and most seconds of Retry-After.
    """

    retry_after: tuple[int, int] = RETRY_AFTER

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        # Servers make it as they start, also where the app is not installed.
        refuse_bad_settings()
        super().__init__(get_response)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Django's hook for what views and lazily rendered templates raise.

        Args:
            request: The request that failed.
            exception: What was raised.
        """
        return unavailable_response(request, exception, retry_after=self.retry_after)


def handler500(request: HttpRequest) -> HttpResponse:
    """Answer 503 as the middleware does, and Django's own 500 to anything else.

    For the root URLconf: ``handler500 = "django_pooled.middleware.handler500"``. Django calls
    it while the exception is being handled, under ASGI too, where ``sync_to_async`` raises it
    again in the thread that the handler runs in.

    Args:
        request: The request that failed.
    """
    error = sys.exc_info()[1]
    response = unavailable_response(request, error) if error is not None else None
    return response or server_error(request)


def unavailable_response(
    request: HttpRequest, error: BaseException, *, retry_after: tuple[int, int] = RETRY_AFTER
) -> HttpResponse | None:
    """Make the 503 for *error*, and log it; for error handlers of a project's own.

    The body is the template ``503.html`` with ``detail`` and ``retry_after``, rendered without
    context processors since they may query, or a small page where there is none; or JSON, if
    the client prefers that.

    Args:
        request: The request that failed.
        error: What it failed with.
        retry_after: Least and most seconds of Retry-After.

    Returns:
        The response, or None if *error* is anything but a database that can't be had, or a deadline
        that has ended. An `django_pooled.AmbiguousCommit` is not: the transaction may have been
        committed, and a repeated request would double its effect, unless it has an idempotency key.
        The same holds for a request that may have changed something before the error.
    """
    ambiguous = _ambiguous(error)
    is_late = ambiguous is None and is_ended_by_deadline(error)
    if ambiguous is None:
        if not (is_late or is_server_away(error)):
            return None
        if request.method not in SAFE and _may_have_taken_effect():
            return None
    elif not ambiguous.repeatable:
        return None
    seconds = random.randint(*retry_after)
    name = "database_unavailable"
    detail = f"The database cannot take this request now. Please try again in {seconds} seconds."
    if ambiguous is not None:
        name = "outcome_unknown"
        detail = (
            f"Whether this request took effect is not known. Please send it again in {seconds} "
            f"seconds, with the same idempotency key: it takes effect once."
        )
    elif is_late:
        name = "deadline_exceeded"
        detail = (
            f"This request took too long, and was ended. Please try again in {seconds} seconds."
        )
    response: HttpResponse
    if _prefers_json(request):
        response = JsonResponse(
            {"error": name, "detail": detail, "retry_after": seconds}, status=503
        )
    else:
        response = HttpResponse(_page(detail, seconds), status=503)
    response["Retry-After"] = str(seconds)
    response["Cache-Control"] = "no-store"
    # Django logs every 5xx response as an error, which mails it to the admins, unless the
    # response has been logged already: this warning takes that one's place.
    alias = _alias_of(error)
    log_response(
        "Database %s %s, %s %s was answered 503: %s",
        repr(alias) if alias is not None else "of unknown alias",
        "had no time left" if is_late else "is unavailable",
        one_line(str(request.method)),
        one_line(request.path),
        _reason(error),
        response=response,
        request=request,
        logger=LoggerWithFields(logger, event_fields("answered_503", alias=alias, error=error)),
        level="warning",
        exception=stand_in(error)[1] if settings.DEBUG else None,
    )
    return response


def _may_have_taken_effect() -> bool:
    """Tell whether something that this thread's request did may stay."""
    return any(
        isinstance(wrapper, DatabaseWrapper) and wrapper.has_lasting_effects
        for wrapper in connections.all(initialized_only=True)
    )


def _prefers_json(request: HttpRequest) -> bool:
    # Django's get_preferred_type() takes "application/json; version=2" for another type.
    for accepted in request.accepted_types:
        kind = f"{accepted.main_type}/{accepted.sub_type}"
        if kind in ("application/json", "application/*") or kind.endswith("+json"):
            return True
        if kind in ("text/html", "application/xhtml+xml", "text/*", "*/*"):
            return False
    return False


def _page(detail: str, retry_after: int) -> str:
    try:
        try:
            template = loader.get_template(TEMPLATE)
        except TemplateDoesNotExist:
            return PAGE.format(detail=detail)
        return template.render({"detail": detail, "retry_after": retry_after})
    except Exception as error:
        logger.error(
            "The template %s could not be rendered: %s",
            TEMPLATE,
            told(error),
            exc_info=stand_in(error),
            extra=event_fields("template_failed", error=error),
        )
        return PAGE.format(detail=detail)


def _ambiguous(error: BaseException) -> AmbiguousCommit | None:
    """Return the commit whose outcome is not known; one that must not be repeated before others."""
    # Who catches it will look in the database for what became of the transaction, and with
    # the server still away gets another error, whose context it is then.
    found = [link for link in history(error) if isinstance(link, AmbiguousCommit)]
    return min(found, key=lambda link: link.repeatable, default=None)


def _alias_of(error: BaseException) -> str | None:
    for link in history(error):
        if isinstance(link, PoolError):
            return link.alias
    # Django's errors don't know their alias, but the connection knows that it had one.
    failed = [c.alias for c in connections.all(initialized_only=True) if c.errors_occurred]
    candidates = failed or list(connections)
    return candidates[0] if len(candidates) == 1 else None


def _reason(error: BaseException) -> str:
    """Name the error, its SQLSTATE and its words."""
    sqlstate = sqlstate_of(error)
    name = type(error).__name__ + (f" {sqlstate}" if sqlstate else "")
    return f"{name}: {told(error)}"
