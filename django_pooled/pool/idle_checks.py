"""Which idle connections may be used."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields

from .liveness import answers, looks_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.stats.counters import Reason

    from .connection import PooledConnection
    from .connector import Connector
    from .custom_check import CustomCheck
    from .options import PoolOptions
    from .queue import RecoveringPool

__all__ = ["IdleChecks"]

logger = logging.getLogger("django_pooled.pool")


class IdleChecks:
    """Checks the idle connections of one pool before they are used.

    Args:
        alias: The pool's alias, for log lines.
        options: The pool's options.
        connector: Is told of connections that were lost.
        pool: The connections.
        check: The project's own.
        misfit: Tells a connection whose server is not what ``target_session_attrs`` asks for.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        connector: Connector,
        pool: RecoveringPool,
        check: CustomCheck,
        misfit: Callable[[PooledConnection], bool] | None = None,
    ) -> None:
        self._alias = alias
        self._check_after = options.check_after
        self._check_timeout = options.check_timeout
        self._custom_check = check if options.check is not None else None
        self._connector = connector
        self._pool = pool
        self._misfit = misfit

    def unusable(self, connection: PooledConnection, deadline: float) -> Reason | None:
        """Return why a connection that was idle cannot be used; None if it can.

        Args:
            connection: Taken from the pool.
            deadline: The monotonic moment at which its answer comes too late.
        """
        now, session = monotonic(), connection.session
        if now >= session.expires_at:
            return "lifetime"
        if not looks_alive(connection):
            return self._dead(now, silent=False)
        # Idle for so long that only a round trip tells.
        if now - session.idle_since >= self._check_after and not answers(
            connection, min(self._check_timeout, deadline - now)
        ):
            return self._dead(now, silent=looks_alive(connection))
        # Read by now, if the server has said so.
        if self._misfit is not None and self._misfit(connection):
            return self._of_another_kind(connection, self._misfit)
        if self._custom_check is not None:
            # The answer may have taken its time.
            left = min(self._check_timeout, deadline - monotonic())
            if not self._custom_check.passes(connection, left, self._pool.start):
                self._connector.suspect()
                return "dead"
        return None

    def _of_another_kind(
        self, connection: PooledConnection, misfit: Callable[[PooledConnection], bool]
    ) -> Reason:
        """Close the other idle connections that lead to such a server too."""
        host, port = connection.session.place
        self._pool.sweep(lambda other: not misfit(other), "drained")
        logger.warning(
            "pool %r: %s:%s is not what target_session_attrs asks for any more; its connections "
            "are closed",
            *(self._alias, host, port),
            extra=event_fields("server_changed", alias=self._alias, host=host, port=port),
        )
        return "drained"

    def _dead(self, now: float, *, silent: bool) -> Reason:
        """Check the other idle connections, since they may be dead too.

        Each would cost a later checkout its own discovery. Where one only kept silent, those that
        need a round trip too go unasked: each would cost another check_timeout.
        """
        self._connector.suspect()
        unasked = now - self._check_after if silent else float("-inf")
        dead = self._pool.sweep(
            lambda other: looks_alive(other) and other.session.idle_since > unasked, "dead"
        )
        logger.info(
            "pool %r: found %d dead connections",
            self._alias,
            dead + 1,
            extra=event_fields("connections_dead", alias=self._alias, connections=dead + 1),
        )
        return "dead"
