"""The way in for whoever ran ``manage.py serve``, who was told the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.shortcuts import redirect, render
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

USERNAME = "operator of tabs-vs-spaces"


@never_cache
@require_safe
def enter(request: HttpRequest) -> HttpResponse:
    """Log in as the operator, a member of staff without a password; the key is good for one run."""
    key = request.GET.get("key", "")
    if not settings.ENTRY_KEY or not constant_time_compare(key, settings.ENTRY_KEY):
        return render(request, "operators/enter.html", {"tried": bool(key)}, status=403)
    users = get_user_model()
    operator = users.objects.filter(username=USERNAME).first()
    if operator is None:
        operator = users.objects.create_user(USERNAME, is_staff=True)
    login(request, operator)
    return redirect("django_pooled_dashboard:page")
