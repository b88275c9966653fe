"""The middleware that tells requests apart: whether it is there, and its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.conf import settings as django_settings

from django_pooled.checks import check_lanes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_django import Settings

MIDDLEWARE = "django_pooled.middleware.LaneMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


@pytest.fixture
def with_lanes(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    def make(lanes: object) -> None:
        options = {"pool": {"lanes": lanes}}
        monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", options)

    return make


def test_limits_for_requests_that_nothing_tells_apart_are_reported(
    settings: Settings, with_lanes: Callable[[object], None]
) -> None:
    settings.MIDDLEWARE = [SESSIONS]
    with_lanes({"admin": {"reserved": 2}, "task": {"max": 3}})
    [message] = check_lanes()
    assert message.id == "django_pooled.W029"
    assert "'admin'" in message.msg
    assert MIDDLEWARE in str(message.hint)
    settings.MIDDLEWARE = [MIDDLEWARE, SESSIONS]
    assert check_lanes() == []


def test_limits_for_tasks_alone_need_no_middleware(
    settings: Settings, with_lanes: Callable[[object], None]
) -> None:
    settings.MIDDLEWARE = [SESSIONS]
    with_lanes({"task": {"max": 3}})
    assert check_lanes() == []
    with_lanes(None)
    assert check_lanes() == []


def test_middleware_that_is_in_no_lane_is_named(
    settings: Settings, with_lanes: Callable[[object], None]
) -> None:
    settings.MIDDLEWARE = [SESSIONS, MIDDLEWARE]
    with_lanes({"probe": {"reserved": 1}})
    [message] = check_lanes()
    assert message.id == "django_pooled.W030"
    assert SESSIONS in message.msg
