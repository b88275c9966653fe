from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import F
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import TemplateResponse
from django.test import RequestFactory, TestCase
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject
from django.views import View

from django_pooled import Backoff, retry_transaction, run_transaction
from django_pooled.testing import fail_next_transaction
from django_pooled.tokens.idempotency import KEY_SWEEP
from django_pooled.tokens.models import IdempotencyKey
from tests.app.models import Counter, Note
from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = Backoff(initial=0.001, maximum=0.002)
make = RequestFactory()
keyed = retry_transaction(idempotency_key="Idempotency-Key", backoff=QUICK)


def pay(request: HttpRequest) -> HttpResponse:
    """Write one row, and answer with its number."""
    note = Note.objects.create(text=request.POST.get("amount", "nothing"))
    response = JsonResponse({"payment": note.pk}, status=201)
    response["Location"] = f"/payments/{note.pk}/"
    response["Connection"] = "close"
    response.set_cookie("receipt", "secret")
    return response


def request_with(key: str | None = '"a-key"', amount: str = "7", path: str = "/pay/?now=1") -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return make.post(path, {"amount": amount}, headers=headers)


def counted() -> dict[str, int]:
    pool = snapshot_of("default")
    return dict(pool.counters.idempotency_keys)


def test_a_repeat_gets_the_stored_response() -> None:
    first, second = (keyed(pay)(request_with()) for _ in range(2))
    assert Note.objects.count() == 1
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert "Idempotency-Replayed" not in first
    assert second["Idempotency-Replayed"] == "true"
    assert second["Location"] == first["Location"]
    assert second["Content-Type"] == "application/json"


def test_a_replay_has_no_cookies_and_nothing_about_the_connection() -> None:
    keyed(pay)(request_with())
    replay = keyed(pay)(request_with())
    assert not replay.cookies
    assert "Connection" not in replay
    row = IdempotencyKey.objects.get()
    assert "secret" not in str(row.headers)


@pytest.mark.parametrize("kind", [HttpResponseRedirect, HttpResponsePermanentRedirect])
def test_a_replayed_redirect_is_one_for_middleware_and_tests_too(kind: type[Any]) -> None:
    class ToAnApp(kind):  # type: ignore[misc]
        allowed_schemes = ("shop",)

    view = keyed(lambda request: ToAnApp("shop://thanks/7"))
    first, replay = (view(request_with()) for _ in range(2))
    assert replay["Idempotency-Replayed"] == "true"
    assert isinstance(replay, kind)
    assert replay.status_code == first.status_code
    assert replay.url == "shop://thanks/7"


def test_an_answer_with_the_status_of_a_redirect_needs_no_address() -> None:
    view = keyed(lambda request: HttpResponse("nowhere", status=302))
    first, replay = (view(request_with()) for _ in range(2))
    assert (replay.status_code, replay.content) == (first.status_code, first.content)
    assert not hasattr(replay, "url")


def test_nothing_in_the_table_or_the_log_tells_the_key(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "django_pooled"):
        keyed(pay)(request_with("a-secret-key"))
        keyed(pay)(request_with("a-secret-key"))
    row = IdempotencyKey.objects.get()
    assert b"a-secret-key" not in bytes(row.digest)
    assert "a-secret-key" not in caplog.text
    assert f"idempotency key {row!s}: the stored response is sent again" in caplog.text


def test_a_key_with_quotes_and_the_same_without_are_one() -> None:
    for key in ("8e03978e", '"8e03978e"', '"8e03978e";v=2'):
        keyed(pay)(request_with(key))
    assert Note.objects.count() == 1


def test_another_key_is_another_request() -> None:
    for key in ("one", "two"):
        assert "Idempotency-Replayed" not in keyed(pay)(request_with(key))
    assert Note.objects.count() == 2


def test_a_request_without_a_key_is_run_each_time() -> None:
    for _ in range(2):
        assert keyed(pay)(request_with(None)).status_code == 201
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (2, 0)


