"""The lane of each request, by its view and by its URL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from django.http import Http404
from django.urls import resolve

from django_pooled.pool.lane_context import current, lane_of_view
from django_pooled.request_context import RequestContextMiddleware

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["LaneMiddleware", "lane_of_request"]


class LaneMiddleware(RequestContextMiddleware):
    """Have the connections of each request belong to the lane of its view.

    That is the lane that the view is decorated with by `django_pooled.lane`; "probe" for the views
    of ``django_pooled.health``; "admin" for those of Django's admin, by whatever URL and namespace;
    "web" for all others.

    Works under WSGI and ASGI; place it first in MIDDLEWARE, so that what others do in the database
    belongs to the lane too. The view is looked up at the request's first checkout, and only by
    pools with the option ``lanes``.
    """

    variable = current

    def value_for(self, request: HttpRequest) -> object:
        return partial(lane_of_request, request)


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
