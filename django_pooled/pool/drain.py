"""Replaces the connections of a pool one after another, as they come back."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields

if TYPE_CHECKING:
    from .queue import RecoveringPool

__all__ = ["Drain"]

logger = logging.getLogger("django_pooled.pool")

WAIT = 1.0
"""Seconds that it waits for a connection to come back, before it looks whether any is left."""

EVERY = 2**62
"""A mark that comes after all connections."""


class Drain:
    """Replaces the connections of one pool that are there when it begins.

    A thread of its own does so, one connection at a time: it opens a new one, as far as there is
    room, then takes an old one, idle or as it comes back. So the pool is never short of more than
    one, and no request waits for a connect that was not needed. While connecting fails, nothing
    more leaves: a wrong new password costs one connection at most.

    In a pause none is in use. Then, once a connection has shown that connecting works, all old ones
    leave together.

    Args:
        alias: The pool's alias, for log lines.
        queue: The connections.
    """

    def __init__(self, alias: str, queue: RecoveringPool) -> None:
        self._alias = alias
        self._queue = queue
        self._lock = threading.RLock()  # guards what follows
        self._than: int | None = None  # the mark of the drain under way
        self._shrinks = False  # whether a thread takes what is beyond max_size

    @property
    def left(self) -> int | None:
        """Connections that are to be replaced still; None without a drain."""
        than = self._than
        return None if than is None else self._queue.older(than)

    def begin(self) -> int:
        """Begin, or have the drain under way replace what is there now; return how many that are.

        What is being opened at this moment is replaced too: it may lead to the server before.
        """
        with self._lock:
            is_new, self._than = self._than is None, self._queue.mark()
            found = self._queue.older(self._than)
        if is_new:
            self._queue.run_later(self._run)
        return found

    def shrink(self) -> None:
        """Close connections beyond ``max_size``, as they come back."""
        with self._lock:
            if self._shrinks:
                return
            self._shrinks = True
        self._queue.run_later(self._shrink)

    def _run(self) -> None:
        queue, began, size = self._queue, monotonic(), self._queue.in_place
        replaced = 0
        queue.open_one_at_a_time(True)
        try:
            while not self._is_over():
                if not self._replace_one():
                    continue
                replaced += 1
                if queue.pause is not None:
                    replaced += queue.sweep_older(self._than or 0)
                    # Those that wait for the end of the pause find as many as before.
                    while queue.in_place < size and queue.has_room and self._open_one():
                        pass
        except BaseException:
            self._end()
            raise
        logger.info(
            "pool %r: drained: %d connections replaced in %.1f s",
            *(self._alias, replaced, monotonic() - began),
            extra=event_fields(
                "pool_drained",
                alias=self._alias,
                connections=replaced,
                seconds=monotonic() - began,
            ),
        )

    def _is_over(self) -> bool:
        """Tell whether none is left, and take note of it: the next order begins anew."""
        with self._lock:
            if not self._queue.closed and self._queue.older(self._than or 0):
                return False
            self._end()
            return True

    def _end(self) -> None:
        # Under the lock, so that an order that comes now is not ended along with it.
        with self._lock:
            self._than = None
            self._queue.open_one_at_a_time(False)

    def _replace_one(self) -> bool:
        queue = self._queue
        had_room = queue.has_room
        if had_room and not self._open_one():
            return False
        connection = None
        while connection is None:
            if queue.closed or not (than := self._than) or not queue.older(than):
                return False
            connection = queue.take_older(than, WAIT)
        queue.discard(connection, "drained")
        if not had_room:
            self._open_one()
        return True

    def _open_one(self) -> bool:
        """Open one, however long connecting fails; tell whether it is there, or there is no room.

        Others may have opened as many as there may be.
        """
        queue = self._queue

        def finds_no_room() -> bool:
            """Have one opened, unless that is under way; tell whether there is no room for it."""
            return not (queue.opening or queue.open_one() or queue.has_room)

        return queue.wait_for_one(queue.successes, finds_no_room) or not queue.closed

    def _shrink(self) -> None:
        queue = self._queue
        try:
            while not queue.closed and queue.in_place > queue.max_size:
                connection = queue.take_older(EVERY, WAIT)
                if connection is not None:
                    queue.discard(connection, "drained")
        finally:
            with self._lock:
                self._shrinks = False
