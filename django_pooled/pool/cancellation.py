"""Cancels a query that is not needed any more, and wakes a thread that still waits for it."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.pq.abc import PGcancel

    from .connection import PooledConnection

__all__ = ["cancel", "interrupt"]

logger = logging.getLogger("django_pooled.pool")


def _in_a_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action, name="cancels", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        logger.debug(
            "cannot cancel a query: %s",
            told(error),
            extra=event_fields("not_cancelled", error=error),
        )


def cancel(
    connection: PooledConnection, start: Callable[[Callable[[], object]], None] = _in_a_thread
) -> None:
    """Ask the server to end what it still does for *connection*, which may be closed meanwhile.

    Closing alone would not: a server that computes does not look at the socket, and keeps its
    locks until it has an answer to send. Returns at once; the request is one of its own, by a
    connection of its own: https://www.postgresql.org/docs/current/libpq-cancel.html

    Args:
        connection: Whose query it is.
        start: Runs an action in another thread.
    """
    try:
        request = connection.pgconn.get_cancel()
    except psycopg.OperationalError:
        return  # It is closed.
    # libpq knows no limit for it but the system's, so nobody waits for it.
    start(partial(_send, request))


def interrupt(
    connection: PooledConnection, start: Callable[[Callable[[], object]], None] = _in_a_thread
) -> None:
    """Have the thread that waits for the server find *connection* lost, at once.

    It is of no use afterwards. It is not closed here: that would free what the thread still works
    with, and the number of its socket could be another's before the thread looks.

    Args:
        connection: What the thread waits on.
        start: Runs an action in another thread.
    """
    cancel(connection, start)
    with suppress(psycopg.OperationalError, OSError):  # The thread has closed it meanwhile.
        handle = socket.socket(fileno=connection.pgconn.socket)
        try:
            handle.shutdown(socket.SHUT_RDWR)
        finally:
            handle.detach()


def _send(request: PGcancel) -> None:
    try:
        request.cancel()
    except psycopg.OperationalError as error:
        # The server is away; then so is its query.
        logger.debug(
            "cannot cancel a query: %s",
            told(error),
            extra=event_fields("not_cancelled", error=error),
        )
