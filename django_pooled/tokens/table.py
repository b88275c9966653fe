"""A token: a row that is there if, and only if, a transaction was committed."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error

from django_pooled.log_facts import facts
from django_pooled.redaction import told

if TYPE_CHECKING:
    from django_pooled.base import DatabaseWrapper

__all__ = ["Token", "sweep_now_and_then"]

logger = logging.getLogger("django_pooled.retry")

TABLE = "django_pooled_token"
KEPT_FOR = "1 day"
"""Far longer than anybody looks for a token: at most a call's deadline."""
SWEPT_EVERY = 3600.0
"""Seconds between two sweeps of one process."""

_swept_at: dict[str, float] = {}


class Token:
    """Made by the client, so that it is known whatever becomes of the connection.

    All attempts of one call have the same, which is unique in the table: two of them can't
    both be committed, not even if a server's answer were wrong.
    """

    def __init__(self) -> None:
        self.value = uuid4()
        self.insertion = (
            f"INSERT INTO {TABLE} (token) SELECT '{self.value}'::uuid "
            f"WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
        )
        # Not for each transaction: to look is to be in the way of others under SERIALIZABLE.
        self.insertion_if_missing = (
            f"{self.insertion} AND NOT EXISTS "
            f"(SELECT FROM {TABLE} WHERE token = '{self.value}'::uuid)"
        )

    def check(self, wrapper: DatabaseWrapper) -> None:
        """Refuse to start without the table.

        Raises:
            ImproperlyConfigured: The app is not installed.
        """
        if not apps.is_installed("django_pooled.tokens"):
            raise ImproperlyConfigured(
                "commit_check='token' needs its table: add 'django_pooled.tokens' to "
                f"INSTALLED_APPS and run: manage.py migrate --database {wrapper.alias}"
            )

    def is_found(self, asking: DatabaseWrapper) -> bool:
        """Tell whether the transaction that inserted it was committed."""
        with asking.cursor() as cursor:
            cursor.execute(f"SELECT 1 FROM {TABLE} WHERE token = %s", [self.value])
            return cursor.fetchone() is not None


def sweep_now_and_then(wrapper: DatabaseWrapper) -> None:
    """Delete old tokens, if this process has not done so for an hour; outside a transaction."""
    now = monotonic()
    if now - _swept_at.get(wrapper.alias, float("-inf")) < SWEPT_EVERY:
        return
    _swept_at[wrapper.alias] = now
    try:
        with wrapper.cursor() as cursor:
            cursor.execute(f"DELETE FROM {TABLE} WHERE created_at < now() - interval '{KEPT_FOR}'")
    except Error as error:
        logger.warning(
            "database %r: old tokens stay: %s",
            wrapper.alias,
            told(error),
            extra=facts("tokens_stay", alias=wrapper.alias, error=error),
        )
