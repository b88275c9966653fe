"""Makes text from outside fit for logs and messages: no password, no row, no forged line."""

from __future__ import annotations

import json
import re
import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from django.db import Error

from django_pooled.lazy_pattern import lazy_pattern

# psycopg is imported where it is needed: without it, the system checks that say so still have to
# be imported.

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

__all__ = [
    "ASSIGNMENT",
    "USERINFO",
    "masked",
    "one_line",
    "printable",
    "remember",
    "remember_settings",
    "scrub",
    "shown",
    "stand_in",
    "told",
]

MASK = "***"

LONGEST = 8000
"""Characters of a text that are read; the rest is left out."""

LONGEST_LINE = 2000
"""Characters of the line that is made of a text."""

SHORTEST_SECRET = 4
"""Characters; a shorter one, masked wherever it occurs, would leave nothing to read."""

MOST_SECRETS = 200
"""Passwords that are remembered, the latest ones: tokens replace each other."""

_NAMES = r"""[\w-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|api_?key)[\w-]*"""
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"][^\n]*|(?:\\.|\S)+)"""

USERINFO = r"""([\w.%+~-]+:)[^\s"'/][^\s"']*(@)"""
"""A user and a password before a host, without regard to case as the next one."""
ASSIGNMENT = rf"\b({_NAMES}\s*=\s*){_VALUE}()"
"""password=..., as in a connection string or the environment."""

_CREDENTIALS = tuple(
    lazy_pattern(pattern, re.IGNORECASE)
    for pattern in (
        # The user and password of an address, up to its last @: those within are rarely escaped.
        r"(://)\S+(@)",
        r"""(://)[^\s:/@"']*:[^"'\n]*(@)""",
        USERINFO,
        # PostgreSQL cuts names after 63 bytes, perhaps before the @; a port is no password.
        r"""(postgres(?:ql)?://)[^\s:/@"']*:(?!\d{1,5}(?:[/?,\s"']|$))[^\s"']+()""",
        ASSIGNMENT,
        # "password": ..., as in a dictionary.
        rf"""(['"]{_NAMES}['"]\s*:\s*){_VALUE}()""",
    )
)

# What PostgreSQL appends to a message, on lines of their own and in any language: DETAIL and
# CONTEXT quote rows, LINE the statement. libpq's own hints begin with a tab.
_APPENDED = lazy_pattern(
    r"\n\t[^\n]*|\n(?!FATAL|ERROR|PANIC)(?:[^\s:][^:\n]{0,40}:  |\w+ \d+: )[\s\S]*"
)

_lock = threading.RLock()
_secrets: dict[str, None] = {}
"""The latest at the end; guarded by the lock."""
_spellings: tuple[str, ...] = ()
"""As addresses, Python and JSON spell them too, the longest first; replaced under the lock."""


def remember(*secrets: object) -> None:
    """Mask these values from now on, wherever they occur.

    Args:
        secrets: Passwords and tokens; what is no string, or a very short one, is left out.
    """
    global _spellings
    for secret in secrets:
        if isinstance(secret, str) and len(secret) >= SHORTEST_SECRET and secret not in _secrets:
            with _lock:
                _secrets[secret] = None
                while len(_secrets) > MOST_SECRETS:
                    del _secrets[next(iter(_secrets))]
                _spellings = tuple(sorted(_spelled(_secrets), key=len, reverse=True))


def remember_settings(settings: Mapping[str, Any]) -> None:
    """Mask the passwords of an entry of ``settings.DATABASES`` from now on.

    One that is the user's or the database's name too is shown by these anyway.
    """
    options = settings.get("OPTIONS") or {}
    open_to_all = {settings.get(key) for key in ("NAME", "USER", "HOST")}
    found = (settings.get("PASSWORD"), options.get("password"), options.get("sslpassword"))
    remember(*(secret for secret in found if callable(secret) or secret not in open_to_all))


