"""A token: a row that is there if, and only if, a transaction was committed."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error

from django_pooled.diagnostics.log_fields import facts
from django_pooled.diagnostics.redaction import told
from django_pooled.sql.sqlstates import is_refusal

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

__all__ = ["MARK", "TABLE", "Token", "sweep_now_and_then"]

logger = logging.getLogger("django_pooled.retry")

TABLE = "django_pooled_token"
MARK = "django_pooled.token"
"""A parameter that is set along with the row, for the rest of the transaction.

A savepoint undoes both or none, and to read it is in nobody's way under SERIALIZABLE.
"""
KEPT_FOR = "1 day"
"""Far longer than anybody looks for a token: at most a call's deadline."""
SWEPT_EVERY = 3600.0
"""Seconds between two sweeps of one process, while they find nothing more."""
SWEPT_AT_ONCE = 1000
"""Rows: a request pays for a few milliseconds of it."""
# By the index on created_at. What another process is deleting is left to it.
SWEEP = f"""
    DELETE FROM {TABLE} WHERE token IN (
        SELECT token FROM {TABLE} WHERE created_at < now() - interval '{KEPT_FOR}'
         ORDER BY created_at LIMIT {SWEPT_AT_ONCE} FOR UPDATE SKIP LOCKED)
"""
CLAIM_WAITS = "500ms"
"""How long a claim waits for the end of the transaction that has the token."""

# The body of a transaction may have set another search_path than the inquiry has, and several
# schemas may have the table.
_TABLES = f"""
    SELECT pg_catalog.quote_ident(nspname) || '.{TABLE}'
      FROM pg_catalog.pg_class
      JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname = '{TABLE}' AND relkind IN ('r', 'p') AND relpersistence <> 't'
       AND pg_catalog.has_schema_privilege(pg_namespace.oid, 'USAGE')
       AND pg_catalog.has_table_privilege(pg_class.oid, 'INSERT')
"""

_swept_at: dict[str, float] = {}


class Token:
    """Made by the client, so that it is known whatever becomes of the connection.

    All attempts of one call have the same, which is unique in the table: two of them can't
    both be committed, not even if a server's answer were wrong.
    """

    def __init__(self) -> None:
        self.value = uuid4()
        self.adapt(marks=True)

    def adapt(self, *, marks: bool) -> None:
        """Word the statements for a server.

        Args:
            marks: Whether it lets a parameter of ours be set for the rest of a transaction.
        """
        token = f"'{self.value}'::uuid"
        insertion = f"INSERT INTO {TABLE} (token) SELECT {token} WHERE"
        is_marked = f"coalesce(pg_catalog.current_setting('{MARK}', true), '') = '{self.value}'"
        self.proof = is_marked if marks else None
        """A condition that holds if the transaction has the token."""
        self.insertion = f"{insertion} pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
        self.insertion_if_missing = (
            f"{insertion} NOT EXISTS (SELECT FROM {TABLE} WHERE token = {token})"
        )
        if marks:
            self.insertion = _marking(self.insertion)
            # To look for the row is left to those who may have lost the mark alone.
            self.insertion_if_missing = _marking(
                self.insertion_if_missing.replace(" WHERE NOT", f" WHERE NOT {is_marked} AND NOT")
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

    def claim(self, connection: PooledConnection) -> None:
        """Try to insert the token, and leave nothing behind.

        That it can be inserted shows that the transaction was not committed and never will be: one
        in progress that has the token, as each has before COMMIT is sent, makes this one wait.

        Raises:
            psycopg.errors.UniqueViolation: The transaction was committed.
            psycopg.errors.LockNotAvailable: It is in progress.
            psycopg.errors.ReadOnlySqlTransaction: The server cannot tell, being a standby.
            psycopg.Error: Anything else.
        """
        with connection.unobserved():
            self._insert(connection, _tables(psycopg.ClientCursor(connection)))

    def can_be_left(self, connection: PooledConnection) -> bool:
        """Tell whether the connection's own role may leave it, in the schemas of its own."""
        try:
            self._insert(connection, [TABLE])
        except psycopg.Error:
            return False
        return True

    def _insert(self, connection: PooledConnection, tables: list[str]) -> None:
        """Insert it into each table, and leave nothing behind."""
        cursor = psycopg.ClientCursor(connection)
        with connection.unobserved():
            # A higher level may say 40001 in place of 23505.
            cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            try:
                cursor.execute(f"SET LOCAL lock_timeout = '{CLAIM_WAITS}'")
                for table in tables:
                    cursor.execute(f"INSERT INTO {table} (token) VALUES ('{self.value}')")
            finally:
                if not connection.broken:
                    cursor.execute("ROLLBACK")


def _tables(cursor: psycopg.Cursor[Any]) -> list[str]:
    """Return the tables in which a token may be."""
    try:
        found = [table for (table,) in cursor.execute(_TABLES)]
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        found = []
    return found or [TABLE]


def _marking(insertion: str) -> str:
    """Return a statement that sets the mark if, and only if, *insertion* inserts."""
    return (
        f"WITH made AS ({insertion} RETURNING token) "
        f"SELECT pg_catalog.set_config('{MARK}', token::text, true) FROM made"
    )


def sweep_now_and_then(wrapper: DatabaseWrapper) -> None:
    """Delete some old tokens, if this process has not done so for an hour; outside a transaction.

    As many as one request can be made to pay for. While more are left, the next request goes on.
    """
    now = monotonic()
    if now - _swept_at.get(wrapper.alias, float("-inf")) < SWEPT_EVERY:
        return
    # Threads that come meanwhile leave it to this one.
    _swept_at[wrapper.alias] = now
    try:
        with wrapper.cursor() as cursor:
            cursor.execute(SWEEP)
            if cursor.rowcount >= SWEPT_AT_ONCE:
                del _swept_at[wrapper.alias]
    except Error as error:
        logger.warning(
            "database %r: old tokens stay: %s",
            wrapper.alias,
            told(error),
            extra=facts("tokens_stay", alias=wrapper.alias, error=error),
        )
