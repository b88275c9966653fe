"""Async views under the decorator and under the line for a whole site."""

# Ninja looks names in annotations up, so they are no strings here.
# ruff: noqa: I002
import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import aget_user, alogin, alogout
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from django_pooled import AmbiguousCommit, no_retry, retry_transaction
from django_pooled.testing import end_deadlines_at_once, fail_next_transaction
from django_pooled.tokens.models import IdempotencyKey
from django_pooled.urls import retry_requests
from tests.app.models import Note
from tests.sites.common_settings import ADMIN_MIDDLEWARE, ADMIN_TEMPLATES
from tests.support.attempts import QUICK, Attempts, attempts, retried
from tests.support.tasks import run

pytest.importorskip("ninja", reason="Django Ninja is not installed")

from ninja import NinjaAPI

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.retry.test_async_views"),
]

Ask = Callable[..., Any]


def kind_of_transaction() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return f"{cursor.fetchone()[0]} {connection.in_atomic_block}"


async def read(request: HttpRequest) -> HttpResponse:
    kind = await sync_to_async(kind_of_transaction)()
    return HttpResponse(f"{kind} {await sync_to_async(attempts.done)()}")


@csrf_exempt
async def write(request: HttpRequest) -> HttpResponse:
    await Note.objects.acreate(text=request.method or "")
    return await read(request)


@csrf_exempt
async def look(request: Any) -> HttpResponse:
    """See all of a request, and change it."""
    body = request.body.decode() if request.content_type != "multipart/form-data" else ""
    files = {name: file.read().decode() for name, file in request.FILES.items()}
    user = await request.auser()
    session = {key: value async for key, value in items_of(request.session)}
    seen = (request.POST.dict(), body, files, user.pk)
    attempts.see((seen, json.dumps(session), vars(request).get("mark")))
    request.mark = "changed"
    request.POST = {}
    user.first_name += "x"
    await user.asave()
    await request.session.aset("seen", (await request.session.aget("seen", 0)) + 1)
    await request.session.asave()
    await alogout(request)
    await alogin(request, await User.objects.aget(username="grace"))
    return await read(request)


async def items_of(session: Any) -> Any:
    for key in await session.akeys():
        if not key.startswith("_auth"):
            yield key, await session.aget(key)


