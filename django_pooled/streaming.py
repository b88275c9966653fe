"""A streaming response does not hold a connection while it does not use one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import connections
from django.utils.deprecation import MiddlewareMixin

from .backend.unattended import note_streaming
from .backend.wrapper import DatabaseWrapper

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["ReleaseBeforeStreamingMiddleware"]


class ReleaseBeforeStreamingMiddleware(MiddlewareMixin):
    """Give connections back between the view and the first byte of a streaming response.

    Django ends a request, and with it the use of its connection, when the last byte is sent:
    a client that reads slowly would hold one for as long. A body that uses the database
    checks a connection out for each transaction, as in transaction mode: between two messages of
    server-sent events it holds none.

    A connection stays where something on it is under way: a transaction, or a server-side
    cursor that the view has opened. Session state that a view set up for the body (``SET``,
    temporary tables, session advisory locks) does not survive: leave this middleware out, or
    set it up in the body.

    Works under WSGI and ASGI; place it first in MIDDLEWARE, since what others do after the view
    may need the database too.
    """

    get_response: Any
    """The next middleware, or the view."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.async_mode:
            return self.__acall__(request)
        response: HttpResponseBase = self.get_response(request)
        if response.streaming:
            _begin_streaming()
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await self.get_response(request)
        if response.streaming:
            # In the thread of the request's synchronous code, which is the one that holds it.
            await sync_to_async(_begin_streaming, thread_sensitive=True)()
        return response


def _begin_streaming() -> None:
    release_connections()
    note_streaming()


def release_connections() -> None:
    """Give back the connections of this thread that nothing is under way on."""
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper):
            wrapper.release()
