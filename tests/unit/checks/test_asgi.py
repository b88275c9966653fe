"""Sites that run under ASGI are told of transaction mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings

from django_pooled.checks import check_asgi

if TYPE_CHECKING:
    from pytest_django import Settings


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    use_pool(monkeypatch, {"max_size": 4})


def use_pool(monkeypatch: pytest.MonkeyPatch, pool: Any) -> None:
    monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", {"pool": pool})


def test_a_site_with_an_asgi_application_is_told(settings: Settings) -> None:
    settings.ASGI_APPLICATION = "shop.asgi.application"
    [message] = check_asgi()
    assert message.id == "django_pooled.I003"
    assert message.msg.startswith("ASGI_APPLICATION: ")
    assert "DATABASES['default']" in message.msg
    assert message.hint is not None
    assert '"transaction"' in message.hint


@pytest.mark.parametrize(
    "arguments",
    [
        "-k uvicorn_worker.UvicornWorker",
        "--workers=2 --worker-class=uvicorn.workers.UvicornWorker",
        "-kasgi",
        "--worker-class asgi --threads=2",
        "-k sync -k asgi",
    ],
)
def test_a_worker_of_gunicorn_tells_of_asgi_too(
    monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    [message] = check_asgi()
    assert message.msg.startswith("GUNICORN_CMD_ARGS: ")


@pytest.mark.parametrize(
    "arguments", ["", "-k gthread", "--worker-class=gevent", "-k asgi -k sync", "--chdir=/asgi"]
)
def test_other_workers_say_nothing(monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    assert check_asgi() == []


@pytest.mark.parametrize("pool", [{"pool_mode": "transaction"}, False])
def test_transaction_mode_and_no_pool_need_no_advice(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, pool: Any
) -> None:
    settings.ASGI_APPLICATION = "shop.asgi.application"
    use_pool(monkeypatch, pool)
    assert check_asgi() == []
