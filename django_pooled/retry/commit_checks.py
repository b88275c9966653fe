"""The argument ``commit_check``: whose word counts when the answer to a COMMIT was lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.log_fields import facts
from django_pooled.diagnostics.redaction import stand_in, told
from django_pooled.sql.sqlstates import READ_ONLY, is_connection_lost, is_refusal
from django_pooled.tokens.table import TABLE, Token, sweep_now_and_then

from .phase import Phase
from .server_questions import is_about_a_question
from .transaction_status import CommitStatus, Relation, commit_status, relation_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .server_questions import Questions
    from .transaction_id import CommitRecord
    from .transaction_status import TransactionIdentity

__all__ = ["CHECKS", "ByCaller", "CommitCheck"]

logger = logging.getLogger("django_pooled.retry")


class CommitCheck:
    """Believes what the server says of the transaction's id, and nothing else ("xid")."""

    never_asks: bool = False
    """Whether a COMMIT without an answer is unknown at once."""

    runs_again = False
    """Whether what cannot be told is taken for failed, which makes it run again."""

    asks_the_caller = False
    """Whether it is the caller who says what became of a transaction, and not the server."""

    has_guessed = False
    """Whether an attempt was taken for failed that may have been committed."""

    record: CommitRecord | None = None
    """What the transaction leaves behind, to be found if it was committed."""

    def refuse_without_table(self, wrapper: DatabaseWrapper) -> None:
        """Called before the first attempt of a call that leaves a record.

        Raises:
            ImproperlyConfigured: The record's table is not installed.
        """

    def suit(self, questions: Questions) -> None:
        """Called once it is known what the server answers, by an attempt that leaves a record."""

    def succeeded(self, wrapper: DatabaseWrapper) -> None:
        """Called after a transaction with a record was committed, outside of it."""

    def proves_earlier_commit(self, error: psycopg.Error) -> bool:
        """Tell whether an attempt failed because an earlier one was committed after all."""
        return False

    def is_to_blame(self, error: psycopg.Error) -> bool:
        """Tell whether an error may be that of what rides with a statement, and not its own.

        The body may have taken on a role that may do less, or have made the transaction READ ONLY.
        """
        return not self.never_asks and is_about_a_question(error)

    def concede(self, connection: PooledConnection, error: psycopg.Error) -> bool:
        """Do without what is to blame, for the rest of the call; tell whether that may help.

        Args:
            connection: One in autocommit, under its own role.
            error: One that `is_to_blame`.
        """
        self.never_asks = True
        return True

    def refuse_to_go_without(self, error: psycopg.Error, wrapper: DatabaseWrapper) -> None:
        """Explain an error if the transaction's record could not be made.

        Raises:
            ImproperlyConfigured: It could not.
        """

    def find(self, connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
        """Find out what became of a transaction.

        Args:
            connection: One in autocommit, whose server has been learned.
            lost: What is known of the transaction.

        Raises:
            psycopg.Error: It cannot be found out on this connection.
        """
        return commit_status(connection, lost)

    def conclude(self, finding: CommitStatus, asking: DatabaseWrapper) -> Phase:
        """Say what became of a transaction that is not in progress any more.

        Args:
            finding: What was found out.
            asking: A wrapper with a connection in autocommit, in place of the transaction's own.
        """
        if finding is CommitStatus.COMMITTED:
            return Phase.COMMITTED
        return Phase.FAILED if finding is CommitStatus.NOT_COMMITTED else Phase.UNKNOWN


class _ByToken(CommitCheck):
    """Believes the row that the transaction left, or did not leave ("token").

    So it needs nothing of the server but its unique index.
    """

    def __init__(self) -> None:
        self._token = Token()
        self.record = self._token

    def refuse_without_table(self, wrapper: DatabaseWrapper) -> None:
        self._token.check(wrapper)

    def suit(self, questions: Questions) -> None:
        self._token.suit(marks=questions.marks)

    def succeeded(self, wrapper: DatabaseWrapper) -> None:
        sweep_now_and_then(wrapper)

    def is_to_blame(self, error: psycopg.Error) -> bool:
        return super().is_to_blame(error) or self._may_have_failed(error)

    def concede(self, connection: PooledConnection, error: psycopg.Error) -> bool:
        if not self._may_have_failed(error):
            return super().concede(connection, error)
        if not self._token.can_be_left(connection):
            return False
        # A row that is missing proves nothing any more; the id has to tell.
        self.record = None
        return True

    def _may_have_failed(self, error: psycopg.Error) -> bool:
        is_refused = is_refusal(error) and TABLE in str(error)
        return self.record is not None and (is_refused or error.sqlstate == READ_ONLY)

    def proves_earlier_commit(self, error: psycopg.Error) -> bool:
        # The token is there already, and unique.
        return error.diag.table_name == TABLE

    def refuse_to_go_without(self, error: psycopg.Error, wrapper: DatabaseWrapper) -> None:
        if is_refusal(error) and TABLE in str(error):
            raise ImproperlyConfigured(
                f"commit_check='token' cannot insert into its table: {told(error)}. "
                f"Run: manage.py migrate --database {wrapper.alias}, and grant the role of "
                f"DATABASES[{wrapper.alias!r}] SELECT, INSERT and DELETE on {TABLE}."
            ) from error

    def find(self, connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
        if self.record is None:
            return commit_status(connection, lost)
        try:
            self._token.claim(connection)
        except psycopg.errors.UniqueViolation:
            return CommitStatus.COMMITTED
        except psycopg.errors.LockNotAvailable:
            return CommitStatus.IN_PROGRESS
        except psycopg.errors.ReadOnlySqlTransaction:
            return CommitStatus.NOT_YET
        # To another cluster it may be on its way, by logical replication.
        is_foreign = relation_of(connection, lost) is Relation.FOREIGN
        return CommitStatus.FOREIGN if is_foreign else CommitStatus.NOT_COMMITTED


class _Never(CommitCheck):
    """Leaves every lost answer to the caller ("raise")."""

    never_asks: bool = True


class _Idempotent(CommitCheck):
    """Runs the transaction again where the id does not tell ("idempotent")."""

    runs_again = True


class ByCaller(CommitCheck):
    """Asks a callable of the caller's own, with the arguments of the call."""

    asks_the_caller = True

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask

    def conclude(self, finding: CommitStatus, asking: DatabaseWrapper) -> Phase:
        try:
            answer = self._ask()
        except Exception as error:
            if is_connection_lost(error):
                # It will be asked again, on another connection.
                raise
            logger.error(
                "database %r: the commit_check failed: %s",
                asking.alias,
                told(error),
                exc_info=stand_in(error),
                extra=facts("commit_check_failed", alias=asking.alias, error=error),
            )
            answer = None
        if answer:
            return Phase.COMMITTED
        if answer is None or finding in (CommitStatus.UNTOLD, CommitStatus.COMMITTED):
            # What is not there yet may be committed the next moment, and the server knows better
            # than to have committed nothing.
            return Phase.UNKNOWN
        return Phase.FAILED


CHECKS: dict[str, type[CommitCheck]] = {
    "xid": CommitCheck,
    "token": _ByToken,
    "raise": _Never,
    "idempotent": _Idempotent,
}
"""By the argument's value; with a callable it is `ByCaller`."""
