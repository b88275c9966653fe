"""Everything that poolstats knows at one moment: the processes, the servers, and their sums."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_pooled.stats.snapshot import session_name

from .formatting import cut
from .rows import Group, PoolRow

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import ProcessReport

    from .collect import Collection
    from .server_view import ServerView, SessionGroup
    from .sessions import Session

__all__ = ["Group", "Overview", "PoolRow"]

LONGEST_NAME = 200
"""Characters of the name of a group."""


@dataclass
class Overview:
    """One look at everything; ``alias`` limits it to one database."""

    collection: Collection
    servers: list[ServerView]
    alias: str | None = None
    host: str = field(default_factory=socket.gethostname)
    taken: float = field(default_factory=monotonic)
    seconds: float | None = None
    """Time that counters and durations are of; None: since each pool was opened."""

    @property
    def processes(self) -> list[ProcessReport]:
        """The processes that answered, each with the pools that were asked for."""
        chosen: list[ProcessReport] = []
        for report in self.collection.reports:
            pools = [pool for pool in report["pools"] if self.alias in (None, pool["alias"])]
            if pools or self.alias is None:
                chosen.append({**report, "pools": pools})
        return chosen

    @property
    def groups(self) -> list[Group]:
        """The pools of all processes, by user, alias and server."""
        found: dict[tuple[int, str, str], Group] = {}
        several = len({report.get("user") for report in self.collection.reports}) > 1
        for report in self.processes:
            user = report.get("user") if several else None
            for pool in report["pools"]:
                alias, server = str(pool["alias"]), str(pool.get("server") or "")
                key = -1 if user is None else user, alias, server
                group = found.setdefault(key, Group(alias, server, [], user))
                group.rows.append(self.row(report, pool))
        servers = Counter((user, alias) for user, alias, _ in found)
        for (user, alias, server), group in found.items():
            if several:
                group.name += f" of user {user}"
            if servers[user, alias] > 1:
                group.name += f" at {server}"
            group.name = cut(group.name, LONGEST_NAME)
        return [found[key] for key in sorted(found)]

    def row(self, report: ProcessReport, pool: dict[str, Any]) -> PoolRow:
        """Return a pool of a process as a row."""
        host = self._host(report)
        return PoolRow(report["pid"], report["command"], pool, host, report.get("user"))

    def _host(self, report: ProcessReport) -> str:
        """Return where a process runs: a container within reach has a name of its own."""
        found = report.get("host")
        return found if isinstance(found, str) else self.host

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
        reports = self.collection.reports
        known = {session_name(report["pid"], self._host(report)) for report in reports}
        # One that is silent has its own line already.
        known |= {session_name(pid, self.host) for pid in self.collection.silent}
        return [group for group in server.processes if group.application_name not in known]

    def session(self, row: PoolRow, connection: dict[str, Any]) -> Session | None:
        """Return the server's view of a pool's connection, if that is known."""
        pid, alias = connection.get("backend_pid"), row.figures["alias"]
        for server in self.servers:
            if server.alias == alias and isinstance(pid, int):
                found = server.session(pid)
                # The same number on another server is another process's session.
                if found and _may_be(found.application_name, session_name(row.pid, row.host)):
                    return found
        return None

    def owner(self, pid: int) -> tuple[PoolRow, dict[str, Any]] | None:
        """Return the pool and the connection whose session has this number on the server."""
        for group in self.groups:
            for row in group.rows:
                for connection in row.connections:
                    if connection.get("backend_pid") == pid and self.session(row, connection):
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
            "problems": self.collection.problems,
            "server": {server.alias: self._server_as_json(server) for server in self.servers},
        }

    def _process_as_json(self, report: ProcessReport) -> dict[str, Any]:
        """Add to each connection its session on the server."""
        pools = []
        for pool in report["pools"]:
            row = self.row(report, pool)
            connections = [
                {**it, "session": asdict(session) if session else None}
                for it in row.connections
                for session in [self.session(row, it)]
            ]
            pools.append({**pool, "connections": connections})
        return {**report, "pools": pools}

    def _server_as_json(self, server: ServerView) -> dict[str, Any]:
        if server.error is not None:
            return {"error": server.error}
        unreachable = {group.application_name for group in self.unreachable(server)}
        values = asdict(server) | {"free": server.free}
        del values["alias"]
        for process in values["processes"]:
            process["reached"] = process["application_name"] not in unreachable
        values["blocked_sessions"] = [asdict(it) for it in server.sessions if it.is_blocked]
        return values

    def unreachable_by_host(self, server: ServerView) -> Counter[str]:
        """Count the processes that did not answer here by the host they name."""
        return Counter(group.host for group in self.unreachable(server))


def _may_be(name: str, expected: str) -> bool:
    """Whether a session of that name may be one of a process that names its own *expected*.

    Settings may give it any other name, but not another process's.
    """
    return name == expected or not name.startswith("django ")