def test_a_missing_key_is_refused_where_one_is_required() -> None:
    view = retry_transaction(idempotency_key="Idempotency-Key", idempotency_required=True)(pay)
    refused = view(request_with(None))
    assert refused.status_code == 400
    assert refused["Content-Type"] == "application/problem+json"
    assert b"Idempotency-Key is missing" in refused.content
    assert view(request_with()).status_code == 201
    # It has no effect that could be repeated.
    assert view(make.get("/pay/")).status_code == 201


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        "   ",
        "x" * 256,
        '"' + "x" * 256 + '"',
        '"unended',
        "two words",
        '"one", "two"',
        "a\x07b",
        '"caf\xe9"',
        '"a\\b"',
    ],
)
def test_a_bad_key_is_refused(key: str) -> None:
    refused = keyed(pay)(request_with(key))
    assert refused.status_code == 400
    assert b"not valid" in refused.content
    assert Note.objects.count() == 0


@pytest.mark.parametrize("key", ["x" * 255, '"a \\"quoted\\" \\\\ key"', "Zm9v+/=_-.:;"])
def test_an_odd_key_is_a_key(key: str) -> None:
    for _ in range(2):
        assert keyed(pay)(request_with(key)).status_code == 201
    assert Note.objects.count() == 1


def test_another_request_under_the_key_is_refused() -> None:
    keyed(pay)(request_with())
    for other in (
        request_with(amount="8"),
        request_with(path="/pay/?now=2"),
        make.put("/pay/?now=1", {"amount": "7"}, headers={"Idempotency-Key": "a-key"}),
        make.post(
            "/pay/?now=1", "amount=7", content_type="text/plain",
            headers={"Idempotency-Key": "a-key"},
        ),
    ):  # fmt: skip
        assert keyed(pay)(other).status_code == 422
    assert Note.objects.count() == 1
    assert keyed(pay)(request_with()).status_code == 201


def test_values_that_spell_another_field_are_another_request() -> None:
    form = "application/x-www-form-urlencoded"
    statuses = [
        keyed(pay)(
            make.post("/", body, content_type=form, headers={"Idempotency-Key": "a-key"})
        ).status_code
        for body in ("amount=7&amount=field&amount=tip&amount=2", "amount=7&tip=2")
    ]
    assert statuses == [201, 422]


def test_a_form_with_another_boundary_is_the_same_request_by_any_method() -> None:
    def upload(boundary: str, quote: str = "", amount: str = "7") -> HttpRequest:
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="amount"\r\n\r\n{amount}'
        return make.generic(
            "PATCH", "/pay/", f"{part}\r\n--{boundary}--\r\n".encode(),
            f"multipart/form-data; boundary={quote}{boundary}{quote}",
            headers={"Idempotency-Key": "a-key"},
        )  # fmt: skip

    view = keyed(pay)
    assert view(upload("one")).status_code == 201
    assert view(upload("two+2", quote='"'))["Idempotency-Replayed"] == "true"
    assert view(upload("one", amount="8")).status_code == 422


def test_a_replay_has_the_reason_phrase_of_the_view() -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("queued", status=202, reason="In The Queue", headers={"X-Place": "3"})

    first, second = view(request_with()), view(request_with())
    assert second["Idempotency-Replayed"] == "true"
    assert first.reason_phrase == second.reason_phrase == "In The Queue"
    assert {*second.headers} - {*first.headers} == {"Idempotency-Replayed"}


