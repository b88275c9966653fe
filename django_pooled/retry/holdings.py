"""What a caller has on the connection, which a restart must not take from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django_pooled.log_facts import facts

if TYPE_CHECKING:
    from django_pooled.base import DatabaseWrapper

__all__ = ["Holdings"]

logger = logging.getLogger("django_pooled.retry")


class Holdings:
    """What the caller of a decorated function has on its connection when it calls.

    Between two attempts a connection goes back to its pool, where other threads may take it. One
    on which the caller has an open cursor, or session state such as an advisory lock, a setting
    or a temporary table, stays where it is. If it is lost, the caller's things are lost with it:
    another attempt would run without the lock, or as another tenant.

    Args:
        wrapper: Outside of a transaction; within one, nothing goes back in any case.
    """

    __slots__ = ("_connection", "_wrapper", "held")

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self._wrapper = wrapper
        self._connection = wrapper.connection
        self.held: str | None = None
        """What it is, in words; None if the connection may go back."""
        if self._connection is not None and not wrapper.in_atomic_block:
            self.held = wrapper.held_by_caller()

    @property
    def lost(self) -> bool:
        """Whether the connection with them is gone, or of no use any more."""
        connection = self._connection
        return self.held is not None and (
            connection is not self._wrapper.connection
            or connection.closed
            or connection.life.doomed_by is not None
        )

    def refuse_to_go_on(self) -> None:
        """Have the caller's next statement fail, though its call has succeeded.

        That is so where COMMIT was done and its answer lost with the connection: the caller goes
        on and believes that it still has its lock. As after any other loss outside of a
        transaction, the wrapper keeps the dead connection until it is closed, at the end of the
        request at the latest.
        """
        wrapper = self._wrapper
        wrapper.close()
        wrapper.connection = self._connection
        wrapper.errors_occurred = True
        logger.warning(
            "database %r: the caller's %s was lost with the connection; it has to close it",
            wrapper.alias,
            self.held,
            extra=facts("caller_lost", alias=wrapper.alias),
        )
