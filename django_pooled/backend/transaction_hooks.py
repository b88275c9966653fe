"""What the database wrapper tells the attempt that its transaction belongs to, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

__all__ = ["TransactionHooks"]


class TransactionHooks(Protocol):
    """One attempt of ``retry_transaction``, as the wrapper knows it.

    The wrapper holds it from the beginning of the attempt until its transaction has ended, and
    calls it in place of ending anything by itself.
    """

    def note_error(self, error: psycopg.Error) -> None:
        """The connection raised *error*, whether the body swallows it or not."""

    def commit(self, send: Callable[[], None]) -> None:
        """Commit, by calling *send*, and find out what became of a COMMIT without an answer.

        Raises:
            django.db.Error: Nothing was committed.
            AmbiguousCommit: It cannot be told whether the transaction was committed.
        """

    def set_rollback(self, rollback: bool) -> None:
        """The body wants its transaction rolled back, or does not want it any more."""

    def roll_back_savepoint(self, send: Callable[[], None]) -> None:
        """Roll back to a savepoint, by calling *send*."""

    def release_savepoint(self, send: Callable[[], None]) -> None:
        """Release a savepoint, by calling *send*."""
