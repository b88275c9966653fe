"""Rows of idempotency keys: each tells what the request with that key has led to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error

from django_pooled.diagnostics.redaction import told
from django_pooled.sql.sqlstates import is_refusal, psycopg_error

from .sweeping import Sweep
from .table import CLAIM_WAITS

if TYPE_CHECKING:
    from uuid import UUID

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

__all__ = ["KEY_SWEEP", "KEY_TABLE", "Claim", "KeptResponse", "KeyRow", "refuse_without_app"]

KEY_TABLE = "django_pooled_idempotency_key"

# One that another transaction with the key is under way for is not waited for: a waiter would hold
# a connection. The lock is held to the end of that transaction, so whoever gets it meets either no
# row or a committed one. The index alone keeps keys unique. Of an expired row nothing is kept.
# Under REPEATABLE READ and above, a row that was committed after this transaction's snapshot
# raises 40001, and the next attempt sees it.
_CLAIM = f"""
INSERT INTO {KEY_TABLE} AS kept (digest, fingerprint, token, created_at, expires_at)
SELECT %(digest)s, %(fingerprint)s, %(token)s, pg_catalog.now(),
       pg_catalog.now() + pg_catalog.make_interval(secs => %(lifetime)s)
 WHERE pg_catalog.pg_try_advisory_xact_lock(%(lock)s)
    ON CONFLICT (digest) DO UPDATE
   SET fingerprint = excluded.fingerprint, token = excluded.token, status = NULL, headers = NULL,
       body = NULL, created_at = pg_catalog.now(), expires_at = excluded.expires_at
 WHERE kept.expires_at <= pg_catalog.now()
RETURNING (SELECT pg_catalog.quote_ident(nspname)
             FROM pg_catalog.pg_class
             JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
            WHERE pg_class.oid = kept.tableoid)
"""
_FIND = f"""
SELECT fingerprint, token, status, headers, body
  FROM {KEY_TABLE}
 WHERE digest = %s AND expires_at > pg_catalog.now()
"""
_STORE = f"""
UPDATE {{schema}}.{KEY_TABLE} SET status = %s, headers = %s, body = %s
 WHERE digest = %s AND token = %s
"""
# Fewer at once than tokens, since a body may be large.
KEY_SWEEP = Sweep("idempotency keys", KEY_TABLE, "digest", "expires_at", kept_for="0", at_once=200)


class KeptResponse(NamedTuple):
    """A response as the table has it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Claim(NamedTuple):
    """What a transaction has found under its key."""

    is_new: bool = False
    """Whether the key is this transaction's own now."""
    is_same_request: bool = False
    """Whether the request under the key is this one."""
    is_same_call: bool = False
    """Whether the call itself has left it, in an attempt before."""
    response: KeptResponse | None = None
    """None, unless it is stored: another transaction is under way, or this one."""
    is_in_use_here: bool = False
    """Whether a call around this one has claimed it in the same transaction."""


