"""Reads what the result of a function says about its transaction."""

from __future__ import annotations

import inspect
import logging
from types import GeneratorType

from django.db.models import QuerySet
from django.http import FileResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse

from django_pooled.diagnostics.log_fields import event_fields

from .django_private import has_been_run

logger = logging.getLogger("django_pooled.retry")

_RENDERS_APART = "django_pooled_renders_apart"

_told: set[tuple[str, str]] = set()

__all__ = [
    "asks_for_rollback",
    "is_error_response",
    "reads_later",
    "refuse_coroutine",
    "renders_apart",
    "tell_if_it_reads_later",
]


def is_error_response(result: object) -> bool:
    """Tell whether *result* is a response by which a view reports a failure."""
    return isinstance(result, HttpResponseBase) and (
        result.status_code >= 400 or asks_for_rollback(result)
    )


def asks_for_rollback(result: object) -> bool:
    """Tell whether Django REST framework made *result* of an exception.

    Its views return such a response instead of raising, and under ``ATOMIC_REQUESTS`` it rolls
    back for each of them.
    """
    return isinstance(result, HttpResponseBase) and getattr(result, "exception", False) is True


def refuse_coroutine(result: object) -> None:
    """Refuse the result of what is async, and does not look it.

    Raises:
        TypeError: It would run after the transaction.
    """
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            "What retry_transaction called returned a coroutine, which would run after its "
            "transaction ended: decorate a function that is defined by async def."
        )


def renders_apart(function: object) -> None:
    """Take note that what *function* leaves to be rendered is rendered in another transaction."""
    setattr(function, _RENDERS_APART, True)


def tell_if_it_reads_later(function: object, result: object) -> None:
    """Log, once for each function, why its *result* may query after the transaction."""
    if isinstance(result, SimpleTemplateResponse) and hasattr(function, _RENDERS_APART):
        return
    reason = reads_later(result)
    name = getattr(function, "__qualname__", "?")
    if reason is not None and (name, reason) not in _told:
        _told.add((name, reason))
        logger.info("%s: %s", name, reason, extra=event_fields("reads_later", function=name))


def reads_later(result: object) -> str | None:
    """Return why *result* may query the database when its transaction has ended; None if not."""
    if isinstance(result, GeneratorType):
        return "a generator that is returned runs after the transaction"
    if isinstance(result, QuerySet) and not has_been_run(result):
        return "a query that is returned has not been run, and runs after the transaction"
    if isinstance(result, StreamingHttpResponse):
        if isinstance(result, FileResponse) and result.file_to_stream is not None:
            return None
        return "a streaming response is made while it is sent, after the transaction"
    if isinstance(result, SimpleTemplateResponse) and not result.is_rendered:
        # What Django REST framework renders is data already.
        if any(base.__module__ == "rest_framework.response" for base in type(result).__mro__):
            return None
        reason = "a template response is rendered after the transaction"
        for name, value in (result.context_data or {}).items():
            if isinstance(value, QuerySet) and not has_been_run(value):
                return f"{reason}, and {name!r} in its context is a query that has not been run"
        return reason
    return None
