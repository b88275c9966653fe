"""The option ``check``: the project's own test of each connection."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

from .cancellation import interrupt
from .connect_errors import AttemptFailed
from .time_limit import LEAVE, over_within, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection
    from .connector import Connector
    from .time_limit import LeftBehind

__all__ = ["CustomCheck"]

logger = logging.getLogger("django_pooled.pool")


class CustomCheck:
    """Asks the project's check, and has the pool open fewer connections while it keeps failing.

    While all connections fail it, a pool that replaces them would open one after another. So the
    connections that were opened since the first failure are counted, and the pool waits, longer
    each time.

    Args:
        alias: The pool's alias, for log lines.
        check: The option; None lets everything pass.
        connector: Is told to hold off.
        left_behind: Counts the threads of checks that never end.
    """

    def __init__(
        self,
        alias: str,
        check: Callable[[PooledConnection], object] | None,
        connector: Connector,
        left_behind: LeftBehind,
    ) -> None:
        self._alias = alias
        self._check = check
        self._connector = connector
        self._left_behind = left_behind
        self._lock = threading.RLock()  # guards all below
        self._opened = 0  # connections since one last passed that was like those that fail
        self._failure: Exception | None = None  # the last check's, likewise
        self._new_ones_fail = False

    def note_opened(self) -> None:
        """Take note of a new connection, which has not been checked yet."""
        if self._check is not None:
            with self._lock:
                self._opened += 1
                self._hold_off()

    def passes(
        self,
        connection: PooledConnection,
        timeout: float,
        run: Callable[[Callable[[], object]], None],
    ) -> bool:
        """Tell whether a connection passes the check, within *timeout* seconds.

        Args:
            connection: Which one.
            timeout: Seconds after which it has failed.
            run: Runs an action in a thread of its own.

        Raises:
            BaseException: One of the check that is no Exception, or one that ended the wait.
        """
        if self._check is None:
            return True
        # In a thread of its own, since a wait of the project's code cannot be ended otherwise.
        work = partial(copy_context().run, self._check, connection)
        future = start(work, run)
        over, wait = False, 0.0
        try:
            over = over_within(future, timeout)
        finally:
            if not over:
                interrupt(connection, run)
                over_within(future, LEAVE)
                wait = self._left_behind.add(future, timeout)
        error = future.exception() if over else _hung(timeout)
        is_new = connection.session.idle_since == connection.session.opened_at
        if error is None:
            self._passed(is_new)
            return True
        logger.info(
            "pool %r: the project's check failed: %s",
            self._alias,
            told(error),
            extra=event_fields("check_failed", alias=self._alias, error=error),
        )
        with self._lock:
            self._failure = AttemptFailed("OPTIONS['pool']['check']", error)
            self._new_ones_fail = is_new
            self._hold_off(wait)
        if not isinstance(error, Exception):
            raise error
        return False

    def _passed(self, is_new: bool) -> None:
        # While connections that are used again fail, a new one that passes proves nothing.
        with self._lock:
            if self._failure is None or not is_new or self._new_ones_fail:
                self._opened, self._failure = 0, None
                self._connector.go_on()

    def _hold_off(self, wait: float = 0.0) -> None:
        # Idle connections from before a failover may all fail now, without a new one at fault.
        if self._failure is not None and (self._opened or wait):
            self._connector.hold_off(self._failure, self._opened, wait)


def _hung(timeout: float) -> TimeoutError:
    return TimeoutError(f"given up after {timeout:.3g} s")
