"""What is checked out of one pool: since when, by which line of code, for which thread."""

from __future__ import annotations

import logging
import threading
import traceback
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypedDict

from .activity import activity_of, current
from .log_facts import facts
from .reclaim import caller, this_threads_holder

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection
    from .reclaim import Line
    from .record import Record

__all__ = ["Checkout", "ConnectionFigures", "Usage", "described"]

logger = logging.getLogger("django_pooled.pool")


class Checkout:
    """One connection in use by the thread that makes this."""

    __slots__ = ("activity", "connection", "holder", "since", "stack", "thread", "where")

    def __init__(self, connection: PooledConnection, since: float, keep_stack: bool) -> None:
        self.connection = connection
        self.since = since
        self.where: Line = caller()
        self.stack = traceback.extract_stack() if keep_stack else None
        self.holder: dict[int, Callable[[], None]] = this_threads_holder()
        self.thread: int = threading.get_ident()
        self.activity: str | None = current.get()
        """What it is for, where something has named it."""


class ConnectionFigures(TypedDict):
    """One connection of a pool at one moment; times are seconds."""

    backend_pid: int
    age: float
    state: str
    """'idle', 'in use' or 'returning': while it is reset at its checkin."""
    since: float
    """How long it has been in that state."""
    by: str | None
    """The view, task or command that has it in use, if that can be told."""
    where: str | None
    """The line that checked it out, as 'module.function:line'; None while it is idle."""
    pinned_by: str | None
    """The session state that keeps it with its request, in transaction mode."""
    doomed_by: str | None
    """Why it will be closed at its checkin."""


def described(connection: PooledConnection, checkout: Checkout | None = None) -> ConnectionFigures:
    """Describe a connection: idle, or in use since *checkout*."""
    life, now = connection.life, monotonic()
    return ConnectionFigures(
        backend_pid=life.backend_pid,
        age=now - life.opened_at,
        state="in use" if checkout else "idle",
        since=max(0.0, now - (checkout.since if checkout else life.idle_since)),
        by=(checkout.activity or activity_of(checkout.thread)) if checkout else None,
        where=str(checkout.where) if checkout else None,
        pinned_by=connection.pinned_by,
        doomed_by=life.doomed_by,
    )


class Usage:
    """The connections of one pool that are in use, and the record of those that were.

    Args:
        alias: The pool's alias, for log lines.
        record: Where checkouts and checkins are counted.
        leak_after: Seconds after which the log tells where a connection was checked out.
    """

    def __init__(self, alias: str, record: Record, leak_after: float | None) -> None:
        self._alias = alias
        self._record = record
        self._leak_after = leak_after
        self._checkouts: dict[PooledConnection, Checkout] = {}
        self._returning: dict[PooledConnection, Checkout] = {}
        self._inherited: list[PooledConnection] = []
        # The record's lock guards both dictionaries too, so that its sums hold at any moment.
        self._lock = record.lock
        self._changed = threading.Condition(self._lock)
        self._watched = False

    def __len__(self) -> int:
        return len(self._checkouts) + len(self._returning)

    def connections(self) -> list[PooledConnection]:
        """The connections in use now."""
        return list(self._checkouts)

    def begin(
        self,
        connection: PooledConnection,
        asked: float,
        left_behind: Callable[[Checkout], None],
    ) -> float:
        """Note that this thread has checked out *connection*.

        Args:
            connection: What it got.
            asked: The monotonic moment at which it began to ask for one.
            left_behind: Called with the checkout if the thread ends without giving it back, in a
                thread that is no more, as far as threading knows: it must not log, for instance.

        Returns:
            How many seconds that took.
        """
        now = monotonic()
        checkout = Checkout(connection, now, self._leak_after is not None)
        with self._lock:
            self._checkouts[connection] = checkout
            self._record.checkout(now - asked)
        checkout.holder[id(connection)] = partial(left_behind, checkout)
        return now - asked

    def describe(self) -> list[ConnectionFigures]:
        """Describe the connections in use now, and those that are being given back."""
        in_use = [described(*pair) for pair in list(self._checkouts.items())]
        returning = [described(*pair) for pair in list(self._returning.items())]
        for figures in returning:
            figures["state"] = "returning"
        return in_use + returning

    def end(self, connection: PooledConnection) -> float | None:
        """Begin to give *connection* back.

        It counts as in use until `done`, while it is being reset.

        Returns:
            How many seconds it was in use; None if it was not checked out at all.
        """
        with self._lock:
            checkout = self._checkouts.pop(connection, None)
            if checkout is None:
                return None
            self._returning[connection] = checkout
        checkout.holder.pop(id(connection), None)
        held = monotonic() - checkout.since
        if self._leak_after is not None and held > self._leak_after:
            self._log(checkout, held)
        return held

    def done(self, connection: PooledConnection, used: float, kept: bool) -> None:
        """Note that *connection* is in use no more: it goes back, or is not kept and closed."""
        with self._lock:
            self._returning.pop(connection, None)
            self._record.checkin(used, kept)
            if self._watched:
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
        with self._lock:
            self._watched = True
            self._changed.wait_for(
                lambda: (
                    not self._returning
                    and all(checkout.holder is mine for checkout in self._checkouts.values())
                ),
                timeout,
            )

    def abandon(self) -> None:
        """After fork(), and after the record: what is in use is the parent's.

        The connections stay referenced, so that nothing frees them.
        """
        self._lock = self._record.lock
        self._changed = threading.Condition(self._lock)
        self._inherited += [*self._checkouts, *self._returning]
        self._checkouts, self._returning = {}, {}

    def _log(self, checkout: Checkout, held: float) -> None:
        stack = "".join(checkout.stack.format()) if checkout.stack else str(checkout.where)
        logger.warning(
            "pool %r: a connection is in use for %.1f s, checked out at:\n%s",
            self._alias,
            held,
            stack,
            extra=facts(
                "connection_held", alias=self._alias, seconds=held, where=str(checkout.where)
            ),
        )
