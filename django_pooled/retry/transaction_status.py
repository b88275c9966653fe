"""Identifies a transaction, and asks its server whether it was committed."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from django_pooled.sql.sqlstates import is_refusal

from .server_identity import ask_backend, questions_for

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection

    from .server_identity import Backend, Server

__all__ = [
    "CommitStatus",
    "Relation",
    "TransactionIdentity",
    "commit_status",
    "end_if_idle",
    "relation_of",
]

_STATUS = "SELECT pg_catalog.pg_xact_status(%s::pg_catalog.xid8)"

# Ends a backend that still holds the transaction open. The start time is compared because pids are
# reused. Only an idle one is ended, which COMMIT never reached; its end makes the status final. If
# a busy one were ended while it waits for a synchronous standby, it would commit locally.
_END_IDLE = """
    SELECT pg_catalog.pg_terminate_backend(pid)
      FROM pg_catalog.pg_stat_activity
     WHERE pid = %(pid)s AND EXTRACT(epoch FROM backend_start)::pg_catalog.text = %(started)s
       AND state LIKE 'idle in transaction%%'
       AND (%(xid)s::pg_catalog.xid8 IS NULL OR
            backend_xid = %(xid)s::pg_catalog.xid8::pg_catalog.xid)
"""


class TransactionIdentity(NamedTuple):
    """The id of a transaction, and the backend that it ran in.

    Without an id it has written nothing yet, or its server does not tell.
    """

    xid: str | None
    backend: Backend


class CommitStatus(Enum):
    """What the server tells about a transaction."""

    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"
    """It was rolled back, or is not part of this server's history."""
    IN_PROGRESS = "in progress"
    NOT_YET = "not yet known"
    """A standby was asked, to which the transaction may not have come yet."""
    UNDECIDED = "undecided"
    """It is over; its id may have been reused, or its status is not kept any more."""
    FOREIGN = "unknown to another cluster"
    """The server that answers is no successor of the transaction's server."""
    UNTOLD = "not told by this server"
    """The server does not even tell whether it is over."""


class Relation(Enum):
    """How the server that is asked is related to the transaction's server."""

    SAME_INCARNATION = "the same, which has not ended meanwhile"
    SUCCESSOR = "the same cluster, perhaps after a crash or a failover"
    UNKNOWN = "unknown"
    FOREIGN = "another cluster"


def relation_of(connection: PooledConnection, lost: TransactionIdentity | None) -> Relation:
    """Ask how the connection's server is related to that of a transaction.

    Raises:
        psycopg.Error: The question failed.
    """
    question = questions_for(connection).backend
    if lost is None or question is None:
        return Relation.UNKNOWN
    return _compare(lost.backend.server, ask_backend(connection, question).server)


def _compare(then: Server, now: Server) -> Relation:
    # A value that one of them hides proves nothing.
    if then.system is not None and now.system is not None and then.system != now.system:
        return Relation.FOREIGN
    if then.incarnation is not None and then.incarnation == now.incarnation:
        return Relation.SAME_INCARNATION
    return Relation.UNKNOWN if None in (then.system, now.system) else Relation.SUCCESSOR


def commit_status(connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
    """Ask on another connection whether a transaction was committed.

    Args:
        connection: One in autocommit, whose server has been learned.
        lost: The transaction; None or without an id if its server does not tell that.

    Raises:
        psycopg.Error: The question failed.
    """
    question = questions_for(connection).backend
    if lost is None or lost.xid is None or question is None:
        return CommitStatus.UNTOLD
    server = ask_backend(connection, question).server
    relation = _compare(lost.backend.server, server)
    if relation is Relation.FOREIGN:
        return CommitStatus.FOREIGN
    if server.in_recovery:
        return CommitStatus.NOT_YET
    try:
        with connection.unobserved():
            row = connection.execute(_STATUS, [lost.xid]).fetchone()
    except psycopg.errors.InvalidParameterValue:
        # The id is not given out yet; it would be if this server had the COMMIT.
        return (
            CommitStatus.NOT_COMMITTED if relation is Relation.SUCCESSOR else CommitStatus.UNDECIDED
        )
    status = row[0] if row else None
    if status == "in progress":
        return CommitStatus.IN_PROGRESS
    if status == "aborted" and relation is not Relation.UNKNOWN:
        # After a crash too: the id of a committed transaction is not given out again.
        return CommitStatus.NOT_COMMITTED
    if status == "committed" and relation is Relation.SAME_INCARNATION:
        return CommitStatus.COMMITTED
    return CommitStatus.UNDECIDED


def end_if_idle(connection: PooledConnection, lost: TransactionIdentity) -> None:
    """End the backend that still holds the transaction open, if COMMIT never reached it.

    Without an id it has to be the backend of a direct connection, which has no other user.
    """
    backend = {"pid": lost.backend.pid, "started": lost.backend.started, "xid": lost.xid}
    try:
        with connection.unobserved():
            connection.execute(_END_IDLE, backend)
    except psycopg.Error as error:
        # That of a superuser or another role can only be ended by its own time limits.
        if not is_refusal(error):
            raise
