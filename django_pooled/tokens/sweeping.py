"""Deletes old rows now and then, a few at a time."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django.db import Error

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["Sweep"]

logger = logging.getLogger("django_pooled.retry")

SWEPT_EVERY = 3600.0
"""Seconds between two sweeps of one process, while they find nothing more."""


class Sweep:
    """The old rows of one table, and when each database's were swept last.

    Args:
        what: What the rows are, for log lines.
        table: Its name.
        key: Its primary key.
        instant: The column by whose index old rows are found.
        kept_for: How long a row is kept after that instant.
        at_once: Rows: a request pays for a few milliseconds of it.
    """

    def __init__(
        self, what: str, table: str, key: str, instant: str, *, kept_for: str, at_once: int
    ) -> None:
        self._what = what
        self.at_once = at_once
        self.swept_at: dict[str, float] = {}
        # Rows that another process is deleting are skipped.
        self.statement = f"""
    DELETE FROM {table} WHERE {key} IN (
        SELECT {key} FROM {table} WHERE {instant} < now() - interval '{kept_for}'
         ORDER BY {instant} LIMIT %s FOR UPDATE SKIP LOCKED)
"""

    def now_and_then(self, wrapper: DatabaseWrapper) -> None:
        """Delete old rows outside of a transaction, at most once an hour in this process.

        Only as many as one request can take the time for; while more are left, the next one
        continues.
        """
        now = monotonic()
        if now - self.swept_at.get(wrapper.alias, float("-inf")) < SWEPT_EVERY:
            return
        # Other threads leave it to this one.
        self.swept_at[wrapper.alias] = now
        try:
            with wrapper.cursor() as cursor:
                cursor.execute(self.statement, [self.at_once])
                if cursor.rowcount >= self.at_once:
                    del self.swept_at[wrapper.alias]
        except Error as error:
            logger.warning(
                "database %r: old %s stay: %s",
                wrapper.alias,
                self._what,
                told(error),
                extra=event_fields("tokens_stay", alias=wrapper.alias, error=error),
            )
