"""What a transaction whose COMMIT had no answer can be looked up by, and what the server says."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import psycopg

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from django_pooled.connection import PooledConnection

__all__ = [
    "FULL_QUESTION",
    "QUICK_QUESTION",
    "Backend",
    "Finding",
    "Testimony",
    "assigning",
    "end_if_idle",
    "look",
    "testify",
]

# One life of a server, in which a transaction's id is given out once. After a crash or a failover
# the same number is handed out again, to somebody else's transaction, so an id means something
# only together with this. pg_control_checkpoint() lags a promotion, the name of the current WAL
# file does not; the statistics' reset time changes when the server recovers from the crash of
# one backend, which its start time does not. Any role that may log in can read all of it. Times
# are taken as numbers, which no session's settings of style or zone change.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
_INCARNATION = """pg_catalog.concat_ws('/',
    CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.left(
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END,
    EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()),
    (SELECT EXTRACT(epoch FROM stats_reset) FROM pg_catalog.pg_stat_wal))"""

QUICK_QUESTION = """SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text,
    pg_catalog.pg_backend_pid()"""
"""Enough on a connection whose server is known already."""

FULL_QUESTION = f"""{QUICK_QUESTION},
    (SELECT EXTRACT(epoch FROM backend_start)
       FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())),
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    {_INCARNATION},
    pg_catalog.pg_is_in_recovery()::pg_catalog.text"""

_STATUS = "SELECT pg_catalog.pg_xact_status(%s::pg_catalog.xid8)"

# Ends a backend that still holds the transaction open: only the very same, whose pid is given out
# again but not with that start, and only if it is idle, so that COMMIT never reached it. Its end
# makes the status final. One that is under way is left to finish: ending it while it waits for a
# synchronous standby would commit locally.
_END_IDLE = """
    SELECT pg_catalog.pg_terminate_backend(pid)
      FROM pg_catalog.pg_stat_activity
     WHERE pid = %(pid)s AND EXTRACT(epoch FROM backend_start)::pg_catalog.text = %(started)s
       AND state LIKE 'idle in transaction%%'
       AND (%(xid)s::pg_catalog.xid8 IS NULL OR
            backend_xid = %(xid)s::pg_catalog.xid8::pg_catalog.xid)
"""


class Server(NamedTuple):
    """Which server a backend belongs to, and in which of its lives."""

    system: str | None
    incarnation: str | None
    in_recovery: bool


class Backend(NamedTuple):
    """The server's process that works for a connection, or behind a pooler for a transaction."""

    pid: str | None
    started: str | None
    server: Server


class Testimony(NamedTuple):
    """Whose transaction it is: its id (None as long as it has written nothing), and where."""

    xid: str | None
    backend: Backend


class Finding(Enum):
    """What the server tells of a transaction."""

    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"
    """Nor will it be: it was rolled back, or this server's history has no such transaction."""
    IN_PROGRESS = "in progress"
    NOT_YET = "not yet known"
    """A standby was asked, which knows only what has reached it."""
    UNDECIDED = "undecided"
    """The id may be somebody else's by now, or was forgotten."""
    FOREIGN = "unknown to another cluster"
    """Whoever answers now is no successor of the transaction's server."""


def assigning(question: str) -> str:
    """Return the same question, but such that the transaction gets an id by it."""
    return question.replace("pg_current_xact_id_if_assigned", "pg_current_xact_id")


def testify(connection: PooledConnection, answer: PGresult) -> Testimony | None:
    """Read the answer to either question; None if it does not tell which backend it is.

    That of a direct connection stays the same as long as the connection does, so it is asked for
    once. Behind a pooler such as PgBouncer each transaction may find another
    backend, whose pid is not the one that the connection was opened with: there it is asked
    for each time. On a standby too, since it may be promoted meanwhile.
    """
    values = [answer.get_value(0, column) for column in range(answer.nfields)]
    xid, pid, *rest = [value.decode() if value is not None else None for value in values]
    direct = pid == str(connection.info.backend_pid)
    if rest:
        started, system, incarnation, in_recovery = rest
        backend = Backend(pid, started, Server(system, incarnation, in_recovery == "true"))
        connection.life.backend = backend if direct and not backend.server.in_recovery else None
        return Testimony(xid, backend)
    if direct and connection.life.backend is not None:
        return Testimony(xid, connection.life.backend)
    return None  # pragma: no cover - the short question is asked of direct connections alone


def look(connection: PooledConnection, lost: Testimony) -> Finding:
    """Look on another connection what became of a transaction that has an id.

    Raises:
        psycopg.Error: The question failed.
    """
    answer = connection.execute(FULL_QUESTION, prepare=False).pgresult
    asked = answer and testify(connection, answer)
    if not asked or asked.backend.server.system != lost.backend.server.system:
        return Finding.FOREIGN
    if asked.backend.server.in_recovery:
        return Finding.NOT_YET
    same = asked.backend.server.incarnation == lost.backend.server.incarnation
    try:
        row = connection.execute(_STATUS, [lost.xid]).fetchone()
    except psycopg.errors.InvalidParameterValue:
        # The id is in this server's future. A history that holds the COMMIT has passed it.
        return Finding.UNDECIDED if same else Finding.NOT_COMMITTED
    status = row[0] if row else None
    if status == "aborted":
        # Also after a crash: had it been committed, its id would not have been free again.
        return Finding.NOT_COMMITTED
    if not same or status is None:
        return Finding.UNDECIDED
    return Finding(status)


def end_if_idle(connection: PooledConnection, lost: Testimony) -> None:
    """End the backend that still holds the transaction open, if COMMIT never reached it.

    Without an id it has to be the backend of a direct connection, which works for nobody else.
    """
    backend = {"pid": lost.backend.pid, "started": lost.backend.started, "xid": lost.xid}
    # A superuser's, or one under another role, can only be ended by time limits of its own.
    with suppress(psycopg.errors.InsufficientPrivilege):
        connection.execute(_END_IDLE, backend)
