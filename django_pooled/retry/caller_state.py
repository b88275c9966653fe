"""Open cursors and session state of the caller, which a restart must not take from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.pool.connection import PooledConnection

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["CallerState"]

logger = logging.getLogger("django_pooled.retry")


class CallerState:
    """What the caller of a decorated function relies on in its connection.

    Between two attempts a connection goes back to its pool, where other threads may take it. It
    stays if the caller has an open cursor, or session state such as an advisory lock, a setting or
    a temporary table. If such a connection is lost, a cursor fails by itself when it is used. The
    session state is lost too: another attempt would run without the lock, or as another tenant.

    Args:
        wrapper: With a connection, and outside of a transaction.
    """

    __slots__ = ("_connection", "_needs_connection", "_wrapper", "state")

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self._wrapper = wrapper
        self._connection = wrapper.connection
        self._needs_connection = False
        self.state: str | None = None
        """The kind of session state that it relies on, if any."""
        connection = wrapper.connection
        if isinstance(connection, PooledConnection):
            self._needs_connection = wrapper.has_open_cursors() or connection.pinned_by is not None
            self.state = connection.relied_on

    @property
    def keep_connection(self) -> bool:
        """Whether the connection has to stay."""
        return self._needs_connection and not self._is_gone()

    @property
    def lost(self) -> str | None:
        """The session state that was lost with its connection, if any."""
        return self.state if self.state is not None and self._is_gone() else None

    def _is_gone(self) -> bool:
        connection = self._connection
        return (
            connection is not self._wrapper.connection
            or connection.closed
            or connection.session.doomed_by is not None
        )

    def refuse_to_go_on(self) -> None:
        """Have the caller's next statement fail, though its call has succeeded.

        COMMIT was done and its answer lost with the connection: the caller would continue without
        its lock. As after any loss of a connection outside of a transaction, the wrapper keeps the
        dead one until it is closed, at the latest at the end of the request.
        """
        wrapper = self._wrapper
        wrapper.close()
        wrapper.connection = self._connection
        wrapper.errors_occurred = True
        logger.warning(
            "database %r: session state of the caller (%s) was lost with the connection",
            wrapper.alias,
            self.state,
            extra=event_fields("caller_lost", alias=wrapper.alias),
        )
