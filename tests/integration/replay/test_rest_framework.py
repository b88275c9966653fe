from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, OperationalError, connections
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator

from tests.app.models import Note
from tests.support.attempts import attempts, fail_with, retried

pytest.importorskip("rest_framework", reason="Django REST framework is not installed")

from rest_framework.decorators import action, api_view
from rest_framework.exceptions import ValidationError
from rest_framework.generics import CreateAPIView
from rest_framework.response import Response
from rest_framework.serializers import ModelSerializer
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet, ViewSet

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.replay.test_rest_framework"),
    pytest.mark.usefixtures("attempts", "rest"),
]


@pytest.fixture
def rest(settings: Any) -> None:
    """The framework without sessions."""
    settings.REST_FRAMEWORK = CONFIGURATION


CONFIGURATION: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}


def vote(request: Any) -> Response:
    """Change what was sent, write, and fail the first time."""
    files = {name: file.read() for name, file in request.FILES.items()}
    attempts.see((json.loads(json.dumps({**request.data, **dict.fromkeys(files)})), files))
    Note.objects.create(text=request.data["text"])
    if isinstance(request.data, dict) and "more" in request.data and not files:
        data = request.data if type(request.data) is dict else request.data.copy()
        data["more"] = [1]
    return Response({"attempt": attempts.done()})


class Outside(APIView):
    def post(self, request: Any) -> Response:
        self.seen = getattr(self, "seen", 0) + 1
        assert self.seen == 1
        return vote(request)


@method_decorator(retried, name="dispatch")
class OnDispatch(Outside):
    pass


class OnPost(APIView):
    @method_decorator(retried)
    def post(self, request: Any) -> Response:
        return vote(request)


class ReadBefore(BaseThrottle):
    """Parses what was sent before the view is called."""

    def allow_request(self, request: Any, view: Any) -> bool:
        return bool(request.data["text"])


class OnPlainPost(APIView):
    throttle_classes = [ReadBefore]

    @retried
    def post(self, request: Any) -> Response:
        return vote(request)


@method_decorator(retried, name="dispatch")
class Nested(OnPlainPost):
    """Decorated twice: the inner one joins the transaction of the outer one."""


class Votes(ViewSet):
    @retried
    def create(self, request: Any) -> Response:
        return vote(request)

    @action(detail=False, methods=["post"])
    @retried
    def recount(self, request: Any) -> Response:
        return vote(request)


class NoteSerializer(ModelSerializer):
    class Meta:
        model = Note
        fields = ["text"]

    def create(self, validated_data: Any) -> Note:
        attempts.see(dict(validated_data))
        note = Note.objects.create(text=validated_data.pop("text"))
        attempts.see(dict(self.validated_data))
        return note


class OnPerformCreate(ModelViewSet):
    queryset = Note.objects.all()
    serializer_class = NoteSerializer

    @retried
    def perform_create(self, serializer: Any) -> None:
        serializer.save()
        attempts.done()


class OnGenericDispatch(CreateAPIView):
    queryset = Note.objects.all()
    serializer_class = NoteSerializer

    def perform_create(self, serializer: Any) -> None:
        super().perform_create(serializer)
        attempts.done()


@api_view(["POST"])
@retried
def inside_api_view(request: Any) -> Response:
    return vote(request)


VIEWS: dict[str, Callable[..., Any]] = {
    "outside": retried(Outside.as_view()),
    "dispatch": OnDispatch.as_view(),
    "nested": Nested.as_view(),
    "post": OnPost.as_view(),
    "plain_post": OnPlainPost.as_view(),
    "viewset": Votes.as_view({"post": "create"}),
    "viewset_outside": retried(Votes.as_view({"post": "recount"})),
    "action": Votes.as_view({"post": "recount"}),
    "inside_api_view": inside_api_view,
    "outside_api_view": retried(api_view(["POST"])(vote)),
}
SERIALIZED: dict[str, Callable[..., Any]] = {
    "perform_create": OnPerformCreate.as_view({"post": "create"}),
    "generic": method_decorator(retried, name="dispatch")(OnGenericDispatch).as_view(),
}


