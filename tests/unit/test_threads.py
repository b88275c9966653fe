"""Threads of this package's own: in no context of the code that starts them."""

from __future__ import annotations

import ast
import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import django_pooled
from django_pooled import activity
from django_pooled.activity import current, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(django_pooled.__file__).parent

# Of what a thread finds, if it is started by user code, by ours, and by a worker of a pool.
INHERITS = """
import django, threading
from django.conf import settings
settings.configure(DATABASES={}, USE_TZ=True)
from django_pooled.activity import current, start_thread
from django_pooled.backend.options import parse
from django_pooled.pool.pool import Pool

current.set("the.first.request")
seen = []

def inherited():
    seen.append(current.get())

thread = threading.Thread(target=inherited)
thread.start()
thread.join()
start_thread(inherited, "ours").join()

options = parse("default", {"OPTIONS": {"pool": {"min_size": 0, "stats_dir": False}}})
pool = Pool("default", options, dict, lambda _: None, "nowhere")
pool.open()
told = threading.Event()
pool._pool.run_later(lambda: (inherited(), told.set()))
assert told.wait(30.0)
pool.close()
print(seen)
"""


def test_a_thread_of_ours_works_for_no_view() -> None:
    seen: list[str | None] = []
    token = current.set("shop.views.buy")
    try:
        start_thread(lambda: seen.append(current.get()), "ours").join(30.0)
    finally:
        current.reset(token)
    assert seen == [None]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has the option since 3.14")
def test_where_threads_inherit_the_context_of_their_starter_ours_do_not() -> None:
    command = [sys.executable, "-X", "thread_inherit_context=1", "-c", INHERITS]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
    assert (found.stdout, found.stderr) == ("['the.first.request', None, None]\n", "")


class Thrown(BaseException):
    """What is thrown into the thread that starts another."""


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody told of the exception that is thrown."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


@pytest.mark.usefixtures("unreported")
def test_an_exception_that_is_thrown_amid_a_start_hangs_nobody() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(300):
            begun, runs = threading.Event(), threading.Event()
            started: list[bool] = []

            def start(begun=begun, runs=runs, started=started) -> None:  # type: ignore[no-untyped-def]
                begun.set()
                start_thread(runs.set, "ours")
                started.append(True)

            thread = threading.Thread(target=start, daemon=True)
            thread.start()
            begun.wait()
            for _ in range(3):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Thrown)
                )
            thread.join(30.0)
            assert not thread.is_alive()
            assert not started or runs.wait(30.0)
    finally:
        sys.setswitchinterval(interval)


def test_a_start_whose_first_thread_is_ended_before_its_first_line_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[object] = []

    class OnlyTheSecond:
        @staticmethod
        def start_new_thread(function: Callable[[], None], arguments: tuple[()]) -> None:
            begun.append(function)
            if len(begun) == 2:
                threading.Thread(target=function, args=arguments).start()

    monkeypatch.setattr(activity, "_thread", OnlyTheSecond)
    runs = threading.Event()
    activity._start_elsewhere(threading.Thread(target=runs.set))
    assert runs.wait(30.0)
    assert len(begun) == 2


def test_a_thread_that_the_system_has_no_room_for_is_an_error() -> None:
    class NoRoom(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start"):
        activity._start_elsewhere(NoRoom())


def test_each_thread_is_started_without_the_context_of_its_starter() -> None:
    starts = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("threading.Thread", "Thread", "threading.Timer")
        and path.name != "thread_exit.py"  # whose Thread is no thread, but tells one from others
    ]
    assert [start.partition(":")[0] for start in starts] == ["activity.py"], starts


FORKING = """
import os
import django
from django_pooled.signals import connection_checked_out

connection_checked_out.connect(lambda **_: print("received", flush=True), weak=False)
# As another thread, in the midst of sending.
connection_checked_out.lock.acquire()
child = os.fork()
if child == 0:
    connection_checked_out.send(None)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_sends_a_signal_that_a_thread_was_sending_at_the_fork() -> None:
    command = [sys.executable, "-c", FORKING]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
    assert (found.stdout, found.stderr) == ("received\n0\n", "")
