# Ninja looks names in annotations up where a decorator's wrapper was defined, so they are no
# strings here: no "from __future__ import annotations".
# ruff: noqa: I002
import json
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator

from django_pooled import retry_transaction
from django_pooled.testing import repeated
from django_pooled.tokens.models import IdempotencyKey
from django_pooled.urls import retry_requests
from tests.app.models import Note

pytest.importorskip("rest_framework", reason="Django REST framework is not installed")
pytest.importorskip("ninja", reason="Django Ninja is not installed")

from ninja import NinjaAPI, Schema
from ninja.decorators import decorate_view
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.response import Response
from rest_framework.views import APIView

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.idempotency.test_frameworks"),
    pytest.mark.usefixtures("rest"),
]

keyed = retry_transaction(idempotency_key="Idempotency-Key")


@pytest.fixture
def rest(settings: Any) -> None:
    settings.REST_FRAMEWORK = {
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    }


def pay(data: Any) -> Response:
    note = Note.objects.create(text=data["text"])
    if note.text == "too much":
        raise ValidationError("too much")
    return Response({"payment": note.pk}, status=201)


@method_decorator(keyed, name="dispatch")
class OnDispatch(APIView):
    def post(self, request: Any) -> Response:
        return pay(request.data)


@keyed
@api_view(["POST"])
def above(request: Any) -> Response:
    return pay(request.data)


@api_view(["POST"])
@keyed
def below(request: Any) -> Response:
    return pay(request.data)


class Payment(Schema):
    text: str


api = NinjaAPI(urls_namespace="idempotency")


@api.post("/view/")
@decorate_view(keyed)
def by_ninja(request: HttpRequest, payload: Payment) -> Any:
    return {"payment": Note.objects.create(text=payload.text).pk}


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"payment {Note.objects.create(text=request.POST['text']).pk}", status=201)


urlpatterns = [
    path("dispatch/", OnDispatch.as_view()),
    path("above/", above),
    path("below/", below),
    path("ninja/", api.urls),
    path("plain/", plain),
    path("keyed/", keyed(plain)),
    *retry_requests([path("site/", plain)], methods="all", idempotency_key="Idempotency-Key"),
]

JSON: dict[str, Any] = {"content_type": "application/json"}


@pytest.mark.parametrize("address", ["/dispatch/", "/above/", "/ninja/view/"])
@pytest.mark.parametrize("text", ["a", "b" * 5000])
def test_a_repeat_to_a_framework_gets_the_stored_response(
    client: Client, address: str, text: str
) -> None:
    response = repeated(client.post, address, json.dumps({"text": text}), **JSON)
    assert response.status_code == (200 if "ninja" in address else 201)
    assert response.json() == {"payment": Note.objects.get().pk}
    assert response["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("address", ["/dispatch/", "/above/"])
def test_a_form_that_a_framework_parses_is_read_once_more(client: Client, address: str) -> None:
    assert repeated(client.post, address, {"text": "a form"}).status_code == 201
    assert Note.objects.get().text == "a form"


@pytest.mark.parametrize("address", ["/dispatch/", "/above/"])
def test_an_error_that_the_framework_answers_is_rolled_back_and_not_stored(
    client: Client, address: str
) -> None:
    for _ in range(2):
        response = client.post(
            address, '{"text": "too much"}', headers={"Idempotency-Key": "a"}, **JSON
        )
        assert response.status_code == 400
        assert "Idempotency-Replayed" not in response
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (0, 0)


def test_a_view_that_gets_the_frameworks_own_request_is_told_where_to_decorate(
    client: Client,
) -> None:
    with pytest.raises(TypeError, match="above @api_view"):
        client.post("/below/", '{"text": "a"}', headers={"Idempotency-Key": "a"}, **JSON)


@pytest.mark.django_db(transaction=True)
def test_every_view_of_a_site_takes_keys(client: Client) -> None:
    assert repeated(client.post, "/site/", {"text": "a"}).status_code == 201
    assert Note.objects.count() == 1


def test_the_helper_fails_where_a_repeat_is_not_a_replay(client: Client) -> None:
    with pytest.raises(AssertionError, match="is the view decorated with idempotency_key"):
        repeated(client.post, "/plain/", {"text": "a"})
    assert repeated(client.post, "/keyed/", {"text": "a"}, key="of mine").status_code == 201
    # The key is used, so the first answer is a replay already.
    with pytest.raises(AssertionError, match="not answered with the stored response"):
        repeated(client.post, "/keyed/", {"text": "a"}, key="of mine")
