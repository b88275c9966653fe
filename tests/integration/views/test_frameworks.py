"""Django REST framework and Ninja under the line for a whole site."""

# Ninja looks names in annotations up, so they are no strings here.
# ruff: noqa: I002
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.http import HttpRequest
from django.test import Client
from django.urls import include, path, resolve, reverse

from django_pooled import no_retry, retry_transaction
from django_pooled.urls import retry_requests
from tests.app.models import Note
from tests.support.attempts import QUICK, Attempts, attempts

pytest.importorskip("ninja", reason="Django Ninja is not installed")
pytest.importorskip("rest_framework", reason="Django REST framework is not installed")

from ninja import NinjaAPI
from rest_framework.decorators import action, api_view
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.schemas.generators import EndpointEnumerator
from rest_framework.serializers import ModelSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.views.test_frameworks"),
]


def read_only() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        value: str = cursor.fetchone()[0]
        return f"{value} {attempts.done()}"


class NoteSerializer(ModelSerializer):
    class Meta:
        model = Note
        fields = ["text"]


class Notes(ModelViewSet):
    queryset = Note.objects.order_by("pk")
    serializer_class = NoteSerializer

    def list(self, request: Any) -> Response:
        return Response(read_only())

    def perform_create(self, serializer: Any) -> None:
        serializer.save()
        attempts.done()

    @action(detail=False)
    def counted(self, request: Any) -> Response:
        return Response(read_only())

    @no_retry
    @action(detail=False)
    def alone(self, request: Any) -> Response:
        return Response(read_only())


class Page(APIView):
    def get(self, request: Any) -> Response:
        return Response(read_only())


@api_view(["GET"])
def function(request: Any) -> Response:
    return Response(read_only())


@api_view(["GET"])
@no_retry
def function_alone(request: Any) -> Response:
    return Response(read_only())


@api_view(["GET"])
@retry_transaction(backoff=QUICK, read_only=False)
def decorated(request: Any) -> Response:
    return Response(read_only())


router = DefaultRouter()
router.register("notes", Notes)

api = NinjaAPI(urls_namespace="whole_site")


@api.get("/notes/")
def list_notes(request: HttpRequest) -> Any:
    return read_only()


@api.get("/alone/")
@no_retry
def left_alone(request: HttpRequest) -> Any:
    return read_only()


@api.post("/notes/")
def create_note(request: HttpRequest, text: str) -> Any:
    Note.objects.create(text=text)
    return attempts.done()


patterns: Any = [
    path("rest/", include(router.urls)),
    path("page/", Page.as_view()),
    path("function/", function),
    path("function/alone/", function_alone),
    path("decorated/", decorated),
    path("ninja/", api.urls),
]
urlpatterns = retry_requests(patterns, methods="all", backoff=QUICK)


@pytest.fixture(autouse=True)
def ended_session(attempts: Attempts, settings: Any) -> None:
    """The first attempt loses its connection."""

    def end() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    attempts.fail = end
    settings.REST_FRAMEWORK = {
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    }
    connection.close()


@pytest.mark.parametrize(
    "address", ["/rest/notes/", "/rest/notes/counted/", "/page/", "/function/", "/ninja/notes/"]
)
def test_a_get_is_run_again_read_only(address: str) -> None:
    assert Client().get(address).json() == "on 2"


def test_a_function_that_is_decorated_keeps_its_options() -> None:
    assert Client().get("/decorated/").json() == "off 2"


def test_a_post_is_run_again_and_committed_once() -> None:
    assert Client().post("/rest/notes/", {"text": "rest"}).status_code == 201
    assert attempts.number == 2
    attempts.number = 0
    assert Client().post("/ninja/notes/?text=ninja").json() == 2
    assert list(Note.objects.order_by("pk").values_list("text", flat=True)) == ["rest", "ninja"]


@pytest.mark.parametrize("address", ["/rest/notes/alone/", "/function/alone/", "/ninja/alone/"])
def test_one_action_or_operation_can_be_left_alone(address: str) -> None:
    with pytest.raises(OperationalError):
        Client().get(address)
    connection.close()
    assert Client().get(address).json() == "off 2"


def test_generators_of_schemas_find_every_endpoint() -> None:
    ours = EndpointEnumerator(urlpatterns).get_api_endpoints()
    assert ours == EndpointEnumerator(patterns).get_api_endpoints()
    assert ("/rest/notes/", "POST") in [endpoint[:2] for endpoint in ours]
    assert "/ninja/notes/" in api.get_openapi_schema()["paths"]


def test_names_and_classes_stay() -> None:
    assert reverse("note-counted") == "/rest/notes/counted/"
    assert reverse("whole_site:list_notes") == "/ninja/notes/"
    match: Any = resolve("/rest/notes/")
    assert match.func.cls is Notes
    assert match.func.csrf_exempt
    assert match.view_name == "note-list"
