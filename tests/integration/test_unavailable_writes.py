"""503 with Retry-After invites to send a request again: not one that may have taken effect."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from django_pooled import AmbiguousCommit, retry_transaction
from tests.app.models import Note
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.test_unavailable_writes"),
]


_SLEEPS = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"


ENDS_THE_SESSION, SLEEPS = "ends the session", "sleeps"
AT_COMMIT = f"""
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.text = '{ENDS_THE_SESSION}' THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    ELSIF NEW.text = '{SLEEPS}' THEN
        PERFORM pg_sleep(60);
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON app_note DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION at_commit()
"""


class OverTime(Exception):
    """A time limit of a worker's, which is no error of the database."""


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def reads(request: HttpRequest) -> HttpResponse:
    Note.objects.count()
    return read_and_lose()


def read_and_lose() -> HttpResponse:
    """Lose the connection while a statement that reads is under way."""
    with while_it_sleeps(lambda: None):
        execute("SELECT pg_sleep(60)")
    return HttpResponse()


@contextmanager
def while_it_sleeps(act: Callable[[], object]) -> Iterator[None]:
    """Once the connection's session sleeps in the block, act, and end the session."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    found = connection.settings_dict

    def end() -> None:
        with psycopg.connect(
            host=found["HOST"], port=found["PORT"], user=found["USER"], dbname=found["NAME"],
            password=found["PASSWORD"], autocommit=True,
        ) as admin:  # fmt: skip
            wait_until(lambda: admin.execute(_SLEEPS, [pid]).fetchone() == (True,))
            act()
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])

    thread = Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def sets(request: HttpRequest) -> HttpResponse:
    execute("SET work_mem = '5MB'")
    return read_and_lose()


def rolls_back(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Note.objects.create(text="rolled back")
        return read_and_lose()


def rolled_back_before(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Note.objects.create(text="rolled back")
        transaction.set_rollback(True)
    with transaction.atomic():
        Note.objects.count()
    return read_and_lose()


def writes(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text="autocommit")
    return read_and_lose()


def loses_the_answer(request: HttpRequest) -> HttpResponse:
    execute(
        "WITH one AS (INSERT INTO app_note (text, key) VALUES ('one', gen_random_uuid())"
        " RETURNING id) SELECT pg_terminate_backend(pg_backend_pid()) FROM one"
    )
    return HttpResponse()


def commits(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Note.objects.create(text="committed")
    return read_and_lose()


def commits_without_answer(request: HttpRequest) -> HttpResponse:
    with suppress(AmbiguousCommit), transaction.atomic():
        Note.objects.create(text=ENDS_THE_SESSION)
    return read_and_lose()


def commits_until_a_time_limit(request: HttpRequest) -> HttpResponse:
    def strike(*_: object) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with (
            while_it_sleeps(lambda: os.kill(os.getpid(), signal.SIGALRM)),
            suppress(OverTime),
            transaction.atomic(),
        ):
            Note.objects.create(text=SLEEPS)
    finally:
        signal.signal(signal.SIGALRM, before)
    return read_and_lose()


def retried(request: HttpRequest) -> HttpResponse:
    retry_transaction(Note.objects.create)(text="committed")
    return read_and_lose()


def calls(request: HttpRequest) -> HttpResponse:
    execute("SELECT does_something()")
    return read_and_lose()


VIEWS = [
    *(reads, sets, rolls_back, rolled_back_before),
    *(writes, loses_the_answer, commits, retried, calls),
    *(commits_without_answer, commits_until_a_time_limit),
]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]


@pytest.fixture
def client(settings: Any) -> Iterator[Client]:
    settings.MIDDLEWARE = ["django_pooled.middleware.DatabaseUnavailableMiddleware"]
    connection.close()
    execute("CREATE FUNCTION does_something() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    execute(AT_COMMIT)
    yield Client(raise_request_exception=False)
    connection.close()
    execute("DROP FUNCTION does_something")
    execute("DROP FUNCTION at_commit CASCADE")


@pytest.mark.parametrize("view", ["reads", "sets", "rolls_back", "rolled_back_before"])
def test_a_request_without_effect_is_answered_503(client: Client, view: str) -> None:
    response = client.post(f"/{view}/")
    assert response.status_code == 503
    assert "Retry-After" in response


@pytest.mark.parametrize(
    "view",
    [
        *("writes", "loses_the_answer", "commits", "retried", "calls"),
        *("commits_without_answer", "commits_until_a_time_limit"),
    ],
)
def test_one_that_may_have_taken_effect_is_answered_500(client: Client, view: str) -> None:
    response = client.post(f"/{view}/")
    assert response.status_code == 500
    assert "Retry-After" not in response


def test_a_get_may_be_repeated_whatever_it_did(client: Client) -> None:
    assert client.get("/writes/").status_code == 503


def test_what_the_request_before_did_does_not_count(client: Client) -> None:
    assert client.post("/writes/").status_code == 500
    connection.close()
    assert client.post("/reads/").status_code == 503
