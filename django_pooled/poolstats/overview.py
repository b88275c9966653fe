"""The processes and servers at one moment, and which connection has which session."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_pooled.stats.names import session_name
from django_pooled.stats.socket_folder import this_user

from .formatting import cut, duration
from .rows import Group, PoolRow
from .server.pgbouncer_console import is_invented

if TYPE_CHECKING:
    from django_pooled.poolstats.processes.collect import Collection
    from django_pooled.poolstats.server.sessions import Session
    from django_pooled.poolstats.server.view import ServerView, SessionGroup
    from django_pooled.stats.snapshot import ConnectionFigures, PoolSnapshot, ProcessReport

    from .site import Site

__all__ = ["Overview"]

LONGEST_NAME = 200
"""Characters of the name of a group."""


@dataclass
class Overview:
    """One look at all processes and servers; ``alias`` limits it to one database."""

    collection: Collection
    servers: list[ServerView]
    alias: str | None = None
    host: str = field(default_factory=socket.gethostname)
    taken: float = field(default_factory=monotonic)
    seconds: float | None = None
    """Time that counters and durations are of; None: since each pool was opened."""
    site: Site | None = None
    """The site that this is about; None where no pool is of another."""
    user: int = field(default_factory=this_user)
    """Whose processes bear no mark."""

    def __post_init__(self) -> None:
        for server in self.servers:
            if server.is_full:
                self._name_holders(server)

    def _name_holders(self, server: ServerView) -> None:
        """Have the processes tell whose sessions a full server has, the latest of them."""
        seen = [
            (pool.sessions_age, report.pid, pool)
            for report in self.collection.reports
            for pool in report.pools
            if pool.sessions_age is not None and self.server_of(pool) is server
        ]
        if seen:
            age, pid, pool = min(seen, key=lambda one: one[0])
            by = f"process {pid} {duration(age)} ago"
            server.tell(pool.sessions, pool.max_connections, pool.reserved, by)

    @cached_property
    def processes(self) -> list[ProcessReport]:
        """The processes that answered, each with the pools that were asked for."""
        if self.alias is None:
            return self.collection.reports
        found = [
            replace(report, pools=[pool for pool in report.pools if pool.alias == self.alias])
            for report in self.collection.reports
        ]
        return [report for report in found if report.pools]

    @cached_property
    def groups(self) -> list[Group]:
        """The pools of all processes, by user, site, alias and server.

        A group has the same name whatever others there are, so that it may be a label.
        """
        found: dict[tuple[int, bool, str, str, str], Group] = {}
        for report in self.processes:
            user = None if report.user == self.user else report.user
            for pool in report.pools:
                foreign = not self._is_own(pool)
                whose = pool.site if foreign else ""
                key = -1 if user is None else user, foreign, pool.alias, pool.server, whose
                if key not in found:
                    name = cut(self._name(pool, user), LONGEST_NAME)
                    found[key] = Group(pool.alias, pool.server, [], user, name, foreign)
                found[key].rows.append(PoolRow(report, pool))
        return [found[key] for key in sorted(found)]

    def _is_own(self, pool: PoolSnapshot) -> bool:
        return self.site is None or self.site.has(pool)

    def _name(self, pool: PoolSnapshot, user: int | None) -> str:
        name = pool.alias
        if self.site is not None:
            if not self.site.configures(pool):
                name += f" at {pool.server}"
            if pool.site != self.site.key and pool.settings:
                name += f" of {pool.settings}"
        return name if user is None else f"{name} of user {user}"

    @property
    def servers_by_address(self) -> list[tuple[str, ServerView]]:
        """Each server once, with the quoted names of the databases that are on it."""
        found: dict[str, list[ServerView]] = {}
        for server in self.servers:
            key = server.address if server.error is None else f"{server.error} {server.alias}"
            found.setdefault(key, []).append(server)
        return [
            (", ".join(f'"{server.alias}"' for server in servers), servers[0])
            for servers in found.values()
        ]

    def unreachable(self, server: ServerView) -> list[SessionGroup]:
        """Return the processes that a server sees and that did not answer here."""
        known = {session_name(report.pid, report.host) for report in self.collection.reports}
        # Silent processes have their own line already, those of other sites a note.
        without = {*self.collection.silent, *self.collection.others}
        known |= {session_name(pid, self.host) for pid in without}
        return [group for group in server.processes if group.application_name not in known]

    def session(self, row: PoolRow, connection: ConnectionFigures) -> Session | None:
        """Return the server's view of a pool's connection, if that is known."""
        own_name = session_name(row.process.pid, row.process.host)
        server = self.server_of(row.pool)
        found = server and server.session(connection["backend_pid"])
        # The same number on another server is another process's session. Settings may
        # give it any other name, but not another process's.
        if found and (
            found.application_name == own_name or not found.application_name.startswith("django ")
        ):
            return found
        return None

    def server_of(self, pool: PoolSnapshot) -> ServerView | None:
        """Return the server's view of the database that a pool leads to, if it was asked."""
        if not self._is_own(pool):
            return None
        return next((server for server in self.servers if server.alias == pool.alias), None)

    def backend_pid(self, row: PoolRow, connection: ConnectionFigures) -> int | None:
        """Return the server's process for a connection; None if a pooler made the number up."""
        pid, server = connection["backend_pid"], self.server_of(row.pool)
        pooled = server is not None and server.pooler
        return None if pooled or is_invented(pid) else pid

    def owner(self, pid: int) -> tuple[PoolRow, ConnectionFigures] | None:
        """Return the pool and the connection whose session has this number on the server."""
        for group in self.groups:
            for row in group.rows:
                for connection in row.pool.connections:
                    if connection["backend_pid"] == pid and self.session(row, connection):
                        return row, connection
        return None

    def as_json(self) -> dict[str, Any]:
        """Return processes, totals, silent pids, problems and servers in plain values."""
        return {
            "host": self.host,
            "seconds": self.seconds,
            "processes": [self._process_as_json(report) for report in self.processes],
            "totals": [group.as_json() for group in self.groups],
            "silent": self.collection.silent,
            "others": sorted(self.collection.others),
            "problems": self.collection.problems,
            "server": {server.alias: self._server_as_json(server) for server in self.servers},
        }

    def _process_as_json(self, report: ProcessReport) -> dict[str, Any]:
        """Add to each connection its session on the server."""
        values = report.as_json()
        for pool, figures in zip(report.pools, values["pools"], strict=True):
            row = PoolRow(report, pool)
            sessions = [self.session(row, it) for it in pool.connections]
            figures["connections"] = [
                {
                    **connection,
                    "backend_pid": self.backend_pid(row, connection),
                    "session": session and asdict(session),
                }
                for connection, session in zip(pool.connections, sessions, strict=True)
            ]
        return values

    def _server_as_json(self, server: ServerView) -> dict[str, Any]:
        if server.error is not None:
            pooler = {"pooler": True, "queue": server.queue and asdict(server.queue)}
            holders = {group.application_name: group.sessions for group in server.processes}
            found = {"error": server.error} | (pooler if server.pooler else {})
            if server.seen_by:
                found |= {"sessions": holders | server.others, "seen_by": server.seen_by}
            return found
        unreachable = {group.application_name for group in self.unreachable(server)}
        values = asdict(server) | {"free": server.free}
        del values["alias"]
        for process in values["processes"]:
            process["reached"] = process["application_name"] not in unreachable
        values["blocked_sessions"] = [asdict(it) for it in server.sessions if it.is_blocked]
        return values
