"""PostgreSQL made to refuse what other servers refuse, in its database "postgres"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

__all__ = ["EMULATIONS", "execute", "refuse"]

# Built-in functions are called without a look at their definition, so they are not replaced but
# renamed, and others put in their place.
_HIDE = "ALTER {kind} pg_catalog.{name} RENAME TO hidden_{bare}"
_RAISE = """
    CREATE FUNCTION pg_catalog.{name} RETURNS {returns} LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}', MESSAGE = {message}; END $$
"""


def execute(server: EmbeddedServer, *statements: str) -> None:
    """Run statements as the superuser, who may change what is in pg_catalog."""
    with psycopg.connect(
        **server.parameters("postgres"), autocommit=True, options="-c allow_system_table_mods=on"
    ) as connection:
        for statement in statements:
            connection.execute(statement)


def refuse(server: EmbeddedServer, name: str, returns: str, sqlstate: str, message: str) -> None:
    """Have a function without arguments raise an error.

    Args:
        server: That runs.
        name: Of a function of pg_catalog.
        returns: Its type.
        sqlstate: Of the error.
        message: Its text.
    """
    words = "'" + message.replace("'", "''") + "'"
    execute(
        server,
        _HIDE.format(kind="FUNCTION", name=f"{name}()", bare=name),
        _RAISE.format(name=f"{name}()", returns=returns, sqlstate=sqlstate, message=words),
    )


def stock(server: EmbeddedServer) -> None:
    """Leave it as it is."""


def aurora(server: EmbeddedServer) -> None:
    """Refuse what Amazon Aurora refuses, in its words: its storage has no WAL files of its own."""
    words = "wal_level must be set to 'logical'"
    refuse(server, "pg_current_wal_lsn", "pg_lsn", "55000", words)
    words = "pg_stat_get_wal() is currently not supported in Aurora"
    refuse(server, "pg_stat_get_wal", "timestamptz", "0A000", words)
    execute(
        server,
        _HIDE.format(kind="VIEW", name="pg_stat_wal", bare="pg_stat_wal"),
        "CREATE VIEW pg_catalog.pg_stat_wal AS "
        "SELECT * FROM pg_catalog.pg_stat_get_wal() AS wal (stats_reset)",
        "GRANT SELECT ON pg_catalog.pg_stat_wal TO PUBLIC",
    )


HARDENED = (
    *("pg_control_system()", "pg_current_wal_lsn()", "pg_walfile_name(pg_lsn)"),
    "pg_postmaster_start_time()",
)


def hardened(server: EmbeddedServer) -> None:
    """Revoke what an administrator may think is nobody's business but the superuser's."""
    execute(
        server,
        *(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{name} FROM PUBLIC" for name in HARDENED),
        "REVOKE SELECT ON pg_catalog.pg_stat_wal FROM PUBLIC",
    )


MISSING = (
    *("pg_current_xact_id_if_assigned()", "pg_current_xact_id()", "pg_xact_status(xid8)"),
    *("pg_control_system()", "pg_current_wal_lsn()", "pg_stat_get_activity(int)"),
)


def bare(server: EmbeddedServer) -> None:
    """Take away what CockroachDB, YugabyteDB and others do not have."""
    for name in MISSING:
        hide = _HIDE.format(kind="FUNCTION", name=name, bare=name.split("(")[0])
        execute(server, hide)


EMULATIONS: dict[str, Callable[[EmbeddedServer], None]] = {
    "stock": stock,
    "aurora": aurora,
    "hardened": hardened,
    "bare": bare,
}
"""By name: what makes a server that runs refuse as another does."""
