"""Requests whose connection is lost while they do something else, through Django's own handler."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.contrib.auth import authenticate, login
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from django_pooled.testing import terminate_backend
from tests.app.models import Note
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


def compute(request: HttpRequest) -> HttpResponse:
    """Query before and after the loss."""
    before = Note.objects.count()
    terminate_backend()
    return HttpResponse(f"{before} {Note.objects.count()}")


def begin_late(request: HttpRequest) -> HttpResponse:
    """Lose the connection before the first query; under ATOMIC_REQUESTS nothing was sent yet."""
    connection.ensure_connection()
    terminate_backend()
    Note.objects.create(text="late")
    return HttpResponse(f"{connection.in_atomic_block}")


def sign_in(request: HttpRequest) -> HttpResponse:
    """Save a session after the loss."""
    user = authenticate(request, username="eve", password="secret")
    terminate_backend()
    login(request, user)
    terminate_backend()
    return HttpResponse("in")


def fail(request: HttpRequest) -> HttpResponse:
    """Lose the connection while a statement waits for a lock."""
    pid = connection.connection.info.backend_pid
    parameters = connection.connection.info.get_parameters()
    parameters["password"] = connection.connection.info.password
    waits = "SELECT true FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"

    def end() -> None:
        with psycopg.connect(**parameters, autocommit=True) as admin:
            wait_until(lambda: admin.execute(waits, [pid]).fetchone())
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])

    with psycopg.connect(**parameters) as admin:
        admin.execute(f"LOCK TABLE {Note._meta.db_table}")
        thread = threading.Thread(target=end)
        thread.start()
        try:
            return HttpResponse(f"{Note.objects.count()}")
        finally:
            thread.join()


urlpatterns = [
    path("compute/", compute),
    path("late/", begin_late),
    path("sign-in/", sign_in),
    path("fail/", fail),
]


def journal(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Write down how each request was answered."""

    def middleware(request: HttpRequest) -> HttpResponse:
        assert request.user.is_anonymous
        Note.objects.create(text="asked")
        response = get_response(request)
        Note.objects.create(text=f"answered {response.status_code}")
        return response

    return middleware


@pytest.fixture
def client(settings: Any) -> Client:
    connection.close()
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        f"{__name__}.journal",
        "django_pooled.middleware.DatabaseUnavailableMiddleware",
    ]
    return Client(raise_request_exception=False)


def texts() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


def test_a_view_that_lost_its_connection_while_it_computed_is_answered(client: Client) -> None:
    assert client.get("/compute/").content == b"1 1"


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_a_view_that_has_sent_nothing_yet_is_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch, atomic_requests: bool
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    assert client.get("/late/").content == f"{atomic_requests}".encode()
    assert texts() == ["asked", "late", "answered 200"]


def test_a_session_is_saved_after_the_loss(client: Client) -> None:
    User.objects.create_user("eve", password="secret")
    assert client.get("/sign-in/").content == b"in"
    assert client.session["_auth_user_id"]


def test_middleware_around_a_view_that_failed_gets_a_connection(client: Client) -> None:
    assert client.get("/fail/").status_code == 503
    assert texts() == ["asked", "answered 503"]
