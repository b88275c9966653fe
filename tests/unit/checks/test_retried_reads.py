"""The place of the middleware that sends reads again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from django_pooled.checks import check_retried_reads

if TYPE_CHECKING:
    from pytest_django import Settings

MIDDLEWARE = "django_pooled.middleware.RetryReadsMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"


def test_middleware_whose_reads_are_not_sent_again_is_named(settings: Settings) -> None:
    settings.MIDDLEWARE = [SECURITY, SESSIONS, MIDDLEWARE]
    [message] = check_retried_reads()
    assert message.id == "django_pooled.W024"
    assert SESSIONS in message.msg
    assert SECURITY not in message.msg


@pytest.mark.parametrize("middleware", [[SECURITY, MIDDLEWARE, SESSIONS], [SECURITY, SESSIONS]])
def test_its_place_before_them_is_fine(settings: Settings, middleware: list[str]) -> None:
    settings.MIDDLEWARE = middleware
    assert check_retried_reads() == []
