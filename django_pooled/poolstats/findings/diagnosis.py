"""Finds out why no connection is left: because of the application, the pool or the database."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.poolstats.formatting import duration
from django_pooled.poolstats.server.sessions import Session

from .pooler_findings import has_none_free
from .session_owners import name_connection, name_session, root_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import PoolRow
    from django_pooled.poolstats.server.view import ServerView
    from django_pooled.stats.snapshot import ConnectionFigures

__all__ = ["Diagnosis", "diagnose"]

LONG = 1.0
"""Seconds in use from which a connection is held for long, however long waiters wait."""

BRIEF = 0.1
"""Seconds in use below which a connection is only busy, however long waiters wait."""


class Diagnosis(NamedTuple):
    """The holders of the connections, and the trouble."""

    holder: str
    """The longest and by whom, to follow "all 10 connections are in use"; may be empty."""
    trouble: str
    """'application', 'pool' or 'database'; empty where it can't be told."""
    sentence: str
    """How that shows; may be empty."""


class _Held(NamedTuple):
    connection: ConnectionFigures
    session: Session | None


def diagnose(overview: Overview, rows: Sequence[PoolRow]) -> Diagnosis:
    """Find out what keeps the connections of pools that have none left."""
    held = sorted(
        (
            _Held(connection, _session(overview, row, connection))
            for row in rows
            for connection in row.pool.connections
            if connection["state"] == "in use"
        ),
        key=lambda one: -one.connection["since"],
    )
    if not held:
        return Diagnosis("", "", "")
    server = overview.server_of(rows[0].pool)
    # A connection in use for about as long as the oldest waiter waits was not handed out lately.
    long = min(LONG, max(BRIEF, 0.9 * max(row.pool.longest_waiting or LONG for row in rows)))
    if (server is not None and has_none_free(server)) or _has_given_up(overview, rows):
        # Whatever they do, they wait there.
        why = "its pooler has no free server connection."
        return Diagnosis(_holder(held), "database", why)
    return Diagnosis(_holder(held), *_trouble(overview, server, held, long))


def _has_given_up(overview: Overview, rows: Sequence[PoolRow]) -> bool:
    lately = overview.seconds is not None
    return lately and any(row.counters.pooler_timeouts for row in rows)


def _session(overview: Overview, row: PoolRow, connection: ConnectionFigures) -> Session | None:
    """Return its session: as the server shows it, or in the past as its client saw it."""
    if overview.servers or not connection["status"]:
        return overview.session(row, connection)
    return Session(connection["backend_pid"], "", connection["status"])


def _holder(held: list[_Held]) -> str:
    longest = held[0].connection
    since = duration(longest["since"])
    by, number = Counter(one.connection["by"] for one in held).most_common(1)[0]
    if by and number == len(held) > 1:
        return f" by {by}, the longest for {since}"
    text = f", the longest for {since}{name_connection(longest)}"
    if by and len(held) > 1 and number > len(held) / 2:
        same = by == longest["by"]
        text += f", which has {number} of them" if same else f", and {number} by {by}"
    return text


def _trouble(
    overview: Overview, server: ServerView | None, held: list[_Held], long_from: float
) -> tuple[str, str]:
    blocked = [one.session for one in held if one.session is not None and one.session.is_blocked]
    if server is not None and len(blocked) * 2 >= len(held):
        return _blocked(overview, server, blocked, len(held))
    long = [one for one in held if one.connection["since"] >= long_from]
    if len(long) * 2 < len(held):
        some = f"only {len(long)} of {len(held)} are" if long else "none is"
        return "pool", f"{some} held for long, so max_size is too small for the load."
    sessions = [one.session for one in long if one.session is not None]
    waiting = [session for session in sessions if session.asks_nothing]
    if waiting and len(waiting) * 2 >= len(long):
        idle = all(session.idles_in_transaction for session in waiting)
        state = "idle in a transaction" if idle else "idle"
        return "application", f"{_part(waiting, long)} {state}: the database waits for its code."
    if sessions:
        return _queries(overview, long, sessions)
    if server is not None and server.error is not None:
        return "database", f"it {server.failure}."
    return "", ""


def _queries(overview: Overview, long: list[_Held], sessions: list[Session]) -> tuple[str, str]:
    active = [session for session in sessions if not session.asks_nothing]
    if not overview.servers:
        # Their clients saw a statement under way: those that wait for a lock look the same.
        found = f"{_part(active, long)} running a query, or waiting for a lock"
        oldest = long[0]
        if oldest.session is not None and oldest.session.idles_in_transaction:
            behind = name_connection(oldest.connection) or " by another"
            return "application", f"{found}, perhaps behind the one{behind}, idle in a transaction."
        return "database", f"{found}."
    times = [session.since for session in active if session.since is not None]
    since = f", the longest for {duration(max(times))}" if times else ""
    return "database", f"{_part(active, long)} running a query{since}."


def _part(some: Sequence[Session], of: Sequence[_Held]) -> str:
    if len(some) == len(of):
        return "the session is" if len(of) == 1 else f"all {len(of)} sessions are"
    return f"{len(some)} of {len(of)} sessions {'is' if len(some) == 1 else 'are'}"


def _blocked(
    overview: Overview, server: ServerView, blocked: list[Session], total: int
) -> tuple[str, str]:
    if len(blocked) == total:
        what = (
            "the session waits for a lock" if total == 1 else f"all {total} sessions wait for locks"
        )
    else:
        what = f"{len(blocked)} of {total} sessions wait for locks"
    oldest = max(blocked, key=lambda session: session.since or 0.0)
    root = root_of(server, oldest)
    if root is None:
        return "database", f"{what}."
    session = server.session(root)
    trouble = "application" if session is not None and session.asks_nothing else "database"
    return trouble, f"{what} behind {name_session(overview, server, root)}."
