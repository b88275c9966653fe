"""Everything that poolstats knows at one moment: the processes, the servers, and their sums."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from django_pooled.histogram import Histogram
from django_pooled.stats import session_name

if TYPE_CHECKING:
    from django_pooled.stats import ProcessReport

    from .collect import Collection
    from .server_view import ServerView, SessionGroup

__all__ = ["Group", "Overview", "PoolRow"]

SUMMED = (
    *("size", "idle", "in_use", "waiting", "max_size", "connecting"),
    *("checkouts", "checkins", "discarded", "reclaimed", "timeouts", "exhausted", "refused"),
    *("connects", "connect_failures"),
)
"""The figures of a pool that make sense added up."""


class PoolRow(NamedTuple):
    """One pool of one process."""

    pid: int
    command: str
    figures: dict[str, Any]

    def number(self, key: str) -> float:
        """Return a figure, 0 where an older process does not count it."""
        value = self.figures.get(key)
        return value if isinstance(value, (int, float)) else 0

    def has(self, key: str) -> bool:
        """Tell whether there is such a figure: an older process lacks some, a pool others."""
        return isinstance(self.figures.get(key), (int, float))

    def counts(self, key: str) -> dict[str, int]:
        """Return what is counted by kind: restarts by SQLSTATE, lost COMMITs by outcome."""
        return _counts(self.figures.get(key))

    def times(self, key: str) -> Histogram:
        """Return durations: 'wait', 'use' or 'connect'; none where an older process has none."""
        return Histogram.from_report(self.figures.get(key))

    @property
    def outcomes(self) -> dict[tuple[str, str], int]:
        """How restarts ended, by SQLSTATE and outcome."""
        found = self.figures.get("restarted")
        if not isinstance(found, dict):
            return {}
        return {
            (str(sqlstate), outcome): count
            for sqlstate, counts in found.items()
            for outcome, count in _counts(counts).items()
        }

    @property
    def restarts(self) -> int:
        """Transactions restarted, whatever for."""
        return sum(self.counts("restarts").values())

    @property
    def has_budget(self) -> bool:
        """Whether restarts are bounded in that process."""
        return self.has("retry_budget_left")

    @property
    def budget_is_spent(self) -> bool:
        """No transaction can be restarted now."""
        return self.has_budget and self.number("retry_budget_left") < 1

    @property
    def starved(self) -> bool:
        """Threads wait, and no connection is left to hand out or to open."""
        full = self.number("in_use") >= self.number("max_size")
        return bool(self.number("waiting")) and not self.number("idle") and full


def _counts(found: object) -> dict[str, int]:
    if not isinstance(found, dict):
        return {}
    return {str(kind): count for kind, count in found.items() if isinstance(count, int)}


@dataclass
class Group:
    """The pools of all processes that lead to the same database under the same alias."""

    alias: str
    server: str
    rows: list[PoolRow]

    @property
    def totals(self) -> dict[str, float]:
        """The sum over all processes of each figure that can be added up."""
        return {key: sum(row.number(key) for row in self.rows) for key in SUMMED}

    @property
    def restarts(self) -> int:
        """Transactions restarted, in all processes."""
        return sum(row.restarts for row in self.rows)

    def counts(self, key: str) -> Counter[str]:
        """Return what is counted by kind, of all processes."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.counts(key))
        return total

    @property
    def least_budget_left(self) -> float | None:
        """What the process that restarted most may still restart; None without budgets."""
        return min(
            (row.number("retry_budget_left") for row in self.rows if row.has_budget), default=None
        )


@dataclass
class Overview:
    """One look at everything; ``alias`` limits it to one database."""

    collection: Collection
    servers: list[ServerView]
    alias: str | None = None
    host: str = field(default_factory=socket.gethostname)
    taken: float = field(default_factory=monotonic)

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
        """The pools of all processes, by alias and server."""
        found: dict[tuple[str, str], Group] = {}
        for report in self.processes:
            for pool in report["pools"]:
                key = str(pool["alias"]), str(pool.get("server") or "")
                row = PoolRow(report["pid"], report["command"], pool)
                found.setdefault(key, Group(*key, rows=[])).rows.append(row)
        return [found[key] for key in sorted(found)]

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
        # A container whose sockets can be reached has a name of its own.
        known = {session_name(report["pid"], report.get("host", self.host)) for report in reports}
        # One that is silent has its own line already.
        known |= {session_name(pid, self.host) for pid in self.collection.silent}
        return [group for group in server.processes if group.application_name not in known]

    def as_json(self) -> dict[str, Any]:
        """Return processes, totals, silent pids, problems and servers in plain values."""
        return {
            "host": self.host,
            "processes": self.processes,
            "totals": [
                {"alias": group.alias, "server": group.server, "processes": len(group.rows)}
                | group.totals
                | {"restarts": group.restarts}
                for group in self.groups
            ],
            "silent": self.collection.silent,
            "problems": self.collection.problems,
            "server": {server.alias: self._server_as_json(server) for server in self.servers},
        }

    def _server_as_json(self, server: ServerView) -> dict[str, Any]:
        if server.error is not None:
            return {"error": server.error}
        unreachable = {group.application_name for group in self.unreachable(server)}
        values = asdict(server) | {"free": server.free}
        del values["alias"]
        for process in values["processes"]:
            process["reached"] = process["application_name"] not in unreachable
        return values

    def unreachable_by_host(self, server: ServerView) -> Counter[str]:
        """Count the processes that did not answer here by the host they name."""
        return Counter(group.host for group in self.unreachable(server))
