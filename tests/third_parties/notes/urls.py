"""Addresses that list, that write under retry_transaction, and that lose their connection once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connection
from django.http import HttpResponse
from django.urls import path

from django_pooled import retry_transaction

from .models import Note

if TYPE_CHECKING:
    from django.http import HttpRequest


def page(content: object) -> HttpResponse:
    return HttpResponse(f"<html><body>{content}</body></html>")


def notes(request: HttpRequest) -> HttpResponse:
    return page(", ".join(Note.objects.order_by("id").values_list("text", flat=True)))


@retry_transaction
def add(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text=request.GET["text"])
    return page(Note.objects.count())


@retry_transaction
def add_after_a_loss(request: HttpRequest) -> HttpResponse:
    """End its own backend the first time that anybody comes here after ``prepare_a_loss``."""
    Note.objects.exists()
    Note.objects.create(text=request.GET["text"])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('visits') = %s", [1]
        )
    return page(Note.objects.count())


def prepare_a_loss() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE visits")


urlpatterns = [path("", notes), path("add", add), path("add_after_a_loss", add_after_a_loss)]
