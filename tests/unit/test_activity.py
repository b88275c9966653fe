"""What a thread is busy with, told from its stack."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery  # type: ignore[import-untyped]
from django.core.management import BaseCommand, call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.views import View

from django_pooled.activity import (
    STACKS_CAN_BE_READ,
    _by_own_stack,
    activities_of,
    current,
    name_of,
    present,
)

if TYPE_CHECKING:
    from collections.abc import Callable


needs_stacks = pytest.mark.skipif(
    not STACKS_CAN_BE_READ, reason="without the GIL no stack of another thread is read"
)


def activity_of(thread: int) -> str | None:
    [(asked, found)] = activities_of([thread]).items()
    assert asked == thread
    return found


class Looked:
    """What a thread finds by its own stack, and another one by that too, where it can be read."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def look(self) -> None:
        self.seen.append(_by_own_stack())
        if STACKS_CAN_BE_READ:
            with ThreadPoolExecutor(1) as threads:
                found = threads.submit(activity_of, threading.get_ident()).result()
            assert found == self.seen[-1]


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
    assert looked.seen == [None, f"{__name__}.cast"]


def test_a_task_of_celery_is_named() -> None:
    app = Celery("votes", broker="memory://", set_as_current=False)
    task = app.task(looked.look, name="votes.tasks.count")
    task.apply(throw=True)
    assert looked.seen == ["celery votes.tasks.count"]


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
        assert (_by_own_stack(), present()) == ("votes.views.count", "votes.views.count")
    finally:
        current.reset(token)


@needs_stacks
def test_a_thread_that_has_ended_has_no_name() -> None:
    thread = threading.Thread()
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert activity_of(thread.ident) is None


@needs_stacks
def test_the_frames_of_all_threads_are_made_once_for_all_who_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[None] = []
    current_frames = sys._current_frames

    def counted() -> dict[int, Any]:
        made.append(None)
        return current_frames()

    monkeypatch.setattr(sys, "_current_frames", counted)
    assert activities_of([]) == {}
    assert made == []
    mine = threading.get_ident()
    assert activities_of([mine, 0, mine]) == {mine: None, 0: None}
    assert made == [None]


@pytest.mark.parametrize(
    ("function", "name"),
    [(cast, "cast"), (Cast.as_view(), "Cast"), (Cast.get, "Cast.get"), (Looked(), "Looked")],
)
def test_callables_are_named_by_module_and_name(function: Any, name: str) -> None:
    assert name_of(function) == f"{__name__}.{name}"


def test_a_partial_is_named_by_its_kind() -> None:
    assert name_of(partial(cast)) == "functools.partial"


# Threads begin and end and leave rings for the collector, which runs at each allocation, while a
# look is taken at one of them.
COLLECTING = """
import faulthandler, gc, threading
from django_pooled.activity import activities_of

class Ring:
    def __init__(self):
        self.itself, self.local = self, threading.local()
        self.local.value = 1

def make_rings():
    for _ in range(20):
        Ring()

def start_threads():
    while not over.is_set():
        thread = threading.Thread(target=make_rings)
        thread.start()
        thread.join()

# Where the interpreter hangs no signal is handled.
faulthandler.dump_traceback_later(60, exit=True)
gc.set_threshold(1)
over = threading.Event()
threads = [threading.Thread(target=start_threads) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(20_000):
    Ring()
    activities_of([threads[0].ident])
over.set()
print("collects" if gc.isenabled() else "does not collect")
"""


def test_a_look_at_a_thread_does_not_hang_while_garbage_is_collected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTING], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("collects\n", "")


@needs_stacks
def test_a_look_at_a_thread_leaves_collection_off_where_the_project_turned_it_off() -> None:
    gc.disable()
    try:
        assert activity_of(threading.get_ident()) is None
        assert not gc.isenabled()
    finally:
        gc.enable()


FORKING = """
import gc, os, sys, threading
from django_pooled.activity import activities_of

looking, forked = threading.Event(), threading.Event()
current_frames = sys._current_frames

def look():
    looking.set()
    forked.wait()
    return current_frames()

sys._current_frames = look
threading.Thread(target=activities_of, args=([0],)).start()
looking.wait()
child = os.fork()
if child == 0:
    sys._current_frames = current_frames
    activities_of([0])
    os._exit(0 if gc.isenabled() else 1)
forked.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_stacks
def test_a_process_forked_amid_a_look_collects_garbage_and_can_look() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "0\n", done.stderr
