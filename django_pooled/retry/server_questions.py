"""Which questions a server answers: found out once, outside of any user's transaction.

Amazon Aurora refuses some of PostgreSQL's functions, an administrator may have revoked others, and
databases that only use its protocol have none of them. A refusal in a transaction would abort it.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import psycopg
from django.apps import apps
from psycopg.pq import TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.sqlstates import READ_ONLY, is_refusal
from django_pooled.tokens.table import APP, MARK

__all__ = [
    "NO_QUESTIONS",
    "Questions",
    "ask",
    "find_out",
    "has_foreign_tables",
    "is_about_a_question",
    "refusals",
]

# The questions, in this order. The first three are about a transaction and its backend. The others
# identify the server's incarnation, in which an id is given out once: after a crash or a failover
# another transaction may get the same number. pg_control_checkpoint() lags a promotion, the name of
# the current WAL file does not; the reset time of the statistics changes when the server recovers
# from the crash of one backend, its start time does not. Times are asked for as numbers, which do
# not depend on the session's settings.
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

# The view is slower, but may be readable where the function may not be called.
_INSTEAD = {
    "pg_stat_get_activity()": (
        "(SELECT EXTRACT(epoch FROM backend_start)"
        " FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())"
    ),
}

# A standby assigns no ids.
_ASSIGNED = f"CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN {_XID.replace(_ID, _ASSIGNING)} END"
# Rows of a foreign server give no id, but their table is locked like every other that is written
# to. Without foreign tables there is no need to search the server's locks, nor to plan that, which
# is most of what the question takes.
_HAS_FOREIGN = "EXISTS (SELECT FROM pg_catalog.pg_foreign_table)"
_READING_HERE = f"{_XID} IS NULL AND NOT {_HAS_FOREIGN}"
_READING = f"""{_XID} IS NULL AND (
    NOT {_HAS_FOREIGN}
    OR NOT EXISTS (SELECT FROM pg_catalog.pg_locks
        WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND mode IN (
        'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))"""
_HAS_FOREIGN_TABLES = "SELECT 1 FROM pg_catalog.pg_class WHERE relkind = 'f' LIMIT 1"
_LOCKS = "pg_locks"
# The status is asked for outside of users' transactions.
_OTHERS = {
    "pg_xact_status()": f"SELECT pg_catalog.pg_xact_status({_XID}::pg_catalog.xid8)",
    _ASSIGNING: f"SELECT {_ASSIGNED}",
    _LOCKS: f"SELECT {_READING}",
}
# The mark is for tokens. Without their app it is not tried: RDS Proxy keeps a session that has set
# a parameter for its client alone, for as long as that is connected.
_MARKING = "set_config()"
_MARKED = f"SELECT pg_catalog.set_config('{MARK}', '', true)"
_ADDRESS = """SELECT pg_catalog.host(pg_catalog.inet_server_addr()),
    pg_catalog.inet_server_port(), pg_catalog.inet_client_port()"""

# pgpool-II answers this itself: https://www.pgpool.net/docs/latest/en/html/sql-commands.html
_POOLER = "SHOW pool_version"


_NAMES = re.compile(
    "|".join(
        set(re.findall(r"pg_(?!catalog)\w+|set_config", f"{_PARTS}{_INSTEAD}{_OTHERS}{_MARKED}"))
    )
)


class Questions(NamedTuple):
    """The questions that may be asked in a transaction; None for those that would be refused."""

    quick: str | None = None
    """For the transaction's id, on a connection whose backend is known."""
    full: str | None = None
    """For its id and its backend."""
    backend: str | None = None
    """For the backend alone, also outside of a transaction."""
    assigning: str | None = None
    """As *full*, and an id is assigned."""
    reading: str | None = None
    """A condition that holds as long as the transaction has written nothing."""
    quick_reading: str | None = None
    """One that proves it, and costs less: it does not hold where there are foreign tables."""
    marks: bool = False
    """Whether a parameter can be set for the rest of a transaction."""
    takes_messages: bool = False
    """Whether a message may have several statements; some poolers look at the first alone."""
    refused: tuple[str, ...] = ()
    """The functions that the server refuses, by name."""

    @property
    def unless_reading(self) -> str | None:
        """As *full*, and an id is assigned if the transaction has written something."""
        if self.assigning is None or self.reading is None:
            return self.full
        return self.assigning.replace("CASE WHEN", f"CASE WHEN NOT ({self.reading}) AND", 1)


NO_QUESTIONS = Questions()
"""As long as nothing is found out."""


def find_out(connection: PooledConnection) -> Questions:
    """Ask a server every question once; return those that it answers.

    Args:
        connection: One in autocommit, without a transaction.

    Raises:
        psycopg.Error: The connection was lost, or the server failed for a reason that may pass.
    """
    parts = _parts(connection)
    others = {name: _answers(connection, question) for name, question in _others().items()}
    refused = [name for name, part in parts.items() if part is None]
    refused += [name for name, answers in others.items() if not answers]
    takes_messages = _is_direct(connection) or not _answers(connection, _POOLER)
    # So that pgpool-II does not send it to a standby.
    select = "SELECT" if takes_messages else "/*NO LOAD BALANCE*/ SELECT"
    xid, *rest = (part or "NULL" for part in parts.values())
    backend = f"{select} {', '.join(rest)}"
    full = assigning = reading = quick_reading = None
    if parts[_ID] is not None:
        full = f"{select} {', '.join([xid, *rest])}"
        if others[_LOCKS]:
            reading = _READING
            quick_reading = _READING if has_foreign_tables(connection) else _READING_HERE
        if others[_ASSIGNING]:
            assigning = full.replace(_XID, _ASSIGNED)
    return Questions(
        quick=full and f"{select} {xid}, {rest[0]}",
        full=full,
        backend=backend,
        assigning=assigning,
        reading=reading,
        quick_reading=quick_reading,
        marks=others.get(_MARKING, False),
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


def has_foreign_tables(connection: PooledConnection) -> bool:
    """Ask whether the database has foreign tables, whose rows are on another server.

    Raises:
        psycopg.Error: The question failed.
    """
    return ask(connection, _HAS_FOREIGN_TABLES) != []


def is_about_a_question(error: psycopg.Error) -> bool:
    """Tell whether an error refuses a question: it names the function, in any language."""
    return error.sqlstate == "42501" and _NAMES.search(str(error)) is not None


def refusals(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the functions that the server refuses, by name.

    Args:
        connection: Any of psycopg's, in a transaction or not.

    Raises:
        psycopg.Error: As `find_out`.
    """
    return [name for name, part in _parts(connection).items() if part is None] + [
        name for name, question in _others().items() if not _answers(connection, question)
    ]


def _others() -> dict[str, str]:
    """Return the questions that each stand for themselves."""
    return {**_OTHERS, _MARKING: _MARKED} if apps.is_installed(APP) else _OTHERS


def _parts(connection: psycopg.Connection[Any]) -> dict[str, str | None]:
    """Return how each of the parts can be asked for; None if it is refused."""
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
            # A standby will answer once it is promoted.
            return True
        if not is_refusal(error):
            raise
        return False
    return True


def _is_direct(connection: PooledConnection) -> bool:
    """Tell whether no pooler is between: both sides see the same ends of the connection."""
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
