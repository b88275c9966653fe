"""Facts about the server, and a pooler before it, that one connection can find out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.server.pgbouncer_console import ask_console
from django_pooled.retry.server_questions import refusals

if TYPE_CHECKING:
    import psycopg

    from django_pooled.poolstats.server.pgbouncer_console import PoolerFacts

__all__ = ["ServerFacts", "ask_server"]

# Superusers are under no limit but max_connections. Who may use reserved_connections, members of
# a role that PostgreSQL 16 has, may not use those that are kept for superusers.
# https://www.postgresql.org/docs/current/runtime-config-connection.html
_SERVER = """
    SELECT pg_backend_pid(),
           current_setting('max_connections')::int,
           CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int
               + CASE WHEN EXISTS (
                     SELECT FROM pg_roles AS privileged
                      WHERE privileged.rolname = 'pg_use_reserved_connections'
                        AND pg_has_role(session_user, privileged.oid, 'USAGE')
                 ) THEN 0 ELSE coalesce(current_setting('reserved_connections', true)::int, 0) END
           END,
           session_user::text,
           CASE WHEN NOT rolsuper AND rolconnlimit >= 0 THEN rolconnlimit END,
           current_database()::text,
           CASE WHEN NOT rolsuper AND datconnlimit >= 0 THEN datconnlimit END,
           (SELECT nullif(setting::int, 0) / 1000.0 FROM pg_settings
             WHERE name = 'idle_session_timeout')::float8,
           -- What the settings ask for, in OPTIONS["options"], they know.
           CASE WHEN pg_is_in_recovery() THEN 'a read-only standby'
                WHEN EXISTS (SELECT FROM pg_settings
                              WHERE name = 'default_transaction_read_only'
                                AND setting = 'on' AND source <> 'client')
                THEN 'read-only (default_transaction_read_only)' END,
           -- Where a function hides what it goes by, it is taken to go by a setting.
           ARRAY(SELECT DISTINCT format('%I.%I', schemaname, tablename)
                   FROM pg_policies JOIN pg_tables USING (schemaname, tablename)
                  WHERE rowsecurity
                    AND (roles <> '{public}'
                         OR concat_ws(' ', qual, with_check) ~
                            '[a-z_"][(]|CURRENT_|SESSION_USER|[[:<:]]USER[[:>:]]'))
      FROM pg_roles, pg_database
     WHERE rolname = session_user AND datname = current_database()
"""

_PROCESSES = """
    SELECT DISTINCT application_name
      FROM pg_stat_activity
     WHERE datname = current_database() AND application_name ~ '^django [0-9]+@'
"""


@dataclass(frozen=True)
class ServerFacts:
    """One server, as the site's role sees it."""

    address: str
    """Host and port."""
    behind_pooler: bool
    """Whether another program holds the sessions, which the other fields then describe."""
    pooler: PoolerFacts | None
    """What it tells of itself."""
    processes: tuple[str, ...]
    """Names of the sessions of pools in this database, one for each process."""
    refused: tuple[str, ...]
    """What retry_transaction would ask for, and this role is not told."""
    max_connections: int
    reserved: int
    """Of them, those that this role can't have."""
    role: str
    role_limit: int | None
    database: str
    database_limit: int | None
    idle_session_timeout: float | None
    """Seconds; None for no limit, which is all that PostgreSQL 13 knows."""
    read_only: str | None = None
    """What it is, if it refuses writes: "a read-only standby"."""
    tables_by_session: tuple[str, ...] = ()
    """Tables whose policies of row-level security go by a role, or call a function."""


def ask_server(connection: psycopg.Connection[Any]) -> ServerFacts:
    """Ask the server, in a few round trips.

    A pooler answers a client's login itself, with a number of its own making for the backend.
    Its mode can't be seen from one connection: as long as it has no other client, PgBouncer gives
    a client the same backend in both of them. Its console tells the roles that may use it.
    """
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    backend, *facts = row
    processes = tuple(name for (name,) in connection.execute(_PROCESSES))
    behind_pooler = backend != connection.info.backend_pid
    pooler = ask_console(connection) if behind_pooler else None
    refused = tuple(refusals(connection))
    info = connection.info
    address = f"{info.hostaddr or info.host}:{info.port}"
    return ServerFacts(address, behind_pooler, pooler, processes, refused, *facts)
