"""The wrapper as the owner of its connection, which may have to part with it at any moment."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import ref

from django.core.exceptions import SynchronousOnlyOperation

from django_pooled.integrations import tenants
from django_pooled.pool.connection import PooledConnection

from .transactions import Transactions

if TYPE_CHECKING:
    from django_pooled.pool.pool import Pool

    from .pool_lookup import PoolLookup

__all__ = ["Ownership"]


class Ownership(Transactions):
    """The part of the database wrapper that keeps its connection, drops it, or takes another's."""

    pool: Pool | None
    _lookup: PoolLookup

    @property
    def is_setting_up(self) -> bool:
        """Whether the wrapper of a tenant sends its search_path, as on each connection it gets."""
        return tenants.is_setting_up(self)

    def drop_connection(self) -> None:
        """Give back a connection in whatever state, since its transaction is of no use any more."""
        # Through close(), where a backend built on this one forgets what it knew of the session,
        # such as its search_path. The callbacks wait for the outcome of the transaction.
        callbacks = self.run_on_commit
        self.give_back()
        self.run_on_commit = callbacks

    def adopt_connection(self, other: Ownership) -> None:
        """Take over the connection of *other*, which has none afterwards."""
        self.connection, self.checked_out_from = other.connection, other.checked_out_from
        self.pool, self.gives_back = self.checked_out_from, other.gives_back
        other._part()
        if isinstance(self.connection, PooledConnection):  # pragma: no branch - told to mypy
            self.connection.owner = ref(self)

    def abandon_block(self) -> None:
        """Leave every atomic block; the transaction is rolled back as the connection goes back."""
        self.in_atomic_block = self.needs_rollback = self.closed_in_transaction = False
        self.savepoint_ids, self.atomic_blocks = [], []
        self.close()

    def forget_connection(self) -> None:
        """After fork(): forget the parent's connection, without telling the server."""
        self._part()
        self._lookup.forget()
        self.in_atomic_block = self.needs_rollback = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.attempt = None
        # Nothing is left to close, but a backend built on this one may forget in close() what it
        # knew of the session. Where an event loop runs, Django refuses, but only after that.
        with suppress(SynchronousOnlyOperation):
            self.close()

    def keeps(self, connection: PooledConnection) -> bool:
        """Tell whether this wrapper keeps the connection, though its thread has ended.

        It does while other threads may use it, as Django's live server does in tests. Else it
        forgets the connection, which will have other users.
        """
        # Where a thread waits for another connection with the lock held, this one is gone already.
        if self.connection is not connection:
            return False
        # Another thread may be allowed to use it at this moment, and begin to.
        with self._connection_lock:
            if self.connection is not connection:
                return False
            if self.allow_thread_sharing:
                return True
            self._part()
            return False

    def _part(self) -> None:
        """Forget the connection, and its pool with it."""
        self.connection = self.checked_out_from = None
        self.gives_back = False
        vars(self).pop("pool", None)
