"""A statement under a deadline: not sent after it, cancelled on the server when it ends."""

from __future__ import annotations

from math import inf
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

__all__ = ["How", "refuse_if_ended", "tell_if_interrupted", "wait_within"]

RV = TypeVar("RV")

How = Literal["refused", "cancelled", "closed"]
"""What became of a statement: it was not sent, or was cancelled on the server; or the server did
not answer, and the connection was closed."""

_WORDS: dict[How, str] = {
    "refused": "before a statement, which was not sent",
    "cancelled": "amid a statement, which was cancelled",
    "closed": "amid a statement; the server did not answer, and the connection was closed",
}

# psycopg looks for Ctrl-C as often; near the deadline, and after it, more often.
_INTERVAL = 0.1
_SHORT_INTERVAL = 0.01
_NEAR = 0.11

_NOT_YET = object()
"""In place of a result."""

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
    exchange = _Exchange(connection, session, deadline, generator, ends)
    near = deadline.until - _NEAR
    try:
        result = wait(exchange.part(near), interval=interval or _INTERVAL, **options)
        if result is _NOT_YET:
            result = wait(exchange.part(inf), interval=_SHORT_INTERVAL, **options)
    except DeadlineExceeded:
        raise
    except psycopg.Error as error:
        if error.sqlstate in _ENDED_BY_THE_SERVER and deadline.has_ended:
            raise _exceeded(session, deadline, "cancelled") from error
        raise
    return result


def tell_if_interrupted(session: Session, error: psycopg.errors.QueryCanceled) -> None:
    """Raise what tells more than *error*, if it was this process that has cancelled the statement.

    Raises:
        DeadlineExceeded: Its pools were closed by ``close_all(cancel=True)``.
    """
    if session.is_interrupted and not isinstance(error, DeadlineExceeded):
        words = _WORDS["cancelled"]
        raise DeadlineExceeded(f"the process is ending; its pools were closed {words}") from error


def refuse_if_ended(session: Session, deadline: Deadline) -> None:
    """Refuse to send a statement after the deadline.

    Raises:
        DeadlineExceeded: It has ended.
    """
    if deadline.has_ended:
        raise _exceeded(session, deadline, "refused")


class _Exchange:
    """One exchange with the server, which is waited for in one part or in two.

    Args:
        connection: Where.
        session: Its session.
        deadline: The present one.
        generator: What psycopg waits for.
        ends: Whether it ends something, and is not cancelled.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        session: Session,
        deadline: Deadline,
        generator: PQGen[Any],
        ends: bool,
    ) -> None:
        self._connection = connection
        self._session = session
        self._deadline = deadline
        self._generator = generator
        self._wanted: Any = None  # what the generator waits for, once it has begun
        self._given_up_at: float | None = None
        if ends:
            self._given_up_at = max(deadline.until, monotonic()) + GRACE
        elif not self._is_under_way:
            session.cancelled_at = None

    def part(self, until: float) -> PQGen[Any]:
        """Resume the generator, and return its result; `_NOT_YET` if it has none by *until*."""
        state: Any = None
        while True:
            self._look(is_silent=state == READY_NONE)
            if state == READY_NONE and monotonic() >= until:
                return _NOT_YET
            try:
                if self._wanted is None:
                    self._wanted = next(self._generator)
                elif state is not None:
                    self._wanted = self._generator.send(state)
                # Else psycopg begins anew to wait for the same.
            except StopIteration as end:
                return end.value
            state = yield self._wanted

    def _look(self, *, is_silent: bool) -> None:
        """Cancel what is under way after the deadline; a while later, give it up.

        Raises:
            DeadlineExceeded: It is given up.
        """
        deadline = self._deadline
        if is_silent:
            deadline.end_if_gone()
        now = monotonic()
        if self._given_up_at is None:
            if now < deadline.until:
                return
            if self._is_under_way:
                self._given_up_at = self._cancelled_at() + GRACE
            elif is_silent:
                # It waits for notifications.
                raise _exceeded(self._session, deadline, "refused")
        if self._given_up_at is not None and now >= self._given_up_at and self._is_under_way:
            with self._session.open:
                self._connection.pgconn.finish()
            raise _exceeded(self._session, deadline, "closed")

    def _cancelled_at(self) -> float:
        """Cancel it, once; return when that was done, in the far past if it failed."""
        session = self._session
        if session.cancelled_at is None:
            understood = cancel_within(self._connection, GRACE)
            session.cancelled_at = monotonic() if understood else -inf
        return session.cancelled_at

    @property
    def _is_under_way(self) -> bool:
        return self._connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def _exceeded(session: Session, deadline: Deadline, how: How) -> DeadlineExceeded:
    session.count("deadlines", how)
    return DeadlineExceeded(f"{deadline.reason} {_WORDS[how]}")
