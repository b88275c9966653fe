"""The argument ``commit_check``: what decides when the answer to a COMMIT was lost."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import psycopg
from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import stand_in, told
from django_pooled.sql.sqlstates import READ_ONLY, is_connection_lost, is_refusal
from django_pooled.tokens.table import SWEEP, TABLE, Token

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

__all__ = ["CHECKS", "ByCaller", "CommitCheck", "status_by_row"]

logger = logging.getLogger("django_pooled.retry")


class CommitCheck:
    """Asks the server for the status of the transaction's id ("xid")."""

    never_asks: bool = False
    """Whether a COMMIT without an answer is unknown at once."""

    runs_again = False
    """Whether a transaction whose outcome cannot be told is run again."""

    asks_the_caller = False
    """Whether a callable of the caller decides, and not the server."""

    has_guessed = False
    """Whether an attempt that may have been committed was followed by another."""

    may_be_partial = False
    """Whether rows of a foreign server may have been committed without the transaction's own."""

    record: CommitRecord | None = None
    """The row that is there if, and only if, the transaction was committed."""

    def refuse_without_table(self, wrapper: DatabaseWrapper) -> None:
        """Refuse to start a call that would leave a record if there is no table for it.

        Raises:
            ImproperlyConfigured: There is none.
        """

    def adapt(self, questions: Questions) -> None:
        """Adapt the record's statements to what the server answers."""

    def succeeded(self, wrapper: DatabaseWrapper) -> None:
        """Clean up after a transaction with a record was committed."""

    def proves_earlier_commit(self, error: psycopg.Error) -> bool:
        """Tell whether an attempt failed because an earlier one was committed after all."""
        return False

    def may_have_caused(self, error: psycopg.Error) -> bool:
        """Tell whether what was sent along with a statement may have caused its error.

        The function may have taken a role with fewer privileges, or have made the transaction
        READ ONLY.
        """
        return not self.never_asks and is_about_a_question(error)

    def do_without(self, connection: PooledConnection, error: psycopg.Error) -> bool:
        """Do without what caused an error, for the rest of the call; tell whether that may help.

        Args:
            connection: One in autocommit, under its own role.
            error: One that it `may_have_caused`.
        """
        self.never_asks = True
        return True

    def explain_missing_record(self, error: psycopg.Error, wrapper: DatabaseWrapper) -> None:
        """Raise a clearer error if the transaction failed because its record could not be inserted.

        Raises:
            ImproperlyConfigured: It could not be inserted.
        """

    def find(self, connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
        """Find out what became of a transaction.

        Args:
            connection: One in autocommit, whose server has been learned.
            lost: The transaction, as far as it is identified.

        Raises:
            psycopg.Error: It cannot be found out on this connection.
        """
        return commit_status(connection, lost)

    def conclude(self, finding: CommitStatus, asking: DatabaseWrapper) -> Phase:
        """Decide what became of a transaction that is not in progress any more.

        Args:
            finding: What the server tells.
            asking: A wrapper with a connection in autocommit, in place of the transaction's own.
        """
        if finding is CommitStatus.COMMITTED:
            return Phase.COMMITTED
        return Phase.FAILED if finding is CommitStatus.NOT_COMMITTED else Phase.UNKNOWN


class _ByToken(CommitCheck):
    """Looks for the row that the transaction has left if it was committed ("token").

    It needs nothing of the server but a unique index.
    """

    def __init__(self) -> None:
        self._token = Token()
        self.record = self._token

    def refuse_without_table(self, wrapper: DatabaseWrapper) -> None:
        self._token.check(wrapper)

    def adapt(self, questions: Questions) -> None:
        self._token.adapt(marks=questions.marks)

    def succeeded(self, wrapper: DatabaseWrapper) -> None:
        SWEEP.now_and_then(wrapper)

    def may_have_caused(self, error: psycopg.Error) -> bool:
        return super().may_have_caused(error) or self._may_have_failed(error)

    def do_without(self, connection: PooledConnection, error: psycopg.Error) -> bool:
        if not self._may_have_failed(error):
            return super().do_without(connection, error)
        if not self._token.can_be_left(connection):
            return False
        # The absence of the row proves nothing any more; the id is asked for.
        self.record = None
        return True

    def _may_have_failed(self, error: psycopg.Error) -> bool:
        is_refused = is_refusal(error) and TABLE in str(error)
        return self.record is not None and (is_refused or error.sqlstate == READ_ONLY)

    def proves_earlier_commit(self, error: psycopg.Error) -> bool:
        # The token is unique, and was there already.
        return error.diag.table_name == TABLE

    def explain_missing_record(self, error: psycopg.Error, wrapper: DatabaseWrapper) -> None:
        if is_refusal(error) and TABLE in str(error):
            raise ImproperlyConfigured(
                f"commit_check='token' cannot insert into its table: {told(error)}. "
                f"Run: manage.py migrate --database {wrapper.alias}, and grant the role of "
                f"DATABASES[{wrapper.alias!r}] SELECT, INSERT and DELETE on {TABLE}."
            ) from error

    def find(self, connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
        if self.record is None:
            return commit_status(connection, lost)
        return status_by_row(self._is_there, connection, lost)

    def _is_there(self, connection: PooledConnection) -> bool:
        try:
            self._token.claim(connection)
        except psycopg.errors.UniqueViolation:
            return True
        return False


def status_by_row(
    is_there: Callable[[PooledConnection], bool],
    connection: PooledConnection,
    lost: TransactionIdentity | None,
) -> CommitStatus:
    """Return the status of a transaction that has left a row, if it was committed.

    Args:
        is_there: Looks for the row, and locks it.
        connection: Where to look.
        lost: The transaction.
    """
    try:
        if is_there(connection):
            return CommitStatus.COMMITTED
    except psycopg.errors.LockNotAvailable:
        return CommitStatus.IN_PROGRESS
    except psycopg.errors.ReadOnlySqlTransaction:
        return CommitStatus.NOT_YET
    # Logical replication may still bring it to another cluster.
    is_foreign = relation_of(connection, lost) is Relation.FOREIGN
    return CommitStatus.FOREIGN if is_foreign else CommitStatus.NOT_COMMITTED


class _Never(CommitCheck):
    """Asks nothing: every lost answer is an AmbiguousCommit ("raise")."""

    never_asks: bool = True


class _Idempotent(CommitCheck):
    """Runs the transaction again if the id does not tell what became of it ("idempotent")."""

    runs_again = True


class ByCaller(CommitCheck):
    """Asks a callable of the caller, with the arguments of the call."""

    asks_the_caller = True

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask

    def conclude(self, finding: CommitStatus, asking: DatabaseWrapper) -> Phase:
        try:
            answer = self._ask()
            if inspect.isawaitable(answer):
                # It would count as true.
                kind = "an awaitable"
                if inspect.iscoroutine(answer):
                    answer.close()
                    kind = "a coroutine"
                raise TypeError(f"it returned {kind}; expected True, False or None")
        except Exception as error:
            if is_connection_lost(error):
                # Asked again on another connection.
                raise
            logger.error(
                "database %r: the commit_check failed: %s",
                asking.alias,
                told(error),
                exc_info=stand_in(error),
                extra=event_fields("commit_check_failed", alias=asking.alias, error=error),
            )
            answer = None
        if answer:
            return Phase.COMMITTED
        if answer is None or finding in (CommitStatus.UNTOLD, CommitStatus.COMMITTED):
            # It may be committed the next moment, or the server says that it is committed.
            return Phase.UNKNOWN
        return Phase.FAILED


CHECKS: dict[str, type[CommitCheck]] = {
    "xid": CommitCheck,
    "token": _ByToken,
    "raise": _Never,
    "idempotent": _Idempotent,
}
"""By the argument's value; with a callable it is `ByCaller`."""
