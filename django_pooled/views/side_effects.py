"""Takes note of what code does outside the database: files, HTTP, mail, caches, tasks."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.core import mail
from django.core.cache import caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["recording"]

_MOST = 50
"""Different effects of one call that are noted."""

_noted: ContextVar[dict[str, None] | None] = ContextVar("django_pooled_side_effects", default=None)
"""What was done, each once, in order; None where nobody wants to know."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CACHE_METHODS = ("add", "clear", "delete", "delete_many", "incr", "set", "set_many", "touch")
_SESSIONS = ("django.contrib.sessions.",)
"""Beginnings of cache keys whose entries replay/ restores."""


@contextmanager
def recording() -> Iterator[dict[str, None]]:
    """Take note of side effects within the block, of this thread or task.

    Yields:
        What was done, in words, as keys.
    """
    _install()
    _watch_caches()
    # Sets tempfile.tempdir.
    tempfile.gettempdir()
    noted: dict[str, None] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def _note(what: str) -> None:
    noted = _noted.get()
    if noted is not None and len(noted) < _MOST:
        noted.setdefault(what)


# Audit hooks cannot be removed: they are added when the first rehearsal begins, and do next to
# nothing where none is under way. https://docs.python.org/3/library/audit_events.html
def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _noted.get() is None:
        return
    describe = _EVENTS.get(event)
    if describe is None:
        return
    try:
        what = describe(*args)
    except Exception:
        # What a hook raises would take the place of the call itself.
        what = event
    if what is not None:
        _note(what)


def _opened(path: Any, mode: Any, flags: Any, *rest: Any) -> str | None:
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None
    if name is None or _is_bytecode(name):
        return None
    # Not by gettempdir(), which opens files under a lock, to find out, and so comes here again.
    folder = tempfile.tempdir
    if folder and f"{name}{os.sep}".startswith(f"{os.fsdecode(folder)}{os.sep}"):
        return None
    writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & _WRITING
    return f"writes to the file {name}" if writes else None


def _changes(words: str) -> Callable[..., str | None]:
    def describe(path: Any, *rest: Any) -> str | None:
        name = os.fsdecode(path)
        return None if _is_bytecode(name) else f"{words} {name}"

    return describe


def _is_bytecode(name: str) -> bool:
    """Tell whether a file or folder is of Python's own, where it keeps compiled modules."""
    elsewhere = sys.pycache_prefix
    return "__pycache__" in name or (elsewhere is not None and name.startswith(elsewhere))


def _connected(sock: Any, address: Any) -> str:
    return f"connects to {address[0]}:{address[1]}" if isinstance(address, tuple) else "connects"


_EVENTS: dict[str, Callable[..., str | None]] = {
    "open": _opened,
    "socket.connect": _connected,
    "http.client.send": lambda client, data: f"sends an HTTP request to {client.host}",
    "smtplib.send": lambda client, data: "sends mail by SMTP",
    "subprocess.Popen": lambda executable, *rest: f"runs the program {os.fsdecode(executable)}",
    "os.system": lambda command: "runs a command of the shell",
    "os.remove": _changes("removes the file"),
    "os.rename": _changes("renames the file"),
    "os.mkdir": _changes("makes the folder"),
    "os.rmdir": _changes("removes the folder"),
    "shutil.rmtree": _changes("removes the folder"),
}

_is_installed = False


def _install() -> None:
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    sys.addaudithook(_audit)
    mail.get_connection = _watching_mail(mail.get_connection)
    if "celery" in sys.modules:
        from celery import signals  # type: ignore[import-untyped,unused-ignore]

        signals.before_task_publish.connect(_task_queued, dispatch_uid="django_pooled.rehearsal")
    tasks = sys.modules.get("django.tasks.signals")
    if tasks is not None:
        tasks.task_enqueued.connect(_task_queued, dispatch_uid="django_pooled.rehearsal")


def _task_queued(sender: Any = None, **kwargs: Any) -> None:
    result = kwargs.get("task_result")
    name = sender if isinstance(sender, str) else getattr(result and result.task, "name", "")
    _note(f"queues the task {name}")


def _watching_mail(get_connection: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does as ``mail.get_connection()``, which all mail goes through."""

    @wraps(get_connection)
    def get_watched_connection(*args: Any, **kwargs: Any) -> Any:
        connection = get_connection(*args, **kwargs)
        if _noted.get() is not None:
            send = connection.send_messages

            def send_messages(messages: Any) -> Any:
                _note("sends mail")
                return send(messages)

            connection.send_messages = send_messages
        return connection

    return get_watched_connection


def _watch_caches() -> None:
    for alias in caches:
        cache: Any = caches[alias]
        if "django_pooled_watched" not in vars(cache):
            cache.django_pooled_watched = True
            for name in _CACHE_METHODS:
                setattr(cache, name, _watched(getattr(cache, name), name, alias))


def _watched(method: Callable[..., Any], name: str, alias: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = args[0] if args else kwargs.get("key")
        if not (isinstance(key, str) and key.startswith(_SESSIONS)):
            on = f" of {key!r}" if isinstance(key, str) else ""
            _note(f"changes the cache {alias!r}: {name}{on}")
        return method(*args, **kwargs)

    return call
