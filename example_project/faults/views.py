"""The page of the pools with buttons that break things, and what they are connected to.

Nothing but the first load of the page asks the database, which is away or has no connection to
spare when the buttons are needed most. They are there with DEBUG alone: see tabs_vs_spaces/urls.py.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from tabs_vs_spaces.address import is_loopback

from django_pooled.dashboard import views as dashboard

from . import channel, passes

if TYPE_CHECKING:
    from collections.abc import Callable

    View = Callable[..., HttpResponse]

SECONDS = (5, 10, 20)
"""How long a freeze or a hostage-taking lasts, as the page offers it; at most the last."""
USUAL = 10
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


class SeeOther(HttpResponse):
    """After a POST without scripts: back to the page."""

    status_code = 303


def page(request: HttpRequest) -> HttpResponse:
    """Show the page of the pools, with the buttons for whoever may press them."""
    at_home = _is_at_home(request)
    user = passes.holder(request) if at_home else None
    if user is not None:
        # So that the page can be loaded again while the server is frozen.
        request.user = get_user_model()(pk=user, is_staff=True, is_active=True)
    vars(request)["faults"] = {"seconds": SECONDS, "usual": USUAL} if at_home else None
    response = dashboard.page(request)
    if at_home and user is None and response.status_code == 200:
        passes.give(request, response)
    response["Content-Security-Policy"] = "default-src 'self'"
    return response


def _for_the_operator(view: View) -> View:
    """Refuse whoever is not on this machine, and who was not staff when the page was loaded."""

    @never_cache
    @wraps(view)
    def checked(request: HttpRequest, **arguments: str) -> HttpResponse:
        if not _is_at_home(request):
            return _refusal(403, "This works on the machine that runs the site, and only there.")
        if passes.holder(request) is None:
            return _refusal(403, "Load the page of the pools again, as staff.")
        try:
            return view(request, **arguments)
        except channel.Unreachable as error:
            return _refusal(503, str(error))

    return checked


@require_POST
@_for_the_operator
def order(request: HttpRequest, what: str) -> HttpResponse:
    """Pass an order on to ``serve``, which begins to do it and answers at once."""
    try:
        seconds = float(request.POST.get("seconds", USUAL))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= max(SECONDS):
        return _refusal(400, f"It may last up to {max(SECONDS)} seconds.")
    answer = channel.ask(order=what, seconds=seconds)
    if "refused" in answer:
        return _refusal(409, answer["refused"])
    if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
        return JsonResponse(answer, status=202)
    return SeeOther(headers={"Location": reverse("django_pooled_dashboard:page")})


@require_safe
@_for_the_operator
def state(request: HttpRequest) -> HttpResponse:
    """Tell what is going on: the server, the hostages, the votes and the latest events."""
    return JsonResponse(channel.ask(order="look"))


def _is_at_home(request: HttpRequest) -> bool:
    """Whether the site listens on loopback alone, and was asked from there, by such a name."""
    # The name keeps out a page elsewhere whose own name has come to lead here, and a proxy on
    # this machine speaks for somebody who may be anywhere.
    addresses = (
        request.META.get("REMOTE_ADDR", ""),
        request.META["SERVER_NAME"],
        urlsplit(f"//{request.get_host()}").hostname or "",
    )
    forwarded = any(name in request.headers for name in PROXY_HEADERS)
    return all(map(is_loopback, addresses)) and not forwarded


def _refusal(status: int, sentence: str) -> HttpResponse:
    return JsonResponse({"error": sentence}, status=status)
