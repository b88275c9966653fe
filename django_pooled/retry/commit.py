"""Sends COMMIT, and finds out what became of it when the answer was lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from django.db.backends.utils import debug_transaction
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.errors import AmbiguousCommit
from django_pooled.log_facts import facts
from django_pooled.sqlstates import UNKNOWN_OUTCOME, psycopg_error

from . import rehearsal
from .attempt import is_idle
from .inquiry import inquire
from .phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.base import DatabaseWrapper
    from django_pooled.connection import PooledConnection

    from .attempt import Attempt

__all__ = ["ambiguous", "commit", "commit_once", "resolve"]

logger = logging.getLogger("django_pooled.retry")

# For a transaction that, as far as is known, has written nothing. The division fails where a
# function or another kind of cursor has written after all: then COMMIT is not run, and what has
# to be known is asked first. Where it does not fail, nothing is lost with the answer. All of it
# is one message, so that a transaction that only reads pays no round trip.
_SAVEPOINT = "django_pooled_commit"
_COMMIT_IF_NOTHING_WRITTEN = f"""SAVEPOINT {_SAVEPOINT};
SELECT 1 / (pg_catalog.pg_current_xact_id_if_assigned() IS NULL)::pg_catalog.int4;
COMMIT"""

_ANSWERED = (TransactionStatus.IDLE, TransactionStatus.INERROR)
"""What a connection is in when the server has had the last word."""


def commit(wrapper: DatabaseWrapper, attempt: Attempt, send: Callable[[], None]) -> None:
    """Commit an attempt's transaction; when the connection is lost meanwhile, find out.

    Args:
        wrapper: Whose transaction it is.
        attempt: Its `phase` tells the outcome.
        send: Sends COMMIT.

    Raises:
        django.db.Error: Nothing was committed.
        AmbiguousCommit: It cannot be told whether the transaction was committed.
    """
    try:
        _send(wrapper, attempt, send)
    except Exception as error:
        if attempt.phase is not Phase.COMMIT_SENT:
            raise
        if _is_known_to_have_failed(wrapper, error):
            attempt.phase = Phase.FAILED
            raise
        if psycopg_error(error) is None:
            # A time limit of the caller's own, for instance: it wants no answer any more. On a
            # connection that still waits for one Django's next step would fail, in its place.
            attempt.phase = Phase.UNKNOWN
            wrapper.close()
            raise
        outcome = resolve(wrapper, attempt)
        if outcome is Phase.FAILED:
            raise
        if outcome is Phase.UNKNOWN:
            raise ambiguous(wrapper) from error
    attempt.phase = Phase.COMMITTED


def commit_once(wrapper: DatabaseWrapper, send: Callable[[], None]) -> None:
    """Commit where nobody could run the transaction again.

    Raises:
        AmbiguousCommit: The connection was lost meanwhile. Anything else that says "lost" would
            read as "nothing happened, try again".
    """
    began = wrapper.connection.info.transaction_status == TransactionStatus.INTRANS
    try:
        send()
    except Exception as error:
        if began and psycopg_error(error) and not _is_known_to_have_failed(wrapper, error):
            raise ambiguous(wrapper) from error
        raise


def _send(wrapper: DatabaseWrapper, attempt: Attempt, send: Callable[[], None]) -> None:
    rider = attempt.rider
    attempt.phase = Phase.COMMIT_SENT
    rehearsal.strike(wrapper, "commit")
    incomplete = rider is not None and (rider.testimony is None or rider.has_to_ask)
    if rider is not None and incomplete and not is_idle(wrapper):
        with debug_transaction(wrapper, "COMMIT"), wrapper.wrap_database_errors:
            if not rider.has_to_ask and _committed_if_nothing_written(wrapper.connection):
                rehearsal.strike(wrapper, "answer")
                return
            attempt.phase = Phase.BODY
            rider.ask()
        attempt.phase = Phase.COMMIT_SENT
    send()
    rehearsal.strike(wrapper, "answer")


def _committed_if_nothing_written(connection: PooledConnection) -> bool:
    try:
        connection.execute(_COMMIT_IF_NOTHING_WRITTEN, prepare=False)
    except psycopg.errors.DivisionByZero:
        if connection.info.transaction_status != TransactionStatus.INERROR:
            raise  # pragma: no cover - COMMIT has nothing to check where nothing was written
        connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        return False
    return True


def _is_known_to_have_failed(wrapper: DatabaseWrapper, error: Exception) -> bool:
    """Tell whether the server itself said so: on a live connection that waits for no answer."""
    connection, found = wrapper.connection, psycopg_error(error)
    return (
        found is not None
        and found.sqlstate is not None
        and found.sqlstate not in UNKNOWN_OUTCOME
        and connection is not None
        and connection.pgconn.status == ConnStatus.OK
        and connection.info.transaction_status in _ANSWERED
    )


def resolve(wrapper: DatabaseWrapper, attempt: Attempt) -> Phase:
    """Find out, on another connection, what became of a transaction; it is the attempt's phase.

    Returns:
        COMMITTED, FAILED or UNKNOWN. After COMMITTED the wrapper has a connection that works,
        for the on_commit callbacks that come next.
    """
    # Whatever happens while it is found out, this is what is known until then.
    attempt.phase = Phase.UNKNOWN
    if attempt.commit_check.never_asks:
        outcome = Phase.UNKNOWN
    elif attempt.rider is None or attempt.rider.testimony is None:
        # Nothing was written, so nothing is lost by running it again.
        outcome = Phase.FAILED
    else:
        outcome = inquire(wrapper, attempt, attempt.rider.testimony)
    attempt.phase = outcome
    log = logger.warning if outcome is Phase.UNKNOWN else logger.info
    log(
        "database %r: COMMIT had no answer, and is %s",
        wrapper.alias,
        outcome.value,
        extra=facts("commit_resolved", alias=wrapper.alias, outcome=outcome.value),
    )
    pool = wrapper.pool
    if pool is not None:
        pool.record.add("lost_commits", outcome.value)
    if outcome is Phase.UNKNOWN and attempt.commit_check.runs_again:
        # After it was logged and counted: a guess is nothing that anybody found out.
        attempt.commit_check.has_guessed = True
        attempt.phase = outcome = Phase.FAILED
    return outcome


def ambiguous(wrapper: DatabaseWrapper) -> AmbiguousCommit:
    """Make the error for a COMMIT of which nobody can tell whether it was done."""
    return AmbiguousCommit(
        f"database {wrapper.alias!r}: the connection was lost while COMMIT was under way, and "
        f"whether the transaction was committed cannot be told"
    )
