"""One view that writes, another that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.transaction import atomic
from django.http import JsonResponse
from django.urls import path

from tests.app.models import Counter

if TYPE_CHECKING:
    from django.http import HttpRequest


@atomic
def add(request: HttpRequest, name: str) -> JsonResponse:
    Counter.objects.create(name=name)
    return names(request)


def names(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {"names": list(Counter.objects.order_by("id").values_list("name", flat=True))}
    )


urlpatterns = [path("", names), path("add/<name>/", add)]
