"""URLs that are included by name, and loaded when the first request resolves."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.support.attempts import attempts


def included(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(f"{number}: attempt {attempts.done()}")


app_name = "lazy"
urlpatterns = [path("<int:number>/", included, name="included")]
