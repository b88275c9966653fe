"""Context variables, which a middleware may read when the view has returned."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from django.db.models.signals import post_save
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from tests.app.models import Note
from tests.support.attempts import Attempts, attempts, retried

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.replay.test_context_variables"),
    pytest.mark.usefixtures("attempts"),
]

queue: ContextVar[Any] = ContextVar("queue")
tenant: ContextVar[str] = ContextVar("tenant", default="none")
unset: ContextVar[list[int]] = ContextVar("unset")
sent: list[Any] = []


@contextmanager
def setting(variable: ContextVar[Any], value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def webhooks(get_response: Any) -> Any:
    """A middleware that sends webhooks for what receivers of signals have put into a queue."""

    def middleware(request: HttpRequest) -> Any:
        with setting(queue, {}):
            response = get_response(request)
            sent.append(queue.get())
            return response

    return middleware


def note_saved(instance: Note, **kwargs: object) -> None:
    events = queue.get()
    events.setdefault("notes", []).append({"text": instance.text, "tags": []})
    events["notes"][-1]["tags"].append(attempts.number)


@retried
def create(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text="one")
    return HttpResponse(f"attempt {attempts.done()}")


urlpatterns = [path("create/", create)]


@pytest.fixture
def receiver() -> Iterator[None]:
    post_save.connect(note_saved, sender=Note)
    sent.clear()
    yield
    post_save.disconnect(note_saved, sender=Note)


@pytest.mark.usefixtures("receiver")
def test_webhooks_are_sent_for_rows_that_are_committed_alone(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.webhooks"]
    assert Client().get("/create/").content == b"attempt 2"
    assert sent == [{"notes": [{"text": "one", "tags": [1]}]}]


@pytest.mark.parametrize(
    "before",
    [[1, [2]], {"a": {1}}, {1, 2}, ({"in": []},), list(range(5000))],
    ids=["list", "dict", "set", "tuple", "long"],
)
def test_a_container_in_a_variable_is_as_before(before: Any, attempts: Attempts) -> None:
    @retried
    def change() -> None:
        held = queue.get()
        attempts.see(repr(held))
        if isinstance(held, list):
            held.append(3)
            if isinstance(held[1], list):
                held[1].append(4)
        elif isinstance(held, dict):
            held["a"].add(2)
            held["b"] = 1
        elif isinstance(held, set):
            held.add(3)
        else:
            held[0]["in"].append(1)
        attempts.done()

    with setting(queue, before):
        change()
    assert attempts.same


def test_a_variable_that_an_attempt_has_set_is_as_before(attempts: Attempts) -> None:
    @retried
    def change() -> None:
        attempts.see(tenant.get())
        tenant.set(f"attempt {attempts.number + 1}")
        attempts.done()

    with setting(tenant, "three"):
        change()
        # What the attempt that succeeded has set stays.
        assert tenant.get() == "attempt 2"
    assert attempts.seen == ["three", "three"]


def test_a_variable_without_a_value_gets_its_default_or_is_emptied(attempts: Attempts) -> None:
    @retried
    def change() -> None:
        attempts.see((tenant.get(), list(unset.get([]))))
        tenant.set("set")
        unset.set([*unset.get([]), 1])
        attempts.done()

    Context().run(change)
    assert attempts.seen == [("none", []), ("none", [])]
