"""Snapshots of the pools of this process, and the report that poolstats reads."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from .counters import Counters
from .histogram import BOUNDS, Histogram
from .orders import ORDERS_VERSION, Answer
from .socket_folder import this_user

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BOUNDS",
    "ConnectionFigures",
    "Counters",
    "Histogram",
    "Interval",
    "OrderResult",
    "PoolSnapshot",
    "ProcessReport",
    "counters_as_json",
    "process_report",
]

REPORT_VERSION = 1
"""Version of the report's format, raised when a reader has to know the difference."""


LATELY = 60.0
"""Seconds for which a write that was refused says that writes fail."""


class ConnectionFigures(TypedDict):
    """One connection of a pool at one moment; times are seconds."""

    backend_pid: int
    age: float
    state: str
    """'idle', 'in use' or 'returning': while it is reset at its checkin."""
    since: float
    """How long it has been in that state."""
    by: str | None
    """The view, task or command that has it in use, if that can be told."""
    where: str | None
    """The line that checked it out, as 'module.function:line'; None while it is idle."""
    pinned_by: str | None
    """The session state that keeps it with its request, in transaction mode."""
    doomed_by: str | None
    """Why it will be closed at its checkin."""
    status: str
    """What it does, as this side of it knows: 'active' while a statement is under way, 'idle in
    transaction' or 'idle'."""
    statement: str | None
    """The statement under way without its values, if the option ``show_statements`` is on."""


@dataclass(frozen=True)
class PoolSnapshot:
    """One pool at one moment; ``size == idle + in_use``; times are seconds.

    ``connecting`` connections are being opened and in no other sum.
    """

    alias: str
    pool_mode: str
    min_size: int
    max_size: int
    size: int
    idle: int
    in_use: int
    waiting: int
    longest_waiting: float | None
    """How long the waiter who is next has waited; None without waiters."""
    connecting: int
    server: str
    """Where the pool connects to: host, port and database, never a password."""
    age: float
    """How long ago the pool was made."""
    retry_budget_left: float | None
    """Restarts that the retry budget allows now to the function that has fewest; None without."""
    last_error: str | None
    """The last connect error, in the server's or libpq's words."""
    last_error_age: float | None
    """Seconds since then."""
    counters: Counters
    connections: list[ConnectionFigures]
    """Each connection: those in use, then the idle ones."""
    sessions: Counter[str] = field(default_factory=Counter)
    """The server's client sessions by ``application_name``, as this pool last saw them: where the
    server was full, or a reader asked."""
    sessions_age: float | None = None
    """Seconds since then."""
    max_connections: int = 0
    """Sessions that the server admits."""
    reserved: int = 0
    """Of them, kept for superusers and privileged roles."""
    connected_again_age: float | None = None
    """Seconds since a connection was opened after that error; None if none was."""
    read_only: str | None = None
    """The server that refuses writes though it should not: "10.0.0.5:5432 is a read-only standby".
    """
    read_only_age: float | None = None
    """Seconds since it last refused one; None if none was sent."""
    name: str = ""
    """The option ``name``, or the alias."""
    id: str = ""
    """Tells the pool from all others, of any process and any time."""
    site: str = ""
    """Key of the site that it belongs to."""
    settings: str = ""
    """The file of that site's settings."""
    timeout: float = 0.0
    """Seconds that a checkout takes at most."""
    max_waiting: int = 0
    """Waiters beyond which a checkout is refused; 0 for no limit."""
    lent: int = 0
    """Connections in use, and those on their way to a user or back."""
    paused_for: float | None = None
    """Seconds until the pool resumes by itself; None if it is not paused."""
    paused_by: str | None = None
    """Who has paused it."""
    to_replace: int | None = None
    """Connections that a drain has to replace still; None without one."""

    @property
    def paused(self) -> bool:
        """Whether checkouts wait since an operator has said so."""
        return self.paused_for is not None

    @property
    def writes_fail(self) -> bool:
        """Whether the server is read-only though it should not, and refused a write lately."""
        # Without any refused, the option read_only says that it must not be.
        return self.read_only is not None and (self.read_only_age or 0.0) <= LATELY

    def as_json(self) -> dict[str, Any]:
        """Return everything in values that JSON can carry, the counters beside the rest."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "counters"}
        return own | counters_as_json(self.counters)


@dataclass(frozen=True)
class Interval:
    """Some seconds in the past of a process: gauges of the worst moment, counters of all of it."""

    time: float
    """Its beginning, in seconds since the epoch."""
    seconds: float
    pools: list[PoolSnapshot]


@dataclass(frozen=True)
class OrderResult:
    """What became of an order in one process."""

    refusal: str
    """Why the process has refused it; empty if it has not."""
    answers: list[Answer]
    """Of each of its pools that the order was for."""


@dataclass(frozen=True)
class ProcessReport:
    """The answer of one process to ``poolstats``."""

    version: int
    pid: int
    user: int
    """Whose it is; a reader goes by the owner of its socket instead."""
    host: str
    command: str
    threads: int
    age: float
    """Seconds since its first pool was made; 0 without one."""
    pools: list[PoolSnapshot]
    history: list[Interval] = field(default_factory=list)
    """The last minutes, if they were asked for."""
    takes_orders: int = 0
    """Version of the orders that it takes; 0 for none."""
    order: OrderResult | None = None
    """If it was given one."""

    def as_json(self) -> dict[str, Any]:
        """Return all that was not asked for in values that JSON can carry."""
        asked = ("history", "order")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in asked}
        return own | {"pools": [pool.as_json() for pool in self.pools]}


def process_report(pools: list[PoolSnapshot]) -> ProcessReport:
    """Describe this process and its pools."""
    return ProcessReport(
        version=REPORT_VERSION,
        pid=os.getpid(),
        user=this_user(),
        host=socket.gethostname(),
        command=_command(),
        threads=threading.active_count(),
        age=max((pool.age for pool in pools), default=0.0),
        pools=pools,
        takes_orders=ORDERS_VERSION,
    )


def _command() -> str:
    """Name the program for people: "gunicorn", also when it was started by python -m."""
    program = Path(sys.argv[0] or sys.executable)
    return program.parent.name if program.stem == "__main__" else program.name


def counters_as_json(counters: Counters) -> dict[str, Any]:
    """Return counters in values that JSON can carry."""
    return {f.name: _plain(getattr(counters, f.name)) for f in fields(counters)}


def _plain(value: object) -> object:
    if isinstance(value, Histogram):
        return value.as_report()
    if not isinstance(value, dict):
        return value
    if not any(isinstance(kind, tuple) for kind in value):
        return dict(value)
    return _nested(value)


def _nested(outcomes: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Return outcomes of restarts as a report has them: by SQLSTATE, then by outcome."""
    found: dict[str, dict[str, int]] = {}
    for (sqlstate, outcome), count in outcomes.items():
        found.setdefault(sqlstate, {})[outcome] = count
    return found
