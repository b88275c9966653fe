"""One transaction, as its wrapper tells of it: its errors, and what savepoints have undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.db import Error
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.sqlstates import history

from .classify import Failure
from .phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .commit_checks import CommitCheck
    from .policy import Policy
    from .server_questions import Questions
    from .transaction_id import TransactionWatch
    from .transaction_status import TransactionIdentity

__all__ = ["BROKEN", "Transaction"]

BROKEN = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)
"""The states of a connection whose transaction cannot be committed."""
_INTACT = (TransactionStatus.INTRANS, TransactionStatus.IDLE)


@dataclass(eq=False)
class Transaction:
    """One transaction, and what it has met; the wrapper's hooks while it lasts."""

    policy: Policy
    wrapper: DatabaseWrapper
    commit_check: CommitCheck
    """How a COMMIT without an answer is resolved."""
    deadline: float
    """Monotonic instant after which nothing more is found out."""
    name: str
    """Of the function, for messages."""

    phase: Phase = Phase.BODY
    questions: Questions | None = None
    """What may be asked inside the transaction; None where nothing is."""
    watch: TransactionWatch | None = None
    """Sees its statements and finds out its id; None within an outer transaction."""
    failures: list[Failure] = field(default_factory=list)
    """Every database error on its connection, swallowed ones included, in their order."""
    wrote_nothing: bool = False
    """Whether COMMIT was sent so that it can succeed only if nothing was written."""
    rollback_wanted: bool = False
    """Whether the function asked for a rollback, by ``transaction.set_rollback(True)``."""
    interrupted: bool = False
    """Whether a nested block did not end, or not to its last step."""

    _undone: int = 0
    """How many of the failures, from the first, a savepoint has undone."""
    _interrupted_in: int = 0
    """How many savepoints were around the block that was interrupted."""

    @property
    def has_written(self) -> bool:
        """Whether the transaction has an id, which it gets with its first write."""
        return self.watch is not None and self.watch.identity is not None

    @property
    def abandoned(self) -> TransactionIdentity | None:
        """What may hold its locks on the server when its connection is lost before COMMIT."""
        return self.watch.abandoned if self.watch is not None else None

    @property
    def failure(self) -> Failure | None:
        """The first failure that is not undone; those after it are its consequences (25P02)."""
        return self.failures[self._undone] if self._undone < len(self.failures) else None

    @property
    def is_broken(self) -> bool:
        """Whether its connection shows that it cannot be committed."""
        return self._status in BROKEN

    @property
    def _status(self) -> TransactionStatus | None:
        connection = self.wrapper.connection
        return connection.info.transaction_status if connection is not None else None

    def failure_behind(self, raised: BaseException) -> Failure | None:
        """Return the failure for which the transaction ended, by raising *raised*; None if none.

        The first that is not undone. If all are, the last one that *raised* comes from.
        """
        if self._undone < len(self.failures):
            return self.failures[self._undone]
        errors = set(map(id, history(raised)))
        for failure in reversed(self.failures):
            if id(failure.error) in errors:
                return failure
        return None

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error of the connection, unless the transaction never met it."""
        if self.phase is Phase.ROLLBACK:
            return
        for noted in self.failures:
            if noted.error is error:
                return
        connection = self.wrapper.connection
        lost = connection is None or connection.pgconn.status != ConnStatus.OK
        last_words = None
        if lost and isinstance(connection, PooledConnection):
            last_words = connection.session.goodbye
        failure = Failure(error, lost, error.sqlstate or last_words)
        if failure.lost or failure.sqlstate is not None or self._status not in _INTACT:
            self.failures.append(failure)
            if self.watch is not None:
                self.watch.succeeded = self._forgive_what_was_undone

    def set_rollback(self, rollback: bool) -> None:
        """The function wants a rollback, or does not want it any more."""
        # Django's atomic blocks set the wrapper's attribute, without a call.
        self.rollback_wanted = rollback

    def roll_back_savepoint(self, send: Callable[[], None]) -> None:
        """Roll back to a savepoint, and with it what failed since then."""
        # What was asked for is done, or fails for another reason.
        self.rollback_wanted = False
        before = len(self.failures)
        try:
            self.release_savepoint(send)
        except Error:
            if self.phase is Phase.BODY and any(each.lost for each in self.failures[before:]):
                # What should have been undone has gone with the transaction. The loss counts.
                self._undone = before
            raise
        self.wrapper.rollback_exc = None
        self._forgive()
        if len(self.wrapper.savepoint_ids) < self._interrupted_in:
            # All that was in the interrupted block is undone.
            self.interrupted, self._interrupted_in = False, 0

    def release_savepoint(self, send: Callable[[], None]) -> None:
        """End a savepoint, and take note of an interruption, which leaves it open.

        Django forgets the savepoint first, so what should have been undone would be committed.
        """
        try:
            send()
        except Error:
            raise
        except BaseException:
            around = len(self.wrapper.savepoint_ids)
            self._interrupted_in = min(around, self._interrupted_in) if self.interrupted else around
            self.interrupted = True
            raise

    def _forgive(self) -> None:
        """A savepoint was rolled back to: what happened since then is undone."""
        if self.phase is not Phase.BODY:
            # In a TestCase the attempt itself ends with a savepoint, and undoes nothing else.
            return
        self._undone = len(self.failures)
        if self.watch is not None:
            self.watch.savepoint_was_rolled_back()

    def _forgive_what_was_undone(self) -> None:
        """A statement succeeded: only a savepoint lets one do so after a failure of the server's.

        It was rolled back to by hand, or by psycopg's ``connection.transaction()``.
        """
        if self.failure is not None:
            self._forgive()
