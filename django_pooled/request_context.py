"""Middleware that gives a context variable a value for as long as a request lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.deprecation import MiddlewareMixin

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextvars import ContextVar

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["RequestContextMiddleware"]


class RequestContextMiddleware(MiddlewareMixin):
    """Set a variable as a request begins, and put it back once there is a response.

    Works under WSGI and ASGI, without another thread. What the body of a streaming response does
    later finds the variable as it was.
    """

    variable: ContextVar[Any]

    get_response: Any
    """The next middleware, or the view."""

    def value_for(self, request: HttpRequest) -> object:
        """Return the value that the variable has during a request."""
        raise NotImplementedError

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.async_mode:
            return self.__acall__(request)
        token = self.variable.set(self.value_for(request))
        try:
            response: HttpResponseBase = self.get_response(request)
            return response
        finally:
            # The thread goes on to other requests.
            self.variable.reset(token)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        token = self.variable.set(self.value_for(request))
        try:
            response: HttpResponseBase = await self.get_response(request)
            return response
        finally:
            self.variable.reset(token)
