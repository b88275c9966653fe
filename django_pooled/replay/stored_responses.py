"""Responses that are stored and given again, and those about an idempotency key itself."""

from __future__ import annotations

from http.client import responses
from typing import TYPE_CHECKING, Any

from django.http import (
    HttpResponse,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    JsonResponse,
)
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LARGEST", "REPLAYED", "finished", "made_again", "parts_of", "problem"]

LARGEST = 1 << 20
"""Bytes of a body that is stored."""

REPLAYED = "Idempotency-Replayed"

# RFC 9110, 7.6.1: they are about one connection.
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)
# Cookies are kept beside the headers, unless they are set by hand; they are secrets of one client.
_NOT_STORED = _HOP_BY_HOP | {"set-cookie", "date"}

_REASON = ":reason"
"""Among the headers, the reason phrase of a view's own; no header has a name with a colon."""
_UNKNOWN_REASON = "Unknown Status Code"
"""Django's, for a status that has none."""

_REDIRECTS: dict[int, type[HttpResponse]] = {
    301: HttpResponsePermanentRedirect,
    302: HttpResponseRedirect,
    307: HttpResponseRedirect,
    308: HttpResponsePermanentRedirect,
}


def finished(response: object, name: str) -> HttpResponse:
    """Return the response with a body that can be stored.

    One that is rendered lazily is rendered, so that what it queries belongs to the transaction.

    Args:
        response: What the view has returned.
        name: The view's, for messages.

    Raises:
        TypeError: It cannot be stored.
    """
    if isinstance(response, HttpResponseBase) and response.streaming:
        response.close()
        raise TypeError(
            f"idempotency_key: {name} returned a {type(response).__name__}, which is made while it "
            f"is sent and cannot be stored. Nothing was committed. Return an HttpResponse, such as "
            f"one with the address of what is to be streamed."
        )
    if isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
        _refuse_unfinished(response, name)
        response = response.render()
    if not isinstance(response, HttpResponse):
        raise TypeError(
            f"idempotency_key: {name} returned a {type(response).__name__}; expected an "
            f"HttpResponse, which can be stored."
        )
    return response


def parts_of(response: HttpResponse, name: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return what is stored of a response: its status, headers and body.

    Raises:
        ValueError: It is too large.
    """
    body = response.content
    if len(body) > LARGEST:
        raise ValueError(
            f"idempotency_key: the response of {name} has {len(body):,} bytes; at most {LARGEST:,} "
            f"are stored. Nothing was committed. Return the address of what is so large."
        )
    headers = [(n, v) for n, v in response.items() if n.lower() not in _NOT_STORED]
    if response.reason_phrase != responses.get(response.status_code, _UNKNOWN_REASON):
        headers.append((_REASON, response.reason_phrase))
    return response.status_code, headers, body


def _refuse_unfinished(response: SimpleTemplateResponse, name: str) -> None:
    """Refuse a response of Django REST framework that its view has not given a renderer yet.

    Raises:
        TypeError: It is one.
    """
    made: Any = response
    is_of_the_framework = any(
        base.__module__ == "rest_framework.response" for base in type(response).__mro__
    )
    if is_of_the_framework and not hasattr(made, "accepted_renderer"):
        raise TypeError(
            f"idempotency_key: {name} returned a response that Django REST framework has not "
            f"rendered yet. Decorate dispatch, by method_decorator, or write @retry_transaction "
            f"above @api_view."
        )


def made_again(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> HttpResponse:
    """Make the response again: a redirect as one, for its ``url`` and the class that it is of."""
    headers = list(headers)
    reason = dict(headers).get(_REASON)
    kind = _REDIRECTS.get(status, HttpResponse)
    if not any(name.lower() == "location" for name, _ in headers):
        kind = HttpResponse
    # Not by its own __init__(): that refuses schemes which a subclass may have let pass.
    response = kind.__new__(kind)
    HttpResponse.__init__(response, body, status=status, reason=reason)
    del response.headers["Content-Type"]
    for name, value in headers:
        if name != _REASON:
            response.headers[name] = value
    return response


def problem(status: int, title: str, detail: str) -> HttpResponse:
    """Make the answer to a request whose key is refused (RFC 9457)."""
    response = JsonResponse(
        {"type": "about:blank", "title": title, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
    )
    response.headers["Cache-Control"] = "no-store"
    return response
