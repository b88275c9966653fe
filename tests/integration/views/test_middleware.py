"""The examples for middleware in docs/whole_site.md, while sessions are ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.sessions.middleware import SessionMiddleware
from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from django_pooled.testing import terminate_backend
from tests.app.models import Counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "whole_site.md").read_text("utf-8")

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Visits:
    """Counts under the names of the example."""

    @staticmethod
    def filter(path: str) -> Any:
        return Counter.objects.filter(name=path)


class Visit:
    objects = Visits


names: dict[str, Any] = {"F": lambda name: F("value"), "Visit": Visit}
_, _with_hook, _with_call = re.findall(
    "```python\n(.*?)```", PAGE.partition("## Middleware\n")[2].partition("\n## ")[0], re.DOTALL
)
exec(_with_hook + _with_call.replace("update(count=", "update(value="), names)
DecoratedSession: Any = names["SessionMiddleware"]
CountVisits: Any = names["CountVisits"]


def remember(request: HttpRequest) -> HttpResponse:
    request.session["number"] = 7
    return HttpResponse("remembered")


urlpatterns = [path("", remember)]


@pytest.fixture(autouse=True)
def losing() -> Iterator[list[str]]:
    """Statements after which the connection is lost, before COMMIT, by their beginning."""
    connection.close()
    still: list[str] = []

    def lose(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        found = execute(sql, *args)
        if still and sql.startswith(still[0]):
            still.pop()
            terminate_backend()
        return found

    with connection.execute_wrapper(lose):
        yield still


@pytest.fixture
def client(settings: Any) -> Client:
    settings.MIDDLEWARE = [f"{__name__}.CountVisits", f"{__name__}.DecoratedSession"]
    return Client()


def test_a_session_is_saved_though_its_connection_is_lost(
    client: Client, losing: list[str]
) -> None:
    losing.append('INSERT INTO "django_session"')
    assert client.get("/").content == b"remembered"
    assert client.session["number"] == 7
    assert not losing
    assert Session.objects.count() == 1


def test_so_it_is_in_an_async_request(losing: list[str], settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.DecoratedSession"]
    losing.append('INSERT INTO "django_session"')
    assert async_to_sync(AsyncClient().get)("/").content == b"remembered"
    assert not losing


def test_with_djangos_own_the_request_fails(
    losing: list[str], client: Client, settings: Any
) -> None:
    settings.MIDDLEWARE = [f"{SessionMiddleware.__module__}.{SessionMiddleware.__qualname__}"]
    losing.append('INSERT INTO "django_session"')
    client.raise_request_exception = False
    assert client.get("/").status_code == 500
    assert not losing


def test_a_visit_is_counted_once_though_its_connection_is_lost(
    client: Client, losing: list[str]
) -> None:
    Counter.objects.create(name="/")
    losing.append('UPDATE "app_counter"')
    assert client.get("/").status_code == 200
    assert not losing
    assert Counter.objects.get().value == 1
