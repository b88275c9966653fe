"""The lane of a request, by its view and its URL, under both kinds of handlers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

from django_pooled import lane
from django_pooled.health import liveness
from django_pooled.pool.lane_context import current, lane_of_caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_django import Settings

seen: list[str] = []


def look(request: HttpRequest) -> HttpResponse:
    seen.append(lane_of_caller())
    return HttpResponse()


@lane("task")
def export(request: HttpRequest) -> HttpResponse:
    return look(request)


@method_decorator(lane("admin"), name="dispatch")
class Board(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return look(request)


@lane("task")
async def export_slowly(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return await sync_to_async(look)(request)


class Shop(admin.AdminSite):
    def index(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return look(request)

    def has_permission(self, request: HttpRequest) -> bool:
        return True


def before_the_view(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        look(request)
        return get_response(request)

    return middleware


urlpatterns = [
    path("look/", look),
    path("export/", export),
    path("board/", Board.as_view()),
    path("slowly/", export_slowly),
    path("included/", include([path("look/", look)])),
    path("back-office/", Shop(name="shop").urls),
    path("alive/", liveness),
]

LANE_OF = {
    "/look/": "web",
    "/export/": "task",
    "/board/": "admin",
    "/slowly/": "task",
    "/included/look/": "web",
    "/back-office/": "admin",
    "/alive/": "probe",
    "/nowhere/": "web",
}


@pytest.fixture(autouse=True)
def site(settings: Settings) -> None:
    seen.clear()
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [
        "django_pooled.middleware.LaneMiddleware",
        f"{__name__}.before_the_view",
    ]


@pytest.mark.parametrize("url", LANE_OF)
def test_a_request_has_the_lane_of_its_view_before_the_view_too(url: str) -> None:
    Client().get(url)
    assert set(seen) == {LANE_OF[url]}
    assert current.get() is None


@pytest.mark.parametrize("url", LANE_OF)
def test_so_has_one_under_asgi(url: str) -> None:
    async def get() -> None:
        await AsyncClient().get(url)

    asyncio.run(get())
    assert set(seen) == {LANE_OF[url]}


def test_without_the_middleware_a_decorated_view_has_its_lane_alone(settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.before_the_view"]
    Client().get("/export/")
    Client().get("/back-office/")
    assert seen == ["web", "task", "web", "web"]
