"""A statement under a deadline: not sent after it, cancelled on the server when it ends."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import READY_NONE

from django_pooled.errors import DeadlineExceeded

from .cancellation import cancel_within
from .deadline import GRACE
from .psycopg_private import ends_something, sends_nothing_new

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen

    from .deadline import Deadline
    from .session import Session

__all__ = ["How", "refuse_if_ended", "wait_within"]

RV = TypeVar("RV")

How = Literal["refused", "cancelled", "closed"]
"""What became of a statement: it was not sent, or was cancelled on the server; or the server did
not answer, and the connection was closed."""

_WORDS: dict[How, str] = {
    "refused": "before a statement, which was not sent",
    "cancelled": "amid a statement, which was cancelled",
    "closed": "amid a statement; the server did not answer, and the connection was closed",
}

# psycopg looks for Ctrl-C as often.
_INTERVAL = 0.1
_SHORTEST = 0.01

# query_canceled, by a request or by statement_timeout; transaction_timeout.
_ENDED_BY_THE_SERVER = frozenset({"57014", "25P04"})


def wait_within(
    connection: psycopg.Connection[Any],
    session: Session,
    deadline: Deadline,
    generator: PQGen[RV],
    wait: Callable[..., RV],
    interval: float | None = _INTERVAL,
    **options: Any,
) -> RV:
    """Wait for *generator* as psycopg does, and no longer than the deadline allows.

    psycopg resumes a generator several times a second even if the server is silent, so the
    thread that waits sends the request to cancel itself, and no other thread has to guess which
    statement is under way. What ends something (COMMIT, ROLLBACK) is not cancelled: it has a
    little longer, and then the connection is closed, without a request to cancel, which would have
    the server commit before its standbys have what they should.

    Args:
        connection: Whose; its lock is held.
        session: Its session.
        deadline: The present one.
        generator: What psycopg waits for.
        wait: psycopg's own `wait` of the connection.
        interval: Its argument: the seconds after which a generator is resumed.
        options: Its other arguments.

    Raises:
        DeadlineExceeded: It has ended.
    """
    ends = session.is_committing or ends_something(generator)
    if not ends and not sends_nothing_new(generator):
        refuse_if_ended(session, deadline)
    if session.cancelled_at is not None and not _is_under_way(connection):
        session.cancelled_at = None
    interval = min(interval or _INTERVAL, max(_SHORTEST, deadline.left))
    limited = _ending if ends else _cancelling
    try:
        return wait(limited(connection, session, deadline, generator), interval=interval, **options)
    except DeadlineExceeded:
        raise
    except psycopg.Error as error:
        if error.sqlstate in _ENDED_BY_THE_SERVER and deadline.has_ended:
            raise _exceeded(session, deadline, "cancelled") from error
        raise


def refuse_if_ended(session: Session, deadline: Deadline) -> None:
    """Refuse to send a statement after the deadline.

    Raises:
        DeadlineExceeded: It has ended.
    """
    if deadline.has_ended:
        raise _exceeded(session, deadline, "refused")


def _cancelling(
    connection: psycopg.Connection[Any],
    session: Session,
    deadline: Deadline,
    generator: PQGen[RV],
) -> PQGen[RV]:
    """Resume *generator*; after the deadline, cancel what it waits for, and then give it up."""
    given_up_at = None
    state: Any = None
    while True:
        now = monotonic()
        if state == READY_NONE and deadline.is_gone is not None and deadline.is_gone():
            deadline.end("the client has gone")
        if now >= deadline.until and _is_under_way(connection):
            if given_up_at is None:
                given_up_at = _cancelled_at(connection, session) + GRACE
            if now >= given_up_at:
                connection.pgconn.finish()
                raise _exceeded(session, deadline, "closed")
        elif now >= deadline.until and state == READY_NONE:
            # Nothing is under way: it waits for notifications.
            raise _exceeded(session, deadline, "refused")
        try:
            wanted = next(generator) if state is None else generator.send(state)
        except StopIteration as end:
            result: RV = end.value
            return result
        state = yield wanted


def _cancelled_at(connection: psycopg.Connection[Any], session: Session) -> float:
    """Cancel what is under way, once; return when that was done, in the far past if it failed."""
    if session.cancelled_at is None:
        understood = cancel_within(connection, GRACE)
        session.cancelled_at = monotonic() if understood else float("-inf")
    return session.cancelled_at


def _ending(
    connection: psycopg.Connection[Any],
    session: Session,
    deadline: Deadline,
    generator: PQGen[RV],
) -> PQGen[RV]:
    """Resume *generator*, and give it up some time after the deadline."""
    given_up_at = max(deadline.until, monotonic()) + GRACE
    state: Any = None
    while True:
        try:
            wanted = next(generator) if state is None else generator.send(state)
        except StopIteration as end:
            result: RV = end.value
            return result
        state = yield wanted
        if state == READY_NONE and monotonic() >= given_up_at:
            connection.pgconn.finish()
            raise _exceeded(session, deadline, "closed")


def _is_under_way(connection: psycopg.Connection[Any]) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def _exceeded(session: Session, deadline: Deadline, how: How) -> DeadlineExceeded:
    session.count("deadlines", how)
    return DeadlineExceeded(f"{deadline.reason} {_WORDS[how]}")
