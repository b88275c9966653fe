"""The page, the figures that its script polls, and the token that it polls with."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth.decorators import login_not_required
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_pooled.backend.non_atomic import never_atomic

from . import access_tokens, watch
from . import past as past_figures
from .figures import content

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    View = Callable[[HttpRequest], HttpResponse]

__all__ = ["page", "past", "renew_token", "snapshot"]


def _for_staff(view: View) -> View:
    """Send users who are not staff to the admin's login, or without an admin to the project's."""

    # LoginRequiredMiddleware would send them to LOGIN_URL instead.
    @login_not_required
    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponse:
        try:
            login_url = reverse("admin:login")
        except NoReverseMatch:
            login_url = str(settings.LOGIN_URL)
        response = staff_member_required(view, login_url=login_url)(request)
        assert isinstance(response, HttpResponse)
        return response

    return checked


@never_atomic
@require_safe
@never_cache
@_for_staff
def page(request: HttpRequest) -> HttpResponse:
    """Show the page."""
    context = {"pass": access_tokens.issue(request)}
    return render(request, "django_pooled_dashboard/page.html", context)


@never_atomic
@require_safe
@never_cache
@_for_staff
def renew_token(request: HttpRequest) -> JsonResponse:
    """Renew the token of an open page, after the same check."""
    return JsonResponse({"pass": access_tokens.issue(request)})


def _for_token(answer: Callable[[], dict[str, Any]]) -> View:
    """Make a view of what a script polls: it answers requests with a token, without a database."""

    @never_atomic
    @login_not_required
    @require_safe
    @never_cache
    @wraps(answer)
    def checked(request: HttpRequest) -> JsonResponse:
        if not access_tokens.accepts(request):
            error = {"error": "The pass is missing, expired or not genuine."}
            return JsonResponse(error, status=403)
        return JsonResponse(answer())

    return checked


@_for_token
def snapshot() -> dict[str, Any]:
    """Return the figures."""
    return content(watch.snapshot())


@_for_token
def past() -> dict[str, Any]:
    """Return the last minutes."""
    return past_figures.content(watch.past())
