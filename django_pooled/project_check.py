"""The option ``check``: the project's own say on which connections may be used."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from .background import over_within, start
from .cancellation import interrupt
from .failures import AttemptFailed
from .log_facts import facts
from .redaction import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connecting import Connector
    from .connection import PooledConnection

__all__ = ["ProjectCheck"]

logger = logging.getLogger("django_pooled.pool")

LEAVE = 1.0
"""Seconds for a check that was interrupted to let go of its connection."""


class ProjectCheck:
    """Asks the project's check, and has the pool open fewer connections while it keeps failing.

    While each new connection fails, or each one that is used again, a pool that goes on replacing
    them opens one after another. So those that were opened since one last passed are counted, and
    the pool holds off, longer each time.

    Args:
        alias: The pool's alias, for log lines.
        check: The option; None lets everything pass.
        connector: Is told to hold off.
    """

    def __init__(
        self,
        alias: str,
        check: Callable[[PooledConnection], object] | None,
        connector: Connector,
    ) -> None:
        self._alias = alias
        self._check = check
        self._connector = connector
        self._lock = threading.Lock()  # guards the two below
        self._opened = 0  # connections since one last passed
        self._failure: Exception | None = None  # the last check's, if it did not pass

    def note_opened(self) -> None:
        """Take note of a new connection, which has not been checked yet."""
        if self._check is not None:
            with self._lock:
                self._opened += 1
                self._hold_off()

    def passes(self, connection: PooledConnection, timeout: float) -> bool:
        """Tell whether the project wants a connection, within *timeout* seconds.

        Raises:
            BaseException: What the check has raised and is no Exception, or what ended the wait.
        """
        if self._check is None:
            return True
        # In a thread of its own, since nothing else ends a wait of the project's.
        work = partial(copy_context().run, self._check, connection)
        future = start(work, f"{self._alias}-checks")
        over = False
        try:
            over = over_within(future, timeout)
        finally:
            if not over:
                interrupt(connection)
                over_within(future, LEAVE)
        error = future.exception() if over else _hung(timeout)
        if error is None:
            with self._lock:
                self._opened, self._failure = 0, None
            self._connector.go_on()
            return True
        logger.info(
            "pool %r: the project's check failed: %s",
            self._alias,
            told(error),
            extra=facts("check_failed", alias=self._alias, error=error),
        )
        with self._lock:
            self._failure = AttemptFailed("OPTIONS['pool']['check']", error)
            self._hold_off()
        if not isinstance(error, Exception):
            raise error
        return False

    def _hold_off(self) -> None:
        # Those that were opened before and fail now may all be idle since a failover.
        if self._failure is not None and self._opened:
            self._connector.hold_off(self._failure, self._opened)


def _hung(timeout: float) -> TimeoutError:
    return TimeoutError(f"given up after {timeout:g} s")
