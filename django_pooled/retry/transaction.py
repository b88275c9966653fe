"""COMMIT of a retried transaction, and what became of one without an answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from django.db.backends.utils import debug_transaction
from psycopg.pq import TransactionStatus

from django_pooled.backend.commit import (
    ambiguous,
    close_if_interrupted,
    is_idle,
    is_known_to_have_failed,
    refuse_if_session_ended,
)
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.errors import AmbiguousCommit
from django_pooled.sql.sqlstates import is_refusal, psycopg_error

from .commit_outcome import inquire
from .failures import Failures
from .phase import Phase
from .server_identity import learned_of, questions_for
from .server_questions import refusals
from .transaction_status import has_foreign_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .commit_checks import CommitCheck
    from .policy import Policy
    from .server_questions import Questions
    from .transaction_id import TransactionWatch
    from .transaction_status import TransactionIdentity

__all__ = ["Transaction"]

logger = logging.getLogger("django_pooled.retry")

# The division fails if the condition does not hold: then COMMIT is not run, and the question is
# asked first. If COMMIT was run, the condition held, even if the answer is lost. All of it is one
# message and costs no further round trip.
_SAVEPOINT = "django_pooled_commit"
_COMMIT_IF = f"""SAVEPOINT {_SAVEPOINT};
SELECT 1 / ({{condition}})::pg_catalog.int4;
COMMIT"""


class Transaction:
    """One transaction: what it has met, and how it is committed.

    Args:
        policy: How it is run.
        wrapper: On which database.
        commit_check: How a COMMIT without an answer is resolved.
        deadline: Monotonic instant after which nothing more is found out.
        name: Of the function, for messages.
    """

    phase: Phase = Phase.BODY
    questions: Questions | None = None
    """What may be asked inside the transaction; None where nothing is."""
    watch: TransactionWatch | None = None
    """Sees its statements and finds out its id; None within an outer transaction."""
    restore: Callable[[], None] | None = None
    """Gives the connection back what it had before; for callbacks after COMMIT, too."""
    wrote_nothing: bool = False
    """Whether COMMIT was sent so that it can succeed only if nothing was written."""

    def __init__(
        self,
        policy: Policy,
        wrapper: DatabaseWrapper,
        commit_check: CommitCheck,
        deadline: float,
        name: str,
    ) -> None:
        self.policy = policy
        self.wrapper = wrapper
        self.commit_check = commit_check
        self.deadline = deadline
        self.name = name
        self.failures = Failures()

    def commit(self, send: Callable[[], None]) -> None:
        """Commit; where the connection is lost meanwhile, find out whether that was done.

        Args:
            send: Sends COMMIT.

        Raises:
            django.db.Error: Nothing was committed.
            AmbiguousCommit: It cannot be told whether the transaction was committed.
        """
        wrapper = self.wrapper
        try:
            refuse_if_session_ended(wrapper)
            if self.failures.seen:
                self._refuse_if_a_question_failed()
            self.phase = Phase.COMMIT_SENT
            self._send_commit(send)
        except BaseException as error:
            close_if_interrupted(wrapper, error)
            if self.phase is not Phase.COMMIT_SENT or not self._was_committed(error):
                raise
        self.phase = Phase.COMMITTED
        # on_commit callbacks, which run next, have transactions of their own.
        self.end()

    def end(self) -> None:
        """The transaction has ended: let go of its wrapper and its connection."""
        self.wrapper.attempt = None
        if self.restore is not None:
            restore, self.restore = self.restore, None
            restore()
        if self.watch is not None:
            self.watch.stop()

    def resolve(self) -> Phase:
        """Find out, on another connection, what became of the transaction; it is the new phase.

        Returns:
            COMMITTED, FAILED or UNKNOWN. The wrapper has a connection that works, or none.
        """
        wrapper, check = self.wrapper, self.commit_check
        was_sent = self.phase is Phase.COMMIT_SENT
        # Nothing can be committed without COMMIT, or if the server found that nothing was written.
        has_nothing = self.wrote_nothing or (not was_sent and not self.has_written)
        # Set before any question is asked: whatever fails meanwhile, nothing is run twice.
        self.phase = Phase.UNKNOWN
        if check.never_asks:
            outcome = Phase.UNKNOWN
        elif has_nothing:
            # It can be run again.
            outcome = Phase.FAILED
        else:
            outcome = inquire(
                wrapper,
                check,
                self.abandoned,
                was_sent=was_sent,
                deadline=self.deadline,
                sleep=self.policy.sleep,
            )
        self.phase = outcome
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
            self.phase = outcome = Phase.FAILED
        return outcome

    @property
    def has_written(self) -> bool:
        """Whether the transaction has an id, which it gets with its first write."""
        return self.watch is not None and self.watch.identity is not None

    @property
    def abandoned(self) -> TransactionIdentity | None:
        """What may hold its locks on the server when its connection is lost before COMMIT."""
        return self.watch.abandoned if self.watch is not None else None

    def _send_commit(self, send: Callable[[], None]) -> None:
        watch = self.watch
        if watch is None:
            send()
        elif watch.identity is not None and watch.record is None and not watch.has_to_ask:
            # If the answer is lost, its status can be asked for.
            send()
        elif not watch.asks or is_idle(self.wrapper):
            self.wrote_nothing = True
            send()
        elif not self._committed_with_proof(watch):
            send()

    def _committed_with_proof(self, watch: TransactionWatch) -> bool:
        """Commit only if an assumption holds, in one message; tell whether that was done.

        The assumption is that nothing was written, or that the record is there. If it does not
        hold, the questions are asked that COMMIT must not be sent without.
        """
        wrapper, record = self.wrapper, watch.record
        connection: PooledConnection = wrapper.connection
        questions, seems_to_read = questions_for(connection), watch.identity is None
        condition = None
        if not watch.has_to_ask and questions.quick is not None:
            if seems_to_read:
                condition = questions.reading
            elif record is not None:
                condition = record.proof
        if condition is not None and learned_of(connection).is_direct and questions.takes_messages:
            self.wrote_nothing = seems_to_read
            with debug_transaction(wrapper, "COMMIT"), wrapper.wrap_database_errors:
                if _committed_if(connection, condition):
                    return True
            self.wrote_nothing = False
        # None of this is COMMIT yet: what fails here has committed nothing.
        self.phase = Phase.BODY
        with wrapper.wrap_database_errors:
            if seems_to_read and condition is not None:
                self.wrote_nothing = not watch.ask_whether_it_wrote()
            if not self.wrote_nothing:
                watch.ask()
        self.phase = Phase.COMMIT_SENT
        return False

    def _was_committed(self, error: BaseException) -> bool:
        """Tell whether the transaction was committed, though its COMMIT raised *error*.

        Raises:
            AmbiguousCommit: It cannot be told.
        """
        wrapper, check = self.wrapper, self.commit_check
        if psycopg_error(error) is None:
            # A time limit of the caller's own, for instance: it does not wait for the answer.
            self.phase = Phase.UNKNOWN
            return False
        if is_known_to_have_failed(wrapper, error):
            if self._may_have_left_foreign_rows(error):
                self.phase = Phase.UNKNOWN
                if not check.runs_again:
                    check.may_be_partial = True
                    raise _partly_ambiguous(wrapper) from error
                check.has_guessed = True
            self.phase = Phase.FAILED
            return False
        outcome = self.resolve()
        if outcome is Phase.UNKNOWN:
            raise ambiguous(wrapper) from error
        return outcome is Phase.COMMITTED

    def _refuse_if_a_question_failed(self) -> None:
        """Refuse to commit if a question of ours may have failed a statement of the function.

        It may have survived that, in a savepoint for instance, as if its statement had failed.

        Raises:
            django.db.Error: The server refuses now what could be asked when the attempt began.
        """
        wrapper = self.wrapper
        if self.questions is None or is_idle(wrapper):
            return
        may_have_caused = self.commit_check.may_have_caused
        blamed = next((each for each in self.failures.seen if may_have_caused(each.error)), None)
        if blamed is not None:
            with wrapper.wrap_database_errors:
                raise blamed.error
        suspect = next((each for each in self.failures.seen if is_refusal(each.error)), None)
        if suspect is None:
            return
        with wrapper.wrap_database_errors:
            if not set(refusals(wrapper.connection)) <= set(self.questions.refused):
                raise suspect.error

    def _may_have_left_foreign_rows(self, error: BaseException) -> bool:
        """Tell whether rows of a foreign server may stay, though COMMIT has failed here.

        postgres_fdw commits them before the local transaction, which can fail afterwards (40001),
        and the answer of the foreign server can be lost.
        """
        connection, found, watch = self.wrapper.connection, psycopg_error(error), self.watch
        if watch is None or connection.info.transaction_status != TransactionStatus.IDLE:
            # COMMIT itself has not failed.
            return False
        if watch.asks and self.wrote_nothing:
            return False
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
        f"wrote to them cannot be told"
    )
