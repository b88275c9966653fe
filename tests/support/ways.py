"""Counts what this package does for a request, for a decorated call, and for a restarted one.

Calls of its functions, the files that these are in, and changes from one file to another, as JSON:
python -m tests.support.ways postgresql://...
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


TIMES = 5
"""Calls of which the shortest way counts: on a busy machine a look at a socket is too old at times,
and is taken again."""


def is_resumed(frame: FrameType) -> bool:
    """Tell whether it is a generator that goes on: how often depends on when answers come."""
    code = frame.f_code
    return bool(code.co_flags & inspect.CO_GENERATOR) and frame.f_lineno != code.co_firstlineno


def way_of(call: Callable[[], object]) -> dict[str, int]:
    """Make a call; return how long its way is."""
    import django_pooled

    package = os.path.join(Path(django_pooled.__file__).parent, "")
    files: list[str] = []

    def see(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(package) and not is_resumed(frame):
            files.append(name)

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    changes = sum(before != after for before, after in pairwise(files))
    return {"calls": len(files), "files": len(set(files)), "changes": changes}


def main(url: str) -> None:
    """Print the ways, after they were gone once."""
    found = urlsplit(url)
    database = {
        "ENGINE": "django_pooled",
        "NAME": found.path[1:],
        "USER": found.username,
        "PASSWORD": unquote(found.password or ""),
        "HOST": found.hostname,
        "PORT": found.port,
    }
    # Of one database alone, as most sites have it.
    settings.configure(DATABASES={"default": database}, USE_TZ=True)
    django.setup()
    from django.db import connection

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction, no_waiting

    def query(statement: str = "SELECT 1") -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def request() -> None:
        query()
        connection.close()

    @retry_transaction
    def write() -> None:
        query("INSERT INTO written VALUES (1)")

    query("CREATE TABLE IF NOT EXISTS written (n int)")

    def decorated() -> dict[str, int]:
        try:
            return way_of(write)
        finally:
            connection.close()

    def restarted() -> dict[str, int]:
        with no_waiting(), fail_next_transaction("40001"):
            return decorated()

    measured = {
        "request": lambda: way_of(request),
        "decorated call": decorated,
        "restarted call": restarted,
    }
    ways = {
        name: min((measure() for _ in range(TIMES)), key=lambda way: way["calls"])
        # The first calls find out what later ones know.
        for name, measure in measured.items()
    }
    sys.stdout.write(json.dumps(ways))


if __name__ == "__main__":
    main(sys.argv[1])
