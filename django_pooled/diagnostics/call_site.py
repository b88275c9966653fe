"""Finds the project's own line: not a library's, Django's, or a monitoring tool's."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.activity import MODULES, current, look_for
from django_pooled.lazy_pattern import lazy_pattern

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["Line", "caller", "callers", "quoted", "whereabouts"]

# Never a project's, wherever they lie: Django and this package may be checked out beside it.
_PASSED_OVER = frozenset({"django", "django_pooled", "contextlib", "asgiref", "threading"})

# Packages that wrap database calls or functions; consulted if the project is installed as they are.
_WATCHERS = frozenset(
    {
        "aws_xray_sdk",
        "ddtrace",
        "debug_toolbar",
        "elasticapm",
        "newrelic",
        "opentelemetry",
        "psycopg",
        "scout_apm",
        "sentry_sdk",
        "silk",
        "wrapt",
    }
)

_INSTALLED = lazy_pattern(r"[/\\](?:site|dist)-packages[/\\](?P<package>[^/\\.]*)")

_STANDARD = tuple(
    {
        os.path.join(path, "")
        for name in ("stdlib", "platstdlib")
        if (found := sysconfig.get_paths().get(name))
        for path in (found, os.path.realpath(found))
    }
)


class Line(NamedTuple):
    """A line of code, which is put into words on demand."""

    code: CodeType
    module: str
    instruction: int
    """Offset of what was being run; to find its line takes longer than all else here."""

    @property
    def number(self) -> int:
        """The line's number."""
        for start, end, number in self.code.co_lines():
            if start <= self.instruction < end and number is not None:
                return number
        return self.code.co_firstlineno

    @property
    def function(self) -> str:
        """The function that the line is in."""
        return f"{self.module}.{self.code.co_name}"

    def __str__(self) -> str:
        return f"{self.function}:{self.number}"


def quoted(line: Line) -> str:
    """Return a line as a traceback has it, with its text."""
    number, name = line.number, line.code.co_filename
    text = linecache.getline(name, number).strip()
    return f'  File "{name}", line {number}, in {line.code.co_name}\n' + (
        f"    {text}\n" if text else ""
    )


def caller(above: int = 0) -> Line:
    """Return the line of the project's own code that led here; see `whereabouts`.

    Args:
        above: How many callers are passed over in any case.
    """
    return whereabouts(above + 1)[0]


def whereabouts(above: int = 0) -> tuple[Line, str | None]:
    """Tell which line of the project's own code led here, and for what it runs.

    Running code has to tell this itself: to read the stack of another thread crashes the process,
    at once without the GIL, and once in a while with it.

    Args:
        above: How many callers are passed over in any case.

    Returns:
        The line; without own code the first that is neither Python's, Django's nor a known
        watcher's, or the outermost. And the name that the code was given, or that its stack has: of
        a view as ``votes.views.cast``, of a queue's task as ``celery votes.tasks.count``, of a
        command as ``manage.py loaddata``; `NOT_YET` in a middleware, None for anything else.
    """
    line, name = None, current.get()
    first = sys._getframe(above + 1)
    frame: FrameType | None = first
    files = _files
    # Without a call for each frame: a stack has many, of few files.
    while frame is not None:
        try:
            kind = files[frame.f_code.co_filename]
        except KeyError:
            kind = _look_at_file(frame)
        if kind:
            if line is None and kind & _OWN:
                line = Line(frame.f_code, frame.f_globals.get("__name__", "?"), frame.f_lasti)
            if name is None and kind & _NAMING and (look := look_for(frame)) is not None:
                name = look(frame)
            if line is not None and name is not None:
                break
        frame = frame.f_back
    return line or _without_own_code(first), name


def callers(above: int = 0) -> list[Line]:
    """Return the lines of the project's own code that led here, the outermost first.

    Args:
        above: How many callers are passed over in any case.
    """
    first = sys._getframe(above + 1)
    found = []
    frame: FrameType | None = first
    while frame is not None:
        if _is_own(frame):
            found.append(_line(frame))
        frame = frame.f_back
    return found[::-1] or [_without_own_code(first)]


def _without_own_code(frame: FrameType) -> Line:
    while frame.f_back is not None:
        top = _top(frame.f_globals.get("__name__"))
        if top not in _PASSED_OVER | _WATCHERS and not _is_standard(frame.f_code.co_filename):
            break
        frame = frame.f_back
    return _line(frame)


def _is_own(frame: FrameType) -> bool:
    return (
        not _is_library(frame.f_code.co_filename)
        and _top(frame.f_globals.get("__name__")) not in _PASSED_OVER
    )


def _line(frame: FrameType) -> Line:
    return Line(frame.f_code, frame.f_globals.get("__name__", "?"), frame.f_lasti)


@lru_cache(maxsize=1024)
def _top(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


_OWN, _NAMING = 1, 2

_files: dict[str, int] = {}
"""What the frames of a file may tell, by its name: `_OWN` and `_NAMING`, or 0 for neither."""


def _look_at_file(frame: FrameType) -> int:
    kind = _OWN * _is_own(frame) | _NAMING * (frame.f_globals.get("__name__") in MODULES)
    name = frame.f_code.co_filename
    # Code that is made at run time has such a name, which may be another module's as well.
    if name.startswith("<frozen ") or not name.startswith("<"):
        _files[name] = kind
    return kind


# A stack has hundreds of lines and a process some thousand files: each is looked at once.
@lru_cache(maxsize=8192)
def _is_library(filename: str) -> bool:
    """Tell whether a file is Python's or was installed, and is no part of the project."""
    installed = _INSTALLED.search(filename)
    if installed is None:
        return _is_standard(filename)
    # A project may be installed too, and its settings with it.
    settings = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    return installed["package"] != _top(settings)


def _is_standard(filename: str) -> bool:
    return filename.startswith("<frozen ") or (
        filename.startswith(_STANDARD) and _INSTALLED.search(filename) is None
    )
