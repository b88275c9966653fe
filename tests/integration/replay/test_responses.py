from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connection
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import RequestFactory

from django_pooled.replay.responses import asks_for_rollback, is_error_response, reads_later
from tests.app.models import Note
from tests.support.attempts import attempts, fail_with, retried

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("attempts")]


class Marked(HttpResponse):
    """A response as Django REST framework makes it of an exception."""

    exception = True


@pytest.mark.parametrize(
    ("result", "is_error", "rolls_back"),
    [
        (HttpResponse(status=200), False, False),
        (HttpResponse(status=302), False, False),
        (HttpResponse(status=400), True, False),
        (JsonResponse({}, status=503), True, False),
        (StreamingHttpResponse([], status=500), True, False),
        (Marked(), True, True),
        (None, False, False),
        ((400, "is no response"), False, False),
        (ValueError("neither"), False, False),
    ],
)
def test_error_responses_are_told_from_others(
    result: object, is_error: bool, rolls_back: bool
) -> None:
    assert is_error_response(result) is is_error
    assert asks_for_rollback(result) is rolls_back


def answering(answer: HttpResponse) -> Callable[[], HttpResponse]:
    """Return a view that answers for whatever the database says."""

    @retried
    def view() -> HttpResponse:
        Note.objects.create(text="vote")
        with contextlib.suppress(DatabaseError):
            attempts.done()
            return HttpResponse("done")
        return answer

    return view


def test_a_failure_worth_another_attempt_gets_one_whatever_the_view_has_answered() -> None:
    for status in (200, 409, 503):
        attempts.reset()
        assert answering(HttpResponse(status=status))().content == b"done"
        assert attempts.number == 2
    assert Note.objects.count() == 3


def test_an_error_response_for_another_failure_is_sent_and_nothing_committed() -> None:
    attempts.fail = lambda: fail_with("23505")
    conflict = HttpResponse("conflict", status=409)
    assert answering(conflict)() is conflict
    assert attempts.number == 1
    assert not Note.objects.exists()
    # The next one works.
    assert answering(conflict)().content == b"done"


def test_success_is_never_reported_of_a_transaction_that_was_lost() -> None:
    attempts.fail = lambda: fail_with("23505")
    with pytest.raises(IntegrityError, match="made"):
        answering(HttpResponse("conflict"))()
    assert not Note.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_error_response_does_not_hide_that_the_connection_was_lost_for_good() -> None:
    def end_own_backend() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    # Other tests have left session state on theirs, by DO.
    connection.close()
    attempts.fail = end_own_backend
    attempts.times = 99
    with pytest.raises(OperationalError):
        answering(HttpResponse(status=503))()
    assert attempts.number == 5


def test_an_error_response_of_a_healthy_transaction_is_committed_as_django_does() -> None:
    @retried
    def view() -> HttpResponse:
        Note.objects.create(text="a failed login, say")
        return HttpResponse(status=403)

    assert view().status_code == 403
    assert Note.objects.count() == 1


def template(context: dict[str, Any] | None = None) -> TemplateResponse:
    return TemplateResponse(RequestFactory().get("/"), "vote.html", context)


def test_responses_that_may_read_the_database_afterwards_are_told() -> None:
    rows = Note.objects.all()
    loaded = Note.objects.all()
    assert list(loaded) == []
    for result, reason in [
        (HttpResponse(), None),
        (FileResponse(io.BytesIO(b"x")), None),
        (None, None),
        (StreamingHttpResponse(iter([])), "a streaming response is made while it is sent"),
        (loaded, None),
        (rows, "has not been run"),
        ((letter for letter in "ab"), "a generator that is returned"),
        (template(), "rendered after the transaction"),
        (template({"notes": loaded}), "rendered after the transaction"),
        (template({"notes": rows}), "'notes' in its context is a query that has not been run"),
    ]:
        told = reads_later(result)
        assert (told is None) if reason is None else (told is not None and reason in told)
        if isinstance(result, HttpResponse | FileResponse):
            result.close()


def test_a_function_that_returns_such_a_response_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @retried
    def votes() -> StreamingHttpResponse:
        return StreamingHttpResponse(str(note) for note in Note.objects.all())

    with caplog.at_level("INFO", "django_pooled.retry"):
        votes()
        votes()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.endswith(
        "votes: a streaming response is made while it is sent, after the transaction"
    )
