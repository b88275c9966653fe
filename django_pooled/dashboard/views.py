"""The page, the figures that its script polls, and the pass that it polls with."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

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
from .content import content

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    View = Callable[[HttpRequest], HttpResponse]

__all__ = ["new_pass", "page", "snapshot"]


def _for_staff(view: View) -> View:
    """Send whoever is not staff to the admin's login, or without an admin to the project's."""

    # LoginRequiredMiddleware would send to LOGIN_URL whoever is to go to the admin's login.
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
def new_pass(request: HttpRequest) -> JsonResponse:
    """Renew the pass of a page that is open, after the same check."""
    return JsonResponse({"pass": access_tokens.issue(request)})


@never_atomic
@login_not_required
@require_safe
@never_cache
def snapshot(request: HttpRequest) -> JsonResponse:
    """Answer with the figures, without the database: who may have them is told by the pass."""
    if not access_tokens.accepts(request):
        return JsonResponse({"error": "The pass is missing, expired or not genuine."}, status=403)
    return JsonResponse(content(watch.snapshot()))
