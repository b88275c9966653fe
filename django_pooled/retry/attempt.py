"""One run of a retried function in a transaction, from BEGIN to COMMIT or ROLLBACK."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg
from django.db import connections
from django.db.transaction import atomic
from psycopg.pq import TransactionStatus

from django_pooled.backend.commit import close_if_interrupted, is_idle
from django_pooled.pool.connection import PooledConnection
from django_pooled.replay.process_caches import forget_rows
from django_pooled.replay.responses import (
    asks_for_rollback,
    is_error_response,
    refuse_coroutine,
)
from django_pooled.sql.sqlstates import is_connection_lost, psycopg_error

from .characteristics import set_characteristics
from .classify import Classification, classify
from .commit import committed_with_proof, refuse_if_a_question_failed, was_committed
from .other_databases import watch_others
from .phase import Phase
from .refusals import broken_transaction, lost_transaction, memoized_result
from .server_identity import learn, learned_of
from .server_questions import NO_QUESTIONS
from .transaction import BROKEN, Transaction
from .transaction_id import TransactionWatch
from .transaction_status import end_if_idle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from django_pooled.backend.transaction_hooks import TransactionHooks
    from django_pooled.pool.pool import Pool

    from .server_identity import Learned
    from .transaction_status import TransactionIdentity

__all__ = ["Attempt"]

R = TypeVar("R")


class Attempt(Transaction):
    """One run of a retried function."""

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
    restore: Callable[[], None] | None = None
    """Gives the connection back what it had before; for callbacks after COMMIT, too."""

    _outer: TransactionHooks | None = None
    """The attempt whose connection was being set up, by a receiver for instance, as this began."""
    _outermost: bool = False
    """Whether it ends with a COMMIT, and not with the release of a savepoint."""
    _depth: int = 0
    """How many atomic blocks were open when the function was called, its own included."""
    _savepoints: int = 0
    """How many of them have an entry in Django's list of savepoints."""

    def run(self, call: Callable[[], R]) -> R:
        """Call the function in a transaction, by *call*, and commit that."""
        wrapper = self.wrapper
        inside = wrapper.in_atomic_block
        if self.left_open is not None and not inside:
            self._end_left_open(self.left_open)
        try:
            self._outer, wrapper.attempt = wrapper.attempt, self
            wrapper.rollback_exc = None
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
            if not inside and (wrapper.in_atomic_block or not wrapper.autocommit):
                # An exception struck between two steps of Django's, as one from outside can.
                wrapper.abandon_block()

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
            if self.failures:
                refuse_if_a_question_failed(self)
            self.phase = Phase.COMMIT_SENT
            self._send_commit(send)
        except BaseException as error:
            close_if_interrupted(wrapper, error)
            if self.phase is not Phase.COMMIT_SENT or not was_committed(self, error):
                raise
        self.phase = Phase.COMMITTED
        # on_commit callbacks, which run next, have transactions of their own.
        self.end()

    def end(self) -> None:
        """The transaction has ended: let go of its wrapper and its connection."""
        watch = self.watch
        if watch is not None and watch.connection.observer is watch:
            watch.connection.observer = watch.outer
        if self.restore is not None:
            restore, self.restore = self.restore, None
            restore()
        # Last: `run` ends it again if an exception strikes before.
        self.wrapper.attempt = self._outer

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
        elif not committed_with_proof(self, watch):
            send()

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
            self.watch = connection.observer = TransactionWatch(
                connection, connection.observer, check.record, asks=not check.never_asks
            )

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
            or status in BROKEN
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
            if self.failure is None and self.is_broken:
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

    def _keeps_error_response(self) -> bool:
        """Tell whether a view's own answer for a failure stands.

        It does, unless the failure is worth another attempt.
        """
        failure, policy = self.failure if self.is_broken else None, self.policy
        return failure is None or (
            classify(failure, policy.retry_on, read_only=policy.read_only) is Classification.RAISE
        )

    def _refuse_silent_rollback(self) -> None:
        """Raise the error that the function swallowed, since its transaction cannot be committed.

        The server answers COMMIT in an aborted transaction with ROLLBACK and no error, and
        Django rolls back without a word where an exception was caught inside the block. A
        rollback that was asked for, by ``transaction.set_rollback(True)``, stays one.

        Raises:
            django.db.Error: The first error that broke the transaction.
            TransactionManagementError: There is no such error to raise.
        """
        wrapper, failure = self.wrapper, self.failure if self.is_broken else None
        if failure is not None:
            with wrapper.wrap_database_errors:
                raise failure.error
        is_wanted = self.rollback_wanted and wrapper.needs_rollback
        if wrapper.closed_in_transaction or self.interrupted or not is_wanted:
            raise broken_transaction(wrapper, interrupted=self.interrupted)
