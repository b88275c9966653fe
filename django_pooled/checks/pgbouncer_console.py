"""PgBouncer's own settings, if it lets the site's role use its console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

__all__ = ["PoolerFacts", "ask_console"]

CONNECT_TIMEOUT = 2


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
        "dbname": "pgbouncer",
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
