"""Requests whose lane is found out by code that queries itself."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import path, register_converter

from django_pooled import lane
from django_pooled.middleware import LaneMiddleware
from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from pytest_django import Settings

    from django_pooled.stats.snapshot import PoolSnapshot
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

aliases: list[str] = []


def query() -> None:
    with connections[aliases[-1]].cursor() as cursor:
        cursor.execute("SELECT 42")


class Article:
    """Looks an article up as its URL is resolved."""

    regex = "[0-9]+"

    def to_python(self, value: str) -> str:
        query()
        return value

    def to_url(self, value: str) -> str:
        return value


register_converter(Article, "article")


@lane("task")
def show(request: HttpRequest, article: str) -> HttpResponse:
    return HttpResponse()


urlpatterns = [path("articles/<article:article>/", show)]


def snapshot() -> PoolSnapshot:
    return snapshot_of(aliases[-1])


def queries_first(request: HttpRequest) -> HttpResponse:
    query()
    return HttpResponse(str(snapshot().in_use))


@pytest.mark.parametrize(("mode", "held"), [("session", b"1"), ("transaction", b"0")])
@pytest.mark.parametrize("lanes", [{}, {"task": {"max": 1}}])
def test_a_converter_that_queries_has_the_connection_of_the_request(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    settings: Settings,
    mode: str,
    held: bytes,
    lanes: dict[str, Any],
) -> None:
    aliases.append(make_database(server, max_size=1, timeout=5.0, pool_mode=mode, lanes=lanes))
    settings.ROOT_URLCONF = __name__
    response = LaneMiddleware(queries_first)(RequestFactory().get("/articles/4/"))
    assert isinstance(response, HttpResponse)
    assert response.content == held
    connections[aliases[-1]].close()
    gc.collect()
    counters = snapshot().counters
    assert (counters.reclaimed, counters.timeouts, snapshot().in_use) == (0, 0, 0)
