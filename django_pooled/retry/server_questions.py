"""What a server answers: found out once, outside of any user's transaction, and asked only then.

Amazon Aurora refuses some of its functions, an administrator may have revoked others, and what
merely speaks PostgreSQL's protocol has none of them. A refusal inside a transaction would abort it.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.sqlstates import READ_ONLY, is_refusal
from django_pooled.tokens.table import MARK

__all__ = ["NO_QUESTIONS", "Questions", "ask", "find_out", "is_about_a_question", "refusals"]

# What is asked, in this order. The first two are of a transaction and its backend. The others tell
# one life of a server, in which an id is given out once: after a crash or a failover the same
# number is handed out again, to somebody else's transaction. pg_control_checkpoint() lags a
# promotion, the name of the current WAL file does not; the statistics' reset time changes when
# the server recovers from the crash of one backend, which its start time does not. Times are
# taken as numbers, which no session's settings of style or zone change.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
_ID = "pg_current_xact_id_if_assigned()"
_ASSIGNING = "pg_current_xact_id()"
_XID = f"pg_catalog.{_ID}::pg_catalog.text"
_PARTS = {
    _ID: _XID,
    "pg_backend_pid()": "pg_catalog.pg_backend_pid()",
    "pg_stat_get_activity()": (
        "(SELECT EXTRACT(epoch FROM backend_start)"
        " FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))"
    ),
    "pg_control_system()": "(SELECT system_identifier FROM pg_catalog.pg_control_system())",
    "pg_walfile_name(pg_current_wal_lsn())": (
        "CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.left("
        "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END"
    ),
    "pg_postmaster_start_time()": "EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time())",
    "pg_stat_wal": "(SELECT EXTRACT(epoch FROM stats_reset) FROM pg_catalog.pg_stat_wal)",
    "pg_is_in_recovery()": "pg_catalog.pg_is_in_recovery()::pg_catalog.text",
}

# The view takes longer, and may be read where the function may not be called.
_INSTEAD = {
    "pg_stat_get_activity()": (
        "(SELECT EXTRACT(epoch FROM backend_start)"
        " FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())"
    ),
}

# On a standby nothing can have one.
_ASSIGNED = f"CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN {_XID.replace(_ID, _ASSIGNING)} END"
# Rows of a foreign server give no id, but their table is locked as every other that is written to.
# Where there are no foreign tables, nobody has to look through all of the server's locks.
_READING = f"""{_XID} IS NULL AND (
    NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_table)
    OR NOT EXISTS (SELECT FROM pg_catalog.pg_locks
        WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND mode IN (
        'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))"""
_LOCKS = "pg_locks"
# The status is for inquiries, whose failure is no user's, and the mark for tokens.
_MARKING = "set_config()"
_OTHERS = {
    "pg_xact_status()": f"SELECT pg_catalog.pg_xact_status({_XID}::pg_catalog.xid8)",
    _ASSIGNING: f"SELECT {_ASSIGNED}",
    _LOCKS: f"SELECT {_READING}",
    _MARKING: f"SELECT pg_catalog.set_config('{MARK}', '', true)",
}
_ADDRESS = """SELECT pg_catalog.host(pg_catalog.inet_server_addr()),
    pg_catalog.inet_server_port(), pg_catalog.inet_client_port()"""

# pgpool-II answers this itself: https://www.pgpool.net/docs/latest/en/html/sql-commands.html
_POOLER = "SHOW pool_version"


_NAMES = re.compile(
    "|".join(set(re.findall(r"pg_(?!catalog)\w+|set_config", f"{_PARTS}{_INSTEAD}{_OTHERS}")))
)


class Questions(NamedTuple):
    """What may be asked inside of a transaction; None for what the server would refuse."""

    quick: str | None = None
    """For the transaction's id, on a connection whose backend is known."""
    full: str | None = None
    """For its id and its backend."""
    backend: str | None = None
    """For the backend alone, which is asked for outside of a transaction too."""
    assigning: str | None = None
    """The same, and the transaction has an id afterwards."""
    reading: str | None = None
    """A condition that holds as long as the transaction has written nothing."""
    marks: bool = False
    """Whether a parameter can be set for the rest of a transaction."""
    takes_messages: bool = False
    """Whether nothing in between reads a message of several statements as its first alone."""
    refused: tuple[str, ...] = ()
    """What the server does not tell, by the names of its functions."""

    @property
    def unless_reading(self) -> str | None:
        """The full question, and a transaction that has written something has an id afterwards."""
        if self.assigning is None or self.reading is None:
            return self.full
        return self.assigning.replace("CASE WHEN", f"CASE WHEN NOT ({self.reading}) AND", 1)


NO_QUESTIONS = Questions()
"""Where nothing has been found out yet."""


def find_out(connection: PooledConnection) -> Questions:
    """Ask a server everything once; return what may be asked of it.

    Args:
        connection: One in autocommit, without a transaction.

    Raises:
        psycopg.Error: The connection was lost, or what the server says of the present moment says
            nothing of the next.
    """
    parts = _parts(connection)
    others = {name: _answers(connection, question) for name, question in _OTHERS.items()}
    refused = [name for name, part in parts.items() if part is None]
    refused += [name for name, answers in others.items() if not answers]
    takes_messages = _is_direct(connection) or not _answers(connection, _POOLER)
    # For pgpool-II, whose standbys know nothing of a transaction.
    select = "SELECT" if takes_messages else "/*NO LOAD BALANCE*/ SELECT"
    xid, *rest = (part or "NULL" for part in parts.values())
    backend = f"{select} {', '.join(rest)}"
    full = assigning = reading = None
    if parts[_ID] is not None:
        full = f"{select} {', '.join([xid, *rest])}"
        reading = _READING if others[_LOCKS] else None
        if others[_ASSIGNING]:
            assigning = full.replace(_XID, _ASSIGNED)
    return Questions(
        quick=full and f"{select} {xid}, {rest[0]}",
        full=full,
        backend=backend,
        assigning=assigning,
        reading=reading,
        marks=others[_MARKING],
        takes_messages=takes_messages,
        refused=tuple(refused),
    )


def ask(connection: psycopg.Connection[Any], question: str) -> list[str | None]:
    """Ask in a round trip of its own; return the values of the first row.

    Raises:
        psycopg.Error: The server has refused, or the connection is lost.
    """
    ours = connection if isinstance(connection, PooledConnection) else None
    with ours.unobserved() if ours is not None else nullcontext():
        cursor = psycopg.ClientCursor(connection).execute(question)
    answer = cursor.pgresult
    if answer is None or not answer.ntuples:
        return []
    values = (answer.get_value(0, column) for column in range(answer.nfields))
    return [value.decode() if value is not None else None for value in values]


def is_about_a_question(error: psycopg.Error) -> bool:
    """Tell whether a role may not ask what is asked: names are in messages of any language."""
    return error.sqlstate == "42501" and _NAMES.search(str(error)) is not None


def refusals(connection: psycopg.Connection[Any]) -> list[str]:
    """Return what the server does not tell, by the names of its functions.

    Args:
        connection: Any of psycopg's, in a transaction or not.

    Raises:
        psycopg.Error: As `find_out`.
    """
    return [name for name, part in _parts(connection).items() if part is None] + [
        name for name, question in _OTHERS.items() if not _answers(connection, question)
    ]


def _parts(connection: psycopg.Connection[Any]) -> dict[str, str | None]:
    """Return what can be asked for each of the parts; None for what is refused."""
    if _answers(connection, f"SELECT {', '.join(_PARTS.values())}"):
        return dict(_PARTS)
    found: dict[str, str | None] = {}
    for name, part in _PARTS.items():
        candidates = [part, _INSTEAD[name]] if name in _INSTEAD else [part]
        answered = (each for each in candidates if _answers(connection, f"SELECT {each}"))
        found[name] = next(answered, None)
    return found


def _answers(connection: psycopg.Connection[Any], question: str) -> bool:
    within = connection.info.transaction_status == TransactionStatus.INTRANS
    try:
        with connection.transaction() if within else nullcontext():
            ask(connection, question)
    except psycopg.Error as error:
        if error.sqlstate == READ_ONLY:
            # A standby, which will answer once it is promoted.
            return True
        if not is_refusal(error):
            raise
        return False
    return True


def _is_direct(connection: PooledConnection) -> bool:
    """Tell whether the server sees the very ends of the connection that are seen from here."""
    info = connection.info
    try:
        seen = ask(connection, _ADDRESS)
        with closing(socket.socket(fileno=os.dup(connection.fileno()))) as duplicate:
            own = duplicate.getsockname()
    except OSError:
        return False
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        return False
    is_tcp = isinstance(own, tuple)
    return is_tcp and seen == [info.hostaddr, str(info.port), str(own[1])]
