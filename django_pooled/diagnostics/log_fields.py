"""What a log record says to programs: an event and its facts, beside the sentence for people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .redaction import masked, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Telling", "facts"]


def facts(
    event: str,
    *,
    error: BaseException | None = None,
    **values: str | float | Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the ``extra`` of a log record; docs/metrics.md has all of them in a table.

    Names and meanings stay the same from version to version. None of them is an attribute that
    records have already, and all values are what JSON can carry. There is no error's text among
    them: only the sentence has that.

    Args:
        event: What happened, in a word or some.
        error: What went wrong: told as the name of its class and its SQLSTATE.
        values: What else is to be known.
    """
    if error is not None:
        # Not above: without psycopg the system checks, which say so, still have to be imported.
        from django_pooled.sql.sqlstates import sqlstate_of

        if "sqlstate" not in values:
            values = {"sqlstate": sqlstate_of(error), **values}
        values = {"error": type(error).__name__, **values}
    fields: dict[str, Any] = {"event": event}
    for key, value in values.items():
        # A host's name, for one, may come from outside.
        fields[key] = one_line(masked(value)) if isinstance(value, str) else value
    return fields


class Telling(logging.Logger):
    """A logger for Django's log_response(), which adds facts to those that Django gives.

    Args:
        logger: Where the records go.
        more: The facts.
    """

    def __init__(self, logger: logging.Logger, more: dict[str, Any]) -> None:
        super().__init__(logger.name)
        self.parent = logger
        self._facts = more

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: N802
        """As logging's, with the facts."""
        record = super().makeRecord(*args, **kwargs)
        vars(record).update(self._facts)
        return record
