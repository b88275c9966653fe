"""A site of a few views, for gunicorn; its database is in the environment."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest

WAIT = float(os.environ.get("BENCHMARK_WAIT", "0.05"))


def query() -> None:
    """Ask one thing."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def empty(request: HttpRequest) -> HttpResponse:
    """Answer without a database."""
    return HttpResponse("1")


def one(request: HttpRequest) -> HttpResponse:
    """Ask the database one thing."""
    query()
    return HttpResponse("1")


def waits(request: HttpRequest) -> HttpResponse:
    """Ask, wait for something else, and ask again."""
    query()
    time.sleep(WAIT)
    query()
    return HttpResponse("1")


urlpatterns = [path("empty", empty), path("one", one), path("waits", waits)]

settings.configure(
    DATABASES={"default": json.loads(os.environ["BENCHMARK_DATABASE"])},
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of no use to anybody",
    # Says how long an answer is: without that, each would be sent in pieces.
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
)
django.setup()
application = get_wsgi_application()
