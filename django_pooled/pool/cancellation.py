"""Cancels a query that is not needed any more, and wakes a thread that still waits for it."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg import capabilities

from django_pooled.activity import start_thread
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

from .time_limit import in_a_thread, over_within
from .time_limit import start as start_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.pq.abc import PGcancel, PGconn

__all__ = ["cancel", "cancel_within", "interrupt"]

logger = logging.getLogger("django_pooled.pool")

T = TypeVar("T")


class _Connection(Protocol):
    """One that another thread may use, and close, meanwhile."""

    def look(self, look: Callable[[PGconn], T]) -> T | None:
        """Call a function with libpq's connection; return None once that is closed."""


def _in_a_thread(action: Callable[[], object]) -> None:
    try:
        start_thread(action, "cancels")
    except RuntimeError as error:
        logger.debug(
            "cannot cancel a query: %s",
            told(error),
            extra=event_fields("not_cancelled", error=error),
        )


def cancel(
    connection: _Connection,
    start: Callable[[Callable[[], object]], None] = _in_a_thread,
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
        request = connection.look(lambda pgconn: pgconn.get_cancel())
    except psycopg.OperationalError:
        return  # It is lost.
    if request is None:
        return
    # libpq knows no limit for it but the system's, so nobody waits for it.
    start(partial(_send, request))


def cancel_within(
    connection: psycopg.Connection[Any],
    seconds: float,
) -> bool:
    """Ask the server to end what it does for *connection*, and wait until it knows of it.

    The connection can be used again afterwards. A request that is still on its way could end a
    later statement: the server knows of it once it has closed the request's connection.
    https://www.postgresql.org/docs/current/libpq-cancel.html

    Args:
        connection: Whose statement it is; in use by the calling thread.
        seconds: Longest time to wait.

    Returns:
        Whether the server knows. If not, nothing must be sent on the connection any more.
    """
    try:
        if capabilities.has_cancel_safe():
            connection.cancel_safe(timeout=seconds)
            return True
        # libpq knows no time limit for it before 17.
        request = start_work(connection.pgconn.get_cancel().cancel, in_a_thread("cancels"))
        if over_within(request, seconds):
            request.result()
            return True
    except psycopg.Error as error:
        logger.debug(
            "cannot cancel a query: %s",
            told(error),
            extra=event_fields("not_cancelled", error=error),
        )
    return False


def interrupt(
    connection: _Connection,
    start: Callable[[Callable[[], object]], None] = _in_a_thread,
) -> None:
    """Have the thread that waits for the server find *connection* lost, at once.

    It is of no use afterwards. It is not closed here: that would free what the thread still works
    with, and the number of its socket could be another's before the thread looks.

    Args:
        connection: What the thread waits on.
        start: Runs an action in another thread.
    """
    cancel(connection, start)
    with suppress(psycopg.OperationalError, OSError):  # It is lost already.
        connection.look(_shut_down)


def _shut_down(pgconn: PGconn) -> None:
    handle = socket.socket(fileno=pgconn.socket)
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
