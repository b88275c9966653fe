"""Two addresses: one that lists, one that writes under retry_transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.urls import path

from django_pooled import retry_transaction

from .models import Note

if TYPE_CHECKING:
    from django.http import HttpRequest


def notes(request: HttpRequest) -> HttpResponse:
    texts = ", ".join(Note.objects.order_by("id").values_list("text", flat=True))
    return HttpResponse(f"<html><body>{texts}</body></html>")


@retry_transaction
def add(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text=request.GET["text"])
    return HttpResponse(f"<html><body>{Note.objects.count()}</body></html>")


urlpatterns = [path("", notes), path("add", add)]
