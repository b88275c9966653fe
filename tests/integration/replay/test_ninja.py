# Ninja looks names in annotations up where a decorator's wrapper was defined, so they are no
# strings here: no "from __future__ import annotations".
# ruff: noqa: I002
import json
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from tests.app.models import Note
from tests.support.attempts import attempts, fail_with, retried

pytest.importorskip("ninja", reason="Django Ninja is not installed")

from ninja import File, NinjaAPI, Schema, UploadedFile
from ninja.decorators import decorate_view

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.replay.test_ninja"),
    pytest.mark.usefixtures("attempts"),
]


class Vote(Schema):
    text: str
    more: list[str] = []
    comment: str = ""


def cast(payload: Vote) -> dict[str, int]:
    """Change what was sent, write, and fail the first time."""
    attempts.see(payload.model_dump(exclude_unset=True))
    Note.objects.create(text=payload.text)
    payload.text = "changed"
    payload.more.append("changed")
    payload.comment = "changed"
    return {"attempt": attempts.done()}


def make_api(name: str) -> NinjaAPI:
    api = NinjaAPI(urls_namespace=name)

    @api.post("/operation/")
    @retried
    def operation(request: HttpRequest, payload: Vote) -> Any:
        return cast(payload)

    @api.post("/view/")
    @decorate_view(retried)
    def view(request: HttpRequest, payload: Vote) -> Any:
        return cast(payload)

    @api.post("/response/")
    @retried
    def with_response(request: HttpRequest, payload: Vote, response: HttpResponse) -> Any:
        assert not response.has_header("X-Attempt")
        assert "attempt" not in response.cookies
        response["X-Attempt"] = "1"
        response.set_cookie("attempt", "1")
        return cast(payload)

    @api.post("/upload/")
    @retried
    def upload(request: HttpRequest, file: File[UploadedFile]) -> Any:
        attempts.see(file.read())
        return {"attempt": attempts.done()}

    return api


api = make_api("plain")
answering = make_api("answering")


@answering.exception_handler(DatabaseError)
def answer_for(request: HttpRequest, error: DatabaseError) -> Any:
    return answering.create_response(request, {"detail": str(error)}, status=503)


urlpatterns = [path("plain/", api.urls), path("answering/", answering.urls)]


def post(name: str) -> Any:
    document = json.dumps({"text": "vote", "more": ["1"]})
    return Client().post(f"/{name}/", document, content_type="application/json")


@pytest.mark.parametrize("api", ["plain", "answering"])
@pytest.mark.parametrize("name", ["operation", "view", "response"])
def test_each_attempt_sees_the_same_payload(api: str, name: str) -> None:
    assert post(f"{api}/{name}").json() == {"attempt": 2}
    assert attempts.same, attempts.seen
    assert [note.text for note in Note.objects.all()] == ["vote"]


def test_each_attempt_sees_the_same_upload() -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile

    data = {"file": SimpleUploadedFile("ballot", b"for ada")}
    assert Client().post("/plain/upload/", data).json() == {"attempt": 2}
    assert attempts.seen == [b"for ada"] * 2


@pytest.mark.parametrize("name", ["operation", "view"])
def test_an_answer_for_another_failure_is_sent_and_nothing_committed(name: str) -> None:
    attempts.fail = lambda: fail_with("23505")
    response = post(f"answering/{name}")
    assert response.status_code == 503
    assert "made" in response.json()["detail"]
    assert attempts.number == 1
    assert not Note.objects.exists()


@pytest.mark.parametrize("name", ["operation", "view"])
def test_a_failure_that_nobody_has_answered_is_raised(name: str) -> None:
    attempts.fail = lambda: fail_with("23505")
    with pytest.raises(IntegrityError, match="made"):
        post(f"plain/{name}")
    assert not Note.objects.exists()
