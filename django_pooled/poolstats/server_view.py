"""The server's side of the story: sessions by process and state, and the room that is left."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ServerProbe", "ServerView", "SessionGroup", "one_line"]

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
        return max(0, self.max_connections - self.reserved - self.used)


class ServerProbe:
    """Asks one database, over a plain connection of its own, never through the site's pool.

    A thread does the asking, because a name that does not resolve or a server that is frozen
    would hold up the answer about the processes, which do not need either.
    """

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.alias = wrapper.alias
        self._wrapper = wrapper
        self._connection: psycopg.Connection[Any] | None = None
        self._thread: threading.Thread | None = None
        self._view: ServerView | None = None
        self._patience = 0.0

    def start(self, timeout: float) -> None:
        """Begin to ask, unless the last question is still open."""
        if self._thread is None or not self._thread.is_alive():
            self._view = None
            self._patience = timeout
            name = f"django_pooled.poolstats.{self.alias}"
            self._thread = threading.Thread(
                target=self._ask, args=(timeout,), name=name, daemon=True
            )
            self._thread.start()

    def wait(self, timeout: float) -> ServerView:
        """Return what it answered within that many seconds, or that it did not."""
        assert self._thread is not None
        self._thread.join(max(0.0, timeout))
        if self._thread.is_alive() or self._view is None:
            return ServerView(self.alias, error=f"nothing came within {self._patience:g} s")
        return self._view

    def close(self) -> None:
        """Close the connection; one that is still waiting for its server ends with the process."""
        if self._connection is not None and not (self._thread and self._thread.is_alive()):
            self._connection.close()
            self._connection = None

    def _ask(self, timeout: float) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect(timeout)
            self._view = _query(self._connection, self.alias, timeout)
        # Whatever a callable for the password or a driver's option raises is a reason too.
        except Exception as error:
            if self._connection is not None:
                with contextlib.suppress(psycopg.Error):
                    self._connection.close()
                self._connection = None
            self._view = ServerView(self.alias, error=one_line(str(error) or type(error).__name__))

    def _connect(self, timeout: float) -> psycopg.Connection[Any]:
        parameters = self._wrapper.get_connection_params()
        for name in ("context", "cursor_factory", "prepare_threshold", "autocommit"):
            parameters.pop(name, None)
        for name in ("user", "password"):
            if callable(parameters.get(name)):
                parameters[name] = parameters[name]()
        parameters["connect_timeout"] = max(2, ceil(timeout))
        parameters["application_name"] = APPLICATION_NAME
        return psycopg.connect(**parameters, prepare_threshold=None)


def _query(connection: psycopg.Connection[Any], alias: str, timeout: float) -> ServerView:
    with connection.transaction():
        # LOCAL, so that behind PgBouncer it does not stay with another client's session.
        connection.execute(f"SET LOCAL statement_timeout = {ceil(timeout * 1000)}")
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


def one_line(error: str) -> str:
    """Return the first line of an error of psycopg's, which says what happened."""
    lines = error.strip().splitlines() or ["unknown"]
    return lines[0].strip().removeprefix("connection failed: ")
