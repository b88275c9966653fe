"""The message that begins a transaction: BEGIN, and the time limits that hold until its end.

A limit that the session has already is never lengthened. SHOW tells it in the same message, and
takes no snapshot, as a SELECT would: the transaction may still get its isolation level. Only if the
session's is the shorter one, and not known yet, that takes a message more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from django_pooled.lazy_pattern import lazy_pattern

from . import psycopg_private
from .deadline import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import psycopg
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from .deadline import Deadline
    from .session import Session

__all__ = ["LONGEST", "Beginning", "begin", "beginning_of"]

LONGEST = (2**31 - 1) // 1000
"""Seconds: as many as PostgreSQL takes for a time limit, about 25 days."""

_TRANSACTION_TIMEOUT_SINCE = 170000

_UNITS = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_SHOWN = lazy_pattern(r"(\d+)(us|ms|s|min|h|d)?")


class Beginning(NamedTuple):
    """What begins a transaction."""

    statements: tuple[str, ...]
    """BEGIN, and what follows it in the same message."""
    asked: tuple[str, ...]
    """The settings that its results after the first show."""
    wanted: dict[str, int]
    """Milliseconds of each limit, whatever the session has."""
    known: dict[str, int]
    """Those that the session has, as last seen."""

    @property
    def is_foreseen(self) -> bool:
        """Whether its answer is expected to change nothing, so that nothing has to wait for it."""
        return all(name in self.known for name in self.asked)

    def corrections(self, results: Sequence[PGresult]) -> str | None:
        """Take note of what the session has; return what is to be sent after it, if anything.

        Args:
            results: Those of the statements.
        """
        corrections = []
        for place, name in enumerate(self.asked, 1):
            shown = results[place].get_value(0, 0)
            own = _milliseconds_shown(shown.decode()) if shown is not None else 0
            wanted = self.wanted[name]
            if _shorter(wanted, own) != _shorter(wanted, self.known.get(name, 0)):
                corrections.append(_set(name, _shorter(wanted, own)))
            self.known[name] = own
        return "; ".join(corrections) or None


def beginning_of(
    connection: psycopg.Connection[Any],
    session: Session,
    time_limits: Mapping[str, float],
    deadline: Deadline | None,
) -> Beginning:
    """Return what begins the next transaction of *connection*.

    Args:
        connection: With its isolation level.
        session: Its session.
        time_limits: Seconds of the limits that were asked for, by the names of their settings.
        deadline: The present one, if there is one.
    """
    limits = dict(time_limits)
    asked = []
    if deadline is not None:
        left = deadline.left
        if "statement_timeout" not in limits:
            asked.append("statement_timeout")
        limits["statement_timeout"] = min(left, limits.get("statement_timeout", left))
        if connection.pgconn.server_version >= _TRANSACTION_TIMEOUT_SINCE:
            # It ends the session, and is for a client that does not send anything any more.
            asked.append("transaction_timeout")
            limits["transaction_timeout"] = left + 2 * GRACE
    wanted = {
        name: _milliseconds(seconds) for name, seconds in limits.items() if seconds <= LONGEST
    }
    asked = [name for name in asked if name in wanted]
    statements = [psycopg_private.begin_command(connection)]
    statements += [f"SHOW {name}" for name in asked]
    known = session.time_limits
    for name, value in wanted.items():
        statements.append(_set(name, _shorter(value, known.get(name, 0))))
    return Beginning(tuple(statements), tuple(asked), wanted, known)


def begin(
    connection: psycopg.Connection[Any], beginning: Beginning, wait: Callable[[PQGen[Any]], Any]
) -> None:
    """Begin a transaction.

    Args:
        connection: Whose; its lock is held.
        beginning: Its beginning.
        wait: psycopg's own `wait` of the connection.

    Raises:
        psycopg.Error: The server's, or the connection's.
    """
    results = psycopg_private.send(connection, wait, "; ".join(beginning.statements))
    if correction := beginning.corrections(results):
        psycopg_private.send(connection, wait, correction)


def _set(name: str, milliseconds: int) -> str:
    return f"SET LOCAL {name} = {milliseconds}"


def _milliseconds(seconds: float) -> int:
    # 0 is for no limit.
    return max(1, math.ceil(seconds * 1000))


def _milliseconds_shown(shown: str) -> int:
    found = _SHOWN.fullmatch(shown)
    return math.ceil(int(found[1]) * _UNITS[found[2] or "ms"]) if found is not None else 0


def _shorter(wanted: int, own: int) -> int:
    return min(wanted, own) if own else wanted
