"""PgBouncer's own settings and figures, if it lets the site's role use its console."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from .probe import Probe

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ConsoleProbe", "PoolerFacts", "PoolerQueue", "ask_console", "is_invented"]

CONNECT_TIMEOUT = 2

DATABASE = "pgbouncer"

LARGEST_PID = 2**22
"""No system has larger ones where PostgreSQL runs in numbers; PgBouncer draws 32 bits at random."""


@dataclass(frozen=True)
class PoolerQueue:
    """PgBouncer's pools for one database: https://www.pgbouncer.org/usage.html#show-pools"""

    waiting: int
    """Clients that have sent a query and have no server connection."""
    longest_waiting: float
    """Seconds that the oldest of them has waited."""
    active: int
    """Server connections that serve a client."""
    idle: int
    """Those that are open, and serve none."""
    pool_size: int
    """Server connections that one role may have."""


@dataclass(frozen=True)
class PoolerFacts:
    """PgBouncer's settings for one database: https://www.pgbouncer.org/config.html"""

    pool_mode: str
    pool_size: int
    """Connections to the server for one role in this database."""
    max_client_conn: int
    max_prepared_statements: int
    """0 too where it is older than 1.21, which has none."""
    client_idle_timeout: float | None
    """Seconds, as the next; None for no limit."""
    query_wait_timeout: float | None


def ask_console(connection: psycopg.Connection[Any]) -> PoolerFacts | None:
    """Ask the pooler that *connection* leads to; None if it tells this role nothing.

    It tells roles that are in its ``stats_users`` or ``admin_users``.
    """
    info = connection.info
    address: dict[str, Any] = {
        **info.get_parameters(),
        "password": info.password,
        "dbname": DATABASE,
        "connect_timeout": CONNECT_TIMEOUT,
    }
    try:
        with psycopg.connect(**address, autocommit=True, prepare_threshold=None) as console:
            cursor = console.cursor(row_factory=dict_row)
            config = {row["key"]: row["value"] for row in cursor.execute("SHOW CONFIG")}
            databases = {row["name"]: row for row in cursor.execute("SHOW DATABASES")}
        mine = databases.get(info.dbname, {})
        return PoolerFacts(
            pool_mode=mine.get("pool_mode") or config["pool_mode"],
            pool_size=int(mine.get("pool_size", config["default_pool_size"])),
            max_client_conn=int(config["max_client_conn"]),
            max_prepared_statements=int(config.get("max_prepared_statements", 0)),
            client_idle_timeout=float(config["client_idle_timeout"]) or None,
            query_wait_timeout=float(config["query_wait_timeout"]) or None,
        )
    except (psycopg.Error, LookupError, ValueError):
        # Not permitted, or another pooler that has a console of the same name.
        return None


def is_invented(backend_pid: int) -> bool:
    """Tell whether a login's number of the backend is no process's, so that a pooler made it up.

    One in a thousand of PgBouncer's looks like a process's.
    """
    return not 0 < backend_pid <= LARGEST_PID


class ConsoleProbe(Probe[PoolerQueue]):
    """Asks PgBouncer's console for the queue of one database; it needs no server connection.

    A role that may not is asked for once: each refusal is a line in PgBouncer's log.

    Args:
        wrapper: Whose connection parameters are used.
        application_name: Name of the client in ``SHOW CLIENTS``.
    """

    def __init__(self, wrapper: BaseDatabaseWrapper, application_name: str) -> None:
        name = wrapper.settings_dict["NAME"]
        super().__init__(wrapper, partial(_queue, name), application_name)
        self.refused: bool = False
        """Whether it said no, by which it is known to be there."""

    def start(self, timeout: float) -> None:
        if not self.refused:
            super().start(timeout)

    def _put(self, connection: psycopg.Connection[Any], timeout: float) -> PoolerQueue:
        # It knows neither transactions nor time limits.
        return self._question(connection)

    def _own_parameters(self) -> dict[str, Any]:
        return {**super()._own_parameters(), "dbname": DATABASE, "autocommit": True}

    def _failed(self, error: Exception) -> None:
        # Its words are not translated, and differ by the way in which it is configured.
        self.refused = isinstance(error, psycopg.Error) and "FATAL" in str(error)


def _queue(database: str, connection: psycopg.Connection[Any]) -> PoolerQueue:
    cursor = connection.cursor(row_factory=dict_row)
    pools = [row for row in cursor.execute("SHOW POOLS") if row["database"] == database]
    databases = {row["name"]: row for row in cursor.execute("SHOW DATABASES")}
    return PoolerQueue(
        waiting=sum(row["cl_waiting"] for row in pools),
        longest_waiting=max((_maxwait(row) for row in pools), default=0.0),
        active=sum(row["sv_active"] for row in pools),
        idle=sum(row["sv_idle"] + row["sv_used"] + row["sv_tested"] for row in pools),
        pool_size=int(databases[database]["pool_size"]),
    )


def _maxwait(row: dict[str, Any]) -> float:
    return float(row["maxwait"]) + float(row.get("maxwait_us", 0)) / 1e6
