"""Requests to a site whose views are retried by one line, through Django's own handler."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections
from django.db.transaction import TransactionManagementError, atomic
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, TestCase
from django.urls import path

from django_pooled import registry, retry_transaction
from django_pooled.urls import retry_requests
from tests.app.models import Note
from tests.integration.views.urls import late
from tests.sites.common_settings import ADMIN_MIDDLEWARE, ADMIN_TEMPLATES
from tests.support.attempts import Attempts, fail_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.views.urls"),
]


def end_own_backend() -> None:
    """Lose the connection in mid-transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture(autouse=True)
def ended_session(attempts: Attempts) -> Attempts:
    """The first attempt loses its connection, unless a test says otherwise."""
    # What other tests have left in the session is not the request's.
    if not connection.in_atomic_block:
        connection.close()
    attempts.fail = end_own_backend
    return attempts


@pytest.fixture
def calm(attempts: Attempts) -> None:
    """No attempt fails by itself."""
    attempts.times = 0


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


@pytest.fixture
def client(settings: Any) -> Client:
    settings.MIDDLEWARE = ADMIN_MIDDLEWARE
    settings.TEMPLATES = ADMIN_TEMPLATES
    return Client()


def texts() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "event", None) == "left_alone"
    ]


@pytest.mark.parametrize("address", ["/read/", "/page/", "/en-us/translated/", "/all/page/"])
def test_a_get_that_loses_its_connection_is_run_again_read_only(
    client: Client, address: str
) -> None:
    assert client.get(address).content == b"on True 2"


def test_with_unsafe_methods_alone_a_get_has_no_transaction_of_ours(
    client: Client, attempts: Attempts
) -> None:
    assert client.post("/unsafe/page/").content == b"True 2"
    attempts.reset()
    attempts.times = 0
    assert client.get("/unsafe/page/").content == b"off False 1"


def test_with_unsafe_methods_alone_a_get_has_djangos_transaction(
    client: Client, attempts: Attempts, atomic_requests: None
) -> None:
    attempts.times = 0
    assert client.get("/unsafe/page/").content == b"off True 1"


def test_its_restart_is_counted_under_the_name_of_the_view(client: Client) -> None:
    before = restarts_of()
    client.get("/page/")
    client.get("/read/")
    assert restarts_of() - before == {"Page": 1}


def restarts_of() -> Counter[str]:
    return sum((pool.counters.restarts_of for pool in registry.snapshots()), Counter[str]())


@pytest.mark.parametrize("method", ["head", "options", "trace"])
def test_so_are_the_other_safe_methods(client: Client, attempts: Attempts, method: str) -> None:
    assert getattr(client, method)("/read/").status_code == 200
    assert attempts.number == 2


@pytest.mark.usefixtures("atomic_requests")
def test_so_is_a_get_under_atomic_requests(client: Client) -> None:
    assert client.get("/read/").content == b"on True 2"


def test_what_is_included_by_name_is_retried_and_loaded_late(client: Client) -> None:
    assert client.get("/lazy/3/").content == b"3: attempt 2"


def test_the_admin_is_retried(client: Client, attempts: Attempts, settings: Any) -> None:
    client.force_login(User.objects.create_superuser("admin"))
    fail_as_notes_are_counted(attempts)
    response = client.get("/admin/app/note/")
    assert response.status_code == 200
    # Once in the first attempt, twice in the second.
    assert attempts.number == 3


