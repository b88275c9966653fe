"""Sends COMMIT, and finds out what became of it when the answer was lost."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from django.db.backends.utils import debug_transaction
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.diagnostics.log_fields import facts
from django_pooled.errors import AmbiguousCommit
from django_pooled.pool.liveness import ending_of
from django_pooled.sql.sqlstates import UNKNOWN_OUTCOME, is_refusal, psycopg_error

from . import fault_injection
from .attempt import is_idle
from .phase import Phase
from .resolve import inquire
from .server_identity import known, refusals
from .transaction_status import has_foreign_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .attempt import Attempt
    from .transaction_id import Rider

__all__ = ["ambiguous", "commit", "commit_once", "resolve", "unless_interrupted"]

logger = logging.getLogger("django_pooled.retry")

# The division fails where a condition does not hold: then COMMIT is not run, and what has to be
# known is asked first. Where it does not fail, what was assumed was so, whatever becomes of the
# answer. All of it is one message, and costs no round trip.
_SAVEPOINT = "django_pooled_commit"
_COMMIT_IF = f"""SAVEPOINT {_SAVEPOINT};
SELECT 1 / ({{condition}})::pg_catalog.int4;
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
        with unless_interrupted(wrapper):
            _send(wrapper, attempt, send)
    except BaseException as error:
        if attempt.phase is not Phase.COMMIT_SENT:
            raise
        if psycopg_error(error) is None:
            # A time limit of the caller's own, for instance: it wants no answer any more.
            attempt.phase = Phase.UNKNOWN
            raise
        if _is_known_to_have_failed(wrapper, error):
            if _may_have_left_foreign_rows(wrapper, attempt, error):
                attempt.phase = Phase.UNKNOWN
                if not attempt.commit_check.runs_again:
                    raise _partly_ambiguous(wrapper) from error
                attempt.commit_check.has_guessed = True
            attempt.phase = Phase.FAILED
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
        django.db.Error: Nothing was committed.
        AmbiguousCommit: The connection was lost meanwhile. Anything else that says "lost" would
            read as "nothing happened, try again".
    """
    began = wrapper.connection.info.transaction_status == TransactionStatus.INTRANS
    with unless_interrupted(wrapper):
        _refuse_if_ended(wrapper)
        try:
            send()
        except Exception as error:
            if began and psycopg_error(error) and not _is_known_to_have_failed(wrapper, error):
                raise ambiguous(wrapper) from error
            raise


@contextmanager
def unless_interrupted(wrapper: DatabaseWrapper) -> Iterator[None]:
    """Let go of the connection when something else than its own errors interrupts this block.

    A time limit of the caller's own, for instance, which may be no Exception at all. On a
    connection that still waits for an answer, or is still in its transaction, Django's next step
    would fail, and that error take the place of the interruption.
    """
    try:
        yield
    except BaseException as error:
        if psycopg_error(error) is None and not is_idle(wrapper):
            wrapper.close()
        raise


def _send(wrapper: DatabaseWrapper, attempt: Attempt, send: Callable[[], None]) -> None:
    _refuse_if_ended(wrapper)
    _refuse_if_failed_by_us(wrapper, attempt)
    attempt.phase = Phase.COMMIT_SENT
    fault_injection.strike(wrapper, "commit")
    rider = attempt.rider
    if rider is None or not rider.asks or is_idle(wrapper):
        attempt.wrote_nothing = True
        send()
    elif not _committed_with_proof(wrapper, attempt, rider):
        send()
    fault_injection.strike(wrapper, "answer")


def _refuse_if_ended(wrapper: DatabaseWrapper) -> None:
    """Notice, without a round trip, that the session ended while its transaction idled.

    Were COMMIT sent all the same, it would read as if the transaction might be committed.

    Raises:
        django.db.Error: It ended, and the transaction with it.
    """
    connection = wrapper.connection
    if connection.info.transaction_status != TransactionStatus.INTRANS:
        return
    error = ending_of(connection)
    if error is not None:
        connection.close()
        with wrapper.wrap_database_errors:
            raise error


def _refuse_if_failed_by_us(wrapper: DatabaseWrapper, attempt: Attempt) -> None:
    """Notice that a question of ours may have failed a statement whose failure the body survived.

    To the body it may have looked as if its statement had failed, in a savepoint for instance.

    Raises:
        django.db.Error: The server refuses now what could be asked when the attempt began.
    """
    if not attempt.failures or attempt.questions is None or is_idle(wrapper):
        return
    check = attempt.commit_check
    blamed = next((each for each in attempt.failures if check.is_to_blame(each.error)), None)
    if blamed is not None:
        with wrapper.wrap_database_errors:
            raise blamed.error
    suspect = next((each for each in attempt.failures if is_refusal(each.error)), None)
    if suspect is None:
        return
    with wrapper.wrap_database_errors:
        if not set(refusals(wrapper.connection)) <= set(attempt.questions.refused):
            raise suspect.error


def _committed_with_proof(wrapper: DatabaseWrapper, attempt: Attempt, rider: Rider) -> bool:
    """Have the server confirm what is assumed of the transaction; tell whether it is committed.

    Afterwards either nothing was written, or what it is looked up by is known and part of it, as
    far as this server tells.
    """
    connection, record = wrapper.connection, attempt.commit_check.record
    questions, seems_to_read = known(connection), rider.testimony is None
    if rider.has_to_ask or questions.quick is None:
        condition = None
    elif seems_to_read:
        condition = questions.reading
    elif record is None:
        return False
    else:
        condition = record.proof
    if condition is not None and connection.life.direct and questions.takes_messages:
        attempt.wrote_nothing = seems_to_read
        with debug_transaction(wrapper, "COMMIT"), wrapper.wrap_database_errors:
            if _committed_if(connection, condition):
                return True
        attempt.wrote_nothing = False
    # None of this is COMMIT yet: what fails here has committed nothing.
    attempt.phase = Phase.BODY
    with wrapper.wrap_database_errors:
        if seems_to_read and condition is not None:
            attempt.wrote_nothing = not rider.ask_whether_it_wrote()
        if not attempt.wrote_nothing:
            rider.ask()
    attempt.phase = Phase.COMMIT_SENT
    return False


def _committed_if(connection: PooledConnection, condition: str) -> bool:
    try:
        connection.execute(_COMMIT_IF.format(condition=condition), prepare=False)
    except psycopg.errors.DivisionByZero:
        if connection.info.transaction_status != TransactionStatus.INERROR:
            raise  # pragma: no cover - a deferred trigger's own division
        connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        return False
    return True


def _is_known_to_have_failed(wrapper: DatabaseWrapper, error: BaseException) -> bool:
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


def _may_have_left_foreign_rows(
    wrapper: DatabaseWrapper, attempt: Attempt, error: BaseException
) -> bool:
    """Tell whether rows of a foreign server may stay, though COMMIT has failed here.

    postgres_fdw commits them before the local transaction, which can fail afterwards (40001), and
    the answer of the foreign server can be lost.
    """
    connection, found, rider = wrapper.connection, psycopg_error(error), attempt.rider
    if rider is None or connection.info.transaction_status != TransactionStatus.IDLE:
        # What failed was not COMMIT itself.
        return False
    if rider.asks and attempt.wrote_nothing:
        return False
    if found is not None and found.diag.constraint_name:
        # Deferred constraints come before anything is committed anywhere.
        return False
    try:
        return has_foreign_tables(connection)
    except psycopg.Error:
        return True


def resolve(wrapper: DatabaseWrapper, attempt: Attempt) -> Phase:
    """Find out, on another connection, what became of a transaction; it is the attempt's phase.

    Returns:
        COMMITTED, FAILED or UNKNOWN. The wrapper has a connection that works, or none.
    """
    testimony = attempt.rider.testimony if attempt.rider is not None else None
    # Without COMMIT, or by the server's own word, there is nothing that could be committed.
    has_nothing = attempt.wrote_nothing or (
        attempt.phase is not Phase.COMMIT_SENT and testimony is None
    )
    was_sent = attempt.phase is Phase.COMMIT_SENT
    # Whatever happens while it is found out, this is what is known until then.
    attempt.phase = Phase.UNKNOWN
    if attempt.commit_check.never_asks:
        outcome = Phase.UNKNOWN
    elif has_nothing:
        # So nothing is lost by running it again.
        outcome = Phase.FAILED
    else:
        ghost = attempt.rider.ghost if attempt.rider else None
        outcome = inquire(wrapper, attempt, ghost, was_sent=was_sent)
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


def _partly_ambiguous(wrapper: DatabaseWrapper) -> AmbiguousCommit:
    return AmbiguousCommit(
        f"database {wrapper.alias!r}: COMMIT failed, but rows of a foreign server may have been "
        f"committed before that; the database has foreign tables, and whether the transaction "
        f"wrote to them cannot be told"
    )
