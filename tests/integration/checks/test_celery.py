"""Celery beside a pool: what its own fixup does is fine, and the checks know what is not."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings
from django.db import connections

from django_pooled import registry
from django_pooled.checks import check_celery
from django_pooled.checks.declared_processes import declared

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.checks import CheckMessage
    from pytest_django import Settings

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

celery: Any = pytest.importorskip("celery", reason="celery is not installed")
DjangoWorkerFixup: Any = pytest.importorskip("celery.fixups.django").DjangoWorkerFixup

REUSE = "CELERY_DB_REUSE_MAX"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project's Celery app, with the fixup that Celery installs beside Django."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # The fixup adds to it.
    monkeypatch.setattr("celery._state.default_app", None)
    made = celery.Celery("shop", set_as_current=False)
    monkeypatch.setattr("celery._state.default_app", made)
    assert made._fixups
    return made


def ids(messages: list[CheckMessage]) -> list[str]:
    for message in messages:
        assert message.hint, f"{message.id} has no hint"
    return [str(message.id).removeprefix("django_pooled.") for message in messages]


def close_pools(self: object) -> None:
    for connection in connections.all():
        connection.close_pool()  # type: ignore[attr-defined]


class OwnFixup(DjangoWorkerFixup):  # type: ignore[misc]
    _close_database = close_pools


def watched(function: Callable[..., None]) -> Callable[..., None]:
    """A decorator such as a tool that measures would add."""

    @functools.wraps(function)
    def measured(self: object) -> None:
        function(self)

    return measured


class WatchedFixup(DjangoWorkerFixup):  # type: ignore[misc]
    _close_database = watched(DjangoWorkerFixup._close_database)


def test_celery_as_it_comes_is_silent(app: Any) -> None:
    assert ids(check_celery()) == []


def test_a_site_without_celery_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery._state.default_app", None)
    assert ids(check_celery()) == []


def test_w007_names_what_closes_pools_in_place_of_celerys_fixup(app: Any) -> None:
    app._fixups[0].worker_fixup = OwnFixup(app)
    [message] = check_celery()
    assert ids([message]) == ["W007"]
    assert f"{__name__}.close_pools() closes pools" in message.msg


def test_w007_is_silent_about_celerys_fixup_under_a_decorator(app: Any) -> None:
    app._fixups[0].worker_fixup = WatchedFixup(app)
    assert ids(check_celery()) == []


def test_w007_is_silent_about_fixups_that_are_not_djangos(app: Any) -> None:
    app._fixups[:] = [object()]
    assert ids(check_celery()) == []


@pytest.mark.parametrize(("value", "expected"), [(10, ["W008"]), (0, []), (None, [])])
def test_w008_tells_of_connections_that_a_worker_holds_between_tasks(
    app: Any, value: int | None, expected: list[str]
) -> None:
    app.conf[REUSE] = value
    assert ids(check_celery()) == expected


def test_w008_is_silent_in_transaction_mode(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf[REUSE] = 10
    options = {"pool": {"pool_mode": "transaction"}}
    monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", options)
    assert ids(check_celery()) == []


@pytest.mark.parametrize("namespace", ["CELERY", None])
def test_w008_reads_what_celery_reads_of_djangos_settings(
    app: Any, settings: Settings, namespace: str | None
) -> None:
    app.config_from_object("django.conf:settings", namespace=namespace)
    setattr(settings, REUSE, 10)
    settings.CELERY_WORKER_CONCURRENCY = 3
    assert ids(check_celery()) == ["W008"]
    known = [("CELERY_WORKER_CONCURRENCY", 3, 1)] if namespace else []
    assert declared({}) == known


def test_w008_reads_djangos_settings_where_no_app_is_loaded(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr("celery._state.default_app", None)
    assert ids(check_celery()) == []
    setattr(settings, REUSE, 10)
    assert ids(check_celery()) == ["W008"]
    monkeypatch.setitem(
        django_settings.DATABASES["default"], "ENGINE", "django.db.backends.sqlite3"
    )
    assert ids(check_celery()) == []


def test_a_configuration_that_celery_refuses_is_celerys_to_report(app: Any) -> None:
    app.config_from_object("shop.no_such_module")
    assert ids(check_celery()) == []
    assert declared({}) == []


@pytest.mark.parametrize(
    ("mode", "reuse", "held"),
    [("session", None, False), ("session", 10, True), ("transaction", 10, False)],
)
def test_what_w008_says_is_what_celery_does(
    app: Any,
    server: EmbeddedServer,
    make_database: MakeDatabase,
    mode: str,
    reuse: int | None,
    held: bool,
) -> None:
    alias = make_database(server, pool_mode=mode)
    app.conf[REUSE] = reuse
    fixup = DjangoWorkerFixup(app)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    fixup.close_database()  # As before and after a task.
    assert sum(pool.in_use for pool in registry.snapshots() if pool.alias == alias) == held
