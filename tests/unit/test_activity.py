"""What a thread is busy with, told from its own stack."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery  # type: ignore[import-untyped]
from django.core.management import BaseCommand, call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.views import View

from django_pooled.activity import NOT_YET, current, is_task, name_of
from django_pooled.diagnostics.call_site import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable


class Looked:
    """What a thread finds out about itself."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def look(self) -> None:
        self.seen.append(whereabouts()[1])


looked = Looked()


@pytest.fixture(autouse=True)
def nothing_seen_yet() -> None:
    looked.seen.clear()


def cast(request: HttpRequest) -> HttpResponse:
    looked.look()
    return HttpResponse()


class Cast(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        looked.look()
        return HttpResponse()


def before_the_view(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        looked.look()
        return get_response(request)

    return middleware


urlpatterns = [path("function/", cast), path("class/", Cast.as_view())]


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(("address", "view"), [("/function/", "cast"), ("/class/", "Cast")])
def test_a_request_is_named_by_its_view(address: str, view: str) -> None:
    assert Client().get(address).status_code == 200
    assert looked.seen == [f"{__name__}.{view}"]


@pytest.mark.urls(__name__)
def test_before_its_view_is_known_a_request_has_no_name(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.before_the_view"]
    Client().get("/function/")
    assert looked.seen == [NOT_YET, f"{__name__}.cast"]


def test_a_task_of_celery_is_named() -> None:
    app = Celery("votes", broker="memory://", set_as_current=False)
    task = app.task(looked.look, name="votes.tasks.count")
    task.apply(throw=True)
    assert looked.seen == ["celery votes.tasks.count"]


def test_a_task_of_huey_is_named_and_is_a_task() -> None:
    huey = pytest.importorskip("huey", reason="huey is not installed")

    @huey.MemoryHuey(immediate=True).task()  # type: ignore[untyped-decorator,unused-ignore]
    def count() -> bool:
        looked.look()
        return is_task()

    assert count().get() is True
    assert looked.seen == [f"huey {__name__}.count"]


def test_a_task_of_dramatiq_is_named_and_is_a_task() -> None:
    dramatiq = pytest.importorskip("dramatiq", reason="dramatiq is not installed")
    broker = pytest.importorskip("dramatiq.brokers.stub").StubBroker()
    kinds: list[bool] = []

    @dramatiq.actor(broker=broker, actor_name="votes.count")  # type: ignore[untyped-decorator,unused-ignore]
    def count() -> None:
        looked.look()
        kinds.append(is_task())

    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        count.send()
        broker.join(count.queue_name)
    finally:
        worker.stop()
    assert looked.seen == ["dramatiq votes.count"]
    assert kinds == [True]


class Command(BaseCommand):
    def handle(self, *args: Any, **options: Any) -> None:
        looked.look()


def test_a_command_is_named() -> None:
    call_command(Command())
    assert looked.seen == ["manage.py test_activity"]


def test_any_other_thread_has_no_name() -> None:
    looked.look()
    assert looked.seen == [None]


def test_the_name_that_code_was_given_comes_before_its_stack() -> None:
    token = current.set("votes.views.count")
    try:
        assert whereabouts()[1] == "votes.views.count"
    finally:
        current.reset(token)


@pytest.mark.parametrize(
    ("function", "name"),
    [(cast, "cast"), (Cast.as_view(), "Cast"), (Cast.get, "Cast.get"), (Looked(), "Looked")],
)
def test_callables_are_named_by_module_and_name(function: Any, name: str) -> None:
    assert name_of(function) == f"{__name__}.{name}"


def test_a_partial_is_named_by_its_kind() -> None:
    assert name_of(partial(cast)) == "functools.partial"
