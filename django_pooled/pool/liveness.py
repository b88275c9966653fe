"""Whether an idle connection is alive: by its socket, or by a round trip with a time limit."""

from __future__ import annotations

import select
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from .socket_check import reads_on

if TYPE_CHECKING:
    from .connection import PooledConnection

__all__ = ["answers", "ending_of", "looks_alive"]


def looks_alive(connection: PooledConnection) -> bool:
    """Look at the connection's socket, without a round trip.

    An idle connection has nothing to read. If it has, libpq reads it: an end of file or an
    error means dead, and so does a FATAL message of the server (it arrives as a notice);
    a NOTIFY, a parameter's change or a mere notice does not.
    """
    if connection.pgconn.status != ConnStatus.OK or connection.session.doomed_by is not None:
        return False
    # The server may say goodbye in one packet and close in another.
    return (
        reads_on(connection.pgconn, connection.session.is_readable)
        and connection.session.doomed_by is None
    )


def ending_of(connection: PooledConnection) -> psycopg.Error | None:
    """Return the error with which the session of an idle connection has ended; None if it has not.

    Without a round trip, as `looks_alive`. The error is the one that a statement would have met.
    """
    session = connection.session
    if reads_on(connection.pgconn, session.is_readable) and session.goodbye is None:
        return None
    if session.goodbye is None:
        return psycopg.OperationalError(connection.pgconn.get_error_message().strip())
    kind: type[psycopg.Error] = psycopg.OperationalError
    with suppress(KeyError):
        kind = psycopg.errors.lookup(session.goodbye)
    return kind(session.doomed_by or "the server has ended the session")


def answers(connection: PooledConnection, timeout: float) -> bool:
    """Make one round trip with an empty query, within *timeout* seconds.

    psycopg's own execute() waits without a limit, so this talks to libpq:
    https://www.postgresql.org/docs/current/libpq-async.html
    """
    deadline = monotonic() + timeout
    pgconn = connection.pgconn
    try:
        pgconn.send_query(b"")
        while pgconn.flush():
            if not _ready(pgconn.socket, reading=False, timeout=deadline - monotonic()):
                return False
        while True:
            while pgconn.is_busy():
                if not _ready(pgconn.socket, reading=True, timeout=deadline - monotonic()):
                    return False
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                break
            if result.status != ExecStatus.EMPTY_QUERY:
                return False
    except psycopg.OperationalError:
        return False
    return pgconn.transaction_status == TransactionStatus.IDLE


def _ready(socket: int, *, reading: bool, timeout: float) -> bool:
    timeout = max(0.0, timeout)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, select.POLLIN if reading else select.POLLOUT)
        return bool(poll.poll(timeout * 1000))
    wanted = [socket]
    ready = select.select(wanted if reading else [], [] if reading else wanted, [], timeout)
    return bool(ready[0] or ready[1])
