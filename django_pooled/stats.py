"""What a pool did and how it stands: counters that it keeps, snapshots that others read."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TypedDict

__all__ = ["Counters", "PoolSnapshot", "ProcessReport", "process_report", "session_name"]

REPORT_VERSION = 1
"""Version of the report's format, raised when a reader has to know the difference."""


@dataclass
class Counters:
    """Totals since the pool was opened; incremented under the pool's lock.

    They add up: ``checkouts == checkins + discarded + in use``.
    """

    checkouts: int = 0
    """Connections handed to a thread."""
    checkins: int = 0
    """Connections given back and kept."""
    discarded: int = 0
    """Connections given back and closed: broken, poisoned, or the pool closed."""
    reclaimed: int = 0
    """Of those given back, the ones a thread had left behind when it ended."""
    timeouts: int = 0
    """Checkouts that ended in CheckoutTimeout."""
    refused: int = 0
    """Checkouts that ended in PoolExhausted or ConnectFailed."""
    connects: int = 0
    """Connections opened."""
    connect_failures: int = 0
    """Connection attempts that failed."""
    dead: int = 0
    """Idle connections found dead at checkout."""
    expired: int = 0
    """Idle connections closed at checkout for their age."""
    wait_seconds: float = 0.0
    """Total time that checkouts took."""
    restarts: Counter[str] = field(default_factory=Counter)
    """Transactions restarted by retry_transaction, by SQLSTATE ('lost' where there was none)."""
    pinned: Counter[str] = field(default_factory=Counter)
    """Connections that transaction mode left with a request to its end, by what made it."""
    lost_commits: Counter[str] = field(default_factory=Counter)
    """COMMITs without an answer, by what was found out: 'committed', 'failed' or 'unknown'."""


@dataclass(frozen=True)
class PoolSnapshot:
    """One pool at one moment; ``size == idle + in_use``.

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
    connecting: int
    server: str
    """Where the pool connects to: host, port and database, never a password."""
    retry_budget_left: float | None
    """Restarts that the retry budget allows now; None without a budget."""
    last_error: str | None
    """The last connect error, in the server's or libpq's words."""
    last_error_age: float | None
    """Seconds since then."""
    counters: Counters


class ProcessReport(TypedDict):
    """What one process answers to ``poolstats``."""

    version: int
    pid: int
    host: str
    command: str
    threads: int
    pools: list[dict[str, object]]


def process_report(pools: list[PoolSnapshot]) -> ProcessReport:
    """Describe this process and its pools in values that JSON can carry."""
    return ProcessReport(
        version=REPORT_VERSION,
        pid=os.getpid(),
        host=socket.gethostname(),
        command=_command(),
        threads=threading.active_count(),
        pools=[_flat(pool) for pool in pools],
    )


def _command() -> str:
    """Name the program for people: "gunicorn", also when it was started by python -m."""
    program = Path(sys.argv[0] or sys.executable)
    return program.parent.name if program.stem == "__main__" else program.name


@cache
def session_name(pid: int, host: str) -> str:
    """Name a process's sessions in pg_stat_activity, in the 63 bytes that the server keeps.

    https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-APPLICATION-NAME
    """
    return f"django {pid}@{host}".encode()[:63].decode(errors="ignore")


def _flat(pool: PoolSnapshot) -> dict[str, object]:
    values = asdict(pool)
    values.update(values.pop("counters"))
    for by_kind in ("restarts", "pinned", "lost_commits"):
        values[by_kind] = dict(getattr(pool.counters, by_kind))
    return values