def invalid(request: Any) -> Response:
    Note.objects.create(text="not to stay")
    raise ValidationError({"text": "is wrong"})


def broken(request: Any) -> Response:
    Note.objects.create(text="not to stay")
    attempts.done()
    return Response({})


urlpatterns = [
    *[path(f"{name}/", view) for name, view in (VIEWS | SERIALIZED).items()],
    path("invalid/", retried(api_view(["POST"])(invalid))),
    path("broken/", retried(api_view(["POST"])(broken))),
    path("broken_inside/", api_view(["POST"])(retried(broken))),
]


def post(name: str, kind: str = "document", client: Client | None = None) -> Any:
    data: Any = {"text": "vote", "more": ["1", "2"]}
    kwargs = {}
    if kind == "document":
        data, kwargs = json.dumps(data), {"content_type": "application/json"}
    elif kind == "upload":
        data["file"] = SimpleUploadedFile("ballot", b"for ada")
    elif kind == "large upload":
        data["file"] = SimpleUploadedFile("ballot", b"for ada" * 500_000)
    return (client or Client()).post(f"/{name}/", data, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["document", "form", "upload", "large upload"])
@pytest.mark.parametrize("name", list(VIEWS))
def test_each_attempt_sees_the_same_data(name: str, kind: str) -> None:
    assert post(name, kind).json() == {"attempt": 2}
    assert attempts.same, attempts.seen
    assert [note.text for note in Note.objects.all()] == ["vote"]


@pytest.mark.parametrize("name", list(SERIALIZED))
def test_a_serializer_creates_again_what_a_failed_attempt_had_created(name: str) -> None:
    assert post(name).status_code == 201
    assert attempts.same, attempts.seen
    assert [note.text for note in Note.objects.all()] == ["vote"]


HANDLERS = {
    "custom": "tests.support.rest_framework.answer_for",
    "standardized": "drf_standardized_errors.handler.exception_handler",
}


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest, settings: Any, rest: None) -> str:
    """An exception handler that answers for the database's errors."""
    if request.param == "standardized":
        pytest.importorskip("drf_standardized_errors")
    settings.REST_FRAMEWORK = {**CONFIGURATION, "EXCEPTION_HANDLER": HANDLERS[request.param]}
    return str(request.param)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("atomic_requests", [False, True])
@pytest.mark.parametrize(
    "name", ["outside", "dispatch", "nested", "viewset_outside", "outside_api_view"]
)
def test_a_failure_worth_another_attempt_gets_one_although_it_was_answered(
    name: str, atomic_requests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With it, the framework's handlers ask for a rollback themselves.
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests)
    # Some handlers report each failure that they answer, which Django's client would raise.
    client = Client(raise_request_exception=False)
    assert post(name, client=client).json() == {"attempt": 2}
    assert [note.text for note in Note.objects.all()] == ["vote"]


@pytest.mark.usefixtures("handler")
def test_a_failure_that_outlasts_the_attempts_is_raised_although_it_was_answered() -> None:
    attempts.times = 99
    with pytest.raises(OperationalError, match="made"):
        post("broken")
    assert not Note.objects.exists()


@pytest.mark.parametrize("name", ["broken", "broken_inside"])
def test_an_answer_for_another_failure_is_sent_and_nothing_committed(
    name: str, handler: str
) -> None:
    attempts.fail = lambda: fail_with("23505")
    client = Client(raise_request_exception=False)
    response = post(name, client=client)
    assert response.status_code == (503 if handler == "custom" else 500)
    assert "detail" in response.json() or "errors" in response.json()
    assert attempts.number == 1
    assert not Note.objects.exists()


def test_a_failure_that_nobody_has_answered_is_raised() -> None:
    attempts.fail = lambda: fail_with("23505")
    with pytest.raises(IntegrityError, match="made"):
        post("broken")
    assert not Note.objects.exists()


def test_a_response_made_of_an_exception_rolls_back() -> None:
    response = post("invalid")
    assert (response.status_code, response.json()) == (400, {"text": "is wrong"})
    assert not Note.objects.exists()
