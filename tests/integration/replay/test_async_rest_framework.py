"""Asynchronous views of Django REST framework, by adrf: run again, with the data of the first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, OperationalError, connection
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator

from django_pooled.urls import retry_requests
from tests.app.models import Note
from tests.support.attempts import QUICK, attempts, fail_with, retried
from tests.support.tasks import run

pytest.importorskip("adrf", reason="adrf is not installed")

from adrf.decorators import api_view
from adrf.generics import CreateAPIView
from adrf.serializers import ModelSerializer
from adrf.views import APIView
from adrf.viewsets import ViewSet
from rest_framework.exceptions import ValidationError
from rest_framework.response import Response

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.replay.test_async_rest_framework"),
    pytest.mark.usefixtures("attempts", "rest"),
]

CONFIGURATION: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}


@pytest.fixture
def rest(settings: Any) -> None:
    """The framework without sessions."""
    settings.REST_FRAMEWORK = CONFIGURATION
    connection.close()


async def vote(request: Any) -> Response:
    """Change what was sent, write, and fail the first time."""
    files = {name: file.read() for name, file in request.FILES.items()}
    attempts.see((json.loads(json.dumps({**request.data, **dict.fromkeys(files)})), files))
    await Note.objects.acreate(text=request.data["text"])
    if type(request.data) is dict:
        request.data["more"] = [1]
    return Response({"attempt": await sync_to_async(attempts.done)()})


class Outside(APIView):
    async def post(self, request: Any) -> Response:
        self.seen = getattr(self, "seen", 0) + 1
        assert self.seen == 1
        return await vote(request)


@method_decorator(retried, name="dispatch")
class OnDispatch(Outside):
    pass


@method_decorator(retried, name="async_dispatch")
class OnAsyncDispatch(Outside):
    pass


class OnPost(APIView):
    @retried
    async def post(self, request: Any) -> Response:
        return await vote(request)


@method_decorator(retried, name="dispatch")
class Nested(OnPost):
    """Decorated twice: the inner one joins the transaction of the outer one."""


@method_decorator(retried, name="dispatch")
class Synchronous(APIView):
    """A class without asynchronous methods."""

    def post(self, request: Any) -> Response:
        Note.objects.create(text=request.data["text"])
        attempts.see(request.data)
        return Response({"attempt": attempts.done()})


class Votes(ViewSet):
    @retried
    async def acreate(self, request: Any) -> Response:
        return await vote(request)


class PlainVotes(ViewSet):
    async def acreate(self, request: Any) -> Response:
        return await vote(request)


class NoteSerializer(ModelSerializer):
    class Meta:
        model = Note
        fields = ["text"]

    async def acreate(self, validated_data: Any) -> Note:
        attempts.see(dict(validated_data))
        return await Note.objects.acreate(text=validated_data.pop("text"))


class OnPerformCreate(CreateAPIView):
    queryset = Note.objects.all()
    serializer_class = NoteSerializer

    @retried
    async def perform_acreate(self, serializer: Any) -> None:
        await serializer.asave()
        await sync_to_async(attempts.done)()


@method_decorator(retried, name="dispatch")
class OnGenericDispatch(CreateAPIView):
    queryset = Note.objects.all()
    serializer_class = NoteSerializer

    async def perform_acreate(self, serializer: Any) -> None:
        await serializer.asave()
        await sync_to_async(attempts.done)()


async def invalid(request: Any) -> Response:
    await Note.objects.acreate(text="not to stay")
    raise ValidationError({"text": "is wrong"})


async def broken(request: Any) -> Response:
    await Note.objects.acreate(text="not to stay")
    await sync_to_async(attempts.done)()
    return Response({})


VIEWS: dict[str, Callable[..., Any]] = {
    "outside": retried(Outside.as_view()),
    "dispatch": OnDispatch.as_view(),
    "async_dispatch": OnAsyncDispatch.as_view(),
    "nested": Nested.as_view(),
    "post": OnPost.as_view(),
    "viewset": Votes.as_view({"post": "acreate"}),
    "viewset_outside": retried(PlainVotes.as_view({"post": "acreate"})),
    "inside_api_view": api_view(["POST"])(retried(vote)),
    "outside_api_view": retried(api_view(["POST"])(vote)),
}
SERIALIZED: dict[str, Callable[..., Any]] = {
    "perform_create": OnPerformCreate.as_view(),
    "generic": OnGenericDispatch.as_view(),
}
urlpatterns = [
    *[path(f"{name}/", view) for name, view in (VIEWS | SERIALIZED).items()],
    path("synchronous/", Synchronous.as_view()),
    path("invalid/", retried(api_view(["POST"])(invalid))),
    path("broken/", retried(api_view(["POST"])(broken))),
    path("broken_inside/", api_view(["POST"])(retried(broken))),
    *retry_requests(
        [
            path("site/", Outside.as_view()),
            path("site-viewset/", PlainVotes.as_view({"post": "acreate"})),
        ],
        methods="all",
        backoff=QUICK,
    ),
]


@pytest.fixture(params=["asgi", "wsgi"])
def post(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Send a vote by the handler of either kind."""

    def send(name: str, kind: str = "document", **options: Any) -> Any:
        data: Any = {"text": "vote", "more": ["1", "2"]}
        kwargs: Any = {}
        if kind == "document":
            data, kwargs = json.dumps(data), {"content_type": "application/json"}
        elif kind == "upload":
            data["file"] = SimpleUploadedFile("ballot", b"for ada")
        if request.param == "wsgi":
            return Client(**options).post(f"/{name}/", data, **kwargs)

        async def by_asgi() -> Any:
            return await AsyncClient(**options).post(f"/{name}/", data, **kwargs)

        return run(by_asgi)

    return send


