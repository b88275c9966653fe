"""The loop in which a process obeys that is commanded line by line: see `commanded`."""

from __future__ import annotations

import json
import sys

__all__ = ["name_of", "obey"]


def obey(commands: object) -> None:
    """Call the methods that standard input names, until its end."""
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [None, getattr(commands, name)(**arguments)]
        except Exception as error:
            answer = [f"{name_of(error)}: {error}", None]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def name_of(error: BaseException) -> str:
    """Name an error; one that Django has translated, by what it was before."""
    if type(error).__module__ == "django.db.utils" and error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__
