"""What is checked out of one pool: since when, by which line of code, for which thread."""

from __future__ import annotations

import logging
import threading
import traceback
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from .reclaim import caller, this_threads_holder

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection

__all__ = ["Checkout", "Usage"]

logger = logging.getLogger("django_pooled.pool")


class Checkout(NamedTuple):
    """One connection in use."""

    connection: PooledConnection
    since: float
    where: str
    stack: traceback.StackSummary | None
    holder: dict[int, Callable[[], None]]


class Usage:
    """The connections of one pool that are in use.

    Args:
        alias: The pool's alias, for log lines.
        leak_after: Seconds after which the log tells where a connection was checked out.
        left_behind: Called with a checkout whose thread ended without giving it back, in a
            thread that is no more, as far as threading knows: it must not log, for instance.
    """

    def __init__(
        self, alias: str, leak_after: float | None, left_behind: Callable[[Checkout], None]
    ) -> None:
        self._alias = alias
        self._leak_after = leak_after
        self._left_behind = left_behind
        self._checkouts: dict[PooledConnection, Checkout] = {}
        self._returning: dict[PooledConnection, Checkout] = {}
        self._inherited: list[PooledConnection] = []
        self._changed = threading.Condition(threading.Lock())  # guards both dictionaries

    def __len__(self) -> int:
        return len(self._checkouts) + len(self._returning)

    def connections(self) -> list[PooledConnection]:
        """The connections in use now."""
        return list(self._checkouts)

    def begin(self, connection: PooledConnection) -> None:
        """Note that this thread has checked out *connection*."""
        holder = this_threads_holder()
        stack = traceback.extract_stack() if self._leak_after else None
        checkout = Checkout(connection, monotonic(), caller(), stack, holder)
        with self._changed:
            self._checkouts[connection] = checkout
        holder[id(connection)] = partial(self._left_behind, checkout)

    def end(self, connection: PooledConnection) -> bool:
        """Begin to give *connection* back; tell whether it was checked out at all.

        It counts as in use until `done`, while it is being reset.
        """
        with self._changed:
            checkout = self._checkouts.pop(connection, None)
            if checkout is None:
                return False
            self._returning[connection] = checkout
        checkout.holder.pop(id(connection), None)
        held = monotonic() - checkout.since
        if self._leak_after is not None and held > self._leak_after:
            self._log(checkout, held)
        return True

    def done(self, connection: PooledConnection) -> None:
        """Note that *connection* is in use no more: it goes back or is closed now."""
        with self._changed:
            self._returning.pop(connection, None)
            self._changed.notify_all()

    def is_current(self, checkout: Checkout) -> bool:
        """Tell whether that checkout has not ended; its connection may have had others since."""
        return self._checkouts.get(checkout.connection) is checkout

    def log_long_holds(self) -> None:
        """Log where each connection in use for longer than ``leak_after`` was checked out."""
        now = monotonic()
        for checkout in list(self._checkouts.values()):
            if self._leak_after is not None and now - checkout.since > self._leak_after:
                self._log(checkout, now - checkout.since)

    def wait_for_other_threads(self, timeout: float) -> None:
        """Wait until nothing is in use but by this thread, at most *timeout* seconds."""
        mine = this_threads_holder()
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._returning
                    and all(checkout.holder is mine for checkout in self._checkouts.values())
                ),
                timeout,
            )

    def abandon(self) -> None:
        """After fork(): what is in use is the parent's, and so is whoever holds the lock.

        The connections stay referenced, so that nothing frees them.
        """
        self._changed = threading.Condition(threading.Lock())
        self._inherited += [*self._checkouts, *self._returning]
        self._checkouts, self._returning = {}, {}

    def _log(self, checkout: Checkout, held: float) -> None:
        stack = "".join(checkout.stack.format()) if checkout.stack else checkout.where
        logger.warning(
            "pool %r: a connection is in use for %.1f s, checked out at:\n%s",
            self._alias,
            held,
            stack,
        )