def test_a_form_with_another_boundary_and_csrf_token_is_the_same_request() -> None:
    def upload(boundary: str, token: str, content: bytes = b"a picture") -> HttpRequest:
        parts = [
            f'Content-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n{token}'.encode(),
            b'Content-Disposition: form-data; name="amount"\r\n\r\n7',
            b'Content-Disposition: form-data; name="paper"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n" + content,
        ]
        line = f"--{boundary}\r\n".encode()
        body = b"".join(line + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
        return make.generic(
            "POST", "/pay/", body, f"multipart/form-data; boundary={boundary}",
            headers={"Idempotency-Key": "a-key"},
        )  # fmt: skip

    seen = []

    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        file: Any = request.FILES["paper"]
        seen.append(file.read())
        return pay(request)

    assert view(upload("one", "x" * 64)).status_code == 201
    assert view(upload("two", "y" * 64))["Idempotency-Replayed"] == "true"
    assert view(upload("two", "y" * 64, b"another picture")).status_code == 422
    assert seen == [b"a picture"]


def test_each_attempt_of_a_request_with_a_key_reads_its_body() -> None:
    seen = []

    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        file: Any = request.FILES["paper"]
        seen.append((request.POST["amount"], file.read()))
        return pay(request)

    paper = SimpleUploadedFile("a.txt", b"paper", "text/plain")
    request = make.post("/", {"amount": "7", "paper": paper}, headers={"Idempotency-Key": "a"})
    with fail_next_transaction("40001"):
        assert view(request).status_code == 201
    assert seen == [("7", b"paper")] * 2
    assert Note.objects.count() == 1


def test_keys_of_different_users_have_nothing_to_do_with_each_other() -> None:
    users = [User.objects.create(username=name) for name in ("ann", "bob")]
    for user in users * 2:
        request = request_with()
        request.user = user
        keyed(pay)(request)
    assert Note.objects.count() == 2


@pytest.mark.parametrize("header", ["Authorization"])
def test_keys_of_clients_that_the_view_itself_tells_apart_are_different(header: str) -> None:
    for credentials in ("Token a", "Token b", "Token a"):
        request = make.post("/", headers={"Idempotency-Key": "a-key", header: credentials})
        request.user = AnonymousUser()
        keyed(pay)(request)
    assert Note.objects.count() == 2


def test_a_callable_says_whose_key_it_is() -> None:
    view = retry_transaction(
        idempotency_key="Idempotency-Key", idempotency_scope=lambda request: request.GET["shop"]
    )(pay)
    for shop in ("a", "b", "a"):
        response = view(request_with(path=f"/?shop={shop}"))
        assert response.status_code == 201
    assert Note.objects.count() == 2


def test_a_callable_says_what_the_key_is() -> None:
    view = retry_transaction(idempotency_key=lambda request: request.POST.get("key"))(pay)
    for _ in range(2):
        assert view(make.post("/", {"key": "of the form", "amount": "1"})).status_code == 201
    assert Note.objects.count() == 1
    view(make.post("/", {"amount": "1"}))
    assert Note.objects.count() == 2
    assert view(make.post("/", {"key": "of\nthe form"})).status_code == 400


def test_an_expired_key_is_used_anew() -> None:
    first = keyed(pay)(request_with())
    IdempotencyKey.objects.update(expires_at=F("created_at") - timedelta(seconds=1))
    second = keyed(pay)(request_with(amount="8"))
    assert "Idempotency-Replayed" not in second
    assert first.content != second.content
    assert Note.objects.count() == 2
    assert keyed(pay)(request_with(amount="8")).content == second.content


def test_a_key_lives_as_long_as_the_argument_says() -> None:
    retry_transaction(idempotency_key="Idempotency-Key", idempotency_expiry=3600.0)(pay)(
        request_with()
    )
    row = IdempotencyKey.objects.get()
    assert row.expires_at - row.created_at == timedelta(hours=1)


def test_expired_keys_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        keyed(pay)(request_with(f"old-{number}"))
    IdempotencyKey.objects.update(expires_at=F("created_at") - timedelta(seconds=1))
    monkeypatch.setattr(KEY_SWEEP, "swept_at", {})
    monkeypatch.setattr(KEY_SWEEP, "at_once", 2)
    left = []
    for number in range(3):
        keyed(pay)(request_with(f"new-{number}"))
        left.append(IdempotencyKey.objects.filter(expires_at__lt=F("created_at")).count())
    assert left == [1, 0, 0]


class Gate:
    """A view that waits in the middle of its work."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.runs = 0
        self.error: Exception | None = None

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.runs += 1
        response = pay(request)
        if self.runs == 1:
            self.entered.set()
            assert self.go_on.wait(30)
            if self.error is not None:
                raise self.error
        return response


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_a_repeat_that_comes_meanwhile_waits_for_the_first_without_a_connection() -> None:
    gate = Gate()
    paused = threading.Event()
    in_use = []

    def sleep(seconds: float) -> None:
        pool = snapshot_of("default")
        in_use.append(pool.in_use)
        if len(in_use) == 3:
            gate.go_on.set()
        paused.wait(seconds)

    view = retry_transaction(idempotency_key="Idempotency-Key", sleep=sleep)(gate)
    connections.close_all()
    first, answers = in_thread(lambda: view(request_with()))
    assert gate.entered.wait(30)
    second = view(request_with())
    first.join()
    assert second["Idempotency-Replayed"] == "true"
    assert second.content == answers[0].content
    assert (gate.runs, Note.objects.count()) == (1, 1)
    assert set(in_use[:3]) == {1}
    assert counted()["replayed"] >= 1


def test_a_repeat_does_the_work_if_the_first_fails_meanwhile() -> None:
    gate = Gate()
    gate.error = ValueError("no money")

    def sleep(seconds: float) -> None:
        gate.go_on.set()
        threading.Event().wait(seconds)

    view = retry_transaction(idempotency_key="Idempotency-Key", sleep=sleep)(gate)
    first, answers = in_thread(lambda: view(request_with()))
    assert gate.entered.wait(30)
    second = view(request_with())
    first.join()
    assert isinstance(answers[0], ValueError)
    assert "Idempotency-Replayed" not in second
    assert (gate.runs, Note.objects.count()) == (2, 1)


def test_a_repeat_that_cannot_wait_any_longer_gets_409() -> None:
    gate = Gate()
    view = retry_transaction(idempotency_key="Idempotency-Key", deadline=0.2)(gate)
    before = counted().get("conflict", 0)
    first, answers = in_thread(lambda: view(request_with()))
    assert gate.entered.wait(30)
    second = view(request_with())
    gate.go_on.set()
    first.join()
    assert second.status_code == 409
    assert int(second["Retry-After"]) > 0
    assert answers[0].status_code == 201
    assert (gate.runs, Note.objects.count()) == (1, 1)
    assert counted()["conflict"] == before + 1


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_row_committed_after_the_snapshot_is_replayed_at_each_level(level: int) -> None:
    from psycopg import IsolationLevel

    began, committed = threading.Event(), threading.Event()

    def scope(request: HttpRequest) -> str:
        # The second one has its snapshot before the first has committed.
        if threading.current_thread() is not threading.main_thread():
            Note.objects.count()
            began.set()
            assert committed.wait(30)
        return "all"

    view = retry_transaction(
        idempotency_key="Idempotency-Key",
        idempotency_scope=scope,
        isolation_level=IsolationLevel(level),
        backoff=QUICK,
    )(pay)
    thread, answers = in_thread(lambda: view(request_with()))
    assert began.wait(30)
    first = view(request_with())
    committed.set()
    thread.join()
    assert answers[0]["Idempotency-Replayed"] == "true"
    assert answers[0].content == first.content
    assert Note.objects.count() == 1


def test_an_exception_stores_nothing_and_a_repeat_runs_again() -> None:
    runs = []

    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        runs.append(request)
        response = pay(request)
        if len(runs) == 1:
            raise IntegrityError("no")
        return response

    with pytest.raises(IntegrityError):
        view(request_with())
    assert IdempotencyKey.objects.count() == 0
    assert view(request_with()).status_code == 201
    assert Note.objects.count() == 1


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_response_that_is_returned_is_stored_with_what_was_committed(status: int) -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        pay(request)
        return HttpResponse("no", status=status)

    for _ in range(2):
        assert view(request_with()).status_code == status
    assert Note.objects.count() == 1


def test_what_is_rolled_back_on_request_is_not_stored() -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        pay(request)
        transaction.set_rollback(True)
        return HttpResponse("later", status=429)

    for _ in range(2):
        assert "Idempotency-Replayed" not in view(request_with())
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (0, 0)


def test_an_answer_to_a_broken_transaction_is_not_stored() -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        pay(request)
        try:
            Note.objects.create(text="again", key=Note.objects.get().key)
        except IntegrityError:
            return HttpResponse("conflict", status=409)
        raise AssertionError

    for _ in range(2):
        response = view(request_with())
        assert (response.status_code, response.content) == (409, b"conflict")
        assert "Idempotency-Replayed" not in response
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (0, 0)


def test_a_template_response_is_rendered_in_the_transaction(settings: Any) -> None:
    settings.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    template = engines["django"].from_string("{% for note in notes %}{{ note }}{% endfor %}")

    @keyed
    def view(request: HttpRequest) -> TemplateResponse:
        pay(request)
        return TemplateResponse(request, template, {"notes": Note.objects.all()})

    first, second = view(request_with()), view(request_with())
    assert first.content == second.content == b"7"
    assert second["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "response",
    [
        lambda: StreamingHttpResponse([b"a"]),
        lambda: FileResponse(open(__file__, "rb")),  # noqa: SIM115
        lambda: "text",
        lambda: None,
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_committed(
    response: Callable[[], Any],
) -> None:
    @keyed
    def view(request: HttpRequest) -> Any:
        pay(request)
        return response()

    with pytest.raises(TypeError, match=r"idempotency_key: .*view returned a"):
        view(request_with())
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (0, 0)


def test_a_response_that_is_too_large_is_refused_before_anything_is_committed() -> None:
    size = 1 << 20

    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        pay(request)
        return HttpResponse(b"x" * size)

    for _ in range(2):
        assert len(view(request_with()).content) == size
    size += 1
    with pytest.raises(ValueError, match="1,048,577 bytes"):
        view(request_with("another"))
    assert Note.objects.count() == 1


def test_a_repeat_after_a_lost_answer_to_commit_is_not_marked_as_a_replay() -> None:
    called_back = []

    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        transaction.on_commit(lambda: called_back.append(1))
        return pay(request)

    with fail_next_transaction(None, phase="answer") as fault:
        response = view(request_with())
    assert fault.struck == 1
    assert "Idempotency-Replayed" not in response
    assert (Note.objects.count(), called_back) == (1, [1])


def test_a_class_based_view_is_decorated_on_dispatch() -> None:
    @method_decorator(keyed, name="dispatch")
    class Pay(View):
        def post(self, request: HttpRequest) -> HttpResponse:
            return pay(request)

    for _ in range(2):
        response = Pay.as_view()(request_with())
        assert response.status_code == 201
    assert response["Idempotency-Replayed"] == "true"


def test_a_decorated_view_within_another_stores_its_response_in_that_transaction() -> None:
    inner = keyed(pay)

    @retry_transaction
    def outer(request: HttpRequest, fails: bool = False) -> HttpResponse:
        response = inner(request)
        if fails:
            raise ValueError
        return response

    with pytest.raises(ValueError):  # noqa: PT011
        outer(request_with(), fails=True)
    assert "Idempotency-Replayed" not in outer(request_with())
    assert outer(request_with())["Idempotency-Replayed"] == "true"
    assert Note.objects.count() == 1


def test_an_error_response_of_a_view_within_another_is_stored_if_that_one_commits() -> None:
    @keyed
    def inner(request: HttpRequest) -> HttpResponse:
        response = HttpResponse(str(pay(request).status_code), status=400)
        # As Django REST framework says that it was made of an exception.
        response.exception = True  # type: ignore[attr-defined]
        return response

    @retry_transaction
    def outer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(inner(request).status_code))

    assert [outer(request_with()).content for _ in range(2)] == [b"400", b"400"]
    assert Note.objects.count() == 1
    assert inner(request_with())["Idempotency-Replayed"] == "true"


def test_a_view_within_another_that_has_the_same_key_is_part_of_it() -> None:
    class Payments(View):
        @method_decorator(keyed)
        def dispatch(self, *args: Any, **kwargs: Any) -> Any:
            return super().dispatch(*args, **kwargs)

        def post(self, request: HttpRequest) -> HttpResponse:
            return pay(request)

    @method_decorator(keyed, name="dispatch")
    class Gifts(Payments):
        pass

    view: Any = Gifts.as_view()
    first, second = (view(request_with()) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert second["Idempotency-Replayed"] == "true"
    assert second.content == first.content
    assert Note.objects.count() == 1
    assert IdempotencyKey.objects.count() == 1


def test_the_first_request_costs_two_statements_and_a_replay_two_in_all(
    django_assert_num_queries: Any,
) -> None:
    keyed(pay)(request_with("warm"))
    with django_assert_num_queries(5):  # BEGIN, the key, the view's own, the response, COMMIT
        keyed(pay)(request_with())
    with django_assert_num_queries(4):
        keyed(pay)(request_with())


class PayTests(TestCase):
    def test_a_repeat_is_replayed_within_a_test_case(self) -> None:
        assert keyed(pay)(request_with()).status_code == 201
        assert keyed(pay)(request_with())["Idempotency-Replayed"] == "true"
        assert Note.objects.count() == 1


def test_what_is_no_view_is_refused() -> None:
    with pytest.raises(TypeError, match="idempotency_key is for views"):
        keyed(lambda amount: amount)(7)
    with pytest.raises(TypeError, match="idempotency_key is for views"):
        run_transaction(lambda: None, idempotency_key="Idempotency-Key")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"idempotency_key": "Idempotency Key"}, "name of a header"),
        ({"idempotency_key": ""}, "name of a header"),
        ({"idempotency_key": 7}, "name of a header, or a callable"),
        ({"idempotency_key": "K", "idempotency_required": 1}, "True or False"),
        ({"idempotency_key": "K", "idempotency_scope": "user"}, "a callable"),
        ({"idempotency_key": "K", "idempotency_expiry": "1 day"}, "seconds"),
        ({"idempotency_key": "K", "idempotency_expiry": 30.0}, "seconds above 35"),
        ({"idempotency_key": "K", "idempotency_expiry": 1e13}, "at most 3155760000 seconds"),
        ({"idempotency_key": "K", "idempotency_expiry": float("nan")}, "seconds above 35"),
        ({"idempotency_key": "K", "read_only": True}, "has to store"),
        ({"idempotency_required": True}, "idempotency_required needs idempotency_key"),
        ({"idempotency_scope": str}, "idempotency_scope needs idempotency_key"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        retry_transaction(**options)(pay)


def test_a_callable_that_returns_no_string_is_refused() -> None:
    view = retry_transaction(idempotency_key=lambda request: 7)(pay)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="returned a int"):
        view(request_with())


@pytest.mark.parametrize(
    ("scope", "kind"),
    [(SimpleLazyObject(AnonymousUser), "SimpleLazyObject"), (("shop", 7), "tuple")],
    ids=["user", "tuple"],
)
def test_a_scope_that_may_look_different_in_each_repeat_is_refused(scope: Any, kind: str) -> None:
    view = retry_transaction(
        idempotency_key="Idempotency-Key", idempotency_scope=lambda request: scope
    )(pay)
    with pytest.raises(TypeError, match=f"idempotency_scope returned a {kind}"):
        view(request_with())
    assert Note.objects.count() == 0


def test_without_the_app_call_and_decoration_are_refused(settings: Any) -> None:
    settings.INSTALLED_APPS = [
        app for app in settings.INSTALLED_APPS if app != "django_pooled.tokens"
    ]
    with pytest.raises(ImproperlyConfigured, match=r"add 'django_pooled\.tokens'"):
        keyed(pay)(request_with())
    with pytest.raises(ImproperlyConfigured, match=r"add 'django_pooled\.tokens'"):
        retry_transaction(idempotency_key="Idempotency-Key")


def test_without_the_table_the_call_is_refused() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_pooled_idempotency_key RENAME TO elsewhere")
    try:
        with pytest.raises(ImproperlyConfigured, match="migrate --database default"):
            keyed(pay)(request_with())
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO django_pooled_idempotency_key")
    assert Note.objects.count() == 0


def test_a_transaction_that_changes_its_search_path_and_role_stores_its_response() -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        response = pay(request)
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL search_path TO pg_catalog")
        return response

    for _ in range(2):
        response = view(request_with())
    assert response["Idempotency-Replayed"] == "true"


def test_many_at_once_with_few_keys_are_applied_once_each() -> None:
    @keyed
    def view(request: HttpRequest) -> HttpResponse:
        Counter.objects.get_or_create(name="all")
        Counter.objects.filter(name="all").update(value=F("value") + 1)
        return pay(request)

    calls = [
        in_thread(lambda key=f"key-{number % 3}": view(request_with(key)))  # type: ignore[misc]
        for number in range(12)
    ]
    for thread, _ in calls:
        thread.join()
    assert all(found[0].status_code == 201 for _, found in calls)
    assert len({found[0].content for _, found in calls}) == 3
    assert Note.objects.count() == 3
    assert Counter.objects.get().value == 3
