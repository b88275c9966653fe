"""The server's view: sessions by process and state, and free connections."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_pooled.pool.connect_errors import answer_in
from django_pooled.sql.sqlstates import FULL

from .pgbouncer_console import ConsoleProbe, is_invented
from .probe import NoAnswer, Probe
from .sessions import Session, find_blockers, find_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from django.db.backends.base.base import BaseDatabaseWrapper

    from .pgbouncer_console import PoolerQueue

__all__ = ["ServerProbe", "ServerView", "SessionGroup", "summed"]

APPLICATION_NAME = "django poolstats"

_SESSION_NAME = re.compile(r"django (?P<pid>\d+)@(?P<host>.+)\Z")

_WAITS = re.compile("query_wait_timeout|nothing came within")

LEFT_FOR_CONSOLE = 0.5
"""Seconds that PgBouncer's console has at least."""

WAIT_IN_POOLER, SLOWER = 1.0, 5
"""Seconds that a question waits for a server connection of a pooler before that counts as long, and
how many times slower than all that follows the first statement has to be."""

_SERVER = """
    SELECT split_part(current_setting('server_version'), ' ', 1),
           pg_is_in_recovery(),
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
             + coalesce(current_setting('reserved_connections', true)::int, 0),
           pg_backend_pid()
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
    others: dict[str, int] = field(default_factory=dict)
    """Sessions that are no process's of this engine, by ``application_name``."""
    pooler: bool = False
    """Whether a pooler such as PgBouncer is in between: it hands sessions from client to client, so
    that their names and numbers say nothing about processes."""
    queue: PoolerQueue | None = None
    """PgBouncer's own figures, if the role may see them."""
    seen_by: str = ""
    """The process of the site that has seen the sessions in use, where the server is full, and how
    long ago."""
    waits_in_pooler: bool = False
    """Whether the pooler let the question in, and had no server connection for it."""

    @property
    def failure(self) -> str | None:
        """The error in a few words, as "is full (53300)" or "does not answer"."""
        return None if self.error is None else answer_in(self.error)

    @property
    def is_full(self) -> bool:
        """Whether it refused the question, having no connection left for it (53300)."""
        return FULL in (self.failure or "")

    def tell(self, names: Mapping[str, int], max_connections: int, reserved: int, by: str) -> None:
        """Fill in whose sessions it has, from what a process of the site has seen.

        Args:
            names: Sessions by ``application_name``.
            max_connections: The server's.
            reserved: Of them, kept for privileged roles.
            by: Which process, and how long ago.
        """
        self.max_connections, self.reserved, self.seen_by = max_connections, reserved, by
        self.used = sum(names.values())
        self.processes, self.others = _by_process(Counter(names))

    def __post_init__(self) -> None:
        # No field, since that would be in every dictionary that is made of this.
        self.sessions: list[Session] = []
        """All that are counted in ``used``."""
        self.pooler_wait: float | None = None
        """Seconds that the question waited for a server connection of the pooler, if for long."""

    @property
    def free(self) -> int:
        """Connections that an ordinary role can still open."""
        return max(0, self.max_connections - self.reserved - self.used)

    @property
    def hosts(self) -> dict[str, tuple[int, int]]:
        """How many processes and sessions there are on each host that sessions name."""
        found: dict[str, tuple[int, int]] = {}
        for group in self.processes:
            processes, sessions = found.get(group.host, (0, 0))
            found[group.host] = processes + 1, sessions + group.sessions
        return found

    def session(self, pid: int) -> Session | None:
        """Return the session with this number, unless a pooler makes up the numbers."""
        return None if self.pooler else self._by_pid.get(pid)

    @cached_property
    def _by_pid(self) -> dict[int, Session]:
        return {session.pid: session for session in self.sessions}


class ServerProbe:
    """Asks one database for the server's view."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.alias = wrapper.alias
        self._probe = Probe(
            wrapper, partial(_query, wrapper.alias), APPLICATION_NAME, self._note_login
        )
        self._console = ConsoleProbe(wrapper, APPLICATION_NAME)
        self._is_pooler = False

    def start(self, timeout: float) -> None:
        """Begin to ask, unless the last question is still open."""
        self._probe.start(timeout)
        if self._is_pooler:
            self._console.start(timeout)

    def wait(self, timeout: float) -> ServerView:
        """Return its answer, or after that many seconds a view with the error."""
        deadline = monotonic() + timeout
        try:
            view = self._probe.wait(timeout)
            self._is_pooler = view.pooler
            if view.pooler and self._waited_in_pooler():
                view.pooler_wait = self._probe.first_wait
        except NoAnswer as error:
            view = ServerView(self.alias, error=str(error), pooler=self._is_pooler)
        if view.pooler:
            self._ask_pooler(view, deadline)
        return view

    def close(self) -> None:
        """Close the connections; one that still waits for its server ends with the process."""
        self._probe.close()
        self._console.close()

    def _note_login(self, connection: psycopg.Connection[Any]) -> None:
        """Recognise a pooler that has no connection for the question, since it lets clients in."""
        self._is_pooler = self._is_pooler or is_invented(connection.info.backend_pid)

    def _waited_in_pooler(self) -> bool:
        # Once BEGIN has got a server connection, the rest is sent over it; on a slow host or
        # network that is slow too.
        return self._probe.first_wait >= max(WAIT_IN_POOLER, SLOWER * self._probe.rest)

    def _ask_pooler(self, view: ServerView, deadline: float) -> None:
        # It has been found out just now, perhaps, and its console waits for no server.
        timeout = max(LEFT_FOR_CONSOLE, deadline - monotonic())
        self._console.start(timeout)
        try:
            view.queue = self._console.wait(timeout)
        except NoAnswer:
            if not self._console.refused:
                return
        view.waits_in_pooler = view.error is not None and bool(_WAITS.search(view.error))


def _query(alias: str, connection: psycopg.Connection[Any]) -> ServerView:
    answer = connection.execute(_SERVER).fetchone()
    assert answer is not None
    *server, backend_pid = answer
    address = f"{connection.info.host}:{connection.info.port}"
    view = ServerView(alias, None, address, *server)
    # PgBouncer makes up the number that it tells its clients.
    view.pooler = backend_pid != connection.info.backend_pid
    view.sessions = find_sessions(connection, but=APPLICATION_NAME)
    find_blockers(connection, view.sessions)
    return summed(view)


def summed(view: ServerView) -> ServerView:
    """Fill in the figures that follow from a server's sessions."""
    names = Counter(session.application_name for session in view.sessions)
    view.processes, view.others = _by_process(names)
    view.used = len(view.sessions)
    view.states = dict(Counter(session.state for session in view.sessions))
    view.blocked = sum(session.is_blocked for session in view.sessions)
    view.longest_idle_in_transaction = max(
        (session.transaction or 0.0 for session in view.sessions if session.idles_in_transaction),
        default=None,
    )
    return view


def _by_process(names: Counter[str]) -> tuple[list[SessionGroup], dict[str, int]]:
    """Tell the sessions of processes of this engine from those of other programs."""
    processes, others = [], Counter[str]()
    for name, number in names.items():
        if match := _SESSION_NAME.match(name):
            processes.append(SessionGroup(name, int(match["pid"]), match["host"], number))
        else:
            others[name] = number
    processes.sort(key=lambda group: group.application_name)
    return processes, dict(others.most_common())
