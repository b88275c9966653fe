"""Private names of Django that are needed to restore inputs, each with the reason.

They are attributes of objects and not of classes, so that only tests can tell when one changes:
tests/integration/replay/test_requests.py and test_responses.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.models import QuerySet

__all__ = ["BODY", "FILES", "POST", "READ_STARTED", "STREAM", "has_been_run"]

# HttpRequest has no public way to read a body twice; its handlers set these as attributes of each
# request.
STREAM = "_stream"  # what read() and body read from
READ_STARTED = "_read_started"  # whether read() was called
BODY = "_body"  # the bytes, once "body" was asked for
POST, FILES = "_post", "_files"  # what they were parsed to


def has_been_run(query: QuerySet[Any]) -> bool:
    """Tell whether a query has its rows; every public way to find out would run it."""
    return query._result_cache is not None
