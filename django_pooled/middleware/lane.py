"""The lane of each request, by its view and by its URL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.http import Http404
from django.urls import resolve
from django.utils.deprecation import MiddlewareMixin

from django_pooled.pool.lane_context import current, lane_of_view

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["LaneMiddleware", "lane_of_request"]


class LaneMiddleware(MiddlewareMixin):
    """Have the connections of each request belong to the lane of its view.

    That is the lane that the view is decorated with by `django_pooled.lane`; "probe" for the views
    of ``django_pooled.health``; "admin" for those of Django's admin, by whatever URL and namespace;
    "web" for all others.

    Works under WSGI and ASGI; place it first in MIDDLEWARE, so that what others do in the database
    belongs to the lane too. The view is looked up at the request's first checkout, and only by
    pools with the option ``lanes``.
    """

    get_response: Any
    """The next middleware, or the view."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.async_mode:
            return self.__acall__(request)
        token = current.set(partial(lane_of_request, request))
        try:
            response: HttpResponseBase = self.get_response(request)
            return response
        finally:
            # The thread goes on to other requests.
            current.reset(token)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        token = current.set(partial(lane_of_request, request))
        try:
            response: HttpResponseBase = await self.get_response(request)
            return response
        finally:
            current.reset(token)


def lane_of_request(request: HttpRequest) -> str:
    """Return the lane of a request; of one without a view it is "web".

    Args:
        request: Its view may not have been looked up yet.
    """
    match = request.resolver_match
    if match is None:
        # A converter may ask the database itself.
        token = current.set("web")
        try:
            match = resolve(request.path_info, getattr(request, "urlconf", None))
        except Http404:
            return "web"
        finally:
            current.reset(token)
    marked = lane_of_view(match.func)
    if marked is not None:
        return marked
    return "admin" if "admin" in match.app_names else "web"
