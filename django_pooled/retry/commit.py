"""COMMIT of a retried transaction with a proof, and what became of one without an answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from django.db.backends.utils import debug_transaction
from psycopg.pq import TransactionStatus

from django_pooled.backend.commit import ambiguous, is_idle, is_known_to_have_failed
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.errors import AmbiguousCommit
from django_pooled.sql.sqlstates import is_refusal, psycopg_error

from .commit_outcome import inquire
from .phase import Phase
from .server_identity import learned_of, prove_reading_in_full, questions_for
from .server_questions import has_foreign_tables, refusals

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .transaction import Transaction
    from .transaction_id import TransactionWatch

__all__ = ["committed_with_proof", "refuse_if_a_question_failed", "resolve", "was_committed"]

logger = logging.getLogger("django_pooled.retry")

# The division fails if the condition does not hold: then COMMIT is not run, and the question is
# asked first. If COMMIT was run, the condition held, even if the answer is lost. All of it is one
# message and costs no further round trip.
_SAVEPOINT = "django_pooled_commit"
_COMMIT_IF = f"""SAVEPOINT {_SAVEPOINT};
SELECT 1 / ({{condition}})::pg_catalog.int4;
COMMIT"""


def refuse_if_a_question_failed(transaction: Transaction) -> None:
    """Refuse to commit if a question of ours may have failed a statement of the function.

    It may have survived that, in a savepoint for instance, as if its statement had failed.

    Raises:
        django.db.Error: The server refuses now what could be asked when the attempt began.
    """
    wrapper = transaction.wrapper
    if transaction.questions is None or is_idle(wrapper):
        return
    may_have_caused = transaction.commit_check.may_have_caused
    blamed = next((each for each in transaction.failures if may_have_caused(each.error)), None)
    if blamed is not None:
        with wrapper.wrap_database_errors:
            raise blamed.error
    suspect = next((each for each in transaction.failures if is_refusal(each.error)), None)
    if suspect is None:
        return
    with wrapper.wrap_database_errors:
        if not set(refusals(wrapper.connection)) <= set(transaction.questions.refused):
            raise suspect.error


def committed_with_proof(transaction: Transaction, watch: TransactionWatch) -> bool:
    """Commit only if an assumption holds, in one message; tell whether that was done.

    The assumption is that nothing was written, or that the record is there. If it does not
    hold, the questions are asked that COMMIT must not be sent without.
    """
    wrapper, record = transaction.wrapper, watch.record
    connection: PooledConnection = wrapper.connection
    questions, seems_to_read = questions_for(connection), watch.identity is None
    condition = None
    if not watch.has_to_ask and questions.quick is not None:
        if seems_to_read:
            condition = questions.quick_reading
        elif record is not None:
            condition = record.proof
    if condition is not None and learned_of(connection).is_direct and questions.takes_messages:
        transaction.wrote_nothing = seems_to_read
        with debug_transaction(wrapper, "COMMIT"), wrapper.wrap_database_errors:
            if _committed_if(connection, condition):
                return True
        transaction.wrote_nothing = False
    # None of this is COMMIT yet: what fails here has committed nothing.
    transaction.phase = Phase.BODY
    with wrapper.wrap_database_errors:
        if seems_to_read and condition is not None:
            transaction.wrote_nothing = not watch.ask_whether_it_wrote()
            if transaction.wrote_nothing:
                # The database has foreign tables by now.
                prove_reading_in_full(connection)
        if not transaction.wrote_nothing:
            watch.ask()
    transaction.phase = Phase.COMMIT_SENT
    return False


def was_committed(transaction: Transaction, error: BaseException) -> bool:
    """Tell whether the transaction was committed, though its COMMIT raised *error*.

    Raises:
        AmbiguousCommit: It cannot be told.
    """
    wrapper, check = transaction.wrapper, transaction.commit_check
    if psycopg_error(error) is None:
        # A time limit of the caller's own, for instance: it does not wait for the answer.
        transaction.phase = Phase.UNKNOWN
        return False
    if is_known_to_have_failed(wrapper, error):
        if _may_have_left_foreign_rows(transaction, error):
            transaction.phase = Phase.UNKNOWN
            if not check.runs_again:
                check.may_be_partial = True
                raise _partly_ambiguous(wrapper) from error
            check.has_guessed = True
        transaction.phase = Phase.FAILED
        return False
    outcome = resolve(transaction)
    if outcome is Phase.UNKNOWN:
        raise ambiguous(wrapper) from error
    return outcome is Phase.COMMITTED


def resolve(transaction: Transaction) -> Phase:
    """Find out, on another connection, what became of the transaction; it is the new phase.

    Returns:
        COMMITTED, FAILED or UNKNOWN. The wrapper has a connection that works, or none.
    """
    wrapper, check = transaction.wrapper, transaction.commit_check
    was_sent = transaction.phase is Phase.COMMIT_SENT
    # Nothing can be committed without COMMIT, or if the server found that nothing was written.
    has_nothing = transaction.wrote_nothing or (not was_sent and not transaction.has_written)
    # Set before any question is asked: whatever fails meanwhile, nothing is run twice.
    transaction.phase = Phase.UNKNOWN
    if check.never_asks:
        outcome = Phase.UNKNOWN
    elif has_nothing:
        # It can be run again.
        outcome = Phase.FAILED
    else:
        outcome = inquire(
            wrapper,
            check,
            transaction.abandoned,
            was_sent=was_sent,
            deadline=transaction.deadline,
            sleep=transaction.policy.sleep,
        )
    transaction.phase = outcome
    log = logger.warning if outcome is Phase.UNKNOWN else logger.info
    log(
        "database %r: the answer to COMMIT was lost; the transaction is %s",
        wrapper.alias,
        outcome.value,
        extra=event_fields("commit_resolved", alias=wrapper.alias, outcome=outcome.value),
    )
    pool = wrapper.pool
    if pool is not None:
        pool.record.add("lost_commits", outcome.value)
    if outcome is Phase.UNKNOWN and check.runs_again:
        # After it was logged and counted as unknown: this is only a guess.
        check.has_guessed = True
        transaction.phase = outcome = Phase.FAILED
    return outcome


def _may_have_left_foreign_rows(transaction: Transaction, error: BaseException) -> bool:
    """Tell whether rows of a foreign server may stay, though COMMIT has failed here.

    postgres_fdw commits them before the local transaction, which can fail afterwards (40001),
    and the answer of the foreign server can be lost.
    """
    connection, watch = transaction.wrapper.connection, transaction.watch
    if watch is None or connection.info.transaction_status != TransactionStatus.IDLE:
        # COMMIT itself has not failed.
        return False
    if watch.asks and transaction.wrote_nothing:
        return False
    found = psycopg_error(error)
    if found is not None and found.diag.constraint_name:
        # Deferred constraints are checked before anything is committed anywhere.
        return False
    try:
        return has_foreign_tables(connection)
    except psycopg.Error:
        return True


def _committed_if(connection: PooledConnection, condition: str) -> bool:
    connection.session.is_committing = True
    try:
        connection.execute(_COMMIT_IF.format(condition=condition), prepare=False)
    except psycopg.errors.DivisionByZero:
        if connection.info.transaction_status != TransactionStatus.INERROR:
            raise  # pragma: no cover - a deferred trigger's own division
        connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        return False
    finally:
        connection.session.is_committing = False
    return True


def _partly_ambiguous(wrapper: DatabaseWrapper) -> AmbiguousCommit:
    return AmbiguousCommit(
        f"database {wrapper.alias!r}: COMMIT failed, but rows of a foreign server may have been "
        f"committed before that; the database has foreign tables, and whether the transaction "
        f"wrote to them cannot be told",
        alias=wrapper.alias,
    )
