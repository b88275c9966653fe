"""One run of a retried function in a transaction, from BEGIN to COMMIT or ROLLBACK."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg
from django.db import Error, connections
from django.db.transaction import atomic
from psycopg.pq import TransactionStatus

from django_pooled.backend.commit import is_idle
from django_pooled.pool.connection import PooledConnection
from django_pooled.replay.process_caches import forget_rows
from django_pooled.replay.responses import (
    asks_for_rollback,
    is_error_response,
    refuse_coroutine,
)
from django_pooled.sql.sqlstates import is_connection_lost, psycopg_error

from .characteristics import set_characteristics
from .classify import Classification, Failure, classify
from .other_databases import watch_others
from .phase import Phase
from .refusals import broken_transaction, lost_transaction, memoized_result
from .server_identity import learn, learned_of
from .server_questions import NO_QUESTIONS
from .transaction import Transaction
from .transaction_id import TransactionWatch
from .transaction_status import end_if_idle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from django_pooled.pool.pool import Pool

    from .server_identity import Learned
    from .transaction_status import TransactionIdentity

__all__ = ["Attempt"]

R = TypeVar("R")

_BROKEN = (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)
_INTACT = (TransactionStatus.INTRANS, TransactionStatus.IDLE)


class Attempt(Transaction):
    """One run of a retried function; the wrapper's hooks while it lasts."""

    wait: float | None = None
    """Seconds to wait before it begins; None for not at all."""
    left_open: TransactionIdentity | None = None
    """The transaction of the attempt before, if its backend may still hold locks for it."""
    rolled_back: object = None
    """The result of the attempt before, if that had written something."""
    returned: object = None
    """The function's result."""
    pool: Pool | None = None
    """The pool of its connection."""
    written_elsewhere: set[str] | frozenset[str] = frozenset()
    """Other databases that the function may have written to."""
    rollback_wanted: bool = False
    """Whether the function asked for a rollback, by ``transaction.set_rollback(True)``."""
    interrupted: bool = False
    """Whether a nested block did not end, or not to its last step."""

    _outermost: bool = False
    """Whether it ends with a COMMIT, and not with the release of a savepoint."""
    _depth: int = 0
    """How many atomic blocks were open when the function was called, its own included."""
    _savepoints: int = 0
    """How many of them have an entry in Django's list of savepoints."""
    _interrupted_in: int = 0
    """How many savepoints were around the block that was interrupted."""

    def run(self, call: Callable[[], R]) -> R:
        """Call the function in a transaction, by *call*, and commit that."""
        wrapper = self.wrapper
        inside = wrapper.in_atomic_block
        if self.left_open is not None and not inside:
            self._end_left_open(self.left_open)
        wrapper.attempt = self
        wrapper.rollback_exc = None
        try:
            if not inside:
                self._prepare()
            with (
                nullcontext() if len(connections.settings) == 1 else self._watching_others(),
                atomic(using=self.policy.using, durable=True),
            ):
                self._begin()
                try:
                    result = call()
                    self._settle(result)
                except BaseException as error:
                    self._function_raised(error)
                    raise
            if self._outermost and self.phase is not Phase.COMMITTED:
                # Either the function has asked for a rollback, or other code has made one.
                if not self.rollback_wanted:
                    raise lost_transaction(self.name, wrapper)
                forget_rows()
        except BaseException:
            forget_rows()
            raise
        else:
            return result
        finally:
            if wrapper.attempt is self:
                self.end()
            if wrapper.in_atomic_block and not inside:
                # An exception struck between two steps of Django's, as one from outside can.
                wrapper.abandon_block()

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error of the connection, unless the transaction never met it."""
        if self.phase is Phase.ROLLBACK or self.failures.contain(error):
            return
        failure = Failure.of(error, self.wrapper.connection)
        if failure.lost or failure.sqlstate is not None or self._status not in _INTACT:
            self.failures.seen.append(failure)
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
        self.release_savepoint(send)
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

    def classify(self, failure: Failure) -> Classification:
        """Say what *failure* means for the transaction."""
        policy = self.policy
        return classify(failure, policy.retry_on, read_only=bool(policy.read_only))

    def _prepare(self) -> None:
        """Set up the connection, and learn what may be asked inside the transaction."""
        policy, wrapper, check = self.policy, self.wrapper, self.commit_check
        if policy.sets_characteristics:
            self.restore = set_characteristics(policy, wrapper)
        if check.never_asks:
            return
        wrapper.ensure_connection()
        connection = wrapper.connection
        if isinstance(connection, PooledConnection):
            learned: Learned | None = connection.session.learned
            if learned is None or learned.server is None:
                learned = self._learn(connection)
            self.questions = learned.server.questions if learned.server else NO_QUESTIONS
            if check.record is not None:
                check.adapt(self.questions)

    def _learn(self, connection: PooledConnection) -> Learned:
        wrapper = self.wrapper
        try:
            learn(connection)
        except psycopg.Error as error:
            # The caller has no part in other errors, such as a time limit: this attempt goes on
            # and asks for nothing.
            if connection.broken or is_connection_lost(error):
                with wrapper.wrap_database_errors:
                    raise
        except BaseException:
            # A time limit of the caller's own: the connection still waits for an answer.
            wrapper.close()
            raise
        return learned_of(connection)

    def _end_left_open(self, left_open: TransactionIdentity) -> None:
        """End the backend of a connection that was lost, for the locks that it may hold."""
        self.wrapper.ensure_connection()
        # If this connection fails too, the attempt meets that error itself.
        with suppress(psycopg.Error):
            end_if_idle(self.wrapper.connection, left_open)

    def _watching_others(self) -> AbstractContextManager[None]:
        written: set[str] = set()
        self.written_elsewhere = written
        return watch_others(self.wrapper, written)

    def _begin(self) -> None:
        """The transaction is open, and the function comes next."""
        wrapper, check = self.wrapper, self.commit_check
        connection = wrapper.connection
        self.pool = wrapper.checked_out_from
        self._depth, self._savepoints = len(wrapper.atomic_blocks), len(wrapper.savepoint_ids)
        self._outermost = self._depth == 1 and isinstance(connection, PooledConnection)
        if self._outermost:
            if self.policy.read_only:
                # It cannot leave a record, so the absence of one would prove nothing.
                check.record = None
            self.watch = TransactionWatch(connection, check.record, asks=not check.never_asks)

    def _settle(self, result: object) -> None:
        """The function has returned: let its transaction be committed, rolled back or refused."""
        wrapper, watch = self.wrapper, self.watch
        if result is not None:
            refuse_coroutine(result)
            self.returned = result
            # psycopg sends BEGIN with the first statement: if it is idle, none was sent.
            if result is self.rolled_back and self._outermost and is_idle(wrapper):
                raise memoized_result(self.name, wrapper)
        self._leave_blocks()
        connection = wrapper.connection
        status = connection.pgconn.transaction_status if connection is not None else None
        if (
            wrapper.needs_rollback
            or wrapper.closed_in_transaction
            or self.interrupted
            or status in _BROKEN
        ):
            if is_error_response(result) and self._keeps_error_response():
                wrapper.set_rollback(True)
                return
            self._refuse_silent_rollback()
        elif watch is not None and (
            watch.was_ended or watch.may_have_ended or status == TransactionStatus.IDLE
        ):
            watch.refuse_if_ended()
        if result is not None and asks_for_rollback(result):
            wrapper.set_rollback(True)

    def _function_raised(self, error: BaseException) -> None:
        """Take note of what broke the transaction, if it was raised below Django."""
        self._leave_blocks()
        if isinstance(error, Exception):
            if self.failures.first is None and self._status in _BROKEN:
                found = psycopg_error(error)
                if found is not None:
                    self.note_error(found)
            self.phase = Phase.ROLLBACK

    def _leave_blocks(self) -> None:
        """Leave nested atomic blocks that did not end, and note whether there were any.

        An exception that strikes as ``Atomic.__enter__`` or ``__exit__`` returns leaves Django's
        lists with an entry too many. The attempt's own block would take that for its own, and
        release a savepoint in place of ending the transaction.
        """
        blocks, savepoints = self.wrapper.atomic_blocks, self.wrapper.savepoint_ids
        if len(blocks) > self._depth or len(savepoints) > self._savepoints:
            self.interrupted = True
            del blocks[self._depth :], savepoints[self._savepoints :]

    def _forgive(self) -> None:
        """A savepoint was rolled back to: what happened since then is undone."""
        if self.phase is not Phase.BODY:
            # In a TestCase the attempt itself ends with a savepoint, and undoes nothing else.
            return
        self.failures.undo()
        if self.watch is not None:
            self.watch.savepoint_was_rolled_back()

    def _forgive_what_was_undone(self) -> None:
        """A statement succeeded: only a savepoint lets one do so after a failure of the server's.

        It was rolled back to by hand, or by psycopg's ``connection.transaction()``.
        """
        if self.failures.first is not None:
            self._forgive()

    def _keeps_error_response(self) -> bool:
        """Tell whether a view's own answer for a failure stands.

        It does, unless the failure is worth another attempt.
        """
        failure = self._unforgiven
        return failure is None or self.classify(failure) is Classification.RAISE

    @property
    def _unforgiven(self) -> Failure | None:
        """The failure that has broken the transaction, though the function returned."""
        return self.failures.first if self._status in _BROKEN else None

    @property
    def _status(self) -> TransactionStatus | None:
        connection = self.wrapper.connection
        return connection.info.transaction_status if connection is not None else None

    def _refuse_silent_rollback(self) -> None:
        """Raise the error that the function swallowed, since its transaction cannot be committed.

        The server answers COMMIT in an aborted transaction with ROLLBACK and no error, and
        Django rolls back without a word where an exception was caught inside the block. A
        rollback that was asked for, by ``transaction.set_rollback(True)``, stays one.

        Raises:
            django.db.Error: The first error that broke the transaction.
            TransactionManagementError: There is no such error to raise.
        """
        wrapper, failure = self.wrapper, self._unforgiven
        if failure is not None:
            with wrapper.wrap_database_errors:
                raise failure.error
        is_wanted = self.rollback_wanted and wrapper.needs_rollback
        if wrapper.closed_in_transaction or self.interrupted or not is_wanted:
            raise broken_transaction(wrapper, interrupted=self.interrupted)
