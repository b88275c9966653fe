"""The deadline of requests: its setting, and its place among the middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from django_pooled.checks import check_deadlines
from django_pooled.middleware import DeadlineMiddleware

if TYPE_CHECKING:
    from pytest_django import Settings

MIDDLEWARE = "django_pooled.middleware.DeadlineMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"


class Own(DeadlineMiddleware):
    """A project's own."""


def ids() -> list[str]:
    return [str(message.id).rpartition(".")[2] for message in check_deadlines()]


@pytest.mark.parametrize("middleware", [MIDDLEWARE, f"{__name__}.Own"])
def test_a_setting_that_cannot_work_is_reported(settings: Settings, middleware: str) -> None:
    settings.MIDDLEWARE = [middleware]
    settings.POOLED_DEADLINE = {"seconds": -1}
    [message] = check_deadlines()
    assert (message.id, ids()) == ("django_pooled.E006", ["E006"])
    assert "expected seconds above 0" in message.msg
    del settings.POOLED_DEADLINE
    assert ids() == ["E006"]


def test_middleware_that_has_no_deadline_is_named(settings: Settings) -> None:
    settings.POOLED_DEADLINE = 10.0
    settings.MIDDLEWARE = [COMMON, SESSIONS, "shop.no_such_middleware", MIDDLEWARE]
    [message] = check_deadlines()
    assert message.id == "django_pooled.W022"
    assert SESSIONS in message.msg
    assert COMMON not in message.msg


def test_a_setting_without_effect_is_reported(settings: Settings) -> None:
    settings.POOLED_DEADLINE = 10.0
    settings.MIDDLEWARE = [SESSIONS]
    assert ids() == ["W023"]


@pytest.mark.parametrize("middleware", [[MIDDLEWARE, SESSIONS], [COMMON, MIDDLEWARE, SESSIONS]])
def test_a_deadline_around_the_others_is_fine(settings: Settings, middleware: list[str]) -> None:
    settings.POOLED_DEADLINE = 10.0
    settings.MIDDLEWARE = middleware
    assert ids() == []


def test_a_project_without_deadlines_is_fine(settings: Settings) -> None:
    settings.MIDDLEWARE = [SESSIONS]
    assert ids() == []