class KeyRow:
    """The row of one call.

    Args:
        digest: Of scope and key.
        fingerprint: Of the request.
        token: Of the call, whose attempts all have the same.
    """

    def __init__(self, digest: bytes, fingerprint: bytes, token: UUID) -> None:
        self.digest = digest
        self.fingerprint = fingerprint
        self.token = token
        self._schema: str | None = None
        """Where the row is, quoted; the transaction may change its search_path."""

    def claim(self, wrapper: DatabaseWrapper, lifetime: float) -> Claim:
        """Insert the row in the wrapper's transaction, or find the one that is there.

        Args:
            wrapper: In a transaction.
            lifetime: Seconds until it expires.

        Raises:
            ImproperlyConfigured: There is no such table for this role.
            django.db.Error: Anything else.
        """
        arguments: dict[str, Any] = {
            "digest": self.digest,
            "fingerprint": self.fingerprint,
            "token": self.token,
            "lifetime": lifetime,
            "lock": int.from_bytes(self.digest[:8], "big", signed=True),
        }
        with wrapper.cursor() as cursor:
            try:
                cursor.execute(_CLAIM, arguments)
                made = cursor.fetchone()
            except Error as error:
                _explain(error, wrapper)
                raise
            if made is not None:
                self._schema = made[0]
                return Claim(is_new=True)
            cursor.execute(_FIND, [self.digest])
            found = cursor.fetchone()
        if found is None:
            return Claim()
        fingerprint, token, status, headers, body = found
        if status is None:
            return Claim(is_in_use_here=True)
        return Claim(
            is_same_request=bytes(fingerprint) == self.fingerprint,
            is_same_call=token == self.token,
            response=KeptResponse(status, [(n, v) for n, v in json.loads(headers)], bytes(body)),
        )

    def store(self, wrapper: DatabaseWrapper, response: KeptResponse) -> None:
        """Store the response, in the transaction that has claimed the key."""
        statement = _STORE.format(schema=self._schema)
        headers = json.dumps(response.headers)
        values: list[Any] = [response.status, headers, response.body, self.digest, self.token]
        with wrapper.cursor() as cursor:
            try:
                cursor.execute(statement, values)
            except Error as error:
                # The view may have taken a role with fewer privileges.
                _explain(error, wrapper)
                raise

    @property
    def is_claimed(self) -> bool:
        """Whether an attempt has inserted it."""
        return self._schema is not None

    def was_committed(self, connection: PooledConnection) -> bool:
        """Tell on another connection whether the row was committed; if not, it never will be.

        Inserting it is tried, and rolled back: a transaction in progress makes that wait.

        Raises:
            psycopg.errors.LockNotAvailable: The transaction is in progress.
            psycopg.errors.ReadOnlySqlTransaction: The server cannot tell, being a standby.
            psycopg.Error: Anything else.
        """
        table = f"{self._schema}.{KEY_TABLE}"
        cursor = psycopg.ClientCursor(connection)
        with connection.unobserved():
            # At a higher level the answer may be 40001.
            cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            try:
                cursor.execute(f"SET LOCAL lock_timeout = '{CLAIM_WAITS}'")
                cursor.execute(
                    f"INSERT INTO {table} (digest, fingerprint, token, expires_at) "
                    f"VALUES (%s, %s, %s, pg_catalog.now()) ON CONFLICT (digest) DO NOTHING",
                    [self.digest, self.fingerprint, self.token],
                )
                if cursor.rowcount:
                    return False
                # Under the key there may be the row of another call by now.
                row = cursor.execute(
                    f"SELECT token FROM {table} WHERE digest = %s", [self.digest]
                ).fetchone()
            finally:
                if not connection.broken:
                    cursor.execute("ROLLBACK")
        return row is not None and row[0] == self.token


def refuse_without_app(alias: str) -> None:
    """Refuse to use keys without their table.

    Raises:
        ImproperlyConfigured: The app is not installed.
    """
    if not apps.is_installed("django_pooled.tokens"):
        raise ImproperlyConfigured(
            f"idempotency_key needs its table: add 'django_pooled.tokens' to INSTALLED_APPS and "
            f"run: manage.py migrate --database {alias}"
        )


def _explain(error: Exception, wrapper: DatabaseWrapper) -> None:
    """Raise a clearer error if the table is not there, or not for this role.

    Raises:
        ImproperlyConfigured: That is so.
    """
    found = psycopg_error(error)
    if found is not None and is_refusal(found) and KEY_TABLE in str(found):
        raise ImproperlyConfigured(
            f"idempotency_key cannot use its table: {told(found)}. "
            f"Run: manage.py migrate --database {wrapper.alias}, and grant the role of "
            f"DATABASES[{wrapper.alias!r}] SELECT, INSERT, UPDATE and DELETE on {KEY_TABLE}."
        ) from error