def masked(text: str) -> str:
    """Return a text with *** for the passwords in it, and cut if it is very long.

    Those in addresses and connection strings, and those that are remembered.
    """
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    for secret in _spellings:
        text = text.replace(secret, MASK)
    for pattern in _CREDENTIALS:
        text = pattern.sub(rf"\1{MASK}\2", text)
    return text


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal or a log would act upon.

    What is not printable is escaped: control characters, those that change the direction of
    writing, halves of characters.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def one_line(text: str) -> str:
    """Return a text on one line, printable, and cut if it is very long."""
    text = " ".join(text[: 4 * LONGEST_LINE].split())
    if not text.isprintable():
        text = printable(text)
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."


def told(error: BaseException) -> str:
    """Return what a log line, a message or a report says of an error, on one line.

    Of an error of the server the primary message alone: its detail and its context quote rows.
    """
    text = _primary(error) or _APPENDED.sub("", str(error))
    return one_line(masked(text)) or type(error).__name__


def shown(value: object) -> str:
    """Return the repr() of a setting for a message: what it may hide is masked, a long one cut."""
    if isinstance(value, (bool, int, float, type(None))):
        return repr(value)
    text = one_line(masked(repr(value)))
    return text if len(text) <= 200 else f"{text[:200]}..."


def scrub(error: BaseException) -> None:
    """Mask what an error and those that it was raised from say, in place.

    For what fails at connect, which goes to callers as it is: libpq quotes parameters, and a
    callable for the password perhaps an address. What prints a chain of errors prints it too.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            todo += [link.__cause__, link.__context__]
            link.args = tuple(_scrubbed(part) for part in link.args)
            if isinstance(link, OSError) and isinstance(link.strerror, str):
                link.strerror = _scrubbed(link.strerror)


def stand_in(
    error: BaseException,
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return what to give to a logger as ``exc_info``: the traceback, with what may be told.

    A handler prints the whole text of an error and of its causes, with the rows in it.
    """
    made = _double(error, set())
    return type(made), made, error.__traceback__


def _scrubbed(part: Any) -> Any:
    if not isinstance(part, str):
        return part
    # libpq's lines are kept, and the tabs before its hints.
    return re.sub(r"[^\n\t]+", lambda found: printable(found[0]), masked(part))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _spelled(secrets: Iterable[str]) -> set[str]:
    # An environment variable that is not UTF-8 has surrogates.
    percent, plus = (partial(how, errors="surrogatepass") for how in (quote, quote_plus))
    return {
        spelling
        for secret in secrets
        for spelling in (
            *(secret, percent(secret, safe=""), percent(secret), plus(secret)),
            *(repr(secret)[1:-1], json.dumps(secret)[1:-1]),
        )
    }


def _primary(error: BaseException) -> str | None:
    import psycopg

    # Django's errors have psycopg's text, and psycopg's error as their cause.
    cause = error.__cause__
    if isinstance(error, Error) and isinstance(cause, psycopg.Error) and error.args == cause.args:
        error = cause
    return error.diag.message_primary if isinstance(error, psycopg.Error) else None


def _double(error: BaseException, seen: set[int]) -> BaseException:
    seen.add(id(error))
    kind, text = type(error), told(error)
    # A handler may look for its class, and a traceback ends with its name.
    names: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__str__": lambda self: text,
    }
    try:
        double: type[BaseException] = type(kind.__name__, (kind,), names)
        # Without its __init__, which may ask for anything.
        made = double.__new__(double, text)
    except TypeError:
        made = type(kind.__name__, (Exception,), names)(text)
    if notes := [one_line(masked(str(note))) for note in getattr(error, "__notes__", ())]:
        made.__notes__ = notes  # type: ignore[attr-defined,unused-ignore]
    made.__traceback__ = error.__traceback__
    cause, context = error.__cause__, error.__context__
    if cause is not None and id(cause) not in seen:
        made.__cause__ = _double(cause, seen)
    elif context is not None and not error.__suppress_context__ and id(context) not in seen:
        made.__context__ = _double(context, seen)
    return made
