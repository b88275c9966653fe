"""Asks for the id of a transaction, in the same message as its first write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from django_pooled.pool.connection import UNKNOWN
from django_pooled.pool.psycopg_private import is_piping
from django_pooled.sql.session_state import ADVISORY_LOCK

from .server_identity import learned_of, questions_for, read_backend
from .transaction_status import TransactionIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg.pq.abc import PGresult

    from django_pooled.pool.connection import Observer, PooledConnection
    from django_pooled.pool.psycopg_pipeline import CarryingCursor
    from django_pooled.sql.effects import Effect

    from .server_identity import Learned

__all__ = ["TransactionWatch"]


_INTRANS = TransactionStatus.INTRANS
# Every server tells it, and it differs between the transactions of a session.
_START = "SELECT EXTRACT(epoch FROM pg_catalog.transaction_timestamp())::pg_catalog.text"


class CommitRecord(Protocol):
    """A row that a transaction leaves behind if, and only if, it is committed."""

    insertion: str
    """A statement that inserts it, or has no effect while the transaction has no id."""

    insertion_if_missing: str
    """One that inserts it unless the transaction has done so already."""

    proof: str | None
    """An SQL condition that holds if the transaction has the row; None if there is no such."""


@dataclass(eq=False)
class TransactionWatch:
    """Sees each statement of a transaction, and finds out its id before COMMIT.

    The question for the id is sent along with each statement that may write. Where nothing can be
    sent along (parameters bound by the server, COPY, executemany, psycopg's own cursors), it is
    asked before COMMIT. A statement's text may show that the question is needless; it never
    answers it.
    """

    connection: PooledConnection
    """That of the transaction, whose observer it is."""
    outer: Observer | None
    """The observer before, of an attempt around this one, on another database."""
    record: CommitRecord | None
    """The row that is inserted along with the first write, if there is one."""
    asks: bool
    """Whether it asks for the id at all."""

    identity: TransactionIdentity | None = None
    """Set once the transaction has an id."""
    has_to_ask: bool = False
    """Whether COMMIT must not be sent before `ask`."""
    may_have_ended: bool = False
    """Whether something was sent that may have ended the transaction, without an answer yet."""
    was_ended: bool = False
    """Whether the transaction was ended by one of its own statements."""
    took_session_lock: bool = False
    """Whether it works with advisory locks that outlast it."""
    succeeded: Callable[[], None] | None = None
    """Called after a statement that left the transaction intact."""

    _began: bool = False
    _started: bytes | None = None

    def savepoint_was_rolled_back(self) -> None:
        """Take note that the record may be undone with it; the id stays."""
        self.has_to_ask = self.has_to_ask or self.record is not None

    def refuse_if_ended(self, *, locked: bool = False) -> None:
        """Refuse to continue if a statement has ended the transaction.

        Raises:
            TransactionManagementError: One has; what it did cannot be undone.
        """
        idle = self.connection.pgconn.transaction_status == TransactionStatus.IDLE
        if self.was_ended or (self._began and idle):
            self._refuse_as_ended()
        self._began = True
        if self.may_have_ended:
            # Within a pipeline it could not be asked.
            self._verify(locked)

    def see(self, query: object, effect: Effect, *, carries: bool, locked: bool) -> Sequence[str]:
        """Take note of *query*, and return the statements to send along after it.

        Raises:
            TransactionManagementError: It ends the transaction, or one before it did.
        """
        if self.outer is not None:
            self.outer.see(query, effect, carries=False, locked=locked)
        idle = self.connection.pgconn.transaction_status == TransactionStatus.IDLE
        if self.was_ended or self.may_have_ended or (idle and self._began):
            self.refuse_if_ended(locked=locked)
        self._began = True
        if effect.ends:
            raise TransactionManagementError(
                f"{_beginning(query)!r} would end the transaction of retry_transaction, which does "
                f"that itself. Leave COMMIT, ROLLBACK and PREPARE TRANSACTION to the decorator."
            )
        if effect.ends is None:
            self._identify(locked)
            self.may_have_ended = True
            self.has_to_ask = self.asks
        elif effect.undoes:
            self.savepoint_was_rolled_back()
        if effect.leaves == ADVISORY_LOCK:
            self.took_session_lock = True
        if self.identity is not None or not self.asks or effect.reads or effect.controls:
            return ()
        if carries and isinstance(query, str) and not effect.precedes:
            return self._addition(is_plain_write=effect.writes)
        self.has_to_ask = True
        return ()

    def seen(self, cursor: CarryingCursor | None, addition: Sequence[str], *, locked: bool) -> None:
        """A statement has been run: take the answer to what was sent along with it.

        Raises:
            TransactionManagementError: It has ended the transaction.
        """
        if addition and cursor is not None:
            if cursor.answers:
                self._read(cursor.answers[0])
            if self.identity is None and (cursor.rowcount > 0 or not cursor.answers):
                # Rows of a foreign server, whose transaction ends with this one; or a cursor of
                # another class has sent something else, or nothing.
                self.has_to_ask = True
        if self.may_have_ended:
            self._verify(locked)
        if self.succeeded and self.connection.pgconn.transaction_status == _INTRANS:
            self.succeeded()

    @property
    def abandoned(self) -> TransactionIdentity | None:
        """The transaction that may hold locks when its connection is lost before COMMIT."""
        backend = learned_of(self.connection).backend
        return self.identity or (
            TransactionIdentity(None, backend) if backend is not None else None
        )

    def ask(self, *, locked: bool = False) -> None:
        """Ask in a round trip of its own, and have an id assigned if there is none.

        After statements with which nothing could be sent, and after a savepoint was undone.

        Args:
            locked: Whether psycopg's lock of the connection is held.

        Raises:
            TransactionManagementError: It is another transaction than it was.
        """
        questions, before = questions_for(self.connection), self.identity
        question = questions.assigning or questions.full
        self._ask(question, self.record.insertion_if_missing if self.record else None, locked)
        after = self.identity
        if before is not None and after is not None and before.xid != after.xid:
            self._refuse_as_ended()

    def ask_whether_it_wrote(self) -> bool:
        """Ask in a round trip of its own whether the transaction has written anything.

        The text of its statements did not show that, but a trigger or a view may have. If it has
        written, it has an id afterwards, even if its only rows are those of a foreign server.
        """
        self._ask(questions_for(self.connection).unless_reading, None, locked=False)
        return self.identity is not None

    def _ask(self, question: str | None, insertion: str | None, locked: bool) -> None:
        statements = [statement for statement in (question, insertion) if statement is not None]
        if statements:
            answers = self.connection.ask(";\n".join(statements), locked=locked)
            if question is not None:
                self._read(answers[0])

    def _read(self, answer: PGresult) -> None:
        """Read the answer to the question for the id."""
        xid, pid = answer.get_value(0, 0), answer.get_value(0, 1)
        if xid is None:
            return
        learned: Learned = self.connection.session.learned
        backend = learned.backend
        if answer.nfields > 2:
            columns = range(1, answer.nfields)
            values = [(answer.get_value(0, column) or b"").decode() or None for column in columns]
            backend = read_backend(self.connection, values)
        elif backend is None or pid is None or backend.pid != pid.decode():
            return  # pragma: no cover - the short question is asked of direct connections alone
        self.identity = TransactionIdentity(xid.decode(), backend)

    def _addition(self, *, is_plain_write: bool) -> Sequence[str]:
        learned: Learned | None = self.connection.session.learned
        if learned is None or learned.server is None:
            return ()
        questions = learned.server.questions
        question = questions.full if learned.backend is None else questions.quick
        if question is None:
            return ()
        if not is_plain_write:
            # Rows of a foreign server and NOTIFY lead to an id only in COMMIT, when it is too late
            # to ask: "no id" must not be taken for "has written nothing".
            question = questions.assigning or question
        return (question,) if self.record is None else (question, self.record.insertion)

    def _identify(self, locked: bool) -> None:
        """Find out what tells this transaction from the next one of the session."""
        # In a transaction that failed, and within a pipeline, nothing can be asked.
        failed = self.connection.pgconn.transaction_status == TransactionStatus.INERROR
        if failed or is_piping(self.connection):
            return
        if self._started is None:
            self._started = self._ask_when_it_started(locked)
        if self.identity is None:
            # If the connection is lost before it is verified, the id tells what became of it.
            self.ask(locked=locked)

    def _ask_when_it_started(self, locked: bool) -> bytes | None:
        return self.connection.ask(_START, locked=locked)[0].get_value(0, 0)

    def _verify(self, locked: bool) -> None:
        """Make sure that the transaction is still the one that it was."""
        status = self.connection.pgconn.transaction_status
        if status == TransactionStatus.IDLE:
            self._refuse_as_ended()
        askable = status == TransactionStatus.INTRANS and not is_piping(self.connection)
        if askable and self._started is not None:
            if self._ask_when_it_started(locked) != self._started:
                self._refuse_as_ended()
            self.may_have_ended = False

    def _refuse_as_ended(self) -> None:
        self.was_ended = True
        raise TransactionManagementError(
            "A statement inside a transaction of retry_transaction has ended it. Leave COMMIT "
            "and ROLLBACK to the decorator."
        )


def _beginning(query: object) -> str:
    return "COMMIT" if query is UNKNOWN else str(query).strip()[:60]