class Page(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        self.kept = getattr(self, "kept", 0) + 1
        attempts.see(self.kept)
        return await read(request)

    async def post(self, request: HttpRequest) -> HttpResponse:
        return await write(request)


class Decorated(Page):
    @retried
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await super().get(request)


class OwnDispatch(Page):
    @retried
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


@method_decorator(retried, name="dispatch")
class OnDispatch(Page):
    pass


@method_decorator(retried, name="get")
class OnGet(Page):
    pass


class Synchronous(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{kind_of_transaction()} {attempts.done()}")


class PartlyLeftAlone(Page):
    @no_retry
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await read(request)


async def rendered(request: HttpRequest) -> TemplateResponse:
    template = engines["django"].from_string("{{ notes.count }} {{ done }}")
    return TemplateResponse(request, template, {"notes": Note.objects.all(), "done": attempts.done})


async def locks(request: HttpRequest) -> HttpResponse:
    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(7), pg_advisory_unlock(7)")

    await sync_to_async(lock)()
    return await write(request)


api = NinjaAPI(urls_namespace="async-views")


@api.get("/read/")
async def operation(request: HttpRequest) -> str:
    return (await read(request)).content.decode()


@api.post("/pay/")
@retried
async def pay(request: HttpRequest) -> str:
    return (await write(request)).content.decode()


safe_api = NinjaAPI(urls_namespace="async-views-of-a-site")


@safe_api.get("/")
async def of_a_site(request: HttpRequest) -> str:
    return (await read(request)).content.decode()


keyed = retry_transaction(idempotency_key="Idempotency-Key", backoff=QUICK)

urlpatterns = [
    path("function/", retried(write)),
    path("look/", retried(look)),
    path("dispatch/", OnDispatch.as_view()),
    path("own-dispatch/", OwnDispatch.as_view()),
    path("as-view/", retried(Page.as_view())),
    path("method/", Decorated.as_view()),
    path("sync/", method_decorator(retried, name="dispatch")(Synchronous).as_view()),
    path("get/", OnGet.as_view()),
    path("keyed/", keyed(write)),
    path("api/", api.urls),
    *retry_requests(
        [
            path("safe/read/", read),
            path("safe/write/", write),
            path("safe/page/", Page.as_view()),
            path("safe/rendered/", rendered),
            path("safe/api/", safe_api.urls),
            path("safe/partly/", PartlyLeftAlone.as_view()),
        ],
        backoff=QUICK,
    ),
    *retry_requests(
        [path("all/write/", write), path("all/locks/", locks), path("all/keyed/", write)],
        methods="all",
        backoff=QUICK,
    ),
    *retry_requests([path("rehearsed/", write)], methods="all", rehearse=True),
]


@pytest.fixture(autouse=True)
def site(settings: Any, attempts: Attempts) -> Attempts:
    settings.MIDDLEWARE = ADMIN_MIDDLEWARE
    settings.TEMPLATES = ADMIN_TEMPLATES
    connection.close()
    return attempts


@pytest.fixture(params=["asgi", "wsgi"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Send a request by the handler of either kind."""

    def by_asgi(method: str, address: str, **kwargs: Any) -> Any:
        async def send() -> Any:
            return await getattr(AsyncClient(), method)(address, **kwargs)

        return run(send)

    def by_wsgi(method: str, address: str, **kwargs: Any) -> Any:
        return getattr(Client(), method)(address, **kwargs)

    return by_asgi if request.param == "asgi" else by_wsgi


@pytest.mark.parametrize(
    "address", ["dispatch", "own-dispatch", "as-view", "method", "sync", "get"]
)
def test_class_based_views_are_run_again(ask: Ask, address: str, site: Attempts) -> None:
    assert ask("get", f"/{address}/").content == b"off True 2"
    assert address == "sync" or site.same


@pytest.mark.parametrize("atomic_requests", [False, True])
@pytest.mark.parametrize("address", ["function", "dispatch", "api/pay"])
def test_what_writes_is_done_once(
    ask: Ask, address: str, atomic_requests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address == "api/pay" and atomic_requests:
        pytest.skip("Django calls no async view that is in ATOMIC_REQUESTS, as Ninja's own is")
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    assert b"off True 2" in ask("post", f"/{address}/").content
    assert Note.objects.count() == 1


@pytest.mark.parametrize("engine", ["db", "cache"])
@pytest.mark.parametrize("kind", ["form", "multipart"])
def test_each_attempt_sees_the_request_as_the_first_did(
    settings: Any, site: Attempts, engine: str, kind: str
) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    cache.clear()
    ada = User.objects.create_user("ada")
    User.objects.create_user("grace")
    data: Any = {"vote": "tabs"}
    if kind == "multipart":
        data["paper"] = SimpleUploadedFile("paper.txt", b"a ballot")

    async def send() -> Any:
        client = AsyncClient()
        await client.aforce_login(ada)
        session = await client.asession()
        await session.aset("seen", 41)
        await session.asave()
        response = await client.post("/look/", data)
        assert (await aget_user_of(client)).username == "grace"
        return response

    async def aget_user_of(client: AsyncClient) -> Any:
        request = HttpRequest()
        request.session = await client.asession()
        return await aget_user(request)

    assert run(send).content == b"off True 2"
    assert site.same, site.seen
    ada.refresh_from_db()
    assert ada.first_name == "x"


def test_a_request_with_a_key_is_answered_once(ask: Ask) -> None:
    headers = {"Idempotency-Key": '"7"'}
    first = ask("post", "/keyed/", headers=headers)
    second = ask("post", "/keyed/", headers=headers)
    assert first.content == second.content == b"off True 2"
    assert second.headers["Idempotency-Replayed"] == "true"
    assert (Note.objects.count(), IdempotencyKey.objects.count()) == (1, 1)


def test_a_second_request_waits_for_the_first_one_with_its_key(site: Attempts) -> None:
    site.times = 0

    async def send() -> Any:
        headers = {"Idempotency-Key": '"8"'}
        sent = [AsyncClient().post("/keyed/", headers=headers) for _ in range(2)]
        return await asyncio.gather(*sent)

    first, second = run(send)
    assert first.content == second.content
    assert {first.get("Idempotency-Replayed"), second.get("Idempotency-Replayed")} == {None, "true"}
    assert Note.objects.count() == 1


def test_an_unknown_outcome_reaches_the_caller(site: Attempts) -> None:
    site.times = 0

    @retry_transaction(commit_check="raise")
    async def work() -> None:
        await Note.objects.acreate(text="vote")

    with fail_next_transaction(None, phase="answer"), pytest.raises(AmbiguousCommit):
        run(work)


# The line for a whole site


@pytest.mark.parametrize("address", ["read", "page", "api"])
def test_a_get_is_run_again_read_only(ask: Ask, address: str) -> None:
    assert b"on True 2" in ask("get", f"/safe/{address}/").content


def test_a_method_that_is_not_safe_is_called_as_before(ask: Ask, site: Attempts) -> None:
    site.times = 0
    assert ask("post", "/safe/write/").content == b"off False 1"


def test_it_may_be_run_again_too(ask: Ask) -> None:
    assert ask("post", "/all/write/").content == b"off True 2"
    assert Note.objects.count() == 1


def test_a_get_that_writes_is_run_again_without_a_transaction(
    ask: Ask, site: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    site.times = 0
    assert ask("get", "/safe/write/").content == b"off False 1"
    assert Note.objects.count() == 1


def test_a_view_that_locks_is_called_as_before(ask: Ask, site: Attempts) -> None:
    site.times = 0
    assert ask("post", "/all/locks/").content.startswith(b"off False")
    assert Note.objects.count() == 1


def test_a_method_that_is_left_alone_is_called_as_before(ask: Ask, site: Attempts) -> None:
    site.times = 0
    assert ask("get", "/safe/partly/").content == b"off False 1"


def test_a_template_response_is_rendered_in_a_transaction_that_is_run_again(ask: Ask) -> None:
    Note.objects.create(text="vote")
    assert ask("get", "/safe/rendered/").content == b"1 2"


def test_a_rehearsal_runs_a_view_once(
    ask: Ask, site: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    site.times = 0
    assert ask("post", "/rehearsed/").content == b"off True 1"


@pytest.mark.parametrize("address", ["api/read", "safe/read"])
def test_a_deadline_bounds_it(settings: Any, site: Attempts, ask: Ask, address: str) -> None:
    settings.MIDDLEWARE = [
        "django_pooled.middleware.DeadlineMiddleware",
        "django_pooled.middleware.DatabaseUnavailableMiddleware",
    ]
    settings.POOLED_DEADLINE = 60.0
    site.times = 0
    assert ask("get", f"/{address}/").status_code == 200
    with end_deadlines_at_once():
        assert ask("get", f"/{address}/").status_code == 503


# Management commands


class Command(BaseCommand):
    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self.work())

    @retried
    async def work(self) -> None:
        await Note.objects.acreate(text="by a command")
        await sync_to_async(attempts.done)()


def test_a_management_command_runs_its_coroutine_again(site: Attempts) -> None:
    call_command(Command())
    assert site.number == 2
    assert Note.objects.get().text == "by a command"


def test_callbacks_of_a_view_run_once(site: Attempts) -> None:
    called = []

    @retried
    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(transaction.on_commit)(lambda: called.append(attempts.number))
        return await write(request)

    assert run(lambda: view(HttpRequest())).content == b"off True 2"
    assert called == [2]
