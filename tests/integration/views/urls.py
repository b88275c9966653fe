"""A site of which every view is retried by one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin, messages
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from django_pooled import no_retry, retry_transaction
from django_pooled.urls import retry_requests
from tests.app.models import Counter, Note
from tests.support.attempts import QUICK, attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

site = admin.AdminSite(name="notes")
site.register(Note)


def setting(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        value: str = cursor.fetchone()[0]
        return value


def read(request: HttpRequest) -> HttpResponse:
    """Answer with what kind of transaction this is."""
    read_only, in_block = setting("transaction_read_only"), connection.in_atomic_block
    return HttpResponse(f"{read_only} {in_block} {attempts.done()}")


@csrf_exempt
def write(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text=request.method or "")
    return HttpResponse(f"{connection.in_atomic_block} {attempts.done()}")


@no_retry
def left_alone(request: HttpRequest) -> HttpResponse:
    return read(request)


@transaction.non_atomic_requests
def non_atomic(request: HttpRequest) -> HttpResponse:
    return read(request)


@retry_transaction(backoff=QUICK, read_only=False)
def decorated(request: HttpRequest) -> HttpResponse:
    return read(request)


class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return read(request)

    def post(self, request: HttpRequest) -> HttpResponse:
        return write(request)


class LeavesGetAlone(Page):
    @no_retry
    def get(self, request: HttpRequest) -> HttpResponse:
        return read(request)


class Subclass(LeavesGetAlone):
    pass


@method_decorator(no_retry, name="dispatch")
class LeavesDispatchAlone(Page):
    pass


@no_retry
class LeftAlone(Page):
    pass


class DecoratesGet(Page):
    @method_decorator(retry_transaction(backoff=QUICK, read_only=False))
    def get(self, request: HttpRequest) -> HttpResponse:
        return read(request)


def late(request: HttpRequest) -> TemplateResponse:
    """Query as the template is rendered, when the view has returned."""
    template = engines["django"].from_string(
        "{% for note in notes %}{{ note }} {% endfor %}{{ attempt }}"
    )
    notes = Note.objects.order_by("pk")
    return TemplateResponse(request, template, {"notes": notes, "attempt": attempts.done})


def late_write(request: HttpRequest) -> TemplateResponse:
    template = engines["django"].from_string("{{ create.pk }}")
    return TemplateResponse(request, template, {"create": lambda: Note.objects.create(text="t")})


def greeted(request: HttpRequest) -> HttpResponse:
    """Write in a GET, after a message that must not be shown twice."""
    messages.info(request, "hello")
    attempts.number += 1
    Note.objects.create(text="greeted")
    return HttpResponse(" ".join(message.message for message in messages.get_messages(request)))


def swallows(request: HttpRequest) -> HttpResponse:
    """Write in a GET, and go on if that fails."""
    try:
        with transaction.atomic():
            Note.objects.create(text="swallowed")
    except Exception:
        return HttpResponse("failed")
    return HttpResponse("written")


def streams(request: HttpRequest) -> StreamingHttpResponse:
    """Read the first row of a server-side cursor before the response, and the rest in it."""
    rows = Note.objects.order_by("pk").iterator(chunk_size=1)
    first = next(rows)

    def body() -> Iterator[str]:
        yield first.text
        for note in rows:
            yield note.text

    return StreamingHttpResponse(body())


def locks(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
        Note.objects.create(text="locked")
        cursor.execute("SELECT pg_advisory_unlock(7)")
    return HttpResponse(str(connection.in_atomic_block))


def fails(request: HttpRequest) -> HttpResponse:
    Counter.objects.create(name="same")
    Counter.objects.create(name="same")
    return HttpResponse()


patterns: list[Any] = [
    path("read/", read, name="read"),
    path("write/", write, name="write"),
    path("left-alone/", left_alone),
    path("non-atomic/", non_atomic),
    path("decorated/", decorated),
    path("page/", Page.as_view(), name="page"),
    path("leaves-get-alone/", LeavesGetAlone.as_view()),
    path("subclass/", Subclass.as_view()),
    path("leaves-dispatch-alone/", LeavesDispatchAlone.as_view()),
    path("left-alone-class/", LeftAlone.as_view()),
    path("decorates-get/", DecoratesGet.as_view()),
    path("late/", late),
    path("late-write/", late_write),
    path("greeted/", greeted),
    path("swallows/", swallows),
    path("streams/", streams),
    path("locks/", locks),
    path("fails/", fails),
    path("lazy/", include("tests.integration.views.lazily_included")),
    path("admin/", site.urls),
]
urlpatterns = [
    *retry_requests(
        [*patterns, *i18n_patterns(path("translated/", read, name="translated"))], backoff=QUICK
    ),
    path("all/", include((retry_requests(patterns, methods="all", backoff=QUICK), "all"))),
    path("unsafe/", include((retry_requests(patterns, methods="unsafe", backoff=QUICK), "unsafe"))),
    path("bare/", include((patterns, "bare"))),
]
