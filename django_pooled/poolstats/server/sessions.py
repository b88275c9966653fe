"""The sessions of a server: the state of each, and which ones block it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.redaction import printable

if TYPE_CHECKING:
    import psycopg

__all__ = ["Session", "find_blockers", "find_sessions"]

ASKED_FOR_BLOCKERS = 10
"""Sessions at most whose blockers are asked for: the server looks through all locks for each."""

# Of other roles' sessions a role sees little: state and kind are null without pg_read_all_stats.
# The launcher of logical replication has a role and no database.
# The text of queries is not asked for, since it may hold what is secret.
_SESSIONS = """
    SELECT pid,
           coalesce(application_name, ''),
           coalesce(state, 'hidden'),
           CASE WHEN state = 'active' AND wait_event_type IS NOT NULL
                THEN concat(wait_event_type, ': ', wait_event) END,
           extract(epoch FROM clock_timestamp() - state_change)::float8,
           extract(epoch FROM clock_timestamp() - xact_start)::float8
      FROM pg_stat_activity
     WHERE coalesce(backend_type, 'client backend') = 'client backend'
       AND usesysid IS NOT NULL AND datid IS NOT NULL
       AND application_name <> %s
     ORDER BY backend_start
"""

# https://www.postgresql.org/docs/current/functions-info.html: pg_blocking_pids(); 0 is a
# transaction that was prepared, which has no session.
_BLOCKERS = "SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) AS pid"


@dataclass
class Session:
    """One client session; times are seconds."""

    pid: int
    application_name: str
    state: str
    """PostgreSQL's own words, 'hidden' where the role may not see it."""
    wait: str | None = None
    """The wait event of its query: 'Lock: transactionid'."""
    since: float | None = None
    """How long it has been in that state: for an active one, at its query."""
    transaction: float | None = None
    """How long ago its transaction began."""
    blocked_by: list[int] = field(default_factory=list)
    """The sessions whose locks it waits for, asked for the oldest few only."""

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for a lock that another session has."""
        return (self.wait or "").startswith("Lock: ")

    @property
    def idles_in_transaction(self) -> bool:
        """Whether its client leaves a transaction open without running a query."""
        return self.state.startswith("idle in transaction")

    @property
    def asks_nothing(self) -> bool:
        """Whether it waits for its client."""
        return self.state.startswith("idle")


def find_sessions(connection: psycopg.Connection[Any], but: str) -> list[Session]:
    """Return all client sessions, the oldest first.

    Args:
        but: An ``application_name`` that does not count.
    """
    # Any program may name its session, and a pooler may answer in the place of the server.
    return [
        Session(pid, printable(name), printable(state), wait and printable(wait), *times)
        for pid, name, state, wait, *times in connection.execute(_SESSIONS, [but])
    ]


def find_blockers(connection: psycopg.Connection[Any], sessions: list[Session]) -> None:
    """Fill in ``blocked_by`` for the sessions that have waited longest for a lock."""
    blocked = sorted(
        (session for session in sessions if session.is_blocked),
        key=lambda session: -(session.since or 0.0),
    )[:ASKED_FOR_BLOCKERS]
    if blocked:
        pids = [session.pid for session in blocked]
        found = dict(connection.execute(_BLOCKERS, [pids]).fetchall())
        for session in blocked:
            # One process of a parallel query each, so that a pid may come more than once.
            session.blocked_by = sorted(set(found[session.pid]))
