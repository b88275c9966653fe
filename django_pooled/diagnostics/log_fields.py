"""The fields of a log record for programs, beside the sentence for people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .redaction import masked, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LoggerWithFields", "event_fields"]


def event_fields(
    event: str,
    *,
    error: BaseException | None = None,
    **values: str | float | Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the ``extra`` of a log record; docs/metrics.md has all events in a table.

    Names and meanings stay the same from version to version. None is an attribute that records
    have already, and JSON can carry all values. The text of an error is not among them: it stands
    in the sentence alone.

    Args:
        event: The event's name.
        error: The error, of which the class's name and the SQLSTATE are given.
        values: The other fields.
    """
    fields: dict[str, Any] = {"event": event}
    if error is not None:
        # Not above: without psycopg the system checks, which say so, still have to be imported.
        from django_pooled.sql.sqlstates import sqlstate_of

        fields["error"] = type(error).__name__
        if "sqlstate" not in values:
            values = {"sqlstate": sqlstate_of(error), **values}
    for key, value in values.items():
        # The name of a host, for example, may come from outside.
        fields[key] = one_line(masked(value)) if isinstance(value, str) else value
    return fields


class LoggerWithFields(logging.Logger):
    """A logger for Django's log_response(), which adds fields to Django's own.

    Args:
        logger: Where the records go.
        fields: The fields to add.
    """

    def __init__(self, logger: logging.Logger, fields: dict[str, Any]) -> None:
        super().__init__(logger.name)
        self.parent = logger
        self._fields = fields

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: N802
        """Make the record as logging does, and add the fields."""
        record = super().makeRecord(*args, **kwargs)
        vars(record).update(self._fields)
        return record
