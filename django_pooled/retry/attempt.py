"""One run of a retried transaction: how far it got, and which database errors it met."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
from django.db import Error
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.sqlstates import history, is_connection_lost, psycopg_error

from .classify import Failure
from .phase import Phase
from .server_identity import known, learn
from .transaction_id import Rider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .commit_checks import CommitCheck
    from .server_identity import Questions

__all__ = ["Attempt", "is_broken", "is_idle", "is_outermost"]


@dataclass
class Attempt:
    """One run of a retried transaction.

    Args:
        deadline: Monotonic instant after which nothing more is found out.
        commit_check: How a COMMIT without an answer is resolved.
        sleep: Waits, in seconds.
        read_only: Whether it begins as READ ONLY.
    """

    deadline: float
    commit_check: CommitCheck
    sleep: Callable[[float], None]
    read_only: bool = False
    phase: Phase = Phase.BODY
    failures: list[Failure] = field(default_factory=list)
    """Every database error on the connection, in order, swallowed ones included."""
    forgiven: int = 0
    """How many of them, from the first, a savepoint has undone."""
    returned: object = None
    """What the body has returned."""
    written_elsewhere: set[str] = field(default_factory=set)
    """Other databases that the body wrote to."""
    restore: Callable[[], None] | None = None
    """Gives the connection back what it had before; for callbacks after COMMIT, too."""
    rider: Rider | None = None
    """Knows the transaction's id once it has one; None where it is not wanted."""
    wrote_nothing: bool = False
    """Whether the server commits it only if it has written nothing."""
    questions: Questions | None = None
    """What may be asked inside the transaction; None where nothing is."""
    rollback_wanted: bool = False
    """Whether the body asked for a rollback, by ``transaction.set_rollback(True)``."""
    outermost: bool = False
    """Whether it ends with a COMMIT, and not with the release of a savepoint."""
    depth: int = 0
    """How many atomic blocks were open when its body began, its own included."""
    savepoints: int = 0
    """How many of them have an entry in Django's list of savepoints."""
    interrupted: bool = False
    """Whether a nested block did not end, or not to its last step."""
    interrupted_in: int = 0
    """How many savepoints were around it."""

    def prepare(self, wrapper: DatabaseWrapper) -> None:
        """Learn what may be asked inside the transaction, before it begins."""
        if self.commit_check.never_asks or wrapper.in_atomic_block:
            return
        wrapper.ensure_connection()
        if isinstance(wrapper.connection, PooledConnection):
            try:
                learn(wrapper.connection)
            except psycopg.Error as error:
                # What else goes wrong, such as a time limit, is none of the caller's business:
                # this attempt asks for nothing.
                if wrapper.connection.broken or is_connection_lost(error):
                    with wrapper.wrap_database_errors:
                        raise
            except BaseException:
                # A time limit of the caller's own: the connection still waits for an answer.
                wrapper.close()
                raise
            self.questions = known(wrapper.connection)
            self.commit_check.suit(self.questions)

    def begin(self, wrapper: DatabaseWrapper) -> None:
        """The transaction is open, and its body comes next."""
        self.depth, self.savepoints = len(wrapper.atomic_blocks), len(wrapper.savepoint_ids)
        self.outermost = is_outermost(wrapper)
        if self.outermost:
            check = self.commit_check
            if self.read_only:
                # It can notify, but not leave a record, whose absence then proves nothing.
                check.record = None
            self.rider = Rider(wrapper.connection, check.record, asks=not check.never_asks)
            self.rider.succeeded = self._forgive_what_was_undone

    def end(self, wrapper: DatabaseWrapper) -> None:
        """It is over, whatever came of it; what follows on the wrapper is none of its business."""
        wrapper.attempt = None
        restore, self.restore = self.restore, None
        if restore is not None:
            restore()
        if self.rider is not None:
            self.rider.dismount()

    @property
    def has_written(self) -> bool:
        """Whether the transaction is known to have an id, which it gets with its first write."""
        return self.rider is not None and self.rider.testimony is not None

    @property
    def was_ended(self) -> bool:
        """Whether a statement of the body has ended the transaction, as far as is known."""
        return self.rider is not None and self.rider.was_ended

    @property
    def may_have_ended(self) -> bool:
        """Whether a statement of the body may have done so, and the server did not say."""
        return self.rider is not None and self.rider.may_have_ended

    def note(self, wrapper: DatabaseWrapper, error: psycopg.Error) -> None:
        """Record an error of the connection, unless the transaction never met it."""
        if self.phase is not Phase.ROLLBACK and all(f.error is not error for f in self.failures):
            failure = Failure.of(error, wrapper.connection)
            if failure.lost or failure.sqlstate is not None or not _is_intact(wrapper):
                self.failures.append(failure)

    def note_raised(self, wrapper: DatabaseWrapper, raised: BaseException) -> None:
        """The body raised: record what comes from below Django, if it broke the transaction."""
        error = psycopg_error(raised)
        if error is not None and is_broken(wrapper):
            self.note(wrapper, error)
        self.phase = Phase.ROLLBACK

    def leave_blocks(self, wrapper: DatabaseWrapper) -> None:
        """Leave nested atomic blocks that did not end, and note whether there were any.

        An exception that strikes as ``Atomic.__enter__`` or ``__exit__`` returns leaves Django's
        lists with an entry too many. The attempt's own block would take that for its own, and
        release a savepoint in place of ending the transaction.
        """
        blocks, savepoints = wrapper.atomic_blocks, wrapper.savepoint_ids
        if len(blocks) > self.depth or len(savepoints) > self.savepoints:
            self.interrupted = True
            del blocks[self.depth :], savepoints[self.savepoints :]

    @contextmanager
    def noting_interruption(self, wrapper: DatabaseWrapper) -> Iterator[None]:
        """Within the block, a savepoint ends: what is no database error leaves it open.

        Django forgets the savepoint first, so what should have been undone would be committed.
        """
        try:
            yield
        except Error:
            raise
        except BaseException:
            around = len(wrapper.savepoint_ids)
            self.interrupted_in = min(around, self.interrupted_in) if self.interrupted else around
            self.interrupted = True
            raise

    def forgive_interruption(self, wrapper: DatabaseWrapper) -> None:
        """A nested block was rolled back, and all that was in it."""
        if len(wrapper.savepoint_ids) < self.interrupted_in:
            self.interrupted, self.interrupted_in = False, 0

    def forgive(self) -> None:
        """A savepoint was rolled back to: what happened since then is undone."""
        if self.phase is not Phase.BODY:
            # In a TestCase the attempt itself ends with a savepoint, and undoes nothing else.
            return
        self.forgiven = len(self.failures)
        if self.rider is not None:
            self.rider.savepoint_was_rolled_back()

    def _forgive_what_was_undone(self) -> None:
        """A statement succeeded: only a savepoint lets one do so after a failure of the server's.

        It was rolled back to by hand, or by psycopg's ``connection.transaction()``.
        """
        if self.forgiven < len(self.failures):
            self.forgive()

    def cause(self, raised: BaseException) -> Failure | None:
        """Return the failure for which the attempt ended, by raising *raised*; None if none did.

        The first that no savepoint undid: what follows are its consequences (25P02), whatever
        the body made of them. Else the last of those undone that *raised* comes from.
        """
        for failure in self.failures[self.forgiven :]:
            return failure
        told = set(map(id, history(raised)))
        for failure in reversed(self.failures[: self.forgiven]):
            if id(failure.error) in told:
                return failure
        return None

    def unforgiven(self, wrapper: DatabaseWrapper) -> Failure | None:
        """Return what has broken the transaction, if the body returned all the same."""
        if is_broken(wrapper):
            for failure in self.failures[self.forgiven :]:
                return failure
        return None

    def refuse_silent_rollback(self, wrapper: DatabaseWrapper) -> None:
        """Raise what was swallowed if the body has returned from a transaction that is lost.

        The server answers COMMIT in an aborted transaction with ROLLBACK and no error, and
        Django rolls back without a word where an exception was caught inside the block. A
        rollback that was asked for, by ``transaction.set_rollback(True)``, stays one.

        Raises:
            django.db.Error: The first error that broke the transaction.
            TransactionManagementError: The body ended the transaction itself, or swallowed an
                exception of which nothing else is known.
        """
        alias = wrapper.alias
        failure = self.unforgiven(wrapper)
        if failure is not None:
            with wrapper.wrap_database_errors:
                raise failure.error
        if wrapper.closed_in_transaction:
            raise TransactionManagementError(
                f"The connection to {alias!r} was closed inside its transaction, which was "
                f"therefore not committed."
            )
        if self.interrupted:
            raise TransactionManagementError(
                f"An exception that interrupted the beginning or end of a nested atomic block on "
                f"{alias!r} was swallowed; the transaction was not committed."
            )
        if wrapper.needs_rollback:
            if self.rollback_wanted:
                return
            if wrapper.rollback_exc is not None:
                raise wrapper.rollback_exc
            raise TransactionManagementError(
                f"An exception that left a nested atomic block on {alias!r} was swallowed, and the "
                f"block had no savepoint that could be rolled back to; the transaction was not "
                f"committed."
            )
        if is_broken(wrapper):
            raise TransactionManagementError(
                f"The transaction on {alias!r} was broken by an error that was raised below Django "
                f"and swallowed; it cannot be committed."
            )
        if self.rider is not None:
            self.rider.refuse_if_ended()


def is_broken(wrapper: DatabaseWrapper) -> bool:
    """Tell whether the transaction cannot be committed any more, or the connection is gone."""
    return _status(wrapper) in (TransactionStatus.INERROR, TransactionStatus.UNKNOWN)


def _is_intact(wrapper: DatabaseWrapper) -> bool:
    """Tell whether the transaction goes on, or begins yet, as if there had been no error."""
    return _status(wrapper) in (TransactionStatus.INTRANS, TransactionStatus.IDLE)


def is_outermost(wrapper: DatabaseWrapper) -> bool:
    """Tell whether the end of the attempt is a COMMIT, and not the release of a savepoint."""
    return len(wrapper.atomic_blocks) == 1 and isinstance(wrapper.connection, PooledConnection)


def is_idle(wrapper: DatabaseWrapper) -> bool:
    """Tell whether no transaction is open on the server."""
    return _status(wrapper) == TransactionStatus.IDLE


def _status(wrapper: DatabaseWrapper) -> TransactionStatus | None:
    connection = wrapper.connection
    return connection.info.transaction_status if connection is not None else None