@pytest.mark.parametrize("kind", ["document", "form", "upload"])
@pytest.mark.parametrize("name", [*VIEWS, "site", "site-viewset"])
def test_each_attempt_sees_the_same_data(post: Callable[..., Any], name: str, kind: str) -> None:
    assert post(name, kind).json() == {"attempt": 2}
    assert attempts.same, attempts.seen
    assert [note.text for note in Note.objects.all()] == ["vote"]


def test_a_class_without_asynchronous_methods_is_run_again_too(post: Callable[..., Any]) -> None:
    assert post("synchronous").json() == {"attempt": 2}
    assert [note.text for note in Note.objects.all()] == ["vote"]


@pytest.mark.parametrize("name", list(SERIALIZED))
def test_a_serializer_creates_again_what_a_failed_attempt_had_created(
    post: Callable[..., Any], name: str
) -> None:
    assert post(name).status_code == 201
    assert attempts.same, attempts.seen
    assert [note.text for note in Note.objects.all()] == ["vote"]


@pytest.fixture
def answering(settings: Any, rest: None) -> None:
    """An exception handler that answers for the database's errors."""
    handler = "tests.support.rest_framework.answer_for"
    settings.REST_FRAMEWORK = {**CONFIGURATION, "EXCEPTION_HANDLER": handler}


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize("name", ["outside", "dispatch", "nested", "viewset_outside", "site"])
def test_a_failure_worth_another_attempt_gets_one_although_it_was_answered(
    post: Callable[..., Any], name: str
) -> None:
    assert post(name).json() == {"attempt": 2}
    assert [note.text for note in Note.objects.all()] == ["vote"]


@pytest.mark.usefixtures("answering")
def test_a_failure_that_outlasts_the_attempts_is_raised_although_it_was_answered(
    post: Callable[..., Any],
) -> None:
    attempts.times = 99
    with pytest.raises(OperationalError, match="made"):
        post("broken")
    assert not Note.objects.exists()


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize("name", ["broken", "broken_inside"])
def test_an_answer_for_another_failure_is_sent_and_nothing_committed(
    post: Callable[..., Any], name: str
) -> None:
    attempts.fail = lambda: fail_with("23505")
    response = post(name, raise_request_exception=False)
    assert response.status_code == 503
    assert "made" in response.json()["detail"]
    assert attempts.number == 1
    assert not Note.objects.exists()


def test_a_failure_that_nobody_has_answered_is_raised(post: Callable[..., Any]) -> None:
    attempts.fail = lambda: fail_with("23505")
    with pytest.raises(IntegrityError, match="made"):
        post("broken")
    assert not Note.objects.exists()


def test_a_response_made_of_an_exception_rolls_back(post: Callable[..., Any]) -> None:
    response = post("invalid")
    assert (response.status_code, response.json()) == (400, {"text": "is wrong"})
    assert not Note.objects.exists()
