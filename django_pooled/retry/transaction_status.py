"""What a transaction whose COMMIT had no answer can be looked up by, and what the server says."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from django_pooled.sql.sqlstates import is_refusal

from .server_identity import ask, ask_backend, known, read_backend

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from django_pooled.pool.connection import PooledConnection

    from .server_identity import Backend, Server

__all__ = [
    "Finding",
    "Kinship",
    "Testimony",
    "end_if_idle",
    "has_foreign_tables",
    "kinship_of",
    "look",
    "testify",
]

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


_HAS_FOREIGN_TABLES = "SELECT 1 FROM pg_catalog.pg_class WHERE relkind = 'f' LIMIT 1"


class Testimony(NamedTuple):
    """Whose transaction it is: its id, and where.

    Without an id it has written nothing as yet, or its server tells of none.
    """

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
    """It is over, and the id may be somebody else's by now, or was forgotten."""
    FOREIGN = "unknown to another cluster"
    """Whoever answers now is no successor of the transaction's server."""
    UNTOLD = "not told by this server"
    """Not even whether it is over."""


class Kinship(Enum):
    """How a server that is asked is related to that of the transaction."""

    SAME_LIFE = "the same, which has not ended meanwhile"
    SUCCESSOR = "the same cluster, perhaps after a crash or a failover"
    UNKNOWN = "unknown"
    FOREIGN = "another cluster"


def kinship_of(connection: PooledConnection, lost: Testimony | None) -> Kinship:
    """Ask how the connection's server is related to that of a transaction.

    Raises:
        psycopg.Error: The question failed.
    """
    question = known(connection).backend
    if lost is None or question is None:
        return Kinship.UNKNOWN
    return _compare(lost.backend.server, ask_backend(connection, question).server)


def _compare(then: Server, now: Server) -> Kinship:
    # What one of them hides proves nothing.
    if then.system is not None and now.system is not None and then.system != now.system:
        return Kinship.FOREIGN
    if then.incarnation is not None and then.incarnation == now.incarnation:
        return Kinship.SAME_LIFE
    return Kinship.UNKNOWN if None in (then.system, now.system) else Kinship.SUCCESSOR


def testify(connection: PooledConnection, answer: PGresult) -> Testimony | None:
    """Read the answer to either question; None if it does not tell which backend it is."""
    values = [answer.get_value(0, column) for column in range(answer.nfields)]
    xid, pid, *rest = [value.decode() if value is not None else None for value in values]
    if rest:
        return Testimony(xid, read_backend(connection, [pid, *rest]))
    if pid == str(connection.info.backend_pid) and connection.life.backend is not None:
        return Testimony(xid, connection.life.backend)
    return None  # pragma: no cover - the short question is asked of direct connections alone


def look(connection: PooledConnection, lost: Testimony | None) -> Finding:
    """Look on another connection what became of a transaction.

    Args:
        connection: One in autocommit, whose server has been learned.
        lost: What is known of it; None, or one without an id, where its server tells of none.

    Raises:
        psycopg.Error: The question failed.
    """
    question = known(connection).backend
    if lost is None or lost.xid is None or question is None:
        return Finding.UNTOLD
    server = ask_backend(connection, question).server
    kin = _compare(lost.backend.server, server)
    if kin is Kinship.FOREIGN:
        return Finding.FOREIGN
    if server.in_recovery:
        return Finding.NOT_YET
    try:
        with connection.unobserved():
            row = connection.execute(_STATUS, [lost.xid]).fetchone()
    except psycopg.errors.InvalidParameterValue:
        # The id is in this server's future. A history that holds the COMMIT has passed it.
        return Finding.NOT_COMMITTED if kin is Kinship.SUCCESSOR else Finding.UNDECIDED
    status = row[0] if row else None
    if status == "in progress":
        return Finding.IN_PROGRESS
    if status == "aborted" and kin is not Kinship.UNKNOWN:
        # Also after a crash: had it been committed, its id would not have been free again.
        return Finding.NOT_COMMITTED
    if status == "committed" and kin is Kinship.SAME_LIFE:
        return Finding.COMMITTED
    return Finding.UNDECIDED


def has_foreign_tables(connection: PooledConnection) -> bool:
    """Ask whether the connection's database has any, whose rows are no part of it.

    Raises:
        psycopg.Error: The question failed.
    """
    return ask(connection, _HAS_FOREIGN_TABLES) != []


def end_if_idle(connection: PooledConnection, lost: Testimony) -> None:
    """End the backend that still holds the transaction open, if COMMIT never reached it.

    Without an id it has to be the backend of a direct connection, which works for nobody else.
    """
    backend = {"pid": lost.backend.pid, "started": lost.backend.started, "xid": lost.xid}
    try:
        with connection.unobserved():
            connection.execute(_END_IDLE, backend)
    except psycopg.Error as error:
        # A superuser's, or one under another role, can only be ended by time limits of its own.
        if not is_refusal(error):
            raise
