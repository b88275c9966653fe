"""The server's side of the story: sessions by process and state, and the room that is left."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .probe import NoAnswer, Probe

if TYPE_CHECKING:
    import psycopg
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ServerProbe", "ServerView", "SessionGroup"]

APPLICATION_NAME = "django poolstats"

_SESSION_NAME = re.compile(r"django (?P<pid>\d+)@(?P<host>.+)\Z")

_SERVER = """
    SELECT split_part(current_setting('server_version'), ' ', 1),
           pg_is_in_recovery(),
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
             + coalesce(current_setting('reserved_connections', true)::int, 0)
"""

# Of other roles' sessions a role sees little: state and kind are null without pg_read_all_stats.
_SESSIONS = f"""
    SELECT coalesce(application_name, ''),
           coalesce(state, 'hidden'),
           count(*)::int,
           count(*) FILTER (WHERE wait_event_type = 'Lock')::int,
           max(extract(epoch FROM clock_timestamp() - xact_start))
             FILTER (WHERE state LIKE 'idle in transaction%')::float8
      FROM pg_stat_activity
     WHERE coalesce(backend_type, 'client backend') = 'client backend'
       AND usesysid IS NOT NULL
       AND application_name <> '{APPLICATION_NAME}'
     GROUP BY 1, 2
     ORDER BY 1, 2
"""


@dataclass
class SessionGroup:
    """The sessions of one process, as the server sees them."""

    application_name: str
    pid: int
    host: str
    sessions: int = 0


@dataclass
class ServerView:
    """One database server at one moment; ``free == max_connections - reserved - used``."""

    alias: str
    error: str | None = None
    """Why it could not be asked, in one line; everything else is then empty."""
    address: str = ""
    """Host and port of the server, on which several aliases may have their databases."""
    version: str = ""
    standby: bool = False
    max_connections: int = 0
    reserved: int = 0
    """Of them, kept for superusers and privileged roles."""
    used: int = 0
    """Client sessions of all databases on the server, without those of this command."""
    states: dict[str, int] = field(default_factory=dict)
    """The same by state; 'hidden' where the role may not see it."""
    blocked: int = 0
    """Sessions that wait for a lock."""
    longest_idle_in_transaction: float | None = None
    """Seconds since the oldest such transaction began."""
    processes: list[SessionGroup] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Connections that an ordinary role can still open."""
        return max(0, self.max_connections - self.reserved - self.used)


class ServerProbe:
    """Asks one database for the server's view."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.alias = wrapper.alias
        self._probe = Probe(wrapper, partial(_query, wrapper.alias), APPLICATION_NAME)

    def start(self, timeout: float) -> None:
        """Begin to ask, unless the last question is still open."""
        self._probe.start(timeout)

    def wait(self, timeout: float) -> ServerView:
        """Return what it answered within that many seconds, or that it did not."""
        try:
            return self._probe.wait(timeout)
        except NoAnswer as error:
            return ServerView(self.alias, error=str(error))

    def close(self) -> None:
        """Close the connection; one that is still waiting for its server ends with the process."""
        self._probe.close()


def _query(alias: str, connection: psycopg.Connection[Any]) -> ServerView:
    server = connection.execute(_SERVER).fetchone()
    sessions = connection.execute(_SESSIONS).fetchall()
    assert server is not None
    address = f"{connection.info.host}:{connection.info.port}"
    view = ServerView(alias, None, address, *server)
    states: Counter[str] = Counter()
    processes: dict[str, SessionGroup] = {}
    for name, state, count, blocked, age in sessions:
        states[state] += count
        view.blocked += blocked
        if age is not None:
            view.longest_idle_in_transaction = max(age, view.longest_idle_in_transaction or 0.0)
        if match := _SESSION_NAME.match(name):
            group = SessionGroup(name, int(match["pid"]), match["host"])
            processes.setdefault(name, group).sessions += count
    view.used = sum(states.values())
    view.states = dict(states)
    view.processes = list(processes.values())
    return view
