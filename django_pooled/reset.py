"""Bring a returned connection back to the state of a new one, or say that it can't be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus

from .log_facts import facts
from .redaction import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection

__all__ = ["is_as_new", "reset"]

logger = logging.getLogger("django_pooled.pool")


def is_as_new(connection: PooledConnection) -> bool:
    """Tell whether the reset "rollback" finds nothing to do; it is read from memory alone."""
    return (
        # What is broken has another status: libpq's is unknown then.
        connection.pgconn.transaction_status == TransactionStatus.IDLE
        and connection.pgconn.pipeline_status == PipelineStatus.OFF
        and connection.life.doomed_by is None
        and connection.pinned_by is None
        and connection.autocommit
        and connection.isolation_level is None
        and connection.read_only is None
        and connection.deferrable is None
    )


def reset(
    connection: PooledConnection,
    alias: str,
    mode: str | Callable[..., None] | None,
    configure: Callable[[PooledConnection], object],
) -> bool:
    """Roll back what is open and restore defaults; with "discard" clear all session state too.

    Args:
        connection: What was given back, in whatever state.
        alias: The pool's alias, for log lines.
        mode: The pool's option ``reset``.
        configure: Called after "discard", which undoes the configuration of a new connection.

    Returns:
        Whether the connection can be kept.
    """
    pgconn = connection.pgconn
    if connection.life.doomed_by is not None or pgconn.status != ConnStatus.OK:
        return False
    try:
        status = pgconn.transaction_status
        if status == TransactionStatus.ACTIVE or pgconn.pipeline_status != PipelineStatus.OFF:
            # Given back amid a query, a COPY or a pipeline: what it still has to say is unknown.
            return False
        if status != TransactionStatus.IDLE:
            logger.warning(
                "pool %r: rolled back a transaction left open",
                alias,
                extra=facts("transaction_left_open", alias=alias),
            )
            connection.rollback()
        _restore_defaults(connection)
        if mode == "discard" or connection.pinned_by is not None:
            connection.execute("DISCARD ALL")
            connection.pinned_by = None
            configure(connection)
        elif callable(mode):
            mode(connection)
        else:
            return True
    except Exception as error:
        logger.warning(
            "pool %r: discarded a connection: %s",
            alias,
            told(error),
            extra=facts("reset_failed", alias=alias, error=error),
        )
        return False
    return pgconn.transaction_status == TransactionStatus.IDLE


def _restore_defaults(connection: PooledConnection) -> None:
    # What a user may have set on the connection object; each setter refuses to run within
    # a transaction and does nothing on the server by itself.
    if not connection.autocommit:
        connection.autocommit = True
    if connection.isolation_level is not None:
        connection.isolation_level = None
    if connection.read_only is not None:
        connection.read_only = None
    if connection.deferrable is not None:
        connection.deferrable = None
