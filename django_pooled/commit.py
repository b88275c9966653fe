"""One attempt of a transaction, and what became of its COMMIT when the answer was lost."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from .errors import AmbiguousCommit, PoolError
from .sqlstates import history, is_connection_lost, psycopg_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from .base import DatabaseWrapper
    from .connection import PooledConnection

__all__ = ["Attempt", "Phase", "commit_once"]

logger = logging.getLogger("django_pooled.retry")


class Phase(Enum):
    """How far an attempt got; every error is judged by it first."""

    BODY = "body"
    COMMIT_SENT = "commit sent"
    COMMITTED = "committed"
    FAILED = "failed"
    UNKNOWN = "unknown"


class _Incarnation(NamedTuple):
    """One life of a server, in which a transaction's id is given out once.

    After a crash or a failover the same number is handed out again, to somebody else's
    transaction; so an id means something only together with this.
    """

    system: int
    timeline: str | None
    started: datetime
    wal_reset: datetime | None
    standby: bool


class _Proof(NamedTuple):
    """What a COMMIT without an answer can be looked up by."""

    xid: str | None
    backend_pid: int
    incarnation: _Incarnation


# pg_control_checkpoint() lags a promotion, the name of the current WAL file does not; the
# statistics' reset time changes when the server recovers from the crash of one backend, which
# its start time does not. All of it is readable by any role that may log in.
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
_PROOF = """
    SELECT pg_catalog.pg_current_xact_id_if_assigned()::text,
           pg_catalog.pg_backend_pid(),
           (SELECT system_identifier FROM pg_catalog.pg_control_system()),
           CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.left(
               pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END,
           pg_catalog.pg_postmaster_start_time(),
           (SELECT stats_reset FROM pg_catalog.pg_stat_wal),
           pg_catalog.pg_is_in_recovery()
"""

# Ends a backend that still holds the transaction open: only ours (pid and id both), and only
# if it is idle, so that COMMIT never reached it. Its end makes the status final.
_END_IDLE = """
    SELECT pg_catalog.pg_terminate_backend(pid)
      FROM pg_catalog.pg_stat_activity
     WHERE pid = %s AND state LIKE 'idle in transaction%%'
       AND backend_xid = %s::pg_catalog.xid8::pg_catalog.xid
"""

_ASK_AGAIN_AFTER = 0.05
"""Seconds between two looks at a transaction that is still in progress."""


@dataclass
class Attempt:
    """One run of a retried transaction.

    Args:
        deadline: Monotonic instant after which nothing more is found out.
        commit_check: How a COMMIT without an answer is resolved: "xid" or "raise".
        sleep: Waits, in seconds.
    """

    deadline: float
    commit_check: str
    sleep: Callable[[float], None]
    phase: Phase = Phase.BODY
    errors: list[psycopg.Error] = field(default_factory=list)
    """Every database error on the connection, in order, swallowed ones included."""
    forgiven: int = 0
    """How many of them, from the first, a savepoint has undone."""

    def note(self, error: psycopg.Error) -> None:
        """Record an error of the connection."""
        if error not in self.errors:
            self.errors.append(error)

    def note_raised(self, wrapper: DatabaseWrapper, raised: BaseException) -> None:
        """Record what the body raised from below Django, if it has broken the transaction."""
        error = psycopg_error(raised)
        if error is not None and _is_broken(wrapper):
            self.note(error)

    def forgive(self) -> None:
        """A savepoint was rolled back to: what happened since then is undone."""
        self.forgiven = len(self.errors)

    def errors_behind(self, raised: BaseException) -> list[psycopg.Error]:
        """Return the recorded errors that count once the attempt has ended with *raised*.

        Those that no savepoint undid, whatever the body made of them, and those that it raised
        or was handling when it raised something else.
        """
        told = set(map(id, history(raised)))
        return [
            error
            for number, error in enumerate(self.errors)
            if number >= self.forgiven or id(error) in told
        ]

    def refuse_silent_rollback(self, wrapper: DatabaseWrapper) -> None:
        """Raise what was swallowed if the body has returned from a transaction that is lost.

        The server answers COMMIT in an aborted transaction with ROLLBACK and no error, and
        Django rolls back without a word where an exception was caught inside the block. A
        rollback that was asked for, by ``transaction.set_rollback(True)``, stays one.
        """
        unforgiven = self.errors[self.forgiven :]
        if unforgiven and _is_broken(wrapper):
            with wrapper.wrap_database_errors:
                raise unforgiven[0]
        if wrapper.closed_in_transaction:
            raise TransactionManagementError(
                f"The connection to {wrapper.alias!r} was closed inside its transaction, which "
                f"was therefore not committed."
            )
        if wrapper.needs_rollback and wrapper.rollback_exc is not None:
            raise wrapper.rollback_exc

    def commit(self, wrapper: DatabaseWrapper, send: Callable[[], None]) -> None:
        """Commit by *send*; when the connection is lost meanwhile, find out what happened.

        Raises:
            django.db.Error: Nothing was committed; `phase` tells that.
            AmbiguousCommit: It cannot be told whether the transaction was committed.
        """
        proof = None
        if self.commit_check == "xid":
            with wrapper.wrap_database_errors:
                proof = _read_proof(wrapper.connection)
        self.phase = Phase.COMMIT_SENT
        try:
            send()
        except Exception as error:
            if not is_connection_lost(error):
                self.phase = Phase.FAILED
                raise
            self.phase = self._resolve(wrapper, proof)
            if self.phase is Phase.FAILED:
                raise
            if self.phase is Phase.UNKNOWN:
                raise _ambiguous(wrapper) from error
            logger.info("database %r: COMMIT had no answer, and was done", wrapper.alias)
        self.phase = Phase.COMMITTED

    def _resolve(self, wrapper: DatabaseWrapper, proof: _Proof | None) -> Phase:
        pool = wrapper.pool
        if proof is None or pool is None:
            return Phase.UNKNOWN
        if proof.xid is None:
            # Nothing was written, so nothing is lost by running it again.
            return Phase.FAILED
        # First give back the broken one: threads that each held one while they wait for a
        # second would wait for each other.
        pool.checkin(wrapper.connection)
        while True:
            try:
                connection = pool.checkout()
            except PoolError as error:
                return self._unresolved(wrapper, error)
            try:
                outcome = self._ask(connection, proof)
            except psycopg.Error as error:
                pool.checkin(connection)
                # What took the first connection may well take this one.
                if is_connection_lost(error) and monotonic() < self.deadline:
                    self.sleep(_ASK_AGAIN_AFTER)
                    continue
                return self._unresolved(wrapper, error)
            if outcome is Phase.COMMITTED:
                # What follows, on_commit callbacks first, needs a connection that works.
                wrapper.connection = connection
            else:
                pool.checkin(connection)
            return outcome

    @staticmethod
    def _unresolved(wrapper: DatabaseWrapper, error: Exception) -> Phase:
        logger.warning("database %r: a COMMIT stays unresolved: %s", wrapper.alias, error)
        return Phase.UNKNOWN

    def _ask(self, connection: PooledConnection, proof: _Proof) -> Phase:
        while True:
            same_life = _read_proof(connection).incarnation == proof.incarnation
            status = _status(connection, proof)
            if status == "aborted":
                # Also after a crash: had it been committed, its id would not be free again.
                return Phase.FAILED
            if status == "committed" and same_life:
                return Phase.COMMITTED
            if status != "in progress" or not same_life or monotonic() >= self.deadline:
                return Phase.UNKNOWN
            connection.execute(_END_IDLE, [proof.backend_pid, proof.xid])
            self.sleep(_ASK_AGAIN_AFTER)


def _is_broken(wrapper: DatabaseWrapper) -> bool:
    return wrapper.connection is not None and wrapper.connection.info.transaction_status in (
        TransactionStatus.INERROR,
        TransactionStatus.UNKNOWN,
    )


def commit_once(wrapper: DatabaseWrapper, send: Callable[[], None]) -> None:
    """Commit by *send* where nobody could run the transaction again.

    Raises:
        AmbiguousCommit: The connection was lost meanwhile. Anything else that says "lost" would
            read as "nothing happened, try again".
    """
    began = wrapper.connection.info.transaction_status == TransactionStatus.INTRANS
    try:
        send()
    except Exception as error:
        if began and is_connection_lost(error):
            raise _ambiguous(wrapper) from error
        raise


def _ambiguous(wrapper: DatabaseWrapper) -> AmbiguousCommit:
    return AmbiguousCommit(
        f"database {wrapper.alias!r}: the connection was lost while COMMIT was under way, and "
        f"whether the transaction was committed cannot be told"
    )


def _read_proof(connection: psycopg.Connection[object]) -> _Proof:
    row = connection.execute(_PROOF).fetchone()
    assert isinstance(row, tuple)
    return _Proof(row[0], row[1], _Incarnation(*row[2:]))


def _status(connection: PooledConnection, proof: _Proof) -> str | None:
    row = connection.execute(
        "SELECT pg_catalog.pg_xact_status(%s::pg_catalog.xid8)", [proof.xid]
    ).fetchone()
    return row[0] if row else None
