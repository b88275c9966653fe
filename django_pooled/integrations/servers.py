"""Tells whether the process that loads a site will serve it, or forks those that do.

A server's workers are told from its parent process, and from programs that serve nothing: a
command, a script, a test. What is not recognised serves nothing.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from django.apps import apps

from . import uwsgi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["is_command_of_django", "is_management_command", "loads_to_serve"]

_ENTRANCES = {
    ("django.core.wsgi", "get_wsgi_application"),
    ("django.core.asgi", "get_asgi_application"),
}
"""What a server's module calls to make the site's application, by module and function."""

_ASGI_SERVERS = {"daphne", "granian", "hypercorn", "uvicorn"}
"""Those that load the site where they serve it. Its module may set Django up by itself first."""

_TEST_RUNNERS = {"_pytest", "unittest"}
"""A test may load the site's application too."""

_COMMAND = ("django.core.management", "execute")
"""Where ``manage.py`` and ``django-admin`` start Django."""


def is_management_command() -> bool:
    """Tell whether the calling code runs for ``manage.py`` or ``django-admin``."""
    return _command() is not None


def is_command_of_django() -> bool:
    """Tell whether the calling code runs for a command of Django's own, such as ``collectstatic``.

    Those of other packages may fork processes for tasks, as RQ's and django-q2's do.
    """
    name = _command()
    if name is None:
        return False
    from django.core.management import get_commands

    # A name that nobody has is an error soon.
    return not apps.apps_ready or str(get_commands().get(name, "django.")).startswith("django.")


def _command() -> str | None:
    """Return the name of the command that ``manage.py`` or ``django-admin`` runs; else None."""
    for frame in _frames():
        if _call_of(frame) == _COMMAND:
            argv: list[str] = getattr(frame.f_locals.get("self"), "argv", [])
            return argv[1] if len(argv) > 1 else "help"
    return None


def loads_to_serve() -> bool:
    """Tell whether the calling code runs because this process, and no fork of it, will serve."""
    calls = list(map(_call_of, _frames()))
    modules = {module for module, _ in calls}
    if uwsgi.is_loaded():
        return not uwsgi.is_parent()
    if any(module.startswith("gunicorn.") for module in modules):
        # A worker runs in the call that has forked it. Else it is the parent, with --preload.
        return any(module.startswith("gunicorn.workers.") for module in modules)
    if _COMMAND in calls:
        # The parent of runserver's that restarts it loads the site too.
        is_watched = os.environ.get("RUN_MAIN") == "true" or "--noreload" in sys.argv
        return sys.argv[1:2] == ["runserver"] and is_watched
    packages = {module.partition(".")[0] for module in modules}
    if not _TEST_RUNNERS.isdisjoint(packages):
        return False
    return not _ENTRANCES.isdisjoint(calls) or not _ASGI_SERVERS.isdisjoint(packages)


def _frames() -> Iterator[FrameType]:
    """Yield the frame of each call under way."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _call_of(frame: FrameType) -> tuple[str, str]:
    """Return module and function."""
    return frame.f_globals.get("__name__") or "", frame.f_code.co_name
