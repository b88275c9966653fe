"""What a database error means: SQLSTATEs in named sets, and errors that carry none.

Those while connecting, which libpq gives no SQLSTATE, are in pool/connect_errors.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import psycopg

from django_pooled.errors import DeadlineExceeded, PoolError
from django_pooled.lazy_pattern import lazy_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ACTIVE_SQL_TRANSACTION",
    "CONNECTION_LOST",
    "FULL",
    "LOST",
    "READ_ONLY",
    "SERIALIZATION",
    "UNKNOWN_OUTCOME",
    "history",
    "is_connection_lost",
    "is_ended_by_deadline",
    "is_pooler_timeout",
    "is_refusal",
    "is_server_away",
    "is_stale_plan",
    "named",
    "psycopg_error",
    "sqlstate_of",
]

# Names as in https://www.postgresql.org/docs/current/errcodes-appendix.html
SERIALIZATION = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: the same transaction can succeed if run again."""

UNKNOWN_OUTCOME = frozenset({"08007", "40003"})
"""transaction_resolution_unknown and statement_completion_unknown: the server itself can't tell."""

CONNECTION_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})
"""admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout.

Class 08 (connection exceptions) belongs to them too: see `is_connection_lost`.
"""

FULL = "53300"
"""too_many_connections: the server, the database or the role has no room for another."""

LOST = "lost"
"""Stands for an SQLSTATE where a connection was lost and nobody said why."""

# feature_not_supported, syntax_error_or_access_rule_violation, and what functions in their place
# may raise. A time limit, or a lack of memory, says nothing of the next time.
_REFUSALS = ("0A", "3F", "42", "55", "P0", "XX")

ACTIVE_SQL_TRANSACTION = "25001"
"""active_sql_transaction: a statement such as VACUUM, which cannot be part of a transaction."""
READ_ONLY = "25006"
"""read_only_sql_transaction: after a failover, the sign of a demoted server."""

# Of PgBouncer, of Supavisor, of RDS Proxy.
_WAITED_IN_VAIN = lazy_pattern(
    "query_wait_timeout|unable to check out connection|Timed-out waiting to acquire"
)

# What psycopg says to two answers where it expects one.
_TWO_ENDS = lazy_pattern(r"received \d+ results from command")


def psycopg_error(error: BaseException | None) -> psycopg.Error | None:
    """Find psycopg's error in *error* or in what it was raised from, as Django wraps it."""
    if isinstance(error, psycopg.Error) and not isinstance(error, PoolError):
        return error
    for link in _causes(error):
        if isinstance(link, psycopg.Error) and not isinstance(link, PoolError):
            return link
    return None


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the five-character SQLSTATE that *error* carries, through Django's wrapping."""
    found = psycopg_error(error)
    return found.sqlstate if found is not None else None


@lru_cache(maxsize=64)
def named(sqlstate: str) -> str:
    """Return an SQLSTATE, or `LOST`, in words: "serialization failure (40001)"."""
    if sqlstate == LOST:
        return "connection lost"
    try:
        name = psycopg.errors.lookup(sqlstate).__name__
    except KeyError:
        return f"error {sqlstate}"
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return f"{words.replace('read only sql', 'read-only')} ({sqlstate})"


def is_connection_lost(error: BaseException | None) -> bool:
    """Tell whether *error* says that the connection, not the statement, failed.

    psycopg raises an OperationalError without SQLSTATE when the socket breaks or the
    connection is closed already: such an error never came from the server. A session that is
    ended behind PgBouncer says so twice, in the server's words and in PgBouncer's; where psycopg
    expects one answer, to BEGIN or COMMIT, it raises an InternalError with neither. Supavisor ends
    sessions with internal_error, for whatever reason.
    """
    found = psycopg_error(error)
    if found is None:
        return False
    if found.sqlstate is None:
        return isinstance(found, psycopg.OperationalError) or (
            isinstance(found, psycopg.InternalError) and _TWO_ENDS.match(str(found)) is not None
        )
    if found.sqlstate.startswith("XX"):
        severity = found.diag.severity_nonlocalized or found.diag.severity
        return severity in ("FATAL", "PANIC")
    return found.sqlstate in CONNECTION_LOST or found.sqlstate.startswith("08")


def is_server_away(error: BaseException | None) -> bool:
    """Tell whether *error* means that no connection could be had or that one was lost."""
    return any(isinstance(link, PoolError) for link in _causes(error)) or is_connection_lost(error)


def is_ended_by_deadline(error: BaseException | None) -> bool:
    """Tell whether *error* means that a deadline ended amid a statement, or before one."""
    return any(isinstance(link, DeadlineExceeded) for link in _causes(error))


def is_pooler_timeout(error: psycopg.Error) -> bool:
    """Tell whether a pooler had no server connection for a statement, for too long.

    PgBouncer, Supavisor and RDS Proxy have an SQLSTATE for all of their own errors.
    """
    return is_connection_lost(error) and _WAITED_IN_VAIN.search(str(error)) is not None


def is_refusal(error: psycopg.Error) -> bool:
    """Tell whether the server does not have what was asked for, or not for this role."""
    return not is_connection_lost(error) and (error.sqlstate or "").startswith(_REFUSALS)


def is_stale_plan(error: psycopg.Error) -> bool:
    """Tell whether a prepared statement met tables that have changed since it was prepared.

    feature_not_supported says nothing by itself and the message is translated; the function's
    name in the server is neither: src/backend/utils/cache/plancache.c.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def history(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and all that it was raised from or while handling, ``from None`` or not."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            yield link
            seen.add(id(link))
            todo += [link.__context__, link.__cause__]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__
