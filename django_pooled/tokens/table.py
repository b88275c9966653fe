"""Tokens: rows that exist if, and only if, their transaction was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from django_pooled.sql.sqlstates import is_refusal

from .sweeping import Sweep

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

__all__ = ["APP", "CLAIM_WAITS", "MARK", "SWEEP", "TABLE", "Token"]

APP = "django_pooled.tokens"
TABLE = "django_pooled_token"
MARK = "django_pooled.token"
"""A parameter that is set along with the row, for the rest of the transaction.

A savepoint undoes both or none, and reading it causes no conflict under SERIALIZABLE.
"""
# Far longer than a token is looked for, which is at most the deadline of a call.
SWEEP = Sweep("tokens", TABLE, "token", "created_at", kept_for="1 day", at_once=1000)
CLAIM_WAITS = "500ms"
"""How long a claim waits for the end of the transaction that has the token."""

# The transaction may have had another search_path, and several schemas may have the table.
_TABLES = f"""
    SELECT pg_catalog.quote_ident(nspname) || '.{TABLE}'
      FROM pg_catalog.pg_class
      JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname = '{TABLE}' AND relkind IN ('r', 'p') AND relpersistence <> 't'
       AND pg_catalog.has_schema_privilege(pg_namespace.oid, 'USAGE')
       AND pg_catalog.has_table_privilege(pg_class.oid, 'INSERT')
"""


class Token:
    """A value made by the client, which is known even if the connection is lost.

    All attempts of one call have the same token, which is unique in the table: no two of them can
    be committed, even if an answer of the server were wrong.
    """

    def __init__(self) -> None:
        self.value = uuid4()
        self.adapt(marks=True)

    def adapt(self, *, marks: bool) -> None:
        """Compose the statements for a server.

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
            # The row is looked for only if the mark may have been lost.
            self.insertion_if_missing = _marking(
                self.insertion_if_missing.replace(" WHERE NOT", f" WHERE NOT {is_marked} AND NOT")
            )

    def check(self, wrapper: DatabaseWrapper) -> None:
        """Refuse to start without the table.

        Raises:
            ImproperlyConfigured: The app is not installed.
        """
        if not apps.is_installed(APP):
            raise ImproperlyConfigured(
                f"commit_check='token' needs its table: add '{APP}' to "
                f"INSTALLED_APPS and run: manage.py migrate --database {wrapper.alias}"
            )

    def claim(self, connection: PooledConnection) -> None:
        """Try to insert the token, and roll that back.

        If that is possible, the transaction was not committed and never will be: a transaction in
        progress has inserted the token before its COMMIT, and makes this one wait.

        Raises:
            psycopg.errors.UniqueViolation: The transaction was committed.
            psycopg.errors.LockNotAvailable: It is in progress.
            psycopg.errors.ReadOnlySqlTransaction: The server cannot tell, being a standby.
            psycopg.Error: Anything else.
        """
        with connection.unobserved():
            self._insert(connection, _tables(psycopg.ClientCursor(connection)))

    def can_be_left(self, connection: PooledConnection) -> bool:
        """Tell whether the connection's own role may insert it, with its own search_path."""
        try:
            self._insert(connection, [TABLE])
        except psycopg.Error:
            return False
        return True

    def _insert(self, connection: PooledConnection, tables: list[str]) -> None:
        """Insert it into each table, and roll that back."""
        cursor = psycopg.ClientCursor(connection)
        with connection.unobserved():
            # At a higher level the error may be 40001 in place of 23505.
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
