"""Transactions as the database wrapper ends them: COMMIT, ROLLBACK and savepoints."""

from __future__ import annotations

from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from django.db import Error, connections
from psycopg.pq import TransactionStatus

from django_pooled.errors import AmbiguousCommit
from django_pooled.pool.connection import PooledConnection
from django_pooled.pool.deadline import call_with_grace, current
from django_pooled.pool.liveness import ending_of
from django_pooled.pool.statement_deadline import refuse_if_ended
from django_pooled.pool.transaction_control import Control, TransactionControl

from . import transaction_thread
from .commit import close_if_interrupted, commit_once
from .replacement import Replacement
from .unattended import this_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.transaction_control import Kind

    from .transaction_hooks import TransactionHooks

__all__ = ["Transactions"]

# The "type: ignore"s below stand where django-stubs does not know a method that Django has.


class Transactions(Replacement):
    """The part of the database wrapper that ends transactions, or leaves that to an attempt."""

    _lasting_in: object = None
    """The last request whose statements may have changed something for good, by their texts."""

    _pending_in: object = None
    """The request of the transaction's statements that may, which count with its COMMIT."""

    attempt: TransactionHooks | None = None
    """Set by retry_transaction for as long as one attempt of a transaction lasts."""

    def note_write(self, connection: PooledConnection) -> None:
        """A statement on *connection* changes something, or may do so."""
        idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if connection.autocommit and idle:
            # Now, since the answer may be lost.
            self._lasting_in = this_thread.request
        else:
            self._pending_in = this_thread.request

    @property
    def has_lasting_effects(self) -> bool:
        """Whether statements of this thread's request may have changed something for good."""
        return self._lasting_in is this_thread.request

    def _commit(self) -> None:
        if self.connection is None:
            return
        try:
            self._refuse_to_commit_if_ended()
            send = super()._commit  # type: ignore[misc]
            if self.attempt is None:
                self._end_transaction(partial(commit_once, self, send))
            else:
                self._end_transaction(partial(self.attempt.commit, send))
        except BaseException as error:
            close_if_interrupted(self, error)
            # Any other error of the database says that nothing was committed.
            if isinstance(error, AmbiguousCommit) or not isinstance(error, Error):
                self._lasting_in = self._pending_in or self._lasting_in
            raise
        self._lasting_in = self._pending_in or self._lasting_in

    def _refuse_to_commit_if_ended(self) -> None:
        """Notice, without a round trip, that the session ended while its transaction idled.

        Were COMMIT sent all the same, it would read as if the transaction might be committed. After
        the deadline it is not sent either, and nothing is committed.

        Raises:
            django.db.Error: It ended, and the transaction with it.
            DeadlineExceeded: It is too late.
        """
        connection = self.connection
        if connection.pgconn.transaction_status != TransactionStatus.INTRANS:
            return
        session, deadline = connection.session, current.get()
        if deadline is not None:
            with self.wrap_database_errors:
                refuse_if_ended(session, deadline)
        if not session.is_readable() and session.goodbye is None:
            return
        error = ending_of(connection)
        if error is not None:
            connection.close()
            with self.wrap_database_errors:
                raise error

    def _rollback(self) -> None:
        try:
            self._end_transaction(super()._rollback)  # type: ignore[misc]
        except BaseException as error:
            close_if_interrupted(self, error)
            raise

    def _end_transaction(self, end: Callable[[], None]) -> None:
        """Let Django end the transaction, which its body must not do."""
        connection = self.connection
        if not isinstance(connection, PooledConnection):
            end()
            return
        if connection.control is not None:
            connection.end_savepoints()
        thread = connection.announced_by = get_ident()
        try:
            end()
        finally:
            if connection.announced_by == thread:
                connection.announced_by = 0

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        """As Django's; called by a coroutine, it is for the transaction that this takes part in.

        That belongs to a wrapper of another thread. Without this, *func* would be called at once.
        """
        serving = transaction_thread.serving_transaction_of(self.alias)
        func = transaction_thread.as_callback(func)
        if serving is None or not callable(func):
            super().on_commit(func, robust)
        else:
            # Before COMMIT in any case: that is sent once the thread has nothing more to run.
            serving.submit(_register_on_commit, self.alias, func, robust)

    def set_rollback(self, rollback: bool) -> None:
        super().set_rollback(rollback)
        if self.attempt is not None:
            self.attempt.set_rollback(rollback)

    def _savepoint(self, sid: str) -> None:
        create = super()._savepoint  # type: ignore[misc]
        self._control("SAVEPOINT", sid, self.ops.savepoint_create_sql, create)

    def _savepoint_rollback(self, sid: str) -> None:
        end = super()._savepoint_rollback  # type: ignore[misc]
        send = partial(self._control, "ROLLBACK", sid, self.ops.savepoint_rollback_sql, end)
        if self.attempt is not None:
            send = partial(self.attempt.roll_back_savepoint, send)
        # A deadline of the block that is undone must not break the transaction around it.
        call_with_grace(send)

    def _savepoint_commit(self, sid: str) -> None:
        end = super()._savepoint_commit  # type: ignore[misc]
        send = partial(self._control, "RELEASE", sid, self.ops.savepoint_commit_sql, end)
        if self.attempt is not None:
            send = partial(self.attempt.release_savepoint, send)
        # Django releases one that was rolled back to as well.
        call_with_grace(send)

    def _control(
        self,
        kind: Kind,
        savepoint: str,
        statement_for: Callable[[str], str],
        send: Callable[[str], None],
    ) -> None:
        """Let Django execute a statement that may wait for the next one."""
        connection = self.connection
        if not isinstance(connection, PooledConnection) or not connection.carries:
            send(savepoint)
            return
        control = connection.control
        if control is None:
            control = connection.control = TransactionControl()
        control.expected = Control(kind, savepoint, statement_for(savepoint))
        try:
            send(savepoint)
        finally:
            control.expected = None


def _register_on_commit(alias: str, func: Callable[[], object], robust: bool) -> None:
    connections[alias].on_commit(func, robust)
