"""Whether statements of a request may have changed something for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection

__all__ = ["LastingEffects"]


class LastingEffects:
    """What one wrapper's statements may have changed, as far as their texts show it.

    A statement in autocommit counts as it is sent, since its answer may be lost; one in a
    transaction with COMMIT.
    """

    __slots__ = ("_pending", "possible")

    def __init__(self) -> None:
        self.possible: bool = False
        """Whether something may have taken effect since the request began."""
        self._pending = False

    def note_write(self, connection: PooledConnection) -> None:
        """A statement that does more than read is about to be sent."""
        idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if connection.autocommit and idle:
            self.possible = True
        else:
            self._pending = True

    def begin(self) -> None:
        """A transaction begins; what the last one did is undone, if that was not committed."""
        self._pending = False

    def commit(self) -> None:
        """The transaction was committed, or may have been."""
        self.possible = self.possible or self._pending
        self._pending = False

    def forget(self) -> None:
        """A request begins."""
        self.possible = self._pending = False