def fail_as_notes_are_counted(attempts: Attempts) -> None:
    """Lose the connection after the first query that counts notes."""

    def count(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        found = execute(sql, *args)
        if "app_note" in sql and "COUNT(*)" in sql:
            attempts.done()
        return found

    connection.execute_wrappers.append(count)


@pytest.fixture(autouse=True)
def no_wrappers_left() -> Any:
    yield
    connection.execute_wrappers.clear()


def test_a_response_that_is_rendered_late_is_rendered_again(
    client: Client, attempts: Attempts
) -> None:
    Note.objects.create(text="one")
    attempts.number = -1  # The view itself counts as the first.
    response = client.get("/late/")
    assert response.content == b"one 2"


def test_nothing_is_told_of_a_template_that_is_rendered_in_a_transaction_of_its_own(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_pooled.retry")
    client.get("/late/")
    assert [each for each in caplog.records if getattr(each, "event", "") == "reads_later"] == []
    retry_transaction(late)(RequestFactory().get("/"))
    [line] = [each for each in caplog.records if getattr(each, "event", "") == "reads_later"]
    assert "rendered after the transaction" in line.getMessage()


@pytest.mark.usefixtures("calm")
def test_a_template_that_writes_is_rendered_without_a_transaction(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.get("/late-write/").status_code == 200
    assert texts() == ["t"]
    assert len(told(caplog)) == 1


def test_other_methods_are_handled_as_before(client: Client, attempts: Attempts) -> None:
    with pytest.raises(OperationalError):
        client.post("/write/")
    connection.close()
    assert attempts.number == 1
    assert texts() == ["POST"]


@pytest.mark.usefixtures("calm", "atomic_requests")
@pytest.mark.parametrize("address", ["/write/", "/bare/write/", "/all/write/"])
def test_other_methods_are_atomic_under_atomic_requests(client: Client, address: str) -> None:
    assert client.post(address).content == b"True 1"


@pytest.mark.usefixtures("calm")
def test_other_methods_are_in_no_transaction_without_them(client: Client) -> None:
    assert client.post("/write/").content == b"False 1"


@pytest.mark.usefixtures("atomic_requests")
def test_other_methods_are_rolled_back_as_before(client: Client, attempts: Attempts) -> None:
    with pytest.raises(OperationalError):
        client.post("/write/")
    connection.close()
    assert texts() == []


def test_all_methods_are_retried_on_request(client: Client) -> None:
    assert client.post("/all/write/").content == b"True 2"
    assert texts() == ["POST"]


def test_a_get_that_writes_is_retried_where_all_methods_are(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.get("/all/write/").content == b"True 2"
    assert texts() == ["GET"]
    [sentence] = told(caplog)
    assert "was run in a transaction that may write" in sentence
    assert "read_only=False" in sentence


@pytest.mark.usefixtures("calm")
def test_a_get_that_writes_is_run_as_before_and_named_once(
    client: Client, attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.get("/greeted/").content == b"hello"
    assert texts() == ["greeted"]
    assert attempts.number == 2
    [sentence] = told(caplog)
    assert sentence.startswith("tests.integration.views.urls.greeted ")
    assert "INSERT" in sentence
    assert "@no_retry" in sentence
    client.get("/greeted/")
    assert attempts.number == 4
    # It does so each time: no transaction is tried any more.
    client.get("/greeted/")
    assert attempts.number == 5
    assert len(told(caplog)) == 1


@pytest.mark.usefixtures("calm")
def test_a_refused_write_that_a_view_swallows_is_done_all_the_same(client: Client) -> None:
    assert client.get("/swallows/").content == b"written"
    assert texts() == ["swallowed"]


@pytest.mark.parametrize(
    "address",
    [
        "/left-alone/",
        "/non-atomic/",
        "/leaves-get-alone/",
        "/subclass/",
        "/leaves-dispatch-alone/",
        "/left-alone-class/",
    ],
)
def test_what_says_so_is_left_alone(client: Client, attempts: Attempts, address: str) -> None:
    with pytest.raises(OperationalError):
        client.get(address)
    connection.close()
    assert client.get(address).content == b"off False 2"


def test_another_method_of_a_class_may_still_be_retried(client: Client) -> None:
    assert client.post("/all/leaves-get-alone/").content == b"True 2"


@pytest.mark.usefixtures("atomic_requests", "calm")
def test_under_atomic_requests_a_view_that_opted_out_stays_without_a_transaction(
    client: Client,
) -> None:
    assert client.get("/non-atomic/").content == b"off False 1"
    assert client.get("/left-alone/").content == b"off True 2"
    assert client.get("/leaves-get-alone/").content == b"off True 3"


@pytest.mark.parametrize("address", ["/decorated/", "/decorates-get/"])
def test_what_is_decorated_keeps_its_own_options(client: Client, address: str) -> None:
    assert client.get(address).content == b"off True 2"


@pytest.mark.usefixtures("calm")
def test_a_stream_goes_on_reading_its_cursor(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    Note.objects.bulk_create(Note(text=letter) for letter in "abc")
    response: Any = client.get("/streams/")
    assert b"".join(response.streaming_content) == b"abc"
    assert "server-side cursor" in told(caplog)[0]


@pytest.mark.usefixtures("calm")
def test_a_cursor_of_the_attempt_that_did_not_fit_is_not_left_to_the_garbage_collector() -> None:
    Note.objects.bulk_create(Note(text=letter) for letter in "abc")
    opened: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def view(request: HttpRequest) -> StreamingHttpResponse:
        alive.extend(rows() is not None for rows in opened)
        rows = Note.objects.order_by("pk").iterator(chunk_size=1)
        next(rows)
        opened.append(weakref.ref(rows))
        return StreamingHttpResponse(note.text for note in rows)

    (pattern,) = retry_requests([path("", view)])
    match = pattern.resolve("")
    gc.disable()
    try:
        match.func(RequestFactory().get("/"))  # type: ignore[union-attr]
    finally:
        gc.enable()
    assert alive == [False]


def called_alone(view: Callable[..., Any], method: str, **options: Any) -> Any:
    (pattern,) = retry_requests([path("", view)], **options)
    match: Any = pattern.resolve("")
    return lambda: match.func(RequestFactory().generic(method, "/"))


def begins_durably() -> None:
    with atomic(durable=True):
        Note.objects.count()


def vacuums() -> None:
    with connection.cursor() as cursor:
        cursor.execute("VACUUM pg_catalog.pg_language")


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(("method", "methods"), [("GET", "safe"), ("POST", "all")])
@pytest.mark.parametrize("work", [begins_durably, vacuums])
def test_what_cannot_be_part_of_a_transaction_is_run_as_before(
    work: Callable[[], None], method: str, methods: str, caplog: pytest.LogCaptureFixture
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        work()
        return HttpResponse("done")

    assert called_alone(view, method, methods=methods)().content == b"done"
    assert "@no_retry" in told(caplog)[0]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(("method", "methods"), [("GET", "safe"), ("POST", "all")])
def test_what_was_written_to_another_database_is_not_written_again(
    method: str, methods: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    other = make_database(server)
    with connections[other].cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE written (number int)")

    def view(request: HttpRequest) -> HttpResponse:
        with connections[other].cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (1)")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(8), pg_advisory_unlock(8)")
        return HttpResponse(str(Note.objects.create(text="x").pk))

    call = called_alone(view, method, methods=methods)
    with pytest.raises(TransactionManagementError, match=f"written to '{other}'"):
        call()
    assert call().status_code == 200
    with connections[other].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM written")
        assert cursor.fetchone() == (2,)
    assert texts() == ["x"]


@pytest.mark.usefixtures("calm")
def test_a_session_lock_is_not_released_before_its_transaction_ends(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.post("/all/locks/").content == b"False"
    assert texts() == ["locked"]
    assert "pg_advisory_xact_lock()" in told(caplog)[0]


@pytest.mark.usefixtures("calm")
def test_inside_a_transaction_of_a_middleware_s_the_view_is_called_as_before(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with atomic():
        assert client.get("/read/").content == b"off True 1"
        client.get("/read/")
    [sentence] = told(caplog)
    assert "atomic block" in sentence


def test_an_error_that_no_attempt_gets_over_reaches_middleware_as_it_is(
    client: Client, attempts: Attempts
) -> None:
    attempts.times = 100
    attempts.fail = lambda: fail_with("40001")
    with pytest.raises(OperationalError) as raised:
        client.get("/read/")
    assert raised.value.__cause__.sqlstate == "40001"  # type: ignore[union-attr]
    assert attempts.number == 10


def test_asgi_serves_the_same(client: Client) -> None:
    from asgiref.sync import async_to_sync

    async def ask() -> bytes:
        response = await AsyncClient().get("/read/")
        return response.content

    assert async_to_sync(ask)() == b"on True 2"


class InTestCase(TestCase):
    def test_a_test_case_s_own_transaction_is_joined(self) -> None:
        from tests.support.attempts import attempts

        attempts.reset()
        attempts.times = 0
        with self.settings(ROOT_URLCONF="tests.integration.views.urls"):
            assert self.client.get("/read/").content == b"off True 1"
            assert self.client.post("/all/write/").content == b"True 2"
